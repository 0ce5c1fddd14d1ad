//! What the shell tells the engine.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use ipnet::IpNet;
use wire::{PrivateKey, PublicKey};

use crate::candidate::Candidate;
use crate::filter::Forbidden;
use crate::relay::{RelayId, RelayNews};

/// What an engine is made of. There is one engine per WireGuard device.
#[derive(Debug)]
pub struct Config {
    /// The device's private key. Pair keys are derived from it.
    pub private_key: PrivateKey,
    /// The mesh's identity, part of every pair key.
    pub mesh_id: String,
    /// The mesh-wide secret, in installations that have one.
    pub psk: Option<[u8; 32]>,
    /// The device's UDP port, which the shell shares with the engine.
    pub listen_port: u16,
    /// Whether the device starts a handshake whenever it is told to. The kernel's does not within 5 s of the last one.
    pub repeats_handshakes: bool,
    /// Secret random bytes, fresh for every engine: transaction ids come from it and must not repeat.
    pub seed: [u8; 32],
}

/// One fact for the engine.
#[derive(Debug, Clone)]
pub enum Input {
    /// The usable addresses of this node's interfaces, with their prefix lengths (an address alone is a full-length one).
    /// Stable ones only: they are published.
    HostCandidates(Vec<IpNet>),
    /// Addresses that an administrator or a port mapping added. They are published with the others.
    ExtraCandidates(Vec<Candidate>),
    /// Who tells this node how it looks from outside.
    StunServers(Vec<SocketAddr>),
    /// Peers that are new or changed, and peers that are gone. Whoever is not named stays as it is.
    Peers {
        /// New or changed.
        upsert: Vec<PeerConfig>,
        /// Gone.
        remove: Vec<PublicKey>,
    },
    /// What must never be dialled. Replaces what was said before.
    Forbidden(Forbidden),
    /// A datagram that reached the WireGuard port and is not WireGuard's.
    Datagram {
        /// Its source.
        from: SocketAddr,
        /// The local address that it was sent to, if known: the answer leaves from there.
        to: Option<IpAddr>,
        /// Its bytes.
        payload: Vec<u8>,
    },
    /// What the device had of these peers before this engine was made, for peers that are known already: the sessions of
    /// live ones are kept where they are until something better is proven.
    Sessions(Vec<Session>),
    /// The device's counters. Feed them every [`Engine::counters_interval`](crate::Engine::counters_interval). Of a peer
    /// whose numbers have been the same for ten seconds nothing need be said.
    Counters(Vec<PeerCounters>),
    /// An echo request of the peer arrived through the tunnel (and the shell has answered it).
    EchoRequest {
        /// Who asked.
        peer: PublicKey,
    },
    /// The peer's answer to an echo arrived through the tunnel.
    EchoReply {
        /// Who answered.
        peer: PublicKey,
        /// The token of [`Event::SendEcho`](crate::Event::SendEcho).
        token: u64,
    },
    /// Something about a relay: its control channel, or what it said over it.
    Relay {
        /// Which.
        relay: RelayId,
        /// What.
        news: RelayNews,
    },
    /// The port of the loopback socket by which the shell carries WireGuard's packets over relays' channels; nothing if it cannot. Another
    /// one makes every [`Event::Carry`](crate::Event::Carry) void.
    Carrier(Option<u16>),
    /// Whether it is not known yet which relays there are. Meanwhile there may be one, so nobody is probed without order.
    RelaysUnknown(bool),
    /// Whether peers that no packets of users go to or come from are let sleep; nothing keeps every pair of nodes connected.
    OnDemand(Option<OnDemand>),
    /// WireGuard has sent something to the address that stands for this peer ([`Event::Await`](crate::Event::Await)).
    Called {
        /// Who is wanted.
        peer: PublicKey,
    },
    /// Links, addresses or routes changed: whatever is known of NATs and paths may be stale.
    NetworkChanged,
}

/// Paths only for those who talk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct OnDemand {
    /// Without packets of users for so long a pair is let go. Keepalives, handshakes and the agents' own echoes are none.
    pub idle: Duration,
    /// The port of the loopback socket where the shell waits for what WireGuard sends to peers that sleep.
    pub port: u16,
}

/// What the directory says about a peer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PeerConfig {
    /// Who it is.
    pub public_key: PublicKey,
    /// Where it says it can be reached. Not believed before it is proven.
    pub candidates: Vec<Candidate>,
    /// Grows when the peer starts anew; any change starts probing over.
    pub round: u32,
    /// Whether this node wants a path. Without it the peer is only answered.
    pub wanted: bool,
}

/// A session that outlived the engine before this one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Session {
    /// With whom.
    pub peer: PublicKey,
    /// Where WireGuard sends.
    pub endpoint: SocketAddr,
    /// Its persistent keepalive.
    pub keepalive: Option<Duration>,
    /// How long ago its last handshake was completed.
    pub last_handshake: Duration,
}

/// The device's view of one peer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PeerCounters {
    /// Who it is.
    pub public_key: PublicKey,
    /// Bytes that WireGuard received and authenticated.
    pub rx_bytes: u64,
    /// Bytes that WireGuard sent.
    pub tx_bytes: u64,
    /// How long ago the last handshake was completed, if ever.
    pub last_handshake: Option<Duration>,
    /// Where WireGuard sends to now. It follows the peer's authenticated packets.
    pub endpoint: Option<SocketAddr>,
}
