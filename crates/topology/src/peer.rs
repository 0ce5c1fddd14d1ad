//! What slices say: one entry per peer, tombstones for those that left.

use std::net::{IpAddr, SocketAddr};

use ipnet::IpNet;
use wire::key::PublicKey;

use crate::prefix;

/// A slice holds at most this many entries: about 40 kB of JSON, so that one change costs each watcher little.
pub const MAX_SLICE_ENTRIES: usize = 64;

/// `removed` remembers this many tombstones: more removals than any burst short of losing a whole site.
pub const MAX_TOMBSTONES: usize = 256;

/// A node advertises at most this many candidates; probing is quadratic in them.
pub const MAX_CANDIDATES: usize = 16;

/// The highest generation: the largest integer that the API stores, because every JSON parser holds it exactly.
pub const MAX_GENERATION: u64 = (1 << 53) - 1;

/// The identity of a node: the UID of its Kubernetes Node object, which a re-created node of the same name does not share.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Uid(pub String);

impl From<&str> for Uid {
    fn from(text: &str) -> Self {
        Self(text.to_owned())
    }
}

impl std::fmt::Display for Uid {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

/// Where a candidate address comes from. The order is the one in which a list that is too long is cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum CandidateKind {
    /// Written by an admin.
    Static,
    /// Opened on the router by PCP, NAT-PMP or UPnP.
    PortMapped,
    /// Seen by a STUN server.
    ServerReflexive,
    /// An address of the node itself.
    Host,
}

impl CandidateKind {
    /// Stable candidates change about as rarely as the node itself; the others are as volatile as a NAT mapping.
    pub fn is_stable(self) -> bool {
        matches!(self, Self::Static | Self::Host)
    }
}

/// A transport address at which a node may be reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Candidate {
    /// Where it comes from.
    pub kind: CandidateKind,
    /// The address and port.
    pub addr: SocketAddr,
}

/// One accepted node as a slice describes it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// The node's name.
    pub name: String,
    /// The node's identity.
    pub uid: Uid,
    /// The admitted key.
    pub public_key: PublicKey,
    /// The announced successor of the key, if a rotation is under way.
    pub next_public_key: Option<PublicKey>,
    /// Its addresses in the mesh, IPv4 first.
    pub mesh_ips: Vec<IpAddr>,
    /// Its pod ranges.
    pub pod_cidrs: Vec<IpNet>,
    /// Its own addresses that the mesh carries.
    pub node_ips: Vec<IpAddr>,
    /// Ranges behind it.
    pub routes: Vec<IpNet>,
    /// The port it really listens on.
    pub listen_port: u16,
    /// Where it stands.
    pub location: Option<String>,
    /// What policies call it.
    pub classes: Vec<String>,
    /// Where it may be reached.
    pub candidates: Vec<Candidate>,
    /// Its punch round; 0 in meshes that do not carry volatile candidates.
    pub round: u32,
    /// Grows with every change of the entry, across re-creations of the name.
    pub generation: u64,
}

impl Entry {
    /// Everything this peer may send from and be sent to, as prefixes.
    pub fn claims(&self) -> impl Iterator<Item = IpNet> + '_ {
        let hosts = self.mesh_ips.iter().chain(&self.node_ips);
        let nets = self.pod_cidrs.iter().chain(&self.routes);
        hosts.copied().map(prefix::host).chain(nets.map(IpNet::trunc))
    }

    /// Whether `other` says the same, whatever its generation.
    pub fn same_content(&self, other: &Self) -> bool {
        let aligned = Self { generation: self.generation, ..other.clone() };
        *self == aligned
    }
}

/// A peer that is gone for good, or suspended.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Tombstone {
    /// The node's name.
    pub name: String,
    /// The node's identity.
    pub uid: Uid,
    /// The key it had.
    pub public_key: PublicKey,
    /// The generation of its last entry: an entry with a higher one is alive again.
    pub generation: u64,
}

impl Tombstone {
    /// Whether it buries `entry`.
    pub fn covers(&self, entry: &Entry) -> bool {
        self.name == entry.name && self.uid == entry.uid && entry.generation <= self.generation
    }
}
