//! The kinds that are watched, and what is kept of each.

use super::{Change, Update, Urgency};
use crate::placement::Mark;
use crds::{
    Condition, ConditionStatus, Mesh, MeshNode, MeshNodeSpec, MeshNodeStatus, MeshPeerSlice, MeshPeerSliceSpec,
    MeshRelay, MeshRelayStatus, MeshSpec, MeshStatus,
    names::{OPERATOR_MANAGER, RELAY_LABEL, RELAY_PLACEMENT, RELAY_PORTS_EXHAUSTED},
};
use ipnet::IpNet;
use k8s_openapi::api::{
    admissionregistration::v1::{
        ValidatingAdmissionPolicy, ValidatingAdmissionPolicyBinding, ValidatingAdmissionPolicyBindingSpec,
        ValidatingAdmissionPolicySpec,
    },
    core::v1::{Node, NodeCondition},
};
use kube::{Resource, api::DynamicObject};
use serde::de::DeserializeOwned;
use serde_json::Value;
use std::{fmt::Debug, net::IpAddr};

/// A kind, as a label of metrics and logs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// `Node`.
    Node,
    /// `Mesh`.
    Mesh,
    /// `MeshNode`.
    MeshNode,
    /// `MeshPeerSlice`.
    MeshPeerSlice,
    /// `MeshRelay`.
    MeshRelay,
    /// `ValidatingAdmissionPolicy`.
    Policy,
    /// `ValidatingAdmissionPolicyBinding`.
    Binding,
}

impl Kind {
    /// Its name in the API.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Node => "Node",
            Self::Mesh => "Mesh",
            Self::MeshNode => "MeshNode",
            Self::MeshPeerSlice => "MeshPeerSlice",
            Self::MeshRelay => "MeshRelay",
            Self::Policy => "ValidatingAdmissionPolicy",
            Self::Binding => "ValidatingAdmissionPolicyBinding",
        }
    }
}

/// A kind that is watched.
pub trait Watched: Resource<DynamicType = ()> + Clone + Debug + DeserializeOwned + Send + 'static {
    /// Which.
    const KIND: Kind;
    /// What is kept of it.
    type Value: PartialEq + Clone + Urgency + Send + 'static;
    /// Reduces an object to that.
    fn reduce(self) -> Self::Value;
    /// Decodes an object and reduces it.
    fn decode(object: DynamicObject) -> Result<Self::Value, String> {
        object.try_parse::<Self>().map(Self::reduce).map_err(|error| error.to_string())
    }
    /// Wraps an update of this kind.
    fn change(update: Update<Self::Value>) -> Change;
}

/// The label of a Node's failure domain.
const ZONE: &str = "topology.kubernetes.io/zone";
/// The labels of Nodes that belong to the control plane; the second is that of old installers.
const CONTROL_PLANE: [&str; 2] = ["node-role.kubernetes.io/control-plane", "node-role.kubernetes.io/master"];

/// What is kept of a Node.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct NodeValue {
    /// `spec.podCIDRs`.
    pub pod_cidrs: Vec<IpNet>,
    /// The addresses of type InternalIP.
    pub internal_ips: Vec<IpAddr>,
    /// Whether a relay runs there.
    pub relay: bool,
    /// Whether the label says that none shall.
    pub refuses_relay: bool,
    /// What the operator did to that label last.
    pub mark: Option<Mark>,
    /// The addresses of type ExternalIP.
    pub external_ips: Vec<IpAddr>,
    /// What it shares its failures with.
    pub zone: Option<String>,
    /// Whether it belongs to the control plane.
    pub control_plane: bool,
    /// Whether Kubernetes says that it is not ready, or has not heard of it for long.
    pub dead: bool,
    /// Whether Kubernetes has never heard of it: a machine without kubelet.
    pub without_kubelet: bool,
}

impl Urgency for NodeValue {
    const DEPARTURE: bool = true;
}

impl Watched for Node {
    const KIND: Kind = Kind::Node;
    type Value = NodeValue;

    fn reduce(self) -> NodeValue {
        let labels = self.metadata.labels.unwrap_or_default();
        let mark = self.metadata.annotations.as_ref().and_then(|annotations| annotations.get(RELAY_PLACEMENT));
        let relay = labels.get(RELAY_LABEL).map(|value| value != "false");
        let spec = self.spec.unwrap_or_default();
        // podCIDR is the first of podCIDRs, and all there is on old objects.
        let pod_cidrs = spec.pod_cidrs.unwrap_or_else(|| spec.pod_cidr.into_iter().collect());
        let status = self.status.unwrap_or_default();
        let conditions = status.conditions.unwrap_or_default();
        let not_ready = conditions.iter().find(|condition| condition.type_ == "Ready" && condition.status != "True");
        let is_without_kubelet =
            |condition: &NodeCondition| condition.reason.as_deref() == Some("NodeStatusNeverUpdated");
        let addresses = status.addresses.unwrap_or_default();
        let of_type = |type_: &str| {
            let listed = addresses.iter().filter(|address| address.type_ == type_);
            listed.filter_map(|address| address.address.parse().ok()).collect()
        };
        NodeValue {
            pod_cidrs: pod_cidrs.iter().filter_map(|text| text.parse().ok()).collect(),
            internal_ips: of_type("InternalIP"),
            relay: relay == Some(true),
            refuses_relay: relay == Some(false),
            mark: mark.and_then(|text| text.parse().ok()),
            external_ips: of_type("ExternalIP"),
            zone: labels.get(ZONE).filter(|zone| !zone.is_empty()).cloned(),
            control_plane: CONTROL_PLANE.iter().any(|role| labels.contains_key(*role)),
            dead: not_ready.is_some_and(|condition| !is_without_kubelet(condition)),
            without_kubelet: not_ready.is_some_and(is_without_kubelet),
        }
    }

    fn change(update: Update<NodeValue>) -> Change {
        Change::Node(update)
    }
}

/// What is kept of the Mesh.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct MeshValue {
    /// What the admin wants.
    pub spec: MeshSpec,
    /// What the operator said last.
    pub status: MeshStatus,
}

impl Urgency for MeshValue {}

impl Watched for Mesh {
    const KIND: Kind = Kind::Mesh;
    type Value = MeshValue;

    fn reduce(self) -> MeshValue {
        MeshValue { spec: self.spec, status: self.status.unwrap_or_default() }
    }

    fn change(update: Update<MeshValue>) -> Change {
        Change::Mesh(update)
    }
}

/// What is kept of a `MeshNode`.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct MeshNodeValue {
    /// What the operator decided.
    pub spec: MeshNodeSpec,
    /// The parts of what the node says that decide something: the rest is for people.
    pub status: MeshNodeStatus,
    /// Whether it reaches peers through relays; `None` where it reaches nobody. How many is for people: it would be news all the time.
    pub relayed: Option<bool>,
    /// Whether it has peers that no relay has a port for.
    pub portless: bool,
}

impl Urgency for MeshNodeValue {
    const DEPARTURE: bool = true;

    fn must_go(&self) -> bool {
        self.spec.suspended
    }
}

impl Watched for MeshNode {
    const KIND: Kind = Kind::MeshNode;
    type Value = MeshNodeValue;

    fn reduce(self) -> MeshNodeValue {
        let status = self.status.unwrap_or_default();
        let own = |type_: &str| topology::cluster::ConditionType::parse(type_).is_some();
        let relayed = match (status.paths.direct, status.paths.relayed) {
            (0, 0) => None,
            (_, relayed) => Some(relayed > 0),
        };
        let is_portless = |condition: &Condition| {
            condition.type_ == RELAY_PORTS_EXHAUSTED && condition.status == ConditionStatus::True
        };
        let portless = status.conditions.iter().any(is_portless);
        let status = MeshNodeStatus {
            public_key: status.public_key,
            key_proof: status.key_proof,
            listen_port: status.listen_port,
            round: status.round,
            candidates: status.candidates,
            nat: status.nat,
            relays: status.relays,
            conditions: status.conditions.into_iter().filter(|condition| own(&condition.type_)).collect(),
            ..MeshNodeStatus::default()
        };
        MeshNodeValue { spec: self.spec, status, relayed, portless }
    }

    // The spec is the operator's word and an admin's, the status a node's: nothing that a node writes may hide the spec, a
    // suspension above all.
    fn decode(mut object: DynamicObject) -> Result<MeshNodeValue, String> {
        let spec = serde_json::from_value(object.data["spec"].take()).map_err(|error| error.to_string())?;
        let mut node = MeshNode::new("", spec);
        node.status = Some(readable_status(object.data["status"].take()));
        Ok(node.reduce())
    }

    fn change(update: Update<MeshNodeValue>) -> Change {
        Change::MeshNode(update)
    }
}

/// What can be read of a status, field by field; the rest is as if the node had not said it.
fn readable_status(mut status: Value) -> MeshNodeStatus {
    MeshNodeStatus {
        public_key: field(&mut status, "publicKey"),
        key_proof: field(&mut status, "keyProof"),
        listen_port: field(&mut status, "listenPort"),
        round: field(&mut status, "round"),
        candidates: items(&mut status, "candidates"),
        nat: field(&mut status, "nat"),
        relays: items(&mut status, "relays"),
        paths: field(&mut status, "paths"),
        conditions: items(&mut status, "conditions"),
        ..MeshNodeStatus::default()
    }
}

fn field<T: DeserializeOwned + Default>(status: &mut Value, name: &str) -> T {
    let value = status.get_mut(name).map(Value::take).unwrap_or_default();
    serde_json::from_value(value).unwrap_or_default()
}

fn items<T: DeserializeOwned>(status: &mut Value, name: &str) -> Vec<T> {
    let list: Vec<Value> = field(status, name);
    list.into_iter().filter_map(|item| serde_json::from_value(item).ok()).collect()
}

/// The condition of a relay that the operator writes; the others are the relay's.
pub(crate) const REACHABLE: &str = "Reachable";

/// What is kept of a `MeshRelay`.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct RelayValue {
    /// The Node that it runs on.
    pub node_name: Option<String>,
    /// UID of that Node.
    pub node_uid: Option<String>,
    /// Public addresses that somebody wrote.
    pub addresses: Vec<String>,
    /// Whether somebody else than the operator wrote them.
    pub is_addressed_by_others: bool,
    /// What it fails together with.
    pub domain: Option<String>,
    /// Whether somebody else than the operator wrote that.
    pub is_placed_by_others: bool,
    /// Where the relay says that it answers.
    pub stun: Vec<String>,
    /// What the operator says of who reaches it.
    pub reachable: Option<Condition>,
}

impl Urgency for RelayValue {}

impl Watched for MeshRelay {
    const KIND: Kind = Kind::MeshRelay;
    type Value = RelayValue;

    fn reduce(self) -> RelayValue {
        let managers = self.metadata.managed_fields.unwrap_or_default();
        let status = self.status.unwrap_or_default();
        let others = managers.iter().filter(|entry| entry.manager.as_deref() != Some(OPERATOR_MANAGER));
        let others: Vec<_> = others.filter_map(|entry| entry.fields_v1.as_ref()).collect();
        let by_others = |field: &str| others.iter().any(|fields| fields.0["f:spec"].get(field).is_some());
        RelayValue {
            is_addressed_by_others: by_others("f:addresses"),
            is_placed_by_others: by_others("f:failureDomain"),
            domain: self.spec.failure_domain,
            node_name: self.spec.node_name,
            node_uid: self.spec.node_uid,
            addresses: self.spec.addresses,
            reachable: status.conditions.into_iter().find(|condition| condition.type_ == REACHABLE),
            stun: status.stun,
        }
    }

    // As with a MeshNode: the status is the relay's and may not hide the spec.
    fn decode(mut object: DynamicObject) -> Result<RelayValue, String> {
        let spec = serde_json::from_value(object.data["spec"].take()).map_err(|error| error.to_string())?;
        let mut relay = MeshRelay::new("", spec);
        relay.metadata.managed_fields = object.metadata.managed_fields;
        let status = &mut object.data["status"];
        let (stun, conditions) = (items(status, "stun"), items(status, "conditions"));
        relay.status = Some(MeshRelayStatus { stun, conditions, ..MeshRelayStatus::default() });
        Ok(relay.reduce())
    }

    fn change(update: Update<RelayValue>) -> Change {
        Change::Relay(update)
    }
}

macro_rules! spec_only {
    ($object:ty, $kind:ident, $spec:ty, $change:ident, $reduce:expr) => {
        impl Urgency for $spec {}

        impl Watched for $object {
            const KIND: Kind = Kind::$kind;
            type Value = $spec;

            fn reduce(self) -> $spec {
                let reduce: fn(Self) -> $spec = $reduce;
                reduce(self)
            }

            fn change(update: Update<$spec>) -> Change {
                Change::$change(update)
            }
        }
    };
}

spec_only!(MeshPeerSlice, MeshPeerSlice, MeshPeerSliceSpec, Slice, |object| object.spec);
spec_only!(ValidatingAdmissionPolicy, Policy, ValidatingAdmissionPolicySpec, Policy, |object| {
    object.spec.unwrap_or_default()
});
spec_only!(ValidatingAdmissionPolicyBinding, Binding, ValidatingAdmissionPolicyBindingSpec, Binding, |object| object
    .spec);
