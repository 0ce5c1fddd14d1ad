//! `MeshRelay`: a host with a reachable address that helps others to find each other.

use crate::condition::Condition;
use kube::{CustomResource, KubeSchema};
use serde::{Deserialize, Serialize};

/// Where a relay runs, and what nodes must know of one that can't say it itself.
#[derive(CustomResource, KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[kube(
    group = "warren.dev",
    version = "v1alpha1",
    kind = "MeshRelay",
    plural = "meshrelays",
    shortname = "mr",
    category = "warren",
    status = "MeshRelayStatus",
    derive = "PartialEq",
    derive = "Default",
    doc = "A relay. The operator makes one for every Node with the label `warren.dev/relay`; an admin may add others outside the cluster by address.",
    printcolumn(name = "Node", type_ = "string", json_path = ".spec.nodeName"),
    printcolumn(name = "STUN", type_ = "string", json_path = ".status.stun[0]"),
    printcolumn(name = "Ready", type_ = "string", json_path = ".status.conditions[?(@.type==\"Ready\")].status"),
    printcolumn(
        name = "Reachable",
        type_ = "string",
        json_path = ".status.conditions[?(@.type==\"Reachable\")].status"
    ),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp")
)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new("!has(self.identityKey) || has(self.nodeName) || (has(self.addresses) && size(self.addresses) > 0)").message("a relay outside the cluster that is known by its identityKey needs addresses too"))]
pub struct MeshRelaySpec {
    /// The Node that it runs on; absent for a relay outside the cluster.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 253))]
    pub node_name: Option<String>,
    /// UID of that Node: only a token bound to it may write this relay's status.
    #[serde(default, rename = "nodeUID", skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 64))]
    pub node_uid: Option<String>,
    /// Public addresses at which the relay answers, as `address:port`, IPv6 in brackets: for a relay behind a 1:1 NAT, which can't
    /// see its own public address. The operator fills it with the ExternalIPs of the Node and the port of the relay; what an admin
    /// writes here stands, and the operator leaves it alone from then on. The relay passes them on in `status.stun`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(
        length(max = 4),
        inner(length(max = 53), regex(pattern = r"^([0-9.]+|\[[0-9a-fA-F:.]+\]):[0-9]{1,5}$"))
    )]
    #[x_kube(validation = Rule::new("self.all(a, isIP(a.substring(0, a.lastIndexOf(':')).replace('[', '').replace(']', '')))").message("each entry must have an address that is one, like 203.0.113.7:3478 or [2001:db8::7]:3478"))]
    pub addresses: Vec<String>,
    /// What it fails together with. Nodes keep a second way ready at a relay of another failure domain. The operator fills it with the zone of the
    /// Node (label `topology.kubernetes.io/zone`); what an admin writes here stands. A relay without one fails alone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 63))]
    pub failure_domain: Option<String>,
    /// The relay's Ed25519 public key, base64: for a relay outside the cluster whose account may not write its status. It is what nodes
    /// recognise the relay by, whatever the status says; such a relay needs `addresses` too.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 44), regex(pattern = r"^[A-Za-z0-9+/]{43}=$"))]
    pub identity_key: Option<String>,
    /// UDP port of its control channel over QUIC, for such a relay; 51899 if it is absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 65535))]
    pub quic_port: Option<u16>,
    /// TCP port of its control channel over TLS, for such a relay; 8443 if it is absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 65535))]
    pub tls_port: Option<u16>,
}

/// What the relay says about itself.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct MeshRelayStatus {
    /// The generation of `spec` that this describes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// Where it answers STUN, as `address:port`, IPv6 in brackets.
    #[serde(default)]
    #[schemars(
        length(max = 8),
        inner(length(max = 53), regex(pattern = r"^([0-9.]+|\[[0-9a-fA-F:.]+\]):[0-9]{1,5}$"))
    )]
    pub stun: Vec<String>,
    /// Its Ed25519 public key, base64. Nodes talk to no relay that does not prove it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 44), regex(pattern = r"^[A-Za-z0-9+/]{43}=$"))]
    pub identity_key: Option<String>,
    /// The addresses of its relay ports and control channel, best first.
    #[serde(default)]
    #[schemars(length(max = 8), inner(length(max = 39)))]
    #[x_kube(validation = Rule::new("self.all(a, isIP(a))").message("each entry must be an address like 192.0.2.7"))]
    pub addresses: Vec<String>,
    /// UDP port of its control channel over QUIC.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 65535))]
    pub quic_port: Option<u16>,
    /// TCP port that it listens on for its control channel over TLS.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 65535))]
    pub tls_port: Option<u16>,
    /// TCP ports at which its control channel over TLS is reached, best first: that one, and before it the one that the agent of the
    /// relay's node leads there, usually 443.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 4), inner(range(min = 1, max = 65535)))]
    pub tls_ports: Vec<u16>,
    /// Version of the relay.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 64))]
    pub version: Option<String>,
    /// `Ready`, `Relaying` and `PublicAddress` by the relay; `Reachable` by the operator, from what nodes say that they reach.
    #[serde(default)]
    #[schemars(length(max = 32))]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["type".into()]))]
    pub conditions: Vec<Condition>,
}
