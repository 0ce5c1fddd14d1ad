//! Which of several working pairs is used, and how one replaces another.
#![allow(clippy::unwrap_used)]

mod support;

use std::time::Duration;

use path::{Event, Input, Transmit};
use support::{Bench, addr};
use wire::probe::Probe;

const PEER: &str = "203.0.113.7:21820";
const OTHER: &str = "203.0.113.8:21820";
const V6: &str = "[2001:db8::7]:21820";

/// Lets the ladder run with a peer that answers on some addresses, each after its own time, the quickest first.
fn ladder(bench: &mut Bench, answering: &[(&str, u64)], time: Duration) -> Vec<Transmit> {
    let end = bench.now + time;
    let mut all = Vec::new();
    while bench.now < end {
        let sent = bench.transmits();
        let start = bench.now;
        for (at, rtt) in answering {
            if sent.iter().any(|transmit| transmit.remote == addr(at)) {
                bench.now = start + Duration::from_millis(*rtt);
                bench.answer(&sent, at);
            }
        }
        all.extend(sent);
        // The path in use carries data all the time.
        if let Some(token) = bench.echo() {
            let peer = bench.peer;
            bench.input(Input::EchoReply { peer, token });
            bench.events();
        }
        let due = bench.engine.poll_timeout().map_or(end, |(due, _)| due);
        bench.now = due.clamp(bench.now, end.max(bench.now));
        bench.engine.handle_timeout(bench.now);
    }
    all.extend(bench.transmits());
    all
}

fn nominated(bench: &Bench, sent: &[Transmit]) -> Option<(std::net::SocketAddr, u64)> {
    sent.iter().rev().find_map(|transmit| match bench.open(transmit)? {
        (_, Probe::Nominate { epoch }) => Some((transmit.remote, epoch)),
        _ => None,
    })
}

fn endpoints(events: &[Event]) -> Vec<std::net::SocketAddr> {
    let endpoint = |event: &Event| match event {
        Event::SetEndpoint { endpoint, .. } => Some(*endpoint),
        _ => None,
    };
    events.iter().filter_map(endpoint).collect()
}

/// A direct path over IPv4, then a better candidate that answers.
fn with_better(bench: &mut Bench) -> Vec<Transmit> {
    bench.connect(PEER);
    bench.add_peer(&[PEER, V6]);
    ladder(bench, &[(V6, 1), (PEER, 1)], Duration::from_millis(150))
}

#[test]
fn a_better_tier_wins_after_two_answers_and_moves_only_when_the_peer_agreed() {
    let mut bench = Bench::new(true);
    let sent = with_better(&mut bench);
    let (remote, epoch) = nominated(&bench, &sent).expect("IPv6 beats IPv4");
    assert_eq!((remote, epoch), (addr(V6), 2));
    let report = bench.engine.snapshot().peers[&bench.peer].clone();
    assert_eq!(report.endpoint, Some(addr(PEER)), "not before the acknowledgement");

    acknowledge(&mut bench, &sent, epoch);
    let events = bench.events();
    assert_eq!(endpoints(&events), [addr(V6)]);
    assert!(events.iter().all(|event| !matches!(event, Event::StartHandshake { .. })));
    confirm(&mut bench, &events);
    let report = bench.engine.snapshot().peers[&bench.peer].clone();
    assert!(matches!(report.state, path::PathState::Direct { pair, .. } if pair.remote == addr(V6)));
}

#[test]
fn a_better_path_that_carries_no_data_is_left_after_two_seconds() {
    let mut bench = Bench::new(true);
    let sent = with_better(&mut bench);
    let (_, epoch) = nominated(&bench, &sent).unwrap();
    acknowledge(&mut bench, &sent, epoch);
    bench.events();
    let end = bench.now + Duration::from_millis(2100);
    let mut all = Vec::new();
    while bench.now < end {
        let (due, _) = bench.engine.poll_timeout().unwrap();
        bench.now = bench.now.max(due);
        bench.engine.handle_timeout(bench.now);
        all.extend(endpoints(&bench.events()));
        let sent = bench.transmits();
        bench.answer(&sent, V6);
        bench.answer(&sent, PEER);
    }
    assert_eq!(all, [addr(PEER)]);
    let report = bench.engine.snapshot().peers[&bench.peer].clone();
    let v6 = report.pairs.iter().find(|pair| pair.remote == addr(V6)).unwrap();
    assert_eq!(v6.outcome, path::PairOutcome::DataBlocked);
    assert_eq!(bench.engine.stats().data_blocked, 1);
}

#[test]
fn inside_a_tier_four_milliseconds_are_no_reason_to_move() {
    for (rtt, moves) in [(36, false), (20, true)] {
        let mut bench = Bench::new(true);
        bench.add_peer(&[PEER, OTHER]);
        let sent = bench.transmits();
        bench.now += Duration::from_millis(40);
        bench.answer(&sent, PEER);
        let token = bench.echo().unwrap();
        let peer = bench.peer;
        bench.input(Input::EchoReply { peer, token });
        let sent = ladder(&mut bench, &[(OTHER, rtt), (PEER, 40)], Duration::from_secs(3));
        let later = nominated(&bench, &sent).filter(|(_, epoch)| *epoch > 1);
        assert_eq!(later.map(|(remote, _)| remote), moves.then_some(addr(OTHER)), "{rtt} ms");
    }
}

#[test]
fn the_following_side_never_starts_a_handshake() {
    let mut bench = Bench::new(false);
    bench.add_peer(&[PEER]);
    let sent = bench.transmits();
    bench.answer(&sent, PEER);
    bench.say(PEER, &Probe::Nominate { epoch: 1 });
    let end = bench.now + Duration::from_secs(10);
    let mut events = bench.events();
    while let Some((due, _)) = bench.engine.poll_timeout().filter(|(due, _)| *due < end) {
        bench.now = bench.now.max(due);
        bench.engine.handle_timeout(bench.now);
        events.extend(bench.events());
        let sent = bench.transmits();
        bench.answer(&sent, PEER);
    }
    assert_eq!(endpoints(&events), [addr(PEER)]);
    assert!(events.iter().all(|event| !matches!(event, Event::StartHandshake { .. })));
}

#[test]
fn a_path_that_just_died_is_not_the_one_that_is_nominated_next() {
    let mut bench = Bench::new(true);
    bench.connect(V6);
    bench.add_peer(&[V6, PEER]);
    ladder(&mut bench, &[(V6, 1), (PEER, 1)], Duration::from_secs(6));
    assert!(bench.is_direct());
    bench.counters(1000, 1000, V6);
    bench.counters(1000, 2000, V6);
    // From here on only the other address answers, and nothing comes out of the tunnel.
    let end = bench.now + Duration::from_millis(1500);
    let mut nominated = Vec::new();
    while bench.now < end {
        let sent = bench.transmits();
        bench.answer(&sent, PEER);
        bench.events();
        nominated.extend(sent.iter().filter_map(|transmit| match bench.open(transmit)? {
            (_, Probe::Nominate { .. }) => Some(transmit.remote),
            _ => None,
        }));
        bench.now = bench.engine.poll_timeout().map_or(end, |(due, _)| due.clamp(bench.now, end));
        bench.engine.handle_timeout(bench.now);
    }
    assert!(!nominated.is_empty());
    assert!(nominated.iter().all(|remote| *remote == addr(PEER)), "{nominated:?}");
}

fn acknowledge(bench: &mut Bench, sent: &[Transmit], epoch: u64) {
    let request = sent.iter().rev().find_map(|transmit| match bench.open(transmit)? {
        (tx, Probe::Nominate { epoch: asked }) if asked == epoch => Some((tx, transmit.remote)),
        _ => None,
    });
    let (tx, remote) = request.unwrap();
    let payload = bench.seal(tx, &Probe::NominateAck { epoch });
    bench.receive(&remote.to_string(), payload);
}

fn confirm(bench: &mut Bench, events: &[Event]) {
    let token = events.iter().find_map(|event| match event {
        Event::SendEcho { token, .. } => Some(*token),
        _ => None,
    });
    let (peer, token) = (bench.peer, token.unwrap());
    bench.input(Input::EchoReply { peer, token });
}
