//! Counters of the data plane and the front end, which count for themselves: each look takes what they show.

use std::sync::{Arc, Mutex, PoisonError};

use prometheus::{IntCounter, IntCounterVec, IntGauge, Opts, Registry};

use crate::control::{Board, Supervisor};
use crate::server::control::Refusal;
use crate::server::plane::Outcome;
use crate::udp::Forwarder;

/// What is shown, and who is asked.
#[derive(Debug)]
pub(super) struct Carrying {
    sessions: IntGauge,
    members: IntGauge,
    allocations: IntGauge,
    bound_legs: IntGauge,
    attached_legs: IntGauge,
    packets: IntCounter,
    bytes: IntCounter,
    dropped: IntCounterVec,
    bindings: IntCounterVec,
    signals: IntCounter,
    strays: IntCounter,
    denied: IntCounterVec,
    refused: IntCounterVec,
    lost_events: IntCounter,
    failures: IntCounter,
    sources: Mutex<Option<Sources>>,
}

#[derive(Debug)]
struct Sources {
    forwarder: Forwarder,
    front_end: Supervisor,
    board: Arc<Board>,
}

/// Outcomes that are neither a drop nor data.
const BINDINGS: [Outcome; 4] = [Outcome::Challenged, Outcome::Bound, Outcome::Attached, Outcome::Kept];

impl Carrying {
    pub(super) fn new() -> prometheus::Result<Self> {
        let gauge = |name: &str, help: &str| IntGauge::new(format!("warren_relay_{name}"), help);
        let counter = |name: &str, help: &str| IntCounter::new(format!("warren_relay_{name}"), help);
        let counters = |name: &str, help: &str, label: &str| {
            IntCounterVec::new(Opts::new(format!("warren_relay_{name}"), help), &[label])
        };
        Ok(Self {
            sessions: gauge("sessions", "Nodes that are connected to the control channel.")?,
            members: gauge("members", "Nodes that may use this relay.")?,
            allocations: gauge("allocations", "Pairs that have a port on this relay.")?,
            bound_legs: gauge("bound_legs", "Legs of pairs that are bound, to an address or a channel.")?,
            attached_legs: gauge("attached_legs", "Bound legs that are channels of nodes without UDP.")?,
            packets: counter("packets_total", "Packets sent on between the nodes of pairs.")?,
            bytes: counter("bytes_total", "Bytes sent on between the nodes of pairs.")?,
            dropped: counters(
                "dropped_packets_total",
                "Packets that were not sent on, by port or by channel.",
                "reason",
            )?,
            bindings: counters(
                "bindings_total",
                "Relay messages that were answered, legs that became channels, and initiations that wait for a leg.",
                "result",
            )?,
            signals: counter("signals_total", "Signals handed on between nodes that have met.")?,
            strays: counter("stray_packets_total", "Stray packets sent to nodes that asked for one.")?,
            denied: counters("sessions_denied_total", "Sessions that this relay has ended.", "reason")?,
            refused: counters("requests_refused_total", "What members asked for and did not get.", "reason")?,
            lost_events: counter("lost_events_total", "News for nodes that the front end did not take in time.")?,
            failures: counter("front_end_failures_total", "Times that the front end failed and was started again.")?,
            sources: Mutex::new(None),
        })
    }

    pub(super) fn register(&self, registry: &Registry) -> prometheus::Result<()> {
        for gauge in [&self.sessions, &self.members, &self.allocations, &self.bound_legs, &self.attached_legs] {
            registry.register(Box::new(gauge.clone()))?;
        }
        let Self { packets, bytes, signals, strays, lost_events, failures, .. } = self;
        for counter in [packets, bytes, signals, strays, lost_events, failures] {
            registry.register(Box::new(counter.clone()))?;
        }
        for counters in [&self.dropped, &self.bindings, &self.denied, &self.refused] {
            registry.register(Box::new(counters.clone()))?;
        }
        Ok(())
    }

    pub(super) fn observe(&self, forwarder: Forwarder, front_end: Supervisor, board: Arc<Board>) {
        *self.lock() = Some(Sources { forwarder, front_end, board });
    }

    /// Takes what the sources show now. One look at a time: the server of metrics has one thread.
    pub(super) fn look(&self) {
        let sources = self.lock();
        let Some(Sources { forwarder, front_end, board }) = &*sources else { return };
        let snapshot = forwarder.snapshot();
        let stats = *board.stats.borrow();
        let size = |size: usize| i64::try_from(size).unwrap_or(i64::MAX);
        self.sessions.set(size(stats.sessions));
        self.members.set(size(stats.members));
        self.allocations.set(size(snapshot.plane.allocations));
        self.bound_legs.set(size(snapshot.plane.bound_legs));
        self.attached_legs.set(size(snapshot.plane.attached_legs));
        let set = |counter: &IntCounter, count: u64| {
            counter.reset();
            counter.inc_by(count);
        };
        set(&self.packets, snapshot.plane.datagrams(Outcome::Forwarded));
        set(&self.bytes, snapshot.plane.forwarded_bytes);
        set(&self.signals, stats.signals);
        set(&self.strays, stats.strays);
        set(&self.lost_events, snapshot.plane.lost_events);
        set(&self.failures, front_end.failures());
        for outcome in Outcome::ALL.into_iter().filter(|outcome| *outcome != Outcome::Forwarded) {
            let family = if BINDINGS.contains(&outcome) { &self.bindings } else { &self.dropped };
            set(&family.with_label_values(&[outcome.label()]), snapshot.plane.datagrams(outcome));
        }
        set(&self.dropped.with_label_values(&["full"]), snapshot.full);
        set(&self.dropped.with_label_values(&["send_error"]), snapshot.send_errors);
        set(&self.dropped.with_label_values(&["slow_channel"]), snapshot.slow);
        set(&self.dropped.with_label_values(&["ended_channel"]), snapshot.unreachable);
        for refusal in Refusal::ALL {
            set(&self.refused.with_label_values(&[refusal.label()]), stats.refusals(refusal));
        }
        for (label, count) in stats.denials() {
            set(&self.denied.with_label_values(&[label]), count);
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Option<Sources>> {
        self.sources.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
