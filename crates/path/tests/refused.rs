//! A relay that has no port left for a pair.
#![allow(clippy::unwrap_used)]

mod support;

use std::time::Duration;

use path::{Input, PathState, Reason, RelayId, RelayNews};
use support::legs::{leg, met, state};
use support::{Bench, RELAY, addr};
use wire::control::{RefusedReason, ToNode, ToRelay};

const OTHER: RelayId = RelayId([0x4f; 32]);
const S: fn(u64) -> Duration = Duration::from_secs;

fn say(bench: &mut Bench, relay: RelayId, news: RelayNews) {
    bench.input(Input::Relay { relay, news });
}

/// A node that has met its peer at two relays, and has asked nothing of the second.
fn with_two() -> Bench {
    let mut bench = met(true);
    let node = bench.peer;
    say(&mut bench, OTHER, RelayNews::Open { addresses: vec!["192.0.2.8".parse().unwrap()] });
    say(&mut bench, OTHER, RelayNews::Said(ToNode::Welcome { boot: 1, observed: addr("198.51.100.1:21820") }));
    say(&mut bench, OTHER, RelayNews::Said(ToNode::Present { node, met: true }));
    bench
}

/// The relay that the pair's leg is asked of now.
fn asked(bench: &mut Bench) -> Option<RelayId> {
    bench.engine.snapshot().peers[&bench.peer].legs.first().map(|leg| leg.relay)
}

#[test]
fn a_pair_that_finds_no_port_on_one_relay_asks_the_next() {
    let mut bench = with_two();
    let partner = bench.peer;
    let first = asked(&mut bench).unwrap();
    bench.asked();
    let refused = ToNode::Refused { partner, reason: RefusedReason::PortsExhausted };
    say(&mut bench, first, RelayNews::Said(refused.clone()));
    let next = if first == RELAY { OTHER } else { RELAY };
    let mut seconds = 0;
    while !bench.asked_of(next).contains(&ToRelay::Allocate { partner, hint: None }) {
        bench.collect(S(1));
        seconds += 1;
        assert!(seconds <= 3, "it asks nobody: {:?}", bench.engine.snapshot().peers[&partner].legs);
    }
    // Where nobody has a port it goes on asking, ever more rarely.
    let mut asks = 0;
    say(&mut bench, next, RelayNews::Said(refused.clone()));
    for _ in 0..600 {
        bench.collect(S(1));
        let asked_now = bench.asked().iter().filter(|message| matches!(message, ToRelay::Allocate { .. })).count();
        for relay in [RELAY, OTHER].into_iter().filter(|_| asked_now > 0) {
            say(&mut bench, relay, RelayNews::Said(refused.clone()));
        }
        asks += asked_now;
    }
    assert!((2..=60).contains(&asks), "{asks} times in ten minutes");
}

#[test]
fn a_pair_that_finds_no_port_on_any_relay_says_so_until_it_has_one() {
    let exhausted = PathState::Down { reason: Reason::RelayPortsExhausted };
    let mut bench = with_two();
    let partner = bench.peer;
    let refused = ToNode::Refused { partner, reason: RefusedReason::PortsExhausted };
    let first = asked(&mut bench).unwrap();
    say(&mut bench, first, RelayNews::Said(refused.clone()));
    bench.collect(S(60));
    assert!(state(&bench) != exhausted, "the other one was not asked yet: {:?}", state(&bench));
    let next = if first == RELAY { OTHER } else { RELAY };
    say(&mut bench, next, RelayNews::Said(refused));
    bench.collect(S(60));
    assert_eq!(state(&bench), exhausted);
    // One has room again.
    say(&mut bench, next, RelayNews::Said(ToNode::Allocated { partner, leg: leg(0) }));
    bench.collect(S(1));
    assert!(state(&bench) != exhausted, "{:?}", state(&bench));
}

#[test]
fn a_relay_that_refuses_for_another_reason_is_no_relay_without_ports() {
    for reason in [RefusedReason::Full, RefusedReason::TooMany, RefusedReason::NotAdmitted] {
        let mut bench = met(true);
        let partner = bench.peer;
        bench.hear(ToNode::Refused { partner, reason });
        bench.collect(S(60));
        assert_eq!(state(&bench), PathState::Down { reason: Reason::NoAnswer });
    }
}
