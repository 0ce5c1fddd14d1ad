//! A handshake by a relay begins with the ANSWER that binds the leg, before the peer's leg is known to be bound.
#![allow(clippy::unwrap_used)]

mod support;

use std::time::Duration;

use path::{Event, Input, PathState};
use support::legs::{SOCKET, TOKEN, allocate, answer, met, met_by, ready, state, token};
use support::{Bench, addr};
use wire::relay::Body;

const MS: fn(u64) -> Duration = Duration::from_millis;
const BOUND: fn() -> Body = || Body::Bound { observed: addr("198.51.100.1:21820") };

/// The relay challenges the first BIND of a leg. Nothing of what that brings about has been taken.
fn challenged(mut bench: Bench) -> Bench {
    allocate(&mut bench, 0);
    bench.collect(MS(0));
    answer(&mut bench, 1, &Body::Challenge(TOKEN));
    bench
}

/// Whether WireGuard is pointed at the relay, and how often a handshake is started.
fn begun(events: &[Event]) -> (bool, usize) {
    let leads = |event: &Event| matches!(event, Event::SetEndpoint { endpoint, .. } if *endpoint == addr(SOCKET));
    let starts = |event: &&Event| matches!(event, Event::StartHandshake { .. });
    (events.iter().any(leads), events.iter().filter(starts).count())
}

#[test]
fn it_departs_behind_the_answer() {
    let mut bench = challenged(met(true));
    // The shell is late, and takes events first.
    bench.step(MS(5));
    assert_eq!(begun(&bench.events()), (false, 0), "the relay would not know whose it is");
    assert!(bench.transmits().iter().any(|sent| sent.remote == addr(SOCKET)));
    assert_eq!(begun(&bench.collect_events(MS(0))), (true, 1));
}

/// What leaves together may arrive in another order.
#[test]
fn it_keeps_a_distance_from_the_answer_that_grows_with_the_relays() {
    let mut bench = met(true);
    allocate(&mut bench, 0);
    bench.collect(MS(80));
    answer(&mut bench, 1, &Body::Challenge(TOKEN));
    assert_eq!(begun(&bench.collect_events(MS(9))), (false, 0));
    assert_eq!(begun(&bench.collect_events(MS(1))), (true, 1));
}

#[test]
fn there_is_one_handshake_and_a_second_one_when_the_answer_to_that_is_overdue() {
    let mut bench = challenged(met(true));
    assert_eq!(begun(&bench.collect_events(MS(0))), (true, 1));
    answer(&mut bench, 1, &BOUND());
    bench.collect(MS(20));
    let at_once = ready(&mut bench);
    assert_eq!(begun(&at_once), (false, 0));
    assert_eq!(begun(&bench.collect_events(MS(190))), (false, 0));
    assert_eq!(begun(&bench.collect_events(MS(10))).1, 1);
    let peer = bench.peer;
    bench.input(Input::EchoReply { peer, token: token(&at_once).unwrap() });
    assert!(matches!(state(&bench), PathState::Relayed { .. }));
}

#[test]
fn an_answer_that_is_repeated_brings_another_one() {
    let mut bench = challenged(met(true));
    bench.collect(MS(150));
    answer(&mut bench, 2, &Body::Challenge(TOKEN));
    assert_eq!(begun(&bench.collect_events(MS(10))).1, 1);
}

#[test]
fn who_follows_waits_and_so_does_a_device_that_starts_one_in_five_seconds() {
    for bench in [Bench::on(false, true), Bench::on(true, false)] {
        let mut bench = challenged(met_by(bench));
        let mut events = bench.collect_events(MS(0));
        answer(&mut bench, 1, &BOUND());
        events.extend(bench.collect_events(MS(500)));
        assert_eq!(begun(&events), (false, 0));
    }
    let mut kernel = challenged(met_by(Bench::on(true, false)));
    kernel.collect(MS(20));
    assert_eq!(begun(&ready(&mut kernel)), (true, 1));
}

#[test]
fn a_session_that_lives_is_not_made_anew() {
    let mut bench = met(true);
    allocate(&mut bench, 0);
    bench.collect(MS(0));
    let peer = bench.peer;
    bench.input(Input::EchoRequest { peer });
    answer(&mut bench, 1, &Body::Challenge(TOKEN));
    assert_eq!(begun(&bench.collect_events(MS(20))), (false, 0));
}

#[test]
fn a_peer_that_never_comes_is_no_fault_of_the_relays() {
    let mut bench = challenged(met(true));
    bench.collect(MS(20));
    answer(&mut bench, 1, &BOUND());
    let sent = bench.collect(Duration::from_secs(20));
    assert!(!sent.iter().any(|sent| sent.remote == addr(SOCKET)), "its leg is not doubted");
    assert!(!matches!(state(&bench), PathState::Relayed { .. }));
    let stats = bench.engine.stats();
    assert_eq!((stats.relayed, stats.relay_died), (0, 0));
    // It comes after all: the relay is used as if nothing had been.
    assert_eq!(begun(&ready(&mut bench)).1, 1);
}

#[test]
fn a_direct_path_that_is_proven_meanwhile_need_not_wait() {
    let mut bench = challenged(met(true));
    let sent = bench.collect(MS(0));
    assert!(!sent.is_empty());
    let pings = bench.collect(MS(300));
    bench.answer(&pings, support::legs::PEER);
    let tried = bench.collect_events(MS(0));
    let leads =
        |event: &Event| matches!(event, Event::SetEndpoint { endpoint, .. } if *endpoint == addr(support::legs::PEER));
    assert!(tried.iter().any(leads), "{tried:?}");
}
