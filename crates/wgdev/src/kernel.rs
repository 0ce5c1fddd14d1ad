//! The WireGuard of the kernel, set up over netlink.
//!
//! The kernel moves the packets; this process only tells it what to do, and may end at any time without a packet lost.
//! One thread speaks netlink (`worker`): it adopts or creates the interface (`setup`), turns deltas into small messages
//! (`plan`, `message`), reads the peers (`dump`) and watches what others do to the interface. The port is shared by raw
//! sockets (`port`), open while they are needed (`share`).
//!
//! # Whose it is
//!
//! The interface is known by its index, never by its name, so that no change can reach another interface that got the
//! name. When it is deleted or renamed, moved to another namespace, or somebody gives it another key, port or mark, the
//! device stops: every call is [`DeviceError::Stopped`], and whoever opens it again gets it as it should be.
//!
//! It bears the mark [`LINK_GROUP`]. An interface of that name without the mark is adopted only if it has our key or none:
//! to give somebody's tunnel another key would end it.
//!
//! # Interruption
//!
//! A delta becomes messages of at most 64 peers (16 removals); the kernel does each under its lock. Wherever a process
//! ends, each peer is there with all of its allowed IPs or not at all, and the next [`Device::apply`] of the same delta
//! ends in the same state. A caller that drops the future of `apply` doesn't stop it.
//!
//! # What the kernel can't do
//!
//! - Start a handshake over a live session. [`Device::start_handshake`] makes WireGuard send a keepalive: without a
//!   session that is a handshake at once, unless one was tried within the last 5 s (the kernel goes on trying every
//!   5 s, for 90 s); with a session it is an encrypted keepalive and nothing more. A keepalive that is switched on for a
//!   peer without an endpoint is a try too, in vain: give both together.
//! - Count: of [`DeviceStats`] only `shared_dropped` moves. What the kernel drops it counts in the interface's
//!   statistics, and not by reason.

mod dump;
mod genl;
mod message;
mod plan;
mod port;
mod setup;
mod share;
mod worker;

use std::{io, sync::Arc};

use tokio::sync::mpsc;
use wire::key::PublicKey;

pub use self::port::{Port, PortConfig};
use self::{
    genl::Genl,
    share::Share,
    worker::{Opened, Request, Worker},
};
use crate::{
    Backend, BoxFuture, Datagram, Delta, Device, DeviceConfig, DeviceError, DeviceStats, PeerCounters, PeerStatus,
};

/// The group (`ip link show group`) of every interface that this crate makes: who made an interface shows in it. The bytes
/// are "WARR".
pub const LINK_GROUP: u32 = 0x5741_5252;

/// Whether the kernel has WireGuard, and if not, what to do about it. Makes it load the module if it can. Blocks for
/// as long as that takes.
pub fn available() -> Result<(), DeviceError> {
    worker::run_apart(async || Genl::connect().await.map(|_| ()))
}

/// The port of the interface of that name, if it is WireGuard's, up, and has this key: the one to open it with for whom it
/// is the same which of several ports it has, because to move it would cost every NAT's mapping. Blocks until it is known.
pub fn standing_port(name: &str, key: PublicKey) -> Result<Option<u16>, DeviceError> {
    let name = name.to_owned();
    worker::run_apart(async move || setup::standing_port(&name, key).await)
}

/// A WireGuard device of the kernel.
///
/// Dropping it leaves the interface, its peers and their sessions as they are.
pub struct Kernel {
    name: String,
    if_index: u32,
    listen_port: u16,
    mtu: u16,
    share: Arc<Share>,
    arrived: tokio::sync::Mutex<mpsc::Receiver<Datagram>>,
    worker: Worker,
}

impl Kernel {
    /// Adopts the WireGuard interface of that name with its peers and sessions, or creates it; sets key, port, mark and
    /// MTU where they differ, and brings it up. Interface and sockets are those of the calling thread's network
    /// namespace. Blocks until it is done.
    pub fn open(config: DeviceConfig) -> Result<Self, DeviceError> {
        let (name, mtu) = (config.name.clone(), config.mtu);
        let share = Arc::new(Share::new());
        let (queue, arrived) = mpsc::channel(share::QUEUE);
        let (worker, Opened { if_index, listen_port }) = Worker::start(config, share.clone(), queue)?;
        let arrived = tokio::sync::Mutex::new(arrived);
        Ok(Self { name, if_index, listen_port, mtu, share, arrived, worker })
    }

    /// The sockets that share the port, opened if they aren't.
    async fn port(&self) -> io::Result<Arc<Port>> {
        if self.worker.is_stopped() {
            return Err(io::ErrorKind::BrokenPipe.into());
        }
        if let Some(port) = self.share.port() {
            return Ok(port);
        }
        let opened = self.worker.ask(Request::OpenPort).await;
        opened.unwrap_or_else(|_| Err(io::ErrorKind::BrokenPipe.into()))
    }

    /// The port, while something sent from it would be answered.
    async fn open_port(&self) -> io::Result<Arc<Port>> {
        let port = self.port().await?;
        if self.share.is_up() { Ok(port) } else { Err(io::ErrorKind::NetworkDown.into()) }
    }
}

impl Device for Kernel {
    fn backend(&self) -> Backend {
        Backend::Kernel
    }

    fn name(&self) -> &str {
        &self.name
    }

    fn if_index(&self) -> u32 {
        self.if_index
    }

    fn listen_port(&self) -> u16 {
        self.listen_port
    }

    fn mtu(&self) -> u16 {
        self.mtu
    }

    fn apply<'a>(&'a self, delta: &'a Delta) -> BoxFuture<'a, Result<(), DeviceError>> {
        Box::pin(async move { self.worker.ask(|answer| Request::Apply(delta.clone(), answer)).await? })
    }

    fn peers(&self) -> BoxFuture<'_, Result<Vec<PeerStatus>, DeviceError>> {
        Box::pin(async move { self.worker.ask(Request::Peers).await? })
    }

    fn counters(&self) -> BoxFuture<'_, Result<Vec<PeerCounters>, DeviceError>> {
        Box::pin(async move { self.worker.ask(Request::Counters).await? })
    }

    fn start_handshake<'a>(&'a self, peer: &'a PublicKey) -> BoxFuture<'a, Result<(), DeviceError>> {
        Box::pin(async move { self.worker.ask(|answer| Request::StartHandshake(*peer, answer)).await? })
    }

    fn send(&self, datagram: Datagram) -> BoxFuture<'_, io::Result<()>> {
        Box::pin(async move { self.open_port().await?.send(&datagram, None) })
    }

    fn send_with_ttl(&self, datagram: Datagram, ttl: u8) -> BoxFuture<'_, io::Result<()>> {
        Box::pin(async move { self.open_port().await?.send(&datagram, Some(ttl)) })
    }

    fn recv(&self) -> BoxFuture<'_, io::Result<Datagram>> {
        Box::pin(async move {
            let _receiving = self.share.receiving();
            let mut arrived = self.arrived.lock().await;
            // What has arrived is handed out even if the sockets have closed since.
            if let Ok(datagram) = arrived.try_recv() {
                return Ok(datagram);
            }
            self.port().await?;
            arrived.recv().await.ok_or_else(|| io::ErrorKind::BrokenPipe.into())
        })
    }

    fn stats(&self) -> DeviceStats {
        DeviceStats { shared_dropped: self.share.dropped(), ..DeviceStats::default() }
    }
}
