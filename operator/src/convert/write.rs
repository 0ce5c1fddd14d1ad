//! From what was planned to the bodies of writes.

use crds::{Condition, ConditionStatus};
use k8s_openapi::{apimachinery::pkg::apis::meta::v1::Time, jiff::Timestamp};
use serde_json::{Value, json};
use topology::{
    cluster::Condition as Planned,
    peer::{Candidate, CandidateKind, Entry, Tombstone},
    spec::{AdmissionState, NodeSpec},
};

/// The longest message of a condition or verdict that the schema takes.
const MAX_MESSAGE: usize = 1024;

/// `MeshNode.spec` without the fields that belong to an admin.
pub fn mesh_node_spec(spec: &NodeSpec) -> Value {
    let admission = &spec.admission;
    let mut verdict = json!({
        "state": match admission.state {
            AdmissionState::Pending => "Pending",
            AdmissionState::Accepted => "Accepted",
            AdmissionState::Rejected => "Rejected",
        },
        "keyGeneration": u32::try_from(admission.key_generation).unwrap_or(u32::MAX),
        "reason": admission.reason.as_str(),
        "message": cut(&admission.message),
    });
    if let Some(key) = &admission.public_key {
        verdict["publicKey"] = json!(key.to_string());
        verdict["keyShort"] = json!(key.short());
    }
    let mut body = json!({
        "nodeUID": spec.node_uid.0,
        "meshIPs": texts(&spec.mesh_ips),
        "podCIDRs": texts(&spec.pod_cidrs),
        "nodeIPs": texts(&spec.node_ips),
        "admission": verdict,
    });
    if spec.listen_port != 0 {
        body["listenPort"] = json!(spec.listen_port);
    }
    body
}

/// `MeshPeerSlice.spec` of an ordinary slice.
pub fn slice_spec(entries: &[Entry]) -> Value {
    json!({ "count": entries.len(), "entries": entries.iter().map(entry).collect::<Vec<_>>() })
}

/// `MeshPeerSlice.spec` of the slice `removed`.
pub fn tombstone_spec(stones: &[Tombstone]) -> Value {
    let stone = |stone: &Tombstone| {
        json!({
            "name": stone.name,
            "uid": stone.uid.0,
            "publicKey": stone.public_key.to_string(),
            "generation": stone.generation,
        })
    };
    json!({ "count": stones.len(), "tombstones": stones.iter().map(stone).collect::<Vec<_>>() })
}

/// `MeshRelay.spec` of the relay on a Node.
pub fn relay_spec(node: &str, uid: &str, addresses: &[String], domain: Option<&str>) -> Value {
    let mut body = json!({ "nodeName": node, "nodeUID": uid });
    if !addresses.is_empty() {
        body["addresses"] = json!(addresses);
    }
    if let Some(domain) = domain {
        body["failureDomain"] = json!(domain);
    }
    body
}

fn entry(entry: &Entry) -> Value {
    let mut body = json!({
        "name": entry.name,
        "uid": entry.uid.0,
        "publicKey": entry.public_key.to_string(),
        "generation": entry.generation,
        "meshIPs": texts(&entry.mesh_ips),
        "listenPort": entry.listen_port,
        "round": entry.round,
    });
    // A slice is sent to every node: what is empty is left out.
    for (field, list) in [("podCIDRs", texts(&entry.pod_cidrs)), ("nodeIPs", texts(&entry.node_ips))] {
        if !list.is_empty() {
            body[field] = json!(list);
        }
    }
    if !entry.candidates.is_empty() {
        body["candidates"] = entry.candidates.iter().map(candidate).collect();
    }
    body
}

fn candidate(candidate: &Candidate) -> Value {
    let kind = match candidate.kind {
        CandidateKind::Static => "Static",
        CandidateKind::PortMapped => "PortMapped",
        CandidateKind::ServerReflexive => "ServerReflexive",
        CandidateKind::Host => "Host",
    };
    json!({ "address": candidate.addr.to_string(), "kind": kind })
}

/// The conditions to write. One that stood with the same status keeps its time.
pub fn conditions(
    planned: &[Planned],
    stored: &[Condition],
    generation: Option<i64>,
    now: Timestamp,
) -> Vec<Condition> {
    planned.iter().map(|planned| condition(planned, stored, generation, now)).collect()
}

fn condition(planned: &Planned, stored: &[Condition], generation: Option<i64>, now: Timestamp) -> Condition {
    let status = if planned.status { ConditionStatus::True } else { ConditionStatus::False };
    dated(
        Condition {
            type_: planned.kind.as_str().into(),
            status,
            reason: planned.reason.as_str().into(),
            message: cut(&planned.message),
            observed_generation: generation,
            last_transition_time: Time(now),
        },
        stored,
    )
}

/// Gives a condition the time of the stored one, if that has the same status.
pub(crate) fn dated(mut condition: Condition, stored: &[Condition]) -> Condition {
    let known = stored.iter().find(|known| known.type_ == condition.type_ && known.status == condition.status);
    if let Some(known) = known {
        condition.last_transition_time = known.last_transition_time.clone();
    }
    condition
}

pub(crate) fn cut(message: &str) -> String {
    message[..message.floor_char_boundary(MAX_MESSAGE)].to_owned()
}

fn texts<T: ToString>(list: &[T]) -> Vec<String> {
    list.iter().map(ToString::to_string).collect()
}
