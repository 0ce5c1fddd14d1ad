//! `MeshNode`: one node of the mesh. The operator writes `spec`, the node itself writes `status`.

use crate::condition::Condition;
use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// What the operator has decided about one node. Nodes can't write it.
#[derive(CustomResource, KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[kube(
    group = "warren.dev",
    version = "v1alpha1",
    kind = "MeshNode",
    plural = "meshnodes",
    shortname = "mn",
    category = "warren",
    status = "MeshNodeStatus",
    derive = "PartialEq",
    derive = "Default",
    doc = "One node of the mesh. For a node of the cluster its name is the Node's name. The operator makes and removes it.",
    printcolumn(name = "Mesh-IP", type_ = "string", json_path = ".spec.meshIPs[0]"),
    printcolumn(name = "NAT", type_ = "string", json_path = ".status.nat.ipv4"),
    printcolumn(name = "Paths", type_ = "string", json_path = ".status.paths.summary"),
    printcolumn(name = "Ready", type_ = "string", json_path = ".status.conditions[?(@.type==\"Ready\")].status"),
    printcolumn(name = "Reason", type_ = "string", json_path = ".status.conditions[?(@.type==\"Ready\")].reason"),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp"),
    printcolumn(name = "Key", type_ = "string", json_path = ".spec.admission.keyShort", priority = 1),
    printcolumn(name = "Endpoint", type_ = "string", json_path = ".status.candidates[0].address", priority = 1),
    printcolumn(name = "Backend", type_ = "string", json_path = ".status.backend", priority = 1),
    printcolumn(name = "MTU", type_ = "integer", json_path = ".status.mtu", priority = 1),
    printcolumn(name = "Version", type_ = "string", json_path = ".status.version", priority = 1)
)]
#[serde(rename_all = "camelCase")]
pub struct MeshNodeSpec {
    /// UID of the Node. A node that was deleted and made again under the same name is another node.
    #[serde(rename = "nodeUID")]
    #[schemars(length(max = 64))]
    #[x_kube(validation = Rule::new("self == oldSelf").message("nodeUID can't change: delete the MeshNode and let the operator make it again"))]
    pub node_uid: String,
    /// The node's addresses in the mesh, at most one of each family.
    #[serde(default, rename = "meshIPs")]
    #[schemars(length(max = 2), inner(length(max = 39)))]
    #[x_kube(validation = Rule::new("self.all(a, isIP(a))").message("each entry must be an address like 10.118.0.7"))]
    pub mesh_ips: Vec<String>,
    /// The pod ranges that Kubernetes gave to this node.
    #[serde(default, rename = "podCIDRs")]
    #[schemars(length(max = 16), inner(length(max = 43)))]
    #[x_kube(validation = Rule::new("self.all(c, isCIDR(c))").message("each entry must be a prefix like 10.244.3.0/24"))]
    pub pod_cidrs: Vec<String>,
    /// The node's own addresses that the mesh carries (see `Mesh.spec.nodeCIDRs`).
    #[serde(default, rename = "nodeIPs")]
    #[schemars(length(max = 16), inner(length(max = 39)))]
    #[x_kube(validation = Rule::new("self.all(a, isIP(a))").message("each entry must be an address like 192.168.1.10"))]
    pub node_ips: Vec<String>,
    /// The UDP port that WireGuard shall use on this node.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 65535))]
    pub listen_port: Option<u16>,
    /// An admin may set this to take the node out of the mesh without deleting it.
    #[serde(default)]
    pub suspended: bool,
    /// An admin may set this to choose the node's WireGuard; without it `Mesh.spec.backend` does. `Auto`, `Kernel` or `Userspace`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub backend: Option<crate::mesh::Backend>,
    /// An admin may set this to say whether a relay stands on this node. `Auto`: if it is among the best; `Always`: whatever is known of it;
    /// `Never`: no, unless somebody labelled the Node `warren.dev/relay` by hand. With the chart's `relay.placement: Label` labels
    /// alone count.
    #[serde(default)]
    pub relay: RelayWish,
    /// Which key was admitted.
    #[serde(default)]
    pub admission: NodeAdmission,
}

/// Whether a relay stands on a node.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum RelayWish {
    /// If the node is among the best for it: the operator decides.
    #[default]
    Auto,
    /// Always.
    Always,
    /// Never.
    Never,
}

/// The admission of a node's key.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct NodeAdmission {
    /// Whether the node is part of the mesh.
    #[serde(default)]
    pub state: AdmissionState,
    /// The admitted WireGuard public key. In `Manual` admission an admin accepts a node by writing the key it shows here.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 44), regex(pattern = r"^[A-Za-z0-9+/]{42}[AEIMQUYcgkosw048]=$"))]
    pub public_key: Option<String>,
    /// The first eight characters of the key, for tables.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 8))]
    pub key_short: Option<String>,
    /// Counts the keys this node has had; peers ignore what is older.
    #[serde(default)]
    pub key_generation: u32,
    /// Why, in one CamelCase word.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 64))]
    pub reason: Option<String>,
    /// Why, in one sentence.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 1024))]
    pub message: Option<String>,
}

/// Whether a node takes part.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum AdmissionState {
    /// It waits: for its key, for the proof, for the admission policies, or for an admin.
    #[default]
    Pending,
    /// Its key is in the directory.
    Accepted,
    /// Its key was refused.
    Rejected,
}

/// What the node says about itself. Only the node's own agent can write it.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct MeshNodeStatus {
    /// The generation of `spec` that the agent has programmed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// The node's WireGuard public key. The private key never leaves the node.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 44), regex(pattern = r"^[A-Za-z0-9+/]{42}[AEIMQUYcgkosw048]=$"))]
    pub public_key: Option<String>,
    /// Proof that the node holds the private key: an answer to `Mesh.status.challenge`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 44), regex(pattern = r"^[A-Za-z0-9+/]{43}=$"))]
    pub key_proof: Option<String>,
    /// The node's Ed25519 public key, base64, by which relays recognise it. The private key never leaves the node.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 44), regex(pattern = r"^[A-Za-z0-9+/]{43}=$"))]
    pub identity_key: Option<String>,
    /// The UDP port that WireGuard really uses.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 65535))]
    pub listen_port: Option<u16>,
    /// Counts agent starts and changes of address: peers start a new round of probes when it grows.
    #[serde(default)]
    pub round: u32,
    /// Where the node may be reached, best first.
    #[serde(default)]
    #[schemars(length(max = 16))]
    pub candidates: Vec<Candidate>,
    /// What kind of NAT the node stands behind.
    #[serde(default)]
    pub nat: Nat,
    /// Which WireGuard runs: `Kernel` or `Userspace`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub backend: Option<Backend>,
    /// The TCP port of this node that leads to the relay on it, if that is another than the relay listens on: nodes that can't use UDP
    /// often get out to 443 only.
    #[serde(default, rename = "relayTLSPort", skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 65535))]
    pub relay_tls_port: Option<u16>,
    /// MTU of the mesh device.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 576, max = 65535))]
    pub mtu: Option<u16>,
    /// Version of the agent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 64))]
    pub version: Option<String>,
    /// The relays that this node has a channel to, but for one on the node itself. By this the operator knows which relays are reached.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 8))]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["name".into()]))]
    pub relays: Vec<RelayReach>,
    /// How many peers have which kind of path. Coarse: the table of pairs is in metrics and in the agent's local API.
    #[serde(default)]
    pub paths: PathCounts,
    /// `Ready`, `KeyPublished`, `EndpointDiscovered`, `PathsHealthy`, `MTUConsistent`, `RoutesProgrammed`, `CNIReady` and others.
    #[serde(default)]
    #[schemars(length(max = 32))]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["type".into()]))]
    pub conditions: Vec<Condition>,
}

/// A relay that a node has a channel to.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[serde(rename_all = "camelCase")]
pub struct RelayReach {
    /// Name of the MeshRelay.
    #[schemars(length(min = 1, max = 253))]
    pub name: String,
    /// What the channel is.
    pub transport: RelayTransport,
}

/// What a channel to a relay is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
pub enum RelayTransport {
    /// QUIC: UDP gets to the relay.
    Quic,
    /// TLS over TCP: UDP does not, or not yet.
    Tls,
}

/// One address and port at which a node may be reached.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[serde(rename_all = "camelCase")]
pub struct Candidate {
    /// `address:port`, IPv6 in brackets.
    #[schemars(length(max = 53), regex(pattern = r"^([0-9.]+|\[[0-9a-fA-F:.]+\]):[0-9]{1,5}$"))]
    pub address: String,
    /// How it was found.
    pub kind: CandidateKind,
}

/// Where a candidate comes from (RFC 8445, section 5.1.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
pub enum CandidateKind {
    /// An address of one of the node's interfaces.
    Host,
    /// The address that a STUN server saw.
    ServerReflexive,
    /// A mapping that the router granted.
    PortMapped,
    /// Written by an admin.
    Static,
}

/// NAT behaviour for each family (RFC 4787).
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Nat {
    /// For IPv4.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ipv4: Option<NatClass>,
    /// For IPv6.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ipv6: Option<NatClass>,
    /// Whether a stranger's packet moves the node's IPv4 port towards him, so that the node must send first: the result of the last test of
    /// this NAT. Not there before the first.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub poisonable: Option<bool>,
}

/// How the NAT of this family maps: one of the behaviours of RFC 4787, or `Open` without a NAT.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum NatClass {
    /// No translation.
    Open,
    /// One mapping for every destination.
    EndpointIndependent,
    /// Another mapping for every destination address.
    AddressDependent,
    /// Another port for every destination, counting up.
    Sequential,
    /// Another port for every destination, at random.
    Random,
    /// No UDP answer came back.
    Blocked,
    /// Not enough observers to tell.
    Unknown,
}

/// Which WireGuard runs: `Kernel` or `Userspace`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum Backend {
    /// In the Linux kernel.
    Kernel,
    /// In the agent's process.
    Userspace,
}

/// Numbers of peers by path.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct PathCounts {
    /// Connected directly.
    #[serde(default)]
    pub direct: u32,
    /// Carried by a relay.
    #[serde(default)]
    pub relayed: u32,
    /// Not connected.
    #[serde(default)]
    pub down: u32,
    /// The three in one word, `12d/3r/0x`, for tables.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 32))]
    pub summary: Option<String>,
}
