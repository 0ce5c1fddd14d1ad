//! From a plan to writes: what differs, in the order in which it must be written.

use super::{API_VERSION, relays};
use crate::{
    convert,
    index::{Cluster, Kind, Stored, Unreadable},
};
use crds::{
    Mesh, MeshNode, MeshPeerSlice, MeshRelay,
    names::{MESH, REMOVED_SLICE},
};
use k8s_openapi::{api::core::v1::Node, jiff::Timestamp};
use kube::api::DynamicObject;
use serde_json::{Value, json};
use topology::cluster::{Action, Plan, PlannedNode};

/// What a write is about; objects that fail wait by this.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Target {
    /// The kind.
    pub kind: Kind,
    /// The name.
    pub name: String,
    /// Whether it is the status subresource.
    pub status: bool,
}

impl Target {
    /// An object.
    pub fn new(kind: Kind, name: &str) -> Self {
        Self { kind, name: name.to_owned(), status: false }
    }

    /// The status of an object.
    pub fn status(kind: Kind, name: &str) -> Self {
        Self { status: true, ..Self::new(kind, name) }
    }

    /// Whether it is the Mesh, which is no part of the phases.
    pub fn is_mesh(&self) -> bool {
        self.kind == Kind::Mesh
    }
}

/// One request.
#[derive(Clone, Debug, PartialEq)]
pub struct Write {
    /// What it is about.
    pub target: Target,
    /// What it does.
    pub verb: Verb,
}

/// What a request does.
#[derive(Clone, Debug, PartialEq)]
pub enum Verb {
    /// Makes an object that must not be there yet.
    Create(Value),
    /// Server-side apply; carries the `resourceVersion` that it was planned from, except for the status of a node, which
    /// is merged by condition.
    Apply(Value),
    /// Merge patch with the `resourceVersion` that it was planned from: for a field that must go whoever wrote it, which
    /// server-side apply leaves to its owner.
    Merge(Value),
    /// Deletes this very object.
    Delete {
        /// Its UID.
        uid: String,
        /// Its version.
        version: Option<String>,
    },
}

/// The order of writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Phase {
    /// The slice `removed`: whatever else there is to do, and however much, nobody who must go waits for it.
    Tombstones,
    /// Objects of nodes and relays that are gone.
    Retire,
    /// Nodes and relays.
    Nodes,
    /// The other slices.
    Slices,
    /// Slices that are not wanted any more.
    StaleSlices,
    /// Conditions of nodes.
    Conditions,
    /// Who gets a relay, and who reaches them.
    Relays,
}

impl Phase {
    /// Whether guarded phases after it must wait until it is complete. An address never has two owners, so tombstones go before
    /// slices; nobody disappears in between, so merged slices go before the deletion of emptied ones.
    pub fn guards_the_next(self) -> bool {
        matches!(self, Self::Tombstones | Self::Slices)
    }

    /// Whether it must wait for those.
    pub fn is_guarded(self) -> bool {
        matches!(self, Self::Slices | Self::StaleSlices)
    }
}

/// Every write that the plan asks for, conditions aside.
pub fn phases(cluster: &Cluster, plan: &Plan) -> Vec<(Phase, Vec<Write>)> {
    let (relays_to_delete, relays) = relays::writes(cluster);
    let retire = plan.retire.iter().map(|retire| Write {
        target: Target::new(Kind::MeshNode, &retire.name),
        verb: Verb::Delete { uid: retire.uid.0.clone(), version: None },
    });
    let nodes = plan.nodes.iter().filter_map(|(name, node)| node_write(cluster, name, node));
    // What cannot be read may hold entries, which would be told twice.
    let readable = cluster.slices.unreadable().all(|meta| meta.name == REMOVED_SLICE);
    let slices = plan.slices.iter().filter(|(_, slice)| readable && slice.changed);
    let slices = slices.map(|(name, slice)| slice_write(cluster, name, convert::slice_spec(&slice.entries)));
    let stale = plan.stale_slices.iter().filter(|_| readable).filter_map(|name| {
        let meta = &cluster.slices.get(name)?.meta;
        let verb = Verb::Delete { uid: meta.uid.clone(), version: Some(meta.version.clone()) };
        Some(Write { target: Target::new(Kind::MeshPeerSlice, name), verb })
    });
    let tombstones =
        plan.tombstones_changed.then(|| slice_write(cluster, REMOVED_SLICE, convert::tombstone_spec(&plan.tombstones)));
    vec![
        (Phase::Tombstones, tombstones.into_iter().collect()),
        (Phase::Retire, retire.chain(relays_to_delete).collect()),
        (Phase::Nodes, nodes.chain(relays).collect()),
        (Phase::Slices, slices.collect()),
        (Phase::StaleSlices, stale.collect()),
    ]
}

/// The conditions of nodes. They say for which generation they were found, so they are asked for after the specs were written.
pub fn conditions(cluster: &Cluster, plan: &Plan, now: Timestamp) -> Vec<Write> {
    plan.nodes.iter().filter_map(|(name, node)| condition_write(cluster, name, node, now)).collect()
}

/// Makes the Mesh.
pub fn create_mesh(mesh: &Mesh) -> Option<Write> {
    let body = serde_json::to_value(mesh).ok()?;
    Some(Write { target: Target::new(Kind::Mesh, MESH), verb: Verb::Create(body) })
}

fn node_write(cluster: &Cluster, name: &str, node: &PlannedNode) -> Option<Write> {
    let spec = convert::mesh_node_spec(&node.spec);
    let mut body = json!({ "apiVersion": API_VERSION, "kind": "MeshNode", "metadata": { "name": name }, "spec": spec });
    let target = Target::new(Kind::MeshNode, name);
    match node.action {
        Action::Keep => None,
        Action::Create => {
            // The garbage collector retires it with its Node, also while no operator runs; a Node that was made again under the
            // same name has another UID.
            let owner = json!({ "apiVersion": "v1", "kind": "Node", "name": name, "uid": node.spec.node_uid.0 });
            body["metadata"]["ownerReferences"] = json!([owner]);
            Some(Write { target, verb: Verb::Create(body) })
        }
        Action::Update => {
            let stored = cluster.mesh_nodes.get(name)?;
            body["metadata"]["resourceVersion"] = json!(stored.meta.version);
            if stored.value.spec.admission.public_key.is_some() && node.spec.admission.public_key.is_none() {
                body["spec"]["admission"]["publicKey"] = Value::Null;
                body["spec"]["admission"]["keyShort"] = Value::Null;
                return Some(Write { target, verb: Verb::Merge(body) });
            }
            Some(Write { target, verb: Verb::Apply(body) })
        }
    }
}

fn slice_write(cluster: &Cluster, name: &str, spec: Value) -> Write {
    let mut body =
        json!({ "apiVersion": API_VERSION, "kind": "MeshPeerSlice", "metadata": { "name": name }, "spec": spec });
    let target = Target::new(Kind::MeshPeerSlice, name);
    match cluster.slices.get(name) {
        None => Write { target, verb: Verb::Create(body) },
        Some(stored) => {
            body["metadata"]["resourceVersion"] = json!(stored.meta.version);
            Write { target, verb: Verb::Apply(body) }
        }
    }
}

fn condition_write(cluster: &Cluster, name: &str, node: &PlannedNode, now: Timestamp) -> Option<Write> {
    // Of a node to create they are written once it exists.
    let stored = cluster.mesh_nodes.get(name).filter(|_| node.action != Action::Create)?;
    let known = &stored.value.status.conditions;
    let is_current = known.iter().all(|condition| condition.observed_generation == stored.meta.generation);
    if is_current && !node.conditions_changed {
        return None;
    }
    let conditions = convert::conditions(&node.conditions, known, stored.meta.generation, now);
    let body = json!({
        "apiVersion": API_VERSION,
        "kind": "MeshNode",
        "metadata": { "name": name },
        "status": { "conditions": conditions },
    });
    Some(Write { target: Target::status(Kind::MeshNode, name), verb: Verb::Apply(body) })
}

/// Takes the answer to a write in.
pub fn learn(cluster: &mut Cluster, target: &Target, object: DynamicObject) -> Result<(), Unreadable> {
    match target.kind {
        Kind::Mesh => drop(cluster.meshes.learn(Stored::read::<Mesh>(object)?)),
        Kind::MeshNode => drop(cluster.mesh_nodes.learn(Stored::read::<MeshNode>(object)?)),
        Kind::MeshPeerSlice => drop(cluster.slices.learn(Stored::read::<MeshPeerSlice>(object)?)),
        Kind::MeshRelay => drop(cluster.relays.learn(Stored::read::<MeshRelay>(object)?)),
        Kind::Node => drop(cluster.nodes.learn(Stored::read::<Node>(object)?)),
        Kind::Policy | Kind::Binding => {}
    }
    Ok(())
}

/// The version that is known of the object.
pub fn known_version<'a>(cluster: &'a Cluster, target: &Target) -> Option<&'a str> {
    let name = &target.name;
    let meta = match target.kind {
        Kind::Mesh => cluster.meshes.get(name).map(|stored| &stored.meta),
        Kind::MeshNode => cluster.mesh_nodes.get(name).map(|stored| &stored.meta),
        Kind::MeshPeerSlice => cluster.slices.get(name).map(|stored| &stored.meta),
        Kind::MeshRelay => cluster.relays.get(name).map(|stored| &stored.meta),
        Kind::Node => cluster.nodes.get(name).map(|stored| &stored.meta),
        Kind::Policy | Kind::Binding => None,
    };
    meta.map(|meta| meta.version.as_str())
}

/// Takes it that a deleted object is gone.
pub fn forget(cluster: &mut Cluster, target: &Target) {
    match target.kind {
        Kind::Mesh => cluster.meshes.forget(&target.name),
        Kind::MeshNode => cluster.mesh_nodes.forget(&target.name),
        Kind::MeshPeerSlice => cluster.slices.forget(&target.name),
        Kind::MeshRelay => cluster.relays.forget(&target.name),
        Kind::Node | Kind::Policy | Kind::Binding => {}
    }
}

#[cfg(test)]
mod tests;
