//! What this replica knows of the cluster: a reduced copy of every object it watches.
//!
//! The copy leaves out what planning does not look at, so that a kubelet's heartbeat or an edited label is no change at all.
//! What this replica wrote itself is taken in from the API server's answer, before the watch repeats it; a watch event that
//! is older than that answer is ignored. An object that cannot be decoded keeps its last readable version; one that never
//! could is known to be there, so that nothing is concluded from its absence, and is left as it is.

pub mod kinds;

pub use kinds::{Kind, MeshNodeValue, MeshValue, NodeValue, RelayValue, Watched};

use crds::MeshPeerSliceSpec;
use k8s_openapi::api::admissionregistration::v1::{
    ValidatingAdmissionPolicyBindingSpec, ValidatingAdmissionPolicySpec,
};
use kube::api::{DynamicObject, ObjectMeta};
use std::collections::BTreeMap;

/// The parts of an object's metadata that matter.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Meta {
    /// Its name.
    pub name: String,
    /// Its UID.
    pub uid: String,
    /// Its `resourceVersion`.
    pub version: String,
    /// Its `generation`.
    pub generation: Option<i64>,
    /// When it was made, in seconds.
    pub created: i64,
}

impl From<&ObjectMeta> for Meta {
    fn from(meta: &ObjectMeta) -> Self {
        Self {
            name: meta.name.clone().unwrap_or_default(),
            uid: meta.uid.clone().unwrap_or_default(),
            version: meta.resource_version.clone().unwrap_or_default(),
            generation: meta.generation,
            created: meta.creation_timestamp.as_ref().map_or(0, |time| time.0.as_second()),
        }
    }
}

/// One object.
#[derive(Clone, Debug, PartialEq)]
pub struct Stored<T> {
    /// Who it is.
    pub meta: Meta,
    /// What it says.
    pub value: T,
}

impl<T> Stored<T> {
    /// The reduced copy of an object.
    pub fn read<K: Watched<Value = T>>(object: DynamicObject) -> Result<Self, Unreadable> {
        let meta = Meta::from(&object.metadata);
        match K::decode(object) {
            Ok(value) => Ok(Self { meta, value }),
            Err(error) => Err(Unreadable { meta, error }),
        }
    }

    // Versions are compared only within one API server; one that does not read as a number is never taken for older.
    fn is_older_than(&self, other: &Self) -> bool {
        let number = |version: &str| version.parse::<u64>().ok();
        match (number(&self.meta.version), number(&other.meta.version)) {
            (Some(mine), Some(theirs)) => mine < theirs,
            _ => false,
        }
    }
}

/// An object that is there and could not be decoded.
#[derive(Clone, Debug, thiserror::Error)]
#[error("cannot read {}: {error}", meta.name)]
pub struct Unreadable {
    /// Who it is.
    pub meta: Meta,
    /// Why.
    pub error: String,
}

/// What a watch says.
#[derive(Clone, Debug)]
pub enum Update<T> {
    /// A new list begins.
    ListBegins,
    /// One object of the list.
    Listed(Stored<T>),
    /// One object of the list, or a changed one, that could not be decoded.
    Unreadable(Meta),
    /// The list is complete.
    ListEnds,
    /// It was made or changed.
    Applied(Stored<T>),
    /// The object with this name and UID was deleted.
    Deleted(String, String),
}

/// What an update amounts to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Effect {
    /// Nothing that planning looks at.
    Nothing,
    /// Something changed.
    Changed,
    /// Somebody left or must go.
    Removed,
}

/// What makes a change of this kind urgent.
pub trait Urgency {
    /// Whether the deletion of such an object may take a peer away.
    const DEPARTURE: bool = false;

    /// Whether the object itself asks for a peer to go.
    fn must_go(&self) -> bool {
        false
    }
}

/// Every object of one kind.
#[derive(Clone, Debug)]
pub struct Collection<T> {
    live: BTreeMap<String, Stored<T>>,
    /// Never decoded: not in `live`.
    unreadable: BTreeMap<String, Meta>,
    listing: Option<Listing<T>>,
    synced: bool,
}

#[derive(Clone, Debug)]
struct Listing<T> {
    objects: BTreeMap<String, Stored<T>>,
    unreadable: BTreeMap<String, Meta>,
}

impl<T> Default for Listing<T> {
    fn default() -> Self {
        Self { objects: BTreeMap::new(), unreadable: BTreeMap::new() }
    }
}

impl<T> Default for Collection<T> {
    fn default() -> Self {
        Self { live: BTreeMap::new(), unreadable: BTreeMap::new(), listing: None, synced: false }
    }
}

impl<T> Collection<T> {
    /// The object of that name.
    pub fn get(&self, name: &str) -> Option<&Stored<T>> {
        self.live.get(name)
    }

    /// Every object, by name.
    pub fn iter(&self) -> impl Iterator<Item = (&String, &Stored<T>)> {
        self.live.iter()
    }

    /// The objects that are there and could never be decoded.
    pub fn unreadable(&self) -> impl Iterator<Item = &Meta> {
        self.unreadable.values()
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.live.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.live.is_empty()
    }

    /// Whether a whole list has been seen.
    pub fn synced(&self) -> bool {
        self.synced
    }

    /// Takes it that the object is gone.
    pub fn forget(&mut self, name: &str) {
        self.live.remove(name);
        self.unreadable.remove(name);
    }
}

impl<T: PartialEq + Clone + Urgency> Collection<T> {
    /// Takes an update in.
    pub fn absorb(&mut self, update: Update<T>) -> Effect {
        match update {
            Update::ListBegins => {
                self.listing = Some(Listing::default());
                Effect::Nothing
            }
            Update::Listed(object) => {
                self.listing.get_or_insert_default().objects.insert(object.meta.name.clone(), object);
                Effect::Nothing
            }
            Update::Unreadable(meta) => self.set_aside(meta),
            Update::ListEnds => self.replace(),
            Update::Applied(object) => self.learn(object),
            Update::Deleted(name, uid) => {
                // One that was made again under the same name is known already when its predecessor's end is told.
                let known = self.live.get(&name).map(|known| &known.meta).or_else(|| self.unreadable.get(&name));
                if known.is_none_or(|known| known.uid != uid) {
                    return Effect::Nothing;
                }
                self.forget(&name);
                departure::<T>()
            }
        }
    }

    fn set_aside(&mut self, meta: Meta) -> Effect {
        let known = self.live.get(&meta.name).filter(|known| known.meta.uid == meta.uid);
        match (&mut self.listing, known) {
            (Some(listing), Some(known)) => drop(listing.objects.insert(meta.name, known.clone())),
            (Some(listing), None) => drop(listing.unreadable.insert(meta.name.clone(), meta)),
            (None, Some(_)) => {}
            (None, None) => {
                let gone = self.live.remove(&meta.name).is_some();
                self.unreadable.insert(meta.name.clone(), meta);
                return if gone { departure::<T>() } else { Effect::Changed };
            }
        }
        Effect::Nothing
    }

    /// Takes one object in, unless it is older than what is known.
    pub fn learn(&mut self, object: Stored<T>) -> Effect {
        self.unreadable.remove(&object.meta.name);
        let Some(known) = self.live.get_mut(&object.meta.name) else {
            let effect = if object.value.must_go() { Effect::Removed } else { Effect::Changed };
            self.live.insert(object.meta.name.clone(), object);
            return effect;
        };
        if object.is_older_than(known) {
            return Effect::Nothing;
        }
        let effect = match () {
            () if object.value.must_go() && !known.value.must_go() => Effect::Removed,
            () if object.meta.uid != known.meta.uid => departure::<T>(),
            () if object.value != known.value => Effect::Changed,
            () => Effect::Nothing,
        };
        *known = object;
        effect
    }

    fn replace(&mut self) -> Effect {
        let Listing { objects, unreadable } = self.listing.take().unwrap_or_default();
        let first = !std::mem::replace(&mut self.synced, true);
        let gone = self.live.keys().any(|name| !objects.contains_key(name));
        self.live.retain(|name, _| objects.contains_key(name));
        self.unreadable = unreadable;
        let effects = objects.into_values().map(|object| self.learn(object)).max();
        let effect = effects.unwrap_or(Effect::Nothing);
        match (first, gone) {
            (_, true) => effect.max(departure::<T>()),
            (true, false) => effect.max(Effect::Changed),
            (false, false) => effect,
        }
    }
}

fn departure<T: Urgency>() -> Effect {
    if T::DEPARTURE { Effect::Removed } else { Effect::Changed }
}

/// Everything this replica knows.
#[derive(Clone, Debug, Default)]
pub struct Cluster {
    /// The Nodes.
    pub nodes: Collection<NodeValue>,
    /// `Mesh/default`, if it is there.
    pub meshes: Collection<MeshValue>,
    /// The `MeshNode`s.
    pub mesh_nodes: Collection<MeshNodeValue>,
    /// The slices, `removed` among them.
    pub slices: Collection<MeshPeerSliceSpec>,
    /// The relays.
    pub relays: Collection<RelayValue>,
    /// The admission policies.
    pub policies: Collection<ValidatingAdmissionPolicySpec>,
    /// What binds them.
    pub bindings: Collection<ValidatingAdmissionPolicyBindingSpec>,
}

/// An update of one kind.
#[derive(Clone, Debug)]
pub enum Change {
    /// Of a Node.
    Node(Update<NodeValue>),
    /// Of the Mesh.
    Mesh(Update<MeshValue>),
    /// Of a `MeshNode`.
    MeshNode(Update<MeshNodeValue>),
    /// Of a slice.
    Slice(Update<MeshPeerSliceSpec>),
    /// Of a relay.
    Relay(Update<RelayValue>),
    /// Of a policy.
    Policy(Update<ValidatingAdmissionPolicySpec>),
    /// Of a binding.
    Binding(Update<ValidatingAdmissionPolicyBindingSpec>),
}

impl Cluster {
    /// Takes a change in.
    pub fn absorb(&mut self, change: Change) -> Effect {
        match change {
            Change::Node(update) => self.nodes.absorb(update),
            Change::Mesh(update) => self.meshes.absorb(update),
            Change::MeshNode(update) => self.mesh_nodes.absorb(update),
            Change::Slice(update) => self.slices.absorb(update),
            Change::Relay(update) => self.relays.absorb(update),
            Change::Policy(update) => self.policies.absorb(update),
            Change::Binding(update) => self.bindings.absorb(update),
        }
    }

    /// Whether every kind has been listed once: before that nothing may be concluded from what is absent.
    pub fn synced(&self) -> bool {
        self.missing().is_empty()
    }

    /// The kinds that have not been listed yet.
    pub fn missing(&self) -> Vec<Kind> {
        [
            (Kind::Node, self.nodes.synced()),
            (Kind::Mesh, self.meshes.synced()),
            (Kind::MeshNode, self.mesh_nodes.synced()),
            (Kind::MeshPeerSlice, self.slices.synced()),
            (Kind::MeshRelay, self.relays.synced()),
            (Kind::Policy, self.policies.synced()),
            (Kind::Binding, self.bindings.synced()),
        ]
        .into_iter()
        .filter_map(|(kind, synced)| (!synced).then_some(kind))
        .collect()
    }

    /// The Mesh.
    pub fn mesh(&self) -> Option<&Stored<MeshValue>> {
        self.meshes.get(crds::names::MESH)
    }
}

#[cfg(test)]
mod tests;
