//! What the operator shall write: the output of planning.

use std::collections::BTreeMap;

use crate::cluster::condition::{Condition, Event, MeshCondition};
use crate::peer::{Entry, Tombstone, Uid};
use crate::spec::NodeSpec;

/// A complete plan. The executor decides nothing; it writes in this order: `tombstones`, then `retire`, then created and
/// updated nodes, then `slices` that changed, then the deletion of `stale_slices`, then conditions and events.
/// Tombstones go first so that nobody who must go waits, and so that an address never has two owners; merged slices are
/// written before emptied ones are deleted so that nobody disappears in between.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Plan {
    /// Objects to delete, with the UID that the deletion must name. A node that came back under its old name is both
    /// here and, with action `Create`, in `nodes`.
    pub retire: Vec<Retire>,
    /// Every `MeshNode` that shall exist, by name.
    pub nodes: BTreeMap<String, PlannedNode>,
    /// The tombstones that the slice `removed` shall hold, oldest first.
    pub tombstones: Vec<Tombstone>,
    /// Whether `tombstones` differs from what is stored.
    pub tombstones_changed: bool,
    /// Every peer slice that shall exist, by name.
    pub slices: BTreeMap<String, PlannedSlice>,
    /// Stored slices that shall not.
    pub stale_slices: Vec<String>,
    /// The conditions of `Mesh/default`.
    pub mesh_conditions: Vec<MeshCondition>,
    /// What this plan does to nodes.
    pub events: Vec<Event>,
    /// Numbers for metrics and `Mesh.status`.
    pub counts: Counts,
}

impl Plan {
    /// Whether there is nothing to write: no object, no condition, no event.
    pub fn is_settled(&self) -> bool {
        self.retire.is_empty()
            && self.stale_slices.is_empty()
            && self.events.is_empty()
            && !self.tombstones_changed
            && self.slices.values().all(|slice| !slice.changed)
            && self.nodes.values().all(|node| node.action == Action::Keep && !node.conditions_changed)
    }

    /// The names of the slices, `removed` aside, that executing the plan writes or deletes.
    pub fn touched_slices(&self) -> Vec<&str> {
        let changed = self.slices.iter().filter(|(_, slice)| slice.changed);
        changed.map(|(name, _)| name.as_str()).chain(self.stale_slices.iter().map(String::as_str)).collect()
    }

    /// Every entry of every slice.
    pub fn entries(&self) -> impl Iterator<Item = &Entry> {
        self.slices.values().flat_map(|slice| &slice.entries)
    }
}

/// A `MeshNode` to delete.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Retire {
    /// Its name.
    pub name: String,
    /// The UID of the object.
    pub uid: Uid,
    /// Why.
    pub why: RetireReason,
}

/// Why a `MeshNode` is deleted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RetireReason {
    /// Its Node is gone.
    NodeGone,
    /// Its Node was deleted and created again.
    NodeReplaced,
}

/// One `MeshNode` that shall exist.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PlannedNode {
    /// What to do with the object.
    pub action: Action,
    /// The UID of the stored object; `None` for one to create.
    pub uid: Option<Uid>,
    /// The full desired spec.
    pub spec: NodeSpec,
    /// The operator's conditions on it, sorted by type.
    pub conditions: Vec<Condition>,
    /// Whether they differ from what is stored. Of a node to create they are written once it exists.
    pub conditions_changed: bool,
}

/// What to do with a `MeshNode`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// It does not exist yet.
    Create,
    /// Its spec differs.
    Update,
    /// Its spec is right.
    Keep,
}

/// One peer slice that shall exist.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PlannedSlice {
    /// Its entries, sorted by name.
    pub entries: Vec<Entry>,
    /// Whether it differs from what is stored.
    pub changed: bool,
}

/// Numbers that go with a plan.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// `MeshNode`s that shall exist.
    pub nodes: usize,
    /// Those whose present key is admitted.
    pub accepted: usize,
    /// Those whose key waits.
    pub pending: usize,
    /// Those whose key was refused.
    pub rejected: usize,
    /// Those that an admin suspended.
    pub suspended: usize,
    /// Entries in slices.
    pub entries: usize,
    /// Slices, `removed` aside.
    pub slices: usize,
    /// Conditions other than `Admitted`.
    pub conflicts: usize,
    /// Candidates that were not passed on.
    pub candidates_dropped: usize,
}
