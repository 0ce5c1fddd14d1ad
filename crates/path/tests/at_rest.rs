//! What a peer costs that is only known: it is named by the directory, says of no address of its own, and was never spoken to.
#![allow(clippy::unwrap_used)]

mod support;

use std::time::Duration;

use path::{Input, PathState, PeerConfig, PeerCounters, Reason};
use support::Bench;
use wire::{PrivateKey, PublicKey};

#[global_allocator]
static ALLOCATOR: footprint::Counting = footprint::Counting;

const PEERS: u16 = 2_000;

/// Bytes of the heap for each: those of the peer with its pair keys, and what finds it by key, by key id and by time.
const MOST: usize = 850;

fn key(n: u16) -> PublicKey {
    let mut secret = [200; 32];
    secret[4..6].copy_from_slice(&n.to_be_bytes());
    PrivateKey::from_bytes(secret).public_key()
}

fn named(n: u16) -> PeerConfig {
    PeerConfig { public_key: key(n), candidates: Vec::new(), round: 1, wanted: true }
}

/// The device tells of each peer for a while after it was added.
fn silent(n: u16) -> PeerCounters {
    PeerCounters { public_key: key(n), rx_bytes: 0, tx_bytes: 0, last_handshake: None, endpoint: None }
}

/// Lets time pass, and has no use for what the engine says meanwhile.
fn pass(bench: &mut Bench, time: Duration) {
    let end = bench.now + time;
    while let Some((at, _)) = bench.engine.poll_timeout().filter(|(at, _)| *at <= end) {
        bench.now = bench.now.max(at);
        bench.engine.handle_timeout(bench.now);
        while bench.engine.poll_event().is_some() {}
        while bench.engine.poll_transmit().is_some() {}
    }
    bench.now = end;
}

#[test]
fn a_peer_that_is_only_known_is_small() {
    let mut bench = Bench::new(true);
    let ((), bytes) = footprint::held(|| {
        bench
            .engine
            .handle_input(Input::Peers { upsert: (0..PEERS).map(named).collect(), remove: Vec::new() }, bench.now);
        for _ in 0..4 {
            pass(&mut bench, Duration::from_secs(1));
            bench.engine.handle_input(Input::Counters((0..PEERS).map(silent).collect()), bench.now);
        }
        pass(&mut bench, Duration::from_secs(60));
    });
    let each = usize::try_from(bytes).unwrap() / usize::from(PEERS);
    assert!(each <= MOST, "{each} bytes");
    let report = &bench.engine.snapshot().peers[&key(7)];
    assert_eq!(report.state, PathState::Down { reason: Reason::NoCandidates });
}
