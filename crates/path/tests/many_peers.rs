//! What one peer costs among many: the others are not looked at.
#![allow(clippy::unwrap_used)]

mod support;

use std::time::Duration;

use path::{Input, PeerConfig, PeerCounters};
use support::{Bench, host};
use wire::{PrivateKey, PublicKey};

const PEERS: u16 = 200;

fn key(n: u16) -> PublicKey {
    let mut secret = [200; 32];
    secret[..2].copy_from_slice(&n.to_be_bytes());
    PrivateKey::from_bytes(secret).public_key()
}

fn config(n: u16) -> PeerConfig {
    let candidate = host(&format!("203.0.113.{}:{}", n % 250 + 1, 20_000 + n));
    PeerConfig { public_key: key(n), candidates: vec![candidate], round: 1, wanted: true }
}

/// An engine whose peers have all been probed in vain, in the long silence after that.
fn settled() -> Bench {
    let mut bench = Bench::new(true);
    bench.input(Input::Peers { upsert: (0..PEERS).map(config).collect(), remove: Vec::new() });
    bench.run(Duration::from_secs(20));
    assert!(bench.engine.poll_timeout().unwrap().0 > bench.now + Duration::from_secs(5));
    bench
}

#[test]
fn news_of_one_peer_is_no_reason_to_look_at_the_others() {
    let mut bench = settled();
    let before = bench.engine.stats().looks;
    let mut counters =
        PeerCounters { public_key: key(7), rx_bytes: 0, tx_bytes: 0, last_handshake: None, endpoint: None };
    for sent in 1..=10 {
        counters.tx_bytes = sent * 1_000;
        bench.input(Input::Counters(vec![counters]));
    }
    assert_eq!(bench.engine.stats().looks - before, 10);
    assert_eq!(bench.engine.counters_interval(), Duration::from_millis(250), "traffic is watched closely");
    bench.run(Duration::from_secs(11));
    assert_eq!(bench.engine.counters_interval(), Duration::from_secs(1));

    let before = bench.engine.stats().looks;
    bench.input(Input::Peers { upsert: vec![config(PEERS)], remove: vec![key(3)] });
    bench.input(Input::EchoRequest { peer: key(PEERS) });
    bench.input(Input::Counters(Vec::new()));
    assert_eq!(bench.engine.stats().looks - before, 2);
    assert_eq!(bench.engine.snapshot().peers.len(), usize::from(PEERS));
}

#[test]
fn everybody_has_a_turn_when_it_is_due() {
    let mut bench = settled();
    let sent = bench.run(Duration::from_secs(60));
    // The second round of the ladder, eight rungs each.
    assert_eq!(sent.len(), 8 * usize::from(PEERS));
}
