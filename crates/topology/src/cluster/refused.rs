//! What may be written of a plan that breaks an invariant: that somebody must go.
//!
//! Such a plan comes from a mistake in planning, so nothing of it is trusted but what an admin or the end of a Node says
//! by itself: a tombstone of a node that is gone, suspended or without a key. A node that merely fell out of the slices is
//! not buried.

use crate::check::Violation;
use crate::cluster::condition::{EventReason, MeshCondition, MeshConditionType};
use crate::cluster::plan::Plan;
use crate::cluster::view::ClusterView;
use crate::peer::{MAX_TOMBSTONES, Tombstone};

/// A message names this many violations.
const NAMED_VIOLATIONS: usize = 5;

impl Plan {
    /// The part of a refused plan that is written all the same, with the condition that says why the rest is not.
    pub fn revocations(&self, view: &ClusterView, violations: &[Violation]) -> Self {
        let new = self.tombstones.iter().filter(|stone| !view.tombstones.contains(stone) && self.must_go(stone));
        let new: Vec<Tombstone> = new.cloned().collect();
        let mut tombstones = view.tombstones.clone();
        tombstones.retain(|known| !new.iter().any(|stone| stone.name == known.name && stone.uid == known.uid));
        let farewells = self.events.iter().filter(|event| {
            let named = new.iter().any(|stone| stone.name == event.node);
            event.reason == EventReason::PeerRemoved && named
        });
        let events = farewells.cloned().collect();
        tombstones.extend(new);
        tombstones.drain(..tombstones.len().saturating_sub(MAX_TOMBSTONES));
        let mut mesh_conditions = self.mesh_conditions.clone();
        mesh_conditions.push(refusal(violations));
        Self {
            tombstones_changed: tombstones != view.tombstones,
            tombstones,
            events,
            mesh_conditions,
            counts: self.counts,
            ..Self::default()
        }
    }

    fn must_go(&self, stone: &Tombstone) -> bool {
        let node = self.nodes.get(&stone.name).filter(|node| {
            let identity = if node.spec.node_uid.0.is_empty() { node.uid.as_ref() } else { Some(&node.spec.node_uid) };
            identity == Some(&stone.uid)
        });
        node.is_none_or(|node| node.spec.suspended || node.spec.admission.public_key.is_none())
    }
}

fn refusal(violations: &[Violation]) -> MeshCondition {
    let named: Vec<String> = violations.iter().take(NAMED_VIOLATIONS).map(ToString::to_string).collect();
    let more = violations.len() - named.len();
    let more = if more > 0 { format!("; and {more} more") } else { String::new() };
    MeshCondition {
        kind: MeshConditionType::PlanRefused,
        message: format!(
            "expected a plan that breaks no invariant of the mesh, found one that does and is not written ({}{more}); \
             peers stay as they are, suspended and deleted nodes are dropped; this is a defect of the operator, please \
             report it; undoing the last change by hand to a MeshNode or MeshPeerSlice helps until then",
            named.join("; ")
        ),
    }
}
