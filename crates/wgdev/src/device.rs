//! The trait, and the values that go in and out of it.

use std::{
    fmt, io,
    net::{IpAddr, SocketAddr},
    pin::Pin,
    time::Duration,
};

use ipnet::IpNet;
use wire::key::{PrivateKey, PublicKey};

use crate::DeviceError;

/// Peers a device accepts: one that talks costs about 18 KiB in the userspace device, and the mesh is bounded well below this.
pub const MAX_PEERS: usize = 8192;

/// Allowed IPs one peer may have: its mesh addresses, pod ranges and carried node addresses are a
/// handful, so more than this is a mistake upstream.
pub const MAX_ALLOWED_IPS: usize = 1024;

/// How long [`Device::counters`] goes on to tell of a peer after the last news of it, so that who looked away at the wrong
/// moment, or did not believe it yet, sees it again.
pub const LIVELY: Duration = Duration::from_secs(15);

/// What the async methods of [`Device`] return; boxed so that the trait can be a trait object.
pub type BoxFuture<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// Who moves the packets of a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Backend {
    /// The kernel.
    Kernel,
    /// This process.
    Userspace,
}

impl Backend {
    /// Its name in logs, metrics and reports.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Kernel => "kernel",
            Self::Userspace => "userspace",
        }
    }
}

/// A WireGuard interface: kernel, userspace or in memory.
pub trait Device: Send + Sync {
    /// Who moves its packets.
    fn backend(&self) -> Backend;

    /// Name of the network interface.
    fn name(&self) -> &str;

    /// Index of the network interface.
    fn if_index(&self) -> u32;

    /// UDP port the device listens on, never 0.
    fn listen_port(&self) -> u16;

    /// MTU of the interface.
    fn mtu(&self) -> u16;

    /// Removes and then adds or changes peers. Refused peers don't stop the others: all of the delta
    /// that can be applied is applied, and [`DeviceError::Refused`] names the rest.
    fn apply<'a>(&'a self, delta: &'a Delta) -> BoxFuture<'a, Result<(), DeviceError>>;

    /// All peers, ordered by public key.
    fn peers(&self) -> BoxFuture<'_, Result<Vec<PeerStatus>, DeviceError>>;

    /// Counters of each peer that was added, had packets, a handshake or another endpoint within the last [`LIVELY`]; in no
    /// order. A device may tell of the others too, as one does that can only tell of all.
    fn counters(&self) -> BoxFuture<'_, Result<Vec<PeerCounters>, DeviceError>> {
        Box::pin(async move { Ok(self.peers().await?.iter().map(PeerStatus::counters).collect()) })
    }

    /// Sends a handshake initiation to the peer now, even if a session exists or one is under way; the
    /// kernel does so only if neither is (see [`crate::kernel`]).
    fn start_handshake<'a>(&'a self, peer: &'a PublicKey) -> BoxFuture<'a, Result<(), DeviceError>>;

    /// Sends a datagram from WireGuard's port.
    fn send(&self, datagram: Datagram) -> BoxFuture<'_, io::Result<()>>;

    /// The same, with a packet that lives for `ttl` hops: it opens the NATs on this side and reaches nobody.
    fn send_with_ttl(&self, datagram: Datagram, ttl: u8) -> BoxFuture<'_, io::Result<()>>;

    /// The next datagram that arrived on WireGuard's port, not through the tunnel, and isn't WireGuard's; of
    /// the kernel's device, only STUN. Cancel safe.
    fn recv(&self) -> BoxFuture<'_, io::Result<Datagram>>;

    /// Counters of what the device dropped.
    fn stats(&self) -> DeviceStats;
}

/// What a device is made of.
pub struct DeviceConfig {
    /// Interface name, at most 15 bytes.
    pub name: String,
    /// The node's key.
    pub private_key: PrivateKey,
    /// UDP port; 0 lets the kernel choose.
    pub listen_port: u16,
    /// Mark of every outer packet, so that policy routing keeps them out of the tunnel; 0 sets none.
    pub fwmark: u32,
    /// MTU of the interface.
    pub mtu: u16,
}

impl fmt::Debug for DeviceConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { name, private_key: _, listen_port, fwmark, mtu } = self;
        f.debug_struct("DeviceConfig")
            .field("name", name)
            .field("listen_port", listen_port)
            .field("fwmark", fwmark)
            .field("mtu", mtu)
            .finish_non_exhaustive()
    }
}

/// A change of the set of peers: `remove` first, then `upsert` in order.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Delta {
    /// Peers to add or change.
    pub upsert: Vec<PeerUpdate>,
    /// Peers to remove; unknown ones are ignored. One that is in `upsert` too is made anew.
    pub remove: Vec<PublicKey>,
}

/// What to change of one peer; `None` leaves that part as it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PeerUpdate {
    /// Which peer.
    pub public_key: PublicKey,
    /// Where to send its packets.
    pub endpoint: Option<SocketAddr>,
    /// All of its allowed IPs. One that another peer has moves over from there.
    pub allowed_ips: Option<Vec<IpNet>>,
    /// Persistent keepalive; `Some(None)` switches it off. Rounded up to whole seconds.
    pub keepalive: Option<Option<Duration>>,
}

impl PeerUpdate {
    /// An update that changes nothing of an existing peer, and adds an absent one without anything.
    pub fn new(public_key: PublicKey) -> Self {
        Self { public_key, endpoint: None, allowed_ips: None, keepalive: None }
    }
}

/// What the device knows of one peer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PeerStatus {
    /// Which peer.
    pub public_key: PublicKey,
    /// Where its packets go now.
    pub endpoint: Option<SocketAddr>,
    /// Its allowed IPs, sorted.
    pub allowed_ips: Vec<IpNet>,
    /// Persistent keepalive.
    pub keepalive: Option<Duration>,
    /// Bytes of its authenticated WireGuard messages, headers and keepalives included.
    pub rx_bytes: u64,
    /// Bytes of WireGuard messages sent to it.
    pub tx_bytes: u64,
    /// How long ago the last handshake with the device's key completed, if one ever did.
    pub last_handshake: Option<Duration>,
}

impl PeerStatus {
    /// The part of it that moves by itself.
    pub fn counters(&self) -> PeerCounters {
        let Self { public_key, endpoint, allowed_ips: _, keepalive: _, rx_bytes, tx_bytes, last_handshake } = *self;
        PeerCounters { public_key, endpoint, rx_bytes, tx_bytes, last_handshake }
    }
}

/// What of a peer packets change; see [`PeerStatus`] for each.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PeerCounters {
    /// Which peer.
    pub public_key: PublicKey,
    /// Where its packets go now.
    pub endpoint: Option<SocketAddr>,
    /// Bytes received.
    pub rx_bytes: u64,
    /// Bytes sent.
    pub tx_bytes: u64,
    /// Age of the last handshake.
    pub last_handshake: Option<Duration>,
}

/// A datagram that shares WireGuard's port.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Datagram {
    /// The other side.
    pub remote: SocketAddr,
    /// The local address: where it arrived, or where to send from (`None` lets routing choose).
    pub local: Option<IpAddr>,
    /// What it carries.
    pub payload: Vec<u8>,
}

/// Counters of what a device dropped since it was made. What the kernel's WireGuard drops it doesn't
/// tell by reason: there, all but the first stay 0.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DeviceStats {
    /// Datagrams for [`Device::recv`] that found its queue full, or are larger than any of ours.
    pub shared_dropped: u64,
    /// WireGuard messages that failed to parse, authenticate or find their peer.
    pub invalid_messages: u64,
    /// Decrypted packets whose source isn't in the allowed IPs of their peer.
    pub wrong_source: u64,
    /// Packets out of the interface that no peer's allowed IPs cover.
    pub no_peer: u64,
    /// Packets out of the interface for a peer that has no endpoint.
    pub no_endpoint: u64,
    /// Outer datagrams that the socket refused to send.
    pub send_errors: u64,
    /// Decrypted packets that the interface refused.
    pub interface_errors: u64,
}
