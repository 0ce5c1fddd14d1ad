//! From a relay to the direct path and back, with a device that follows every authentic packet: what is held against a path, for how
//! long, and who brings the other side along.
#![allow(clippy::unwrap_used)]

mod support;

use std::time::Duration;

use path::{Event, Input, PathState, Reason, Transmit};
use support::legs::{PEER, SOCKET, acknowledge, bound, direct, nomination, ready, relayed, state, token};
use support::{Bench, addr};

const MS: fn(u64) -> Duration = Duration::from_millis;
const S: fn(u64) -> Duration = Duration::from_secs;

fn is_relayed(bench: &Bench) -> bool {
    matches!(state(bench), PathState::Relayed { .. })
}

/// Time passes in small steps with a peer that answers probes, and no echo. All that is sent.
fn probes_only(bench: &mut Bench, time: Duration) -> Vec<Transmit> {
    let end = bench.now + time;
    let mut all = Vec::new();
    while bench.now < end {
        let sent = bench.collect(MS(100));
        bench.answer(&sent, PEER);
        all.extend(sent);
    }
    all
}

fn points_at(events: &[Event], remote: &str) -> bool {
    events.iter().any(|event| matches!(event, Event::SetEndpoint { endpoint, .. } if *endpoint == addr(remote)))
}

/// A direct pair whose packets leave, and nothing comes back: the path is about to be checked.
fn silent(nominates: bool) -> Bench {
    let mut bench = direct(nominates);
    bench.counters(1000, 1000, PEER);
    bench.keep_alive(S(3));
    bench.counters(1000, 2000, PEER);
    bench
}

/// The device is at the relay's socket, and the direct path answers. What the engine does and sends.
fn led(bench: &mut Bench, rx: u64) -> (Vec<Event>, Vec<Transmit>) {
    bench.counters(rx, rx, SOCKET);
    let sent = bench.transmits();
    bench.answer(&sent, PEER);
    bench.counters(rx, rx, SOCKET);
    (bench.events(), bench.transmits())
}

#[test]
fn a_trial_that_may_have_had_no_session_says_nothing_once_a_relay_has_one() {
    let mut bench = bound(true);
    let peer = bench.peer;
    let sent = bench.collect(S(1));
    bench.answer(&sent, PEER);
    // No path yet, so WireGuard is pointed at the pair at once. The other side has lost its session and does not answer.
    probes_only(&mut bench, S(3));
    assert_eq!(state(&bench), PathState::Down { reason: Reason::DataBlocked });
    let mut events = ready(&mut bench);
    let mut sent = Vec::new();
    for _ in 0..100 {
        if let Some(token) = token(&events) {
            bench.input(Input::EchoReply { peer, token });
        }
        if is_relayed(&bench) {
            break;
        }
        events = bench.collect_events(MS(20));
    }
    assert!(is_relayed(&bench), "{:?}", state(&bench));
    sent.extend(bench.transmits());
    sent.extend(probes_only(&mut bench, MS(500)));
    assert!(nomination(&bench, &sent).is_some(), "tried again, now that there is a session");
}

#[test]
fn what_carries_probes_only_is_tried_after_ten_seconds_and_then_ever_more_rarely() {
    let mut bench = relayed(true);
    let peer = bench.peer;
    let start = bench.now;
    let mut at: Vec<u64> = Vec::new();
    // As the device does: by the relay echoes come back, over the direct pair they do not.
    let mut by_relay = true;
    while bench.now < start + S(330) {
        for event in bench.events() {
            match event {
                Event::SetEndpoint { endpoint, .. } => by_relay = endpoint == addr(SOCKET),
                Event::SendEcho { token, .. } if by_relay => bench.input(Input::EchoReply { peer, token }),
                _ => {}
            }
        }
        let sent = bench.transmits();
        if let Some(nomination) = nomination(&bench, &sent) {
            at.push((bench.now - start).as_secs());
            for event in acknowledge(&mut bench, nomination) {
                if let Event::SetEndpoint { endpoint, .. } = event {
                    by_relay = endpoint == addr(SOCKET);
                }
            }
        }
        bench.answer(&sent, PEER);
        bench.step(MS(100));
    }
    at.dedup();
    let gaps: Vec<u64> = at.windows(2).map(|pair| pair[1] - pair[0]).collect();
    assert!(gaps.len() >= 4, "{at:?}");
    for (gap, least) in gaps.iter().zip([10, 20, 40, 80]) {
        assert!((least..least + 9).contains(gap), "{gaps:?}");
    }
}

#[test]
fn the_side_that_nominates_brings_both_devices_back_from_where_they_were_led() {
    let mut bench = direct(true);
    let (events, sent) = led(&mut bench, 1000);
    assert!(points_at(&events, PEER));
    let nomination = nomination(&bench, &sent).expect("the peer is told again");
    assert!(points_at(&acknowledge(&mut bench, nomination), PEER), "once more, when the peer has gone there too");
    assert!(bench.is_direct());
}

#[test]
fn a_follower_that_was_led_asks_and_in_the_end_goes_along_without_blaming_the_path() {
    let mut bench = direct(false);
    let (events, sent) = led(&mut bench, 1000);
    assert!(points_at(&events, PEER) && nomination(&bench, &sent).is_some());
    for turn in 2..=4 {
        assert!(bench.is_direct(), "turn {turn}");
        bench.keep_alive(S(6));
        led(&mut bench, 1000 * turn);
    }
    assert!(!bench.is_direct());
    let pairs = &bench.engine.snapshot().peers[&bench.peer].pairs;
    assert!(pairs.iter().all(|pair| pair.outcome != path::PairOutcome::DataBlocked), "{pairs:?}");
    assert_eq!(bench.engine.stats().data_blocked, 0);
}

#[test]
fn a_device_that_was_led_from_a_path_that_is_silent_stays_where_it_is() {
    for nominates in [true, false] {
        let mut bench = direct(nominates);
        // It answered until a moment ago.
        bench.keep_alive(S(3));
        let mut events = Vec::new();
        for rx in 1..100 {
            bench.counters(1000 * rx, 1000 * rx, SOCKET);
            events.extend(bench.collect_events(MS(50)));
        }
        assert!(!points_at(&events, PEER), "nominates: {nominates}: {events:?}");
        assert!(!bench.is_direct(), "nominates: {nominates}");
    }
}

#[test]
fn a_check_of_a_path_that_answers_points_the_device_back_before_it_concludes_anything() {
    for answers in [true, false] {
        let mut bench = direct(true);
        bench.input(Input::NetworkChanged);
        assert!(!points_at(&bench.events(), PEER));
        if answers {
            let sent = bench.transmits();
            bench.answer(&sent, PEER);
        }
        assert_eq!(points_at(&bench.collect_events(MS(250)), PEER), answers);
    }
}

/// The peer has found the path dead before this side, and its packets led the device to the relay: by that the echo came back, before
/// the device was asked where it is.
#[test]
fn an_echo_that_may_have_come_by_a_relay_speaks_for_no_direct_path() {
    for nominates in [true, false] {
        let mut bench = silent(nominates);
        let peer = bench.peer;
        let token = token(&bench.collect_events(MS(400))).expect("silence is looked into");
        bench.input(Input::EchoReply { peer, token });
        let mut events = Vec::new();
        for rx in 2..12 {
            bench.counters(1000 * rx, 1000 * (rx + 1), SOCKET);
            events.extend(bench.collect_events(MS(50)));
        }
        assert!(!points_at(&events, PEER), "nominates: {nominates}: {events:?}");
        assert!(!bench.is_direct(), "nominates: {nominates}");
    }
}

/// The same with a path that carries probes and no data: its PONG comes after an echo by the relay, and would make that one count.
#[test]
fn an_echo_from_before_the_path_answered_does_not_show_that_it_carries_data() {
    for nominates in [true, false] {
        let mut bench = silent(nominates);
        let peer = bench.peer;
        let (mut sent, mut asked) = (Vec::new(), None);
        while asked.is_none() {
            bench.step(MS(10));
            asked = token(&bench.events());
            sent = bench.transmits();
        }
        bench.input(Input::EchoReply { peer, token: asked.unwrap() });
        bench.answer(&sent, PEER);
        // One check, and not what the next one finds out.
        probes_only(&mut bench, MS(2100));
        assert!(!bench.is_direct(), "nominates: {nominates}");
    }
}
