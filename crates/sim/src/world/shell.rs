//! What an agent's shell does: it carries out what the engine says, and tells it what the device says.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use path::{Engine, Event, Input, PathState};
use wire::PublicKey;

use super::relay::STRAYS;
use super::{Action, Heard, World};
use crate::device::{Output, REKEY_TIMEOUT};
use crate::internet::Hop;
use crate::packet::{DEFAULT_TTL, Inner, Message, Packet, Payload};

/// Where agents wait for what devices send to peers that sleep.
pub(super) const BELL_PORT: u16 = 9_999;
/// Turns of one node at one instant. More means that a timer never advances.
const MAX_TURNS: usize = 10_000;

impl World {
    /// Lets a node do everything that it has to do now.
    pub(super) fn drive(&mut self, node: usize) {
        let instant = self.instant();
        for turn in 0.. {
            assert!(turn < MAX_TURNS, "n{node} spins at {:?}: {:?}", self.now, self.wake_reason(node));
            let now = self.now;
            let machine = &mut self.nodes[node];
            if !machine.powered {
                return;
            }
            machine.device.handle_timeout(&mut self.random, now);
            if let Some(engine) = &mut machine.engine {
                if machine.counted + engine.counters_interval() <= now {
                    machine.counted = now;
                    engine.handle_input(Input::Counters(machine.device.counters(now)), instant);
                }
                engine.handle_timeout(instant);
                while let Some(event) = self.nodes[node].engine.as_mut().and_then(Engine::poll_event) {
                    self.handle_event(node, event);
                }
                self.device_outputs(node);
                while let Some(out) = self.nodes[node].engine.as_mut().and_then(Engine::poll_transmit) {
                    self.send(node, out.remote, out.local, out.ttl, Payload::Plain(out.payload));
                }
                while let Some(control) = self.nodes[node].engine.as_mut().and_then(Engine::poll_control) {
                    self.control(node, control);
                }
            } else {
                self.device_outputs(node);
            }
            if self.wake_of(&self.nodes[node]).is_none_or(|at| at > self.now) {
                return;
            }
        }
    }

    fn wake_reason(&self, node: usize) -> String {
        let machine = &self.nodes[node];
        let engine = machine.engine.as_ref().and_then(Engine::poll_timeout);
        let at = engine.map(|(at, why)| (at.duration_since(self.epoch), why));
        format!("engine {at:?}, device {:?}", machine.device.poll_timeout())
    }

    fn handle_event(&mut self, node: usize, event: Event) {
        let now = self.now;
        let machine = &mut self.nodes[node];
        match event {
            Event::LocalCandidates(candidates, report) => {
                self.note(&format!("n{node} publishes {candidates:?} {report:?}"));
                let machine = &mut self.nodes[node];
                machine.published = Some((candidates, report));
                machine.publications += 1;
                self.distribute(node);
            }
            Event::Poisonable(verdict) => self.note(&format!("n{node} poisonable {verdict:?}")),
            Event::SetEndpoint { peer, endpoint, keepalive } => {
                machine.device.set_endpoint(&peer, Some(endpoint), keepalive);
                self.note(&format!("n{node} endpoint {} {endpoint}", self.name(&peer)));
                self.send_waiting(node, &peer, endpoint);
            }
            Event::ClearEndpoint { peer } => machine.device.set_endpoint(&peer, None, None),
            Event::StartHandshake { peer } => self.start_handshake(node, &peer),
            Event::Await { peer, endpoint } => _ = machine.bells.insert(endpoint, peer),
            Event::CarryNoMore { endpoint } => _ = machine.bells.remove(&endpoint),
            // No machine of the simulator has a carrier.
            Event::Carry { .. } | Event::RenewChannel { .. } => {}
            Event::SendEcho { peer, token } => {
                machine.device.send(&peer, Inner::EchoRequest(token), &mut self.random, now);
            }
            Event::PathChanged { peer, state } => {
                let ledger = machine.ledger.entry(peer).or_default();
                ledger.state = Some((now, state));
                ledger.changes += 1;
                if matches!(state, PathState::Direct { .. }) {
                    ledger.first_direct.get_or_insert(now);
                }
                if matches!(state, PathState::Relayed { .. }) {
                    ledger.first_relayed.get_or_insert(now);
                }
                let text = shown(&state);
                self.note(&format!("n{node} shows {} {text}", self.name(&peer)));
            }
        }
    }

    /// The device can't start another handshake so soon after the one that went to the bell: that one is handed on.
    fn start_handshake(&mut self, node: usize, peer: &PublicKey) {
        let now = self.now;
        let machine = &mut self.nodes[node];
        let is_young = |(at, message): &&(Duration, Message)| {
            matches!(message, Message::Initiation { .. }) && now - *at < REKEY_TIMEOUT
        };
        let waiting = machine.waiting.get(peer).and_then(|waiting| waiting.iter().rev().find(is_young).cloned());
        match (machine.device.endpoint(peer), waiting) {
            (Some(endpoint), Some((_, initiation))) if !machine.device.forces_handshakes() => {
                self.send(node, endpoint, None, None, Payload::WireGuard(initiation));
            }
            _ => machine.device.start_handshake(peer, &mut self.random, now),
        }
    }

    /// Data that a device sent to a peer that slept goes to where it is now. Handshakes wait until one is to start.
    fn send_waiting(&mut self, node: usize, peer: &PublicKey, endpoint: SocketAddr) {
        let machine = &mut self.nodes[node];
        if machine.bells.contains_key(&endpoint) {
            // What nobody came for until the peer slept again.
            machine.waiting.remove(peer);
            return;
        }
        let is_data = |(_, message): &mut (Duration, Message)| matches!(message, Message::Data { .. });
        let waiting = machine.waiting.get_mut(peer).map(|waiting| waiting.extract_if(.., is_data).collect::<Vec<_>>());
        for (_, message) in waiting.unwrap_or_default() {
            self.send(node, endpoint, None, None, Payload::WireGuard(message));
        }
    }

    /// The device sent something to a peer that sleeps, or did until a moment ago.
    fn ring(&mut self, node: usize, bell: SocketAddr, message: Message) {
        let instant = self.instant();
        let machine = &mut self.nodes[node];
        let Some(peer) = machine.bells.get(&bell).copied() else { return };
        let Some(engine) = &mut machine.engine else { return };
        machine.waiting.entry(peer).or_default().push((self.now, message));
        let endpoint = engine.endpoint_of(&peer).map(|(endpoint, _)| endpoint);
        engine.handle_input(Input::Called { peer }, instant);
        if let Some(endpoint) = endpoint.filter(|endpoint| *endpoint != bell) {
            self.send_waiting(node, &peer, endpoint);
        }
    }

    fn device_outputs(&mut self, node: usize) {
        loop {
            let outputs = self.nodes[node].device.take_outputs();
            if outputs.is_empty() {
                return;
            }
            for output in outputs {
                match output {
                    Output::Transmit(bell, message) if bell.ip().is_loopback() => self.ring(node, bell, message),
                    Output::Transmit(remote, message) => {
                        self.send(node, remote, None, None, Payload::WireGuard(message));
                    }
                    Output::Received(peer, inner) => self.received(node, peer, inner),
                }
            }
        }
    }

    /// A packet came out of a node's tunnel.
    fn received(&mut self, node: usize, peer: PublicKey, inner: Inner) {
        let now = self.now;
        let machine = &mut self.nodes[node];
        match inner {
            Inner::Keepalive => {}
            Inner::Ping(sent) => machine.device.send(&peer, Inner::Pong(sent), &mut self.random, now),
            Inner::Pong(token) => machine.ledger.entry(peer).or_default().pong(token, now),
            Inner::EchoRequest(_) | Inner::EchoReply(_) => self.hear_soon(node, Heard::Tunnel { peer, inner }),
        }
    }

    /// Something arrived for a node's agent, which is as quick as the machine lets it be.
    pub(super) fn hear_soon(&mut self, node: usize, heard: Heard) {
        let most = u64::try_from(self.agent_lag.as_micros()).unwrap_or(0);
        if most == 0 {
            return self.take_in(node, heard);
        }
        // In order: a busy agent reads what came first.
        let lag = Duration::from_micros(self.random.below(most));
        let at = (self.now + lag).max(self.nodes[node].heard);
        self.nodes[node].heard = at;
        let start = self.nodes[node].starts;
        self.after(at - self.now, Action::Hear { node, start, heard });
    }

    /// A node's agent hears what arrived a while ago.
    pub(super) fn hear(&mut self, node: usize, heard: Heard) {
        self.take_in(node, heard);
        self.drive(node);
    }

    fn take_in(&mut self, node: usize, heard: Heard) {
        let (instant, now) = (self.instant(), self.now);
        let machine = &mut self.nodes[node];
        // Only a running agent answers, or hears an answer.
        let Some(engine) = &mut machine.engine else {
            return;
        };
        let input = match heard {
            Heard::Datagram { from, to, payload } => Input::Datagram { from, to: Some(to), payload },
            Heard::Tunnel { peer, inner: Inner::EchoRequest(token) } => {
                machine.device.send(&peer, Inner::EchoReply(token), &mut self.random, now);
                Input::EchoRequest { peer }
            }
            Heard::Tunnel { peer, inner: Inner::EchoReply(token) } => Input::EchoReply { peer, token },
            Heard::Tunnel { .. } => return,
        };
        engine.handle_input(input, instant);
    }

    fn send(&mut self, node: usize, remote: SocketAddr, local: Option<IpAddr>, ttl: Option<u8>, payload: Payload) {
        let machine = &self.nodes[node];
        let Some(own) = machine.socket(remote.ip()).filter(|_| machine.plugged) else {
            return;
        };
        let src = SocketAddr::new(local.unwrap_or(own.ip()), own.port());
        let hops = ttl.map_or(String::new(), |ttl| format!(" ttl {ttl}"));
        let text = format!("n{node} > {remote} {}{hops}", self.describe(&payload));
        self.trace.note(self.now, &text);
        self.judge_packet(node, remote, &payload);
        self.nodes[node].sent += u64::from(!self.stun.contains(&remote) && remote.ip() != STRAYS);
        let packet = Packet { src, dst: remote, ttl: ttl.unwrap_or(DEFAULT_TTL), payload };
        let hop = Hop::new(self.nodes[node].realm, packet);
        self.travel_soon(hop);
    }
}

/// A state without what depends on the clock of the machine that simulates.
fn shown(state: &PathState) -> String {
    match state {
        PathState::Direct { pair, .. } => format!("direct {} {}", pair.remote, pair.kind.as_str()),
        PathState::Relayed { relay, endpoint, reason, .. } => {
            format!("relayed by {relay} at {endpoint}: {}", reason.as_str())
        }
        PathState::Idle => "idle".to_owned(),
        PathState::Connecting => "connecting".to_owned(),
        PathState::Down { reason } => format!("down {}", reason.as_str()),
    }
}
