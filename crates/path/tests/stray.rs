//! Whether a stranger's packet moves our port, found out with a relay's help.
#![allow(clippy::unwrap_used)]

mod support;

use std::time::Duration;

use path::{Event, Input, NatClass, RelayNews};
use support::{Bench, MAPPED, MOVED, OBSERVERS, addr, host, legs};
use wire::control::ToRelay;
use wire::relay::Body;
use wire::stun;

const S: fn(u64) -> Duration = Duration::from_secs;

/// An engine that has just found out that it is behind an endpoint-independent NAT, and its requests for strays.
fn asked() -> (Bench, Vec<wire::stun::TransactionId>) {
    let mut bench = Bench::behind_nat(true, true);
    bench.relay(RelayNews::Closed);
    bench.open_relay();
    let requests = std::iter::from_fn(|| bench.engine.poll_control());
    let tx = |control: path::Control| match control.message {
        ToRelay::Stray { tx, to } if to == addr(MAPPED) => Some(tx),
        ToRelay::Hello { .. } => None,
        other => panic!("{other:?}"),
    };
    let requests = requests.filter_map(tx).collect();
    (bench, requests)
}

#[test]
fn a_port_that_moves_is_poisonable_and_one_that_stays_is_not() {
    for poisonable in [true, false] {
        Bench::behind_nat(true, poisonable);
    }
}

#[test]
fn what_was_found_out_is_told_once_and_so_is_that_it_is_not_known_any_more() {
    for poisonable in [true, false] {
        let mut bench = Bench::behind_nat(true, poisonable);
        bench.relay_for(S(600), |_| panic!("it is known"));
        assert_eq!(bench.verdicts, [Some(poisonable)]);
        assert_eq!(bench.engine.poisonable(), Some(poisonable));
        bench.relay(RelayNews::Closed);
        bench.relay_for(S(1), |_| None);
        assert_eq!((bench.verdicts.as_slice(), bench.engine.poisonable()), (&[Some(poisonable), None][..], None));
    }
}

#[test]
fn one_stray_that_moves_the_port_is_proof_because_the_others_may_be_lost() {
    let (mut bench, requests) = asked();
    for (n, tx) in requests.iter().enumerate() {
        bench.stray_sent(*tx, &format!("192.0.2.3:{}", n + 1));
    }
    bench.relay_for(S(2), |port| Some(if port == 1 { MOVED } else { MAPPED }));
    assert_eq!(bench.engine.snapshot().poisonable, Some(true));
}

#[test]
fn strays_that_arrive_inside_harm_nobody() {
    let (mut bench, requests) = asked();
    for tx in requests {
        bench.receive("192.0.2.3:9", stun::encode_success(tx, addr(MAPPED)));
    }
    assert_eq!(bench.engine.snapshot().poisonable, Some(false));
}

#[test]
fn the_own_packet_follows_the_stray_at_a_distance() {
    let (mut bench, requests) = asked();
    bench.transmits();
    bench.stray_sent(requests[0], "192.0.2.3:1");
    let early = bench.run(Duration::from_millis(299));
    assert!(early.iter().all(|sent| sent.remote != addr("192.0.2.3:1")), "it must not open the way for the stray");
    let later = bench.run(Duration::from_millis(2));
    assert!(later.iter().any(|sent| sent.remote == addr("192.0.2.3:1")));
}

#[test]
fn a_test_without_result_is_tried_again_after_a_minute() {
    let mut bench = Bench::behind_nat(true, false);
    bench.relay(RelayNews::Closed);
    bench.open_relay();
    bench.relay_for(S(10), |_| None);
    assert_eq!(bench.engine.snapshot().poisonable, None);
    bench.relay_for(S(62), |_| Some(MAPPED));
    assert_eq!(bench.engine.snapshot().poisonable, Some(false));
}

/// Linux lets new connections leave by the port of the youngest one: who is asked anew sees the port that strays moved us to.
#[test]
fn the_port_that_strays_moved_it_to_is_told_and_makes_no_other_class() {
    let mut bench = Bench::behind_nat(true, true);
    // Another address makes the list news.
    bench.input(Input::ExtraCandidates(vec![host("192.168.7.7:21820")]));
    let events = bench.collect_events(S(1));
    let told = events.iter().find_map(|event| match event {
        Event::LocalCandidates(candidates, _) => Some(candidates.iter().map(|known| known.addr).collect::<Vec<_>>()),
        _ => None,
    });
    let told = told.expect("candidates");
    assert!([MAPPED, MOVED].map(addr).iter().all(|port| told.contains(port)), "{told:?}");
    let mut asked = 0;
    for _ in 0..2000 {
        for sent in bench.run(Duration::from_millis(100)) {
            let Some(number) = OBSERVERS.iter().position(|observer| addr(observer) == sent.remote) else { continue };
            let Ok(request) = stun::decode(&sent.payload) else { continue };
            asked |= 1 << number;
            let seen = if number == 0 { MAPPED } else { MOVED };
            bench.receive(OBSERVERS[number], stun::encode_success(request.tx, addr(seen)));
        }
    }
    assert_eq!(asked, (1 << OBSERVERS.len()) - 1, "everybody is asked again within three minutes");
    assert_eq!(bench.engine.snapshot().nat.v4, NatClass::EndpointIndependent);
    assert_eq!(bench.engine.snapshot().poisonable, Some(true));
}

/// What peers sent too early moves the port once more. The relay sees where to when a leg is bound.
#[test]
fn the_port_that_a_new_leg_shows_is_told_by_whom_strays_move_and_by_nobody_else() {
    for poisonable in [true, false] {
        let mut bench = Bench::behind_nat(true, poisonable);
        bench.add_peer(&[legs::PEER]);
        bench.meet();
        legs::allocate(&mut bench, 0);
        let seen = "203.0.113.200:33333";
        legs::answer(&mut bench, 1, &Body::Bound { observed: addr(seen) });
        let told = bench.events().into_iter().any(|event| match event {
            Event::LocalCandidates(candidates, _) => candidates.iter().any(|known| known.addr == addr(seen)),
            _ => false,
        });
        assert_eq!(told, poisonable);
        // An older leg, whose connection the box still knows by the port from before, changes nothing.
        bench.run(S(20));
        legs::allocate(&mut bench, 0);
        legs::answer(&mut bench, 2, &Body::Bound { observed: addr(MAPPED) });
        bench.step(S(1));
        assert!(!bench.events().iter().any(|event| matches!(event, Event::LocalCandidates(..))));
        assert_eq!(bench.engine.snapshot().nat.v4, NatClass::EndpointIndependent);
    }
}

#[test]
fn the_relay_cannot_make_this_node_send_to_a_forbidden_address() {
    let (mut bench, requests) = asked();
    for tx in requests {
        bench.stray_sent(tx, "10.42.0.9:53");
    }
    let sent = bench.run(S(5));
    assert!(sent.iter().all(|sent| sent.remote != addr("10.42.0.9:53")));
    assert_eq!(bench.engine.snapshot().poisonable, None);
}
