//! The warm leg: asked for while packets flow, taken when the path in use falls silent, let go afterwards.
#![allow(clippy::unwrap_used)]

mod support;

use std::time::Duration;

use path::{Event, Input, OnDemand, PathState, Reason, RelayId, RelayNews, Transmit};
use support::legs::{PEER, SOCKET, TOKEN, allocate, answer, direct, key, ready, relayed, state, token};
use support::{Bench, RELAY, addr};
use wire::control::{Leg, RefusedReason, ReleasedReason, ToNode, ToRelay};
use wire::relay::{AllocationId, Body, Frame, Header, Side};

const OTHER: RelayId = RelayId([0x4f; 32]);
/// The address of the other relay, with the pair's port there.
const SPARE: &str = "192.0.2.8:51903";
const MS: fn(u64) -> Duration = Duration::from_millis;
const S: fn(u64) -> Duration = Duration::from_secs;

fn other(bench: &mut Bench, news: RelayNews) {
    bench.input(Input::Relay { relay: OTHER, news });
}

/// The nodes meet at this relay too.
fn meet_at(bench: &mut Bench, relay: RelayId, address: &str) {
    let (node, observed) = (bench.peer, addr("198.51.100.1:21820"));
    let said = [ToNode::Welcome { boot: 1, observed }, ToNode::Present { node, met: true }];
    bench.input(Input::Relay { relay, news: RelayNews::Open { addresses: vec![address.parse().unwrap()] } });
    said.into_iter().for_each(|message| bench.input(Input::Relay { relay, news: RelayNews::Said(message) }));
}

/// A relayed pair whose nodes have met at another relay too.
fn with_two(nominates: bool) -> Bench {
    let mut bench = relayed(nominates);
    meet_at(&mut bench, OTHER, "192.0.2.8");
    bench.collect(S(12));
    bench.asked();
    bench
}

/// Packets of users go to and fro by the relay for a while. Returns the counters after.
fn talk(bench: &mut Bench, bytes: u64, time: Duration) -> u64 {
    talk_at(bench, SOCKET, bytes, time)
}

fn talk_at(bench: &mut Bench, remote: &str, mut bytes: u64, time: Duration) -> u64 {
    let end = bench.now + time;
    while bench.now < end {
        bench.keep_alive(MS(250));
        bytes += 1000;
        bench.counters(bytes, bytes, remote);
    }
    bytes
}

fn allocations(bench: &mut Bench) -> usize {
    bench.asked().iter().filter(|said| matches!(said, ToRelay::Allocate { .. })).count()
}

/// The leg on the other relay is there, bound by both.
fn make_warm(bench: &mut Bench) {
    let partner = bench.peer;
    let leg = Leg { allocation: AllocationId(9), side: Side::Low, port: 51_903, key: key(), counter: 0 };
    other(bench, RelayNews::Said(ToNode::Allocated { partner, leg }));
    bench.transmits();
    bound_at_the_other(bench, 1);
    other(bench, RelayNews::Said(ToNode::Ready(partner)));
    bench.transmits();
    bench.events();
}

/// The other relay answers a BIND.
fn bound_at_the_other(bench: &mut Bench, counter: u64) {
    let header = Header { allocation: AllocationId(9), side: Side::Low, counter };
    let bound = Body::Bound { observed: addr("198.51.100.1:21820") };
    bench.receive(SPARE, wire::relay::seal(&key(), &header, &bound).to_vec());
}

fn relay(bench: &Bench) -> Option<RelayId> {
    if let PathState::Relayed { relay, .. } = state(bench) { Some(relay) } else { None }
}

#[test]
fn while_packets_flow_the_side_that_nominates_asks_for_a_second_leg_and_lets_it_go_afterwards() {
    let mut bench = with_two(true);
    let peer = bench.peer;
    bench.keep_alive(S(30));
    assert_eq!(allocations(&mut bench), 0, "nothing flows");
    talk(&mut bench, 0, S(4));
    assert_eq!(allocations(&mut bench), 1);
    make_warm(&mut bench);
    assert_eq!(relay(&bench), Some(RELAY), "it is not needed yet");
    bench.keep_alive(S(12));
    assert!(bench.asked().contains(&ToRelay::Release(peer)));
    assert_eq!(bench.engine.snapshot().peers[&peer].legs.len(), 1);

    let mut follower = with_two(false);
    talk(&mut follower, 0, S(6));
    assert_eq!(allocations(&mut follower), 0);
}

#[test]
fn a_pair_that_nobody_uses_sleeps_when_the_leg_in_use_is_let_go_and_not_when_the_warm_one_is() {
    let mut bench = with_two(false);
    let partner = bench.peer;
    talk(&mut bench, 0, S(4));
    make_warm(&mut bench);
    bench.input(Input::OnDemand(Some(OnDemand { idle: S(10), port: 9_999 })));
    bench.keep_alive(S(12));
    let released = || ToNode::Released { partner, reason: ReleasedReason::Asked };
    other(&mut bench, RelayNews::Said(released()));
    assert_eq!(relay(&bench), Some(RELAY), "{:?}", state(&bench));
    bench.hear(released());
    assert_eq!(state(&bench), PathState::Idle);
}

#[test]
fn a_relay_that_falls_silent_is_left_for_the_warm_leg_without_asking_anybody() {
    for nominates in [true, false] {
        let mut bench = with_two(nominates);
        let peer = bench.peer;
        let bytes = talk(&mut bench, 0, S(4));
        make_warm(&mut bench);
        talk(&mut bench, bytes, S(2));
        bench.events();
        // From now on nothing comes back.
        let (start, mut sent) = (bench.now, 100_000);
        let mut events = Vec::new();
        while relay(&bench) == Some(RELAY) {
            assert!(bench.now - start < MS(900), "nominates: {nominates}");
            bench.counters(100_000, sent, SOCKET);
            sent += 1000;
            events = bench.collect_events(MS(250));
        }
        let there = |event: &Event| matches!(event, Event::SetEndpoint { endpoint, .. } if *endpoint == addr(SPARE));
        assert!(events.iter().any(there), "{events:?}");
        assert!(!events.contains(&Event::StartHandshake { peer }), "the session goes on");
        assert_eq!(relay(&bench), Some(OTHER));
        bench.input(Input::EchoReply { peer, token: token(&events).unwrap() });
        assert_eq!(relay(&bench), Some(OTHER));
    }
}

#[test]
fn a_peer_that_goes_on_by_a_relay_is_not_called_down() {
    let mut bench = direct(true);
    let peer = bench.peer;
    let bytes = talk_at(&mut bench, PEER, 0, S(4));
    let (mut sent, mut is_there) = (bytes, false);
    for _ in 0..20 {
        sent += 1000;
        bench.counters(bytes, sent, PEER);
        // Only the relay carries anything.
        let events = bench.collect_events(MS(250));
        let led = |event: &Event| matches!(event, Event::SetEndpoint { endpoint, .. } if *endpoint == addr(SOCKET));
        is_there |= events.iter().any(led);
        if let Some(token) = token(&events).filter(|_| is_there) {
            bench.input(Input::EchoReply { peer, token });
            break;
        }
    }
    assert_eq!(relay(&bench), Some(RELAY));
    for _ in 0..60 {
        bench.keep_alive(S(1));
        assert!(!matches!(state(&bench), PathState::Relayed { reason: Reason::PeerDown, .. }), "{:?}", state(&bench));
    }
    let PathState::Relayed { reason, .. } = state(&bench) else { panic!("{:?}", state(&bench)) };
    assert_eq!(reason, Reason::NoAnswer);
}

#[test]
fn a_leg_that_was_let_go_while_the_pair_was_direct_keeps_no_relayed_pair_waiting() {
    let mut bench = direct(true);
    let (peer, partner) = (bench.peer, bench.peer);
    let bytes = talk_at(&mut bench, PEER, 0, S(4));
    bench.hear(ToNode::Released { partner, reason: ReleasedReason::Asked });
    bench.asked();
    // The direct path dies, and the pair comes to the relay.
    let mut sent = bytes;
    while allocations(&mut bench) == 0 {
        assert!(sent < bytes + 40_000, "{:?}", state(&bench));
        sent += 1000;
        bench.counters(bytes, sent, PEER);
        bench.collect(MS(250));
    }
    allocate(&mut bench, 20);
    bench.transmits();
    answer(&mut bench, 21, &Body::Challenge(TOKEN));
    answer(&mut bench, 21, &Body::Bound { observed: addr("198.51.100.1:21820") });
    let mut events = ready(&mut bench);
    while bench.is_direct() {
        assert!(sent < bytes + 80_000, "{:?}", state(&bench));
        sent += 1000;
        bench.counters(bytes, sent, PEER);
        events = bench.collect_events(MS(250));
    }
    events.extend(bench.collect_events(MS(50)));
    bench.input(Input::EchoReply { peer, token: token(&events).unwrap() });
    assert_eq!(relay(&bench), Some(RELAY));
    meet_at(&mut bench, OTHER, "192.0.2.8");
    bench.asked();
    talk(&mut bench, sent, S(4));
    assert!(bench.asked_of(OTHER).iter().any(|said| matches!(said, ToRelay::Allocate { .. })), "{:?}", state(&bench));
}

#[test]
fn the_warm_leg_is_at_a_relay_that_does_not_fail_with_the_one_in_use() {
    const THIRD: RelayId = RelayId([0x50; 32]);
    let within = |domain: &str| RelayNews::Within { domain: Some(domain.into()) };
    for (near, far) in [(OTHER, THIRD), (THIRD, OTHER)] {
        let mut bench = relayed(true);
        meet_at(&mut bench, OTHER, "192.0.2.8");
        meet_at(&mut bench, THIRD, "192.0.2.7");
        for (relay, domain) in [(RELAY, "a"), (near, "a"), (far, "b")] {
            bench.input(Input::Relay { relay, news: within(domain) });
        }
        bench.collect(S(12));
        bench.asked();
        talk(&mut bench, 0, S(4));
        let asked = bench.asked_of(far);
        assert!(asked.iter().any(|said| matches!(said, ToRelay::Allocate { .. })), "{asked:?}");
    }
}

#[test]
fn a_relay_without_a_place_is_not_asked_for_a_warm_leg_again_and_again() {
    let mut bench = with_two(true);
    let partner = bench.peer;
    let mut asked = 0;
    let mut bytes = 0;
    for _ in 0..60 {
        bytes = talk(&mut bench, bytes, S(2));
        let now = allocations(&mut bench);
        for _ in 0..now {
            other(&mut bench, RelayNews::Said(ToNode::Refused { partner, reason: RefusedReason::PortsExhausted }));
        }
        asked += now;
    }
    assert!((2..=7).contains(&asked), "{asked} times in two minutes");
}

#[test]
fn a_direct_pair_keeps_its_leg_while_packets_flow_unless_the_peer_has_no_room() {
    let mut bench = direct(true);
    let partner = bench.peer;
    let bytes = talk_at(&mut bench, PEER, 0, S(60));
    bench.asked();
    assert_eq!(bench.engine.snapshot().peers[&partner].legs.len(), 1);
    bench.hear(ToNode::Released { partner, reason: ReleasedReason::Asked });
    let bytes = talk_at(&mut bench, PEER, bytes, S(290));
    assert_eq!(allocations(&mut bench), 0);
    talk_at(&mut bench, PEER, bytes, S(15));
    assert!(allocations(&mut bench) > 0);
}

/// Of relay messages to an address.
fn counters(sent: &[Transmit], to: &str) -> Vec<u64> {
    let there = sent.iter().filter(|sent| sent.remote == addr(to));
    there.filter_map(|sent| Some(Frame::parse(&sent.payload)?.header().counter)).collect()
}

/// Nothing comes back any more. How long the first echo goes unanswered until the relay in use is left, and the counter of the BIND that it
/// is left with.
fn leave(bench: &mut Bench, used: &str, bytes: u64) -> (Duration, u64) {
    let before = relay(bench);
    let mut since = None;
    for step in 0..2000 {
        if step % 250 == 0 {
            bench.counters(bytes, bytes + step * 4, used);
        }
        bench.step(MS(1));
        let asks = bench.events().iter().any(|event| matches!(event, Event::SendEcho { .. }));
        since = since.or(asks.then_some(bench.now));
        let sent = bench.transmits();
        if relay(bench) != before {
            bench.step(MS(0));
            let sent: Vec<_> = sent.into_iter().chain(bench.transmits()).collect();
            return (bench.now - since.unwrap(), counters(&sent, used).into_iter().max().unwrap());
        }
    }
    panic!("it is not left: {:?}", state(bench));
}

#[test]
fn a_relay_that_was_alive_when_it_was_left_makes_the_next_doubt_last_longer_and_a_dead_one_does_not() {
    for (was_alive, expected) in [(true, 500), (false, 250)] {
        let mut bench = with_two(true);
        let partner = bench.peer;
        let bytes = talk(&mut bench, 0, S(4));
        make_warm(&mut bench);
        let bytes = talk(&mut bench, bytes, S(2));
        let (patience, counter) = leave(&mut bench, SOCKET, bytes);
        assert_eq!(patience, MS(250));
        if was_alive {
            answer(&mut bench, counter, &Body::Challenge(TOKEN));
        }
        // Whatever it was, a later BIND is answered.
        let later = counters(&bench.collect(MS(150)), SOCKET).into_iter().max().unwrap();
        answer(&mut bench, later, &Body::Bound { observed: addr("198.51.100.1:21820") });
        bench.hear(ToNode::Ready(partner));
        let bytes = talk_at(&mut bench, SPARE, bytes, S(2));
        assert_eq!(relay(&bench), Some(OTHER));
        assert_eq!(leave(&mut bench, SPARE, bytes).0, MS(expected), "was alive: {was_alive}");
    }
}

#[test]
fn a_path_in_doubt_asks_for_a_way_out_and_one_without_packets_does_not() {
    for nominates in [true, false] {
        let mut bench = with_two(nominates);
        let asks = |bench: &mut Bench| allocations(bench) > 0;
        bench.relay(RelayNews::Closed);
        bench.collect(MS(500));
        assert!(!asks(&mut bench), "nominates: {nominates}: nothing flows");

        let mut bench = with_two(nominates);
        let bytes = talk(&mut bench, 0, S(1));
        bench.relay(RelayNews::Closed);
        bench.asked();
        bench.counters(bytes, bytes + 1000, SOCKET);
        bench.collect(MS(100));
        assert!(!asks(&mut bench), "nominates: {nominates}: the first echo may be answered");
        bench.collect(MS(100));
        assert!(asks(&mut bench), "nominates: {nominates}");
    }
}

/// A relay whose pod is replaced comes back with another key.
const ANEW: RelayId = RelayId([0x41; 32]);

#[test]
fn a_leg_on_a_relay_that_has_fallen_silent_and_closed_its_channel_keeps_no_pair_from_the_one_that_is_there() {
    for nominates in [true, false] {
        let mut bench = with_two(nominates);
        talk(&mut bench, 0, S(4));
        make_warm(&mut bench);
        // The BINDs of the warm leg go unanswered from here on, and its channel ends without a word.
        other(&mut bench, RelayNews::Closed);
        bench.relay(RelayNews::Closed);
        bench.relay(RelayNews::Removed);
        bench.collect(S(20));
        bench.asked();
        meet_at(&mut bench, ANEW, "192.0.2.9");
        bench.collect(S(5));
        let peer = bench.peer;
        let is_wish = |said: &ToRelay| matches!(said, ToRelay::Allocate { partner, .. } if *partner == peer);
        assert!(bench.asked_of(ANEW).iter().any(is_wish), "nominates: {nominates}");
    }
}

#[test]
fn a_warm_leg_whose_channel_is_gone_is_asked_whether_it_is_there_and_left_out_if_it_does_not_answer() {
    for is_there in [true, false] {
        let mut bench = with_two(true);
        let bytes = talk(&mut bench, 0, S(4));
        make_warm(&mut bench);
        let bytes = talk(&mut bench, bytes, S(2));
        bench.transmits();
        other(&mut bench, RelayNews::Closed);
        assert_eq!(counters(&bench.collect(MS(50)), SPARE), [2]);
        if is_there {
            bound_at_the_other(&mut bench, 2);
        }
        let bytes = talk(&mut bench, bytes, S(2));
        for step in 0..10 {
            bench.counters(bytes, bytes + step * 1000, SOCKET);
            bench.collect(MS(100));
        }
        assert_eq!(relay(&bench), Some(if is_there { OTHER } else { RELAY }), "is there: {is_there}");
    }
}
