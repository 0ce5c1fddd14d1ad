//! Pairs that have a path only while somebody uses it, one sentence each. `WARREN_SIM_IDLE_SEEDS` runs as many times the usual number of
//! seeds.
#![allow(clippy::unwrap_used)]

mod support;

use std::time::Duration;

use sim::random::Random;
use sim::{Site, World};
use support::{UNEVEN_40, beside};

const S: fn(u64) -> Duration = Duration::from_secs;
const MS: fn(u64) -> Duration = Duration::from_millis;
const NODES: [usize; 2] = [0, 1];
/// Pairs of sites: direct at once, direct after a punch, and never.
const SITES: [[Site; 2]; 6] = [
    [Site::Open, Site::Open],
    [Site::Open, Site::EASY_HOME],
    [Site::EASY_HOME, Site::EASY_HOME],
    [Site::Firewalled, Site::EASY_HOME],
    [Site::Poisonable, Site::Poisonable],
    [Site::SYMMETRIC, Site::SYMMETRIC],
];
/// Beyond the idle time: the other side's keepalive, and the reading of counters.
const SETTLES: Duration = Duration::from_secs(70);

fn seeds(usual: u64) -> u64 {
    let times = std::env::var("WARREN_SIM_IDLE_SEEDS").ok().and_then(|times| times.parse::<u64>().ok());
    usual * times.unwrap_or(1)
}

/// Two nodes beside two relays. They let a pair go after so long, if at all, and nobody says anything.
fn pair(seed: u64, idle: [Option<Duration>; 2]) -> World {
    let mut world = beside(seed, UNEVEN_40, 2);
    let sites = SITES[usize::try_from(seed).unwrap() % SITES.len()];
    for (site, idle) in sites.into_iter().zip(idle) {
        let node = world.add_node(site);
        world.nodes[node].idle = idle;
    }
    support::start(&mut world, &NODES);
    world
}

fn peer(world: &World, node: usize) -> wire::PublicKey {
    world.nodes[1 - node].key
}

fn both_sleep(world: &World) -> bool {
    NODES.iter().all(|node| world.nodes[*node].is_idle(&peer(world, *node)))
}

fn sent(world: &World) -> u64 {
    NODES.iter().map(|node| world.nodes[*node].sent).sum()
}

/// Users ping for ten seconds. Returns how long the first answer took, and how many pings were never answered.
fn ping(world: &mut World, from: &[usize]) -> (Duration, usize) {
    let start = world.now;
    for node in from {
        let key = peer(world, *node);
        let ledger = world.nodes[*node].ledger.entry(key).or_default();
        ledger.unanswered.clear();
        // From the first one on they are all counted.
        ledger.first_pong.get_or_insert(start);
        ledger.last_pong = None;
        world.set_pinging(*node, 1 - *node, true);
    }
    let answered =
        |world: &World| from.iter().all(|node| world.nodes[*node].ledger[&peer(world, *node)].last_pong.is_some());
    let first = world.run_while(S(10), answered).map_or(S(10), |at| at - start);
    world.run_until(start + S(10));
    for node in from {
        world.set_pinging(*node, 1 - *node, false);
    }
    world.run_for(S(2));
    (first, from.iter().map(|node| world.nodes[*node].ledger[&peer(world, *node)].unanswered.len()).sum())
}

fn check(world: &World, seed: u64) {
    assert_eq!(world.violations, Vec::<String>::new(), "seed {seed}");
}

#[test]
fn a_pair_sleeps_until_the_first_ping_and_again_when_nobody_pings() {
    let idle = S(300);
    let mut worst = Duration::ZERO;
    for seed in 0..seeds(60) {
        let mut world = pair(seed, [Some(idle); 2]);
        world.run_for(S(10));
        assert!(both_sleep(&world), "seed {seed}");
        assert_eq!(sent(&world), 0, "seed {seed}: nobody has said anything to anybody");
        for from in [&NODES[..1], &NODES[1..], &NODES] {
            let (first, lost) = ping(&mut world, from);
            worst = worst.max(first);
            assert!(first < S(1), "seed {seed}: {from:?} after {first:?}");
            assert_eq!(lost, 0, "seed {seed}: {from:?}");
            world.run_for(idle + SETTLES);
            assert!(
                both_sleep(&world),
                "seed {seed}: {from:?} {:?}",
                NODES.map(|node| world.nodes[node].state(&peer(&world, node)))
            );
            let before = sent(&world);
            world.run_for(S(900));
            assert_eq!(
                (sent(&world), world.allocations(0) + world.allocations(1)),
                (before, 0),
                "seed {seed}: {from:?}"
            );
        }
        check(&world, seed);
    }
    println!("first ping after at most {worst:?}");
}

#[test]
fn a_pair_that_is_woken_before_its_session_is_over_loses_nothing() {
    let (mut worst, mut wakes, mut gone) = (Duration::ZERO, 0, 0);
    for seed in 0..seeds(48) {
        let mut random = Random::new(seed);
        let mut world = pair(seed, [Some(S(20)); 2]);
        world.run_for(S(10));
        ping(&mut world, &NODES);
        for round in 0..6 {
            // Anything from a pair in use to one whose session has just ended.
            world.run_for(MS(random.below(240_000)));
            let from: &[usize] = match random.below(3) {
                0 => &NODES[..1],
                1 => &NODES[1..],
                _ => &NODES,
            };
            let (first, lost) = ping(&mut world, from);
            worst = worst.max(first);
            (wakes, gone) = (wakes + 1, gone + lost);
            assert!(first < S(1) && lost <= 1, "seed {seed} round {round}: {from:?} after {first:?}, {lost} lost");
        }
        check(&world, seed);
    }
    println!("first ping after at most {worst:?}, {gone} lost of {wakes} times");
    // What was sealed in the last moment of a session is not opened any more when it arrives.
    assert!(gone * 1_000 <= wakes, "{gone} lost of {wakes} times");
}

#[test]
fn a_peer_that_keeps_its_pairs_keeps_the_other_side_awake() {
    for seed in 0..seeds(24) {
        let mut idle = [Some(S(30)), None];
        idle.rotate_left(usize::try_from(seed / 6 % 2).unwrap());
        let mut world = pair(seed, idle);
        world.run_for(S(60));
        let changes = |world: &World| NODES.map(|node| world.nodes[node].ledger[&peer(world, node)].changes);
        let before = changes(&world);
        for from in [&NODES[..1], &NODES[1..]] {
            world.run_for(S(1200));
            assert!(!both_sleep(&world), "seed {seed}");
            let (first, lost) = ping(&mut world, from);
            assert!(first < MS(500) && lost == 0, "seed {seed}: {from:?} after {first:?}, {lost} lost");
        }
        // But for the reason of one that is relayed, it is as it was all the time.
        let more = [0, 1].map(|node| changes(&world)[node] - before[node]);
        assert!(more.iter().all(|more| *more <= 1), "seed {seed}: {more:?}");
        check(&world, seed);
    }
}

#[test]
fn a_pair_in_use_does_not_sleep_however_little_is_said() {
    for seed in 0..seeds(12) {
        let mut world = pair(seed, [Some(S(60)); 2]);
        world.run_for(S(10));
        world.ping_gap = S(45);
        world.set_pinging(0, 1, true);
        world.run_for(S(60));
        let changes = world.nodes[0].ledger[&peer(&world, 0)].changes;
        world.run_for(S(1800));
        assert_eq!(world.nodes[0].ledger[&peer(&world, 0)].changes, changes, "seed {seed}");
        assert!(!NODES.iter().any(|node| world.nodes[*node].is_idle(&peer(&world, *node))), "seed {seed}");
    }
}

#[test]
fn whatever_happened_while_it_slept_a_ping_wakes_the_pair() {
    for seed in 0..seeds(96) {
        let mut random = Random::new(seed ^ 0xa5);
        let mut world = pair(seed, [Some(S(30)); 2]);
        world.run_for(S(10));
        for _ in 0..4 {
            if random.percent(60) {
                ping(&mut world, &NODES[..1]);
            }
            world.run_for(MS(random.below(150_000)));
            let node = usize::try_from(random.below(2)).unwrap();
            let relay = usize::try_from(random.below(2)).unwrap();
            match random.below(6) {
                0 => world.restart_agent(node, false),
                1 => world.restart_agent(node, true),
                2 => {
                    world.stop_relay(relay);
                    world.run_for(MS(random.below(5_000)));
                    world.start_relay(relay);
                }
                3 => world.break_channel(relay, node),
                4 => {
                    world.power(node, false);
                    world.run_for(MS(random.below(60_000)));
                    world.power(node, true);
                }
                _ => {
                    let boxes = world.nodes[node].boxes.clone();
                    boxes.iter().for_each(|id| world.internet.middlebox(*id).flush());
                }
            }
            world.run_for(MS(random.below(20_000)));
        }
        // Channels are there again, and what was in use is not any more, or is about to.
        world.run_for(S(20) + MS(random.below(150_000)));
        let from = [usize::try_from(random.below(2)).unwrap()];
        let (first, lost) = ping(&mut world, &from);
        assert!(first < S(6), "seed {seed}: {from:?} after {first:?}, {lost} lost");
        world.run_for(S(30) + SETTLES);
        assert!(both_sleep(&world), "seed {seed}");
        let (first, lost) = ping(&mut world, &from);
        // One may be on its way while two handshakes follow each other.
        assert!(first < S(1) && lost <= 1, "seed {seed}: {from:?} after {first:?}, {lost} lost");
        check(&world, seed);
    }
}
