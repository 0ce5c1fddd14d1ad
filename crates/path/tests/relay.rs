//! Legs on a relay: who asks, how they are bound, when WireGuard is pointed at them, and what is not believed.
#![allow(clippy::unwrap_used)]

mod support;

use std::time::Duration;

use path::{Event, Input, LegPhase, PathState, PeerConfig, Reason, RelayId, RelayNews, Transmit};
use support::legs::{
    PEER, SOCKET, TOKEN, allocate, answer, bound, bound_by, key, leg, met, ready, relayed, state, token,
};
use support::{Bench, RELAY, addr, config, host};
use wire::control::{Leg, RefusedReason, ReleasedReason, ToNode, ToRelay};
use wire::relay::{self, AllocationId, Body, Frame, Header, Side};

const MS: fn(u64) -> Duration = Duration::from_millis;
const S: fn(u64) -> Duration = Duration::from_secs;

fn phase(bench: &Bench) -> Option<LegPhase> {
    bench.engine.snapshot().peers[&bench.peer].legs.first().map(|leg| leg.phase)
}

/// What a datagram says to the relay, and with which counter.
fn said(transmit: &Transmit) -> Option<(u64, Body)> {
    if transmit.remote != addr(SOCKET) {
        return None;
    }
    let frame = Frame::parse(&transmit.payload)?;
    Some((frame.header().counter, frame.open(&key()).ok()?))
}

fn binds(sent: &[Transmit]) -> Vec<u64> {
    sent.iter().filter_map(said).filter(|(_, body)| *body == Body::Bind).map(|(counter, _)| counter).collect()
}

fn allocations(asked: &[ToRelay]) -> Vec<Option<u16>> {
    let hint = |message: &ToRelay| if let ToRelay::Allocate { hint, .. } = message { Some(*hint) } else { None };
    asked.iter().filter_map(hint).collect()
}

#[test]
fn a_channel_begins_with_hello_and_then_everybody_is_met() {
    let mut bench = Bench::new(true);
    bench.add_peer(&[PEER]);
    let (node, peer) = (bench.engine.public_key(), bench.peer);
    bench.open_relay();
    assert_eq!(bench.asked(), [ToRelay::Hello { version: 1, node }, ToRelay::Meet(peer)]);
    bench.input(Input::Peers { upsert: Vec::new(), remove: vec![peer] });
    assert_eq!(bench.asked(), [ToRelay::Part(peer)]);
}

#[test]
fn a_relay_that_was_given_up_is_tried_again_as_soon_as_it_says_that_the_pair_is_ready() {
    let mut bench = bound(true);
    ready(&mut bench);
    // No echo comes back: the peer's leg is where it hears nothing any more.
    bench.collect(S(20));
    assert!(!matches!(state(&bench), PathState::Relayed { .. }));
    let events = ready(&mut bench);
    let leads = |event: &Event| matches!(event, Event::SetEndpoint { endpoint, .. } if *endpoint == addr(SOCKET));
    let is_tried =
        |event: &Event| matches!(event, Event::SendEcho { .. } | Event::StartHandshake { .. }) || leads(event);
    assert!(events.iter().any(is_tried), "{events:?}");
}

#[test]
fn a_leg_that_is_bound_and_not_ready_is_asked_about_also_by_who_was_told_of_it() {
    for nominates in [true, false] {
        let mut bench = bound(nominates);
        bench.collect(S(3));
        assert_eq!(allocations(&bench.asked()), [Some(51_907)], "nominates: {nominates}");
        ready(&mut bench);
        bench.keep_alive(S(30));
        assert_eq!(allocations(&bench.asked()), []);
    }
}

#[test]
fn the_relay_is_pinged_once_a_second_while_packets_flow() {
    for nominates in [true, false] {
        let mut bench = relayed(nominates);
        bench.keep_alive(S(5));
        assert_eq!(bench.asked(), []);
        for step in 1..=20 {
            bench.counters(step * 1000, step * 1000, SOCKET);
            bench.keep_alive(MS(250));
        }
        let pings = bench.asked().iter().filter(|said| **said == ToRelay::Ping).count();
        assert_eq!(pings, 5, "nominates: {nominates}");
        bench.relay(RelayNews::Closed);
        bench.counters(30_000, 30_000, SOCKET);
        assert_eq!(bench.asked(), []);
    }
}

#[test]
fn what_was_to_be_said_over_a_channel_that_is_gone_is_void() {
    let mut bench = met(true);
    bench.relay(RelayNews::Closed);
    assert_eq!(bench.asked(), []);
    bench.open_relay();
    assert!(matches!(bench.asked()[0], ToRelay::Hello { .. }));
    // Nor is a relay heard that has no channel.
    bench.relay(RelayNews::Closed);
    bench.meet();
    allocate(&mut bench, 0);
    assert_eq!((binds(&bench.transmits()), bench.asked()), (vec![], vec![]));
}

#[test]
fn the_side_that_nominates_asks_at_once_and_the_other_one_if_it_is_told_nothing_for_a_second() {
    assert_eq!(allocations(&met(true).asked()), [None]);
    let mut bench = met(false);
    bench.collect(MS(990));
    assert_eq!(allocations(&bench.asked()), []);
    bench.collect(MS(20));
    assert_eq!(allocations(&bench.asked()), [None]);

    let mut told = met(false);
    allocate(&mut told, 0);
    told.collect(S(1));
    assert_eq!(allocations(&told.asked()), []);
}

#[test]
fn a_relay_that_does_not_answer_is_asked_ever_more_rarely() {
    let mut bench = met(true);
    let start = bench.now;
    let mut at = Vec::new();
    while bench.now - start < S(200) {
        at.extend(allocations(&bench.asked()).iter().map(|_| (bench.now - start).as_secs()));
        bench.collect(S(1));
    }
    assert_eq!(at, [0, 2, 6, 14, 30, 62, 122, 182]);
}

#[test]
fn bind_is_repeated_with_the_next_counter_until_it_is_bound() {
    let mut bench = met(true);
    allocate(&mut bench, 40);
    let start = bench.now;
    let mut at = Vec::new();
    for _ in 0..100 {
        let counters = binds(&bench.transmits());
        at.extend(counters.into_iter().map(|counter| ((bench.now - start).as_millis(), counter)));
        bench.step(MS(10));
    }
    assert_eq!(at, [(0, 41), (100, 42), (300, 43), (700, 44)]);

    answer(&mut bench, 43, &Body::Challenge(TOKEN));
    let sent: Vec<_> = bench.transmits().iter().filter_map(said).collect();
    assert_eq!(sent, [(43, Body::Answer(TOKEN))]);
    assert_eq!(phase(&bench), Some(LegPhase::Binding));
    answer(&mut bench, 43, &Body::Bound { observed: addr("198.51.100.1:21820") });
    assert_eq!(phase(&bench), Some(LegPhase::Bound));
    assert_eq!(binds(&bench.collect(S(20))), []);
}

#[test]
fn relay_messages_that_are_forged_late_or_misdirected_change_nothing() {
    let mut bench = met(true);
    allocate(&mut bench, 0);
    bench.transmits();
    let header = Header { allocation: AllocationId(7), side: Side::Low, counter: 1 };
    let sealed = |header: Header, body: &Body| relay::seal(&key(), &header, body).to_vec();
    let challenge = Body::Challenge(TOKEN);
    let mut forged = sealed(header, &challenge);
    forged[70] ^= 1;
    for (from, payload) in [
        (SOCKET, forged),
        (SOCKET, sealed(Header { counter: 0, ..header }, &challenge)),
        (SOCKET, sealed(Header { counter: 2, ..header }, &challenge)),
        (SOCKET, sealed(Header { side: Side::High, ..header }, &challenge)),
        (SOCKET, sealed(Header { allocation: AllocationId(8), ..header }, &challenge)),
        (SOCKET, sealed(header, &Body::Bind)),
        ("192.0.2.9:51908", sealed(header, &challenge)),
        ("192.0.2.8:51907", sealed(header, &challenge)),
    ] {
        bench.receive(from, payload);
    }
    assert_eq!(bench.transmits(), []);
    assert_eq!(bench.engine.stats().dropped_relay, 8);
    // What answers a BIND is taken once: a recording of it says nothing later.
    answer(&mut bench, 1, &Body::Bound { observed: addr("198.51.100.1:21820") });
    answer(&mut bench, 1, &Body::Challenge(TOKEN));
    assert_eq!(bench.transmits(), []);
    assert_eq!(bench.engine.stats().dropped_relay, 9);
}

#[test]
fn wireguard_is_pointed_at_a_relay_when_both_legs_are_bound_and_one_side_starts_the_handshake() {
    // `early.rs` has the device that can begin sooner.
    let mut bench = bound_by(Bench::on(true, false));
    bench.collect(S(1));
    let peer = bench.peer;
    let touches = |events: &[Event]| events.iter().any(|event| matches!(event, Event::SetEndpoint { .. }));
    assert!(!touches(&bench.events()), "the peer's leg is not bound yet");
    let events = ready(&mut bench);
    let keepalive = Some(S(25));
    assert_eq!(events[0], Event::SetEndpoint { peer, endpoint: addr(SOCKET), keepalive });
    assert_eq!(events[1], Event::StartHandshake { peer });
    assert!(matches!(events[2], Event::SendEcho { .. }));
}

#[test]
fn the_side_that_follows_waits_for_the_handshake_and_starts_its_own_after_three_seconds() {
    let peer = bound(false).peer;
    let mut heard = bound(false);
    assert_eq!(ready(&mut heard), [Event::PathChanged { peer, state: PathState::Connecting }][..0]);
    heard.input(Input::EchoRequest { peer });
    let events = heard.events();
    assert!(matches!(events[0], Event::SetEndpoint { endpoint, .. } if endpoint == addr(SOCKET)));
    assert!(!events.contains(&Event::StartHandshake { peer }));

    let mut silent = bound(false);
    ready(&mut silent);
    assert!(!silent.collect_events(MS(2900)).contains(&Event::StartHandshake { peer }));
    assert!(silent.collect_events(MS(200)).contains(&Event::StartHandshake { peer }));
}

#[test]
fn an_echo_makes_the_path_and_the_reason_says_why_it_is_not_direct() {
    for nominates in [true, false] {
        let mut bench = relayed(nominates);
        let PathState::Relayed { relay, endpoint, reason, .. } = state(&bench) else { unreachable!() };
        assert_eq!((relay, endpoint, reason), (RELAY, addr(SOCKET), Reason::NotTriedYet));
        bench.keep_alive(S(6));
        let PathState::Relayed { reason, .. } = state(&bench) else { panic!("{:?}", state(&bench)) };
        assert_eq!(reason, Reason::NoAnswer);
    }
}

#[test]
fn a_relay_that_carries_nothing_is_not_shown_as_a_path() {
    let mut bench = bound(true);
    ready(&mut bench);
    bench.collect(S(3));
    assert!(!matches!(state(&bench), PathState::Relayed { .. }));
    assert_eq!(bench.engine.stats().relayed, 0);
}

#[test]
fn a_leg_in_use_is_bound_again_every_minute_and_at_once_when_it_lost_its_source() {
    let mut bench = relayed(true);
    let peer = bench.peer;
    assert_eq!(binds(&bench.keep_alive(S(58))), []);
    assert!(!binds(&bench.keep_alive(S(3))).is_empty());
    bench.hear(ToNode::Unbound(peer));
    assert!(!binds(&bench.transmits()).is_empty());
    assert!(
        matches!(state(&bench), PathState::Relayed { .. }),
        "packets may pass until there is proof that they don't"
    );
}

#[test]
fn a_peer_whose_agent_came_back_is_greeted_and_once_more_when_its_leg_is_bound() {
    for nominates in [true, false] {
        let mut bench = relayed(nominates);
        let peer = bench.peer;
        bench.keep_alive(S(3));
        let greetings = |events: Vec<Event>| {
            let is_one = |event: &&Event| matches!(event, Event::StartHandshake { .. });
            events.iter().filter(is_one).count()
        };
        bench.hear(ToNode::Present { node: peer, met: false });
        bench.hear(ToNode::Present { node: peer, met: true });
        assert_eq!(greetings(bench.events()), usize::from(nominates), "one side starts handshakes");
        // The relay had nowhere to send that one to: its answer is overdue, at the round trip that this path has.
        bench.collect(MS(5));
        bench.hear(ToNode::Ready(peer));
        assert_eq!(greetings(bench.events()), usize::from(nominates));
        bench.hear(ToNode::Ready(peer));
        assert_eq!(greetings(bench.collect_events(MS(300))), 0, "nominates: {nominates}");
    }
}

#[test]
fn a_relay_that_is_another_process_is_asked_again_for_the_same_port() {
    for nominates in [true, false] {
        let mut bench = relayed(nominates);
        bench.relay(RelayNews::Closed);
        bench.relay(RelayNews::Open { addresses: vec!["192.0.2.9".parse().unwrap()] });
        bench.hear(ToNode::Welcome { boot: 2, observed: addr(PEER) });
        bench.asked();
        bench.meet();
        assert_eq!(allocations(&bench.asked()), [Some(51_907)], "nominates: {nominates}");
        let partner = bench.peer;
        bench.hear(ToNode::Allocated { partner, leg: Leg { allocation: AllocationId(8), ..leg(0) } });
        assert_eq!(bench.transmits().iter().filter(|sent| relay::is_relay(&sent.payload)).count(), 1);
    }
}

#[test]
fn one_that_is_direct_releases_its_leg_after_half_a_minute() {
    let mut bench = relayed(true);
    let peer = bench.peer;
    let sent = bench.keep_alive(S(1));
    bench.answer(&sent, PEER);
    let nomination = bench.transmits();
    let epoch = nomination.iter().find_map(|sent| match bench.open(sent) {
        Some((tx, wire::probe::Probe::Nominate { epoch })) => Some((tx, epoch)),
        _ => None,
    });
    let (tx, epoch) = epoch.expect("a nomination");
    assert!(!bench.events().iter().any(|event| matches!(event, Event::SetEndpoint { .. })), "the relay works");
    let ack = bench.seal(tx, &wire::probe::Probe::NominateAck { epoch });
    bench.receive(PEER, ack);
    let events = bench.events();
    assert!(matches!(events[0], Event::SetEndpoint { endpoint, .. } if endpoint == addr(PEER)));
    assert!(!events.contains(&Event::StartHandshake { peer }), "the session goes on");
    bench.input(Input::EchoReply { peer, token: token(&events).unwrap() });
    assert!(bench.is_direct());
    bench.keep_alive(S(29));
    assert_eq!(bench.asked().into_iter().filter(|said| matches!(said, ToRelay::Release(_))).count(), 0);
    bench.keep_alive(S(2));
    assert!(bench.asked().contains(&ToRelay::Release(peer)));
    assert_eq!(phase(&bench), None);
}

#[test]
fn a_peer_that_is_not_wanted_gets_no_leg() {
    let mut bench = met(false);
    let peer = bench.peer;
    let unwanted = PeerConfig { wanted: false, ..config(peer, vec![host(PEER)]) };
    bench.input(Input::Peers { upsert: vec![unwanted], remove: Vec::new() });
    bench.asked();
    allocate(&mut bench, 0);
    assert_eq!((bench.asked(), binds(&bench.transmits())), (vec![ToRelay::Release(peer)], vec![]));
    bench.collect(S(10));
    assert_eq!(allocations(&bench.asked()), []);
}

#[test]
fn a_relay_that_refuses_is_asked_again_later_each_time() {
    for news in [
        |partner| ToNode::Refused { partner, reason: RefusedReason::PortsExhausted },
        |partner| ToNode::Released { partner, reason: ReleasedReason::NotBound },
    ] {
        let mut bench = met(true);
        let peer = bench.peer;
        let mut gaps = Vec::new();
        let mut last = bench.now;
        bench.asked();
        bench.hear(news(peer));
        while gaps.len() < 5 {
            bench.collect(S(1));
            if !allocations(&bench.asked()).is_empty() {
                gaps.push((bench.now - last).as_secs());
                last = bench.now;
                bench.hear(news(peer));
            }
        }
        assert_eq!(gaps, [5, 10, 20, 40, 80]);
    }
}

#[test]
fn a_relay_cannot_make_this_node_send_to_forbidden_addresses_or_to_no_port() {
    let mut bench = Bench::new(true);
    bench.add_peer(&[PEER]);
    bench.relay(RelayNews::Open { addresses: vec!["10.42.0.9".parse().unwrap(), "127.0.0.1".parse().unwrap()] });
    bench.meet();
    let partner = bench.peer;
    assert_eq!(allocations(&bench.asked()), [], "it is no use");
    allocate(&mut bench, 0);
    let sent = bench.collect(S(5));
    assert!(sent.iter().all(|sent| !relay::is_relay(&sent.payload)));

    let mut portless = met(true);
    portless.hear(ToNode::Allocated { partner, leg: Leg { port: 0, ..leg(0) } });
    assert!(portless.collect(S(5)).iter().all(|sent| sent.remote.port() != 0));
}

#[test]
fn relays_and_legs_beyond_their_caps_are_refused() {
    let mut bench = Bench::new(false);
    bench.add_peer(&[PEER]);
    let (peer, partner) = (bench.peer, bench.peer);
    for number in 0..20 {
        let relay = RelayId([number; 32]);
        let addresses = vec![format!("192.0.2.{}", 20 + number).parse().unwrap(); 100];
        for news in [
            RelayNews::Open { addresses },
            RelayNews::Said(ToNode::Present { node: peer, met: true }),
            RelayNews::Said(ToNode::Allocated { partner, leg: leg(0) }),
        ] {
            bench.input(Input::Relay { relay, news });
        }
    }
    let report = &bench.engine.snapshot().peers[&peer];
    assert_eq!((report.met.len(), report.legs.len()), (8, 2));
    assert_eq!(bench.engine.stats().refused_relays, 12);
}
