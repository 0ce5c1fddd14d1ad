//! A relay that is none any more, because it got another key or went for good, and the one at its address.
#![allow(clippy::unwrap_used)]

mod support;

use std::time::Duration;

use path::{Event, Input, PathState, RelayId, RelayNews};
use support::legs::{SOCKET, key, relayed, state, token};
use support::{Bench, RELAY, addr};
use wire::control::{Leg, ToNode, ToRelay};
use wire::relay::{AllocationId, Side};

const S: fn(u64) -> Duration = Duration::from_secs;
/// Sorted before the one that stood there, and after it.
const KEYS: [RelayId; 2] = [RelayId([0; 32]), RelayId([0xff; 32])];

fn say(bench: &mut Bench, relay: RelayId, news: RelayNews) {
    bench.input(Input::Relay { relay, news });
}

/// The relay has another key. The peer is there as well.
fn replace(bench: &mut Bench, relay: RelayId) {
    let node = bench.peer;
    let addresses = vec![addr(SOCKET).ip()];
    bench.relay(RelayNews::Removed);
    say(bench, relay, RelayNews::Connecting { addresses: addresses.clone() });
    say(bench, relay, RelayNews::Open { addresses });
    say(bench, relay, RelayNews::Said(ToNode::Welcome { boot: 2, observed: addr("198.51.100.1:21820") }));
    say(bench, relay, RelayNews::Said(ToNode::Present { node, met: true }));
}

/// The pair's leg there, on the same port, bound by both.
fn bind(bench: &mut Bench, relay: RelayId) {
    let partner = bench.peer;
    let leg = Leg { allocation: AllocationId(9), side: Side::Low, port: addr(SOCKET).port(), key: key(), counter: 0 };
    say(bench, relay, RelayNews::Said(ToNode::Allocated { partner, leg }));
    say(bench, relay, RelayNews::Said(ToNode::Ready(partner)));
}

fn asks(bench: &mut Bench, relay: RelayId) -> bool {
    bench.asked_of(relay).iter().any(|said| matches!(said, ToRelay::Allocate { .. }))
}

fn named(bench: &Bench) -> Option<RelayId> {
    if let PathState::Relayed { relay, .. } = state(bench) { Some(relay) } else { None }
}

fn relays_of_legs(bench: &Bench) -> Vec<RelayId> {
    bench.engine.snapshot().peers[&bench.peer].legs.iter().map(|leg| leg.relay).collect()
}

#[test]
fn both_ends_go_on_at_the_same_address_under_the_relays_new_key() {
    for (nominates, relay) in [(true, KEYS[0]), (true, KEYS[1]), (false, KEYS[0]), (false, KEYS[1])] {
        let mut bench = relayed(nominates);
        let peer = bench.peer;
        replace(&mut bench, relay);
        bench.keep_alive(S(2));
        assert!(asks(&mut bench, relay), "nominates: {nominates}");
        bind(&mut bench, relay);
        assert_eq!(named(&bench), Some(relay), "nominates: {nominates}");
        let events = bench.events();
        assert!(!events.contains(&Event::StartHandshake { peer }), "the session goes on: {events:?}");
        bench.input(Input::EchoReply { peer, token: token(&events).unwrap() });
        bench.keep_alive(S(8));
        assert_eq!((named(&bench), relays_of_legs(&bench)), (Some(relay), vec![relay]));
    }
}

#[test]
fn a_pair_without_a_path_does_not_wait_for_a_relay_that_is_none_any_more() {
    for (nominates, relay) in [(true, KEYS[0]), (true, KEYS[1]), (false, KEYS[0]), (false, KEYS[1])] {
        let mut bench = relayed(nominates);
        // The relay is killed, and what is said of the next one takes longer than the first is shunned.
        bench.relay(RelayNews::Closed);
        bench.collect_events(S(20));
        assert_eq!(named(&bench), None);
        replace(&mut bench, relay);
        bench.collect_events(S(2));
        assert!(asks(&mut bench, relay), "nominates: {nominates}");
        bind(&mut bench, relay);
        let peer = bench.peer;
        if !nominates {
            bench.input(Input::EchoRequest { peer });
        }
        let events = bench.events();
        bench.input(Input::EchoReply { peer, token: token(&events).unwrap() });
        assert_eq!((named(&bench), relays_of_legs(&bench)), (Some(relay), vec![relay]), "nominates: {nominates}");
    }
}

#[test]
fn a_relay_that_is_none_any_more_is_left_when_it_falls_silent_and_carries_until_then() {
    let mut bench = relayed(true);
    bench.relay(RelayNews::Removed);
    bench.keep_alive(S(30));
    assert_eq!(named(&bench), Some(RELAY), "packets pass still");
    bench.collect_events(S(90));
    assert_eq!((named(&bench), relays_of_legs(&bench)), (None, Vec::new()));
}
