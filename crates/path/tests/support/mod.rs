//! One engine under test, and a peer whose every packet the test writes by hand.
#![allow(dead_code)]

pub mod legs;

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use path::{
    Candidate, CandidateKind, Config, Control, Engine, Event, Forbidden, Input, PeerConfig, PeerCounters, RelayId,
    RelayNews, Transmit,
};
use wire::control::{ToNode, ToRelay};
use wire::pair::PairKeys;
use wire::probe::signal::{self, Signal, Step};
use wire::probe::{self, Probe};
use wire::stun::{self, TransactionId};
use wire::{PrivateKey, PublicKey};

pub const MESH: &str = "test";

/// What observers see of the engine's port.
pub const MAPPED: &str = "203.0.113.200:40000";
/// What they would see of a port that moved.
pub const MOVED: &str = "203.0.113.200:50000";
/// Where the relay sends its strays from, one port each.
pub const STRANGER: &str = "192.0.2.3";

/// The relay.
pub const RELAY: RelayId = RelayId([0x4e; 32]);

pub const OBSERVERS: [&str; 2] = ["192.0.2.1:3478", "192.0.2.2:3478"];

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
    /// What was said to the relay while time passed.
    controls: Vec<Control>,
    /// What was told beside a relay of whether strays move this node's port.
    pub verdicts: Vec<Option<bool>>,
}

impl Bench {
    /// An engine that nominates, or one that follows, and that knows its own address and what is forbidden.
    pub fn new(nominates: bool) -> Self {
        Self::on(nominates, true)
    }

    /// The same beside a device that starts a handshake whenever it is told to, or does not.
    pub fn on(nominates: bool, repeats_handshakes: bool) -> Self {
        let (own, other) = if nominates { (0, 7) } else { (7, 0) };
        let own_key = PrivateKey::from_bytes(nth_key(own));
        let peer_key = PrivateKey::from_bytes(nth_key(other));
        let keys = PairKeys::derive(&peer_key, &own_key.public_key(), MESH, None).unwrap();
        let now = start();
        let config = Config {
            private_key: own_key,
            mesh_id: MESH.to_owned(),
            psk: None,
            listen_port: 21_820,
            repeats_handshakes,
            seed: [7; 32],
        };
        let mut bench = Self {
            engine: Engine::new(config, now),
            now,
            peer: peer_key.public_key(),
            keys,
            transactions: 0,
            controls: Vec::new(),
            verdicts: Vec::new(),
        };
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
        self.controls();
        while let Some((at, _)) = self.engine.poll_timeout().filter(|(at, _)| *at <= end) {
            self.now = self.now.max(at);
            self.engine.handle_timeout(self.now);
            while self.engine.poll_event().is_some() {}
            sent.extend(self.transmits());
            self.controls();
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

    /// Lets time pass, timer by timer, and collects what is sent meanwhile, leaving what is said to the relay.
    pub fn collect(&mut self, time: Duration) -> Vec<Transmit> {
        self.pass(time, |_, _| ()).0
    }

    /// The same with what is to be done.
    pub fn collect_events(&mut self, time: Duration) -> Vec<Event> {
        self.pass(time, |_, _| ()).1
    }

    /// The same with a peer that answers whatever is asked through the tunnel.
    pub fn keep_alive(&mut self, time: Duration) -> Vec<Transmit> {
        let answer = |bench: &mut Self, event: &Event| {
            if let Event::SendEcho { peer, token } = event {
                bench.input(Input::EchoReply { peer: *peer, token: *token });
            }
        };
        self.pass(time, answer).0
    }

    /// A step of time, and nothing taken.
    pub fn step(&mut self, time: Duration) {
        self.now += time;
        self.engine.handle_timeout(self.now);
    }

    fn pass(&mut self, time: Duration, react: impl Fn(&mut Self, &Event)) -> (Vec<Transmit>, Vec<Event>) {
        let end = self.now + time;
        let (mut sent, mut done) = (Vec::new(), Vec::new());
        loop {
            let events = self.events();
            events.iter().for_each(|event| react(self, event));
            done.extend(events);
            sent.extend(self.transmits());
            while let Some(control) = self.engine.poll_control() {
                self.controls.push(control);
            }
            match self.engine.poll_timeout() {
                Some((due, _)) if due <= end => self.now = self.now.max(due),
                _ => break,
            }
            self.engine.handle_timeout(self.now);
        }
        self.now = end;
        (sent, done)
    }

    /// What was said to the relay, but for signals and strays.
    pub fn asked(&mut self) -> Vec<ToRelay> {
        self.controls();
        let asked = std::mem::take(&mut self.controls).into_iter().map(|control| control.message);
        asked.filter(|message| !matches!(message, ToRelay::Signal { .. } | ToRelay::Stray { .. })).collect()
    }

    /// The same to one of them.
    pub fn asked_of(&mut self, relay: RelayId) -> Vec<ToRelay> {
        self.controls();
        self.controls.retain(|control| control.relay == relay);
        self.asked()
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

    /// Puts the engine behind a NAT, with an open control channel, and a relay whose strays move its port or do not.
    pub fn behind_nat(nominates: bool, poisonable: bool) -> Self {
        let mut bench = Self::new(nominates);
        bench.input(Input::HostCandidates(vec!["192.168.1.10/24".parse().unwrap()]));
        bench.input(Input::StunServers(OBSERVERS.map(addr).to_vec()));
        bench.open_relay();
        bench.relay_for(Duration::from_secs(2), |_| Some(if poisonable { MOVED } else { MAPPED }));
        assert_eq!(bench.engine.snapshot().poisonable, Some(poisonable));
        bench
    }

    /// News of the relay.
    pub fn relay(&mut self, news: RelayNews) {
        self.input(Input::Relay { relay: RELAY, news });
    }

    /// The control channel is there.
    pub fn open_relay(&mut self) {
        let addresses = vec!["192.0.2.9".parse().unwrap()];
        self.relay(RelayNews::Open { addresses });
        self.hear(ToNode::Welcome { boot: 1, observed: addr(MAPPED) });
    }

    /// The relay says something.
    pub fn hear(&mut self, message: ToNode) {
        self.relay(RelayNews::Said(message));
    }

    /// The peer is at the relay too.
    pub fn meet(&mut self) {
        let node = self.peer;
        self.hear(ToNode::Present { node, met: true });
    }

    /// Lets time pass beside a relay. `seen` says what the socket of the n-th stray sees, if it answers at all.
    pub fn relay_for(&mut self, time: Duration, seen: impl Fn(u16) -> Option<&'static str>) {
        let end = self.now + time;
        let mut strays = 0;
        loop {
            for event in self.events() {
                if let Event::Poisonable(verdict) = event {
                    self.verdicts.push(verdict);
                }
            }
            for sent in self.transmits() {
                let Ok(request) = stun::decode(&sent.payload) else { continue };
                let observer = OBSERVERS.iter().any(|observer| addr(observer) == sent.remote);
                let mapped = if observer { Some(MAPPED) } else { seen(sent.remote.port()) };
                if let Some(mapped) = mapped.filter(|_| probe::key_id(&sent.payload).is_none()) {
                    self.receive(&sent.remote.to_string(), stun::encode_success(request.tx, addr(mapped)));
                }
            }
            while let Some(control) = self.engine.poll_control() {
                if let ToRelay::Stray { to, tx } = control.message {
                    assert_eq!(to, addr(MAPPED));
                    strays += 1;
                    self.stray_sent(tx, &format!("{STRANGER}:{strays}"));
                }
            }
            match self.engine.poll_timeout() {
                Some((due, _)) if due < end => self.now = self.now.max(due),
                _ => break,
            }
            self.engine.handle_timeout(self.now);
        }
        self.now = end;
    }

    /// The relay has sent a stray from there.
    pub fn stray_sent(&mut self, tx: TransactionId, from: &str) {
        self.hear(ToNode::StraySent { tx, from: addr(from) });
    }

    /// Sealed bytes arrive from the peer by way of the relay.
    pub fn hear_signal(&mut self, bytes: Vec<u8>) {
        let from = self.peer;
        self.hear(ToNode::Signal { from, bytes });
    }

    /// The peer says something by way of the relay. Returns its id.
    pub fn signal(&mut self, step: Step, poisonable: bool, candidates: &[Candidate]) -> TransactionId {
        let id = self.next_tx();
        let bytes = self.seal_signal(id, step, poisonable, candidates);
        self.hear_signal(bytes);
        id
    }

    pub fn seal_signal(&self, id: TransactionId, step: Step, poisonable: bool, candidates: &[Candidate]) -> Vec<u8> {
        let code = |kind| if kind == CandidateKind::Host { 1 } else { 3 };
        let candidates = candidates.iter().map(|known| (code(known.kind), known.addr)).collect();
        signal::seal(&self.keys, id, &Signal { step, poisonable, class: 2, candidates })
    }

    /// The peer calls by way of the relay, and says that its NAT is of this class.
    pub fn hear_call_of_class(&mut self, class: u8) {
        let id = self.next_tx();
        let signal = Signal { step: Step::Call, poisonable: false, class, candidates: Vec::new() };
        let bytes = signal::seal(&self.keys, id, &signal);
        self.hear_signal(bytes);
    }

    /// What the engine has said to the peer by way of the relay.
    pub fn signals(&mut self) -> Vec<(TransactionId, Signal)> {
        self.controls();
        let said = |control: Control| match control.message {
            ToRelay::Signal { bytes, .. } => Some(signal::open(&self.keys, &bytes).unwrap()),
            _ => None,
        };
        std::mem::take(&mut self.controls).into_iter().filter_map(said).collect()
    }

    fn controls(&mut self) {
        while let Some(control) = self.engine.poll_control() {
            self.controls.push(control);
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

pub fn reflexive(text: &str) -> Candidate {
    Candidate::new(CandidateKind::ServerReflexive, addr(text))
}

pub fn addr(text: &str) -> SocketAddr {
    text.parse().unwrap()
}

/// Tests have to begin somewhere; only differences to it matter.
#[allow(clippy::disallowed_methods)]
fn start() -> Instant {
    Instant::now()
}
