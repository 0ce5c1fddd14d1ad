//! Invariants of the operator's plan.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use ipnet::IpNet;

use crate::candidates;
use crate::check::{Rule, Violation};
use crate::cluster::pack::slice_number;
use crate::cluster::{ClusterView, Plan};
use crate::mesh::MeshConfig;
use crate::peer::{Entry, MAX_CANDIDATES, MAX_GENERATION, MAX_SLICE_ENTRIES, MAX_TOMBSTONES, Tombstone};
use crate::prefix::{self, PrefixMap};
use crate::spec::AdmissionState;

/// Every invariant that a plan for `view` breaks.
pub fn check(view: &ClusterView, plan: &Plan) -> Vec<Violation> {
    let mut checker = Checker { view, plan, found: Vec::new() };
    checker.addresses();
    checker.ports();
    checker.keys();
    checker.prefixes();
    checker.slices();
    checker.entries();
    checker.generations();
    checker.tombstones();
    checker.found
}

struct Checker<'a> {
    view: &'a ClusterView,
    plan: &'a Plan,
    found: Vec<Violation>,
}

impl Checker<'_> {
    fn broken(&mut self, rule: Rule, detail: String) {
        self.found.push(Violation { rule, detail });
    }

    fn addresses(&mut self) {
        let mut seen: BTreeMap<IpAddr, &str> = BTreeMap::new();
        for (name, node) in &self.plan.nodes {
            for addr in &node.spec.mesh_ips {
                if let Some(other) = seen.insert(*addr, name) {
                    self.broken(Rule::UniqueMeshIp, format!("{addr} of {other} and {name}"));
                }
                if !is_host_of(&self.view.mesh, *addr) {
                    self.broken(Rule::MeshIpInRange, format!("{addr} of {name}"));
                }
            }
            let v4 = node.spec.mesh_ips.iter().filter(|addr| addr.is_ipv4()).count();
            if v4 > 1 || node.spec.mesh_ips.len() - v4 > 1 {
                self.broken(Rule::MeshIpInRange, format!("{name} has two of a family"));
            }
        }
    }

    fn ports(&mut self) {
        let ports = self.plan.nodes.values().map(|node| node.spec.listen_port);
        let distinct: BTreeSet<u16> = ports.collect();
        let possible = self.plan.nodes.len().min(self.view.mesh.listen_ports.size());
        if distinct.len() < possible {
            let text = format!("{} ports for {possible} nodes", distinct.len());
            self.broken(Rule::UniquePort, text);
        }
        for port in distinct {
            if !self.view.mesh.listen_ports.contains(port) {
                self.broken(Rule::UniquePort, format!("{port} is outside the range"));
            }
        }
    }

    fn keys(&mut self) {
        let mut seen = BTreeMap::new();
        for entry in self.plan.entries() {
            let key = entry.public_key;
            if let Some(other) = seen.insert(key, &entry.name).filter(|other| **other != entry.name) {
                let text = format!("{} of {other} and {}", key.short(), entry.name);
                self.broken(Rule::UniqueKey, text);
            }
            if key.validate().is_err() {
                self.broken(Rule::UniqueKey, format!("{} is unusable", entry.name));
            }
        }
        let known = self.view.slices.iter().flat_map(|slice| &slice.entries);
        let known = known.map(|entry| entry.public_key);
        let written = self.view.mesh_nodes.iter();
        let written = written.filter_map(|facts| facts.spec.admission.public_key);
        let known: BTreeSet<_> = known.chain(written).collect();
        let new = seen.iter().filter(|(key, _)| !known.contains(key));
        if !self.view.protected {
            for (key, name) in new {
                self.found
                    .push(Violation { rule: Rule::NoNewKeyUnprotected, detail: format!("{} of {name}", key.short()) });
            }
        }
    }

    fn prefixes(&mut self) {
        let mut all: Vec<(IpNet, &str)> = Vec::new();
        for (name, node) in &self.plan.nodes {
            let hosts = node.spec.node_ips.iter().copied().map(prefix::host);
            all.extend(hosts.chain(node.spec.pod_cidrs.iter().copied()).map(|net| (net, &**name)));
        }
        for entry in self.plan.entries() {
            all.extend(entry.routes.iter().map(|net| (*net, &*entry.name)));
        }
        for (net, name) in &all {
            if !prefix::is_carriable(*net) || self.view.mesh.reserved_overlap(*net).is_some() {
                self.broken(Rule::CarriablePrefixes, format!("{net} of {name}"));
            }
        }
        for (name, node) in &self.plan.nodes {
            for net in node.spec.pod_cidrs.iter().filter(|net| !self.view.mesh.allows_pods(**net)) {
                self.broken(Rule::CarriablePrefixes, format!("{net} of {name} is outside the mesh's pod ranges"));
            }
        }
        for text in shared(all) {
            self.broken(Rule::DisjointPrefixes, text);
        }
    }

    fn slices(&mut self) {
        let mut seen = BTreeMap::new();
        for (name, slice) in &self.plan.slices {
            let sorted = slice.entries.is_sorted_by(|a, b| a.name < b.name);
            let sized = (1..=MAX_SLICE_ENTRIES).contains(&slice.entries.len());
            if !sorted || !sized || slice_number(name).is_none() {
                let text = format!("{name} with {} entries", slice.entries.len());
                self.broken(Rule::SliceShape, text);
            }
            for entry in &slice.entries {
                if let Some(other) = seen.insert(&entry.name, name) {
                    let text = format!("{} in {other} and {name}", entry.name);
                    self.broken(Rule::EntryOnce, text);
                }
            }
        }
        for (name, node) in &self.plan.nodes {
            let spec = &node.spec;
            let is_accepted = spec.admission.state == AdmissionState::Accepted;
            let belongs = is_accepted && !spec.suspended && !spec.mesh_ips.is_empty();
            if belongs && !seen.contains_key(name) {
                self.broken(Rule::EntryMissing, name.clone());
            }
        }
    }

    fn entries(&mut self) {
        let mut pods = PrefixMap::default();
        for net in self.plan.entries().flat_map(|entry| &entry.pod_cidrs) {
            pods.insert(*net, ());
        }
        let in_pod = |addr: IpAddr| pods.holding(addr).is_some();
        for entry in self.plan.entries() {
            if !self.is_of_accepted_node(entry) {
                self.broken(Rule::EntryOfAcceptedNode, entry.name.clone());
            }
            let bad = entry
                .candidates
                .iter()
                .any(|candidate| candidates::forbidden(&self.view.mesh, in_pod, candidate).is_some());
            if bad || entry.candidates.len() > MAX_CANDIDATES {
                self.broken(Rule::CleanCandidates, entry.name.clone());
            }
        }
    }

    fn is_of_accepted_node(&self, entry: &Entry) -> bool {
        let Some(node) = self.plan.nodes.get(&entry.name) else {
            return false;
        };
        let spec = &node.spec;
        // While a new key waits, peers keep the one that was admitted before.
        let key_fits = spec.admission.public_key == Some(entry.public_key)
            || (spec.admission.state != AdmissionState::Accepted
                && self.stored_entries().any(|known| known.uid == entry.uid && known.public_key == entry.public_key));
        key_fits
            && !spec.suspended
            && (spec.node_uid == entry.uid || spec.node_uid.0.is_empty())
            && spec.mesh_ips == entry.mesh_ips
            && spec.pod_cidrs == entry.pod_cidrs
            && spec.node_ips == entry.node_ips
            && entry.routes.iter().all(|net| spec.routes.iter().any(|wanted| wanted.trunc() == *net))
    }

    fn stored_entries(&self) -> impl Iterator<Item = &Entry> {
        self.view.slices.iter().flat_map(|slice| &slice.entries)
    }

    fn generations(&mut self) {
        let limit = MAX_GENERATION;
        let planned: BTreeMap<&str, &Entry> = self.plan.entries().map(|entry| (&*entry.name, entry)).collect();
        let regressed = self.stored_entries().filter_map(|known| {
            let entry = planned.get(&*known.name)?;
            let floor = known.generation.min(limit);
            let may_stay = floor == limit || (known.uid == entry.uid && known.same_content(entry));
            let is_fine = entry.generation > floor || (entry.generation == floor && may_stay);
            (!is_fine).then(|| known.name.clone())
        });
        for name in regressed.collect::<Vec<_>>() {
            self.broken(Rule::GenerationGrows, name);
        }
    }

    fn tombstones(&mut self) {
        let stones = &self.plan.tombstones;
        let distinct: BTreeSet<_> = stones.iter().map(|stone| (&stone.name, &stone.uid)).collect();
        if stones.len() > MAX_TOMBSTONES || distinct.len() < stones.len() {
            let text = format!("{} tombstones for {} nodes", stones.len(), distinct.len());
            self.broken(Rule::TombstonesBounded, text);
        }
        let planned: Vec<&Entry> = self.plan.entries().collect();
        for entry in &planned {
            if stones.iter().any(|stone: &Tombstone| stone.covers(entry)) {
                self.broken(Rule::TombstonesBounded, format!("{} is buried", entry.name));
            }
        }
        let alive: BTreeSet<_> = planned.iter().map(|entry| (&entry.name, &entry.uid)).collect();
        let unburied: Vec<String> = self
            .stored_entries()
            .filter(|known| !alive.contains(&(&known.name, &known.uid)))
            .filter(|known| !stones.iter().any(|stone| stone.covers(known)))
            .map(|known| known.name.clone())
            .collect();
        // A full list has lost the oldest ones; agents then wait for their guard.
        if stones.len() < MAX_TOMBSTONES {
            for name in unburied {
                self.broken(Rule::RemovalHasTombstone, name);
            }
        }
    }
}

/// Pairs of prefixes that overlap and belong to different nodes. Prefixes either nest or are disjoint, so that in order
/// of their first address every one has those around it right before it.
fn shared(mut all: Vec<(IpNet, &str)>) -> Vec<String> {
    all.sort_by_key(|(net, name)| (net.network(), net.prefix_len(), *name));
    let mut found = Vec::new();
    let mut around: Vec<(IpNet, &str)> = Vec::new();
    for (net, name) in all {
        while around.last().is_some_and(|(outer, _)| !outer.contains(&net.network())) {
            around.pop();
        }
        let others = around.iter().filter(|(_, owner)| *owner != name);
        found.extend(others.map(|(outer, owner)| format!("{net} of {name} and {outer} of {owner}")));
        around.push((net, name));
    }
    found
}

fn is_host_of(mesh: &MeshConfig, addr: IpAddr) -> bool {
    mesh.ranges().into_iter().any(|net| {
        let has_ends = net.max_prefix_len() - net.prefix_len() >= 2;
        let is_end = addr == net.network() || (addr.is_ipv4() && addr == net.broadcast());
        net.contains(&addr) && !(has_ends && is_end)
    })
}
