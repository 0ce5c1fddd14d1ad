//! The ordered punch: each NAT is opened from inside before the first packet from outside gets there.
//!
//! ```text
//! caller  --- CALL -->   opener    sends its openers: its own NAT is open now
//!         <-- READY ---
//!         ====== PINGs ========>   and so is the caller's
//!         --- GO ---->             which starts with GO, or with the first PING that arrives
//!         <===== PINGs =========
//! ```
//!
//! Acknowledged order makes certain what clocks only make likely. It matters to whoever is [poisonable](crate::stray), so
//! that side opens. If both are, the opener's packets live just long enough to leave its own NAT.
//!
//! Only addresses behind a translation wait for their turn; what is on the same link, has IPv6 or needs no translation is
//! probed at once. Where signals do not get through, everything is, after a while.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use wire::probe::signal::Step;
use wire::stun::TransactionId;

use super::Peer;
use super::ladder::MAX_PAIRS;
use crate::budget::Bucket;
use crate::candidate::{CandidateKind, Tier};
use crate::pair::Pair;
use crate::relay::{ControlChannel, RelayId};
use crate::seldom::AsMade;
use crate::shared::Shared;
use crate::snapshot::PeerNat;

/// How long a round waits for the control channel, the peer on it, and the verdict on this node's own NAT. A relay half a second away takes
/// three seconds for these alone, an agent that starts on a busy machine longer, and a round that begins too soon poisons for half a minute.
const PATIENCE: Duration = Duration::from_secs(6);
/// CALLs of one round, in milliseconds: one may be lost, and the peer may just be starting.
const CALL_AT: [u64; 6] = [0, 500, 1000, 2000, 4000, 8000];
/// Without READY for so long, signals do not reach the peer, or the peer does not know them.
const CALL_LIFETIME: Duration = Duration::from_secs(10);
/// READYs of one round, in milliseconds.
const READY_AT: [u64; 4] = [0, 500, 1000, 2000];
/// Without GO or a PING for so long, the caller is gone. Our opening lives for 30 s.
const READY_LIFETIME: Duration = Duration::from_secs(5);
/// A CALL this soon after the start was sent before the peer had read ours.
const CROSSED: Duration = Duration::from_secs(1);
/// Hops of an opener that must leave our NATs and die before the peer's: first what fits nearly everywhere, then less for
/// neighbours in one town, then more for those behind many NATs.
const LOW_TTL: [u8; 3] = [5, 3, 8];
/// CALLs heeded at once: what a peer repeats in one round ..
const CALL_BURST: u32 = 8;
/// .. and a second after that.
const CALL_RATE: u32 = 1;
/// Ids remembered of one step: its repeats, and those that the peer's own CALLs ask for.
const MAX_IDS: usize = 16;

#[derive(Debug, PartialEq)]
pub(super) struct Punch {
    phase: Phase,
    /// What the peer last said about its NAT.
    pub(super) told: Option<PeerNat>,
    /// How many times this side opened, which decides how far its openers go.
    openings: usize,
    calls: Bucket,
}

#[derive(Debug, PartialEq)]
enum Phase {
    /// Between rounds.
    Rest,
    /// For the control channel, or the verdict on this node's NAT.
    Waiting { until: Instant },
    /// For READY.
    Calling(Repeats),
    /// For GO or a PING, after this CALL.
    Opened { call: TransactionId, ready: Repeats },
    /// Both NATs are open. The CALLs that led there are kept, because a repeated READY says that GO was lost.
    Running { since: Instant, calls: Vec<TransactionId> },
}

/// A signal that is repeated until it is answered.
#[derive(Debug, PartialEq)]
struct Repeats {
    started: Instant,
    sent: usize,
    ids: Vec<TransactionId>,
}

impl Repeats {
    fn new(now: Instant) -> Self {
        Self { started: now, sent: 0, ids: Vec::new() }
    }

    fn poll_timeout(&self, at: &[u64], lifetime: Duration) -> Instant {
        let next = at.get(self.sent).map(|millis| Duration::from_millis(*millis));
        self.started + next.unwrap_or(lifetime)
    }

    fn remember(&mut self, id: TransactionId) {
        if self.ids.len() < MAX_IDS {
            self.ids.push(id);
        }
    }
}

impl AsMade for Punch {
    const MADE: Self = Self { phase: Phase::Rest, told: None, openings: 0, calls: Bucket::full(CALL_BURST, CALL_RATE) };

    fn made() -> &'static Self {
        static MADE: Punch = Punch::MADE;
        &MADE
    }

    fn is_as_made(&self) -> bool {
        *self == Self::MADE
    }
}

impl Punch {
    pub(super) fn poll_timeout(&self) -> Option<Instant> {
        match &self.phase {
            Phase::Rest | Phase::Running { .. } => None,
            Phase::Waiting { until } => Some(*until),
            Phase::Calling(repeats) => Some(repeats.poll_timeout(&CALL_AT, CALL_LIFETIME)),
            Phase::Opened { ready, .. } => Some(ready.poll_timeout(&READY_AT, READY_LIFETIME)),
        }
    }

    /// The round is over, or a path was found.
    pub(super) fn rest(&mut self) {
        self.phase = Phase::Rest;
    }

    pub(super) fn is_resting(&self) -> bool {
        matches!(self.phase, Phase::Rest)
    }

    /// Whether this round's probes may go everywhere.
    pub(super) fn is_running(&self) -> bool {
        matches!(self.phase, Phase::Running { .. })
    }

    /// Whether an exchange with the peer is under way that a start from the beginning would only disturb.
    fn is_busy(&self, now: Instant) -> bool {
        match &self.phase {
            Phase::Rest | Phase::Waiting { .. } => false,
            Phase::Calling(_) | Phase::Opened { .. } => true,
            Phase::Running { since, .. } => now.saturating_duration_since(*since) < CROSSED,
        }
    }
}

impl Peer {
    /// Starts probing from the first round, because something changed.
    pub(super) fn begin(&mut self, shared: &mut Shared, now: Instant) {
        if !self.wanted {
            return;
        }
        self.ladder.reset(now);
        if !self.punch.is_busy(now) {
            self.punch.openings = 0;
            self.punch.rest();
            self.prepare(shared, now);
        }
        self.climb(shared, now);
    }

    /// Starts a round's exchange, if there is somebody to talk to and something to find.
    pub(super) fn prepare(&mut self, shared: &mut Shared, now: Instant) {
        if self.direct.is_none() && shared.channel != ControlChannel::Absent {
            self.punch.phase = Phase::Waiting { until: now + PATIENCE };
            self.drive_punch(shared, now);
        }
    }

    /// The same after a round in vain: what this side said of itself may have been out of date.
    pub(super) fn prepare_again(&mut self, shared: &mut Shared, now: Instant) {
        self.prepare(shared, now);
        shared.doubts_mapping |= !self.punch.is_resting();
    }

    /// The relay passes signals from now on, or no longer. Returns whether that is news.
    pub(crate) fn set_met(&mut self, relay: RelayId, met: bool, shared: &mut Shared, now: Instant) -> bool {
        let was_heard = !self.met.is_empty();
        let changed = if met { self.met.insert(relay) } else { self.met.remove(&relay) };
        if met && changed {
            self.met_at(relay, now);
        }
        if met && !was_heard && self.direct.is_none() && matches!(self.punch.phase, Phase::Rest) {
            self.begin(shared, now);
        }
        changed
    }

    /// There is a control channel now, or none. Without one, what waited for its turn need not wait any longer.
    pub(crate) fn channel_change(&mut self, shared: &mut Shared, now: Instant) {
        if shared.channel == ControlChannel::Absent {
            self.punch.rest();
        }
        if self.direct.is_none() && !self.punch.is_running() {
            self.begin(shared, now);
        }
    }

    pub(super) fn drive_punch(&mut self, shared: &mut Shared, now: Instant) {
        let due = self.punch.poll_timeout().is_some_and(|due| due <= now);
        match &self.punch.phase {
            Phase::Waiting { .. } if !self.met.is_empty() && (due || shared.knows_own_nat()) => {
                self.punch.phase = Phase::Calling(Repeats::new(now));
                self.drive_punch(shared, now);
            }
            Phase::Calling(calls) if due && calls.sent < CALL_AT.len() => self.send_call(shared),
            Phase::Waiting { .. } | Phase::Calling(_) if due => self.run(Vec::new(), shared, now),
            Phase::Opened { call, ready } if due && ready.sent < READY_AT.len() => self.send_ready(*call, shared),
            Phase::Opened { .. } if due => self.punch.rest(),
            _ => {}
        }
    }

    /// The peer asks for a path. Whoever has to open does so; the other one calls.
    pub(super) fn on_call(&mut self, id: TransactionId, shared: &mut Shared, now: Instant) {
        let crossed = self.punch.is_running() && self.punch.is_busy(now);
        let undecided = matches!(self.punch.phase, Phase::Waiting { .. }) && !shared.knows_own_nat();
        // In the first case the answer is on its way, in the second this side will call as soon as it knows what to say.
        if crossed || undecided || !self.punch.calls.take(now) {
            return;
        }
        if self.direct.is_some() {
            self.start_check(shared, now);
        }
        if self.opens(shared) {
            return self.open(id, shared, now);
        }
        if !matches!(self.punch.phase, Phase::Calling(_)) {
            self.punch.phase = Phase::Calling(Repeats::new(now));
        }
        self.send_call(shared);
    }

    /// The role rule: whoever alone is poisonable opens, because a packet that comes first would move its port. Otherwise
    /// it does not matter who does, as long as both agree.
    fn opens(&self, shared: &Shared) -> bool {
        match (shared.is_poisonable(), self.peer_is_poisonable()) {
            (true, false) => true,
            (false, true) => false,
            _ => !self.nominates,
        }
    }

    fn peer_is_poisonable(&self) -> bool {
        self.punch.told.is_none_or(|told| told.poisonable)
    }

    /// Opens this node's NAT towards the peer, and says so.
    fn open(&mut self, call: TransactionId, shared: &mut Shared, now: Instant) {
        if let Phase::Opened { call: before, .. } = &mut self.punch.phase {
            *before = call;
        } else {
            self.punch.openings += 1;
            self.punch.phase = Phase::Opened { call, ready: Repeats::new(now) };
        }
        // An opener must not be the stray that it is there to prevent.
        let both = shared.is_poisonable() && self.peer_is_poisonable();
        let ttl = both.then(|| LOW_TTL[(self.punch.openings - 1) % LOW_TTL.len()]);
        let held: Vec<SocketAddr> = self
            .pairs
            .iter()
            .filter(|(remote, pair)| is_translated(**remote, pair))
            .map(|(remote, _)| *remote)
            .collect();
        for remote in held.into_iter().take(MAX_PAIRS) {
            self.ping_with(remote, ttl, shared, now);
        }
        self.send_ready(call, shared);
    }

    /// The peer's NAT is open.
    pub(super) fn on_ready(&mut self, id: TransactionId, answers: TransactionId, shared: &mut Shared, now: Instant) {
        match &mut self.punch.phase {
            Phase::Calling(calls) if calls.ids.contains(&answers) => {
                let calls = std::mem::take(&mut calls.ids);
                self.run(calls, shared, now);
            }
            Phase::Running { calls, .. } if calls.contains(&answers) => {}
            _ => return,
        }
        self.send_signal(Step::Go { answers: id }, shared);
    }

    /// The peer's packets are on their way.
    pub(super) fn on_go(&mut self, answers: TransactionId, shared: &mut Shared, now: Instant) {
        if matches!(&self.punch.phase, Phase::Opened { ready, .. } if ready.ids.contains(&answers)) {
            self.run(Vec::new(), shared, now);
        }
    }

    /// A PING got in from there and nothing works yet. If it crossed a NAT, that NAT is open and so is ours.
    pub(super) fn on_opened(&mut self, from: SocketAddr, shared: &mut Shared, now: Instant) {
        let translated = self.pairs.get(&from).is_some_and(|pair| is_translated(from, pair));
        let waits = match self.punch.phase {
            Phase::Running { .. } => false,
            // The last packets of the peer's round are no reason for another one.
            Phase::Rest => self.ladder.may_revive(now),
            _ => true,
        };
        if translated && waits && shared.channel != ControlChannel::Absent {
            self.run(Vec::new(), shared, now);
        }
    }

    /// Lets the ladder go everywhere, from its first rung.
    fn run(&mut self, calls: Vec<TransactionId>, shared: &mut Shared, now: Instant) {
        let began_here = matches!(self.punch.phase, Phase::Waiting { .. } | Phase::Calling(_));
        self.punch.phase = Phase::Running { since: now, calls };
        self.ladder.rerun(began_here, now);
        self.climb(shared, now);
    }

    /// Whether an address has to wait for its turn.
    pub(super) fn is_held(&self, remote: SocketAddr, pair: &Pair, shared: &Shared, now: Instant) -> bool {
        shared.channel != ControlChannel::Absent
            && !self.punch.is_running()
            && is_translated(remote, pair)
            && !pair.is_proven(now)
    }

    fn send_call(&mut self, shared: &mut Shared) {
        let id = self.send_signal(Step::Call, shared);
        if let Phase::Calling(calls) = &mut self.punch.phase {
            calls.sent += 1;
            calls.remember(id);
        }
    }

    fn send_ready(&mut self, answers: TransactionId, shared: &mut Shared) {
        let id = self.send_signal(Step::Ready { answers }, shared);
        if let Phase::Opened { ready, .. } = &mut self.punch.phase {
            ready.sent += 1;
            ready.remember(id);
        }
    }
}

/// Whether packets to an address meet a NAT that they could come too early for.
fn is_translated(remote: SocketAddr, pair: &Pair) -> bool {
    let reflexive = matches!(pair.kind, CandidateKind::ServerReflexive | CandidateKind::PeerReflexive);
    reflexive && remote.is_ipv4() && pair.tier != Tier::Lan
}
