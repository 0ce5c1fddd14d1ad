//! What a pair makes of relays that go and come back.
#![allow(clippy::unwrap_used)]

mod support;

use std::time::Duration;

use path::{LegPhase, PathState};
use sim::{Site, World};
use support::{UNEVEN_40, beside};

const MS: fn(u64) -> Duration = Duration::from_millis;
const S: fn(u64) -> Duration = Duration::from_secs;
const NODES: [usize; 2] = [0, 1];
/// How soon after both channels are there the pair is at rest.
const SOON: Duration = Duration::from_secs(5);
const SEEDS: u64 = 12;

/// What becomes of a relay.
#[derive(Debug, Clone, Copy)]
enum Fate {
    /// It is cut off, and comes back before its channels are given up.
    Dark,
    /// It is cut off and comes back as it was.
    Cut,
    /// It is killed and started in its place.
    Killed,
    /// The same with another key.
    Replaced,
}

/// Two nodes that no probing connects, beside some relays, at rest. Their users ping each other, or one of them does.
fn pair(seed: u64, relays: usize) -> World {
    let mut world = beside(seed, UNEVEN_40, relays);
    let nodes = NODES.map(|_| world.add_node(Site::SYMMETRIC));
    support::start(&mut world, &nodes);
    world.set_pinging(0, 1, true);
    if !seed.is_multiple_of(3) {
        world.set_pinging(1, 0, true);
    }
    world.run_while(S(10), |world| unrest(world).is_none()).unwrap();
    world.run_for(S(5 + seed % 20) + MS(seed * 17 % 1000));
    // From now on nodes notice and hear of things, and come back, each in its own time.
    world.channel_idle = (MS(100), S(15));
    world.agent_lag = MS(seed % 5 * 60);
    world.reconnect = (MS(100), if seed.is_multiple_of(2) { S(1) } else { S(15) });
    world.directory_delay = (MS(100), if seed % 4 < 2 { S(1) } else { S(8) });
    world
}

fn go_and_come_back(world: &mut World, relay: usize, fate: Fate, away: Duration) {
    match fate {
        Fate::Dark => world.darken_relay(relay),
        Fate::Cut => world.cut_relay(relay),
        Fate::Killed | Fate::Replaced => world.kill_relay(relay),
    }
    world.run_for(away);
    match fate {
        Fate::Dark | Fate::Cut => world.heal_relay(relay),
        Fate::Killed => world.start_relay(relay),
        Fate::Replaced => world.replace_relay(relay),
    }
}

/// Once both nodes have channels to all relays, the pair comes to rest within some seconds, and is never long without.
fn rests(world: &mut World, what: &str) {
    let all: Vec<usize> = (0..world.relays()).collect();
    rests_beside(world, &all, what);
}

/// The same with channels to these relays.
fn rests_beside(world: &mut World, relays: &[usize], what: &str) {
    let has_all = |world: &World| NODES.iter().all(|node| relays.iter().all(|relay| world.has_channel(*relay, *node)));
    let back = world.run_while(S(60), has_all).unwrap();
    for _ in 0..20 {
        let rest = world.run_while(SOON, |world| unrest(world).is_none());
        let now = world.now;
        assert!(
            rest.is_some(),
            "{what}: not at rest at {now:?}, back at {back:?}: {}",
            unrest(world).unwrap_or_default()
        );
        world.run_for(S(3));
    }
}

/// What is wrong with the pair, if it is to be at rest.
fn unrest(world: &World) -> Option<String> {
    let mut views = Vec::new();
    for node in NODES {
        let machine = &world.nodes[node];
        let peer = world.nodes[1 - node].key;
        let Some(snapshot) = machine.engine.as_ref().map(path::Engine::snapshot) else {
            return Some("no agent".into());
        };
        let Some(report) = snapshot.peers.get(&peer) else { return Some("no peer".into()) };
        let PathState::Relayed { relay, endpoint, .. } = report.state else {
            return Some(format!("n{node} shows {:?}, legs {:?}", report.state, report.legs));
        };
        let is_ready = |leg: &path::LegReport| leg.relay == relay && leg.phase == LegPhase::Ready;
        if !report.legs.iter().any(is_ready) {
            return Some(format!("n{node} names {relay} and has {:?}", report.legs));
        }
        let device = machine.device.endpoint(&peer);
        if device != Some(endpoint) {
            return Some(format!("n{node} names {endpoint} and sends to {device:?}"));
        }
        views.push((relay, endpoint));
        let last = machine.ledger[&peer].last_pong.unwrap_or_default();
        if !machine.ledger[&peer].unanswered.is_empty() && world.now > last + S(1) {
            return Some(format!("n{node} silent since {last:?}"));
        }
    }
    (views[0] != views[1]).then(|| format!("{views:?}"))
}

/// The relay in use, if there is one.
fn relay_in_use(world: &World) -> Option<usize> {
    match world.nodes[0].state(&world.nodes[1].key)? {
        PathState::Relayed { endpoint, .. } => (0..world.relays()).find(|r| world.relay_address(*r) == endpoint.ip()),
        _ => None,
    }
}

#[test]
fn the_only_relay_carries_a_pair_again_whenever_its_channels_come_back() {
    for seed in 0..SEEDS {
        for fate in [Fate::Dark, Fate::Cut, Fate::Killed, Fate::Replaced] {
            let mut world = pair(seed, 1);
            for round in 0..3 {
                let away = MS(200 + (seed * 37 + round * 411) % 4000);
                go_and_come_back(&mut world, 0, fate, away);
                rests(&mut world, &format!("seed {seed} {fate:?} {round}"));
            }
        }
    }
}

#[test]
fn both_ends_agree_on_a_relay_after_relays_went_and_came_back() {
    for seed in 0..SEEDS {
        for fate in [Fate::Dark, Fate::Cut, Fate::Killed, Fate::Replaced] {
            let mut world = pair(seed, 2);
            for round in 0..4 {
                let used = relay_in_use(&world).unwrap();
                let one = if (seed / 4 + round) % 4 == 0 { 1 - used } else { used };
                let away = MS(200 + (seed * 37 + round * 411) % 8000);
                go_and_come_back(&mut world, one, fate, away);
                rests(&mut world, &format!("seed {seed} {fate:?} {round}"));
            }
        }
    }
}

#[test]
fn the_relay_that_is_left_carries_a_pair_although_the_other_one_stays_away() {
    for seed in 0..SEEDS {
        for fate in [Fate::Dark, Fate::Cut, Fate::Killed, Fate::Replaced] {
            let mut world = pair(seed, 2);
            let used = relay_in_use(&world).unwrap();
            let away = if seed % 4 < 2 { used } else { 1 - used };
            world.cut_relay(away);
            world.run_for(S(seed * 5));
            for round in 0..3 {
                let time = MS(200 + (seed * 37 + round * 411) % 4000);
                go_and_come_back(&mut world, 1 - away, fate, time);
                rests_beside(&mut world, &[1 - away], &format!("seed {seed} {fate:?} {round}"));
            }
        }
    }
}

/// Their users ping each other. Nobody's agent knows of the other's legs, which outlive both on the relays.
#[test]
fn agents_that_start_anew_both_have_their_warm_leg_again() {
    let is_warm = |world: &World| NODES.iter().all(|node| ready_legs(world, *node) == 2);
    for seed in (0..SEEDS).filter(|seed| !seed.is_multiple_of(3)) {
        for order in [vec![0], vec![1], vec![0, 1], vec![1, 0]] {
            let mut world = pair(seed, 2);
            assert!(world.run_while(S(60), is_warm).is_some(), "seed {seed}: not warm at first");
            for node in &order {
                world.restart_agent(*node, false);
                world.run_for(S(seed));
            }
            let legs = |world: &World| NODES.map(|node| ready_legs(world, node));
            assert!(world.run_while(S(60), is_warm).is_some(), "seed {seed}, {order:?}: {:?}", legs(&world));
        }
    }
}

fn ready_legs(world: &World, node: usize) -> usize {
    let legs = world.nodes[node].engine.as_ref().map(|engine| {
        let snapshot = engine.snapshot();
        let peer = snapshot.peers.get(&world.nodes[1 - node].key);
        peer.map_or(0, |peer| peer.legs.iter().filter(|leg| leg.phase == LegPhase::Ready).count())
    });
    legs.unwrap_or_default()
}

#[test]
fn a_relay_that_starts_anew_in_its_place_carries_within_two_seconds_although_nothing_was_said_over_its_channel() {
    for seed in 0..SEEDS {
        let mut world = pair(seed, 1);
        // Longer than anybody waits.
        world.channel_idle = (S(15), S(15));
        world.reconnect = (MS(100), MS(400));
        world.kill_relay(0);
        world.run_for(MS(500 + seed * 200));
        world.start_relay(0);
        let start = world.now;
        let rest = world.run_while(S(30), |world| unrest(world).is_none()).unwrap();
        assert!(rest - start <= S(2), "seed {seed}: {:?}", rest - start);
    }
}

#[test]
fn both_ends_name_one_relay_soon_after_the_one_that_they_went_to_has_gone_as_well() {
    for seed in 0..20 {
        for gap in [1000, 1500, 2000] {
            let mut world = pair(seed, 2);
            (world.ping_gap, world.agent_lag) = (MS(20), Duration::ZERO);
            (world.channel_idle, world.reconnect) = ((MS(100), S(3)), (MS(100), MS(400)));
            world.set_pinging(1, 0, seed.is_multiple_of(2));
            world.run_for(S(5));
            // Whoever comes back knows nothing.
            let first = relay_in_use(&world).unwrap();
            world.kill_relay(first);
            world.run_for(MS(gap / 2));
            world.start_relay(first);
            world.run_for(MS(gap / 2));
            let Some(second) = relay_in_use(&world) else { continue };
            world.kill_relay(second);
            world.run_for(MS(700));
            world.start_relay(second);
            world.run_for(S(2));
            let at_rest = (0..100).filter(|_| {
                world.run_for(MS(50));
                unrest(&world).is_none()
            });
            assert!(at_rest.count() >= 95, "seed {seed}, {gap} ms apart: {:?}", unrest(&world));
        }
    }
}

#[test]
fn the_only_relay_carries_as_soon_with_another_key_as_with_the_one_that_it_had_but_for_the_word_of_it() {
    for fate in [Fate::Killed, Fate::Replaced] {
        let mut times = Vec::new();
        for seed in 0..40 {
            let mut world = pair(seed, 1);
            world.agent_lag = Duration::ZERO;
            // What a status, a watch and its reader take; and an agent that has tried in vain for as long as a pod takes to start.
            (world.directory_delay, world.reconnect) = ((MS(100), MS(300)), (MS(100), MS(1600)));
            world.kill_relay(0);
            world.run_for(S(2) + MS(seed * 20));
            match fate {
                Fate::Killed => world.start_relay(0),
                _ => world.replace_relay(0),
            }
            let start = world.now;
            let rest = world.run_while(S(10), |world| unrest(world).is_none()).unwrap();
            times.push(rest - start);
        }
        times.sort();
        eprintln!("the only relay, {fate:?}: median {:?}, most {:?} after its start", times[20], times[39]);
        assert!(times[39] <= S(3), "{fate:?}: {times:?}");
    }
}
