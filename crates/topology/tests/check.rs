//! Every invariant is really looked at: of a sound plan one thing is spoilt, and the check says which.
#![allow(missing_docs, clippy::unwrap_used)]

mod world;

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use topology::PublicKey;
use topology::check::{Rule, check, check_node, check_symmetry};
use topology::cluster::{ClusterView, Plan, plan};
use topology::mesh::PortRange;
use topology::node::{NodePlan, PeerTable, SelfFacts, plan_node};
use topology::peer::{MAX_CANDIDATES, MAX_GENERATION, MAX_TOMBSTONES, Tombstone, Uid};
use topology::spec::AdmissionState;
use world::*;

type Spoil = fn(&mut ClusterView, &mut Plan);

fn spec(plan: &mut Plan, number: u16) -> &mut topology::spec::NodeSpec {
    &mut plan.nodes.get_mut(&name(number)).unwrap().spec
}

fn as_it_was(plan: &mut Plan, number: u16) -> &mut topology::peer::Entry {
    let mut entries = plan.slices.values_mut().flat_map(|slice| &mut slice.entries);
    entries.find(|entry| entry.name == name(number)).unwrap()
}

/// An entry to change, with the generation that goes with a change.
fn told(plan: &mut Plan, number: u16) -> &mut topology::peer::Entry {
    let entry = as_it_was(plan, number);
    entry.generation += 1;
    entry
}

fn stone(number: u16, generation: u64) -> Tombstone {
    Tombstone { name: name(number), uid: Uid(format!("uid-{number}")), public_key: key(number), generation }
}

#[test]
fn every_invariant_of_a_plan_is_looked_at() {
    let cases: Vec<(Rule, &str, Spoil)> = vec![
        (Rule::UniqueMeshIp, "the address of another", |_, plan| {
            let taken = spec(plan, 1).mesh_ips.clone();
            spec(plan, 2).mesh_ips = taken.clone();
            told(plan, 2).mesh_ips = taken;
        }),
        (Rule::MeshIpInRange, "an address outside", |_, plan| {
            spec(plan, 1).mesh_ips[0] = ip("10.91.0.1");
            told(plan, 1).mesh_ips[0] = ip("10.91.0.1");
        }),
        (Rule::MeshIpInRange, "the network address", |_, plan| {
            spec(plan, 1).mesh_ips[0] = ip("10.90.0.0");
            told(plan, 1).mesh_ips[0] = ip("10.90.0.0");
        }),
        (Rule::MeshIpInRange, "the broadcast address", |_, plan| {
            spec(plan, 1).mesh_ips[0] = ip("10.90.255.255");
            told(plan, 1).mesh_ips[0] = ip("10.90.255.255");
        }),
        (Rule::MeshIpInRange, "two of a family", |_, plan| {
            spec(plan, 1).mesh_ips[1] = ip("10.90.0.99");
            told(plan, 1).mesh_ips[1] = ip("10.90.0.99");
        }),
        (Rule::UniqueKey, "the key of another", |_, plan| {
            spec(plan, 2).admission.public_key = Some(key(1));
            told(plan, 2).public_key = key(1);
        }),
        (Rule::UniqueKey, "an unusable key", |_, plan| {
            let zero = PublicKey::from_bytes([0; 32]);
            spec(plan, 2).admission.public_key = Some(zero);
            told(plan, 2).public_key = zero;
        }),
        (Rule::UniquePort, "the port of another", |_, plan| spec(plan, 2).listen_port = spec(plan, 1).listen_port),
        (Rule::UniquePort, "a port outside", |view, _| {
            view.mesh.listen_ports = PortRange { first: 21821, last: 22843 };
        }),
        (Rule::DisjointPrefixes, "another's pod range", |_, plan| {
            let taken = "10.200.1.128/25".parse().unwrap();
            spec(plan, 2).pod_cidrs = vec![taken];
            told(plan, 2).pod_cidrs = vec![taken];
        }),
        (Rule::DisjointPrefixes, "another's address", |_, plan| {
            spec(plan, 2).node_ips = vec![ip("192.168.0.1")];
            told(plan, 2).node_ips = vec![ip("192.168.0.1")];
        }),
        (Rule::CarriablePrefixes, "a Service range", |_, plan| {
            spec(plan, 1).pod_cidrs = vec!["10.100.0.0/16".parse().unwrap()];
            told(plan, 1).pod_cidrs = vec!["10.100.0.0/16".parse().unwrap()];
        }),
        (Rule::CarriablePrefixes, "multicast", |_, plan| {
            spec(plan, 1).node_ips = vec![ip("224.0.0.1")];
            told(plan, 1).node_ips = vec![ip("224.0.0.1")];
        }),
        (Rule::CarriablePrefixes, "a pod range outside those of the mesh", |view, _| {
            view.mesh.pod_cidrs = vec!["10.200.2.0/23".parse().unwrap()];
        }),
        (Rule::EntryOnce, "an entry in two slices", |_, plan| {
            let mut copy = plan.slices["peers-0001"].clone();
            copy.entries.truncate(1);
            plan.slices.insert("peers-0002".into(), copy);
        }),
        (Rule::SliceShape, "a name that is no number", |_, plan| {
            let slice = plan.slices.remove("peers-0001").unwrap();
            plan.slices.insert("by-hand".into(), slice);
        }),
        (Rule::SliceShape, "an empty slice", |_, plan| {
            let mut empty = plan.slices["peers-0001"].clone();
            empty.entries.clear();
            plan.slices.insert("peers-0002".into(), empty);
        }),
        (Rule::SliceShape, "out of order", |_, plan| plan.slices.get_mut("peers-0001").unwrap().entries.reverse()),
        (Rule::EntryOfAcceptedNode, "a suspended node", |_, plan| spec(plan, 1).suspended = true),
        (Rule::EntryOfAcceptedNode, "another key than the admitted one", |_, plan| {
            spec(plan, 1).admission.public_key = Some(key(70));
        }),
        (Rule::EntryOfAcceptedNode, "a key that nobody was told, of a node that waits", |_, plan| {
            spec(plan, 1).admission.state = AdmissionState::Pending;
            told(plan, 1).public_key = key(70);
        }),
        (Rule::EntryOfAcceptedNode, "addresses that the spec does not have", |_, plan| {
            told(plan, 1).node_ips.push(ip("192.168.7.7"));
        }),
        (Rule::EntryOfAcceptedNode, "a route that no admin wrote", |_, plan| {
            told(plan, 1).routes.push("172.30.0.0/16".parse().unwrap());
        }),
        (Rule::EntryMissing, "an accepted node without an entry", |_, plan| {
            let slice = plan.slices.get_mut("peers-0001").unwrap();
            let gone = slice.entries.remove(0);
            plan.tombstones.push(stone(1, gone.generation));
        }),
        (Rule::CleanCandidates, "a candidate inside the mesh", |_, plan| {
            told(plan, 1).candidates.push(candidate("10.90.0.9:1"));
        }),
        (Rule::CleanCandidates, "a candidate inside a pod range", |_, plan| {
            told(plan, 1).candidates.push(candidate("10.200.2.9:1"));
        }),
        (Rule::CleanCandidates, "too many candidates", |_, plan| {
            let many = (0..=MAX_CANDIDATES).map(|n| candidate(&format!("203.0.113.{n}:1")));
            told(plan, 1).candidates = many.collect();
        }),
        (Rule::GenerationGrows, "a change at the same generation", |_, plan| as_it_was(plan, 1).round += 1),
        (Rule::GenerationGrows, "a generation that falls", |_, plan| as_it_was(plan, 1).generation = 0),
        (Rule::TombstonesBounded, "too many", |_, plan| {
            plan.tombstones = (0..=MAX_TOMBSTONES as u16).map(|n| stone(1000 + n, 1)).collect();
        }),
        (Rule::TombstonesBounded, "two of one node", |_, plan| {
            plan.tombstones = vec![stone(1000, 1), stone(1000, 2)];
        }),
        (Rule::TombstonesBounded, "one of somebody who is there", |_, plan| {
            plan.tombstones = vec![stone(1, MAX_GENERATION)];
        }),
        (Rule::RemovalHasTombstone, "a node that left without one", |_, plan| {
            plan.nodes.remove(&name(1));
            plan.slices.get_mut("peers-0001").unwrap().entries.remove(0);
        }),
        (Rule::NoNewKeyUnprotected, "a new key", |view, plan| {
            view.protected = false;
            spec(plan, 1).admission.public_key = Some(key(70));
            told(plan, 1).public_key = key(70);
        }),
    ];
    let view = cluster_of(3);
    assert_eq!(check(&view, &plan(&view)), []);
    for (rule, what, spoil) in &cases {
        let mut view = view.clone();
        let mut plan = plan(&view);
        spoil(&mut view, &mut plan);
        let found: BTreeSet<Rule> = check(&view, &plan).into_iter().map(|violation| violation.rule).collect();
        assert_eq!(found, BTreeSet::from([*rule]), "{what}");
    }
    let covered: BTreeSet<Rule> = cases.iter().map(|(rule, ..)| *rule).collect();
    assert_eq!(covered.len(), 15, "every invariant of a plan has a case: {covered:?}");
}

/// Node 1 of a mesh of three, with what it configures.
fn configured() -> (SelfFacts, ClusterView, PeerTable, NodePlan) {
    let view = cluster_of(3);
    let slices = view.slices.iter().map(|slice| (slice.name.clone(), slice.entries.clone()));
    let mut table = PeerTable::new(&name(1));
    table.handle_list(slices.collect(), Vec::new(), Duration::ZERO);
    let own = SelfFacts {
        name: name(1),
        public_key: Some(key(1)),
        spec: Some(view.mesh_nodes[0].spec.clone()),
        gateways: vec![ip("172.16.0.1")],
        resolvers: vec![ip("172.16.0.2")],
        api_addresses: vec![ip("172.16.0.3")],
        connected: vec!["172.17.0.0/24".parse().unwrap()],
        ..SelfFacts::default()
    };
    let plan = plan_node(&own, &view.mesh, &table);
    (own, view, table, plan)
}

#[test]
fn every_invariant_of_a_node_is_looked_at() {
    type SpoilNode = fn(&mut NodePlan, &mut SelfFacts);
    let cases: Vec<(Rule, &str, SpoilNode)> = vec![
        (Rule::AllowedIpsFromSlices, "a prefix that the slices don't give", |plan, _| {
            Arc::make_mut(plan.peers.get_mut(&key(2)).unwrap()).allowed_ips.push("172.30.0.0/16".parse().unwrap());
        }),
        (Rule::AllowedIpsFromSlices, "a key that the slices don't give", |plan, _| {
            let peer = plan.peers.remove(&key(2)).unwrap();
            plan.peers.insert(key(70), peer);
        }),
        (Rule::RoutesFitPeers, "a carried node address that is unreachable", |plan, _| {
            plan.unreachable.push("192.168.0.2/32".parse().unwrap());
        }),
        (Rule::RouteOffUnderlay, "a route over the gateway", |_, own| own.gateways = vec![ip("10.200.2.1")]),
        (Rule::RouteOffUnderlay, "a route over a resolver", |_, own| own.resolvers = vec![ip("10.200.2.1")]),
        (Rule::RouteOffUnderlay, "a route over the API", |_, own| own.api_addresses = vec![ip("192.168.0.2")]),
        (Rule::RouteOffUnderlay, "a route into a connected subnet", |_, own| {
            own.connected = vec!["192.168.0.0/24".parse().unwrap()];
        }),
        (Rule::RouteOffUnderlay, "an unreachable gateway", |plan, _| {
            plan.unreachable.push("172.16.0.0/16".parse().unwrap());
        }),
    ];
    let (own, view, table, plan) = configured();
    assert_eq!(check_node(&own, &view.mesh, &table, &plan), []);
    for (rule, what, spoil) in cases {
        let (mut own, mut plan) = (own.clone(), plan.clone());
        spoil(&mut plan, &mut own);
        let found = check_node(&own, &view.mesh, &table, &plan);
        let found: BTreeSet<Rule> = found.into_iter().map(|violation| violation.rule).collect();
        assert_eq!(found, BTreeSet::from([rule]), "{what}");
    }
}

#[test]
fn two_peers_with_one_prefix_are_found_although_the_slices_say_so() {
    let (own, mut view, _, _) = configured();
    let taken = view.slices[0].entries[1].pod_cidrs.clone();
    view.slices[0].entries[2].pod_cidrs = taken.clone();
    let mut table = PeerTable::new(&name(1));
    let slices = view.slices.iter().map(|slice| (slice.name.clone(), slice.entries.clone()));
    table.handle_list(slices.collect(), Vec::new(), Duration::ZERO);
    let mut plan = plan_node(&own, &view.mesh, &table);
    assert_eq!(check_node(&own, &view.mesh, &table, &plan), []);
    for peer in plan.peers.values_mut() {
        if !peer.allowed_ips.contains(&taken[0]) {
            Arc::make_mut(peer).allowed_ips.push(taken[0]);
        }
    }
    let found = check_node(&own, &view.mesh, &table, &plan);
    assert!(!found.is_empty() && found.iter().all(|violation| violation.rule == Rule::DisjointPrefixes), "{found:?}");
}

#[test]
fn a_peer_that_does_not_have_us_is_found() {
    let (_, _, _, first) = configured();
    let second = NodePlan::default();
    let (one, two) = (name(1), name(2));
    let found = check_symmetry(&[(&one, &first), (&two, &second)]);
    assert_eq!(found.len(), 1);
    assert_eq!(found[0].rule, Rule::SymmetricPeers);
}
