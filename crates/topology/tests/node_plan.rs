//! What one node configures.
#![allow(missing_docs, clippy::unwrap_used)]

mod world;

use std::collections::BTreeMap;
use std::time::Duration;

use topology::check::{check_node, check_symmetry};
use topology::cluster::ClusterView;
use topology::node::{NodePlan, PeerTable, RefusalReason, SelfFacts, UnderlayKind, plan_node};
use topology::peer::Entry;
use world::*;

fn table_of(view: &ClusterView, own: &str) -> PeerTable {
    let slices = view.slices.iter().map(|slice| (slice.name.clone(), slice.entries.clone()));
    let mut table = PeerTable::new(own);
    table.handle_list(slices.collect(), view.tombstones.clone(), Duration::ZERO);
    table
}

fn own_facts(view: &ClusterView, number: u16) -> SelfFacts {
    let stored = view.mesh_nodes.iter().find(|facts| facts.name == name(number)).unwrap();
    SelfFacts {
        name: name(number),
        public_key: Some(key(number)),
        spec: Some(stored.spec.clone()),
        ..SelfFacts::default()
    }
}

fn plan_for(view: &ClusterView, own: &SelfFacts) -> NodePlan {
    let table = table_of(view, &own.name);
    let plan = plan_node(own, &view.mesh, &table);
    assert_eq!(check_node(own, &view.mesh, &table, &plan), []);
    plan
}

#[test]
fn a_peer_gets_what_the_slices_give_it_and_the_mesh_is_closed() {
    let mut view = cluster_of(3);
    stored(&mut view, &name(2)).status.candidates = vec![candidate("203.0.113.2:1"), candidate("192.168.0.1:1")];
    stored(&mut view, &name(2)).status.listen_port = Some(4444);
    step(&mut view);
    let mut own = own_facts(&view, 1);
    own.own_addresses = vec![ip("192.168.0.1")];
    let plan = plan_for(&view, &own);
    assert_eq!(plan.peers.len(), 2);
    let peer = &plan.peers[&key(2)];
    let allowed: Vec<String> = peer.allowed_ips.iter().map(ToString::to_string).collect();
    assert_eq!(allowed, ["10.90.0.2/32", "10.200.2.0/24", "192.168.0.2/32", "fd90::2/128"]);
    assert_eq!(peer.listen_port, 4444);
    assert_eq!(peer.candidates, [candidate("203.0.113.2:1")], "our own address leads to ourselves");
    let closed: Vec<String> = plan.unreachable.iter().map(ToString::to_string).collect();
    assert_eq!(closed, ["10.90.0.0/16", "10.200.1.0/24", "10.200.2.0/24", "10.200.3.0/24", "fd90::/64"]);
    assert!((plan.underlay_overlaps.is_empty()) && plan.refusals.is_empty());
}

#[test]
fn nothing_that_this_machine_needs_is_routed_into_the_mesh() {
    let view = cluster_of(4);
    type Set = fn(&mut SelfFacts);
    let cases: [(&str, UnderlayKind, Set); 5] = [
        ("gateway", UnderlayKind::Gateway, |own| own.gateways = vec![ip("192.168.0.2")]),
        ("resolver", UnderlayKind::Resolver, |own| own.resolvers = vec![ip("192.168.0.2")]),
        ("API", UnderlayKind::Api, |own| own.api_addresses = vec![ip("192.168.0.2")]),
        ("address", UnderlayKind::OwnAddress, |own| own.own_addresses = vec![ip("192.168.0.2")]),
        ("subnet", UnderlayKind::ConnectedSubnet, |own| own.connected = vec!["192.168.0.0/30".parse().unwrap()]),
    ];
    for (what, kind, set) in cases {
        let mut own = own_facts(&view, 1);
        set(&mut own);
        let plan = plan_for(&view, &own);
        let overlap = plan.underlay_overlaps.iter().find(|overlap| overlap.peer == name(2)).unwrap();
        assert_eq!((overlap.kind, overlap.prefix.addr()), (kind, ip("192.168.0.2")), "{what}");
        let peer = &plan.peers[&key(2)];
        assert!(!peer.allowed_ips.iter().any(|net| net.addr() == ip("192.168.0.2")), "{what}");
        assert_eq!(peer.mesh_ips.len(), 2, "it stays a peer");
        assert!(plan.peers[&key(4)].allowed_ips.contains(&"192.168.0.4/32".parse().unwrap()), "the others stay");
    }
}

#[test]
fn a_range_that_covers_a_local_subnet_is_neither_routed_nor_closed() {
    let mut view = cluster_of(2);
    view.mesh.service_cidrs.clear();
    let mut own = own_facts(&view, 1);
    own.connected =
        vec!["10.200.2.64/28".parse().unwrap(), "10.90.0.0/16".parse().unwrap(), "0.0.0.0/0".parse().unwrap()];
    let plan = plan_for(&view, &own);
    let pods = "10.200.2.0/24".parse().unwrap();
    assert!(!plan.peers[&key(2)].allowed_ips.contains(&pods) && !plan.unreachable.contains(&pods));
    assert!(plan.unreachable.contains(&"10.90.0.0/16".parse().unwrap()), "our own device's subnet is no underlay");
    assert_eq!(plan.underlay_overlaps[0].kind, UnderlayKind::ConnectedSubnet);
}

fn with_entry(view: &ClusterView, number: u16, change: impl FnOnce(&mut Entry)) -> ClusterView {
    let mut view = view.clone();
    let entries = view.slices.iter_mut().flat_map(|slice| &mut slice.entries);
    change(entries.into_iter().find(|entry| entry.name == name(number)).unwrap());
    view
}

#[test]
fn hostile_slices_move_no_prefix() {
    let view = cluster_of(3);
    let own = own_facts(&view, 1);
    let net = |text: &str| text.parse::<ipnet::IpNet>().unwrap();
    let cases = [
        ("10.200.1.0/25", RefusalReason::PrefixTaken(net("10.200.1.0/25"), name(1))),
        ("10.200.3.0/24", RefusalReason::PrefixTaken(net("10.200.3.0/24"), name(3))),
        ("10.90.0.0/24", RefusalReason::PrefixForbidden(net("10.90.0.0/24"))),
        ("10.96.0.0/24", RefusalReason::PrefixForbidden(net("10.96.0.0/24"))),
        ("0.0.0.0/0", RefusalReason::PrefixForbidden(net("0.0.0.0/0"))),
        ("127.0.0.0/8", RefusalReason::PrefixForbidden(net("127.0.0.0/8"))),
    ];
    for (claim, expected) in cases {
        // Node 2 comes after node 3 in the order of generations.
        let hostile = with_entry(&view, 3, |entry| entry.generation += 1);
        let hostile = with_entry(&hostile, 2, |entry| entry.pod_cidrs = vec![net(claim)]);
        let plan = plan_for(&hostile, &own);
        assert_eq!(plan.refusals.len(), 1, "{claim}");
        assert_eq!(plan.refusals[0].why, expected, "{claim}");
        assert_eq!(plan.peers.len(), 2);
    }
    let nameless = with_entry(&view, 2, |entry| {
        entry.name = String::new();
        entry.pod_cidrs = vec![net("10.200.1.0/24")];
    });
    assert_eq!(plan_for(&nameless, &own).refusals.len(), 1, "an empty name is not us");
}

#[test]
fn unusable_own_and_doubled_keys_make_no_peer() {
    let view = cluster_of(3);
    let own = own_facts(&view, 1);
    for (bad, why) in [
        (topology::PublicKey::from_bytes([0; 32]), RefusalReason::InvalidKey),
        (key(1), RefusalReason::DuplicateKey(name(1))),
        (key(2), RefusalReason::DuplicateKey(name(2))),
    ] {
        let hostile = with_entry(&view, 3, |entry| entry.public_key = bad);
        let plan = plan_for(&hostile, &own);
        assert_eq!(plan.refusals[0].why, why);
        assert_eq!(plan.peers.keys().collect::<Vec<_>>(), [&key(2)]);
    }
}

#[test]
fn a_copy_of_another_node_configures_no_peer_until_that_one_is_gone() {
    let mut view = cluster_of(4);
    let mut own = own_facts(&view, 4);
    own.public_key = Some(key(2));
    let plan = plan_for(&view, &own);
    assert!(plan.peers.is_empty() && !plan.unreachable.is_empty(), "{plan:?}");
    assert_eq!(plan.refusals[0].why, RefusalReason::KeyOfAnother(name(2)));
    // The original left, and the operator gave its key to nobody yet.
    let mut table = table_of(&view, &own.name);
    view.slices[0].entries.retain(|entry| entry.name != name(2));
    let slices = BTreeMap::from([("peers-0001".to_owned(), view.slices[0].entries.clone())]);
    table.handle_list(slices, vec![], Duration::from_secs(1));
    assert_eq!(plan_node(&own, &view.mesh, &table).peers.len(), 2);
}

#[test]
fn a_held_peer_yields_its_prefix_to_one_that_slices_name() {
    let mut view = cluster_of(4);
    let own = own_facts(&view, 1);
    let mut table = table_of(&view, &own.name);
    let pods = view.nodes[3].pod_cidrs.clone();
    let heir = with_entry(&view, 2, |entry| entry.pod_cidrs = pods.clone());
    view.slices[0].entries = heir.slices[0].entries[..2].to_vec();
    let slices = BTreeMap::from([("peers-0001".to_owned(), view.slices[0].entries.clone())]);
    assert!(table.handle_list(slices, vec![], Duration::from_secs(1)).remove.is_empty());
    let plan = plan_node(&own, &view.mesh, &table);
    assert!(plan.peers[&key(2)].allowed_ips.contains(&pods[0]));
    assert!(plan.peers.contains_key(&key(4)) && !plan.peers[&key(4)].allowed_ips.contains(&pods[0]));
}

#[test]
fn a_suspended_node_configures_no_peer() {
    let view = cluster_of(3);
    let mut own = own_facts(&view, 1);
    own.spec.as_mut().unwrap().suspended = true;
    let plan = plan_for(&view, &own);
    assert!(plan.peers.is_empty() && !plan.unreachable.is_empty());
    assert_eq!(plan.refusals[0].why, RefusalReason::Suspended);
}

#[test]
fn all_nodes_of_one_view_have_each_other() {
    let view = cluster_of(9);
    let plans: Vec<(String, NodePlan)> =
        (1..=9).map(|number| (name(number), plan_for(&view, &own_facts(&view, number)))).collect();
    let mut refs: Vec<(&str, &NodePlan)> = plans.iter().map(|(name, plan)| (&**name, plan)).collect();
    assert!(refs.iter().all(|(_, plan)| plan.peers.len() == 8));
    assert_eq!(check_symmetry(&refs), []);
    let lonely = NodePlan::default();
    refs[0].1 = &lonely;
    assert_eq!(check_symmetry(&refs).len(), 8);
}

#[test]
fn a_prefix_that_moves_is_the_old_peers_until_it_is_the_new_ones() {
    let view = cluster_of(3);
    let own = own_facts(&view, 1);
    let before = plan_for(&view, &own);
    let pods = view.nodes[2].pod_cidrs.clone();
    let moved = with_entry(&view, 3, |entry| entry.pod_cidrs.clear());
    let moved = with_entry(&moved, 2, |entry| entry.pod_cidrs.extend(pods));
    let changes = plan_for(&moved, &own).changes_since(&before);
    let told: Vec<_> = changes.upsert.iter().map(|change| (change.key, change.lent)).collect();
    assert_eq!((changes.remove, told, changes.remove_last), (vec![], vec![(key(2), 0), (key(3), 0)], vec![]));
    let changes = NodePlan::default().changes_since(&before);
    assert_eq!(changes.remove, [key(2), key(3)]);
    // One that is gone leaves when its heir has everything.
    let gone = with_entry(&moved, 3, |entry| entry.public_key = key(9));
    let changes = plan_for(&gone, &own).changes_since(&before);
    assert_eq!((changes.remove, changes.remove_last), (vec![], vec![key(3)]));
}
