//! What is forwarded.

use std::net::SocketAddr;
use std::time::Duration;

use proptest::prelude::*;
use relay::server::plane::{Config, Outcome, Rate};
use wire::relay::{MESSAGE_LEN, is_forwardable};

use crate::support::{World, home, wireguard};

fn connected() -> (World, u16) {
    let mut world = World::of(2, Config::default());
    let [leg, _] = world.connect(1, 2);
    (world, leg.port)
}

#[test]
fn every_datagram_of_a_merged_batch_is_looked_at() {
    let (mut world, port) = connected();
    let good = wireguard(4, 100);
    let bad = [vec![9; 100], wireguard(5, 100), wireguard(1, 100), [vec![4, 0, 1, 0], vec![0; 96]].concat()];
    for (number, bad) in bad.into_iter().enumerate() {
        for place in 0..4 {
            let mut datagrams = vec![good.clone(); 4];
            datagrams[place] = bad.clone();
            let packets = world.arrive_merged(port, home(1), &datagrams.concat(), 100);
            let payloads: Vec<_> = packets.into_iter().map(|packet| packet.payload).collect();
            assert_eq!(payloads, vec![good.clone(); 3], "{number} at {place}");
        }
    }
    assert_eq!(world.count(Outcome::Unfit), 16);
}

#[test]
fn a_relay_message_between_data_of_its_size_is_heard() {
    let mut world = World::of(2, Config::default());
    let [mut leg, _] = world.connect(1, 2);
    let data = wireguard(4, MESSAGE_LEN);
    let batch = [&data[..], &leg.bind(), &data, &data].concat();
    let packets = world.arrive_merged(leg.port, home(1), &batch, MESSAGE_LEN);
    let to: Vec<SocketAddr> = packets.iter().map(|packet| packet.to).collect();
    assert_eq!(to, [home(2), home(2), home(2), home(1)]);
    assert!(leg.hear(&packets[3].payload).is_some());
}

#[test]
fn the_last_datagram_of_a_batch_may_be_shorter() {
    let (mut world, port) = connected();
    let batch = [wireguard(4, 1000), wireguard(4, 1000), wireguard(4, 48)].concat();
    let packets = world.arrive_merged(port, home(1), &batch, 1000);
    let lengths: Vec<_> = packets.iter().map(|packet| packet.payload.len()).collect();
    assert_eq!(lengths, [1000, 1000, 48]);
}

#[test]
fn the_same_source_on_another_port_is_a_stranger() {
    let (mut world, port) = connected();
    assert!(!world.carries(port + 1, home(1), home(2)));
    assert!(!world.carries(port, SocketAddr::new(home(1).ip(), 1), home(2)));
    assert_eq!(world.count(Outcome::UnknownSource), 2);
}

#[test]
fn a_node_and_a_pair_have_their_rates() {
    let rate = Rate::bytes_per_second(1_000_000);
    let offer = |config: Config| {
        let mut world = World::of(3, config);
        let [to_two, _] = world.connect(1, 2);
        let [to_three, _] = world.connect(1, 3);
        let mut passed = [0, 0];
        for _ in 0..1000 {
            world.pass(Duration::from_millis(1));
            for (leg, passed) in [&to_two, &to_three].into_iter().zip(&mut passed) {
                let batch = wireguard(4, 1000).repeat(20);
                *passed += world.arrive_merged(leg.port, home(1), &batch, 1000).len();
            }
        }
        let over = world.count(Outcome::OverRate);
        assert_eq!(over + world.count(Outcome::Forwarded), 40_000);
        passed
    };
    // 1,000 packets a second, and what 128 KiB of burst is.
    let [two, three] = offer(Config { pair_rate: rate, ..Config::default() });
    assert!((1130..=1132).contains(&two) && (1130..=1132).contains(&three), "{two} {three}");
    let [two, three] = offer(Config { node_rate: rate, ..Config::default() });
    assert!((1130..=1132).contains(&(two + three)), "{two} {three}");
}

#[test]
fn rest_saves_one_burst_and_no_rate_is_no_limit() {
    for (rate, expected) in [(1000, 131), (0, 64 * 20)] {
        let mut world = World::of(2, Config { pair_rate: Rate::bytes_per_second(rate), ..Config::default() });
        let [leg, _] = world.connect(1, 2);
        // Less than the idle deadline, and far more than the burst takes.
        world.pass(Duration::from_secs(200));
        let batch = wireguard(4, 1000).repeat(64);
        let passed: usize = (0..20).map(|_| world.arrive_merged(leg.port, home(1), &batch, 1000).len()).sum();
        assert_eq!(passed, expected, "{rate} bytes a second");
    }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(256) })]

    /// Whatever a bound leg sends, exactly its WireGuard messages arrive, unchanged and in order.
    #[test]
    fn exactly_the_wireguard_messages_pass(
        kinds in prop::collection::vec((0u8..7, 0u8..2), 1..64),
        segment in prop::sample::select(vec![1usize, 31, 32, 64, 80, 92, 148, 1452]),
        tail in 0usize..1452,
    ) {
        let (mut world, port) = connected();
        let mut data: Vec<u8> = kinds.iter().flat_map(|&(kind, reserved)| {
            let mut datagram = vec![0x77; segment];
            for (at, byte) in [kind, 0, reserved, 0].into_iter().enumerate().take(segment) {
                datagram[at] = byte;
            }
            datagram
        }).collect();
        data.extend(&wireguard(4, 1452)[..tail.min(segment)]);
        let expected: Vec<Vec<u8>> =
            data.chunks(segment).filter(|datagram| is_forwardable(datagram)).map(<[u8]>::to_vec).collect();
        let packets = world.arrive_merged(port, home(1), &data, segment);
        prop_assert!(packets.iter().all(|packet| packet.to == home(2) && packet.port == port));
        let payloads: Vec<Vec<u8>> = packets.into_iter().map(|packet| packet.payload).collect();
        prop_assert_eq!(payloads, expected);
    }
}
