//! What a hostile peer, or somebody on the way, cannot do.
#![allow(clippy::unwrap_used)]

mod support;

use std::time::Duration;

use path::{Candidate, CandidateKind, Event, Input, Refusal};
use support::{Bench, addr, config, host};
use wire::PrivateKey;
use wire::probe::Probe;

const PEER: &str = "203.0.113.7:21820";
const ELSEWHERE: &str = "203.0.113.66:4000";

#[test]
fn ten_thousand_candidates_become_sixteen_and_the_rest_is_counted() {
    let mut bench = Bench::new(true);
    let many = (0..10_000u32).map(|n| {
        let [_, _, high, low] = n.to_be_bytes();
        host(&format!("203.{}.{high}.{low}:21820", 1 + n % 200))
    });
    bench.add_peer_with(many.collect());
    let report = bench.engine.snapshot().peers[&bench.peer].clone();
    assert_eq!(report.pairs.len(), 16);
    assert_eq!(bench.transmits().len(), 12);
    assert_eq!(bench.engine.stats().refused[&Refusal::OverCap], 10_000 - 16);
}

#[test]
fn nothing_is_ever_sent_to_a_forbidden_candidate() {
    let mut bench = Bench::new(true);
    let forbidden = [
        "127.0.0.1:21820",
        "[::1]:21820",
        "[::ffff:127.0.0.1]:21820",
        "0.0.0.0:21820",
        "169.254.169.254:80",
        "224.0.0.1:21820",
        "255.255.255.255:21820",
        "[fe80::1]:21820",
        "10.42.1.1:21820",
        "198.51.100.1:21820",
        "198.51.100.2:6443",
        "203.0.113.7:0",
    ];
    bench.add_peer(&forbidden);
    assert!(bench.run(Duration::from_secs(100)).is_empty());
    let refused: u64 = bench.engine.stats().refused.values().sum();
    assert_eq!(refused, forbidden.len() as u64);
}

#[test]
fn a_network_that_becomes_forbidden_stops_probes_on_their_way_out() {
    let mut bench = Bench::new(true);
    bench.connect(PEER);
    bench.input(Input::Forbidden(path::Forbidden {
        networks: vec!["203.0.113.0/24".parse().unwrap()],
        ..path::Forbidden::default()
    }));
    let peer = bench.peer;
    assert!(bench.events().contains(&Event::ClearEndpoint { peer }));
    assert!(!bench.is_direct());
    assert!(bench.run(Duration::from_secs(100)).is_empty());
}

#[test]
fn a_hundred_peers_that_name_one_victim_do_not_make_a_flood() {
    let mut bench = Bench::new(true);
    let upsert = (0..100u8)
        .map(|n| {
            let key = PrivateKey::from_bytes([100 + n % 100, n, 3, 4, 5, 6, 7, 8].repeat(4).try_into().unwrap());
            let ports = (1..=16u16).map(|port| host(&format!("203.0.113.9:{}", 1000 * port + u16::from(n))));
            config(key.public_key(), ports.collect())
        })
        .collect();
    bench.input(Input::Peers { upsert, remove: Vec::new() });
    let seconds = 60;
    let sent = bench.run(Duration::from_secs(seconds));
    assert!(sent.len() as u64 <= 100 + 10 * seconds, "{}", sent.len());
    assert!(bench.engine.stats().dropped_budget > 0);
}

#[test]
fn a_replayed_ping_is_answered_once_and_proves_nothing() {
    let mut bench = Bench::new(true);
    bench.add_peer(&[]);
    let tx = bench.next_tx();
    let ping = bench.seal(tx, &Probe::Ping);
    bench.receive(PEER, ping.clone());
    let first = bench.transmits();
    assert_eq!(first.len(), 2, "a PONG and a PING back");
    for _ in 0..50 {
        bench.receive(ELSEWHERE, ping.clone());
    }
    assert!(bench.transmits().is_empty());
    assert_eq!(bench.engine.stats().dropped_replayed, 50);
    assert!(bench.events().iter().all(|event| !matches!(event, Event::SetEndpoint { .. })));
}

#[test]
fn own_probes_thrown_back_are_strangers() {
    let mut bench = Bench::new(true);
    bench.add_peer(&[PEER]);
    for transmit in bench.transmits() {
        bench.receive(PEER, transmit.payload);
    }
    assert_eq!(bench.engine.stats().dropped_unknown_key, 1);
    assert!(bench.transmits().is_empty());
}

#[test]
fn one_changed_bit_makes_a_probe_worthless() {
    let mut bench = Bench::new(true);
    bench.add_peer(&[PEER]);
    bench.transmits();
    let tx = bench.next_tx();
    let ping = bench.seal(tx, &Probe::Ping);
    for byte in 0..ping.len() {
        let mut forged = ping.clone();
        forged[byte] ^= 1;
        bench.receive(PEER, forged);
    }
    assert!(bench.transmits().is_empty());
    assert_eq!(bench.engine.stats().pings_received, 0);
}

#[test]
fn a_pong_from_elsewhere_or_to_nothing_proves_no_pair() {
    let mut bench = Bench::new(true);
    bench.add_peer(&[PEER, ELSEWHERE]);
    let sent = bench.transmits();
    let asked = sent.iter().find(|transmit| transmit.remote == addr(PEER));
    let (tx, _) = bench.open(asked.unwrap()).unwrap();
    let pong = Probe::Pong { observed: addr("198.51.100.1:21820") };
    let payload = bench.seal(tx, &pong);
    bench.receive(ELSEWHERE, payload);
    bench.say(PEER, &pong);
    assert_eq!(bench.engine.stats().dropped_unsolicited, 2);
    assert_eq!(bench.engine.stats().pongs_received, 0);
    assert!(bench.events().iter().all(|event| !matches!(event, Event::SetEndpoint { .. })));
}

#[test]
fn a_source_that_asks_without_end_is_answered_ten_times_a_second() {
    let mut bench = Bench::new(false);
    bench.add_peer(&[]);
    for _ in 0..200 {
        bench.say(PEER, &Probe::Ping);
    }
    let pongs = |bench: &mut Bench| {
        let sent = bench.transmits();
        let is_pong = |sent| matches!(bench.open(sent), Some((_, Probe::Pong { .. })));
        sent.iter().filter(|sent| is_pong(sent)).count()
    };
    assert_eq!(pongs(&mut bench), 10);
    assert_eq!(bench.engine.stats().dropped_reply_rate, 190);
}

#[test]
fn a_nomination_moves_nothing_before_this_side_has_proof_of_its_own() {
    let mut bench = Bench::new(false);
    bench.add_peer(&[]);
    bench.say(PEER, &Probe::Nominate { epoch: 1 });
    let sent = bench.transmits();
    let moved = |events: Vec<Event>| events.iter().any(|event| matches!(event, Event::SetEndpoint { .. }));
    assert!(!moved(bench.events()));
    bench.answer(&sent, PEER);
    assert!(moved(bench.events()));
}

#[test]
fn an_old_epoch_is_refused_and_the_answer_names_the_current_one() {
    let mut bench = Bench::new(false);
    bench.add_peer(&[PEER, ELSEWHERE]);
    let sent = bench.transmits();
    bench.answer(&sent, PEER);
    bench.answer(&sent, ELSEWHERE);
    bench.say(PEER, &Probe::Nominate { epoch: 5 });
    bench.events();
    bench.transmits();
    bench.say(ELSEWHERE, &Probe::Nominate { epoch: 5 });
    bench.say(ELSEWHERE, &Probe::Nominate { epoch: 4 });
    bench.say(ELSEWHERE, &Probe::Nominate { epoch: u64::MAX });
    let answers: Vec<_> = bench.transmits().iter().filter_map(|sent| bench.open(sent)).collect();
    let refusals = answers.iter().filter(|(_, probe)| *probe == Probe::NominateAck { epoch: 5 });
    assert_eq!(refusals.count(), 2);
    assert_eq!(bench.engine.stats().dropped_nominations, 3);
    assert!(bench.events().iter().all(|event| !matches!(event, Event::SetEndpoint { .. })));
}

#[test]
fn pings_from_a_thousand_sources_fill_four_places() {
    let mut bench = Bench::new(true);
    bench.connect(PEER);
    for n in 0..200u16 {
        bench.say(&format!("203.0.113.200:{}", 1000 + n), &Probe::Ping);
    }
    let report = bench.engine.snapshot().peers[&bench.peer].clone();
    let learned = report.pairs.iter().filter(|pair| pair.kind == CandidateKind::PeerReflexive);
    assert_eq!(learned.count(), 4);
    assert!(bench.is_direct());
}

#[test]
fn an_endpoint_that_roams_into_the_mesh_is_put_back_once_in_five_seconds() {
    let mut bench = Bench::new(true);
    bench.connect(PEER);
    bench.events();
    bench.run(Duration::from_secs(2));
    let back = |events: Vec<Event>| {
        let is_back = |event: &&Event| matches!(event, Event::SetEndpoint { endpoint, .. } if *endpoint == addr(PEER));
        events.iter().filter(is_back).count()
    };
    let mut corrections = 0;
    for _ in 0..40 {
        bench.counters(0, 0, "10.42.9.9:21820");
        corrections += back(bench.events());
        bench.now += Duration::from_millis(100);
    }
    assert_eq!(corrections, 1);
    assert_eq!(bench.engine.stats().put_back, 1);
}

#[test]
fn keys_that_make_no_pair_key_are_refused_and_the_others_live() {
    let mut bench = Bench::new(true);
    let own = bench.engine.public_key();
    let bad = wire::PublicKey::from_bytes([0; 32]);
    let candidates: Vec<Candidate> = vec![host(PEER)];
    let upsert = [own, bad, bench.peer].map(|key| config(key, candidates.clone()));
    bench.input(Input::Peers { upsert: upsert.to_vec(), remove: Vec::new() });
    assert_eq!(bench.engine.stats().refused_peers, 2);
    assert_eq!(bench.engine.snapshot().peers.len(), 1);
    assert_eq!(bench.transmits().len(), 1);
}
