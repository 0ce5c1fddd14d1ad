//! What a peer costs that is only known: it is named by the directory, and was never spoken to.
#![allow(clippy::unwrap_used)]

mod support;

use std::time::Duration;

use path::{Input, OnDemand, PathState, PeerConfig, PeerCounters, Reason};
use support::{Bench, host};
use wire::control::ToNode;
use wire::{PrivateKey, PublicKey};

#[global_allocator]
static ALLOCATOR: footprint::Counting = footprint::Counting;

const PEERS: u16 = 2_000;

/// Bytes of the heap for each: those of the peer with its pair keys, and what finds it by key, by key id and by time.
const MOST: usize = 760;

/// The same of a peer that sleeps and has said where it is, with a pair for each of four addresses, its bell and where it was met.
const MOST_ASLEEP: usize = 2_100;

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

/// PINGs that are sent to an address within some time.
fn pings(bench: &mut Bench, at: &str, time: Duration) -> usize {
    bench.run(time).iter().filter(|sent| sent.remote == support::addr(at)).count()
}

#[test]
fn a_peer_that_turns_up_is_asked_again_from_then_on() {
    const AT: &str = "203.0.113.7:4000";
    // In the second case the last round was over a moment ago, so the next one comes in its time.
    for (seconds, at_once) in [(3600, 8), (6, 1)] {
        let mut bench = Bench::new(true);
        bench.add_peer(&[]);
        assert_eq!(pings(&mut bench, AT, Duration::from_secs(seconds)), 0);
        // It knows this node's address, and has none that it could tell of.
        bench.say(AT, &wire::probe::Probe::Ping);
        let first = pings(&mut bench, AT, Duration::from_secs(10));
        assert!(first >= at_once, "{first}");
        let later = pings(&mut bench, AT, Duration::from_secs(3600));
        assert!(later >= 16, "{later}");
    }
}

#[test]
fn a_candidate_in_a_signal_is_asked_of_a_peer_that_had_none() {
    const AT: &str = "203.0.113.7:4000";
    let mut bench = Bench::behind_nat(true, false);
    bench.add_peer(&[]);
    bench.run(Duration::from_secs(3600));
    bench.meet();
    bench.run(Duration::from_secs(60));
    bench.signal(wire::probe::signal::Step::Call, false, &[support::host(AT)]);
    assert!(pings(&mut bench, AT, Duration::from_secs(120)) >= 8);
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
    let looks = bench.engine.stats().looks;
    pass(&mut bench, Duration::from_secs(3600));
    assert_eq!(bench.engine.stats().looks, looks, "there is nothing to ask it, and nobody to ask");
    let report = &bench.engine.snapshot().peers[&key(7)];
    assert_eq!(report.state, PathState::Down { reason: Reason::NoCandidates });
}

#[test]
fn a_peer_that_sleeps_is_small_although_it_has_addresses() {
    let at =
        |n: u16| ["192.0.2", "198.51.100", "203.0.113", "198.18.0"].map(|net| host(&format!("{net}.7:{n}"))).to_vec();
    let named = |n: u16| PeerConfig { public_key: key(n), candidates: at(n + 1), round: 1, wanted: true };
    let mut bench = Bench::new(true);
    bench.input(Input::OnDemand(Some(OnDemand { idle: Duration::from_secs(300), port: 9_999 })));
    bench.open_relay();
    let ((), bytes) = footprint::held(|| {
        bench.input(Input::Peers { upsert: (0..PEERS).map(named).collect(), remove: Vec::new() });
        for n in 0..PEERS {
            bench.hear(ToNode::Present { node: key(n), met: true });
        }
        drop((bench.events(), bench.asked()));
        pass(&mut bench, Duration::from_secs(60));
    });
    let each = usize::try_from(bytes).unwrap() / usize::from(PEERS);
    assert!(each <= MOST_ASLEEP, "{each} bytes");
    assert_eq!(bench.engine.snapshot().peers[&key(7)].state, PathState::Idle);
}
