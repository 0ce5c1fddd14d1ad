//! A session that the device kept while no engine was there stays where it is until something better is proven.
#![allow(clippy::unwrap_used)]

mod support;

use std::time::Duration;

use path::{Event, Input, PathState, RelayNews, Session, Transmit};
use support::{Bench, addr};
use wire::probe::Probe;

const PEER: &str = "203.0.113.7:21820";
/// Where the peer isn't known to be: WireGuard followed its packets there.
const ROAMED: &str = "203.0.113.9:40000";
const KEEPALIVE: Duration = Duration::from_secs(25);

/// An engine that finds a session with a peer.
fn found(nominates: bool, endpoint: &str, seconds_ago: u64, keepalive: Option<Duration>) -> (Bench, Vec<Event>) {
    let mut bench = Bench::new(nominates);
    bench.add_peer(&[PEER]);
    let (peer, endpoint) = (bench.peer, addr(endpoint));
    let last_handshake = Duration::from_secs(seconds_ago);
    bench.input(Input::Sessions(vec![Session { peer, endpoint, keepalive, last_handshake }]));
    let events = bench.events();
    (bench, events)
}

fn touches(events: &[Event]) -> Vec<&Event> {
    let touches = |e: &&Event| {
        matches!(e, Event::SetEndpoint { .. } | Event::ClearEndpoint { .. } | Event::StartHandshake { .. })
    };
    events.iter().filter(touches).collect()
}

fn nominates(bench: &mut Bench) -> bool {
    let sent: Vec<Transmit> = bench.transmits();
    sent.iter().any(|transmit| matches!(bench.open(transmit), Some((_, Probe::Nominate { .. }))))
}

/// Lets time pass and collects the events.
fn pass(bench: &mut Bench, time: Duration) -> Vec<Event> {
    let (end, mut events) = (bench.now + time, Vec::new());
    while let Some((at, _)) = bench.engine.poll_timeout().filter(|(at, _)| *at <= end) {
        bench.now = bench.now.max(at);
        bench.engine.handle_timeout(bench.now);
        events.extend(bench.events());
        bench.transmits();
    }
    bench.now = end;
    events
}

#[test]
fn a_session_at_a_relay_is_never_called_direct() {
    for nominates in [true, false] {
        let mut bench = Bench::new(nominates);
        let relay = addr("192.0.2.9:51900");
        bench.relay(RelayNews::Connecting { addresses: vec![relay.ip()] });
        bench.add_peer(&[PEER]);
        let session =
            Session { peer: bench.peer, endpoint: relay, keepalive: Some(KEEPALIVE), last_handshake: KEEPALIVE };
        bench.input(Input::Sessions(vec![session]));
        let events = bench.events();
        assert!(touches(&events).is_empty());
        let token = events.iter().find_map(|e| if let Event::SendEcho { token, .. } = e { Some(*token) } else { None });
        let peer = bench.peer;
        // The relay's channel takes as long as it likes.
        bench.input(Input::EchoReply { peer, token: token.unwrap() });
        let last = bench.events().into_iter().rev().find_map(|event| match event {
            Event::PathChanged { state, .. } => Some(state),
            _ => None,
        });
        let last = last.expect("news");
        assert!(matches!(last, PathState::Relayed { endpoint, .. } if endpoint == relay), "{last:?}");
    }
}

#[test]
fn a_live_session_is_a_path_after_one_echo_and_nothing_is_touched() {
    for (side, endpoint) in [(true, PEER), (false, PEER), (true, ROAMED), (false, ROAMED)] {
        let (mut bench, events) = found(side, endpoint, 60, Some(KEEPALIVE));
        assert!(!bench.is_direct(), "not before it is proven");
        assert_eq!(touches(&events), Vec::<&Event>::new());
        let token = events.iter().find_map(|e| if let Event::SendEcho { token, .. } = e { Some(*token) } else { None });
        let peer = bench.peer;
        // A candidate that answers meanwhile moves nothing.
        let sent = bench.transmits();
        bench.answer(&sent, PEER);
        assert!(!nominates(&mut bench));
        bench.input(Input::EchoReply { peer, token: token.unwrap() });
        let events = bench.events();
        assert!(bench.is_direct());
        let first = touches(&events);
        assert!(first.is_empty(), "{first:?}");
    }
}

#[test]
fn data_that_arrives_confirms_it_while_the_peers_agent_is_silent() {
    let (mut bench, _) = found(false, PEER, 60, Some(KEEPALIVE));
    bench.counters(1000, 1000, PEER);
    assert!(!bench.is_direct());
    bench.counters(1200, 1200, PEER);
    assert!(bench.is_direct());
    assert!(touches(&bench.events()).is_empty());
}

#[test]
fn a_silent_peer_keeps_its_endpoint() {
    for side in [true, false] {
        let (mut bench, _) = found(side, PEER, 10, Some(KEEPALIVE));
        let events = pass(&mut bench, Duration::from_secs(100));
        assert!(!bench.is_direct());
        assert!(touches(&events).is_empty(), "{:?}", touches(&events));
    }
}

#[test]
fn a_peer_that_shakes_hands_with_wireguard_alone_keeps_its_endpoint_for_as_long_as_it_does() {
    let (mut bench, _) = found(false, PEER, 10, Some(KEEPALIVE));
    for _ in 0..60 {
        let counters = path::PeerCounters {
            public_key: bench.peer,
            rx_bytes: 0,
            tx_bytes: 0,
            last_handshake: Some(Duration::from_secs(100)),
            endpoint: Some(addr(PEER)),
        };
        bench.input(Input::Counters(vec![counters]));
        let events = pass(&mut bench, Duration::from_secs(10));
        assert!(touches(&events).is_empty(), "{:?}", touches(&events));
    }
}

#[test]
fn what_is_no_live_session_is_not_adopted() {
    for (endpoint, seconds_ago) in [(PEER, 180), ("10.42.0.7:21820", 10)] {
        let (mut bench, events) = found(true, endpoint, seconds_ago, Some(KEEPALIVE));
        assert!(!events.iter().any(|e| matches!(e, Event::SendEcho { .. })));
        // The first pair that answers is tried at once, as ever.
        let sent = bench.transmits();
        bench.answer(&sent, PEER);
        assert!(nominates(&mut bench));
    }
}

#[test]
fn only_a_keepalive_that_differs_is_set() {
    let (_, events) = found(true, PEER, 10, None);
    let (peer, endpoint) = (Bench::new(true).peer, addr(PEER));
    let keepalive = Some(KEEPALIVE);
    assert_eq!(touches(&events), [&Event::SetEndpoint { peer, endpoint, keepalive }]);
}
