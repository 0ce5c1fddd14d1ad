//! Who chooses, what is chosen, and how the other side learns of it.
//!
//! The side with the smaller public key nominates. The following side sends the same message the other way round to ask
//! for a nomination: it found a pair that works and has no path. Either message carries the highest epoch its sender knows.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use wire::probe::{self, Probe};

use super::probing::Arrival;
use super::trial::Trial;
use super::{Direct, Peer};
use crate::seldom::AsMade;
use crate::shared::Shared;

/// The largest step of the epoch that is believed: one nomination a second for a century.
const MAX_EPOCH_STEP: u64 = 1 << 32;
/// How long a nomination waits for this side's own proof of the pair.
const PENDING_LIFETIME: Duration = Duration::from_secs(2);
/// Between two requests for a nomination at first, doubled each time.
const ASK_GAP: Duration = Duration::from_millis(500);
/// Between two requests for a nomination at most.
const MAX_ASK_GAP: Duration = Duration::from_secs(30);
/// Between two answers to such requests.
const HEED_GAP: Duration = Duration::from_millis(250);
/// Before the first new trial of a pair that carried probes only, doubled each time: WireGuard itself does not
/// initiate again within 5 s.
const RETRY_GAP: Duration = Duration::from_secs(5);
/// Between two such trials at most.
const MAX_RETRY_GAP: Duration = Duration::from_secs(60);

#[derive(Debug, PartialEq)]
pub(super) struct Nomination {
    /// The highest epoch sent (nominator) or taken up (follower).
    epoch: u64,
    /// The address that the epoch stands for.
    remote: Option<SocketAddr>,
    /// Arrived before this side had proof of its own.
    pending: Option<Box<(Arrival, u64, Instant)>>,
    ask_at: Option<Instant>,
    asks: u32,
    heeded: Option<Instant>,
    retry_at: Option<Instant>,
    retries: u32,
    /// No better path is tried before this, because the device could not be kept on one.
    pub(super) resigned_until: Option<Instant>,
    /// When the path last became another one.
    pub(super) switched: Option<Instant>,
}

impl AsMade for Nomination {
    const MADE: Self = Self {
        epoch: 0,
        remote: None,
        pending: None,
        ask_at: None,
        asks: 0,
        heeded: None,
        retry_at: None,
        retries: 0,
        resigned_until: None,
        switched: None,
    };

    fn made() -> &'static Self {
        static MADE: Nomination = Nomination::MADE;
        &MADE
    }

    fn is_as_made(&self) -> bool {
        *self == Self::MADE
    }
}

impl Nomination {
    pub(super) fn reset_retries(&mut self) {
        self.retry_at = None;
        self.retries = 0;
        self.ask_at = None;
        self.asks = 0;
    }

    /// What was tried in vain may be tried again at once.
    pub(super) fn start_over(&mut self) {
        self.reset_retries();
        self.resigned_until = None;
    }

    pub(super) fn poll_timeout(&self) -> Option<Instant> {
        self.retry_at
    }
}

impl Peer {
    /// A pair was proven. Without a path this is what everybody waits for.
    pub(super) fn on_proof(&mut self, from: SocketAddr, shared: &mut Shared, now: Instant) {
        if self.nominates {
            return self.choose(shared, now);
        }
        if let Some((arrival, epoch, since)) = self.nomination.pending.as_deref().copied()
            && arrival.from == from
        {
            self.nomination.pending = None;
            if now.saturating_duration_since(since) < PENDING_LIFETIME {
                return self.on_follow(arrival, epoch, shared, now);
            }
        }
        if self.direct.is_none() && self.trial.is_none() {
            self.ask(from, shared, now);
        }
    }

    /// Nominates the best proven pair if there is no path, or if it beats the one in use.
    pub(super) fn choose(&mut self, shared: &mut Shared, now: Instant) {
        if !self.nominates || self.trial.is_some() {
            return;
        }
        match (self.direct, self.best(now)) {
            (None, Some(_)) if self.is_entering_relay(now) => {}
            // What is relayed has something to lose, so the peer's word is waited for.
            (None, Some(best)) => self.nominate(best, !self.relayed.is_confirmed(), shared, now),
            (None, None) => {}
            (Some(_), _) if self.nomination.resigned_until.is_some_and(|until| now < until) => {}
            (Some(Direct { remote, .. }), Some(best)) if best != remote => {
                let beats = match (self.pairs.get(&best), self.pairs.get(&remote)) {
                    (Some(best), Some(current)) => best.beats(current),
                    (best, _) => best.is_some(),
                };
                if beats {
                    self.nominate(best, false, shared, now);
                }
            }
            (Some(_), _) => {}
        }
    }

    fn best(&self, now: Instant) -> Option<SocketAddr> {
        let retry = self.nomination.retry_at.is_some_and(|at| at <= now);
        let proven = || self.pairs.iter().filter(|(_, pair)| pair.is_proven(now));
        proven()
            .filter(|(_, pair)| !pair.is_penalised(now))
            .min_by_key(|(_, pair)| pair.rank())
            .or_else(|| {
                proven()
                    .filter(|_| retry && self.direct.is_none() && !self.relayed.is_confirmed())
                    .min_by_key(|(_, pair)| pair.rank())
            })
            .map(|(remote, _)| *remote)
    }

    /// Nominates a pair. `at_once` moves WireGuard in the same instant, for a peer that has no path to lose.
    pub(super) fn nominate(&mut self, remote: SocketAddr, at_once: bool, shared: &mut Shared, now: Instant) {
        let penalised = self.pairs.get(&remote).is_some_and(|pair| pair.is_penalised(now));
        if penalised {
            self.schedule_retry(now);
        }
        self.nomination.epoch = self.nomination.epoch.saturating_add(1);
        self.nomination.remote = Some(remote);
        let token = shared.nonces.token();
        self.trial = Some(Box::new(Trial::nominating(remote, self.nomination.epoch, token, penalised, now)));
        if at_once {
            self.move_to_trial(true, shared, now);
        }
        self.drive_trial(shared, now);
    }

    /// Plans the next attempt at pairs that carry probes only.
    pub(super) fn schedule_retry(&mut self, now: Instant) {
        let gap = RETRY_GAP.saturating_mul(1 << self.nomination.retries.min(4)).min(MAX_RETRY_GAP);
        self.nomination.retries = self.nomination.retries.saturating_add(1);
        self.nomination.retry_at = Some(now + gap);
    }

    /// Asks whether a penalised pair still answers; its PONG then starts the new trial.
    pub(super) fn drive_retry(&mut self, shared: &mut Shared, now: Instant) {
        if self.nomination.retry_at.is_none_or(|at| now < at) {
            return;
        }
        if self.direct.is_some() || self.trial.is_some() || !self.nominates {
            self.nomination.retry_at = None;
            return;
        }
        if self.relayed.is_confirmed() {
            return self.retry_from_relay(shared, now);
        }
        let penalised: Vec<SocketAddr> =
            self.pairs.iter().filter(|(_, pair)| pair.is_penalised(now)).map(|(remote, _)| *remote).collect();
        if penalised.is_empty() {
            self.nomination.retry_at = None;
            return;
        }
        self.choose(shared, now);
        if self.trial.is_none() {
            for remote in penalised {
                self.ping(remote, shared, now);
            }
            // Asked too early to know: the answer is awaited for one more gap.
            self.nomination.retry_at = Some(now + RETRY_GAP);
        }
    }

    /// Packets go by a relay, so a pair that carried probes only is left alone until its time is over, and then begun with anew.
    fn retry_from_relay(&mut self, shared: &mut Shared, now: Instant) {
        self.nomination.retry_at = self.pairs.values().filter_map(|pair| pair.penalised_until(now)).min();
        if self.nomination.retry_at.is_none() {
            self.begin(shared, now);
        }
    }

    pub(super) fn send_nomination(&mut self, remote: SocketAddr, epoch: u64, shared: &mut Shared, now: Instant) {
        let proven = self.pairs.get(&remote).is_some_and(|pair| pair.is_proven(now));
        if !shared.permit(remote, proven, now) {
            return;
        }
        shared.stats.nominations_sent += 1;
        let tx = shared.nonces.transaction_id();
        self.requests.insert(tx, remote, now);
        let payload = probe::seal(&self.keys, tx, &Probe::Nominate { epoch });
        shared.send(remote, None, None, payload);
    }

    pub(super) fn ask(&mut self, remote: SocketAddr, shared: &mut Shared, now: Instant) {
        if self.nomination.ask_at.is_some_and(|at| now < at) {
            return;
        }
        let gap = ASK_GAP.saturating_mul(1 << self.nomination.asks.min(6)).min(MAX_ASK_GAP);
        self.nomination.asks = self.nomination.asks.saturating_add(1);
        self.nomination.ask_at = Some(now + gap);
        let epoch = self.nomination.epoch;
        self.send_nomination(remote, epoch, shared, now);
    }

    pub(super) fn on_nominate(&mut self, arrival: Arrival, epoch: u64, shared: &mut Shared, now: Instant) {
        if !self.learn(arrival.from, shared, now) {
            return;
        }
        let known = self.nomination.epoch;
        if epoch > known && epoch - known > MAX_EPOCH_STEP {
            shared.stats.dropped_nominations += 1;
        } else if self.nominates {
            self.on_ask(arrival, epoch, shared, now);
        } else {
            self.on_follow(arrival, epoch, shared, now);
        }
    }

    /// The follower has no path. If this side thinks there is one, the follower restarted or sees it dead.
    fn on_ask(&mut self, arrival: Arrival, epoch: u64, shared: &mut Shared, now: Instant) {
        let heeded = self.nomination.heeded;
        if heeded.is_some_and(|at| now.saturating_duration_since(at) < HEED_GAP) {
            return;
        }
        self.nomination.heeded = Some(now);
        let stale = self.nomination.epoch < epoch;
        self.nomination.epoch = self.nomination.epoch.max(epoch);
        let from = arrival.from;
        let proven = self.pairs.get(&from).is_some_and(|pair| pair.is_proven(now));
        if !proven {
            self.ping(from, shared, now);
        }
        match &self.trial {
            Some(trial) if stale && trial.epoch <= epoch => self.raise_epoch(epoch, shared, now),
            Some(_) => {}
            None => match self.direct {
                Some(direct) if direct.remote == from => self.nominate(from, true, shared, now),
                Some(_) if proven => self.nominate(from, true, shared, now),
                Some(_) => self.start_check(shared, now),
                None => self.choose(shared, now),
            },
        }
    }

    fn on_follow(&mut self, arrival: Arrival, epoch: u64, shared: &mut Shared, now: Instant) {
        let known = self.nomination.epoch;
        let from = arrival.from;
        let repeated = epoch == known && self.nomination.remote == Some(from);
        if epoch <= known {
            if !repeated {
                shared.stats.dropped_nominations += 1;
            }
            // The epoch in the answer tells a nominator that restarted where to go on.
            self.reply(arrival, &Probe::NominateAck { epoch: known }, shared, now);
            return;
        }
        if !self.pairs.get(&from).is_some_and(|pair| pair.is_proven(now)) {
            self.nomination.pending = Some(Box::new((arrival, epoch, now)));
            self.ping(from, shared, now);
            return;
        }
        if !self.reply(arrival, &Probe::NominateAck { epoch }, shared, now) {
            return;
        }
        shared.stats.nominations_accepted += 1;
        self.nomination.epoch = epoch;
        self.nomination.remote = Some(from);
        self.nomination.pending = None;
        self.follow(from, epoch, shared, now);
    }

    pub(super) fn on_ack(&mut self, arrival: Arrival, epoch: u64, shared: &mut Shared, now: Instant) {
        if self.requests.answered(arrival.tx, arrival.from, now).is_none() {
            shared.stats.dropped_unsolicited += 1;
            return;
        }
        let own = self.nomination.epoch;
        if !self.nominates || (epoch > own && epoch - own > MAX_EPOCH_STEP) {
            shared.stats.dropped_nominations += 1;
            return;
        }
        let Some(trial) = &mut self.trial else {
            return;
        };
        if trial.epoch == epoch && trial.remote == arrival.from {
            trial.acked = true;
            if !trial.has_moved() {
                self.move_to_trial(false, shared, now);
                self.drive_trial(shared, now);
            }
        } else if epoch > trial.epoch {
            self.raise_epoch(epoch, shared, now);
        }
    }

    /// The follower remembers a later epoch than this side, which restarted: nominate again above it.
    fn raise_epoch(&mut self, known: u64, shared: &mut Shared, now: Instant) {
        let Some(trial) = &mut self.trial else {
            return;
        };
        if !trial.may_raise() {
            return;
        }
        self.nomination.epoch = known.saturating_add(1);
        trial.epoch = self.nomination.epoch;
        let (remote, epoch) = (trial.remote, trial.epoch);
        self.send_nomination(remote, epoch, shared, now);
    }
}
