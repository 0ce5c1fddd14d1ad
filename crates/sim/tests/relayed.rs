//! What happens beside a relay, one sentence each. Limits count from the instant when both sides know each other.
#![allow(clippy::unwrap_used)]

mod support;

use std::time::Duration;

use path::{PathState, Reason};
use sim::{Block, Site, World};
use support::{RTT_40, beside, cell, known};

const MS: fn(u64) -> Duration = Duration::from_millis;
const S: fn(u64) -> Duration = Duration::from_secs;
const NODES: [usize; 2] = [0, 1];

/// Two nodes beside a relay that carries data. They start together, and say nothing.
fn quiet_pair(seed: u64, a: Site, b: Site) -> World {
    let mut world = beside(seed, RTT_40, 1);
    let nodes = [world.add_node(a), world.add_node(b)];
    support::start(&mut world, &nodes);
    world
}

/// The same with users that ping each other.
fn relayed_pair(seed: u64, a: Site, b: Site) -> World {
    let mut world = quiet_pair(seed, a, b);
    world.set_pinging(0, 1, true);
    world.set_pinging(1, 0, true);
    world
}

fn ledger(world: &World, node: usize) -> &sim::node::Ledger {
    &world.nodes[node].ledger[&world.nodes[1 - node].key]
}

fn is_relayed(world: &World, node: usize) -> bool {
    world.nodes[node].is_relayed(&world.nodes[1 - node].key)
}

fn are_relayed(world: &World) -> bool {
    NODES.iter().all(|node| is_relayed(world, *node))
}

fn are_direct(world: &World) -> bool {
    NODES.iter().all(|node| cell(world, *node, 1 - node).is_direct())
}

/// How many pings of both users were never answered. Ends the pinging.
fn lost(world: &mut World) -> usize {
    for node in NODES {
        world.set_pinging(node, 1 - node, false);
    }
    world.run_for(S(1));
    NODES.iter().map(|node| ledger(world, *node)).map(|ledger| ledger.unanswered.len()).sum()
}

fn forget_outages(world: &mut World) {
    for node in NODES {
        let peer = world.nodes[1 - node].key;
        let ledger = world.nodes[node].ledger.get_mut(&peer).unwrap();
        ledger.outage = Duration::ZERO;
        ledger.unanswered.clear();
    }
}

fn worst_outage(world: &World) -> Duration {
    NODES.iter().map(|node| ledger(world, *node).outage).max().unwrap()
}

#[test]
fn two_symmetric_nats_talk_at_once_and_stay_relayed() {
    for seed in 0..4 {
        let mut world = relayed_pair(seed, Site::SYMMETRIC, Site::SYMMETRIC);
        world.run_for(S(600));
        for node in NODES {
            let state = ledger(&world, node).state.map(|(_, state)| state);
            let Some(PathState::Relayed { relay, endpoint, rtt, reason, .. }) = state else {
                panic!("seed {seed}: node {node} shows {state:?}");
            };
            assert_eq!((relay, endpoint.ip().to_string().as_str()), (world.relay_id(0), "192.0.2.11"));
            assert_eq!((rtt, reason), (Some(MS(80)), Reason::HardNat));
            // Allocate, BIND, Ready, the handshake and the ping that waited for it.
            let first = ledger(&world, node).first_pong.unwrap() - known(&world);
            assert!(first <= MS(400), "seed {seed}: node {node} after {first:?}");
        }
        assert_eq!(lost(&mut world), 0, "seed {seed}");
        assert_eq!(world.violations, Vec::<String>::new(), "seed {seed}");
    }
}

#[test]
fn both_sides_say_that_the_nat_of_one_draws_its_ports() {
    for sites in [[Site::SYMMETRIC, Site::EASY_HOME], [Site::EASY_HOME, Site::SYMMETRIC]] {
        let mut world = relayed_pair(9, sites[0], sites[1]);
        world.run_for(S(30));
        for node in NODES {
            let state = ledger(&world, node).state.map(|(_, state)| state);
            let says = matches!(state, Some(PathState::Relayed { reason: Reason::HardNat, .. }));
            assert!(says, "{sites:?}: node {node} shows {state:?}");
        }
    }
}

#[test]
fn port_restricted_pairs_start_relayed_and_become_direct_without_losing_a_packet() {
    for seed in 0..20 {
        let mut world = relayed_pair(seed, Site::EASY_HOME, Site::EASY_HOME);
        world.internet.weather.jitter = MS(3);
        world.ping_gap = MS(10);
        world.run_for(S(60));
        assert!(are_direct(&world), "seed {seed}");
        for node in NODES {
            let ledger = ledger(&world, node);
            assert!(ledger.first_relayed < ledger.first_direct, "seed {seed}: node {node} {ledger:?}");
        }
        assert_eq!(lost(&mut world), 0, "seed {seed}");
        assert_eq!(world.allocations(0), 1, "seed {seed}: a warm leg while packets flow");
        world.run_for(S(45));
        assert_eq!(world.allocations(0), 0, "seed {seed}: it is released");
        assert_eq!(world.violations, Vec::<String>::new(), "seed {seed}");
    }
}

#[test]
fn a_direct_pair_keeps_its_leg_for_half_a_minute_and_no_longer() {
    let mut world = quiet_pair(3, Site::EASY_HOME, Site::EASY_HOME);
    world.run_while(S(5), are_direct).unwrap();
    world.run_for(S(29));
    assert_eq!(world.allocations(0), 1);
    world.run_for(S(2));
    assert_eq!(world.allocations(0), 0);
    world.run_for(S(600));
    assert_eq!(world.allocations(0), 0, "nobody asks for it again");
    assert!(are_direct(&world));
}

#[test]
fn a_relay_that_is_restarted_carries_the_same_session_on_within_two_seconds() {
    for seed in 0..10 {
        let mut world = relayed_pair(seed, Site::SYMMETRIC, Site::SYMMETRIC);
        world.run_while(S(5), are_relayed).unwrap();
        world.run_for(S(20));
        forget_outages(&mut world);
        world.stop_relay(0);
        world.run_for(MS(300));
        world.start_relay(0);
        world.run_for(S(30));
        assert!(are_relayed(&world), "seed {seed}");
        assert!(worst_outage(&world) <= S(2), "seed {seed}: {:?}", worst_outage(&world));
        let handshakes =
            world.trace.lines().iter().filter(|line| line.contains("> 192.0.2.11:51900 initiation")).count();
        assert_eq!(handshakes, 1, "seed {seed}: the session went on");
    }
}

#[test]
fn a_direct_path_that_dies_silently_is_left_for_the_relay_and_taken_again_when_it_heals() {
    for seed in 0..10 {
        let mut world = relayed_pair(seed, Site::EASY_HOME, Site::EASY_HOME);
        world.internet.weather.jitter = MS(3);
        world.run_while(S(5), are_direct).unwrap();
        world.run_for(S(if seed % 2 == 0 { 10 } else { 60 }));
        let [a, b] = NODES.map(|node| world.nodes[node].outside);
        forget_outages(&mut world);
        world.internet.cut(a, b, true);
        world.run_for(S(20));
        assert!(are_relayed(&world), "seed {seed}");
        assert!(worst_outage(&world) <= S(3), "seed {seed}: {:?}", worst_outage(&world));
        forget_outages(&mut world);
        world.internet.cut(a, b, false);
        assert!(world.run_while(S(2), are_direct).is_some(), "seed {seed}");
        world.run_for(S(5));
        assert!(are_direct(&world));
        assert_eq!(lost(&mut world), 0, "seed {seed}");
        assert_eq!(world.violations, Vec::<String>::new(), "seed {seed}");
    }
}

#[test]
fn a_direct_path_that_carries_probes_only_is_tried_and_the_relay_goes_on() {
    let mut world = quiet_pair(6, Site::Firewalled, Site::EASY_HOME);
    let id = world.nodes[0].boxes[0];
    let relay = "192.0.2.11".parse().unwrap();
    world.internet.middlebox(id).behaviour.block = Block::WireGuardBut(relay);
    world.set_pinging(0, 1, true);
    world.set_pinging(1, 0, true);
    world.run_for(S(290));
    assert!(are_relayed(&world));
    for node in NODES {
        let Some((_, PathState::Relayed { reason, .. })) = ledger(&world, node).state else { panic!("not relayed") };
        assert_eq!(reason, Reason::DataBlocked);
        assert_eq!(ledger(&world, node).first_direct, None);
        assert!(ledger(&world, node).outage <= MS(2700));
    }
}

#[test]
fn without_its_relay_a_direct_pair_goes_on_and_a_new_one_is_probed_without() {
    let mut world = relayed_pair(7, Site::EASY_HOME, Site::EASY_HOME);
    world.run_while(S(5), are_direct).unwrap();
    world.run_for(S(1));
    forget_outages(&mut world);
    world.stop_relay(0);
    let late = world.add_node(Site::EASY_HOME);
    world.start_after(late, Duration::ZERO);
    world.run_for(S(30));
    assert!(are_direct(&world));
    assert!(worst_outage(&world) <= MS(150), "{:?}", worst_outage(&world));
    assert!(cell(&world, late, 0).is_direct() && cell(&world, 1, late).is_direct());
}

#[test]
fn a_relayed_pair_whose_relay_is_gone_moves_to_the_other_one() {
    for seed in 0..10 {
        let mut world = relayed_pair_of_two(seed);
        world.run_while(S(5), are_relayed).unwrap();
        world.run_for(S(10));
        let used = relay_in_use(&world);
        forget_outages(&mut world);
        world.stop_relay(used);
        world.run_for(S(20));
        assert!(are_relayed(&world), "seed {seed}");
        assert_eq!(relay_in_use(&world), 1 - used, "seed {seed}");
        assert!(worst_outage(&world) <= S(1), "seed {seed}: {:?}", worst_outage(&world));
        // It does not run back when the first one is there again, which is the warm one now.
        forget_outages(&mut world);
        world.start_relay(used);
        world.run_for(S(60));
        assert_eq!(relay_in_use(&world), 1 - used, "seed {seed}");
        assert_eq!(world.allocations(used), 1, "seed {seed}");
        assert_eq!(lost(&mut world), 0, "seed {seed}");
    }
}

#[test]
fn a_relay_that_is_killed_without_a_word_costs_a_second() {
    let mut outages = Vec::new();
    for seed in 0..100 {
        let mut world = relayed_pair_of_two(seed);
        world.internet.weather.jitter = MS(3);
        world.run_while(S(5), are_relayed).unwrap();
        world.run_for(S(10) + MS(seed * 13));
        let used = relay_in_use(&world);
        forget_outages(&mut world);
        world.kill_relay(used);
        world.run_for(S(20));
        assert!(are_relayed(&world), "seed {seed}");
        assert_eq!(relay_in_use(&world), 1 - used, "seed {seed}");
        outages.push(worst_outage(&world));
        forget_outages(&mut world);
        world.run_for(S(20));
        assert_eq!(lost(&mut world), 0, "seed {seed}");
        assert_eq!(world.violations, Vec::<String>::new(), "seed {seed}");
    }
    outages.sort();
    eprintln!("killed relay: median {:?}, p95 {:?}, most {:?}", outages[50], outages[95], outages[99]);
    assert!(outages[95] <= S(1) && outages[99] <= S(3), "{outages:?}");
}

#[test]
fn a_direct_pair_that_falls_silent_goes_on_at_its_warm_leg_within_a_second() {
    let mut outages = Vec::new();
    for seed in 0..40 {
        let mut world = relayed_pair(seed, Site::EASY_HOME, Site::EASY_HOME);
        world.internet.weather.jitter = MS(3);
        world.run_while(S(5), are_direct).unwrap();
        world.run_for(S(100) + MS(seed * 13));
        let [a, b] = NODES.map(|node| world.nodes[node].outside);
        forget_outages(&mut world);
        world.internet.cut(a, b, true);
        world.run_for(S(20));
        assert!(are_relayed(&world), "seed {seed}");
        outages.push(worst_outage(&world));
    }
    outages.sort();
    eprintln!("direct path cut: median {:?}, p95 {:?}, most {:?}", outages[20], outages[38], outages[39]);
    assert!(outages[38] <= MS(1200), "{outages:?}");
}

#[test]
fn agents_that_hear_late_do_not_drive_a_pair_from_relay_to_relay() {
    for seed in 0..10 {
        let mut world = relayed_pair_of_two(seed);
        world.agent_lag = MS(900);
        world.run_while(S(20), are_relayed).unwrap();
        world.run_for(S(10));
        for node in NODES {
            let peer = world.nodes[1 - node].key;
            world.nodes[node].ledger.get_mut(&peer).unwrap().changes = 0;
        }
        world.run_for(S(120));
        let changes = NODES.iter().map(|node| ledger(&world, *node).changes).max().unwrap();
        assert!(changes <= 4, "seed {seed}: {changes} changes");
        assert_eq!(lost(&mut world), 0, "seed {seed}");
    }
}

/// The relay that the nominator, and so everybody, shows.
fn relay_in_use(world: &World) -> usize {
    let state = ledger(world, 0).state.map(|(_, state)| state);
    let Some(PathState::Relayed { relay, .. }) = state else { panic!("not relayed: {state:?}") };
    (0..world.relays()).find(|index| world.relay_id(*index) == relay).unwrap()
}

#[test]
fn a_relay_that_drains_is_left_without_losing_a_packet() {
    for seed in 0..10 {
        let mut world = relayed_pair_of_two(seed);
        world.internet.weather.jitter = MS(3);
        world.ping_gap = MS(10);
        world.run_while(S(5), are_relayed).unwrap();
        world.run_for(S(10));
        let used = relay_in_use(&world);
        forget_outages(&mut world);
        world.drain_relay(used);
        world.run_for(S(20));
        assert!(are_relayed(&world), "seed {seed}");
        assert_eq!(relay_in_use(&world), 1 - used, "seed {seed}");
        assert_eq!([world.allocations(used), world.allocations(1 - used)], [0, 1], "seed {seed}");
        assert_eq!(lost(&mut world), 0, "seed {seed}");
    }
}

#[test]
fn a_pair_whose_relays_all_drain_goes_on_where_it_is() {
    for seed in 0..4 {
        let mut world = relayed_pair_of_two(seed);
        world.run_while(S(5), are_relayed).unwrap();
        world.run_for(S(10));
        let used = relay_in_use(&world);
        forget_outages(&mut world);
        world.drain_relay(used);
        world.drain_relay(1 - used);
        world.run_for(S(20));
        assert!(are_relayed(&world), "seed {seed}");
        assert_eq!(lost(&mut world), 0, "seed {seed}");
    }
}

#[test]
fn an_agent_that_starts_anew_leaves_a_relayed_pair_alone() {
    for seed in 0..10 {
        let mut world = relayed_pair(seed, Site::SYMMETRIC, Site::SYMMETRIC);
        world.run_while(S(5), are_relayed).unwrap();
        world.run_for(S(10));
        forget_outages(&mut world);
        world.restart_agent(usize::try_from(seed % 2).unwrap(), false);
        world.run_for(S(30));
        assert!(are_relayed(&world), "seed {seed}");
        assert_eq!(lost(&mut world), 0, "seed {seed}");
        assert_eq!(world.violations, Vec::<String>::new(), "seed {seed}");
    }
}

#[test]
fn a_peer_that_lost_its_session_is_talked_to_again_by_relay() {
    for seed in 0..10 {
        let mut world = relayed_pair(seed, Site::SYMMETRIC, Site::SYMMETRIC);
        world.run_while(S(5), are_relayed).unwrap();
        world.run_for(S(30));
        forget_outages(&mut world);
        world.restart_agent(usize::try_from(seed % 2).unwrap(), true);
        world.run_for(S(30));
        assert!(are_relayed(&world), "seed {seed}");
        assert!(worst_outage(&world) <= S(7), "seed {seed}: {:?}", worst_outage(&world));
    }
}

/// Two nodes that no probing connects, beside two relays.
fn relayed_pair_of_two(seed: u64) -> World {
    let mut world = beside(seed, RTT_40, 2);
    let nodes = [world.add_node(Site::SYMMETRIC), world.add_node(Site::SYMMETRIC)];
    support::start(&mut world, &nodes);
    world.set_pinging(0, 1, true);
    world.set_pinging(1, 0, true);
    world
}
