//! The list of invariants: what no plan may break, whatever it was computed from.
//!
//! Written apart from planning on purpose: it looks at the outcome only, and compares everything with everything where
//! planning is clever.

mod cluster;
mod node;

pub use cluster::check;
pub use node::{check_node, check_symmetry};

/// A broken invariant.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Violation {
    /// Which one.
    pub rule: Rule,
    /// Where.
    pub detail: String,
}

impl Violation {
    /// Whether the mesh is merely less good for it.
    pub fn is_warning(&self) -> bool {
        self.rule == Rule::UniquePort
    }
}

impl std::fmt::Display for Violation {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:?}: {}", self.rule, self.detail)
    }
}

/// The invariants.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Rule {
    /// No two nodes have the same mesh address.
    UniqueMeshIp,
    /// Mesh addresses lie in the mesh ranges, one of each at most, and are neither network nor broadcast addresses.
    MeshIpInRange,
    /// No two nodes have the same key, and every key is usable.
    UniqueKey,
    /// No two nodes have the same listen port while the range lasts (a warning).
    UniquePort,
    /// No prefix of one node overlaps one of another.
    DisjointPrefixes,
    /// Pod ranges, node addresses and routes keep clear of the mesh and Service ranges and are unicast, and pod ranges lie in
    /// those of the mesh.
    CarriablePrefixes,
    /// Every node appears in one slice only, and once.
    EntryOnce,
    /// Slices are named by number, sorted, not empty and within their cap.
    SliceShape,
    /// Only accepted nodes that are not suspended appear in slices, with the data of their spec.
    EntryOfAcceptedNode,
    /// Every such node appears.
    EntryMissing,
    /// Candidates passed the filter and are within their cap.
    CleanCandidates,
    /// A changed entry has a higher generation than any before it under its name.
    GenerationGrows,
    /// Tombstones are within their cap, one per node, and bury nobody who is in a slice.
    TombstonesBounded,
    /// What leaves the slices has a tombstone.
    RemovalHasTombstone,
    /// A key that was never admitted is not admitted while node writes are unprotected.
    NoNewKeyUnprotected,
    /// Two nodes either both have each other as peers or neither does.
    SymmetricPeers,
    /// Allowed IPs are what the slices give to that very peer.
    AllowedIpsFromSlices,
    /// No route covers a part of the machine's own network.
    RouteOffUnderlay,
    /// No carried node address is `unreachable`.
    RoutesFitPeers,
}
