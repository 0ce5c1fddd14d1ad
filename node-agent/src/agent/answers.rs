//! Answers questions about this node from what the loop knows.

use super::{Agent, plane::Plane};
use crate::{
    carry::Carrier,
    local::{
        Answer, Ask, Question,
        report::{ConditionReport, LegReport, PathsReport, PeerReport, RelayReport, SCHEMA, StatusReport, TriedReport},
    },
    metrics::{MAX_PEER_SERIES, Metrics},
    paths::{STATES, reason_name, rtt, state_name},
    relays,
    status::conditions,
};
use path::{PathState, RelayId};
use std::{
    sync::atomic::{AtomicU64, Ordering},
    time::Instant,
};
use wgdev::PeerStatus;
use wire::key::PublicKey;

/// Refusals that are listed; a slice full of nonsense must not flood a terminal.
const MAX_REFUSALS: usize = 50;

/// Answers, and forgets: whoever asked may be gone.
pub(super) async fn answer(agent: &mut Agent, ask: Ask, now: Instant) {
    let answer = match ask.question {
        Question::Live => Answer::text(200, "ok\n"),
        Question::Ready => agent.ready(now),
        Question::Status => Answer::json(&agent.status_report(now)),
        Question::Paths(peer) => {
            let counters = agent.counters().await;
            agent.paths_answer(peer.as_deref(), &counters, now)
        }
        Question::Metrics => {
            let counters = agent.counters().await;
            agent.export(&counters);
            Answer::metrics(&agent.metrics)
        }
    };
    let _ = ask.reply.send(answer);
}

impl Agent {
    fn ready(&mut self, now: Instant) -> Answer {
        if let Some((reason, message)) = conditions::not_programmed(&self.facts(now)) {
            return Answer::text(503, format!("{reason}: {message}\n"));
        }
        let own = self.identity.public_key().to_string();
        let status = self.view.node().and_then(|n| n.status.as_ref());
        let published = status.is_some_and(|s| s.public_key.as_ref() == Some(&own));
        if !published && !self.is_admitted() {
            let why = self.reporter.failure().unwrap_or("waits for the operator to make this node's MeshNode");
            return Answer::text(503, format!("KeyNotPublished: {why}\n"));
        }
        Answer::text(200, "ok\n")
    }

    fn status_report(&mut self, now: Instant) -> StatusReport {
        let facts = self.facts(now);
        let observed = conditions::observe(&facts);
        let plane = self.plane.as_ref();
        let local = plane.and_then(Plane::local);
        let show = |c: &path::Candidate| format!("{} {}", c.kind.as_str(), c.addr);
        StatusReport {
            schema: SCHEMA,
            version: env!("CARGO_PKG_VERSION").into(),
            node: self.settings.node_name.clone(),
            device: plane.map(|_| self.settings.device.clone()),
            backend: plane.map(|p| p.backend().as_str().into()),
            public_key: self.identity.public_key().to_string(),
            listen_port: plane.map(Plane::listen_port),
            mtu: self.mtu(),
            round: self.identity.round(),
            mesh_ips: self.view.own_spec().unwrap_or_default().mesh_ips.iter().map(ToString::to_string).collect(),
            candidates: local.map(|(all, _)| all.iter().map(show).collect()).unwrap_or_default(),
            nat: local.map_or_else(Default::default, |(_, nat)| [nat.v4, nat.v6].map(|c| c.as_str().to_owned())),
            poisonable: plane.and_then(|plane| plane.engine().poisonable()),
            api_reachable: *self.connection.reachable().borrow(),
            api_servers: self.api_servers.iter().map(ToString::to_string).collect(),
            write_error: self.reporter.failure().map(Into::into),
            conditions: observed.iter().map(condition).collect(),
            refusals: self.refusals(),
            peers: self.paths.states(),
            relays: plane.into_iter().flat_map(|p| p.relays().rows()).map(|row| relay(row, now)).collect(),
        }
    }

    fn refusals(&self) -> Vec<String> {
        let plan = self.planner.plan();
        let overlaps = plan
            .underlay_overlaps
            .iter()
            .map(|o| format!("{} {}: overlaps this node's own network {} ({:?})", o.peer, o.prefix, o.with, o.kind));
        let refusals = plan.refusals.iter().map(|r| format!("{}: {:?}", r.peer, r.why));
        overlaps.chain(refusals).take(MAX_REFUSALS).collect()
    }

    /// What the device counted of each peer.
    async fn counters(&self) -> Vec<PeerStatus> {
        let Some(plane) = &self.plane else { return Vec::new() };
        plane.statuses().await.unwrap_or_else(|e| {
            tracing::debug!(error = %e, "the counters can't be read");
            Vec::new()
        })
    }

    fn paths_answer(&self, only: Option<&str>, counters: &[PeerStatus], now: Instant) -> Answer {
        let mut peers = self.peer_reports(counters, now);
        if let Some(name) = only {
            peers.retain(|p| p.name == name);
            if peers.is_empty() {
                return Answer::text(
                    404,
                    format!("expected the name of a peer, found {name}, which is none of this node's\n"),
                );
            }
        }
        peers.sort_by(|a, b| a.name.cmp(&b.name));
        Answer::json(&PathsReport { schema: SCHEMA, peers })
    }

    fn peer_reports(&self, counters: &[PeerStatus], now: Instant) -> Vec<PeerReport> {
        let Some(plane) = &self.plane else { return Vec::new() };
        let snapshot = plane.engine().snapshot();
        let report = |(key, row): (&PublicKey, &crate::paths::Row)| {
            let counters = of(counters, key);
            let seen = snapshot.peers.get(key);
            let state = row.state();
            let tier = match state {
                PathState::Direct { pair, .. } => Some(pair.tier.as_str().to_owned()),
                _ => None,
            };
            let relay = match state {
                PathState::Relayed { relay, .. } => Some(relay),
                _ => None,
            };
            let transport = relay.and_then(|relay| transport(plane, relay, state.is_carried()));
            let plan = self.planner.plan().peers.get(key);
            let mesh_ips = plan.map(|p| p.mesh_ips.iter().map(ToString::to_string).collect());
            PeerReport {
                name: row.name.to_string(),
                key: key.short(),
                mesh_ips: mesh_ips.unwrap_or_default(),
                state: state_name(&state).into(),
                reason: reason_name(&state).into(),
                since_seconds: now.saturating_duration_since(row.since).as_secs(),
                // Where nobody is tells nobody anything.
                endpoint: counters.and_then(|c| c.endpoint).filter(|_| state != PathState::Idle).map(|e| e.to_string()),
                relay: relay.map(|relay| plane.relays().name(relay)),
                transport,
                tier,
                rtt_ms: rtt(&state).map(|rtt| rtt.as_secs_f64() * 1e3),
                rx_bytes: counters.map_or(0, |c| c.rx_bytes),
                tx_bytes: counters.map_or(0, |c| c.tx_bytes),
                last_handshake_seconds: counters.and_then(|c| c.last_handshake).map(|ago| ago.as_secs()),
                tried: seen.map(|s| s.pairs.iter().map(tried).collect()).unwrap_or_default(),
                legs: seen.map(|s| s.legs.iter().map(|l| leg(plane, l)).collect()).unwrap_or_default(),
            }
        };
        self.paths.rows().iter().map(report).collect()
    }

    /// Brings the gauges that are read, not counted, up to date.
    fn export(&self, counters: &[PeerStatus]) {
        let m = &self.metrics;
        let nat = self.plane.as_ref().and_then(Plane::local).map_or("Unknown", |(_, nat)| nat.v4.as_str());
        m.reset();
        let backend = self.plane.as_ref().map_or("none", |plane| plane.backend().as_str());
        m.node_info.with_label_values(&[nat, backend]).set(1);
        for (state, count) in STATES.into_iter().zip(self.paths.states()) {
            m.peers.with_label_values(&[state]).set(count.into());
        }
        for state in relays::State::NAMES {
            m.relay_channels.with_label_values(&[state]).set(0);
        }
        let Some(plane) = &self.plane else { return };
        for row in plane.relays().rows() {
            m.relay_channels.with_label_values(&[row.state.metric()]).inc();
        }
        for (key, row) in self.paths.rows().iter().take(MAX_PEER_SERIES) {
            let state = row.state();
            let labels = [&*row.name, state_name(&state), reason_name(&state)];
            m.peer_path.with_label_values(&labels).set(1);
            if let Some(rtt) = rtt(&state) {
                m.peer_rtt.with_label_values(&[&row.name]).set(rtt.as_secs_f64());
            }
            if let Some(c) = of(counters, key) {
                m.peer_receive.with_label_values(&[&row.name]).inc_by(c.rx_bytes);
                m.peer_transmit.with_label_values(&[&row.name]).inc_by(c.tx_bytes);
                m.set_last_handshake(&row.name, c.last_handshake);
            }
        }
        for ((from, to, reason), count) in self.paths.transitions() {
            m.path_transitions.with_label_values(&[*from, *to, *reason]).inc_by(*count);
        }
        let dropped = plane.device().stats();
        for (reason, count) in [
            ("queue_full", dropped.shared_dropped),
            ("invalid_message", dropped.invalid_messages),
            ("wrong_source", dropped.wrong_source),
            ("no_peer", dropped.no_peer),
            ("no_endpoint", dropped.no_endpoint),
            ("send_error", dropped.send_errors),
            ("interface_error", dropped.interface_errors),
        ] {
            m.device_dropped.with_label_values(&[reason]).inc_by(count);
        }
        if let Some(carrier) = plane.carrier() {
            export_carrier(m, carrier);
        }
        let stats = plane.engine().stats();
        m.stun_requests.with_label_values(&["sent"]).inc_by(stats.stun_requests);
        m.stun_requests.with_label_values(&["answered"]).inc_by(stats.stun_responses);
        for (kind, count) in &stats.refused {
            m.forbidden_endpoint.with_label_values(&[kind.as_str()]).inc_by(*count);
        }
    }
}

fn export_carrier(m: &Metrics, carrier: &Carrier) {
    m.carried_legs.set(carrier.legs().try_into().unwrap_or(i64::MAX));
    let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
    let counters = carrier.counters();
    for (direction, amount) in [("to_relay", &counters.sent), ("from_relay", &counters.received)] {
        m.carried_packets.with_label_values(&[direction]).inc_by(read(&amount.packets));
        m.carried_bytes.with_label_values(&[direction]).inc_by(read(&amount.bytes));
    }
    for (reason, counter) in [
        ("queue_full", &counters.queue_full),
        ("no_leg", &counters.no_leg),
        ("not_wireguard", &counters.not_wireguard),
        ("not_taken", &counters.not_taken),
    ] {
        m.carried_dropped.with_label_values(&[reason]).inc_by(read(counter));
    }
}

/// The counters of one peer among those of all, which are ordered by key.
fn of<'a>(counters: &'a [PeerStatus], key: &PublicKey) -> Option<&'a PeerStatus> {
    counters.binary_search_by_key(key, |counters| counters.public_key).ok().map(|at| &counters[at])
}

/// How packets get to a relay.
fn transport(plane: &Plane, relay: RelayId, is_carried: bool) -> Option<String> {
    let name = if is_carried { plane.relays().transport(relay).map(relays::transport_name) } else { Some(relays::UDP) };
    name.map(str::to_owned)
}

fn leg(plane: &Plane, leg: &path::LegReport) -> LegReport {
    LegReport {
        relay: plane.relays().name(leg.relay),
        endpoint: leg.endpoint.map(|e| e.to_string()),
        transport: leg.endpoint.and_then(|_| transport(plane, leg.relay, leg.carried)),
        phase: leg.phase.as_str().into(),
    }
}

fn tried(pair: &path::PairReport) -> TriedReport {
    TriedReport {
        address: pair.remote.to_string(),
        kind: pair.kind.as_str().into(),
        outcome: pair.outcome.as_str().into(),
        sent: pair.sent,
        answered: pair.answered,
        heard: pair.heard,
    }
}

fn relay(row: &relays::Row, now: Instant) -> RelayReport {
    let (transport, error) = match &row.state {
        relays::State::Connecting => (None, None),
        relays::State::Open(transport) => (Some(relays::transport_name(*transport).to_owned()), None),
        relays::State::Closed(why) => (None, Some(why.clone())),
    };
    RelayReport {
        name: row.relay.name.clone(),
        state: row.state.as_str().into(),
        transport,
        error,
        since_seconds: now.saturating_duration_since(row.since).as_secs(),
        addresses: row.relay.udp.iter().map(ToString::to_string).collect(),
    }
}

fn condition(observed: &conditions::Observed) -> ConditionReport {
    ConditionReport {
        type_: observed.type_.into(),
        status: format!("{:?}", observed.status),
        reason: observed.reason.clone(),
        message: observed.message.clone(),
    }
}
