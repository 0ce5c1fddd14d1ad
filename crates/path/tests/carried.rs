//! Legs that are the relay's channel, because UDP does not get to it: when they become that, and how they go back.
#![allow(clippy::unwrap_used)]

mod support;

use std::time::Duration;

use path::{Event, Input, LegPhase, PathState, Reason, RelayNews, Transmit};
use support::legs::{self, PEER, SOCKET, TOKEN, answer, relayed};
use support::{Bench, addr};
use wire::control::{ToNode, ToRelay};
use wire::relay::{AllocationId, Body, Frame};

/// The first address that stands for a channel.
const CARRIED: &str = "127.77.0.1:5000";
const MS: fn(u64) -> Duration = Duration::from_millis;
const S: fn(u64) -> Duration = Duration::from_secs;

/// A node with a carrier that has met its peer at the relay, and its channel goes over TCP or not.
fn met(nominates: bool, over_tcp: bool) -> Bench {
    let mut bench = Bench::new(nominates);
    bench.input(Input::Carrier(Some(5000)));
    open(&mut bench, over_tcp);
    bench.add_peer(&[PEER]);
    bench.meet();
    bench
}

fn open(bench: &mut Bench, over_tcp: bool) {
    bench.open_relay();
    if over_tcp {
        bench.relay(RelayNews::OverTcp { again: false });
    }
}

fn allocate(bench: &mut Bench) {
    legs::allocate(bench, 0);
}

/// BOUND arrives, in answer to the BIND with that counter.
fn bound(bench: &mut Bench, counter: u64) {
    answer(bench, counter, &Body::Bound { observed: addr("198.51.100.1:21820") });
}

/// A challenge arrives, in answer to the BIND with that counter.
fn challenged(bench: &mut Bench, counter: u64) {
    answer(bench, counter, &Body::Challenge(TOKEN));
}

/// The counters of the BINDs among what was sent.
fn binds(sent: &[Transmit]) -> Vec<u64> {
    let frames = sent.iter().filter(|sent| sent.remote == addr(SOCKET)).filter_map(|sent| Frame::parse(&sent.payload));
    frames.map(|frame| frame.header().counter).collect()
}

fn attaches(asked: &[ToRelay]) -> usize {
    asked.iter().filter(|message| matches!(message, ToRelay::Attach { .. })).count()
}

fn endpoints(events: &[Event]) -> Vec<String> {
    let endpoint = |event: &Event| match event {
        Event::SetEndpoint { endpoint, .. } => Some(endpoint.to_string()),
        _ => None,
    };
    events.iter().filter_map(endpoint).collect()
}

fn echo(bench: &mut Bench, events: &[Event]) {
    let peer = bench.peer;
    let token = events.iter().rev().find_map(|event| match event {
        Event::SendEcho { token, .. } => Some(*token),
        _ => None,
    });
    if let Some(token) = token {
        bench.input(Input::EchoReply { peer, token });
    }
}

fn leg(bench: &Bench) -> Option<(LegPhase, bool)> {
    bench.engine.snapshot().peers[&bench.peer].legs.first().map(|leg| (leg.phase, leg.carried))
}

fn state(bench: &Bench) -> PathState {
    bench.engine.snapshot().peers[&bench.peer].state
}

/// A node whose leg is the channel, and what it did when both legs were bound.
fn attached() -> (Bench, Vec<Event>) {
    let mut bench = met(true, true);
    allocate(&mut bench);
    bench.collect(MS(400));
    let peer = bench.peer;
    bench.hear(ToNode::Ready(peer));
    let events = bench.events();
    (bench, events)
}

/// A node whose packets go by the channel.
fn carried() -> Bench {
    let (mut bench, events) = attached();
    echo(&mut bench, &events);
    assert!(state(&bench).is_carried(), "{:?}", state(&bench));
    // One more, for the round-trip time.
    let events = bench.events();
    echo(&mut bench, &events);
    bench.events();
    bench.asked();
    bench
}

#[test]
fn a_leg_that_nobody_answers_becomes_the_channel_and_sooner_if_that_is_over_tcp() {
    for (over_tcp, patience) in [(false, 1500), (true, 300)] {
        let mut bench = met(true, over_tcp);
        allocate(&mut bench);
        bench.collect(MS(patience - 1));
        assert_eq!((attaches(&bench.asked()), leg(&bench)), (0, Some((LegPhase::Binding, false))));
        let events = bench.collect_events(MS(2));
        assert_eq!((attaches(&bench.asked()), leg(&bench)), (1, Some((LegPhase::Bound, true))));
        let carry = |event: &Event| matches!(event, Event::Carry { endpoint, allocation: AllocationId(7), .. } if *endpoint == addr(CARRIED));
        assert!(events.iter().any(carry), "{events:?}");
        assert_eq!(endpoints(&events), [""; 0], "not before both legs are bound");
    }
}

#[test]
fn who_knows_that_no_udp_comes_back_does_not_wait() {
    let mut bench = Bench::new(true);
    bench.input(Input::Carrier(Some(5000)));
    bench.input(Input::StunServers(vec![addr("192.0.2.1:3478"), addr("192.0.2.2:3478")]));
    open(&mut bench, true);
    bench.add_peer(&[PEER]);
    bench.collect(S(5));
    bench.meet();
    bench.asked();
    allocate(&mut bench);
    bench.collect(MS(0));
    assert_eq!(attaches(&bench.asked()), 1);
}

#[test]
fn wireguard_is_pointed_at_the_channel_when_both_legs_are_bound_and_an_echo_makes_the_path() {
    let (mut bench, events) = attached();
    assert_eq!(endpoints(&events), [CARRIED]);
    assert!(events.contains(&Event::StartHandshake { peer: bench.peer }));
    assert!(!state(&bench).is_carried(), "not before an echo came back");
    echo(&mut bench, &events);
    let PathState::Relayed { endpoint, reason, .. } = state(&bench) else { panic!("{:?}", state(&bench)) };
    assert_eq!((endpoint, reason), (addr(CARRIED), Reason::NotTriedYet));
}

#[test]
fn udp_is_tried_ever_more_rarely_up_to_half_a_minute_and_takes_the_leg_back_without_a_handshake() {
    let mut bench = carried();
    let peer = bench.peer;
    // After two seconds, and then after four, eight and sixteen.
    let tries = [3, 4, 8, 16].map(|time| binds(&bench.keep_alive(S(time))).len());
    assert_eq!(tries, [1; 4]);
    assert!(matches!(state(&bench), PathState::Relayed { reason: Reason::UdpBlocked, .. }), "{:?}", state(&bench));
    let tried = binds(&bench.keep_alive(S(60)));
    assert_eq!(tried.len(), 2, "{tried:?}");
    bound(&mut bench, tried[1]);
    let events = bench.events();
    assert_eq!(endpoints(&events), [SOCKET]);
    assert!(!events.contains(&Event::StartHandshake { peer }), "the session goes on");
    assert!(matches!(state(&bench), PathState::Relayed { endpoint, .. } if endpoint == addr(SOCKET)));
    assert_eq!(leg(&bench), Some((LegPhase::Ready, false)));
    // What is on its way by the channel is still taken for a while.
    let gone = |events: &[Event]| events.contains(&Event::CarryNoMore { endpoint: addr(CARRIED) });
    echo(&mut bench, &events);
    assert!(!gone(&bench.collect_events(MS(4900))));
    assert!(gone(&bench.collect_events(MS(200))));
}

#[test]
fn a_bound_that_was_overtaken_by_the_channel_takes_nothing_back() {
    let mut bench = met(true, true);
    allocate(&mut bench);
    let before = binds(&bench.collect(MS(400)));
    assert_eq!(leg(&bench), Some((LegPhase::Bound, true)));
    bound(&mut bench, before[0]);
    assert_eq!(leg(&bench), Some((LegPhase::Bound, true)), "the relay goes by what came last");
    let after = binds(&bench.transmits());
    assert_eq!(after.len(), 1, "UDP seems to pass: it is tried at once");
    bound(&mut bench, after[0]);
    assert_eq!(leg(&bench), Some((LegPhase::Bound, false)));
}

#[test]
fn who_had_a_channel_over_tcp_the_last_time_too_does_not_wait_and_goes_by_udp_as_soon_as_it_answers() {
    let mut bench = Bench::new(true);
    bench.input(Input::Carrier(Some(5000)));
    bench.open_relay();
    bench.relay(RelayNews::OverTcp { again: true });
    bench.add_peer(&[PEER]);
    bench.meet();
    let partner = bench.peer;
    let both = [ToRelay::Allocate { partner, hint: None }, ToRelay::Attach { partner }];
    let asked = bench.asked();
    assert!(asked.windows(2).any(|two| two == both), "in one go: {asked:?}");
    allocate(&mut bench);
    let before = binds(&bench.collect(MS(0)));
    assert_eq!((before.len(), attaches(&bench.asked()), leg(&bench)), (1, 0, Some((LegPhase::Bound, true))));
    // What was known is true no more: this BIND was sent after the relay had the word, so its answer counts.
    challenged(&mut bench, before[0]);
    assert_eq!(binds(&bench.transmits()), before, "the answer has the counter of its BIND");
    bound(&mut bench, before[0]);
    assert_eq!(leg(&bench), Some((LegPhase::Bound, false)));
}

#[test]
fn a_challenge_that_was_overtaken_by_the_channel_shows_that_udp_passes() {
    let mut bench = met(true, true);
    allocate(&mut bench);
    let before = binds(&bench.collect(MS(400)));
    assert_eq!(leg(&bench), Some((LegPhase::Bound, true)));
    // To the relay an answer to it is void.
    challenged(&mut bench, before[0]);
    let after = binds(&bench.transmits());
    assert!(after.len() == 1 && after[0] > before[before.len() - 1], "{before:?} {after:?}");
    bound(&mut bench, after[0]);
    assert_eq!(leg(&bench), Some((LegPhase::Bound, false)));
}

#[test]
fn packets_that_are_on_their_way_do_not_lead_the_device_back_and_forth() {
    let mut bench = carried();
    let tried = binds(&bench.keep_alive(S(31)));
    bound(&mut bench, tried[0]);
    let events = bench.events();
    echo(&mut bench, &events);
    bench.keep_alive(S(2));
    bench.events();
    // Late ones from the channel led the device there once more.
    bench.counters(1000, 1000, CARRIED);
    let events = bench.collect_events(MS(10));
    assert_eq!(endpoints(&events).first().map(String::as_str), Some(SOCKET), "{events:?}");
}

#[test]
fn the_leg_goes_with_the_channel_and_comes_back_with_it() {
    let mut bench = carried();
    let peer = bench.peer;
    bench.relay(RelayNews::Closed);
    let events = bench.events();
    assert!(events.contains(&Event::CarryNoMore { endpoint: addr(CARRIED) }), "{events:?}");
    assert!(!matches!(state(&bench), PathState::Relayed { .. }), "nothing carries it");
    bench.asked();
    open(&mut bench, true);
    bench.meet();
    bench.collect(MS(1));
    let asked = bench.asked();
    assert_eq!(attaches(&asked), 0, "not before the relay named the leg again: {asked:?}");
    assert!(asked.contains(&ToRelay::Allocate { partner: peer, hint: Some(51_907) }), "{asked:?}");
    allocate(&mut bench);
    bench.collect(MS(1));
    assert_eq!(attaches(&bench.asked()), 1);
    bench.hear(ToNode::Ready(peer));
    // The address before rests, for what was on its way.
    assert_eq!(endpoints(&bench.events()).first().map(String::as_str), Some("127.77.0.2:5000"));
}

#[test]
fn nothing_is_attached_without_a_carrier_or_a_channel_or_a_peer_that_is_there() {
    let mut bench = met(true, true);
    bench.input(Input::Carrier(None));
    allocate(&mut bench);
    bench.collect(S(10));
    assert_eq!(attaches(&bench.asked()), 0, "no carrier");

    let mut bench = met(true, true);
    allocate(&mut bench);
    bench.relay(RelayNews::Closed);
    bench.collect(S(10));
    assert_eq!(attaches(&bench.asked()), 0, "no channel");

    let mut bench = met(true, true);
    let node = bench.peer;
    allocate(&mut bench);
    bench.hear(ToNode::Present { node, met: false });
    bench.collect(S(10));
    assert_eq!(attaches(&bench.asked()), 0, "no peer");
}

#[test]
fn a_released_leg_gives_its_address_back() {
    let mut bench = carried();
    let peer = bench.peer;
    bench.input(Input::Peers { upsert: Vec::new(), remove: vec![peer] });
    assert!(bench.events().contains(&Event::CarryNoMore { endpoint: addr(CARRIED) }));
    assert!(bench.asked().contains(&ToRelay::Release(peer)));
}

#[test]
fn loopback_is_never_probed_and_only_what_stands_for_a_channel_may_be_an_endpoint() {
    let mut bench = carried();
    let sent = bench.keep_alive(S(120));
    assert!(sent.iter().all(|sent| !sent.remote.ip().is_loopback()));
    for elsewhere in ["127.77.0.2:5000", "127.0.0.1:5000", "127.77.0.1:5001"] {
        bench.counters(1000, 1000, elsewhere);
        assert_eq!(endpoints(&bench.events()), [CARRIED], "{elsewhere}");
        bench.keep_alive(S(6));
    }
    assert_eq!(bench.engine.stats().put_back, 3);
    bench.events();
    bench.counters(1000, 1000, CARRIED);
    assert_eq!(endpoints(&bench.events()), [""; 0]);
}

#[test]
fn a_relayed_path_whose_udp_dies_goes_on_by_the_channel() {
    let mut bench = met(true, false);
    let peer = bench.peer;
    allocate(&mut bench);
    let sent = binds(&bench.transmits());
    bound(&mut bench, sent[0]);
    bench.hear(ToNode::Ready(peer));
    let events = bench.events();
    echo(&mut bench, &events);
    let events = bench.events();
    echo(&mut bench, &events);
    assert!(matches!(state(&bench), PathState::Relayed { endpoint, .. } if endpoint == addr(SOCKET)));
    // Packets leave and none come back.
    bench.asked();
    bench.counters(1000, 1000, SOCKET);
    bench.step(MS(100));
    bench.counters(1000, 9000, SOCKET);
    bench.collect(S(4));
    assert!(attaches(&bench.asked()) >= 1);
    assert!(matches!(leg(&bench), Some((_, true))));
    bench.hear(ToNode::Ready(peer));
    let events = bench.events();
    echo(&mut bench, &events);
    assert!(state(&bench).is_carried(), "{:?}", state(&bench));
}

#[test]
fn a_channel_by_udp_that_answers_nothing_any_more_is_made_anew_and_not_again_and_again() {
    let mut bench = met(true, false);
    allocate(&mut bench);
    let renewals = |events: &[Event]| events.iter().filter(|event| matches!(event, Event::RenewChannel { .. })).count();
    assert_eq!(renewals(&bench.collect_events(S(2))), 0);
    assert_eq!(renewals(&bench.collect_events(S(1))), 1);
    assert_eq!(renewals(&bench.collect_events(S(60))), 0);

    for answers in [false, true] {
        let mut bench = met(true, false);
        allocate(&mut bench);
        bench.collect(MS(1600));
        assert!(bench.asked().contains(&ToRelay::Ping));
        // The peer's words had it say that, which this side hears although nobody hears this side.
        allocate(&mut bench);
        bench.hear(ToNode::Ready(bench.peer));
        if answers {
            bench.hear(ToNode::Pong);
        }
        assert_eq!(renewals(&bench.collect_events(S(60))), usize::from(!answers));
    }
}

#[test]
fn a_leg_that_the_peer_asks_for_once_more_is_bound_again_and_becomes_the_channel_if_nobody_answers() {
    let mut bench = relayed(true);
    bench.input(Input::Carrier(Some(5000)));
    bench.keep_alive(S(3));
    let peer = bench.peer;
    allocate(&mut bench);
    assert_eq!(binds(&bench.transmits()).len(), 1);
    for _ in 0..8 {
        // The peer hears nothing of this side, and is heard.
        allocate(&mut bench);
        bench.input(Input::EchoRequest { peer });
        let events = bench.collect_events(MS(250));
        if let Some(token) = legs::token(&events) {
            bench.input(Input::EchoReply { peer, token });
        }
    }
    assert_eq!(leg(&bench).map(|(_, carried)| carried), Some(true));
}

#[test]
fn a_relay_on_this_very_node_is_used_by_its_channel_and_only_when_nothing_else_led_to_the_peer() {
    let own = |nominates| {
        let mut bench = Bench::new(nominates);
        bench.input(Input::Carrier(Some(5000)));
        // It relays for others only: there is no address of it that this node could send to.
        bench.relay(RelayNews::Open { addresses: Vec::new() });
        bench.add_peer(&[PEER]);
        bench.meet();
        bench
    };
    let asks = |asked: &[ToRelay]| asked.iter().filter(|message| matches!(message, ToRelay::Allocate { .. })).count();
    // The peer asks for it, and is not direct a round of probes later.
    let mut bench = own(false);
    allocate(&mut bench);
    bench.collect(S(2));
    assert_eq!(attaches(&bench.asked()), 0, "the first round goes on");
    let events = bench.collect_events(S(9));
    assert_eq!(attaches(&bench.asked()), 1);
    let renews = events.iter().any(|event| matches!(event, Event::RenewChannel { .. }));
    assert!(!renews, "no silence has spoken against the channel");
    let peer = bench.peer;
    bench.hear(ToNode::Ready(peer));
    bench.input(Input::EchoRequest { peer });
    assert_eq!(endpoints(&bench.events()), [CARRIED]);
    assert_eq!(binds(&bench.collect(S(200))), [0; 0], "there is nowhere to send one");

    // This node asks for it itself, when it nominates and nothing came of probing.
    let mut bench = own(true);
    bench.collect(S(2));
    assert_eq!(asks(&bench.asked()), 0);
    bench.collect(S(6));
    assert!(asks(&bench.asked()) > 0);

    // A peer that says that it has no UDP is not waited for.
    for (class, attached) in [(2, 0), (5, 1)] {
        let mut bench = own(false);
        bench.hear_call_of_class(class);
        allocate(&mut bench);
        bench.collect(S(1));
        assert_eq!(attaches(&bench.asked()), attached, "class {class}");
    }
}
