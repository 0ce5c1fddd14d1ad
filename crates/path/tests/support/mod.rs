//! One engine under test, and a peer whose every packet the test writes by hand.
#![allow(dead_code)]

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use path::{Candidate, CandidateKind, Config, Engine, Event, Forbidden, Input, PeerConfig, PeerCounters, Transmit};
use wire::pair::PairKeys;
use wire::probe::{self, Probe};
use wire::stun::TransactionId;
use wire::{PrivateKey, PublicKey};

pub const MESH: &str = "test";

/// A private key whose public key sorts as the n-th of a few. Which node nominates depends on that.
fn nth_key(n: usize) -> [u8; 32] {
    let mut keys: Vec<[u8; 32]> = (1..=8).map(|byte| [byte; 32]).collect();
    keys.sort_by_key(|bytes| PrivateKey::from_bytes(*bytes).public_key());
    keys[n]
}

pub struct Bench {
    pub engine: Engine,
    pub now: Instant,
    pub peer: PublicKey,
    keys: PairKeys,
    transactions: u8,
}

impl Bench {
    /// An engine that nominates, or one that follows, and that knows its own address and what is forbidden.
    pub fn new(nominates: bool) -> Self {
        let (own, other) = if nominates { (0, 7) } else { (7, 0) };
        let own_key = PrivateKey::from_bytes(nth_key(own));
        let peer_key = PrivateKey::from_bytes(nth_key(other));
        let keys = PairKeys::derive(&peer_key, &own_key.public_key(), MESH, None).unwrap();
        let now = start();
        let config =
            Config { private_key: own_key, mesh_id: MESH.to_owned(), psk: None, listen_port: 21_820, seed: [7; 32] };
        let mut bench =
            Self { engine: Engine::new(config, now), now, peer: peer_key.public_key(), keys, transactions: 0 };
        bench.input(Input::Forbidden(Forbidden {
            networks: vec!["10.42.0.0/16".parse().unwrap()],
            own_addresses: vec!["198.51.100.1".parse().unwrap()],
            api_servers: vec![addr("198.51.100.2:6443")],
        }));
        bench.input(Input::HostCandidates(vec!["198.51.100.1/32".parse().unwrap()]));
        bench
    }

    pub fn input(&mut self, input: Input) {
        self.engine.handle_input(input, self.now);
    }

    pub fn add_peer(&mut self, candidates: &[&str]) {
        let candidates = candidates.iter().map(|text| host(text)).collect();
        self.add_peer_with(candidates);
    }

    pub fn add_peer_with(&mut self, candidates: Vec<Candidate>) {
        let upsert = vec![config(self.peer, candidates)];
        self.input(Input::Peers { upsert, remove: Vec::new() });
    }

    /// Lets time pass, timer by timer, and collects what is sent meanwhile.
    pub fn run(&mut self, time: Duration) -> Vec<Transmit> {
        let end = self.now + time;
        let mut sent = self.transmits();
        while let Some((at, _)) = self.engine.poll_timeout().filter(|(at, _)| *at <= end) {
            self.now = self.now.max(at);
            self.engine.handle_timeout(self.now);
            while self.engine.poll_event().is_some() {}
            sent.extend(self.transmits());
        }
        self.now = end;
        self.engine.handle_timeout(end);
        sent
    }

    pub fn transmits(&mut self) -> Vec<Transmit> {
        std::iter::from_fn(|| self.engine.poll_transmit()).collect()
    }

    pub fn events(&mut self) -> Vec<Event> {
        std::iter::from_fn(|| self.engine.poll_event()).collect()
    }

    pub fn next_tx(&mut self) -> TransactionId {
        self.transactions += 1;
        TransactionId([self.transactions; 12])
    }

    pub fn seal(&self, tx: TransactionId, probe: &Probe) -> Vec<u8> {
        probe::seal(&self.keys, tx, probe)
    }

    pub fn open(&self, transmit: &Transmit) -> Option<(TransactionId, Probe)> {
        probe::open(&self.keys, &transmit.payload).ok()
    }

    pub fn receive(&mut self, from: &str, payload: Vec<u8>) {
        let from = addr(from);
        self.input(Input::Datagram { from, to: None, payload });
    }

    /// A datagram from a stranger.
    pub fn receive_from(&mut self, payload: Vec<u8>) {
        let from = SocketAddr::from(([203, 0, 113, 99], 9));
        self.input(Input::Datagram { from, to: None, payload });
    }

    /// The peer says something that it was not asked.
    pub fn say(&mut self, from: &str, probe: &Probe) {
        let tx = self.next_tx();
        let payload = self.seal(tx, probe);
        self.receive(from, payload);
    }

    /// The peer answers every PING in `sent` that went to `at`, from there.
    pub fn answer(&mut self, sent: &[Transmit], at: &str) {
        for transmit in sent.iter().filter(|transmit| transmit.remote == addr(at)) {
            if let Some((tx, Probe::Ping)) = self.open(transmit) {
                let payload = self.seal(tx, &Probe::Pong { observed: addr("198.51.100.1:21820") });
                self.receive(at, payload);
            }
        }
    }

    pub fn counters(&mut self, rx: u64, tx: u64, endpoint: &str) {
        self.input(Input::Counters(vec![PeerCounters {
            public_key: self.peer,
            rx_bytes: rx,
            tx_bytes: tx,
            last_handshake: None,
            endpoint: endpoint.parse().ok(),
        }]));
    }

    /// Makes a direct path over `at`, as an honest peer would.
    pub fn connect(&mut self, at: &str) {
        self.add_peer(&[at]);
        let sent = self.transmits();
        self.answer(&sent, at);
        let token = self.echo().expect("a nominated pair is tried by an echo");
        let peer = self.peer;
        self.input(Input::EchoReply { peer, token });
        assert!(self.is_direct());
        self.transmits();
    }

    pub fn echo(&mut self) -> Option<u64> {
        self.events().iter().rev().find_map(|event| match event {
            Event::SendEcho { token, .. } => Some(*token),
            _ => None,
        })
    }

    pub fn is_direct(&self) -> bool {
        let report = &self.engine.snapshot().peers[&self.peer];
        matches!(report.state, path::PathState::Direct { .. })
    }
}

pub fn config(public_key: PublicKey, candidates: Vec<Candidate>) -> PeerConfig {
    PeerConfig { public_key, candidates, round: 1, wanted: true }
}

pub fn host(text: &str) -> Candidate {
    Candidate::new(CandidateKind::Host, addr(text))
}

pub fn addr(text: &str) -> SocketAddr {
    text.parse().unwrap()
}

/// Tests have to begin somewhere; only differences to it matter.
#[allow(clippy::disallowed_methods)]
fn start() -> Instant {
    Instant::now()
}
