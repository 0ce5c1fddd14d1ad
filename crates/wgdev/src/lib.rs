//! The WireGuard device of a node, behind one trait.
//!
//! # Model
//!
//! A [`Device`] is a WireGuard interface with a private key, a listen port and a set of peers. It is
//! told what to do by [`Delta`]s: peers to remove, then peers to add or change. There is no call that
//! replaces everything, because whoever replaces everything forgets sessions, and a forgotten session
//! is lost traffic. A field of a [`PeerUpdate`] that is `None` is left as it is; moving an endpoint
//! touches neither the session nor the allowed IPs of the peer.
//!
//! What the device has seen is read back with [`Device::peers`]: the endpoint it uses now (which
//! WireGuard itself moves when an authenticated packet arrives from elsewhere), byte counters and the
//! age of the last handshake. Nobody is told of changes; the reader compares. [`Device::counters`] is
//! the same for a reader that comes every second: it may leave out who was quiet.
//!
//! The device shares its UDP port. A datagram that isn't WireGuard-shaped (types 1 to 4 with zero in
//! the reserved bytes) is handed out by [`Device::recv`] with the local address it was sent to, and
//! [`Device::send`] sends from the very same port, so that a NAT mapping measured there is the mapping
//! WireGuard has. The queue between the two is bounded: when nobody reads, the newest is dropped and
//! counted, and WireGuard's own packets aren't delayed. What came through the tunnel, or was damaged on the
//! way, isn't handed out. What pods send is: they are known by their addresses, and whoever reads knows those.
//!
//! Three implementations: [`Kernel`], which configures the WireGuard of the kernel and moves no packet;
//! [`Userspace`], which moves packets between a TUN interface and a UDP socket with the Noise core of
//! `gotatun`; and [`Fake`], which keeps everything in memory for tests and is what the other two are
//! held against. What the kernel can't do is said in [`kernel`].
//!
//! # Life cycle
//!
//! [`Kernel::open`] adopts the WireGuard interface of that name, or creates it, and sets only what
//! differs; another key than before ends all sessions, as it must. Peers, sessions and
//! traffic outlive the device and the process, and the next `open` finds them. One thread speaks
//! netlink; it wakes up for requests, for changes of interfaces, and for datagrams on the shared port.
//!
//! [`Userspace::open`] attaches to the TUN interface of that name, or creates it, sets MTU and up, and
//! binds the port. The interface is persistent: dropping the device, or the end of the process, leaves
//! interface, index, addresses and routes in place, and the next `open` attaches again. Sessions live
//! in the process; a new process shakes hands anew. Three threads do the work (out of the tunnel
//! interface, out of the UDP socket, timers), none of them wakes up without a reason, and the async
//! methods only take short locks, so a single-threaded runtime is never held up by packets.
//!
//! # What it refuses to do
//!
//! - It never deletes an interface, and never takes over one that isn't its kind.
//! - It sets no addresses, routes, rules or sysctls; their owner is the agent's network shell.
//! - It accepts no packet from a peer whose source address isn't in that peer's allowed IPs.
//! - It has no opinion on paths: no endpoint is chosen, probed or put back here.
//! - It prints no private key, and keeps no copy of one but the one the Noise core needs.

mod allowed_ips;
mod check;
mod checksum;
mod device;
mod error;
mod fake;
pub mod kernel;
mod userspace;

pub use device::{
    Backend, BoxFuture, Datagram, Delta, Device, DeviceConfig, DeviceStats, LIVELY, MAX_ALLOWED_IPS, MAX_PEERS,
    PeerCounters, PeerStatus, PeerUpdate,
};
pub use error::{DeviceError, Refusal, RefusalReason};
pub use fake::Fake;
pub use kernel::Kernel;
pub use userspace::Userspace;

use udpsock::control;
