//! `Mesh`: the settings of the whole mesh. There is one, named `default`.

use crate::condition::Condition;
use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Settings of the mesh. There is exactly one, named `default`; every field has a default, so an empty spec works.
#[derive(CustomResource, KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[kube(
    group = "warren.dev",
    version = "v1alpha1",
    kind = "Mesh",
    plural = "meshes",
    category = "warren",
    status = "MeshStatus",
    derive = "PartialEq",
    derive = "Default",
    doc = "The settings of the whole mesh. There is exactly one, named `default`; the operator makes it when it is missing.",
    validation = Rule::new("self.metadata.name == 'default'")
        .message("there is one Mesh and its name is `default`: edit that one"),
    printcolumn(name = "Mesh-IPv4", type_ = "string", json_path = ".spec.addresses.ipv4"),
    printcolumn(name = "Admission", type_ = "string", json_path = ".spec.admission"),
    printcolumn(name = "Nodes", type_ = "integer", json_path = ".status.nodes.total"),
    printcolumn(name = "Accepted", type_ = "integer", json_path = ".status.nodes.accepted"),
    printcolumn(name = "Ready", type_ = "string", json_path = ".status.conditions[?(@.type==\"Ready\")].status"),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp"),
    printcolumn(name = "Mesh-IPv6", type_ = "string", json_path = ".spec.addresses.ipv6", priority = 1),
)]
#[serde(rename_all = "camelCase")]
pub struct MeshSpec {
    /// Where mesh addresses come from: every node gets one address of each family, which it keeps for life.
    #[serde(default)]
    pub addresses: MeshAddresses,
    /// UDP ports for WireGuard. Every node gets one of its own, so that nodes behind one public address differ. Keep clear of
    /// NodePorts (30000-32767) and of the ephemeral range (32768-60999).
    #[serde(default)]
    pub listen_ports: ListenPorts,
    /// Node addresses (InternalIP) inside these prefixes are carried by the mesh, so that `kubectl logs`, `exec`, metrics and
    /// webhooks reach nodes behind NAT. Default: the private ranges. Public addresses are best left out.
    #[serde(default = "private_ranges", rename = "nodeCIDRs")]
    #[schemars(length(max = 16), inner(length(max = 43)))]
    #[x_kube(validation = Rule::new("self.all(c, isCIDR(c))")
        .message("each entry must be a prefix like 10.0.0.0/8 or fc00::/7"))]
    pub node_cidrs: Vec<String>,
    /// What happens to node addresses: `Carry` them, `Approve` the first ones but leave later changes to an admin, or carry `None`.
    #[serde(default)]
    pub node_addresses: NodeAddresses,
    /// The cluster's Service ranges. Agents never take an address in them for an endpoint and never route them into the mesh.
    #[serde(default, rename = "serviceCIDRs")]
    #[schemars(length(max = 4), inner(length(max = 43)))]
    #[x_kube(validation = Rule::new("self.all(c, isCIDR(c))")
        .message("each entry must be a prefix like 10.96.0.0/12"))]
    pub service_cidrs: Vec<String>,
    /// The ranges that the cluster draws its nodes' pod CIDRs from (the controller manager's `--cluster-cidr`), of each family that
    /// it uses. With them an agent lets no packet for a pod out in clear from its first second, before it knows any peer;
    /// without them, it does so for the pod CIDRs of the peers it knows. A node whose pod CIDR lies outside the ranges of
    /// its family is refused that pod CIDR (`PodCIDRConflict`), so that no kubelet can claim another network.
    #[serde(default, rename = "podCIDRs")]
    #[schemars(length(max = 4), inner(length(max = 43)))]
    #[x_kube(validation = Rule::new("self.all(c, isCIDR(c))")
        .message("each entry must be a prefix like 10.244.0.0/16"))]
    pub pod_cidrs: Vec<String>,
    /// `Auto` admits every node of the cluster whose key proves itself; `Manual` waits for an admin to accept each key.
    #[serde(default)]
    pub admission: Admission,
    /// MTU of the mesh device. Default: the smallest underlay MTU minus 80, which is WireGuard's overhead over IPv6, in whole blocks of 16.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1280, max = 9000))]
    pub mtu: Option<u16>,
    /// The mark that keeps WireGuard's own packets out of the mesh. One bit; change it only when another program uses it.
    #[serde(default)]
    pub fwmark: Fwmark,
    /// Which WireGuard moves the packets: the kernel's (faster, and outlives the agent) or the agent's own. `Auto` takes the
    /// kernel's where there is one. A change moves each node to the other with key, port and addresses kept; its sessions end
    /// and are made anew. `MeshNode.spec.backend` overrides it for one node.
    #[serde(default)]
    pub backend: Backend,
    /// Where nodes ask which public address they have.
    #[serde(default)]
    pub stun: Stun,
    /// Which pairs of nodes keep a path.
    #[serde(default)]
    pub paths: Paths,
}

/// Which pairs of nodes keep a path.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct Paths {
    /// `Eager` keeps every pair of nodes connected. `OnDemand` connects a pair with the first packet between its nodes and lets it
    /// go when it is idle, so a pair that nobody uses costs no packet. `Auto` is `Eager` up to 64 nodes, and `OnDemand` beyond.
    /// A pair that no relay could wake stays connected in any case.
    #[serde(default)]
    pub mode: PathMode,
    /// Paths on demand: a pair without a packet for so many seconds, either way, is let go. Keepalives and the agents' own checks
    /// are none. Both nodes have to find that out, so it takes up to a minute more.
    #[serde(default = "idle_seconds")]
    #[schemars(range(min = 10, max = 86400))]
    pub idle_seconds: u32,
}

fn idle_seconds() -> u32 {
    300
}

impl Default for Paths {
    fn default() -> Self {
        Self { mode: PathMode::default(), idle_seconds: idle_seconds() }
    }
}

/// When a pair of nodes has a path.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum PathMode {
    /// All the time in a mesh of up to 64 nodes, and while it is used in a larger one.
    #[default]
    Auto,
    /// All the time.
    Eager,
    /// While it is used.
    OnDemand,
}

/// Which WireGuard moves the packets.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum Backend {
    /// The kernel's if it has one, else the agent's own.
    #[default]
    Auto,
    /// The kernel's. A node without it has no device and says so (`NoKernelWireGuard`).
    Kernel,
    /// The agent's own.
    Userspace,
}

fn private_ranges() -> Vec<String> {
    ["10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "fc00::/7"].map(String::from).to_vec()
}

/// The pools that mesh addresses are taken from. They are chosen when the Mesh is made and can only grow afterwards, because
/// every node keeps its address for life.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[x_kube(validation = Rule::new("has(self.ipv6) || !has(oldSelf.ipv6)")
    .message("the IPv6 pool can't be taken away: nodes keep their addresses for life"))]
#[serde(rename_all = "camelCase")]
pub struct MeshAddresses {
    /// IPv4 pool, from a /8 to a /30, free in every network that a node stands in. A new one must contain the old one.
    #[serde(default = "default_ipv4")]
    #[schemars(length(max = 18))]
    #[x_kube(
        validation = Rule::new("isCIDR(self) && cidr(self).ip().family() == 4 && cidr(self).prefixLength() >= 8 && \
            cidr(self).prefixLength() <= 30 && cidr(self).masked().ip().isGlobalUnicast()")
            .message("must be a unicast IPv4 prefix of 8 to 30 bits, like 10.118.0.0/16"),
        validation = Rule::new("!isCIDR(self) || !isCIDR(oldSelf) || cidr(self).containsCIDR(oldSelf)")
            .message("the IPv4 pool can only grow: the new one must contain the old one, since nodes keep their addresses for life")
    )]
    pub ipv4: String,
    /// IPv6 pool, a unique local prefix (fc00::/7, RFC 4193) of at most 112 bits. The operator draws a random /64 when it makes
    /// the Mesh. A new one must contain the old one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 43))]
    #[x_kube(
        validation = Rule::new("isCIDR(self) && cidr('fc00::/7').containsCIDR(self) && cidr(self).prefixLength() <= 112")
            .message("must be a unique local IPv6 prefix (in fc00::/7) of at most 112 bits, like fd12:3456:789a::/64"),
        validation = Rule::new("!isCIDR(self) || !isCIDR(oldSelf) || cidr(self).containsCIDR(oldSelf)")
            .message("the IPv6 pool can only grow: the new one must contain the old one, since nodes keep their addresses for life")
    )]
    pub ipv6: Option<String>,
}

fn default_ipv4() -> String {
    "10.118.0.0/16".into()
}

impl Default for MeshAddresses {
    fn default() -> Self {
        Self { ipv4: default_ipv4(), ipv6: None }
    }
}

/// A range of UDP ports, both ends included.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[x_kube(validation = Rule::new("self.first <= self.last").message("`first` must not be above `last`"))]
#[serde(rename_all = "camelCase")]
pub struct ListenPorts {
    /// The lowest port.
    #[serde(default = "first_port")]
    #[schemars(range(min = 1024, max = 65535))]
    pub first: u16,
    /// The highest port.
    #[serde(default = "last_port")]
    #[schemars(range(min = 1024, max = 65535))]
    pub last: u16,
}

fn first_port() -> u16 {
    21820
}

fn last_port() -> u16 {
    22843
}

impl Default for ListenPorts {
    fn default() -> Self {
        Self { first: first_port(), last: last_port() }
    }
}

/// What the mesh does with the nodes' own addresses.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum NodeAddresses {
    /// Carry every one that lies in `nodeCIDRs` and is unique.
    #[default]
    Carry,
    /// Carry those of the first admission; a later change waits for an admin.
    Approve,
    /// Carry none.
    None,
}

/// How new keys are admitted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum Admission {
    /// The node-bound token is proof enough.
    #[default]
    Auto,
    /// An admin accepts each key in `MeshNode.spec.admission`.
    Manual,
}

/// A packet mark as value and mask.
// CEL knows no bitwise operators: `value & mask == value` is said bit by bit.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[x_kube(validation = Rule::new("self.value > 0 && [1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384, 32768, \
    65536, 131072, 262144, 524288, 1048576, 2097152, 4194304, 8388608, 16777216, 33554432, 67108864, 134217728, 268435456, \
    536870912, 1073741824].all(bit, self.value / bit % 2 <= self.mask / bit % 2)")
    .message("`value` must be a non-zero part of `mask`: each of its bits must be one of the mask's"))]
#[serde(rename_all = "camelCase")]
pub struct Fwmark {
    /// The bits that are set; all of them lie within the mask.
    #[serde(default = "default_mark")]
    #[schemars(range(min = 1, max = 2147483647))]
    pub value: u32,
    /// The bits that are looked at.
    #[serde(default = "default_mark")]
    #[schemars(range(min = 1, max = 2147483647))]
    pub mask: u32,
}

// One low bit: kube-proxy owns 0x4000 and 0x8000, Cilium 0x0f00, Calico and Tailscale the high half, KubeSpan 0x60.
fn default_mark() -> u32 {
    0x10
}

impl Default for Fwmark {
    fn default() -> Self {
        Self { value: default_mark(), mask: default_mark() }
    }
}

/// Servers beside the mesh's own relays that tell a node its public address (RFC 8489).
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct Stun {
    /// External servers as `address:port`, IPv6 in brackets. Names are not resolved: an agent must work before DNS does.
    #[serde(default)]
    #[schemars(
        length(max = 8),
        inner(length(max = 53), regex(pattern = r"^([0-9.]+|\[[0-9a-fA-F:.]+\]):[0-9]{1,5}$"))
    )]
    pub servers: Vec<String>,
}

/// What the operator says about the mesh.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct MeshStatus {
    /// The generation of `spec` that this status describes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// The operator's short-lived X25519 public key; nodes prove possession of their own key against it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 44))]
    pub proof_key: Option<String>,
    /// The challenge that a new `MeshNode.status.keyProof` must answer: the proof is made over the bytes of this text as they
    /// stand. A node whose key is admitted already need not answer a new one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 64))]
    pub challenge: Option<String>,
    /// How many nodes there are.
    #[serde(default)]
    pub nodes: NodeCounts,
    /// `Ready`, `NodeWritesUnprotected` and others.
    #[serde(default)]
    #[schemars(length(max = 32))]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["type".into()]))]
    pub conditions: Vec<Condition>,
}

/// Numbers of nodes by admission.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct NodeCounts {
    /// All `MeshNode`s.
    #[serde(default)]
    pub total: u32,
    /// Those whose key is admitted.
    #[serde(default)]
    pub accepted: u32,
}
