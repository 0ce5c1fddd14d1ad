//! The data plane of this node: the device, the path engine that steers it, the echo sockets, and the host network.

mod applying;
mod callers;
mod events;
mod opening;
mod others;
mod turn;

pub use applying::Planned;
pub use turn::News;

use callers::Callers;

use super::{
    INPUT_BUDGET,
    identity::Identity,
    intent::{DeviceIntent, Intent},
};
use crate::{
    carry::{Bells, Carrier},
    host::{Echo, Host, echo::Message},
    relays::{self, Relays},
};
use crds::mesh::Backend;
use path::{Candidate, Engine, Input, NatReport, RelayNews};
use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, Ipv4Addr, SocketAddr},
    sync::Arc,
    time::Instant,
};
use topology::node::PeerPlans;
use wgdev::{Datagram, Device, DeviceError, PeerStatus};
use wire::key::PublicKey;

/// Where a peer of the kernel's points that shall have no endpoint: the discard port of this machine, where nobody listens and
/// nobody without privileges can.
const NOWHERE: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 9);

/// An open device with everything that lives and dies with it.
pub struct Plane {
    device: Arc<dyn Device>,
    wanted: DeviceIntent,
    /// Peers that the device had when it was opened, until a plan has claimed or removed them.
    leftover: PeerPlans,
    engine: Engine,
    echo: Arc<dyn Echo>,
    /// The peers as last applied, and the revision of that plan.
    peers: PeerPlans,
    revision: Option<u64>,
    /// Peers that the device refused as they are planned.
    refused: BTreeSet<PublicKey>,
    /// When to look at all peers of a device that others can change.
    look_at: Instant,
    /// What the next turn answers.
    news: News,
    fed: Fed,
    relays: Relays,
    /// Takes WireGuard's packets to relays' channels and hears of peers that are to be woken; nothing where that can't be had.
    carrier: Option<Carrier>,
    /// What was to go to peers that slept.
    callers: Callers,
    by_mesh_ip: BTreeMap<IpAddr, PublicKey>,
    counters_at: Instant,
    local: Option<(Vec<Candidate>, NatReport)>,
}

/// What the engine was last told, so that it is told changes only.
#[derive(Default)]
struct Fed {
    forbidden: Option<path::Forbidden>,
    hosts: Option<Vec<ipnet::IpNet>>,
    stun_servers: Option<Vec<SocketAddr>>,
    on_demand: Option<path::OnDemand>,
    knows_relays: Option<bool>,
}

impl Plane {
    /// Attaches to the device or makes it, on the assigned port or the next free one, and starts the path engine. A device
    /// that stands on one of those keeps it, unless the port was `reassigned`.
    pub async fn open(
        host: &Arc<dyn Host>,
        name: &str,
        identity: &Identity,
        intent: &Intent,
        reassigned: bool,
        now: Instant,
    ) -> Result<Self, DeviceError> {
        let standing = if reassigned { None } else { host.standing_port(name, identity.public_key()).await };
        let device = opening::open_device(host.as_ref(), name, identity, intent, standing).await?;
        let found = device.peers().await?;
        // Without them no path would ever be confirmed, so a device alone is of no use.
        let echo = host.open_echo(name).map_err(|source| DeviceError::Io { doing: "open the echo sockets", source })?;
        let mut seed = [0; 32];
        getrandom::fill(&mut seed)
            .map_err(|e| DeviceError::Io { doing: "draw a seed", source: std::io::Error::other(e.to_string()) })?;
        let config = path::Config {
            private_key: identity.private_key(),
            mesh_id: intent.device.mesh_id.clone(),
            psk: None,
            listen_port: device.listen_port(),
            repeats_handshakes: device.backend() == wgdev::Backend::Userspace,
            seed,
        };
        let carrier = open_carrier(host.as_ref(), device.listen_port());
        let mut engine = Engine::new(config, now);
        engine.handle_input(Input::Carrier(carrier.as_ref().map(Carrier::port)), now);
        let feed = carrier.as_ref().map(Carrier::feed);
        Ok(Self {
            wanted: intent.device.clone(),
            relays: Relays::new(host.clone(), identity.credentials(intent.device.fwmark), feed),
            carrier,
            callers: Callers::default(),
            engine,
            echo: Arc::from(echo),
            device,
            leftover: found.iter().map(|peer| (peer.public_key, Arc::new(applying::plan_of(peer)))).collect(),
            peers: PeerPlans::new(),
            revision: None,
            refused: BTreeSet::new(),
            look_at: now,
            news: News::default(),
            fed: Fed::default(),
            by_mesh_ip: BTreeMap::new(),
            counters_at: now,
            local: None,
        })
    }

    /// Whether this device serves that intent, or another must be opened.
    pub fn serves(&self, intent: &DeviceIntent) -> bool {
        let has_it = match (intent.backend, self.backend()) {
            (Backend::Auto | Backend::Kernel, wgdev::Backend::Kernel)
            | (Backend::Userspace, wgdev::Backend::Userspace) => true,
            _ => self.wanted.backend == intent.backend,
        };
        has_it && self.wanted == DeviceIntent { backend: self.wanted.backend, ..intent.clone() }
    }

    /// Which WireGuard it is.
    pub fn backend(&self) -> wgdev::Backend {
        self.device.backend()
    }

    /// The device, for the loop to receive from.
    pub fn device(&self) -> Arc<dyn Device> {
        self.device.clone()
    }

    /// The echo sockets, for the loop to receive from.
    pub fn echo(&self) -> Arc<dyn Echo> {
        self.echo.clone()
    }

    /// The UDP port in use.
    pub fn listen_port(&self) -> u16 {
        self.device.listen_port()
    }

    /// The path engine, to look at.
    pub fn engine(&self) -> &Engine {
        &self.engine
    }

    /// The revision of the plan that was applied last.
    pub fn revision(&self) -> Option<u64> {
        self.revision
    }

    /// Our own candidates and NATs, once they are known.
    pub fn local(&self) -> Option<&(Vec<Candidate>, NatReport)> {
        self.local.as_ref()
    }

    /// The channels to relays, to look at.
    pub fn relays(&self) -> &Relays {
        &self.relays
    }

    /// What is carried over relays' channels, to look at.
    pub fn carrier(&self) -> Option<&Carrier> {
        self.carrier.as_ref()
    }

    /// What the device has sent to peers that sleep, for the loop to wait for.
    pub fn bells(&self) -> Option<Arc<Bells>> {
        self.carrier.as_ref().map(Carrier::bells)
    }

    /// Takes what the device has sent to peers that sleep.
    pub async fn handle_calls(&mut self, now: Instant) {
        let Some(bells) = self.bells() else { return };
        for _ in 0..INPUT_BUDGET {
            let Some(call) = bells.take() else { return };
            let peer = call.peer;
            self.callers.keep(call, now);
            self.engine.handle_input(Input::Called { peer }, now);
            // Sent before the device knew better.
            if let Some((endpoint, _)) = self.engine.endpoint_of(&peer) {
                self.send_waiting(peer, endpoint, now).await;
            }
        }
        // The rest has its turn after other inputs.
        bells.ring_again();
    }

    /// The next report of a channel to a relay. Cancel safe.
    pub async fn relay_report(&mut self) -> relays::Report {
        self.relays.next().await
    }

    /// A channel to a relay has reported.
    pub fn handle_relay(&mut self, report: relays::Report, now: Instant) {
        for (relay, news) in self.relays.accept(report, now) {
            self.news.channels |= !matches!(news, RelayNews::Said(_));
            self.engine.handle_input(Input::Relay { relay, news }, now);
        }
    }

    /// Whether the operator has admitted this node's key.
    pub fn set_admitted(&self, admitted: bool) {
        self.relays.set_admitted(admitted);
    }

    /// The host's own network is another one.
    pub fn network_changed(&mut self, now: Instant) {
        self.engine.handle_input(Input::NetworkChanged, now);
    }

    /// A datagram arrived on WireGuard's port.
    pub fn handle_datagram(&mut self, datagram: Datagram, now: Instant) {
        let Datagram { remote, local, payload } = datagram;
        self.engine.handle_input(Input::Datagram { from: remote, to: local, payload }, now);
    }

    /// A datagram arrived on the echo port, through the tunnel; WireGuard has checked that its source is the peer's.
    pub fn handle_echo(&mut self, from: SocketAddr, payload: &[u8], now: Instant) {
        let Some(peer) = self.by_mesh_ip.get(&from.ip()).copied() else { return };
        match Message::decode(payload) {
            Some(Message::Request(token)) => {
                self.send_echo(from, Message::Reply(token));
                self.engine.handle_input(Input::EchoRequest { peer }, now);
            }
            Some(Message::Reply(token)) => self.engine.handle_input(Input::EchoReply { peer, token }, now),
            None => {}
        }
    }

    /// The device's peers, ordered by key; one that points at nobody has no endpoint.
    pub async fn statuses(&self) -> Result<Vec<PeerStatus>, DeviceError> {
        let mut peers = self.device.peers().await?;
        for peer in &mut peers {
            peer.endpoint.take_if(|endpoint| *endpoint == NOWHERE);
        }
        Ok(peers)
    }
}

/// Without it the mesh does all but go by relays' channels.
fn open_carrier(host: &dyn Host, wireguard: u16) -> Option<Carrier> {
    let carrier = host.open_carrier(wireguard);
    carrier
        .inspect_err(|error| {
            tracing::warn!(%error, "the loopback socket can't be opened; nothing can be carried over channels to relays");
        })
        .ok()
}
