//! What the operator knows: the input of planning.

use std::net::IpAddr;

use ipnet::IpNet;
use wire::key::PublicKey;

use crate::cluster::condition::Condition;
use crate::mesh::MeshConfig;
use crate::peer::{Candidate, Entry, Tombstone, Uid};
use crate::spec::NodeSpec;

/// Everything that planning looks at. The order of the lists does not matter.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClusterView {
    /// The mesh-wide settings.
    pub mesh: MeshConfig,
    /// The Kubernetes Nodes.
    pub nodes: Vec<NodeFacts>,
    /// The `MeshNode`s as they are now.
    pub mesh_nodes: Vec<MeshNodeFacts>,
    /// The peer slices as they are now, without the slice `removed`.
    pub slices: Vec<SliceFacts>,
    /// The tombstones of the slice `removed`, oldest first.
    pub tombstones: Vec<Tombstone>,
    /// Whether the admission policies that tie a status write to its node have been seen in force.
    pub protected: bool,
}

/// One Kubernetes Node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeFacts {
    /// Its name.
    pub name: String,
    /// Its UID.
    pub uid: Uid,
    /// `metadata.creationTimestamp` in seconds: only ever compared with others the same API server wrote.
    pub created: i64,
    /// `spec.podCIDRs`.
    pub pod_cidrs: Vec<IpNet>,
    /// The addresses of type InternalIP.
    pub internal_ips: Vec<IpAddr>,
}

/// One `MeshNode` as it is stored.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MeshNodeFacts {
    /// Its name: that of the Node.
    pub name: String,
    /// The UID of the `MeshNode` object itself (a precondition of deleting it; not the node's identity).
    pub uid: Uid,
    /// `metadata.creationTimestamp` in seconds: the older of two claimants is the incumbent.
    pub created: i64,
    /// The spec as written. What does not parse is left out by the caller, and so planned anew.
    pub spec: NodeSpec,
    /// The status that the node wrote.
    pub status: StatusFacts,
    /// The operator's own conditions as stored, so that a message outlives the defect that it reports.
    pub conditions: Vec<Condition>,
}

impl MeshNodeFacts {
    /// The identity that slices carry.
    pub fn identity(&self) -> &Uid {
        if self.spec.node_uid.0.is_empty() { &self.uid } else { &self.spec.node_uid }
    }
}

/// What a node says about itself.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct StatusFacts {
    /// Its key.
    pub public_key: Option<PublicKey>,
    /// What the caller found when it checked `keyProof` against that key and its own challenge.
    pub proof: ProofVerdict,
    /// The port it really listens on.
    pub listen_port: Option<u16>,
    /// Where it says it can be reached.
    pub candidates: Vec<Candidate>,
    /// Its punch round.
    pub round: u32,
}

/// The verdict on `status.keyProof`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ProofVerdict {
    /// There is none, or it answers an older challenge.
    #[default]
    Missing,
    /// It fits.
    Valid,
    /// It does not fit the key, the node or the challenge.
    Invalid,
}

/// One peer slice as it is stored.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SliceFacts {
    /// Its name.
    pub name: String,
    /// What it holds.
    pub entries: Vec<Entry>,
}
