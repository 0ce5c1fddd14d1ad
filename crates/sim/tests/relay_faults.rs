//! What breaks around pairs and their relays, and what is expected of them then. Limits count from the instant when both sides know each
//! other, or from the fault, at a round trip of 40 ms.
#![allow(clippy::unwrap_used)]

mod support;

use std::time::Duration;

use path::{PathState, Reason};
use sim::{Filtering, Mapping, Site, World};
use support::{UNEVEN_40, beside, cell};

const MS: fn(u64) -> Duration = Duration::from_millis;
const S: fn(u64) -> Duration = Duration::from_secs;
/// Longer than any run.
const NEVER: (Duration, Duration) = (Duration::from_secs(1_000_000), Duration::from_secs(1_000_000));

const EIM: Mapping = Mapping::EndpointIndependent;
const FULL_CONE: Site = Site::Home(EIM, Filtering::EndpointIndependent);
const RESTRICTED: Site = Site::Home(EIM, Filtering::AddressDependent);

/// Nodes that start together and whose users all ping each other, beside relays.
fn mesh(seed: u64, relays: usize, sites: &[Site]) -> World {
    let mut world = beside(seed, UNEVEN_40, relays);
    for site in sites {
        world.add_node(*site);
    }
    start(&mut world);
    world
}

fn start(world: &mut World) {
    let nodes: Vec<usize> = (0..world.nodes.len()).collect();
    support::start(world, &nodes);
    for (from, to) in pairs(world) {
        world.set_pinging(from, to, true);
    }
}

/// Both directions of every pair.
fn pairs(world: &World) -> Vec<(usize, usize)> {
    let count = world.nodes.len();
    (0..count).flat_map(|from| (0..count).filter(move |to| *to != from).map(move |to| (from, to))).collect()
}

fn ledger(world: &World, (from, to): (usize, usize)) -> &sim::node::Ledger {
    &world.nodes[from].ledger[&world.nodes[to].key]
}

fn is_direct(world: &World, (from, to): (usize, usize)) -> bool {
    [(from, to), (to, from)].iter().all(|(from, to)| cell(world, *from, *to).is_direct())
}

fn is_relayed(world: &World, (from, to): (usize, usize)) -> bool {
    [(from, to), (to, from)].iter().all(|(from, to)| world.nodes[*from].is_relayed(&world.nodes[*to].key))
}

fn forget(world: &mut World) {
    for ledger in world.nodes.iter_mut().flat_map(|node| node.ledger.values_mut()) {
        ledger.outage = Duration::ZERO;
        ledger.unanswered.clear();
        ledger.changes = 0;
    }
}

/// The longest time in which one end of the pair heard nothing.
fn outage(world: &World, (from, to): (usize, usize)) -> Duration {
    ledger(world, (from, to)).outage.max(ledger(world, (to, from)).outage)
}

/// The home's router has another address from now on, and knows nothing of before.
fn renumber(world: &mut World, node: usize) {
    let (id, old) = (world.nodes[node].boxes[0], world.nodes[node].outside);
    let new = "198.51.100.200".parse().unwrap();
    world.internet.renumber(id, old, new);
    world.nodes[node].outside = new;
}

#[test]
fn every_pair_of_nats_that_can_be_direct_is_within_its_limit() {
    let table = [
        (Site::Open, Site::EASY_HOME, 1000),
        (FULL_CONE, FULL_CONE, 1000),
        (FULL_CONE, Site::SYMMETRIC, 1000),
        (RESTRICTED, RESTRICTED, 1000),
        (RESTRICTED, Site::SYMMETRIC, 1500),
        (Site::EASY_HOME, Site::EASY_HOME, 800),
    ];
    for (a, b, limit) in table {
        for seed in 0..10 {
            let sites = if seed % 2 == 0 { [a, b] } else { [b, a] };
            let mut world = mesh(seed, 1, &sites);
            world.run_for(S(30));
            for pair in pairs(&world) {
                let direct = ledger(&world, pair).first_direct.map(|at| at.saturating_sub(support::known(&world)));
                assert!(direct.is_some_and(|after| after <= MS(limit)), "{sites:?}, seed {seed}: {direct:?}");
            }
            assert!(is_direct(&world, (0, 1)), "{sites:?}, seed {seed}");
            assert_eq!(world.violations, Vec::<String>::new(), "{sites:?}, seed {seed}");
        }
    }
}

#[test]
fn two_homes_behind_one_provider_that_does_not_hairpin_are_relayed() {
    for seed in 0..4 {
        let mut world = beside(seed, UNEVEN_40, 1);
        let one = world.add_node(Site::Cgnat(EIM, Filtering::AddressAndPortDependent));
        world.add_customer(one);
        start(&mut world);
        let relayed = world.run_while(S(5), |world| is_relayed(world, (0, 1))).unwrap();
        assert!(relayed - support::known(&world) <= S(1), "seed {seed}");
        forget(&mut world);
        world.run_for(S(300));
        assert!(is_relayed(&world, (0, 1)), "seed {seed}");
        for pair in pairs(&world) {
            assert_eq!(ledger(&world, pair).first_direct, None, "seed {seed}");
        }
        assert_eq!(world.violations, Vec::<String>::new(), "seed {seed}");
    }
}

#[test]
fn with_all_relays_gone_direct_pairs_hold_and_relayed_ones_say_that_nothing_carries_them() {
    for seed in 0..10 {
        let mut world = mesh(seed, 2, &[Site::SYMMETRIC, Site::SYMMETRIC, Site::Open, Site::EASY_HOME]);
        let (hard, easy) = ((0, 1), [(0, 2), (1, 2), (2, 3)]);
        let rests = |world: &World| is_relayed(world, hard) && easy.iter().all(|pair| is_direct(world, *pair));
        world.run_while(S(10), rests).unwrap();
        world.run_for(S(20));
        forget(&mut world);
        for relay in 0..2 {
            world.kill_relay(relay);
        }
        world.run_for(S(30));
        for (from, to) in [hard, (hard.1, hard.0)] {
            let state = world.nodes[from].state(&world.nodes[to].key);
            assert!(matches!(state, Some(PathState::Down { .. })), "seed {seed}: {state:?}");
            assert_ne!(state, Some(PathState::Down { reason: Reason::NotTriedYet }), "seed {seed}");
        }
        for pair in easy {
            assert!(is_direct(&world, pair), "seed {seed}: {pair:?}");
            assert!(outage(&world, pair) <= MS(150), "seed {seed}: {pair:?} {:?}", outage(&world, pair));
        }
        for relay in 0..2 {
            world.start_relay(relay);
        }
        let back = world.now;
        let again = world.run_while(S(20), |world| is_relayed(world, hard));
        assert!(again.is_some_and(|at| at - back <= S(5)), "seed {seed}: {again:?} after {back:?}");
    }
}

#[test]
fn a_relayed_pair_whose_nat_gets_another_address_goes_on_within_five_seconds() {
    for seed in 0..10 {
        let mut world = mesh(seed, 1, &[Site::SYMMETRIC, Site::SYMMETRIC]);
        world.run_while(S(5), |world| is_relayed(world, (0, 1))).unwrap();
        world.run_for(S(20) + MS(seed * 130));
        forget(&mut world);
        renumber(&mut world, 0);
        world.run_for(S(30));
        assert!(is_relayed(&world, (0, 1)), "seed {seed}");
        assert!(outage(&world, (0, 1)) <= S(5), "seed {seed}: {:?}", outage(&world, (0, 1)));
        assert_eq!(world.allocations(0), 1, "seed {seed}: its leg is bound anew");
    }
}

/// The relay is near: what is asked through the tunnel comes back by it long before the direct path has not answered. One side alone
/// has users, so the other one has nothing to miss.
#[test]
fn whoever_is_led_to_the_relay_by_its_peer_does_not_take_that_for_the_direct_path() {
    for seed in 0..10 {
        let mut world = beside(seed, UNEVEN_40, 2);
        world.internet.weather.delay = MS(1);
        world.internet.weather.jitter = Duration::ZERO;
        world.add_node(Site::EASY_HOME);
        world.add_node(Site::EASY_HOME);
        support::start(&mut world, &[0, 1]);
        let (from, to) = if seed % 2 == 0 { (0, 1) } else { (1, 0) };
        world.set_pinging(from, to, true);
        world.run_while(S(5), |world| is_direct(world, (0, 1))).unwrap();
        world.run_for(S(20) + MS(seed * 130));
        let [a, b] = [0, 1].map(|node| world.nodes[node].outside);
        world.internet.cut(a, b, true);
        let relayed = world.run_while(S(5), |world| is_relayed(world, (0, 1)));
        assert!(relayed.is_some(), "seed {seed}: {:?}", [(0, 1), (1, 0)].map(|pair| ledger(&world, pair).state));
        world.set_pinging(from, to, false);
        world.run_for(S(100));
        assert!(is_relayed(&world, (0, 1)), "seed {seed}: and says so while it is idle");
        world.internet.cut(a, b, false);
        world.set_pinging(from, to, true);
        assert!(world.run_while(S(90), |world| is_direct(world, (0, 1))).is_some(), "seed {seed}");
        assert_eq!(world.violations, Vec::<String>::new(), "seed {seed}");
    }
}

/// The new address is in no directory: the relay's signals are the only way to tell it.
#[test]
fn while_the_directory_is_silent_peers_tell_each_other_new_addresses_by_the_relay() {
    for seed in 0..10 {
        for with_relay in [true, false] {
            let mut world = mesh(seed, 1, &[Site::EASY_HOME, Site::EASY_HOME]);
            world.run_while(S(5), |world| is_direct(world, (0, 1))).unwrap();
            world.run_for(S(20) + MS(seed * 130));
            world.directory_delay = NEVER;
            if !with_relay {
                world.kill_relay(0);
                world.run_for(S(20));
            }
            forget(&mut world);
            renumber(&mut world, 0);
            let since = world.now;
            let direct = world.run_while(S(30), |world| {
                let talk = pairs(world).iter().all(|pair| ledger(world, *pair).last_pong > Some(since + MS(200)));
                let endpoint = world.nodes[1].device.endpoint(&world.nodes[0].key);
                is_direct(world, (0, 1)) && talk && endpoint.is_some_and(|at| at.ip() == world.nodes[0].outside)
            });
            match with_relay {
                true => assert!(direct.is_some_and(|at| at - since <= S(5)), "seed {seed}: {direct:?} from {since:?}"),
                false => assert_eq!(direct, None, "seed {seed}: nobody could have told"),
            }
        }
    }
}

#[test]
fn a_relay_that_starts_anew_carries_a_hundred_pairs_on_with_their_sessions() {
    let mut world = mesh(3, 1, &[Site::SYMMETRIC; 15]);
    world.ping_gap = MS(250);
    let all = pairs(&world);
    assert_eq!(all.len() / 2, 105);
    world.run_while(S(20), |world| all.iter().all(|pair| is_relayed(world, *pair))).unwrap();
    world.run_for(S(20));
    let initiations = |world: &World| world.trace.lines().iter().filter(|line| line.contains("initiation")).count();
    let before = initiations(&world);
    forget(&mut world);
    world.stop_relay(0);
    world.run_for(MS(300));
    world.start_relay(0);
    world.run_for(S(20));
    assert!(all.iter().all(|pair| is_relayed(&world, *pair)));
    assert_eq!(initiations(&world), before, "no session was made anew");
    let worst = all.iter().map(|pair| ledger(&world, *pair).outage).max().unwrap();
    eprintln!("a relay restarted with 105 pairs: the longest was without for {worst:?}");
    assert!(worst <= S(2), "{worst:?}");
}

#[test]
fn both_agents_may_start_anew_at_once_and_nothing_is_lost() {
    for sites in [[Site::EASY_HOME; 2], [Site::SYMMETRIC; 2]] {
        for seed in 0..10 {
            let mut world = mesh(seed, 2, &sites);
            let is_direct_kind = sites[0] == Site::EASY_HOME;
            let rests =
                |world: &World| if is_direct_kind { is_direct(world, (0, 1)) } else { is_relayed(world, (0, 1)) };
            world.run_while(S(10), rests).unwrap();
            world.run_for(S(20));
            forget(&mut world);
            for node in [0, 1] {
                world.restart_agent(node, false);
            }
            world.run_for(S(30));
            assert!(rests(&world), "{sites:?}, seed {seed}");
            for (from, to) in pairs(&world) {
                world.set_pinging(from, to, false);
            }
            world.run_for(S(1));
            for pair in pairs(&world) {
                assert_eq!(ledger(&world, pair).unanswered.len(), 0, "{sites:?}, seed {seed}");
            }
        }
    }
}
