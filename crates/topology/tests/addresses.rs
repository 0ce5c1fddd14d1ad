//! Mesh addresses and listen ports.
#![allow(missing_docs, clippy::unwrap_used)]

mod world;

use std::collections::BTreeSet;

use topology::cluster::{ConditionType, EventReason, MeshConditionType, Reason, plan};
use topology::mesh::PortRange;
use world::*;

#[test]
fn the_lowest_free_address_is_given_in_both_families() {
    let mut view = cluster_of(3);
    view.nodes.remove(1);
    step(&mut view);
    let plan = join(&mut view, 9);
    assert_eq!(plan.nodes[&name(1)].spec.mesh_ips, [ip("10.90.0.1"), ip("fd90::1")]);
    assert_eq!(plan.nodes[&name(9)].spec.mesh_ips, [ip("10.90.0.2"), ip("fd90::2")]);
    assert_sound(&view);
}

#[test]
fn an_address_outlives_a_restart_because_it_is_read_back() {
    let mut view = cluster_of(5);
    view.nodes.remove(0);
    let before: Vec<_> = view.mesh_nodes.iter().map(|facts| facts.spec.mesh_ips.clone()).collect();
    let plan = step(&mut view);
    let after: Vec<_> = plan.nodes.values().map(|node| node.spec.mesh_ips.clone()).collect();
    assert_eq!(after, before[1..]);
}

#[test]
fn of_a_duplicate_written_by_hand_the_incumbent_keeps_and_the_newcomer_moves_and_says_so() {
    let mut view = cluster_of(3);
    let stolen = view.mesh_nodes[0].spec.mesh_ips.clone();
    stored(&mut view, &name(3)).spec.mesh_ips = stolen.clone();
    let plan = plan(&view);
    assert_eq!(plan.nodes[&name(1)].spec.mesh_ips, stolen);
    // What peers already have for the newcomer disturbs least.
    assert_eq!(plan.nodes[&name(3)].spec.mesh_ips, [ip("10.90.0.3"), ip("fd90::3")]);
    let condition = condition(&plan, &name(3), ConditionType::AddressReassigned).unwrap();
    assert_eq!(condition.reason, Reason::HeldByOther);
    assert!(condition.message.contains("10.90.0.1") && condition.message.contains(&name(1)), "{}", condition.message);
    assert!(plan.events.iter().any(|event| event.reason == EventReason::AddressReassigned));
    assert_sound(&view);
    let settled = view.after(&plan);
    assert!(plan_conditions(&settled).contains(&ConditionType::AddressReassigned), "the story outlives the defect");
}

fn plan_conditions(view: &topology::cluster::ClusterView) -> Vec<ConditionType> {
    let plan = plan(view);
    plan.nodes[&name(3)].conditions.iter().map(|condition| condition.kind).collect()
}

#[test]
fn what_peers_act_upon_outranks_age() {
    let mut view = cluster_of(2);
    let of_second = view.mesh_nodes[1].spec.mesh_ips.clone();
    stored(&mut view, &name(1)).spec.mesh_ips = of_second.clone();
    let plan = plan(&view);
    assert_eq!(plan.nodes[&name(2)].spec.mesh_ips, of_second);
    assert_eq!(plan.nodes[&name(1)].spec.mesh_ips[0], ip("10.90.0.1"));
}

#[test]
fn without_published_entries_the_older_object_is_the_incumbent() {
    let mut view = cluster_of(2);
    view.slices.clear();
    stored(&mut view, &name(1)).created = 9;
    let contested = view.mesh_nodes[0].spec.mesh_ips.clone();
    stored(&mut view, &name(2)).spec.mesh_ips = contested.clone();
    assert_eq!(plan(&view).nodes[&name(2)].spec.mesh_ips, contested);
}

#[test]
fn garbage_addresses_are_replaced() {
    for garbage in ["10.91.0.1", "10.90.0.0", "10.90.255.255", "127.0.0.1"] {
        let mut view = cluster_of(2);
        view.slices.clear();
        stored(&mut view, &name(2)).spec.mesh_ips = vec![ip(garbage)];
        let plan = plan(&view);
        assert_eq!(plan.nodes[&name(2)].spec.mesh_ips, [ip("10.90.0.2"), ip("fd90::2")], "{garbage}");
        let condition = condition(&plan, &name(2), ConditionType::AddressReassigned).unwrap();
        assert_eq!(condition.reason, Reason::OutOfRange);
        assert_sound(&view);
    }
}

#[test]
fn an_exhausted_pool_is_a_condition_and_the_others_keep_theirs() {
    let mut view = empty();
    view.mesh.ipv4 = "10.90.0.0/30".parse().unwrap();
    view.mesh.ipv6 = None;
    for number in 1..=3 {
        join(&mut view, number);
    }
    let plan = plan(&view);
    assert!(condition(&plan, &name(3), ConditionType::AddressPoolExhausted).is_some());
    assert!(plan.mesh_conditions.iter().any(|raised| raised.kind == MeshConditionType::AddressPoolExhausted));
    assert!(entry(&plan, &name(2)).is_some() && entry(&plan, &name(3)).is_none());
    assert_sound(&view);
}

#[test]
fn an_address_inside_an_overlapping_service_range_is_never_given() {
    let mut view = empty();
    view.mesh.service_cidrs = vec!["10.90.0.0/17".parse().unwrap(), "fd90::/65".parse().unwrap()];
    join(&mut view, 1);
    let plan = plan(&view);
    assert_eq!(plan.nodes[&name(1)].spec.mesh_ips, [ip("10.90.128.0"), ip("fd90::8000:0:0:0")]);
    assert!(plan.mesh_conditions.iter().any(|raised| raised.kind == MeshConditionType::RangesOverlap));
}

#[test]
fn ports_differ_while_the_range_lasts_and_are_shared_evenly_afterwards() {
    let mut view = empty();
    view.mesh.listen_ports = PortRange { first: 100, last: 102 };
    for number in 1..=7 {
        join(&mut view, number);
    }
    let plan = plan(&view);
    let ports: Vec<u16> = plan.nodes.values().map(|node| node.spec.listen_port).collect();
    assert_eq!(ports[..3].iter().collect::<BTreeSet<_>>().len(), 3);
    for port in 100..=102 {
        assert!(ports.iter().filter(|known| **known == port).count() >= 2, "{ports:?}");
    }
    assert_sound(&view);
}

#[test]
fn a_port_out_of_range_or_held_by_an_older_node_is_replaced() {
    let mut view = cluster_of(2);
    stored(&mut view, &name(2)).spec.listen_port = 21820;
    let plan_held = plan(&view);
    assert_eq!(plan_held.nodes[&name(2)].spec.listen_port, 21821);
    assert!(condition(&plan_held, &name(2), ConditionType::AddressReassigned).is_some());
    stored(&mut view, &name(2)).spec.listen_port = 53;
    assert_eq!(plan(&view).nodes[&name(2)].spec.listen_port, 21821);
    assert_sound(&view);
}
