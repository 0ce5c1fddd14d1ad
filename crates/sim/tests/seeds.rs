//! Random meshes in random weather with random accidents. `WARREN_SIM_SEEDS` sets how many, `WARREN_SIM_SEED` runs one
//! and prints its record.
#![allow(clippy::unwrap_used)]

use std::time::Duration;

use path::Input;
use sim::random::Random;
use sim::{Block, Filtering, Mapping, Signalling, Site, Weather, World, oracle};

/// Runs of an ordinary `cargo test`.
const DEFAULT_SEEDS: u64 = 200;
/// The same beside relays, which take longer.
const DEFAULT_RELAY_SEEDS: u64 = 60;
/// Beside relays: a pair that was found to carry probes only is tried again after 10, 20, 40 s and so on.
const RELAYED_CALM: Duration = Duration::from_secs(400);
/// Between the last accident and the verdict: the longest waits of the ladder's first two rounds.
const CALM: Duration = Duration::from_secs(150);

#[test]
fn after_any_accidents_every_pair_is_direct_exactly_when_the_oracle_says_so() {
    if let Some(seed) = number("WARREN_SIM_SEED") {
        let world = run_explained(seed, true);
        println!("{}", world.trace.lines().join("\n"));
        return assert_eq!(faults(seed, &world), Vec::<String>::new());
    }
    let seeds = 0..number("WARREN_SIM_SEEDS").unwrap_or(DEFAULT_SEEDS);
    let faults: Vec<String> = seeds.flat_map(|seed| faults(seed, &run(seed))).collect();
    assert!(faults.is_empty(), "{} faults:\n{}", faults.len(), faults.join("\n"));
}

#[test]
fn beside_relays_every_pair_that_is_not_direct_is_relayed_whatever_happened_and_got_lost() {
    if let Some(seed) = number("WARREN_SIM_RELAY_SEED") {
        let world = run_with(seed, true, true);
        println!("{}", world.trace.lines().join("\n"));
        return assert_eq!(faults(seed, &world), Vec::<String>::new());
    }
    let seeds = 0..number("WARREN_SIM_RELAY_SEEDS").unwrap_or(DEFAULT_RELAY_SEEDS);
    let faults: Vec<String> = seeds.flat_map(|seed| faults(seed, &run_with(seed, false, true))).collect();
    assert!(faults.is_empty(), "{} faults:\n{}", faults.len(), faults.join("\n"));
}

#[test]
fn the_same_seed_gives_the_same_record_to_the_byte() {
    for seed in 0..5 {
        let (one, two) = (run(seed), run(seed));
        assert_eq!(one.trace.lines(), two.trace.lines(), "seed {seed}");
        assert_eq!(one.trace.fingerprint(), two.trace.fingerprint());
        assert_ne!(one.trace.fingerprint(), run(seed + 1000).trace.fingerprint());
    }
}

fn number(variable: &str) -> Option<u64> {
    std::env::var(variable).ok()?.parse().ok()
}

fn run(seed: u64) -> World {
    run_explained(seed, false)
}

fn run_explained(seed: u64, explained: bool) -> World {
    run_with(seed, explained, false)
}

/// A run, beside relays that carry data and forget to say one thing in five, or as it comes.
fn run_with(seed: u64, explained: bool, relayed: bool) -> World {
    let mut random = Random::new(seed ^ 0x5eed);
    let mut world = World::new(seed, weather(&mut random));
    world.ping_gap = millis(400);
    world.directory_delay = (Duration::ZERO, millis(random.below(3000)));
    world.signalling = signalling(&mut random);
    if relayed {
        world.forwarding = true;
        world.forgetful = u8::try_from(random.below(30)).unwrap();
        let delay = (Duration::ZERO, millis(random.below(500)));
        world.signalling.get_or_insert(Signalling { delay, loss: 0, ordered: true });
        if random.percent(50) {
            world.add_relay();
        }
    }
    let count = 2 + usize::try_from(random.below(3)).unwrap();
    for node in 0..count {
        if node > 0 && random.percent(15) {
            world.add_neighbour(0);
        } else {
            world.add_node(site(&mut random));
        }
        world.start_after(node, millis(random.below(5000)));
    }
    if explained {
        world.explain_probes();
    }
    for (from, to) in pairs(count) {
        world.set_pinging(from, to, true);
    }
    world.run_for(millis(random.below(8000)));
    for _ in 0..random.below(6) {
        if relayed && random.percent(50) {
            relay_accident(&mut world, &mut random, count);
        } else {
            accident(&mut world, &mut random, count);
        }
        world.run_for(millis(random.below(10_000)));
    }
    calm(&mut world);
    world.run_for(if relayed { RELAYED_CALM } else { CALM });
    world
}

/// What is wrong with a run when it is over.
fn faults(seed: u64, world: &World) -> Vec<String> {
    let violations = world.violations.iter().map(|text| format!("seed {seed}: {text}"));
    let mut faults: Vec<String> = violations.collect();
    for (from, to) in pairs(world.nodes.len()) {
        let (a, b) = (&world.nodes[from], &world.nodes[to]);
        let neighbours = a.boxes == b.boxes && !a.boxes.is_empty();
        let expected = neighbours || oracle::connects(a.site, b.site);
        if a.is_direct(&b.key) != expected {
            let (from_site, to_site, state) = (a.site, b.site, a.state(&b.key));
            let relay = if world.signalling.is_some() { "with" } else { "without" };
            faults.push(format!("seed {seed}: n{from} {from_site:?} to n{to} {to_site:?} {relay} a relay: {state:?}"));
        }
        let reaches_relay = [a, b].iter().all(|node| node.site != Site::UdpBlocked);
        if world.forwarding && !expected && a.is_relayed(&b.key) != reaches_relay {
            faults.push(format!("seed {seed}: n{from} {:?} to n{to} {:?}: {:?}", a.site, b.site, a.state(&b.key)));
        }
    }
    faults
}

fn pairs(count: usize) -> impl Iterator<Item = (usize, usize)> {
    (0..count).flat_map(move |a| (0..count).filter(move |b| *b != a).map(move |b| (a, b)))
}

fn weather(random: &mut Random) -> Weather {
    Weather {
        delay: millis(1 + random.below(150)),
        jitter: millis(random.below(30)),
        loss: u8::try_from(random.below(12)).unwrap(),
    }
}

/// In half of the runs there is a relay to talk over, good or bad.
fn signalling(random: &mut Random) -> Option<Signalling> {
    let delay = (Duration::ZERO, millis(random.below(500)));
    let loss = u8::try_from(random.below(20)).unwrap();
    let ordered = random.percent(50);
    random.percent(50).then_some(Signalling { delay, loss, ordered })
}

fn site(random: &mut Random) -> Site {
    let easy = Mapping::EndpointIndependent;
    let strict = Filtering::AddressAndPortDependent;
    *random.pick(&[
        Site::Open,
        Site::Firewalled,
        Site::Firewalled,
        Site::Home(easy, Filtering::EndpointIndependent),
        Site::Home(easy, Filtering::AddressDependent),
        Site::Home(easy, strict),
        Site::Home(easy, strict),
        Site::Home(Mapping::AddressDependent, strict),
        Site::Home(Mapping::AddressAndPortDependent, strict),
        Site::Cgnat(easy, strict),
        Site::UdpBlocked,
    ])
}

fn accident(world: &mut World, random: &mut Random, count: usize) {
    let node = usize::try_from(random.below(count as u64)).unwrap();
    let other = (node + 1) % count;
    let (a, b) = (world.nodes[node].outside, world.nodes[other].outside);
    let boxes = world.nodes[node].boxes.clone();
    match random.below(9) {
        0 => world.restart_agent(node, false),
        1 => world.restart_agent(node, true),
        2 => world.internet.cut(a, b, true),
        3 => world.internet.cut(a, b, false),
        4 => world.input(node, Input::NetworkChanged),
        5 => world.power(node, false),
        6 => world.power(node, true),
        7 => boxes.iter().for_each(|id| world.internet.middlebox(*id).flush()),
        _ => {
            if let Some(id) = boxes.first().filter(|_| world.nodes[node].site != Site::UdpBlocked) {
                world.internet.middlebox(*id).behaviour.block = Block::WireGuard;
            }
        }
    }
}

fn relay_accident(world: &mut World, random: &mut Random, count: usize) {
    let node = usize::try_from(random.below(count as u64)).unwrap();
    let relay = usize::try_from(random.below(world.relays() as u64)).unwrap();
    match random.below(4) {
        0 => world.stop_relay(relay),
        1 => world.start_relay(relay),
        2 => world.break_channel(relay, node),
        _ => world.drain_relay(relay),
    }
}

/// Ends every accident and the bad weather.
fn calm(world: &mut World) {
    world.internet.weather.loss = 0;
    world.forgetful = 0;
    // One that said it would end does so.
    for relay in 0..world.relays() {
        if world.forwarding {
            world.stop_relay(relay);
            world.start_relay(relay);
        }
    }
    for node in 0..world.nodes.len() {
        if !world.nodes[node].is_powered() {
            world.power(node, true);
        }
        let (a, site) = (world.nodes[node].outside, world.nodes[node].site);
        for other in 0..world.nodes.len() {
            let b = world.nodes[other].outside;
            world.internet.cut(a, b, false);
        }
        if site != Site::UdpBlocked {
            for id in world.nodes[node].boxes.clone() {
                world.internet.middlebox(id).behaviour.block = Block::Nothing;
            }
        }
    }
}

fn millis(millis: u64) -> Duration {
    Duration::from_millis(millis)
}
