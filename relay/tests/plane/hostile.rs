//! Strangers, and members with bad intent.

use std::net::{IpAddr, SocketAddr};

use proptest::prelude::*;
use relay::server::plane::limits::{MAX_EVENTS, MAX_TRANSMITS};
use relay::server::plane::{Arrival, Config, Input, Outcome};
use wire::relay::{Body, Token, seal};

use crate::support::{Leg, World, home, node, wireguard};

/// A relay in use: a bound pair, a half-bound and an unbound one.
fn in_use() -> (World, Vec<Leg>) {
    let mut world = World::of(6, Config::default());
    let mut legs = world.connect(1, 2).to_vec();
    for (one, other) in [(3, 4), (5, 6)] {
        let events = world.allocate(one, other);
        legs.extend([one, other].map(|number| Leg::of(number, &events)));
    }
    let mut half = legs[2].clone();
    world.bind(&mut half, home(3));
    legs[2] = half;
    world.events();
    (world, legs)
}

/// Genuine messages as somebody on the path would record them: BINDs, an ANSWER, data.
fn recorded() -> (World, Vec<Vec<u8>>) {
    let (mut world, mut legs) = in_use();
    let mut messages = vec![wireguard(1, 148), wireguard(4, 1452), wireguard(4, 80)];
    for leg in &mut legs {
        let bind = leg.bind();
        messages.push(bind.to_vec());
        let challenge = world.arrive(leg.port, home(200), &bind);
        messages.push(leg.answer(leg.token(&challenge)).to_vec());
        messages.push(leg.seal(&Body::Challenge(Token([1; 16]))).to_vec());
    }
    (world, messages)
}

#[test]
fn recordings_played_from_elsewhere_are_not_answered() {
    let (mut world, messages) = recorded();
    let before = world.plane.stats().bound_legs;
    for source in [home(77), "[2001:db8::77]:1".parse().unwrap()] {
        for message in &messages {
            for port in 0..64 {
                assert!(world.arrive(port, source, message).is_empty());
            }
        }
    }
    assert_eq!(world.plane.stats().bound_legs, before);
}

#[test]
fn cut_and_lengthened_messages_are_not_answered() {
    let (mut world, mut legs) = in_use();
    let leg = &mut legs[2];
    let bind = leg.bind();
    for length in 0..bind.len() {
        assert!(world.arrive(leg.port, home(3), &bind[..length]).is_empty(), "{length} bytes");
    }
    for length in [81, 160, 1500, 9000, 65_507] {
        let mut longer = bind.to_vec();
        longer.resize(length, 0);
        assert!(world.arrive(leg.port, home(3), &longer).is_empty(), "{length} bytes");
    }
    assert_eq!(world.arrive(leg.port, home(3), &bind).len(), 1, "whole, it is");
}

#[test]
fn oversized_data_is_not_forwarded() {
    let (mut world, legs) = in_use();
    for length in [9001, 20_000, 65_507] {
        assert!(world.arrive(legs[0].port, home(1), &wireguard(4, length)).is_empty());
    }
    assert_eq!(world.arrive(legs[0].port, home(1), &wireguard(4, 9000)).len(), 1);
}

/// Who spoofs a leg's source gets WireGuard-shaped data to the partner, which discards it, and nothing else; not a byte comes back.
#[test]
fn a_spoofed_source_reaches_the_partner_alone() {
    let (mut world, legs) = in_use();
    let packets = world.arrive(legs[0].port, home(1), &wireguard(4, 64));
    assert!(packets.len() == 1 && packets[0].to == home(2));
    for junk in [&b"hello"[..], &[0x81; 80], &[0; 1452]] {
        assert!(world.arrive(legs[0].port, home(1), junk).is_empty());
    }
}

#[test]
fn a_flood_of_junk_changes_nothing() {
    let (mut world, legs) = in_use();
    let before = world.plane.stats();
    let mut junk = [0x81; 80];
    for number in 0u32..100_000 {
        junk[4..8].copy_from_slice(&number.to_be_bytes());
        assert!(world.arrive((number % 64) as u16, SocketAddr::from((number.to_be_bytes(), 1)), &junk).is_empty());
    }
    let after = world.plane.stats();
    assert_eq!((before.allocations, before.bound_legs), (after.allocations, after.bound_legs));
    assert!(world.carries(legs[0].port, home(1), home(2)));
}

#[test]
fn queues_have_an_end_when_nobody_takes_what_is_in_them() {
    let World { mut plane, now, .. } = World::of(65, Config::default());
    for partner in 2..=65 {
        plane.handle_input(Input::Allocate { by: node(1), partner: node(partner), hint: None }, now);
    }
    let events: Vec<_> = std::iter::from_fn(|| plane.poll_event()).collect();
    let mut out = Vec::new();
    for event in &events {
        let mut leg = Leg::from_event(event.to, event).unwrap();
        for _ in 0..16 {
            let (bind, source) = (leg.bind(), home(event.to.0[0]));
            let arrival = Arrival { port: leg.port, source, local: None, data: &bind, segment: bind.len() };
            plane.handle_arrival(&arrival, now, &mut out);
        }
    }
    assert_eq!(plane.stats().lost_transmits, 128 * 16 - MAX_TRANSMITS as u64);
    assert_eq!(std::iter::from_fn(|| plane.poll_transmit()).count(), MAX_TRANSMITS);
    assert!(out.is_empty());

    for _ in 0..10_000 {
        plane.handle_input(Input::Allocate { by: node(1), partner: node(99), hint: None }, now);
    }
    assert_eq!(plane.stats().lost_events, 10_000 - MAX_EVENTS as u64);
    assert_eq!(std::iter::from_fn(|| plane.poll_event()).count(), MAX_EVENTS);
}

#[test]
fn a_relay_is_not_run_out_of_nodes() {
    let mut world = World::new(Config::default());
    for number in 0u32..10_000 {
        let mut id = [0; 32];
        id[..4].copy_from_slice(&number.to_be_bytes());
        world.input(Input::Admit(relay::server::plane::NodeId(id)));
    }
    let stats = world.plane.stats();
    assert_eq!((stats.nodes, stats.refused_nodes), (8192, 10_000 - 8192));
}

fn any_stranger() -> impl Strategy<Value = SocketAddr> {
    // Never one of the homes, which are 198.51.100.0/24.
    let not_a_home = |ip: &IpAddr| !matches!(ip.to_canonical(), IpAddr::V4(v4) if v4.octets()[..3] == [198, 51, 100]);
    (any::<IpAddr>().prop_filter("a stranger", not_a_home), any::<u16>())
        .prop_map(|(ip, port)| SocketAddr::new(ip, port))
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(64) })]

    /// Noise, genuine messages with damage, recordings, and messages sealed with keys of their own: not one byte.
    #[test]
    fn strangers_get_no_byte(
        attempts in prop::collection::vec(
            (any::<prop::sample::Index>(), any_stranger(), 0u16..64, any::<(prop::sample::Index, u8)>(), 0u8..4,
             prop::collection::vec(any::<u8>(), 0..200)),
            1..200,
        ),
    ) {
        let (mut world, messages) = recorded();
        for (which, source, port, (at, byte), how, noise) in attempts {
            let mut datagram = which.get(&messages).clone();
            match how {
                0 => datagram = noise,
                1 => { let at = at.index(datagram.len()); datagram[at] ^= byte | 1; }
                2 => if let Some(header) = wire::relay::Frame::parse(&datagram).map(|frame| frame.header()) {
                    datagram = seal(&wire::relay::LegKey::from_bytes([byte; 32]), &header, &Body::Bind).to_vec();
                }
                _ => {}
            }
            let packets = world.arrive(port, source, &datagram);
            prop_assert!(packets.is_empty(), "{packets:?}");
        }
        prop_assert_eq!(world.count(Outcome::Forwarded), 0);
    }
}
