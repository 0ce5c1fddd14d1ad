//! What is shown of a peer, and never more than is proven.

use std::time::{Duration, Instant};

use super::Peer;
use crate::event::{Event, PathState, Reason, Selected};
use crate::kept::KeptState;
use crate::shared::Shared;
use crate::snapshot::{PairOutcome, PairReport, PeerReport};
use crate::timer::earliest;

/// For so long a path that died is reported as being rebuilt.
const RECONNECTING: Duration = Duration::from_secs(5);

/// The state last shown, and since when.
#[derive(Debug)]
pub(super) struct Shown {
    state: KeptState,
    since: Instant,
}

impl Peer {
    /// Everything that is due.
    pub(crate) fn handle_timeout(&mut self, shared: &mut Shared, now: Instant) {
        self.drive_legs(shared, now);
        self.drive_relay(shared, now);
        self.drive_punch(shared, now);
        self.climb(shared, now);
        self.drive_hold(shared, now);
        self.drive_trial(shared, now);
        self.drive_check(shared, now);
        self.drive_retry(shared, now);
        self.drive_lost(shared, now);
        self.drive_suspicion(shared, now);
        self.drive_rest(shared, now);
    }

    pub(crate) fn poll_timeout(&self, now: Instant) -> Option<Instant> {
        let ladder = self.is_kept().then(|| self.ladder.poll_timeout()).flatten();
        let trial = self.trial.as_deref().and_then(super::Trial::poll_timeout);
        let has_way_out = self.relayed.warm_relay().is_some();
        let check = self.check.as_deref().and_then(|check| check.poll_timeout(has_way_out));
        let punch = self.punch.poll_timeout();
        let lost = self.lost.as_ref().map(|lost| lost.probe_at);
        let hold = self.hold.as_deref().and_then(super::Hold::poll_timeout);
        let news = self.lost.as_ref().map(|lost| lost.at + RECONNECTING).filter(|at| now < *at);
        // The end of a penalty changes what is shown.
        let forgiven = self.pairs.values().filter_map(|pair| pair.penalised_until(now)).min();
        let retry = self.nomination.poll_timeout();
        let relay = earliest([self.legs_timeout(now), self.relay_timeout(now)]);
        let rest = self.rest.poll_timeout();
        earliest([ladder, punch, trial, check, lost, hold, news, forgiven, retry, relay, rest, self.suspicion_due()])
    }

    /// Tells the shell if the state is news.
    pub(crate) fn show(&mut self, shared: &mut Shared, now: Instant) {
        let state = self.state(shared, now);
        if self.shown.as_ref().is_some_and(|shown| shown.state.get().same_news(&state)) {
            return;
        }
        self.shown = Some(Shown { state: state.into(), since: now });
        let peer = self.key;
        shared.events.push_back(Event::PathChanged { peer, state });
    }

    fn state(&self, shared: &Shared, now: Instant) -> PathState {
        if self.is_asleep() {
            return PathState::Idle;
        }
        if let Some(direct) = self.direct
            && let Some(pair) = self.pairs.get(&direct.remote)
        {
            return PathState::Direct {
                pair: Selected { remote: direct.remote, kind: pair.kind, tier: pair.tier },
                rtt: pair.rtt.unwrap_or_default(),
                since: direct.since,
            };
        }
        let probing = self.wanted && self.ladder.is_fresh() && !self.pairs.is_empty();
        if let Some(path) = self.relayed.path.filter(|path| path.confirmed) {
            return PathState::Relayed {
                relay: path.relay,
                endpoint: path.endpoint,
                rtt: self.relayed.rtt,
                since: path.since,
                reason: if probing { Reason::NotTriedYet } else { self.reason(shared, now) },
            };
        }
        let entering = self.relayed.path.is_some() && self.relayed.failures == 0;
        let trying = entering || self.trial.as_ref().is_some_and(|trial| !trial.quiet);
        let rebuilding = self.lost.as_ref().is_some_and(|lost| now.saturating_duration_since(lost.at) < RECONNECTING);
        let blocked = self.pairs.values().any(|pair| pair.is_penalised(now));
        if trying || ((probing || rebuilding) && !blocked) {
            return PathState::Connecting;
        }
        PathState::Down { reason: self.reason(shared, now) }
    }

    fn reason(&self, shared: &Shared, now: Instant) -> Reason {
        let any = |what: fn(&crate::pair::Pair) -> bool| self.pairs.values().any(what);
        let is_blocked = |class| class == crate::nat::NatClass::Blocked;
        let told = |what: fn(crate::nat::NatClass) -> bool| self.punch.told.is_some_and(|peer| what(peer.class));
        let all_nat = |what: fn(crate::nat::NatClass) -> bool| {
            !self.pairs.is_empty() && self.pairs.keys().all(|addr| what(shared.nat.of(addr.ip())))
        };
        if !self.relayed.is_confirmed() && self.finds_no_port(shared) {
            // First of all: whatever keeps the pair from a direct path, a relay would carry it.
            Reason::RelayPortsExhausted
        } else if self.pairs.values().any(|pair| pair.is_penalised(now)) {
            Reason::DataBlocked
        } else if self.relayed.path.is_some_and(|path| self.is_without_udp(path.relay, shared)) {
            Reason::UdpBlocked
        } else if self.pairs.is_empty() {
            Reason::NoCandidates
        } else if !any(|pair| pair.sent > 0 || pair.withheld > 0) {
            Reason::NotTriedYet
        } else if self.lost.is_some() && !self.relayed.is_confirmed() {
            // Whoever answers by a relay is not down.
            Reason::PeerDown
        } else if all_nat(is_blocked) || told(is_blocked) {
            Reason::UdpBlocked
        } else if any(|pair| pair.heard > 0) && !any(|pair| pair.pongs > 0) {
            Reason::HostFirewall
        } else if all_nat(crate::nat::NatClass::is_hard) || told(crate::nat::NatClass::is_hard) {
            Reason::HardNat
        } else if !any(|pair| pair.sent > 0) {
            Reason::Budget
        } else {
            Reason::NoAnswer
        }
    }

    pub(crate) fn report(&self, shared: &Shared, now: Instant) -> PeerReport {
        let selected = self.direct.map(|direct| direct.remote);
        let pairs = self
            .pairs
            .iter()
            .map(|(remote, pair)| PairReport {
                remote: *remote,
                kind: pair.kind,
                tier: pair.tier,
                sent: pair.sent,
                answered: pair.pongs,
                heard: pair.heard,
                rtt: pair.rtt,
                outcome: if selected == Some(*remote) {
                    PairOutcome::Selected
                } else if pair.is_penalised(now) {
                    PairOutcome::DataBlocked
                } else if pair.is_proven(now) {
                    PairOutcome::Proven
                } else if pair.sent == 0 {
                    PairOutcome::NotTried
                } else {
                    PairOutcome::NoAnswer
                },
            })
            .collect();
        PeerReport {
            state: self.state(shared, now),
            since: self.shown.as_ref().map(|shown| shown.since),
            nominates: self.nominates,
            wanted: self.asked,
            endpoint: self.endpoint.map(|(remote, _)| remote),
            last_switch: self.nomination.switched,
            nat: self.punch.told,
            pairs,
            met: self.met.iter().copied().collect(),
            legs: self.relayed.report(),
        }
    }
}
