//! What peers are told about each accepted node.

use std::collections::BTreeMap;

use crate::candidates;
use crate::cluster::condition::{ConditionType, Reason};
use crate::cluster::subject::{Subject, name_some};
use crate::mesh::MeshConfig;
use crate::peer::{Candidate, Entry, MAX_GENERATION, Tombstone};
use crate::prefix::PrefixMap;

/// Up to this many nodes, slices carry volatile candidates and punch rounds: 64 nodes that each change an address once
/// an hour cost each watcher one event a minute.
pub const FRESH_CANDIDATES_MAX_NODES: usize = 64;

/// The entries of all accepted nodes, and how many candidates were left out of them.
pub(super) fn compile(
    mesh: &MeshConfig,
    tombstones: &[Tombstone],
    published: &BTreeMap<&str, Vec<&Entry>>,
    subjects: &mut [Subject<'_>],
) -> (Vec<Entry>, usize) {
    let peers: Vec<&Subject<'_>> = subjects.iter().filter(|subject| is_peer(subject)).collect();
    let is_fresh = peers.len() <= FRESH_CANDIDATES_MAX_NODES;
    // A node that is not admitted says nothing about the candidates of others.
    let mut pod_cidrs = PrefixMap::default();
    for net in peers.iter().flat_map(|subject| &subject.spec.pod_cidrs) {
        pod_cidrs.insert(*net, ());
    }
    let mut entries = Vec::new();
    let mut dropped = 0;
    for subject in subjects {
        let candidates = usable_candidates(mesh, &pod_cidrs, subject, &mut dropped);
        if let Some(mut entry) = describe(subject, candidates, is_fresh) {
            let copies = published.get(subject.name).map(Vec::as_slice).unwrap_or_default();
            entry.generation = generation(&entry, copies, tombstones);
            entries.push(entry);
        }
    }
    (entries, dropped)
}

/// Whether the subject appears in slices.
pub(super) fn is_peer(subject: &Subject<'_>) -> bool {
    subject.carried.is_some() && !subject.spec.suspended && !subject.spec.mesh_ips.is_empty()
}

fn usable_candidates(
    mesh: &MeshConfig,
    pod_cidrs: &PrefixMap<()>,
    subject: &mut Subject<'_>,
    dropped_total: &mut usize,
) -> Vec<Candidate> {
    let Some(stored) = subject.stored else {
        return Vec::new();
    };
    let in_pod_cidr = |addr| pod_cidrs.holding(addr).is_some();
    let (kept, dropped) = candidates::sanitise(mesh, in_pod_cidr, &stored.status.candidates);
    *dropped_total += dropped.len();
    if !dropped.is_empty() {
        let named: Vec<String> =
            dropped.iter().map(|(candidate, why)| format!("{} ({})", candidate.addr, why.as_str())).collect();
        let named: Vec<&str> = named.iter().map(String::as_str).collect();
        let text = format!(
            "expected up to 16 candidates that peers can send to, found and dropped {}; the others are used; exclude \
             such interfaces in the agent's settings",
            name_some(&named)
        );
        subject.find(ConditionType::CandidatesDropped, Reason::Filtered, text);
    }
    kept
}

fn describe(subject: &Subject<'_>, mut candidates: Vec<Candidate>, is_fresh: bool) -> Option<Entry> {
    let public_key = subject.carried.filter(|_| is_peer(subject))?;
    let status = &subject.stored?.status;
    if !is_fresh {
        candidates.retain(|candidate| candidate.kind.is_stable());
    }
    let spec = &subject.spec;
    let bound = status.listen_port.filter(|port| *port != 0);
    Some(Entry {
        name: subject.name.to_owned(),
        uid: subject.identity.clone(),
        public_key,
        next_public_key: spec.admission.next_public_key,
        mesh_ips: spec.mesh_ips.clone(),
        pod_cidrs: spec.pod_cidrs.clone(),
        node_ips: spec.node_ips.clone(),
        routes: subject.routes.clone(),
        listen_port: bound.unwrap_or(spec.listen_port),
        location: spec.location.clone(),
        classes: spec.classes.clone(),
        candidates,
        round: if is_fresh { status.round } else { 0 },
        generation: 0,
    })
}

/// Unchanged entries keep their generation. Anything else gets one above all that was ever published under the name, as
/// far as slices and tombstones remember: agents ignore what is older than what they have. Stored copies that differ at the
/// same generation leave open which of them an agent has, so that none of them may stay.
fn generation(entry: &Entry, published: &[&Entry], tombstones: &[Tombstone]) -> u64 {
    let buried = tombstones.iter().filter(|stone| stone.name == entry.name).map(|stone| stone.generation);
    let floor = buried.chain(published.iter().map(|known| known.generation)).max().unwrap_or(0);
    let mut newest = published.iter().filter(|known| known.generation == floor).peekable();
    let is_published = newest.peek().is_some();
    let unchanged = newest.all(|known| {
        let is_buried = tombstones.iter().any(|stone| stone.covers(known));
        known.same_content(entry) && !is_buried
    });
    let next = if is_published && unchanged { floor } else { floor.saturating_add(1) };
    next.min(MAX_GENERATION)
}
