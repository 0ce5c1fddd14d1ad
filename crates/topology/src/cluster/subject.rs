//! Who is planned for: one subject per `MeshNode` that shall exist, oldest first.

use std::cmp::Reverse;
use std::collections::BTreeMap;

use ipnet::IpNet;
use wire::key::PublicKey;

use crate::cluster::condition::{
    Condition, ConditionType, Event, EventReason, MeshCondition, MeshConditionType, Reason,
};
use crate::cluster::plan::{Retire, RetireReason};
use crate::cluster::view::{ClusterView, MeshNodeFacts, NodeFacts};
use crate::peer::{Entry, Uid};
use crate::spec::{NodeKind, NodeSpec};

/// A condition message names this many findings; a node cannot make an object grow by inventing more.
const NAMED_FINDINGS: usize = 5;

/// Bytes of a message at most: the API takes 1024, and an event puts the type of the condition before it.
pub const MAX_MESSAGE: usize = 960;

/// Age decides contests: stored objects before new ones, then creation time, then name.
pub(super) type Age = (bool, i64, String);

/// One `MeshNode` while it is planned.
pub(super) struct Subject<'a> {
    pub name: &'a str,
    pub identity: Uid,
    pub age: Age,
    pub node: Option<&'a NodeFacts>,
    pub stored: Option<&'a MeshNodeFacts>,
    /// The entry of this very node (not of a namesake) in the stored slices: what peers act upon now.
    pub published: Option<&'a Entry>,
    /// The spec under construction: starts with what admins own.
    pub spec: NodeSpec,
    /// The routes that the mesh carries, out of those that an admin wrote.
    pub routes: Vec<IpNet>,
    /// The key that peers are told.
    pub carried: Option<PublicKey>,
    pub events: Vec<Event>,
    findings: BTreeMap<ConditionType, Vec<(Reason, String)>>,
}

impl Subject<'_> {
    /// The rank of a claim: what peers act upon outranks what is merely written, that outranks a wish, then age decides.
    pub fn rank(&self, published: bool, written: bool) -> (bool, bool, Age) {
        (!published, !written, self.age.clone())
    }

    /// The spec as stored, or an empty one.
    pub fn written(&self) -> NodeSpec {
        self.stored.map(|facts| facts.spec.clone()).unwrap_or_default()
    }

    /// Notes something for the condition `kind`.
    pub fn find(&mut self, kind: ConditionType, reason: Reason, text: String) {
        self.findings.entry(kind).or_default().push((reason, text));
    }

    /// Tells of something that this plan does.
    pub fn tell(&mut self, reason: EventReason, message: String) {
        let node = self.name.to_owned();
        self.events.push(Event { node, reason, message });
    }

    /// The conditions of all findings, one per type.
    pub fn conditions(&self) -> Vec<Condition> {
        let merged = self.findings.iter().filter_map(|(kind, list)| {
            let (reason, _) = list.first()?;
            let texts: Vec<&str> = list.iter().map(|(_, text)| text.as_str()).collect();
            Some(Condition::raised(*kind, *reason, name_some(&texts)))
        });
        merged.collect()
    }
}

/// Joins texts, as many of the first few as fit.
pub(super) fn name_some(texts: &[&str]) -> String {
    /// Room for " and N more".
    const TAIL: usize = 32;
    let mut joined = String::new();
    let mut named = 0;
    for text in texts.iter().take(NAMED_FINDINGS) {
        let separator = if named == 0 { "" } else { "; " };
        if named > 0 && joined.len() + separator.len() + text.len() > MAX_MESSAGE - TAIL {
            break;
        }
        joined.push_str(separator);
        joined.push_str(text);
        named += 1;
    }
    joined.truncate(joined.floor_char_boundary(MAX_MESSAGE - TAIL));
    match texts.len() - named {
        0 => joined,
        more => format!("{joined}; and {more} more"),
    }
}

/// The subjects in order of age, the objects to delete, and what there is to say about the mesh as a whole.
pub(super) fn gather(view: &ClusterView) -> (Vec<Subject<'_>>, Vec<Retire>, Vec<MeshCondition>) {
    let nodes: BTreeMap<&str, &NodeFacts> = view.nodes.iter().map(|node| (&*node.name, node)).collect();
    let stored: BTreeMap<&str, &MeshNodeFacts> = view.mesh_nodes.iter().map(|facts| (&*facts.name, facts)).collect();
    let published = published_entries(view);
    let list_empty = nodes.is_empty() && stored.values().any(|facts| is_cluster(facts));

    let mut subjects = Vec::new();
    let mut retire = Vec::new();
    for (&name, &facts) in &stored {
        let node = nodes.get(name).copied();
        match fate(facts, node, list_empty) {
            Some(why) => retire.push(Retire { name: name.to_owned(), uid: facts.uid.clone(), why }),
            None => subjects.push(existing(facts, node, &published)),
        }
    }
    for (&name, &node) in &nodes {
        let replaced = retire.iter().any(|gone| gone.name == name);
        if replaced || !stored.contains_key(name) {
            subjects.push(newcomer(node, &published));
        }
    }
    subjects.sort_by(|a, b| a.age.cmp(&b.age));
    (subjects, retire, mesh_conditions(view, list_empty))
}

type Published<'a> = BTreeMap<(&'a str, &'a Uid), &'a Entry>;

/// Of every node the stored entry of the highest generation.
fn published_entries(view: &ClusterView) -> Published<'_> {
    let mut entries: Vec<(&str, &Entry)> =
        view.slices.iter().flat_map(|slice| slice.entries.iter().map(|entry| (&*slice.name, entry))).collect();
    // Highest generation last, so that it is the one the map keeps; slice names settle ties.
    entries.sort_by_key(|(slice, entry)| (entry.generation, Reverse(*slice)));
    entries.into_iter().map(|(_, entry)| ((&*entry.name, &entry.uid), entry)).collect()
}

fn is_cluster(facts: &MeshNodeFacts) -> bool {
    facts.spec.kind == NodeKind::Cluster
}

/// Whether the object has to go. An empty Node list retires nobody: the operator itself runs on a node, so such a list
/// is a fault and not the end of the cluster.
fn fate(facts: &MeshNodeFacts, node: Option<&NodeFacts>, list_empty: bool) -> Option<RetireReason> {
    match node {
        _ if !is_cluster(facts) => None,
        None if list_empty => None,
        None => Some(RetireReason::NodeGone),
        Some(node) if node.uid == facts.spec.node_uid => None,
        Some(_) => Some(RetireReason::NodeReplaced),
    }
}

fn existing<'a>(facts: &'a MeshNodeFacts, node: Option<&'a NodeFacts>, published: &Published<'a>) -> Subject<'a> {
    let written = &facts.spec;
    // A hand-changed `kind` of a node that is plainly there is put right.
    let own_node = node.filter(|node| node.uid == written.node_uid);
    let kind = own_node.map_or(written.kind, |_| NodeKind::Cluster);
    let mut subject = Subject {
        name: &facts.name,
        identity: facts.identity().clone(),
        age: (false, facts.created, facts.name.clone()),
        node: own_node,
        stored: Some(facts),
        published: published.get(&(&*facts.name, facts.identity())).copied(),
        spec: NodeSpec {
            node_uid: written.node_uid.clone(),
            kind,
            routes: written.routes.clone(),
            location: written.location.clone(),
            classes: written.classes.clone(),
            relay: written.relay,
            suspended: written.suspended,
            ..NodeSpec::default()
        },
        routes: Vec::new(),
        carried: None,
        events: Vec::new(),
        findings: BTreeMap::new(),
    };
    if kind == NodeKind::External && node.is_some() {
        let text = "expected a name of its own, found a cluster node of the same name, which therefore has no \
                    MeshNode; rename the external machine";
        subject.find(ConditionType::NameConflict, Reason::HeldByOther, text.to_owned());
    }
    subject
}

fn newcomer<'a>(node: &'a NodeFacts, published: &Published<'a>) -> Subject<'a> {
    Subject {
        name: &node.name,
        identity: node.uid.clone(),
        age: (true, node.created, node.name.clone()),
        node: Some(node),
        stored: None,
        published: published.get(&(&*node.name, &node.uid)).copied(),
        spec: NodeSpec { node_uid: node.uid.clone(), ..NodeSpec::default() },
        routes: Vec::new(),
        carried: None,
        events: Vec::new(),
        findings: BTreeMap::new(),
    }
}

fn mesh_conditions(view: &ClusterView, list_empty: bool) -> Vec<MeshCondition> {
    let mut conditions = Vec::new();
    let mut raise = |kind, message: String| conditions.push(MeshCondition { kind, message });
    if !view.protected {
        let text = "expected the admission policies that let a node write only its own status, found them missing or \
                    altered; admitted keys stay, no new key is admitted; restore the policies and bindings of the chart";
        raise(MeshConditionType::NodeWritesUnprotected, text.to_owned());
    }
    let overlap = view.mesh.ranges().into_iter().find_map(|range| {
        let services = view.mesh.service_cidrs.iter();
        let mut hit = services.filter(|cidr| crate::prefix::overlap(range, **cidr));
        hit.next().map(|cidr| (range, *cidr))
    });
    if let Some((range, services)) = overlap {
        let text = format!(
            "expected ranges apart from each other, found the mesh range {range} overlapping the Service range \
             {services}; no address of the overlap is given out; correct spec.serviceCIDRs, or delete Mesh/default and have it \
             made again with another range, upon which every node gets new addresses"
        );
        raise(MeshConditionType::RangesOverlap, text);
    }
    if list_empty {
        let text = "expected Nodes, found an empty list although there are MeshNodes of cluster nodes; none of them is \
                    retired; check that the operator may list Nodes";
        raise(MeshConditionType::NodeListEmpty, text.to_owned());
    }
    conditions
}
