//! What happens in given situations, one sentence each. Limits count from the instant when both sides know each other.
#![allow(clippy::unwrap_used)]

mod support;

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use ipnet::IpNet;
use path::{Input, PathState, Reason};
use sim::packet::{Packet, Payload};
use sim::{Block, Filtering, Mapping, Site, Weather, World, oracle};
use support::{RTT_40, are_direct, cell, known, pair, quiet_pair};

const MS: fn(u64) -> Duration = Duration::from_millis;
const S: fn(u64) -> Duration = Duration::from_secs;

const EIM: Mapping = Mapping::EndpointIndependent;
const ADM: Mapping = Mapping::AddressDependent;
const EDM: Mapping = Mapping::AddressAndPortDependent;
const EIF: Filtering = Filtering::EndpointIndependent;
const ADF: Filtering = Filtering::AddressDependent;
const APDF: Filtering = Filtering::AddressAndPortDependent;

const SITES: [Site; 9] = [
    Site::Open,
    Site::Firewalled,
    Site::Home(EIM, EIF),
    Site::Home(EIM, ADF),
    Site::Home(EIM, APDF),
    Site::Home(ADM, APDF),
    Site::Home(EDM, APDF),
    Site::Cgnat(EIM, APDF),
    Site::UdpBlocked,
];

#[test]
fn every_pair_of_sites_is_direct_exactly_when_the_oracle_says_so() {
    for a in SITES {
        for b in SITES {
            let mut world = pair(7, a, b);
            world.run_for(S(12));
            for (node, peer) in [(0, 1), (1, 0)] {
                let direct = cell(&world, node, peer).is_direct();
                assert_eq!(direct, oracle::connects(a, b), "{a:?} x {b:?}: node {node}");
            }
            assert_eq!(world.violations, Vec::<String>::new(), "{a:?} x {b:?}");
        }
    }
}

#[test]
fn open_home_and_firewalled_pairs_are_direct_three_and_a_half_round_trips_after_they_know_each_other() {
    let easy = [Site::Open, Site::Firewalled, Site::EASY_HOME, Site::Home(EIM, EIF)];
    for a in easy {
        for b in easy {
            let mut world = pair(1, a, b);
            world.run_for(S(3));
            for (node, peer) in [(0, 1), (1, 0)] {
                let ledger = world.nodes[node].ledger[&world.nodes[peer].key].clone();
                let direct = ledger.first_direct.unwrap() - known(&world);
                assert!(direct <= MS(141), "{a:?} x {b:?}: {direct:?}");
                // The user pings every 100 ms.
                let pong = ledger.first_pong.unwrap() - known(&world);
                assert!(pong <= MS(260), "{a:?} x {b:?}: {pong:?}");
                assert_eq!(ledger.changes, 2, "connecting, then direct: {a:?} x {b:?}");
            }
        }
    }
}

#[test]
fn a_pair_that_learns_of_each_other_seconds_apart_connects_all_the_same() {
    for (seed, skew) in [(1, 50), (2, 300), (3, 900), (4, 3000), (5, 20_000)] {
        let mut world = quiet_pair(seed, Site::EASY_HOME, Site::EASY_HOME);
        world.directory_delay = (MS(skew / 2), MS(skew));
        world.set_pinging(0, 1, true);
        let end = known_after(&mut world) + S(2);
        world.run_until(end);
        assert!(are_direct(&world), "skew {skew} ms");
    }
}

/// Runs until both know each other.
fn known_after(world: &mut World) -> Duration {
    let knows = |world: &World, node: usize| world.nodes[node].ledger.values().any(|ledger| ledger.known.is_some());
    world.run_while(S(60), |world| knows(world, 0) && knows(world, 1)).unwrap();
    known(world)
}

#[test]
fn neighbours_in_one_home_use_their_lan_although_the_router_does_not_hairpin() {
    let mut world = World::new(3, RTT_40);
    let a = world.add_node(Site::EASY_HOME);
    let b = world.add_neighbour(a);
    support::start(&mut world, &[a, b]);
    world.run_for(S(3));
    let PathState::Direct { pair, .. } = world.nodes[a].state(&world.nodes[b].key).unwrap() else {
        panic!("not direct");
    };
    assert_eq!(pair.remote.ip(), world.nodes[b].addresses[0].addr());
    assert_eq!(pair.tier, path::Tier::Lan);
}

#[test]
fn sixteen_candidates_do_not_hide_the_one_that_works() {
    // Two home servers with a network for every hobby: the address that works sorts behind all of those that don't.
    for seed in 0..4 {
        let mut world = World::new(seed, RTT_40);
        let nodes = [world.add_node(Site::EASY_HOME), world.add_node(Site::EASY_HOME)];
        for node in nodes {
            for net in 0..14 {
                let address = format!("172.{}.{net}.10/24", 20 + node);
                world.add_address(node, address.parse().unwrap());
            }
        }
        support::start(&mut world, &nodes);
        let end = known_after(&mut world) + S(1);
        world.run_until(end);
        assert!(are_direct(&world), "seed {seed}");
    }
}

#[test]
fn a_better_path_is_kept_under_a_thousand_packets_a_second_both_ways() {
    for seed in 0..4 {
        let mut world = World::new(seed, Weather { jitter: MS(3), ..RTT_40 });
        let nodes = [world.add_node(Site::Open), world.add_node(Site::Open)];
        let v6: Vec<IpAddr> = nodes.iter().map(|node| format!("2001:db8::{}", node + 1).parse().unwrap()).collect();
        for node in nodes {
            world.add_address(node, IpNet::from(v6[node]));
        }
        world.internet.cut(v6[0], v6[1], true);
        world.ping_gap = MS(1);
        support::start(&mut world, &nodes);
        world.run_for(S(2));
        world.set_pinging(0, 1, true);
        world.set_pinging(1, 0, true);
        world.run_for(S(2));
        let direct = |world: &World, node: usize| match world.nodes[node].state(&world.nodes[1 - node].key) {
            Some(PathState::Direct { pair, .. }) => pair.remote.ip(),
            other => panic!("seed {seed}: node {node} shows {other:?}"),
        };
        assert!(direct(&world, 0).is_ipv4() && direct(&world, 1).is_ipv4());

        forget_outages(&mut world);
        world.internet.cut(v6[0], v6[1], false);
        for node in nodes {
            world.input(node, Input::NetworkChanged);
        }
        world.run_for(S(5));
        let before = changes(&world);
        world.run_for(S(10));
        for node in nodes {
            assert_eq!(direct(&world, node), v6[1 - node], "seed {seed}: node {node}");
            let endpoint = world.nodes[node].device.endpoint(&world.nodes[1 - node].key).unwrap();
            assert_eq!(endpoint.ip(), v6[1 - node], "seed {seed}: node {node} sends elsewhere than it shows");
        }
        assert_eq!(changes(&world), before, "seed {seed}: the path goes to and fro");
        assert!(worst_outage(&world) <= MS(60), "seed {seed}: {:?}", worst_outage(&world));
        assert_eq!(world.violations, Vec::<String>::new(), "seed {seed}");
    }
}

#[test]
fn two_symmetric_nats_say_that_they_cannot_instead_of_pretending() {
    let mut world = pair(4, Site::SYMMETRIC, Site::SYMMETRIC);
    world.run_for(S(30));
    for (node, peer) in [(0, 1), (1, 0)] {
        let state = world.nodes[node].state(&world.nodes[peer].key);
        assert_eq!(state, Some(PathState::Down { reason: Reason::HardNat }));
    }
}

#[test]
fn a_network_without_udp_is_named_as_the_reason() {
    let mut world = pair(5, Site::UdpBlocked, Site::Open);
    world.run_for(S(30));
    let reason = |node: usize, peer: usize| world.nodes[node].state(&world.nodes[peer].key);
    assert_eq!(reason(0, 1), Some(PathState::Down { reason: Reason::UdpBlocked }));
    assert_eq!(reason(1, 0), Some(PathState::Down { reason: Reason::NoAnswer }));
}

#[test]
fn probes_that_pass_where_wireguard_does_not_never_make_a_direct_path() {
    let mut world = quiet_pair(6, Site::Firewalled, Site::EASY_HOME);
    let id = world.nodes[0].boxes[0];
    world.internet.middlebox(id).behaviour.block = Block::WireGuard;
    world.set_pinging(0, 1, true);
    let end = known_after(&mut world) + S(4);
    world.run_until(end);
    for (node, peer) in [(0, 1), (1, 0)] {
        let ledger = &world.nodes[node].ledger[&world.nodes[peer].key];
        assert_eq!(ledger.first_direct, None);
        let reason = Reason::DataBlocked;
        assert_eq!(ledger.state.unwrap().1, PathState::Down { reason }, "n{node}");
    }
    // And it is found out when the filter goes.
    world.internet.middlebox(id).behaviour.block = Block::Nothing;
    world.run_for(S(70));
    assert!(are_direct(&world));
}

#[test]
fn a_path_that_stops_carrying_data_only_is_not_shown_as_direct_for_long() {
    let mut world = pair(8, Site::Firewalled, Site::EASY_HOME);
    world.run_for(S(5));
    let id = world.nodes[0].boxes[0];
    world.internet.middlebox(id).behaviour.block = Block::WireGuard;
    world.run_for(S(4));
    assert!(!cell(&world, 0, 1).is_direct() && !cell(&world, 1, 0).is_direct());
    world.internet.middlebox(id).behaviour.block = Block::Nothing;
    world.run_for(S(70));
    assert!(are_direct(&world));
    assert_eq!(world.violations, Vec::<String>::new());
}

#[test]
fn an_agent_that_restarts_loses_no_packet_of_a_device_that_goes_on() {
    for restarted in [0, 1] {
        let mut world = pair(9, Site::EASY_HOME, Site::Firewalled);
        world.run_for(S(5));
        forget_outages(&mut world);
        world.restart_agent(restarted, false);
        let direct = world.run_while(S(3), are_direct);
        let direct = direct.unwrap() - S(5);
        assert!(direct <= MS(250), "{direct:?}");
        world.run_for(S(3));
        assert!(worst_outage(&world) <= MS(150), "{:?}", worst_outage(&world));
    }
}

#[test]
fn an_agent_that_restarts_with_a_new_device_is_back_within_a_second() {
    for restarted in [0, 1] {
        let mut world = pair(10, Site::EASY_HOME, Site::Firewalled);
        world.run_for(S(5));
        forget_outages(&mut world);
        world.restart_agent(restarted, true);
        world.run_for(S(12));
        let outage = worst_outage(&world);
        assert!(outage <= MS(1000), "node {restarted}: {outage:?}");
        assert!(are_direct(&world));
    }
}

#[test]
fn a_nat_that_forgets_its_mappings_costs_at_most_two_seconds() {
    for seed in 0..8 {
        let mut world = pair(seed, Site::EASY_HOME, Site::Firewalled);
        world.run_for(S(5));
        forget_outages(&mut world);
        let id = world.nodes[0].boxes[0];
        world.internet.middlebox(id).flush();
        world.run_for(S(10));
        let outage = worst_outage(&world);
        assert!(outage <= S(2), "seed {seed}: {outage:?}");
        assert!(are_direct(&world), "seed {seed}");
        assert_eq!(world.violations, Vec::<String>::new());
    }
}

#[test]
fn a_new_public_address_is_published_once_and_used() {
    let mut world = pair(12, Site::EASY_HOME, Site::EASY_HOME);
    world.run_for(S(5));
    let before = world.nodes[0].publications;
    let (id, old) = (world.nodes[0].boxes[0], world.nodes[0].outside);
    let new = "198.51.100.200".parse().unwrap();
    world.internet.renumber(id, old, new);
    world.nodes[0].outside = new;
    world.run_for(S(200));
    assert!(are_direct(&world));
    assert_eq!(world.nodes[0].publications, before + 1);
}

#[test]
fn a_partition_is_seen_within_two_seconds_and_healed_two_seconds_after_it_ends() {
    let mut world = pair(13, Site::EASY_HOME, Site::Firewalled);
    world.run_for(S(5));
    let (a, b) = (world.nodes[0].outside, world.nodes[1].outside);
    world.internet.cut(a, b, true);
    world.run_for(S(2));
    assert!(!cell(&world, 0, 1).is_direct() && !cell(&world, 1, 0).is_direct());
    world.run_for(S(30));
    let down = PathState::Down { reason: Reason::PeerDown };
    assert_eq!(world.nodes[0].state(&world.nodes[1].key), Some(down));
    world.internet.cut(a, b, false);
    world.run_for(S(2));
    assert!(are_direct(&world));
    assert_eq!(world.violations, Vec::<String>::new());
}

#[test]
fn a_machine_that_was_off_for_an_hour_is_connected_again_two_seconds_after_it_starts() {
    let mut world = pair(14, Site::EASY_HOME, Site::EASY_HOME);
    world.run_for(S(5));
    world.power(1, false);
    world.run_for(S(3600));
    assert!(!cell(&world, 0, 1).is_direct());
    world.power(1, true);
    world.run_for(S(2));
    assert!(are_direct(&world));
}

#[test]
fn ten_percent_loss_makes_no_path_change() {
    for seed in 0..5 {
        let mut world = pair(seed, Site::EASY_HOME, Site::Firewalled);
        world.run_for(S(5));
        world.internet.weather.loss = 10;
        let before: u32 = changes(&world);
        world.run_for(S(60));
        assert_eq!(changes(&world), before, "seed {seed}");
    }
}

#[test]
fn an_idle_pair_sends_at_most_twelve_packets_a_minute_in_all() {
    for (a, b) in [
        (Site::Open, Site::Open),
        (Site::EASY_HOME, Site::Open),
        (Site::EASY_HOME, Site::EASY_HOME),
        (Site::Firewalled, Site::Firewalled),
    ] {
        let mut world = quiet_pair(15, a, b);
        world.run_for(S(300));
        let sent = |world: &World| world.trace.lines().iter().filter(|line| line.contains(" > ")).count();
        let before = sent(&world);
        world.run_for(S(1200));
        let a_minute = (sent(&world) - before) as f64 / 20.0;
        assert!(a_minute <= 12.0, "{a:?} x {b:?}: {a_minute}");
        assert!(are_direct(&world));
    }
}

#[test]
fn a_node_at_rest_publishes_once() {
    for site in [Site::Open, Site::EASY_HOME, Site::SYMMETRIC, Site::UdpBlocked] {
        let mut world = quiet_pair(16, site, Site::Open);
        world.run_for(S(3600));
        // Where nobody answers, what is certain comes first and the verdict later.
        let most = if site == Site::UdpBlocked { 2 } else { 1 };
        assert!(world.nodes[0].publications <= most, "{site:?}: {}", world.nodes[0].publications);
    }
}

#[test]
fn an_idle_pair_outlives_a_nat_that_forgets_after_thirty_seconds() {
    let mut world = quiet_pair(17, Site::EASY_HOME, Site::EASY_HOME);
    for node in 0..2 {
        let id = world.nodes[node].boxes[0];
        world.internet.middlebox(id).behaviour.timeout = S(30);
    }
    world.run_for(S(5));
    let before = changes(&world);
    world.run_for(S(900));
    assert_eq!(changes(&world), before);
    world.set_pinging(0, 1, true);
    world.run_for(MS(300));
    assert!(world.nodes[0].ledger[&world.nodes[1].key].first_pong.is_some());
}

#[test]
fn junk_at_the_port_changes_nothing_and_is_not_answered() {
    let mut world = pair(18, Site::Open, Site::Open);
    world.run_for(S(5));
    let before = changes(&world);
    let answers = world.nodes[0].engine.as_ref().unwrap().stats().pongs_sent;
    let mut random = sim::random::Random::new(99);
    let dst = SocketAddr::new(world.nodes[0].outside, 21_820);
    for _ in 0..20_000 {
        let mut payload: Vec<u8> = (0..4).flat_map(|_| random.bytes()).collect();
        if random.percent(50) {
            payload[..8].copy_from_slice(&[0, 1, 0, 108, 0x21, 0x12, 0xa4, 0x42]);
        }
        let src = SocketAddr::new([203, 0, 113, 5].into(), 1 + random.below(60_000) as u16);
        world.inject(Packet::new(src, dst, Payload::Plain(payload)));
    }
    world.run_for(S(1));
    assert_eq!(changes(&world), before);
    let engine = world.nodes[0].engine.as_ref().unwrap();
    assert!(engine.stats().pongs_sent <= answers + 4);
    assert_eq!(engine.stats().dropped_junk + engine.stats().dropped_unknown_key, 20_000);
}

fn changes(world: &World) -> u32 {
    world.nodes.iter().flat_map(|node| node.ledger.values()).map(|ledger| ledger.changes).sum()
}

fn forget_outages(world: &mut World) {
    for ledger in world.nodes.iter_mut().flat_map(|node| node.ledger.values_mut()) {
        ledger.outage = Duration::ZERO;
    }
}

fn worst_outage(world: &World) -> Duration {
    let ledgers = world.nodes.iter().flat_map(|node| node.ledger.values());
    ledgers.map(|ledger| ledger.outage).max().unwrap_or_default()
}
