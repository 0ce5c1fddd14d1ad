//! The ordered punch beside ordinary probing, in the cells that poisoning decides.
//!
//! `WARREN_SIM_PUNCH_SEEDS` sets how many runs there are in each cell (`make sim` does), `WARREN_SIM_PUNCH_SEED` runs one seed
//! and prints its record. The table comes with `--nocapture`.
#![allow(clippy::unwrap_used)]

mod support;

use std::time::Duration;

use path::NatClass;
use sim::random::Random;
use sim::{Block, Filtering, Mapping, Signalling, Site, Weather, World, oracle};
use support::{RTT_40, are_direct, cell, known};

/// Runs in each cell of an ordinary `cargo test`.
const DEFAULT_SEEDS: u64 = 100;
/// From the instant when both know each other until both show a direct path: one round, with lost signals repeated.
const FIRST_ROUND: Duration = Duration::from_secs(10);

/// The first site has the smaller key: its node nominates, and calls if neither has to open first.
const CELLS: [[Site; 2]; 3] =
    [[Site::Poisonable, Site::Poisonable], [Site::Poisonable, Site::EASY_HOME], [Site::EASY_HOME, Site::Poisonable]];

#[test]
fn the_ordered_punch_connects_whom_ordinary_probing_does_not() {
    if let Some(seed) = number("WARREN_SIM_PUNCH_SEED") {
        for sites in CELLS {
            let (took, world) = run(seed, sites, true);
            println!("{sites:?} {took:?}\n{}", world.trace.lines().join("\n"));
        }
        return;
    }
    let seeds = number("WARREN_SIM_PUNCH_SEEDS").unwrap_or(DEFAULT_SEEDS);
    println!("{:<36} {:>6}   {:<28} ordinary probing", "cell, smaller key first", "runs", "ordered punch");
    for [a, b] in CELLS {
        let ordered = Column::new(seeds, [a, b], true);
        let ordinary = Column::new(seeds, [a, b], false);
        println!(
            "{:<36} {seeds:>6}   {:<28} {}",
            format!("{} x {}", name(a), name(b)),
            ordered.text(),
            ordinary.text()
        );
        if !ordered.failed.is_empty() {
            println!("  not direct in the first round: seeds {:?}", ordered.failed);
        }
        assert!(ordered.direct() * 100 >= seeds * 99, "{a:?} x {b:?} not direct: seeds {:?}", ordered.failed);
        // One that happens to send first connects; two must do so within one delay of each other.
        let most = if a == b { 15 } else { 75 };
        assert!(ordinary.direct() * 100 <= seeds * most, "{a:?} x {b:?}: the simulator poisons nobody");
    }
}

/// Every sort of surroundings.
const SITES: [Site; 10] = [
    Site::Open,
    Site::Firewalled,
    Site::Home(Mapping::EndpointIndependent, Filtering::EndpointIndependent),
    Site::Home(Mapping::EndpointIndependent, Filtering::AddressDependent),
    Site::EASY_HOME,
    Site::Home(Mapping::AddressDependent, Filtering::AddressAndPortDependent),
    Site::SYMMETRIC,
    Site::Cgnat(Mapping::EndpointIndependent, Filtering::AddressAndPortDependent),
    Site::Poisonable,
    Site::UdpBlocked,
];

#[test]
fn with_signals_every_pair_of_sites_is_direct_exactly_when_the_oracle_says_so() {
    for a in SITES {
        for b in SITES {
            let mut world = signalled_pair(7, a, b, millis(20));
            world.run_for(Duration::from_secs(16));
            for (node, peer) in [(0, 1), (1, 0)] {
                let direct = cell(&world, node, peer).is_direct();
                assert_eq!(direct, oracle::connects(a, b), "{a:?} x {b:?}: node {node}");
            }
            assert_eq!(world.violations, Vec::<String>::new(), "{a:?} x {b:?}");
        }
    }
}

#[test]
fn the_stray_test_finds_the_poisonable_and_nobody_else() {
    for site in SITES {
        let mut world = signalled_pair(3, site, Site::Open, millis(20));
        world.run_for(Duration::from_secs(6));
        let found = world.nodes[0].engine.as_ref().unwrap().snapshot().poisonable;
        let expected = (site != Site::UdpBlocked).then_some(site == Site::Poisonable);
        assert_eq!(found, expected, "{site:?}");
    }
}

/// A box that strays have moved has two ports for a long time. That is no NAT with a port for each destination.
#[test]
fn whose_port_was_moved_stays_endpoint_independent_and_meets_newcomers() {
    let mut world = signalled_pair(11, Site::Poisonable, Site::Poisonable, millis(20));
    world.run_for(Duration::from_secs(16));
    for minute in 0..12 {
        world.run_for(Duration::from_secs(60));
        for node in 0..2 {
            let class = world.nodes[node].engine.as_ref().unwrap().snapshot().nat.v4;
            assert_eq!(class, NatClass::EndpointIndependent, "minute {minute}, node {node}");
        }
    }
    let new = world.add_node(Site::EASY_HOME);
    support::start(&mut world, &[0, 1, new]);
    world.run_for(Duration::from_secs(16));
    for node in 0..2 {
        assert!(cell(&world, node, new).is_direct() && cell(&world, new, node).is_direct(), "node {node}");
    }
}

/// Public nodes probe at once and without order: their packets are strays too.
#[test]
fn beside_public_nodes_too_plain_boxes_connect_in_the_first_round() {
    for seed in 0..20 {
        let mut world = signalled_pair(seed, Site::Poisonable, Site::Poisonable, millis(20));
        let more = [Site::Open, Site::Open, Site::EASY_HOME].map(|site| world.add_node(site));
        support::start(&mut world, &more);
        world.run_for(FIRST_ROUND);
        for pair in [(0, 1), (0, more[2]), (1, more[2])] {
            let is_direct = cell(&world, pair.0, pair.1).is_direct() && cell(&world, pair.1, pair.0).is_direct();
            assert!(is_direct, "seed {seed}, {pair:?}");
        }
    }
}

#[test]
fn neighbours_in_one_town_connect_in_the_second_round_with_openers_that_go_less_far() {
    let mut world = World::new(5, RTT_40);
    world.internet.routers = 2;
    world.signalling = Some(Signalling { delay: (millis(20), millis(20)), loss: 0, ordered: true });
    let nodes = [world.add_node(Site::Poisonable), world.add_node(Site::Poisonable)];
    support::start(&mut world, &nodes);
    world.run_for(Duration::from_secs(20));
    assert!(!cell(&world, 0, 1).is_direct(), "five hops reach the other side and poison it");
    world.run_for(Duration::from_secs(30));
    assert!(are_direct(&world));
}

#[test]
fn who_needs_no_order_does_not_wait_for_it() {
    for (a, b) in [(Site::Open, Site::Open), (Site::Firewalled, Site::Firewalled), (Site::EASY_HOME, Site::Open)] {
        let mut world = signalled_pair(1, a, b, millis(500));
        world.run_for(Duration::from_secs(3));
        let first = world.nodes[0].ledger[&world.nodes[1].key].first_direct.unwrap();
        let took = first - known(&world);
        assert!(took <= millis(141), "{a:?} x {b:?}: {took:?}");
    }
}

#[test]
fn whom_no_signal_reaches_is_probed_after_ten_seconds_all_the_same() {
    let mut world = signalled_pair(2, Site::EASY_HOME, Site::EASY_HOME, millis(20));
    world.signalling = Some(Signalling { loss: 100, ..world.signalling.unwrap() });
    world.run_for(Duration::from_secs(20));
    assert!(are_direct(&world));
}

#[test]
fn where_only_probes_pass_both_sides_do_not_set_each_other_off() {
    let sent = |signalled: bool| {
        let mut world = signalled_pair(4, Site::EASY_HOME, Site::EASY_HOME, millis(20));
        world.signalling = world.signalling.filter(|_| signalled);
        for node in 0..2 {
            let id = world.nodes[node].boxes[0];
            world.internet.middlebox(id).behaviour.block = Block::WireGuard;
        }
        world.run_for(Duration::from_secs(300));
        assert!(!cell(&world, 0, 1).is_direct() && !cell(&world, 1, 0).is_direct());
        world.trace.lines().iter().filter(|line| line.contains(" > ") && line.contains("plain")).count()
    };
    let (ordered, ordinary) = (sent(true), sent(false));
    assert!(ordered <= ordinary + ordinary / 4, "{ordered} with signals, {ordinary} without");
}

/// A node whose channel is away probes without order, and spoils the ports that its peer has told. A leg bound after that keeps the third
/// port in use for as long as it lasts, so it does not heal in silence either.
#[test]
fn whose_ports_were_spoilt_before_there_were_signals_connects_soon_after_them() {
    for sites in CELLS {
        for late in 0..2 {
            for away in [5, 10, 20, 28, 35, 50].map(Duration::from_secs) {
                let mut world = world_of(away.as_secs(), RTT_40, sites);
                world.signalling = Some(Signalling { delay: (millis(1), millis(3)), loss: 0, ordered: true });
                world.forwarding = true;
                world.reconnect = (away, away);
                support::start(&mut world, &[0, 1]);
                world.set_pinging(0, 1, true);
                world.set_pinging(1, 0, true);
                world.run_for(millis(4));
                world.break_channel(0, late);
                // One round may still find the ports spoilt.
                let took = world.run_while(away + Duration::from_secs(45), are_direct);
                assert!(took.is_some(), "{sites:?}, node {late} without a channel for {away:?}");
            }
        }
    }
}

/// Two nodes that start together, behind a relay that hands on everything.
fn signalled_pair(seed: u64, a: Site, b: Site, delay: Duration) -> World {
    let mut world = World::new(seed, RTT_40);
    world.signalling = Some(Signalling { delay: (delay, delay), loss: 0, ordered: true });
    let nodes = [world.add_node(a), world.add_node(b)];
    support::start(&mut world, &nodes);
    world.set_pinging(0, 1, true);
    world.set_pinging(1, 0, true);
    world
}

/// What happened in one cell by one way.
struct Column {
    took: Vec<Duration>,
    failed: Vec<u64>,
}

impl Column {
    fn new(seeds: u64, sites: [Site; 2], ordered: bool) -> Self {
        let mut column = Self { took: Vec::new(), failed: Vec::new() };
        for seed in 0..seeds {
            let (took, world) = run(seed, sites, ordered);
            assert_eq!(world.violations, Vec::<String>::new(), "seed {seed}: {sites:?}");
            match took {
                Some(took) => column.took.push(took),
                None => column.failed.push(seed),
            }
        }
        column.took.sort();
        column
    }

    fn direct(&self) -> u64 {
        self.took.len() as u64
    }

    fn text(&self) -> String {
        let total = self.took.len() + self.failed.len();
        let share = 100.0 * self.took.len() as f64 / total as f64;
        let at = |percent: usize| self.took.get(self.took.len() * percent / 100).map_or(0.0, Duration::as_secs_f64);
        format!("{share:>6.2} % (p50 {:.2} s, p99 {:.2} s)", at(50), at(99))
    }
}

/// One pair in random weather. Its nodes start, and learn of each other, up to three seconds apart. Returns how long both
/// needed from knowing each other to a direct path.
fn run(seed: u64, sites: [Site; 2], ordered: bool) -> (Option<Duration>, World) {
    let mut random = Random::new(seed ^ 0x9a9c);
    let weather = Weather {
        delay: millis(2 + random.below(100)),
        jitter: millis(random.below(10)),
        loss: u8::try_from(random.below(3)).unwrap(),
    };
    let mut world = world_of(seed, weather, sites);
    world.internet.routers = 4 + u8::try_from(random.below(12)).unwrap();
    world.directory_delay = (Duration::ZERO, millis(random.below(3000)));
    let delay = (Duration::ZERO, millis(random.below(501)));
    let loss = u8::try_from(random.below(6)).unwrap();
    let in_order = random.percent(50);
    world.signalling = ordered.then_some(Signalling { delay, loss, ordered: in_order });
    let late = usize::from(random.percent(50));
    world.start_after(late, millis(random.below(3001)));
    world.start_after(1 - late, Duration::ZERO);
    if number("WARREN_SIM_PUNCH_SEED").is_some() {
        world.explain_probes();
    }
    world.set_pinging(0, 1, true);
    world.set_pinging(1, 0, true);
    let knows = |world: &World, node: usize| world.nodes[node].ledger.values().any(|ledger| ledger.known.is_some());
    world.run_while(Duration::from_secs(20), |world| knows(world, 0) && knows(world, 1)).expect("the directory works");
    let since = known(&world);
    let took = world.run_while(FIRST_ROUND, are_direct).map(|at| at - since);
    (took, world)
}

/// A world with two nodes, the one with the smaller key at the first site.
fn world_of(seed: u64, weather: Weather, [a, b]: [Site; 2]) -> World {
    let build = |sites: [Site; 2]| {
        let mut world = World::new(seed, weather);
        for site in sites {
            world.add_node(site);
        }
        world
    };
    // A seed gives the same keys whoever has them.
    let world = build([a, b]);
    if world.nodes[0].key < world.nodes[1].key { world } else { build([b, a]) }
}

fn name(site: Site) -> &'static str {
    match site {
        Site::Poisonable => "poisonable",
        _ => "port-restricted",
    }
}

fn number(variable: &str) -> Option<u64> {
    std::env::var(variable).ok()?.parse().ok()
}

fn millis(millis: u64) -> Duration {
    Duration::from_millis(millis)
}
