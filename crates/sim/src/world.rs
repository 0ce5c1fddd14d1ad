//! The run: virtual time, one queue of what happens next, and judges that watch every step.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use path::{Config, Engine, Input, OnDemand, PeerConfig, RelayId};
use wire::control::{ToNode, ToRelay};
use wire::{PublicKey, stun};

use crate::device::Device;
use crate::internet::{Arrival, Hop, Internet, Step, Weather};
use crate::node::Node;
use crate::packet::{Inner, Packet, Payload};
use crate::random::Random;
use crate::trace::Trace;

mod build;
mod directory;
mod explain;
mod judge;
mod relay;
mod shell;

pub use relay::Signalling;

/// Users begin to ping within this many microseconds, not all at once.
const PING_SPREAD: u64 = 100_000;

/// The mesh's name in every simulation.
pub(crate) const MESH: &str = "simulated";

/// Something that will happen.
#[derive(Debug)]
enum Action {
    Travel(Hop),
    Learn { node: usize, peer: usize, config: PeerConfig },
    Ping { from: usize, to: usize },
    Start { node: usize },
    Connect { relay: usize, node: usize, start: u32 },
    ToRelay { relay: usize, channel: u64, message: ToRelay },
    ToNode { relay: usize, channel: u64, message: ToNode },
    Lose { relay: usize, node: usize, start: u32 },
    Expire { relay: usize },
    Replaced { relay: usize, node: usize, before: RelayId },
    Hear { node: usize, start: u32, heard: Heard },
}

/// What reaches an agent, later than the device when the machine is busy.
#[derive(Debug)]
enum Heard {
    Datagram { from: SocketAddr, to: IpAddr, payload: Vec<u8> },
    Tunnel { peer: PublicKey, inner: Inner },
}

/// A simulated mesh.
#[derive(Debug)]
pub struct World {
    /// Virtual time since the start.
    pub now: Duration,
    /// The networks.
    pub internet: Internet,
    /// The machines.
    pub nodes: Vec<Node>,
    /// The record.
    pub trace: Trace,
    /// What must never happen and did.
    pub violations: Vec<String>,
    /// The STUN servers that nodes are told.
    pub stun: Vec<SocketAddr>,
    /// How long the directory takes to tell a node: at least, and at most.
    pub directory_delay: (Duration, Duration),
    /// Between two pings of a user to one peer.
    pub ping_gap: Duration,
    /// How long at most an agent takes to hear what arrived. Its device answers at once.
    pub agent_lag: Duration,
    /// How signals travel; without it there is no relay.
    pub signalling: Option<Signalling>,
    /// Whether relays carry data as well.
    pub forwarding: bool,
    /// What relays say, and are asked for, about legs: lost, of 100. Their channels are reliable, their memory need not be.
    pub forgetful: u8,
    /// How long a node takes to notice that a channel is dead of which nobody says so: at least, and at most.
    pub channel_idle: (Duration, Duration),
    /// How long a node waits before it makes a lost channel again: at least, and at most.
    pub reconnect: (Duration, Duration),
    /// The relays, of which there is one unless more are added.
    relays: Vec<relay::Relay>,
    /// Control channels that there were.
    channels: u64,
    strays: u16,
    interpreter: Option<explain::Interpreter>,
    epoch: Instant,
    random: Random,
    queue: BTreeMap<(Duration, u64), Action>,
    sequence: u64,
}

impl World {
    /// An empty world.
    #[must_use]
    pub fn new(seed: u64, weather: Weather) -> Self {
        let mut world = Self {
            now: Duration::ZERO,
            internet: Internet::new(weather),
            nodes: Vec::new(),
            trace: Trace::default(),
            violations: Vec::new(),
            stun: Vec::new(),
            directory_delay: (Duration::from_millis(20), Duration::from_millis(20)),
            ping_gap: Duration::from_millis(100),
            agent_lag: Duration::ZERO,
            signalling: None,
            forwarding: false,
            forgetful: 0,
            channel_idle: relay::CHANNEL_IDLE,
            reconnect: relay::RECONNECT,
            relays: Vec::new(),
            channels: 0,
            strays: 0,
            interpreter: None,
            epoch: epoch(),
            random: Random::new(seed),
            queue: BTreeMap::new(),
            sequence: 0,
        };
        world.add_stun();
        world.add_relays();
        world
    }

    /// Starts a node's agent after a while.
    pub fn start_after(&mut self, node: usize, delay: Duration) {
        self.after(delay, Action::Start { node });
    }

    /// Stops a node's agent. Its device goes on.
    pub fn stop_agent(&mut self, node: usize) {
        self.nodes[node].engine = None;
        self.disconnect(node);
        let name = node;
        self.note(&format!("n{name} agent stops"));
    }

    /// Restarts a node's agent in an instant. With a new device it has lost its sessions as well.
    pub fn restart_agent(&mut self, node: usize, new_device: bool) {
        self.stop_agent(node);
        if new_device {
            let machine = &mut self.nodes[node];
            machine.device = machine.device.anew();
            for peer in machine.cache.keys() {
                machine.device.add_peer(*peer);
            }
        }
        self.start(node);
    }

    /// Switches a machine off or on. Off, nothing of it moves.
    pub fn power(&mut self, node: usize, on: bool) {
        self.nodes[node].powered = on;
        self.disconnect(node);
        self.note(&format!("n{node} power {on}"));
        if on {
            self.restart_agent(node, true);
        }
    }

    /// Gives a node the device of a kernel, or of a process, before it starts.
    pub fn set_kernel(&mut self, node: usize, kernel: bool) {
        let machine = &mut self.nodes[node];
        machine.device = Device::new(machine.key, !kernel);
    }

    /// Gives a node's device another port, for when it is next made.
    pub fn move_port(&mut self, node: usize, port: u16) {
        self.nodes[node].port = port;
    }

    /// Takes a machine's link down or up, and its agent notices: without a link it has no address, and then another network.
    pub fn plug(&mut self, node: usize, up: bool) {
        self.note(&format!("n{node} link {}", if up { "up" } else { "down" }));
        self.nodes[node].plugged = up;
        let addresses = if up { self.nodes[node].addresses.clone() } else { Vec::new() };
        self.input(node, Input::HostCandidates(addresses));
        self.input(node, Input::NetworkChanged);
    }

    /// Feeds an input to a node's agent, as its shell would.
    pub fn input(&mut self, node: usize, input: Input) {
        let now = self.instant();
        if let Some(engine) = &mut self.nodes[node].engine {
            engine.handle_input(input, now);
        }
        self.drive(node);
    }

    /// Puts a packet on the way, as anybody in the core can.
    pub fn inject(&mut self, packet: Packet) {
        self.travel(Hop::new(crate::internet::CORE, packet));
    }

    /// Runs until a time.
    pub fn run_until(&mut self, end: Duration) {
        while let Some(at) = self.next_time().filter(|at| *at <= end) {
            self.now = self.now.max(at);
            self.step();
        }
        self.now = end;
    }

    /// Runs for a while.
    pub fn run_for(&mut self, time: Duration) {
        self.run_until(self.now + time);
    }

    /// Runs until something is true. Returns when that was, unless it took too long.
    pub fn run_while(&mut self, limit: Duration, mut done: impl FnMut(&Self) -> bool) -> Option<Duration> {
        let end = self.now + limit;
        while !done(self) {
            let at = self.next_time().filter(|at| *at <= end)?;
            self.now = self.now.max(at);
            self.step();
        }
        Some(self.now)
    }

    fn next_time(&self) -> Option<Duration> {
        let queued = self.queue.keys().next().map(|(at, _)| *at);
        let nodes = self.nodes.iter().filter_map(|node| self.wake_of(node)).min();
        [queued, nodes].into_iter().flatten().min()
    }

    fn wake_of(&self, node: &Node) -> Option<Duration> {
        if !node.powered {
            return None;
        }
        let engine = node.engine.as_ref().and_then(|engine| {
            let timer = engine.poll_timeout().map(|(at, _)| at.duration_since(self.epoch));
            let counters = Some(node.counted + engine.counters_interval());
            [timer, counters].into_iter().flatten().min()
        });
        [engine, node.device.poll_timeout()].into_iter().flatten().min()
    }

    fn step(&mut self) {
        for node in 0..self.nodes.len() {
            if self.wake_of(&self.nodes[node]).is_some_and(|at| at <= self.now) {
                self.drive(node);
            }
        }
        let due = self.queue.first_entry().filter(|entry| entry.key().0 <= self.now);
        if let Some(entry) = due {
            let action = entry.remove();
            self.act(action);
        }
    }

    fn act(&mut self, action: Action) {
        match action {
            Action::Travel(hop) => self.travel(hop),
            Action::Start { node } => self.start(node),
            Action::Learn { node, peer, config } => self.learn(node, peer, config),
            Action::Ping { from, to } => self.ping(from, to),
            Action::Connect { relay, node, start } => self.connect(relay, node, start),
            Action::ToRelay { relay, channel, message } => self.relay_hears(relay, channel, message),
            Action::ToNode { relay, channel, message } => self.node_hears(relay, channel, message),
            Action::Lose { relay, node, start } => self.lose(relay, node, start),
            Action::Expire { relay } => self.expire_allocations(relay),
            Action::Replaced { relay, node, before } => self.replaced(relay, node, before),
            Action::Hear { node, start, heard } if self.nodes[node].starts == start => self.hear(node, heard),
            Action::Hear { .. } => {}
        }
    }

    fn travel(&mut self, hop: Hop) {
        match self.internet.advance(hop, &mut self.random, self.now) {
            Some(Step::Later(delay, hop)) => self.after(delay, Action::Travel(hop)),
            Some(Step::Arrived(Arrival::Node(node, packet))) => self.deliver(node, packet),
            Some(Step::Arrived(Arrival::Stun(packet))) => self.observe(&packet),
            Some(Step::Arrived(Arrival::Relay(relay, packet))) => self.relay_arrival(relay, &packet),
            None => {}
        }
    }

    fn deliver(&mut self, node: usize, packet: Packet) {
        let now = self.now;
        let machine = &self.nodes[node];
        if !machine.powered || !machine.plugged || packet.dst.port() != machine.port {
            return;
        }
        let text = format!("n{node} < {} {}", packet.src, self.describe(&packet.payload));
        self.trace.note(now, &text);
        let machine = &mut self.nodes[node];
        match packet.payload {
            Payload::Plain(payload) => {
                self.hear_soon(node, Heard::Datagram { from: packet.src, to: packet.dst.ip(), payload });
            }
            Payload::WireGuard(message) => {
                machine.device.receive(packet.src, &message, &mut self.random, now);
            }
        }
        self.drive(node);
    }

    /// A STUN server answers.
    fn observe(&mut self, packet: &Packet) {
        let Payload::Plain(payload) = &packet.payload else {
            return;
        };
        let Ok(message) = stun::decode(payload) else {
            return;
        };
        let answer = Payload::Plain(stun::encode_success(message.tx, packet.src));
        self.inject(Packet::new(packet.dst, packet.src, answer));
    }

    /// Puts a packet at the end of this instant's queue, so that one node's turn is over before another's begins.
    fn travel_soon(&mut self, hop: Hop) {
        self.after(Duration::ZERO, Action::Travel(hop));
    }

    fn ping(&mut self, from: usize, to: usize) {
        self.judge();
        let peer = self.nodes[to].key;
        let now = self.now;
        let machine = &mut self.nodes[from];
        if machine.powered && machine.pinged.contains(&peer) {
            let token = self.random.word();
            if let Some(ledger) = machine.ledger.get_mut(&peer).filter(|ledger| ledger.first_pong.is_some()) {
                ledger.unanswered.insert(token);
            }
            machine.device.send(&peer, Inner::Ping(token), &mut self.random, now);
            self.drive(from);
        }
        if self.nodes[from].pinged.contains(&peer) {
            self.after(self.ping_gap, Action::Ping { from, to });
        }
    }

    /// Lets a node's user ping a peer from now on, or stop.
    pub fn set_pinging(&mut self, from: usize, to: usize, on: bool) {
        let peer = self.nodes[to].key;
        if !on {
            self.nodes[from].pinged.remove(&peer);
        } else if self.nodes[from].pinged.insert(peer) {
            let ledger = self.nodes[from].ledger.entry(peer).or_default();
            ledger.watched = self.now;
            let phase = Duration::from_micros(self.random.below(PING_SPREAD));
            self.after(phase, Action::Ping { from, to });
        }
    }

    fn start(&mut self, node: usize) {
        let instant = self.instant();
        let seed = self.random.bytes();
        let stun = self.stun.clone();
        let machine = &mut self.nodes[node];
        machine.starts += 1;
        let config = Config {
            private_key: machine.private_key(),
            mesh_id: MESH.to_owned(),
            psk: None,
            listen_port: machine.port,
            repeats_handshakes: machine.device.forces_handshakes(),
            seed,
        };
        machine.counted = self.now;
        machine.bells.clear();
        machine.waiting.clear();
        let mut engine = Engine::new(config, instant);
        let cached = machine.cache.values().cloned().collect();
        let on_demand = machine.idle.map(|idle| OnDemand { idle, port: shell::BELL_PORT });
        for input in [
            Input::OnDemand(on_demand),
            Input::Forbidden(machine.forbidden.clone()),
            Input::HostCandidates(machine.addresses.clone()),
            Input::StunServers(stun),
            Input::Counters(machine.device.counters(self.now)),
        ] {
            engine.handle_input(input, instant);
        }
        machine.engine = Some(engine);
        self.note(&format!("n{node} agent starts"));
        // Relays before peers: what is said to one waits for its channel.
        self.connect_soon(node);
        let machine = &mut self.nodes[node];
        if let Some(engine) = &mut machine.engine {
            engine.handle_input(Input::Peers { upsert: cached, remove: Vec::new() }, instant);
            if self.forwarding {
                engine.handle_input(Input::Sessions(machine.device.sessions(self.now)), instant);
            }
        }
        self.drive(node);
        for peer in 0..self.nodes.len() {
            if peer != node {
                self.tell_about(node, peer);
            }
        }
    }

    fn after(&mut self, delay: Duration, action: Action) {
        self.sequence += 1;
        self.queue.insert((self.now + delay, self.sequence), action);
    }

    fn instant(&self) -> Instant {
        self.epoch + self.now
    }

    fn note(&mut self, text: &str) {
        self.trace.note(self.now, text);
    }

    fn name(&self, key: &PublicKey) -> String {
        let index = self.nodes.iter().position(|node| node.key == *key);
        index.map_or_else(|| key.short(), |index| format!("n{index}"))
    }
}

/// The instant that stands for time zero. Only differences to it are ever used, so it leaves no mark on a run.
#[allow(clippy::disallowed_methods)]
fn epoch() -> Instant {
    Instant::now()
}
