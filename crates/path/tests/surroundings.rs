//! What a change of this node's own surroundings may cost, and what it must not.
#![allow(clippy::unwrap_used)]

mod support;

use std::net::IpAddr;
use std::time::Duration;

use path::{Event, Forbidden, Input, PairOutcome, Refusal};
use support::{Bench, addr};

const PEER: &str = "203.0.113.7:21820";
const OTHER: &str = "203.0.113.8:21820";

/// What the bench forbids from the start, with some addresses and networks more.
fn forbidden(own: &[&str], networks: &[&str]) -> Input {
    let own = ["198.51.100.1"].iter().chain(own).map(|text| text.parse().unwrap()).collect();
    let networks = ["10.42.0.0/16"].iter().chain(networks).map(|text| text.parse().unwrap()).collect();
    Input::Forbidden(Forbidden { networks, own_addresses: own, api_servers: vec![addr("198.51.100.2:6443")] })
}

#[test]
fn pods_that_come_and_go_and_nodes_that_join_probe_nobody() {
    let mut bench = Bench::new(true);
    bench.connect(PEER);
    bench.add_peer(&[PEER, OTHER]);
    bench.run(Duration::from_secs(8));
    let before = bench.engine.stats().clone();
    for (own, networks) in [
        (&["fe80::1", "10.42.0.1"][..], &[][..]),
        (&["10.42.0.1"], &[]),
        (&[], &["10.99.7.0/24"]),
        (&["10.42.0.1"], &["10.99.7.0/24", "fd77:7::/64"]),
    ] {
        bench.input(forbidden(own, networks));
        assert_eq!(bench.transmits(), [], "{own:?} {networks:?}");
        assert_eq!(bench.events(), [], "{own:?} {networks:?}");
    }
    assert_eq!(bench.engine.stats(), &before);
}

#[test]
fn a_penalty_outlives_a_pod() {
    let mut bench = Bench::new(true);
    bench.add_peer(&[PEER]);
    // Probes are answered, the tunnel is not.
    let end = bench.now + Duration::from_secs(4);
    while bench.now < end {
        let sent = bench.transmits();
        bench.answer(&sent, PEER);
        bench.events();
        bench.now = bench.engine.poll_timeout().map_or(end, |(due, _)| due.clamp(bench.now, end));
        bench.engine.handle_timeout(bench.now);
    }
    let outcome = |bench: &Bench| bench.engine.snapshot().peers[&bench.peer].pairs[0].outcome;
    assert_eq!(outcome(&bench), PairOutcome::DataBlocked);
    bench.input(forbidden(&["10.42.0.1"], &[]));
    assert_eq!(outcome(&bench), PairOutcome::DataBlocked);
}

#[test]
fn only_the_peer_whose_pair_became_forbidden_or_free_is_probed_again() {
    let mut bench = Bench::new(true);
    bench.connect(PEER);
    bench.add_peer(&[PEER, OTHER]);
    bench.run(Duration::from_secs(8));
    let host: IpAddr = addr(OTHER).ip();
    let net = format!("{host}/32");
    bench.input(forbidden(&[], &[&net]));
    let pairs = |bench: &Bench| bench.engine.snapshot().peers[&bench.peer].pairs.len();
    assert_eq!(pairs(&bench), 1);
    bench.transmits();
    bench.now += Duration::from_secs(10);
    bench.input(forbidden(&[], &[]));
    assert_eq!(pairs(&bench), 2);
    assert!(bench.transmits().iter().any(|sent| sent.remote == addr(OTHER)), "it may be dialled again");
}

#[test]
fn a_refused_address_is_counted_once_and_not_with_every_packet() {
    let mut bench = Bench::new(true);
    // An interface that lies in a pod range is never published.
    let hosts = ["198.51.100.1/32", "10.42.0.1/24"].map(|net| net.parse().unwrap());
    bench.input(Input::HostCandidates(hosts.to_vec()));
    bench.connect(PEER);
    bench.run(Duration::from_secs(2));
    let refused = |bench: &Bench| bench.engine.stats().refused.get(&Refusal::MeshNetwork).copied().unwrap_or_default();
    assert_eq!(refused(&bench), 1);
    for n in 0..50 {
        bench.counters(100 * n, 100 * n, PEER);
        bench.run(Duration::from_millis(100));
    }
    assert_eq!(refused(&bench), 1);
    assert!(bench.events().iter().all(|event| !matches!(event, Event::LocalCandidates(..))));
}
