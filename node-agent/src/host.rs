//! The machine below the agent, behind one trait: device, host network, CNI file, echo sockets. The event loop knows only the
//! trait, so the whole of it runs in tests without a kernel.

pub mod echo;
pub mod listening;
pub mod system;

pub use system::System;

use crate::{
    carry::Carrier,
    cni::CniPlan,
    net::{Changed, NetPlan, Rerouting, Underlay},
    relays::{Credentials, Link, Relay},
    status::conditions::{Cni, Network},
};
use crds::mesh::Backend;
use std::{
    io,
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::Duration,
};
use wgdev::{BoxFuture, Device, DeviceConfig, DeviceError};
use wire::key::PublicKey;

/// What the agent asks of its machine.
pub trait Host: Send + Sync {
    /// What the node has without the mesh; `device` is ours and is left out.
    fn survey<'a>(&'a self, device: &'a str) -> BoxFuture<'a, anyhow::Result<Survey>>;

    /// Attaches to the mesh device, or makes it. One of ours that another backend made gives way.
    fn open_device(
        &self,
        config: DeviceConfig,
        backend: Backend,
    ) -> BoxFuture<'_, Result<Arc<dyn Device>, DeviceError>>;

    /// The UDP port of a mesh device of the kernel's that a process before has left with this key.
    fn standing_port<'a>(&'a self, device: &'a str, key: PublicKey) -> BoxFuture<'a, Option<u16>>;

    /// Makes routes, rules and firewall as planned, and then publishes the CNI file, if there is to be one.
    fn program<'a>(&'a self, plan: &'a NetPlan, cni: Option<&'a CniPlan>) -> BoxFuture<'a, anyhow::Result<Programmed>>;

    /// Changes the routes to a few peers, on a host network that was programmed as planned. `false` if that takes more: then
    /// the whole plan has to be programmed.
    fn reroute<'a>(&'a self, plan: &'a NetPlan, change: &'a Rerouting) -> BoxFuture<'a, anyhow::Result<bool>>;

    /// Whether the CNI file is in place as it was published.
    fn cni_stands(&self, plan: &CniPlan, mtu: u16) -> bool;

    /// Opens the echo sockets on the device.
    fn open_echo(&self, device: &str) -> io::Result<Box<dyn Echo>>;

    /// Opens the socket that carries packets of the device with this UDP port over channels to relays.
    fn open_carrier(&self, wireguard: u16) -> io::Result<Carrier>;

    /// Opens a channel to a relay, within so much time.
    fn open_link<'a>(
        &'a self,
        credentials: &'a Credentials,
        relay: &'a Relay,
        patience: Duration,
    ) -> BoxFuture<'a, anyhow::Result<Link>>;

    /// Waits for a change of the host network that may concern us.
    fn changed(&self) -> BoxFuture<'_, Changed>;

    /// Whether something listens on this TCP port of this machine.
    fn listens_on(&self, port: u16) -> bool;
}

/// What the node has without the mesh.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Survey {
    /// Usable addresses, subnets, gateways, resolvers, MTU.
    pub underlay: Underlay,
    /// Every address of every interface but ours.
    pub own_addresses: Vec<IpAddr>,
}

/// What programming the host network came to.
#[derive(Clone, Debug, Default)]
pub struct Programmed {
    /// For the conditions.
    pub network: Network,
    /// The CNI file.
    pub cni: Cni,
    /// What was different from the plan and is repaired, by kind.
    pub repairs: Vec<&'static str>,
}

/// UDP sockets on the mesh device that answer and ask whether packets pass through the tunnel.
pub trait Echo: Send + Sync {
    /// Sends without waiting; a full buffer drops, the engine asks again.
    fn send(&self, to: SocketAddr, payload: &[u8]) -> io::Result<()>;

    /// The next datagram. Cancel safe.
    fn recv(&self) -> BoxFuture<'_, io::Result<(SocketAddr, Vec<u8>)>>;
}
