//! What the cluster looks like once a plan has been written, for tests and the simulator.

use crate::cluster::plan::{Action, Plan};
use crate::cluster::view::{ClusterView, MeshNodeFacts, SliceFacts, StatusFacts};
use crate::peer::Uid;

impl ClusterView {
    /// The view after a complete execution of `plan`. New objects are younger than all others.
    pub fn after(&self, plan: &Plan) -> Self {
        let now = self.mesh_nodes.iter().map(|facts| facts.created).max();
        let now = now.map_or(0, |latest| latest.saturating_add(1));
        let stored = |name: &str, uid: &Uid| {
            let mut facts = self.mesh_nodes.iter();
            facts.find(|facts| facts.name == name && facts.uid == *uid)
        };
        let mesh_nodes = plan.nodes.iter().map(|(name, node)| {
            let before = node.uid.as_ref().and_then(|uid| stored(name, uid));
            debug_assert_eq!(before.is_none(), node.action == Action::Create);
            MeshNodeFacts {
                name: name.clone(),
                uid: before
                    .map_or_else(|| Uid(format!("object-{name}-{}", node.spec.node_uid)), |facts| facts.uid.clone()),
                created: before.map_or(now, |facts| facts.created),
                spec: node.spec.clone(),
                status: before.map_or_else(StatusFacts::default, |facts| facts.status.clone()),
                conditions: node.conditions.clone(),
            }
        });
        let slices =
            plan.slices.iter().map(|(name, slice)| SliceFacts { name: name.clone(), entries: slice.entries.clone() });
        Self {
            mesh: self.mesh.clone(),
            nodes: self.nodes.clone(),
            mesh_nodes: mesh_nodes.collect(),
            slices: slices.collect(),
            tombstones: plan.tombstones.clone(),
            protected: self.protected,
        }
    }
}
