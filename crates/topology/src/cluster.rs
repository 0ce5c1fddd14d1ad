//! The operator's side: from a view of the cluster to everything that shall be written.

mod addresses;
mod apply;
pub mod condition;
mod entries;
mod graves;
mod keys;
pub mod pack;
pub mod plan;
mod prefixes;
mod refused;
mod subject;
pub mod view;

use std::collections::BTreeMap;

pub use condition::{Condition, ConditionType, Event, EventReason, MeshCondition, MeshConditionType, Reason};
pub use entries::FRESH_CANDIDATES_MAX_NODES;
pub use plan::{Action, Counts, Plan, PlannedNode, PlannedSlice, Retire, RetireReason};
pub use view::{ClusterView, MeshNodeFacts, NodeFacts, ProofVerdict, SliceFacts, StatusFacts};

use crate::peer::{Entry, Tombstone};
use crate::spec::AdmissionState;
use subject::Subject;

/// Plans everything that the operator shall write. The same view gives the same plan, whatever the order of its lists
/// (that of the tombstones aside, which means something).
pub fn plan(view: &ClusterView) -> Plan {
    let (mut subjects, retire, mesh_conditions) = subject::gather(view);
    addresses::assign_addresses(&view.mesh, &mut subjects);
    addresses::assign_ports(&view.mesh, &mut subjects);
    prefixes::assign(&view.mesh, &mut subjects);
    keys::admit(&view.mesh, view.protected, &mut subjects);

    let (entries, candidates_dropped) =
        entries::compile(&view.mesh, &view.tombstones, &published_by_name(view), &mut subjects);
    let (tombstones, buried) = graves::tombstones(view, &entries);
    let (slices, stale_slices) = pack::pack(entries, &view.slices);

    let mut plan = Plan {
        retire,
        tombstones_changed: tombstones != view.tombstones,
        tombstones,
        slices,
        stale_slices,
        mesh_conditions,
        ..Plan::default()
    };
    for subject in subjects {
        finish(subject, &mut plan);
    }
    plan.events.extend(buried.iter().map(farewell));
    plan.events.sort_by(|a, b| (&a.node, a.reason).cmp(&(&b.node, b.reason)));
    report_exhausted(&mut plan);
    plan.counts = count(&plan, candidates_dropped);
    plan
}

/// Every stored entry of each name, whoever wrote it.
fn published_by_name(view: &ClusterView) -> BTreeMap<&str, Vec<&Entry>> {
    let mut copies: BTreeMap<&str, Vec<&Entry>> = BTreeMap::new();
    for entry in view.slices.iter().flat_map(|slice| &slice.entries) {
        copies.entry(&*entry.name).or_default().push(entry);
    }
    copies
}

/// Compares what was planned for one node with what is stored.
fn finish(mut subject: Subject<'_>, plan: &mut Plan) {
    let mut conditions = subject.conditions();
    addresses::keep_reassigned_story(&subject, &mut conditions);
    let admission = &subject.spec.admission;
    conditions.push(Condition {
        kind: ConditionType::Admitted,
        status: admission.state == AdmissionState::Accepted,
        reason: Reason::Key(admission.reason),
        message: admission.message.clone(),
    });
    conditions.sort_by_key(|condition| condition.kind);
    announce_conflicts(&mut subject, &conditions);

    let action = match subject.stored {
        None => Action::Create,
        Some(stored) if stored.spec != subject.spec => Action::Update,
        Some(_) => Action::Keep,
    };
    let known = subject.stored.map(|stored| &stored.conditions);
    let node = PlannedNode {
        action,
        uid: subject.stored.map(|stored| stored.uid.clone()),
        conditions_changed: known.is_none_or(|known| !same_conditions(known, &conditions)),
        spec: subject.spec,
        conditions,
    };
    plan.nodes.insert(subject.name.to_owned(), node);
    plan.events.append(&mut subject.events);
}

fn same_conditions(known: &[Condition], planned: &[Condition]) -> bool {
    let mut known = known.to_vec();
    known.sort_by_key(|condition| condition.kind);
    known == planned
}

/// An event for each condition that newly needs attention. A reassignment has told its own story already.
fn announce_conflicts(subject: &mut Subject<'_>, conditions: &[Condition]) {
    for condition in conditions {
        let is_quiet = matches!(condition.kind, ConditionType::Admitted | ConditionType::AddressReassigned);
        let is_known = subject.stored.is_some_and(|stored| {
            let mut known = stored.conditions.iter();
            known.any(|known| known.kind == condition.kind)
        });
        if !is_quiet && !is_known {
            let text = format!("{}: {}", condition.kind.as_str(), condition.message);
            subject.tell(EventReason::Conflict, text);
        }
    }
}

fn farewell(stone: &Tombstone) -> Event {
    Event {
        node: stone.name.clone(),
        reason: EventReason::PeerRemoved,
        message: format!("peers drop key {}", stone.public_key.short()),
    }
}

fn report_exhausted(plan: &mut Plan) {
    let without = plan.nodes.values().filter(|node| {
        let mut kinds = node.conditions.iter().map(|condition| condition.kind);
        kinds.any(|kind| kind == ConditionType::AddressPoolExhausted)
    });
    let without = without.count();
    if without > 0 {
        plan.mesh_conditions.push(MeshCondition {
            kind: MeshConditionType::AddressPoolExhausted,
            message: format!(
                "expected an address for each of {} nodes, found none for {without}; widen the mesh range",
                plan.nodes.len()
            ),
        });
    }
}

fn count(plan: &Plan, candidates_dropped: usize) -> Counts {
    let in_state = |state| {
        let nodes = plan.nodes.values();
        nodes.filter(|node| node.spec.admission.state == state).count()
    };
    Counts {
        nodes: plan.nodes.len(),
        accepted: in_state(AdmissionState::Accepted),
        pending: in_state(AdmissionState::Pending),
        rejected: in_state(AdmissionState::Rejected),
        suspended: plan.nodes.values().filter(|node| node.spec.suspended).count(),
        entries: plan.entries().count(),
        slices: plan.slices.len(),
        conflicts: plan
            .nodes
            .values()
            .flat_map(|node| &node.conditions)
            .filter(|condition| condition.kind != ConditionType::Admitted)
            .count(),
        candidates_dropped,
    }
}
