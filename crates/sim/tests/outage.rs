//! How long a pair is silent when something ends, from the first packet of its users on: no warm leg had time to come about.
#![allow(clippy::unwrap_used)]

mod support;

use std::time::Duration;

use path::PathState;
use sim::{Signalling, Site, World};
use support::RTT_40;

const MS: fn(u64) -> Duration = Duration::from_millis;
const S: fn(u64) -> Duration = Duration::from_secs;
const NODES: [usize; 2] = [0, 1];
/// Users ping as often as the lab's benchmark does.
const OFTEN: Duration = Duration::from_millis(20);

/// A pair beside two relays that was left alone for a while.
fn rested(seed: u64, site: Site) -> World {
    let mut world = World::new(seed, RTT_40);
    world.internet.weather.jitter = MS(3);
    world.signalling = Some(Signalling { delay: (MS(40), MS(40)), loss: 0, ordered: true });
    world.forwarding = true;
    world.ping_gap = OFTEN;
    world.add_relay();
    for node in NODES.map(|_| world.add_node(site)) {
        world.set_kernel(node, false);
        world.start_after(node, Duration::ZERO);
    }
    world.run_for(S(60) + MS(seed * 37));
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
