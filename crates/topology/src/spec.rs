//! `MeshNode.spec` as planning sees it.

use std::net::IpAddr;

use ipnet::IpNet;
use wire::key::PublicKey;

use crate::peer::Uid;

/// The whole desired spec of one `MeshNode`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NodeSpec {
    /// UID of the Kubernetes Node; never changes during the life of the object.
    pub node_uid: Uid,
    /// Cluster node or external machine.
    pub kind: NodeKind,
    /// Addresses in the mesh, IPv4 first.
    pub mesh_ips: Vec<IpAddr>,
    /// Pod ranges.
    pub pod_cidrs: Vec<IpNet>,
    /// Own addresses that the mesh carries.
    pub node_ips: Vec<IpAddr>,
    /// Ranges behind the node (admin).
    pub routes: Vec<IpNet>,
    /// The port it shall listen on.
    pub listen_port: u16,
    /// Where it stands (admin).
    pub location: Option<String>,
    /// What policies call it (admin).
    pub classes: Vec<String>,
    /// Whether it may serve as a relay (admin).
    pub relay: RelayMode,
    /// Taken out of the mesh (admin).
    pub suspended: bool,
    /// The verdict on its key.
    pub admission: Admission,
}

/// Where a node comes from.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum NodeKind {
    /// A node of this cluster: created and retired with its Kubernetes Node.
    #[default]
    Cluster,
    /// Any other machine: its object is somebody else's to create and delete.
    External,
}

/// Whether a node may serve as a relay.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum RelayMode {
    /// If it turns out to be reachable.
    #[default]
    Auto,
    /// Always.
    Always,
    /// Never.
    Never,
}

/// `spec.admission`.
///
/// `public_key` is the key that peers are told. `state` is the verdict on the key that the node shows *now*: while a
/// replacement is pending or rejected, peers keep the key that was admitted before.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Admission {
    /// The verdict on the key in the node's status.
    pub state: AdmissionState,
    /// The admitted key. In `Manual` mode an admin approves a key by writing it here and leaving `state` alone.
    pub public_key: Option<PublicKey>,
    /// Counts the admitted keys of this object.
    pub key_generation: u64,
    /// The admitted successor, during a rotation.
    pub next_public_key: Option<PublicKey>,
    /// Why `state` is what it is.
    pub reason: AdmissionReason,
    /// The same for people: what was expected, what was found, what to do.
    pub message: String,
}

/// The verdict on a key.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum AdmissionState {
    /// Waits for something.
    #[default]
    Pending,
    /// Peers are told this key.
    Accepted,
    /// Will not do; the node or an admin has to change something.
    Rejected,
}

/// Why a key has its verdict: the reason of the `Admitted` condition.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum AdmissionReason {
    /// The node has not published a key yet.
    #[default]
    KeyMissing,
    /// All checks passed.
    KeyAccepted,
    /// Not a usable curve point.
    InvalidKey,
    /// Another node holds it.
    DuplicateKey,
    /// No proof of possession, or one for an older challenge.
    ProofMissing,
    /// The proof does not fit the key.
    ProofInvalid,
    /// `Manual` mode, and no admin has approved it.
    ApprovalNeeded,
    /// The admission policies that tie a status to its node are missing or altered.
    NodeWritesUnprotected,
}

impl AdmissionReason {
    /// Every reason.
    pub const ALL: [Self; 8] = [
        Self::KeyMissing,
        Self::KeyAccepted,
        Self::InvalidKey,
        Self::DuplicateKey,
        Self::ProofMissing,
        Self::ProofInvalid,
        Self::ApprovalNeeded,
        Self::NodeWritesUnprotected,
    ];

    /// The reason of that name.
    pub fn parse(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|reason| reason.as_str() == name)
    }

    /// The name in objects and metrics.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::KeyMissing => "KeyMissing",
            Self::KeyAccepted => "KeyAccepted",
            Self::InvalidKey => "InvalidKey",
            Self::DuplicateKey => "DuplicateKey",
            Self::ProofMissing => "ProofMissing",
            Self::ProofInvalid => "ProofInvalid",
            Self::ApprovalNeeded => "ApprovalNeeded",
            Self::NodeWritesUnprotected => "NodeWritesUnprotected",
        }
    }
}
