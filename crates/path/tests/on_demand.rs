//! Pairs that sleep: what they cost, what wakes them, and what does not.
#![allow(clippy::unwrap_used)]

mod support;

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::time::Duration;

use path::{Event, Input, OnDemand, PathState, PeerConfig};
use support::{Bench, addr, host};
use wire::PrivateKey;
use wire::control::{self, RefusedReason, ToNode, ToRelay};
use wire::probe::Probe;
use wire::probe::signal::Step;
use wire::relay::{AllocationId, LegKey, Side};
use wire::stun::TransactionId;

const S: fn(u64) -> Duration = Duration::from_secs;
const ON_DEMAND: OnDemand = OnDemand { idle: Duration::from_secs(300), port: 9_999 };
/// Where the peer says that it is.
const AT: &str = "203.0.113.7:4000";

/// What happens, and its name.
type Happening = (&'static str, fn(&mut Bench));

/// An engine beside a relay, whose peer sleeps.
fn asleep(nominates: bool) -> Bench {
    let mut bench = Bench::new(nominates);
    bench.input(Input::OnDemand(Some(ON_DEMAND)));
    bench.open_relay();
    bench.add_peer(&[AT]);
    bench.meet();
    bench.run(S(3));
    bench.asked();
    assert!(is_asleep(&bench));
    bench
}

fn is_asleep(bench: &Bench) -> bool {
    bench.engine.snapshot().peers[&bench.peer].state == PathState::Idle
}

fn leg(bench: &Bench) -> control::Leg {
    let side = if bench.engine.public_key() < bench.peer { Side::Low } else { Side::High };
    control::Leg { allocation: AllocationId(9), side, port: 51_900, key: LegKey::from_bytes([1; 32]), counter: 0 }
}

/// Where WireGuard is pointed, in order.
fn endpoints(events: &[Event]) -> Vec<(SocketAddr, Option<Duration>)> {
    let endpoint = |event: &Event| match event {
        Event::SetEndpoint { endpoint, keepalive, .. } => Some((*endpoint, *keepalive)),
        _ => None,
    };
    events.iter().filter_map(endpoint).collect()
}

#[test]
fn a_thousand_peers_that_nobody_needs_cost_no_packet_and_no_turn() {
    let key = |n: u16| {
        let mut secret = [200; 32];
        secret[4..6].copy_from_slice(&n.to_be_bytes());
        PrivateKey::from_bytes(secret).public_key()
    };
    let config = |n: u16| {
        let candidates = vec![host(&format!("203.0.113.{}:{}", n % 250 + 1, 20_000 + n))];
        PeerConfig { public_key: key(n), candidates, round: 1, wanted: true }
    };
    let mut bench = Bench::new(true);
    bench.input(Input::OnDemand(Some(ON_DEMAND)));
    bench.open_relay();
    bench.input(Input::Peers { upsert: (0..1_000).map(config).collect(), remove: Vec::new() });
    for n in 0..1_000 {
        bench.hear(ToNode::Present { node: key(n), met: true });
    }
    let events = bench.events();
    let bells: BTreeSet<SocketAddr> = endpoints(&events).iter().map(|(bell, _)| *bell).collect();
    assert_eq!(bells.len(), 1_000, "each has its own");
    assert!(endpoints(&events).iter().all(|(bell, keepalive)| bell.port() == 9_999 && keepalive.is_none()));
    let looks = bench.engine.stats().looks;
    assert_eq!(bench.collect(S(24 * 3600)).len(), 0);
    assert_eq!(bench.engine.stats().looks, looks, "there is nothing to do for any of them");
    assert!(bench.asked().iter().all(|said| matches!(said, ToRelay::Hello { .. } | ToRelay::Meet(_))));
}

#[test]
fn a_call_asks_for_a_leg_and_calls_the_peer_at_once_whoever_nominates() {
    for nominates in [true, false] {
        let mut bench = asleep(nominates);
        bench.input(Input::Called { peer: bench.peer });
        assert!(!is_asleep(&bench));
        // No time has passed.
        let sent = bench.transmits();
        assert!(sent.iter().any(|sent| sent.remote == addr(AT)), "probed where no NAT is in the way");
        assert_eq!(bench.asked(), [ToRelay::Allocate { partner: bench.peer, hint: None }], "nominates: {nominates}");
        let endpoints = endpoints(&bench.events());
        assert!(endpoints.is_empty(), "WireGuard waits at the bell: {endpoints:?}");
    }
}

#[test]
fn what_shows_that_the_peer_needs_a_path_wakes_the_pair() {
    let wakes: [Happening; 4] = [
        ("a PING", |bench| bench.say(AT, &Probe::Ping)),
        ("a nomination", |bench| bench.say(AT, &Probe::Nominate { epoch: 1 })),
        ("a CALL", |bench| _ = bench.signal(Step::Call, false, &[host(AT)])),
        ("a leg", |bench| bench.hear(ToNode::Allocated { partner: bench.peer, leg: leg(bench) })),
    ];
    for nominates in [true, false] {
        for (what, wake) in wakes {
            let mut bench = asleep(nominates);
            wake(&mut bench);
            assert!(!is_asleep(&bench), "{what}, nominates: {nominates}");
            let to_peer = bench.collect(S(3)).iter().any(|sent| sent.remote == addr(AT));
            assert!(to_peer, "{what}, nominates: {nominates}");
        }
    }
}

#[test]
fn nothing_else_does() {
    let others: [Happening; 8] = [
        ("an answer to nothing", |bench| bench.say(AT, &Probe::Pong { observed: addr("198.51.100.1:21820") })),
        ("a stranger", |bench| bench.receive_from(vec![7; 100])),
        ("an old READY", |bench| _ = bench.signal(Step::Ready { answers: TransactionId([9; 12]) }, false, &[])),
        ("a leg that is no more", |bench| {
            let reason = control::ReleasedReason::Asked;
            bench.hear(ToNode::Released { partner: bench.peer, reason });
        }),
        ("a leg that is refused", |bench| {
            bench.hear(ToNode::Refused { partner: bench.peer, reason: RefusedReason::PortsExhausted });
        }),
        ("other addresses of the peer", |bench| bench.add_peer(&["203.0.113.8:4000"])),
        ("another network", |bench| bench.input(Input::NetworkChanged)),
        ("a relay that is made anew", |bench| {
            bench.relay(path::RelayNews::Closed);
            bench.open_relay();
            bench.meet();
        }),
    ];
    for (what, happens) in others {
        let mut bench = asleep(true);
        happens(&mut bench);
        let sent = bench.collect(S(600));
        assert!(is_asleep(&bench) && sent.is_empty(), "{what}: {sent:?}");
        assert!(!bench.asked().iter().any(|said| matches!(said, ToRelay::Allocate { .. })), "{what}");
    }
}

#[test]
fn a_peer_that_nobody_can_call_is_not_left_to_sleep() {
    let mut bench = asleep(true);
    let gone = ToNode::Present { node: bench.peer, met: false };
    bench.hear(gone.clone());
    bench.collect(S(29));
    bench.meet();
    assert_eq!(bench.collect(S(600)).len(), 0, "it came back in time");
    bench.hear(gone);
    assert_eq!(bench.collect(S(29)).len(), 0);
    assert!(!bench.collect(S(2)).is_empty());
    assert!(!is_asleep(&bench));
    bench.collect(S(3600));
    assert!(!is_asleep(&bench), "it is kept until it can be called");
    bench.meet();
    bench.collect(S(300 + 60));
    assert!(is_asleep(&bench));
}

#[test]
fn without_relays_every_pair_is_kept() {
    let mut bench = Bench::new(true);
    bench.input(Input::OnDemand(Some(ON_DEMAND)));
    bench.connect(AT);
    bench.keep_alive(S(1));
    for _ in 0..1_200 {
        bench.keep_alive(S(1));
        bench.counters(0, 0, AT);
    }
    assert!(!is_asleep(&bench));
}

#[test]
fn bells_are_given_back_when_pairs_are_to_stay_and_when_the_peer_goes() {
    for stays in [true, false] {
        let mut bench = Bench::new(true);
        bench.input(Input::OnDemand(Some(ON_DEMAND)));
        bench.open_relay();
        bench.add_peer(&[AT]);
        let bell = endpoints(&bench.events())[0].0;
        if stays {
            bench.input(Input::OnDemand(None));
            assert!(bench.transmits().iter().any(|sent| sent.remote == addr(AT)), "it is probed like all others");
        } else {
            bench.input(Input::Peers { upsert: Vec::new(), remove: vec![bench.peer] });
        }
        assert!(bench.events().contains(&Event::CarryNoMore { endpoint: bell }), "stays: {stays}");
    }
}

#[test]
fn another_idle_time_changes_nothing_for_those_who_sleep() {
    let mut bench = asleep(true);
    bench.input(Input::OnDemand(Some(OnDemand { idle: S(10), ..ON_DEMAND })));
    assert!(bench.collect(S(600)).is_empty() && is_asleep(&bench));
    assert_eq!(bench.engine.stats().woken, 0);
}
