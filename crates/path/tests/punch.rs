//! The ordered punch: who opens, who waits, and what is said in which order.
#![allow(clippy::unwrap_used)]

mod support;

use std::time::Duration;

use path::{Candidate, Input, RelayNews, Transmit};
use support::{Bench, addr, config, host, reflexive};
use wire::control::{DeniedReason, ToNode};
use wire::probe::Probe;
use wire::probe::signal::{Signal, Step};
use wire::stun::TransactionId;

const NAT: &str = "203.0.113.7:21820";
const LAN: &str = "192.168.1.77:21820";
const MS: fn(u64) -> Duration = Duration::from_millis;
const S: fn(u64) -> Duration = Duration::from_secs;

fn candidates() -> [Candidate; 2] {
    [reflexive(NAT), host(LAN)]
}

/// A bench whose peer has a control channel too. What the engine says first is thrown away.
fn bench(nominates: bool, poisonable: bool) -> Bench {
    let mut bench = Bench::behind_nat(nominates, poisonable);
    bench.add_peer_with(candidates().to_vec());
    bench.meet();
    bench
}

/// The PINGs for an address, with the hops that they live.
fn pings(bench: &Bench, sent: &[Transmit], at: &str) -> Vec<Option<u8>> {
    let ping =
        |transmit: &&Transmit| transmit.remote == addr(at) && matches!(bench.open(transmit), Some((_, Probe::Ping)));
    sent.iter().filter(ping).map(|transmit| transmit.ttl).collect()
}

fn steps(signals: &[(TransactionId, Signal)]) -> Vec<Step> {
    signals.iter().map(|(_, signal)| signal.step).collect()
}

/// What the engine does about a CALL: the hops of its openers, and what it says.
fn answer_to_call(bench: &mut Bench, poisonable: bool) -> (Vec<Option<u8>>, Vec<Step>, TransactionId) {
    bench.transmits();
    bench.signals();
    let call = bench.signal(Step::Call, poisonable, &candidates());
    let sent = bench.transmits();
    (pings(bench, &sent, NAT), steps(&bench.signals()), call)
}

#[test]
fn the_side_that_alone_is_poisonable_opens_whatever_its_key() {
    for nominates in [true, false] {
        let (openers, said, call) = answer_to_call(&mut bench(nominates, true), false);
        assert_eq!(openers, [None], "it opens, and its openers may arrive");
        assert_eq!(said, [Step::Ready { answers: call }]);

        let (openers, said, _) = answer_to_call(&mut bench(nominates, false), true);
        assert_eq!(openers, [], "a packet of ours would come too early");
        assert_eq!(said, [Step::Call], "so it is the peer's turn to open");
    }
}

#[test]
fn between_equals_the_larger_key_opens() {
    for poisonable in [true, false] {
        let (openers, said, call) = answer_to_call(&mut bench(false, poisonable), poisonable);
        assert_eq!((openers.len(), said), (1, vec![Step::Ready { answers: call }]));
        let (openers, said, _) = answer_to_call(&mut bench(true, poisonable), poisonable);
        assert_eq!((openers.len(), said), (0, vec![Step::Call]));
    }
}

#[test]
fn if_both_are_poisonable_openers_die_on_their_way_five_three_then_eight_hops_from_home() {
    let mut bench = bench(false, true);
    for hops in [5, 3, 8, 5] {
        let (openers, ..) = answer_to_call(&mut bench, true);
        assert_eq!(openers, [Some(hops)]);
        let (again, ..) = answer_to_call(&mut bench, true);
        assert_eq!(again, [Some(hops)], "a repeated CALL belongs to the same round");
        bench.run(S(6));
    }
}

#[test]
fn only_what_is_behind_a_nat_waits_for_its_turn() {
    let mut bench = bench(true, false);
    let sent = bench.run(MS(900));
    assert_eq!(pings(&bench, &sent, NAT), []);
    assert_eq!(pings(&bench, &sent, LAN).len(), 5);
}

#[test]
fn the_caller_sends_when_the_peer_is_ready_and_then_says_so() {
    let mut bench = bench(true, false);
    let (call, said) = bench.signals().remove(0);
    assert_eq!(said.step, Step::Call);
    assert!(said.candidates.contains(&(3, addr(support::MAPPED))), "with fresh candidates");
    bench.transmits();
    let ready = bench.signal(Step::Ready { answers: call }, true, &candidates());
    let sent = bench.transmits();
    assert_eq!(pings(&bench, &sent, NAT), [None]);
    assert_eq!(steps(&bench.signals()), [Step::Go { answers: ready }]);
    // The word was lost, so the peer says once more that it is ready.
    let again = bench.signal(Step::Ready { answers: call }, true, &candidates());
    assert_eq!(steps(&bench.signals()), [Step::Go { answers: again }]);
}

#[test]
fn the_opener_goes_on_with_go_or_with_the_first_ping() {
    for by_signal in [true, false] {
        let mut bench = bench(false, true);
        bench.signals();
        bench.signal(Step::Call, true, &candidates());
        let (ready, _) = bench.signals().remove(0);
        bench.transmits();
        let silent = bench.run(MS(400));
        assert_eq!(pings(&bench, &silent, NAT), []);
        if by_signal {
            bench.signal(Step::Go { answers: ready }, true, &candidates());
        } else {
            bench.say(NAT, &Probe::Ping);
        }
        let sent = bench.run(MS(110));
        assert!(pings(&bench, &sent, NAT).len() >= 2, "by signal: {by_signal}");
        assert!(pings(&bench, &sent, NAT).iter().all(Option::is_none));
    }
}

#[test]
fn answers_to_nothing_that_was_said_open_nothing() {
    let mut bench = bench(true, false);
    bench.transmits();
    let strange = TransactionId([0xee; 12]);
    for step in [Step::Ready { answers: strange }, Step::Go { answers: strange }] {
        bench.signal(step, true, &candidates());
    }
    let sent = bench.run(MS(50));
    assert_eq!(pings(&bench, &sent, NAT), []);
    assert_eq!(steps(&bench.signals()), [Step::Call]);
}

#[test]
fn a_signal_that_is_forged_replayed_or_misdirected_is_dropped() {
    let mut bench = bench(false, true);
    bench.signals();
    let id = bench.next_tx();
    let call = bench.seal_signal(id, Step::Call, true, &candidates());
    let mut forged = call.clone();
    forged[100] ^= 1;
    let mut foreign = call.clone();
    foreign[0] ^= 1;
    for bytes in [forged, foreign, call[..100].to_vec(), Vec::new()] {
        bench.hear_signal(bytes);
    }
    assert_eq!(steps(&bench.signals()), []);
    bench.hear_signal(call.clone());
    assert_eq!(bench.signals().len(), 1);
    bench.hear_signal(call);
    assert_eq!(steps(&bench.signals()), [], "the relay has it twice");
    assert_eq!(bench.engine.stats().dropped_signals, 5);
}

#[test]
fn a_peer_that_calls_all_the_time_is_heeded_once_a_second() {
    let mut bench = bench(false, true);
    bench.signals();
    for _ in 0..100 {
        bench.signal(Step::Call, true, &candidates());
    }
    assert_eq!(bench.signals().len(), 8);
}

#[test]
fn addresses_that_a_signal_names_are_dialled_unless_they_are_forbidden() {
    let mut bench = bench(false, true);
    bench.transmits();
    let fresh = [reflexive("203.0.113.9:1"), reflexive("10.42.0.9:2")];
    bench.signal(Step::Call, true, &fresh);
    let sent = bench.transmits();
    assert_eq!(pings(&bench, &sent, "203.0.113.9:1"), [Some(5)]);
    assert_eq!(pings(&bench, &sent, "10.42.0.9:2"), []);
}

#[test]
fn a_call_is_repeated_and_after_ten_seconds_without_an_answer_everything_is_probed() {
    let mut bench = bench(true, false);
    let mut at = Vec::new();
    let start = bench.now;
    while bench.now - start < MS(9900) {
        let sent = bench.run(MS(100));
        assert_eq!(pings(&bench, &sent, NAT), [], "at {:?}", bench.now - start);
        let calls = bench.signals().len();
        at.extend(std::iter::repeat_n((bench.now - start).as_millis(), calls));
    }
    assert_eq!(at, [100, 500, 1000, 2000, 4000, 8000]);
    let sent = bench.run(MS(200));
    assert!(!pings(&bench, &sent, NAT).is_empty());
}

#[test]
fn between_rounds_there_is_silence_until_poison_has_been_forgotten() {
    let mut bench = bench(true, false);
    let (call, _) = bench.signals().remove(0);
    bench.signal(Step::Ready { answers: call }, true, &candidates());
    let round = bench.run(S(5));
    assert!(pings(&bench, &round, NAT).len() >= 8);
    bench.signals();
    let silence = bench.run(S(33));
    assert_eq!(pings(&bench, &silence, NAT), []);
    assert_eq!(steps(&bench.signals()), []);
    let next = bench.run(S(2));
    assert_eq!(pings(&bench, &next, NAT), [], "in order again");
    assert_eq!(steps(&bench.signals())[0], Step::Call);
}

#[test]
fn without_a_control_channel_nothing_waits_and_nothing_is_said() {
    let mut bench = Bench::behind_nat(true, false);
    bench.relay(RelayNews::Closed);
    bench.add_peer_with(candidates().to_vec());
    let sent = bench.run(MS(50));
    assert_eq!(pings(&bench, &sent, NAT), [None]);
    assert_eq!(steps(&bench.signals()), []);
}

#[test]
fn what_waits_for_a_channel_goes_when_it_is_lost_and_after_six_seconds_when_it_never_comes() {
    let mut lost = bench(true, false);
    lost.run(MS(50));
    lost.relay(RelayNews::Closed);
    let sent = lost.transmits();
    assert!(!pings(&lost, &sent, NAT).is_empty());

    let mut never = Bench::behind_nat(true, false);
    never.add_peer_with(candidates().to_vec());
    let early = never.run(MS(5900));
    assert_eq!(pings(&never, &early, NAT), []);
    let late = never.run(MS(200));
    assert!(!pings(&never, &late, NAT).is_empty());
}

/// A new node asks relays sooner than they have heard of it, and is let in at the second attempt.
#[test]
fn who_is_too_new_for_the_relay_waits_for_the_next_attempt_and_not_for_ever() {
    let too_new = || {
        let mut bench = Bench::new(true);
        bench.input(Input::HostCandidates(vec!["192.168.1.10/24".parse().unwrap()]));
        bench.relay(RelayNews::Open { addresses: vec!["192.0.2.9".parse().unwrap()] });
        bench.add_peer_with(candidates().to_vec());
        bench.hear(ToNode::Denied(DeniedReason::NotAdmitted));
        bench.relay(RelayNews::Closed);
        bench
    };
    let mut bench = too_new();
    let early = bench.run(MS(2000));
    assert_eq!(pings(&bench, &early, NAT), []);
    bench.open_relay();
    bench.meet();
    let ordered = bench.run(MS(500));
    assert_eq!(pings(&bench, &ordered, NAT), []);

    let mut never = too_new();
    let late = never.run(S(7));
    assert!(!pings(&never, &late, NAT).is_empty());

    // A relay that is gone, or that knew this node before, is not waited for.
    let mut put_out = bench;
    put_out.hear(ToNode::Denied(DeniedReason::NotAdmitted));
    put_out.relay(RelayNews::Closed);
    let sent = put_out.run(MS(50));
    assert!(!pings(&put_out, &sent, NAT).is_empty());
}

#[test]
fn who_does_not_know_the_relays_yet_waits_for_them_and_not_for_ever() {
    let unknowing = || {
        let mut bench = Bench::new(true);
        bench.input(Input::HostCandidates(vec!["192.168.1.10/24".parse().unwrap()]));
        bench.input(Input::RelaysUnknown(true));
        bench.add_peer_with(candidates().to_vec());
        bench
    };
    let mut bench = unknowing();
    let early = bench.run(MS(2000));
    assert_eq!(pings(&bench, &early, NAT), []);
    // There is none.
    bench.input(Input::RelaysUnknown(false));
    let sent = bench.run(MS(50));
    assert!(!pings(&bench, &sent, NAT).is_empty());

    let mut served = unknowing();
    served.relay(RelayNews::Connecting { addresses: vec!["192.0.2.9".parse().unwrap()] });
    served.input(Input::RelaysUnknown(false));
    let waits = served.run(MS(2000));
    assert_eq!(pings(&served, &waits, NAT), []);

    let mut never = unknowing();
    let late = never.run(S(7));
    assert!(!pings(&never, &late, NAT).is_empty());
}

#[test]
fn a_peer_that_this_node_does_not_want_is_answered_and_not_called() {
    let mut bench = Bench::behind_nat(false, true);
    let peer = bench.peer;
    let unwanted = path::PeerConfig { wanted: false, ..config(peer, candidates().to_vec()) };
    bench.input(Input::Peers { upsert: vec![unwanted], remove: Vec::new() });
    bench.meet();
    bench.run(S(1));
    assert_eq!(steps(&bench.signals()), []);
    let (openers, said, call) = answer_to_call(&mut bench, true);
    assert_eq!((openers.len(), said), (1, vec![Step::Ready { answers: call }]));
}
