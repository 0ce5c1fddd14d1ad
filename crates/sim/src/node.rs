//! One machine: a path engine, a toy WireGuard device, and a user who pings.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use ipnet::IpNet;
use path::{Candidate, Engine, Forbidden, NatReport, PathState, PeerConfig, RelayId};
use wire::{PrivateKey, PublicKey};

use crate::device::Device;
use crate::internet::{BoxId, RealmId};
use crate::packet::Message;
use crate::site::Site;

/// A machine of the mesh.
#[derive(Debug)]
pub struct Node {
    /// Where it stands.
    pub site: Site,
    /// Its identity.
    pub key: PublicKey,
    pub(crate) secret: [u8; 32],
    pub(crate) realm: RealmId,
    /// Its boxes, from inside to outside.
    pub boxes: Vec<BoxId>,
    /// Its interface addresses.
    pub addresses: Vec<IpNet>,
    /// Its address as seen from the core.
    pub outside: IpAddr,
    pub(crate) port: u16,
    /// The agent; `None` while it is stopped.
    pub engine: Option<Engine>,
    /// The device, which outlives the agent.
    pub device: Device,
    pub(crate) forbidden: Forbidden,
    pub(crate) starts: u32,
    pub(crate) counted: Duration,
    /// When its agent has heard all that arrived.
    pub(crate) heard: Duration,
    pub(crate) published: Option<(Vec<Candidate>, NatReport)>,
    /// How many times it published.
    pub publications: u32,
    /// Without packets for how long its agent lets a pair go; nothing keeps them all, as agents before that did.
    pub idle: Option<Duration>,
    /// What the device sent to peers that sleep: their addresses, and what waits there.
    pub(crate) bells: BTreeMap<SocketAddr, PublicKey>,
    pub(crate) waiting: BTreeMap<PublicKey, Vec<(Duration, Message)>>,
    /// Packets that its agent and its device have sent to anybody but observers.
    pub sent: u64,
    /// What the directory told it, kept on disk.
    pub(crate) cache: BTreeMap<PublicKey, PeerConfig>,
    /// Whether it is switched on.
    pub(crate) powered: bool,
    /// Whether its link is up.
    pub(crate) plugged: bool,
    /// What it was told that relays are called.
    pub(crate) relays: BTreeMap<usize, RelayId>,
    /// The peers that its user pings.
    pub(crate) pinged: BTreeSet<PublicKey>,
    /// What is known of each peer, for judging.
    pub ledger: BTreeMap<PublicKey, Ledger>,
}

/// What a judge writes down about one direction of a pair.
#[derive(Debug, Clone, Default)]
pub struct Ledger {
    /// When this node first had the peer's candidates.
    pub known: Option<Duration>,
    /// When the user's ping was first answered.
    pub first_pong: Option<Duration>,
    /// Pings of the user that were not answered, or not yet, since the first one that was.
    pub unanswered: BTreeSet<u64>,
    /// When it was last answered.
    pub last_pong: Option<Duration>,
    /// When the state was first direct.
    pub first_direct: Option<Duration>,
    /// When it was first relayed.
    pub first_relayed: Option<Duration>,
    /// The state now, and since when.
    pub state: Option<(Duration, PathState)>,
    /// When the user began to ping.
    pub watched: Duration,
    /// The longest time without an answer, once there was one.
    pub outage: Duration,
    /// Changes of state.
    pub changes: u32,
    /// Datagrams sent to addresses of the peer.
    pub sent: u32,
}

impl Node {
    pub(crate) fn private_key(&self) -> PrivateKey {
        PrivateKey::from_bytes(self.secret)
    }

    pub(crate) fn socket(&self, family: IpAddr) -> Option<SocketAddr> {
        self.addresses
            .iter()
            .map(IpNet::addr)
            .find(|addr| addr.is_ipv4() == family.is_ipv4())
            .map(|addr| SocketAddr::new(addr, self.port))
    }

    /// Whether it is switched on.
    #[must_use]
    pub fn is_powered(&self) -> bool {
        self.powered
    }

    /// Whether this node shows a direct path.
    #[must_use]
    pub fn is_direct(&self, peer: &PublicKey) -> bool {
        matches!(self.state(peer), Some(PathState::Direct { .. }))
    }

    /// Whether the pair sleeps on this side.
    #[must_use]
    pub fn is_idle(&self, peer: &PublicKey) -> bool {
        matches!(self.state(peer), Some(PathState::Idle))
    }

    /// Whether this node shows a relayed path.
    #[must_use]
    pub fn is_relayed(&self, peer: &PublicKey) -> bool {
        matches!(self.state(peer), Some(PathState::Relayed { .. }))
    }

    /// The state that this node shows.
    #[must_use]
    pub fn state(&self, peer: &PublicKey) -> Option<PathState> {
        self.ledger.get(peer)?.state.map(|(_, state)| state)
    }
}
