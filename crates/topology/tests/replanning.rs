//! A changed peer is planned alone, and that gives what planning all of them gives.
#![allow(missing_docs, clippy::unwrap_used)]

mod world;

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use proptest::collection::vec;
use proptest::prelude::*;
use topology::check::check_node;
use topology::node::{Delta, NodePlanner, PeerTable, PlanChange, SelfFacts, plan_node};
use topology::peer::Entry;
use world::*;

fn net(text: &str) -> ipnet::IpNet {
    text.parse().unwrap()
}

/// A peer that has everything of its own.
fn entry(number: u16, generation: u64) -> Entry {
    let [high, low] = number.to_be_bytes();
    Entry {
        name: name(number),
        uid: (&*format!("uid-{number}")).into(),
        public_key: key(number),
        next_public_key: None,
        mesh_ips: vec![ip(&format!("10.90.{high}.{low}"))],
        pod_cidrs: vec![net(&format!("10.{}.{low}.0/24", 200 + high))],
        node_ips: Vec::new(),
        routes: Vec::new(),
        listen_port: 21820,
        location: None,
        classes: Vec::new(),
        candidates: vec![candidate(&format!("203.0.{high}.{low}:21820"))],
        round: 0,
        generation,
    }
}

fn own() -> SelfFacts {
    let spec = topology::spec::NodeSpec { mesh_ips: vec![ip("10.90.255.1")], ..Default::default() };
    SelfFacts {
        name: "own".into(),
        public_key: Some(key(9_999)),
        spec: Some(spec),
        connected: vec![net("192.168.7.0/24")],
        ..SelfFacts::default()
    }
}

fn changed(delta: &Delta) -> BTreeSet<String> {
    delta.upsert.iter().chain(delta.remove.iter().map(|(name, _)| name)).cloned().collect()
}

#[test]
fn peers_that_did_not_change_are_not_planned_again() {
    let mesh = cluster_of(0).mesh;
    let mut table = PeerTable::new("own");
    let mut planner = NodePlanner::default();
    for slice in 0..10 {
        let entries = (slice * 64 + 1..=slice * 64 + 64).map(|n| entry(n, 1)).collect();
        table.handle_slice(&format!("s{slice}"), entries, Duration::ZERO);
    }
    planner.update(&own(), &mesh, &table, None);
    let (before, revision) = (planner.plan().clone(), planner.revision());

    let mut entries: Vec<Entry> = (1..=63).map(|n| entry(n, 1)).collect();
    entries.push(Entry { pod_cidrs: vec![net("10.220.0.0/24")], ..entry(64, 2) });
    let delta = table.handle_slice("s0", entries, Duration::ZERO);
    assert_eq!(changed(&delta), BTreeSet::from([name(64)]));
    let change = planner.update(&own(), &mesh, &table, Some(&changed(&delta)));
    assert_eq!(change.peers.keys().collect::<Vec<_>>(), [&key(64)]);
    assert_eq!(planner.revision(), revision + 1);
    let untouched = |key| Arc::ptr_eq(&before.peers[key], &planner.plan().peers[key]);
    assert_eq!(before.peers.keys().filter(|key| !untouched(key)).collect::<Vec<_>>(), [&key(64)]);
    assert_eq!(*planner.plan(), plan_node(&own(), &mesh, &table));
    // A generation alone is no change of the plan.
    let delta = table.handle_slice("s9", (577..=640).map(|n| entry(n, 7)).collect(), Duration::ZERO);
    assert!(planner.update(&own(), &mesh, &table, Some(&changed(&delta))).is_empty());
    assert_eq!(planner.revision(), revision + 1);
}

/// Entries that get into each other's way: few keys and prefixes for all, and candidates in somebody's pods.
fn quarrelsome() -> impl Strategy<Value = Entry> {
    let pods = prop_oneof![
        5 => (0..12u8).prop_map(|n| format!("10.200.{n}.0/24")),
        1 => Just("10.200.0.0/22".to_owned()),
        1 => Just("192.168.7.0/26".to_owned()),
        1 => Just("10.90.4.0/24".to_owned()),
        1 => Just("224.0.0.0/24".to_owned()),
    ];
    let candidates =
        prop_oneof![3 => Just("203.0.113.9".to_owned()), 1 => (0..12u8).prop_map(|n| format!("10.200.{n}.7"))];
    (1..9u16, 0..3u64, 0..12u16, 0..12u8, vec(pods, 0..3), vec(candidates, 0..2)).prop_map(
        |(number, generation, own_key, mesh_ip, pods, candidates)| Entry {
            public_key: if own_key == 0 { key(9_999) } else { key(if own_key < 3 { own_key } else { number }) },
            mesh_ips: vec![ip(&format!("10.90.0.{}", if mesh_ip < 3 { mesh_ip.into() } else { 100 + number }))],
            pod_cidrs: pods.iter().map(|pod| net(pod)).collect(),
            candidates: candidates.iter().map(|addr| candidate(&format!("{addr}:1"))).collect(),
            ..entry(number, generation)
        },
    )
}

proptest! {
    #![proptest_config(config(300))]

    #[test]
    fn planning_what_changed_is_planning_everything(
        steps in vec((0..3u8, vec(quarrelsome(), 0..4), any::<bool>()), 1..30),
    ) {
        let mesh = cluster_of(0).mesh;
        let mut table = PeerTable::new("own");
        let mut planner = NodePlanner::default();
        let mut followed = Default::default();
        let mut names = BTreeSet::new();
        for (slice, entries, told) in steps {
            names.extend(changed(&table.handle_slice(&format!("s{slice}"), entries, Duration::ZERO)));
            // Several changes may come before the planner has its turn.
            if told {
                let change: PlanChange = planner.update(&own(), &mesh, &table, Some(&std::mem::take(&mut names)));
                change.apply(&mut followed);
                prop_assert_eq!(planner.plan(), &plan_node(&own(), &mesh, &table));
                prop_assert_eq!(&followed, &planner.plan().peers);
                prop_assert_eq!(check_node(&own(), &mesh, &table, planner.plan()), vec![]);
            }
        }
    }
}
