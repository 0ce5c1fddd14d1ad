//! How long a pair is silent when something ends, from the first packet of its users on: no warm leg had time to come about.
#![allow(clippy::unwrap_used)]

mod support;

use std::time::Duration;

use path::PathState;
use sim::{Site, World};
use support::{UNEVEN_40, beside, cell};

const MS: fn(u64) -> Duration = Duration::from_millis;
const S: fn(u64) -> Duration = Duration::from_secs;
const NODES: [usize; 2] = [0, 1];
/// Users ping as often as the lab's benchmark does.
const OFTEN: Duration = Duration::from_millis(20);

/// A pair beside two relays that was left alone for a while.
fn rested(seed: u64, site: Site) -> World {
    let mut world = beside(seed, UNEVEN_40, 2);
    world.ping_gap = OFTEN;
    for node in NODES.map(|_| world.add_node(site)) {
        world.set_kernel(node, false);
        world.start_after(node, Duration::ZERO);
    }
    world.run_for(S(60) + MS(seed * 37));
    world
}

/// A pair that has just become direct.
fn young_pair(seed: u64) -> World {
    let mut world = beside(seed, UNEVEN_40, 2);
    world.ping_gap = OFTEN;
    for node in NODES.map(|_| world.add_node(Site::EASY_HOME)) {
        world.set_kernel(node, false);
        world.start_after(node, Duration::ZERO);
    }
    let are_direct = |world: &World| NODES.iter().all(|node| cell(world, *node, 1 - node).is_direct());
    world.run_while(S(30), are_direct).unwrap();
    world
}

/// The user of one of them pings from now on.
fn talk(world: &mut World, from: usize, time: Duration) {
    world.set_pinging(from, 1 - from, true);
    world.run_for(time);
    let peer = world.nodes[1 - from].key;
    let ledger = world.nodes[from].ledger.get_mut(&peer).unwrap();
    ledger.outage = Duration::ZERO;
    ledger.unanswered.clear();
}

fn ledger(world: &World, node: usize) -> &sim::node::Ledger {
    &world.nodes[node].ledger[&world.nodes[1 - node].key]
}

fn relay_in_use(world: &World) -> usize {
    let state = ledger(world, 0).state.map(|(_, state)| state);
    let Some(PathState::Relayed { relay, .. }) = state else { panic!("not relayed: {state:?}") };
    (0..world.relays()).find(|index| world.relay_id(*index) == relay).unwrap()
}

/// Pings of this user that were never answered, and the longest time without an answer.
fn stop(world: &mut World, from: usize) -> (usize, Duration) {
    world.set_pinging(from, 1 - from, false);
    world.run_for(S(1));
    let ledger = ledger(world, from);
    (ledger.unanswered.len(), ledger.outage)
}

#[test]
fn a_relay_that_is_told_to_end_costs_no_ping_however_young_the_traffic_is_and_whoever_sends_it() {
    for seed in 0..30 {
        for young in [300, 1000, 2500, 5000] {
            let from = usize::try_from(seed % 2).unwrap();
            let mut world = rested(seed, Site::SYMMETRIC);
            talk(&mut world, from, MS(young));
            let used = relay_in_use(&world);
            world.drain_relay(used);
            world.run_for(S(3));
            world.kill_relay(used);
            world.run_for(S(1));
            world.replace_relay(used);
            world.run_for(S(10));
            let (lost, outage) = stop(&mut world, from);
            assert_eq!(lost, 0, "seed {seed}, {young} ms old: {outage:?}");
        }
    }
}

#[test]
fn an_agent_that_comes_back_without_its_session_has_its_first_ping_soon_whichever_side_it_is() {
    for (seed, restarts) in (0..20).flat_map(|seed| NODES.map(|node| (seed, node))) {
        let mut world = rested(seed, Site::SYMMETRIC);
        talk(&mut world, restarts, S(1));
        world.stop_agent(restarts);
        world.run_for(MS(700));
        let peer = world.nodes[1 - restarts].key;
        world.nodes[restarts].ledger.get_mut(&peer).unwrap().first_pong = None;
        world.restart_agent(restarts, true);
        let start = world.now;
        world.run_for(S(5));
        let first = ledger(&world, restarts).first_pong.unwrap() - start;
        // A channel, word of it to the peer, whose handshake comes at once, what confirms it, and the ping.
        assert!(first <= MS(320), "seed {seed}, node {restarts}: {first:?}");
    }
}

/// Longest silences, least first.
fn show(what: &str, mut silences: Vec<Duration>) -> Vec<Duration> {
    silences.sort();
    let count = silences.len();
    let at = |percent: usize| silences[(count - 1) * percent / 100];
    eprintln!("{what}: {count} runs, median {:?}, p95 {:?}, most {:?}", at(50), at(95), at(100));
    silences
}

/// What is to be seen of silences if traffic is old enough to have been noticed.
fn assert_short(what: &str, silences: Vec<Duration>) {
    let silences = show(what, silences);
    assert!(silences.last() <= Some(&S(1)), "{what}: {silences:?}");
}

#[test]
fn a_relay_that_is_killed_is_left_within_a_second_by_traffic_of_any_age() {
    for (young, comes_back) in [(1000, false), (1000, true), (2000, false), (2500, true), (5000, false)] {
        let mut silences = Vec::new();
        for seed in 0..40 {
            let from = usize::try_from(seed % 2).unwrap();
            let mut world = rested(seed, Site::SYMMETRIC);
            talk(&mut world, from, MS(young));
            let used = relay_in_use(&world);
            world.kill_relay(used);
            if comes_back {
                world.run_for(MS(300));
                world.start_relay(used);
            }
            world.run_for(S(10));
            silences.push(stop(&mut world, from).1);
        }
        assert_short(&format!("relay killed, traffic {young} ms old, comes back: {comes_back}"), silences);
    }
}

#[test]
fn relays_that_are_killed_one_after_the_other_are_each_left_within_a_second() {
    let mut silences = Vec::new();
    for seed in 0..20 {
        let from = usize::try_from(seed % 2).unwrap();
        let mut world = rested(seed, Site::SYMMETRIC);
        talk(&mut world, from, S(5));
        for _ in 0..5 {
            let used = relay_in_use(&world);
            world.kill_relay(used);
            world.run_for(S(2));
            world.start_relay(used);
            world.run_for(S(8) + MS(seed * 13));
        }
        silences.push(stop(&mut world, from).1);
    }
    assert_short("relays killed in turn", silences);
}

#[test]
fn a_direct_path_that_falls_silent_is_left_within_a_second_and_taken_again_without_losing_a_ping() {
    for young in [1000, 2000, 2500, 5000] {
        let mut silences = Vec::new();
        for seed in 0..40 {
            let from = usize::try_from(seed % 2).unwrap();
            let mut world = rested(seed, Site::EASY_HOME);
            talk(&mut world, from, MS(young));
            let [a, b] = NODES.map(|node| world.nodes[node].outside);
            // What the peer says of it may come when its packets have led the device already, or never.
            world.signalling.iter_mut().for_each(|signalling| signalling.loss = if seed < 20 { 100 } else { 0 });
            world.internet.cut(a, b, true);
            world.run_for(S(3));
            let are_relayed = NODES.iter().all(|node| world.nodes[*node].is_relayed(&world.nodes[1 - node].key));
            assert!(are_relayed, "seed {seed}, {young} ms old: who only answers is told as well");
            world.run_for(S(2));
            silences.push(stop(&mut world, from).1);
            talk(&mut world, from, MS(600));
            world.internet.cut(a, b, false);
            world.run_for(S(5));
            assert!(NODES.iter().all(|node| cell(&world, *node, 1 - node).is_direct()), "seed {seed}");
            assert_eq!(stop(&mut world, from).0, 0, "seed {seed}, {young} ms old");
        }
        assert_short(&format!("direct path cut, traffic {young} ms old"), silences);
    }
}

#[test]
fn who_only_answers_says_relayed_as_soon_as_that_carries_also_if_the_path_that_died_was_young() {
    for (seed, young) in (0..20).flat_map(|seed| [300, 600, 2500].map(|young| (seed, young))) {
        let from = usize::try_from(seed % 2).unwrap();
        let mut world = young_pair(seed);
        world.run_for(S(1));
        // Nobody tells it. Its device was at the relay until a moment ago, and is led there again.
        world.signalling.iter_mut().for_each(|signalling| signalling.loss = 100);
        talk(&mut world, from, MS(young));
        let [a, b] = NODES.map(|node| world.nodes[node].outside);
        world.internet.cut(a, b, true);
        let are_relayed =
            |world: &World| NODES.iter().all(|node| world.nodes[*node].is_relayed(&world.nodes[1 - node].key));
        let cut = world.now;
        let relayed = world.run_while(S(3), are_relayed);
        assert!(relayed.is_some(), "seed {seed}, {young} ms old: not after {:?}", world.now - cut);
    }
}

#[test]
fn traffic_that_has_only_begun_is_silent_for_as_long_as_it_takes_to_be_seen() {
    for (what, site) in [("relay killed", Site::SYMMETRIC), ("direct path cut", Site::EASY_HOME)] {
        let mut silences = Vec::new();
        for seed in 0..40 {
            let from = usize::try_from(seed % 2).unwrap();
            let mut world = rested(seed, site);
            talk(&mut world, from, MS(300));
            if site == Site::SYMMETRIC {
                let used = relay_in_use(&world);
                world.kill_relay(used);
            } else {
                let [a, b] = NODES.map(|node| world.nodes[node].outside);
                world.internet.cut(a, b, true);
            }
            world.run_for(S(10));
            silences.push(stop(&mut world, from).1);
        }
        let silences = show(&format!("{what}, traffic 300 ms old"), silences);
        assert!(silences.last() <= Some(&MS(1500)), "{silences:?}");
    }
}

#[test]
fn a_leg_that_is_not_in_use_outlives_a_nat_that_forgets_after_half_a_minute() {
    let mut silences = Vec::new();
    for seed in 0..20 {
        let from = usize::try_from(seed % 2).unwrap();
        let mut world = rested(seed, Site::SYMMETRIC);
        for id in NODES.into_iter().flat_map(|node| world.nodes[node].boxes.clone()).collect::<Vec<_>>() {
            world.internet.middlebox(id).behaviour.timeout = S(30);
        }
        talk(&mut world, from, S(45) + MS(seed * 613));
        let used = relay_in_use(&world);
        world.kill_relay(used);
        world.run_for(S(10));
        silences.push(stop(&mut world, from).1);
    }
    assert_short("relay killed, NATs forget after 30 s", silences);
}
