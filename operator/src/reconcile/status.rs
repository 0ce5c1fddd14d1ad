//! `Mesh.status`: the open challenge, numbers of nodes, and conditions.

use super::{
    API_VERSION,
    diff::{Target, Verb, Write},
};
use crate::{
    convert::{cut, dated},
    events::Notice,
    index::{Kind, MeshValue, Stored},
    proof::Challenge,
    protection::Protection,
};
use crds::{
    Condition, ConditionStatus, MeshStatus,
    mesh::NodeCounts,
    names::{AGENT_POLICY, MESH},
};
use k8s_openapi::{apimachinery::pkg::apis::meta::v1::Time, jiff::Timestamp};
use serde_json::json;
use topology::cluster::{MeshCondition, MeshConditionType, Plan};

const READY: &str = "Ready";

/// What the status shall say.
#[derive(Clone, Debug, PartialEq)]
pub struct Report {
    proof_key: Option<String>,
    challenge: Option<String>,
    nodes: NodeCounts,
    conditions: Vec<Said>,
}

/// A condition without its times.
#[derive(Clone, Debug, PartialEq)]
struct Said {
    type_: &'static str,
    status: ConditionStatus,
    reason: &'static str,
    message: String,
}

/// How much a report differs from the stored status.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Difference {
    /// Not at all.
    None,
    /// In the numbers only, which may wait.
    Counts,
    /// In something that somebody waits for.
    Substance,
}

impl Report {
    /// What there is to say about a plan.
    pub fn new(plan: &Plan, protection: Protection, challenge: Option<&Challenge>) -> Self {
        let number = |n: usize| u32::try_from(n).unwrap_or(u32::MAX);
        let mut conditions: Vec<Said> =
            plan.mesh_conditions.iter().filter_map(|condition| said(condition, &protection)).collect();
        conditions.sort_by_key(|condition| condition.type_);
        conditions.dedup_by_key(|condition| condition.type_);
        conditions.push(ready(&conditions));
        Self {
            proof_key: challenge.map(|challenge| challenge.proof_key.to_string()),
            challenge: challenge.map(|challenge| challenge.text.clone()),
            nodes: NodeCounts { total: number(plan.counts.nodes), accepted: number(plan.counts.accepted) },
            conditions,
        }
    }
}

fn reason(kind: MeshConditionType) -> &'static str {
    match kind {
        MeshConditionType::NodeWritesUnprotected => "PoliciesNotInPlace",
        MeshConditionType::RangesOverlap => "RangesOverlap",
        MeshConditionType::NodeListEmpty => "NodeListEmpty",
        MeshConditionType::AddressPoolExhausted => "AddressPoolExhausted",
        MeshConditionType::PlanRefused => "PlanRefused",
    }
}

fn said(condition: &MeshCondition, protection: &Protection) -> Option<Said> {
    let message = match (condition.kind, protection) {
        // Seen, and about to act: the few seconds of a start are no problem that anybody must solve.
        (MeshConditionType::NodeWritesUnprotected, Protection::InPlace) => return None,
        (MeshConditionType::NodeWritesUnprotected, Protection::Broken(faults)) => unprotected(faults),
        _ => condition.message.clone(),
    };
    let type_ = condition.kind.as_str();
    Some(Said { type_, status: ConditionStatus::True, reason: reason(condition.kind), message })
}

fn unprotected(faults: &str) -> String {
    format!(
        "expected the admission policies of the chart, which let a node write only its own status ({AGENT_POLICY} and others), \
         found: {faults}. Until they are restored, as by `helm upgrade`, no new key is admitted; admitted nodes stay connected"
    )
}

fn ready(problems: &[Said]) -> Said {
    // That nothing is written any more outweighs what else there is to say.
    let refused = problems.iter().find(|problem| problem.type_ == MeshConditionType::PlanRefused.as_str());
    match refused.or(problems.first()) {
        None => Said {
            type_: READY,
            status: ConditionStatus::True,
            reason: "Reconciled",
            message: "the directory of peers says what it shall".into(),
        },
        Some(problem) => Said {
            type_: READY,
            status: ConditionStatus::False,
            reason: problem.reason,
            message: problem.message.clone(),
        },
    }
}

/// Compares with what is stored.
pub fn compare(mesh: &Stored<MeshValue>, report: &Report) -> Difference {
    let MeshStatus { observed_generation, proof_key, challenge, nodes, conditions } = &mesh.value.status;
    let same_conditions = report.conditions.len() == conditions.len()
        && report.conditions.iter().all(|said| conditions.iter().any(|stored| says(stored, said)));
    let substance = *observed_generation == mesh.meta.generation
        && *proof_key == report.proof_key
        && *challenge == report.challenge
        && same_conditions;
    match (substance, *nodes == report.nodes) {
        (true, true) => Difference::None,
        (true, false) => Difference::Counts,
        (false, _) => Difference::Substance,
    }
}

fn says(stored: &Condition, said: &Said) -> bool {
    stored.type_ == said.type_
        && stored.status == said.status
        && stored.reason == said.reason
        && stored.message == cut(&said.message)
}

/// The write that makes the status say it.
pub fn write(mesh: &Stored<MeshValue>, report: &Report, now: Timestamp) -> Write {
    let generation = mesh.meta.generation;
    let stored = &mesh.value.status.conditions;
    let conditions: Vec<_> = report.conditions.iter().map(|said| condition(said, stored, generation, now)).collect();
    let mut status = json!({ "observedGeneration": generation, "nodes": report.nodes, "conditions": conditions });
    if let (Some(key), Some(challenge)) = (&report.proof_key, &report.challenge) {
        status["proofKey"] = json!(key);
        status["challenge"] = json!(challenge);
    }
    apply(mesh, status)
}

fn condition(said: &Said, stored: &[Condition], generation: Option<i64>, now: Timestamp) -> Condition {
    let fresh = Condition {
        type_: said.type_.into(),
        status: said.status,
        reason: said.reason.into(),
        message: cut(&said.message),
        observed_generation: generation,
        last_transition_time: Time(now),
    };
    dated(fresh, stored)
}

// With the version that it was planned from: a leader that slept may not put its old challenge over its successor's.
fn apply(mesh: &Stored<MeshValue>, status: serde_json::Value) -> Write {
    let metadata = json!({ "name": MESH, "resourceVersion": mesh.meta.version });
    let body = json!({ "apiVersion": API_VERSION, "kind": "Mesh", "metadata": metadata, "status": status });
    Write { target: Target::status(Kind::Mesh, MESH), verb: Verb::Apply(body) }
}

/// What to say about a Mesh whose spec cannot be used, unless it is said already.
pub fn invalid(mesh: &Stored<MeshValue>, message: &str) -> Option<Write> {
    let said =
        Said { type_: READY, status: ConditionStatus::False, reason: "InvalidSpec", message: message.to_owned() };
    let stored = &mesh.value.status.conditions;
    if stored.iter().any(|stored| says(stored, &said)) {
        return None;
    }
    let condition = condition(&said, stored, mesh.meta.generation, Timestamp::now());
    Some(apply(
        mesh,
        json!({ "observedGeneration": mesh.meta.generation, "nodes": mesh.value.status.nodes, "conditions": [condition] }),
    ))
}

/// The Event for a problem of the whole mesh that is new.
pub fn notice(mesh: &Stored<MeshValue>, report: &Report) -> Option<Notice> {
    let new = report.conditions.iter().find(|said| {
        let known = mesh.value.status.conditions.iter().any(|stored| stored.type_ == said.type_);
        said.type_ != READY && !known
    })?;
    Some(Notice {
        kind: "Mesh",
        name: MESH.into(),
        uid: Some(mesh.meta.uid.clone()),
        reason: new.type_,
        warning: true,
        message: new.message.clone(),
    })
}

#[cfg(test)]
mod tests;
