//! When to probe pairs that are not proven: quickly at first, then ever more rarely, never often for long.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use super::Peer;
use crate::budget::Bucket;
use crate::pair::RTT_SAMPLES;
use crate::shared::Shared;

/// Probes of one round, in milliseconds from its start: dense while the other side is likely to have just learned of
/// us too, then spread so that a late start still meets an open mapping.
const RUNGS: [u64; 8] = [0, 100, 250, 500, 900, 1550, 2550, 4150];

/// Silence between rounds, the last one repeated. The first outlasts the 30 s for which Linux keeps an unanswered
/// connection: a mapping spoilt by a stray packet heals only in silence.
const GAPS: [Duration; 4] =
    [Duration::from_secs(35), Duration::from_secs(90), Duration::from_secs(300), Duration::from_secs(900)];

/// Pairs probed in one rung. The others have their turn in the next.
pub(super) const MAX_PAIRS: usize = 12;

/// Resets at once: what a start brings in quick succession (peer, its candidates, own addresses, round).
const RESET_BURST: u32 = 4;
/// Resets a second after that, so that a peer whose candidates flap cannot make a flood.
const RESET_RATE: u32 = 1;

/// Between two rounds that a peer's probes set off outside the plan.
const MIN_REVIVAL: Duration = Duration::from_secs(5);

#[derive(Debug)]
pub(super) struct Ladder {
    /// When the running or coming round starts; `None` before the first, and after it while there is nobody to ask.
    start: Option<Instant>,
    rung: usize,
    round: usize,
    /// When the last round was over.
    ended: Option<Instant>,
    resets: Bucket,
}

impl Ladder {
    pub(super) const fn idle() -> Self {
        Self { start: None, rung: 0, round: 0, ended: None, resets: Bucket::full(RESET_BURST, RESET_RATE) }
    }

    /// Whether the first round is still going on, before any conclusion can be drawn.
    pub(super) fn is_fresh(&self) -> bool {
        self.start.is_some() && self.round == 0
    }

    pub(super) fn reset(&mut self, now: Instant) {
        let pause = if self.resets.take(now) { Duration::ZERO } else { Duration::from_secs(1) / RESET_RATE };
        self.start = Some(now + pause);
        self.rung = 0;
        self.round = 0;
        self.ended = None;
    }

    /// Runs a round from its first rung: the one that is going on, or the coming one. `same` takes back that the running
    /// one came to its end meanwhile.
    pub(super) fn rerun(&mut self, same: bool, now: Instant) {
        if same && self.rung == 0 {
            self.round = self.round.saturating_sub(1);
        }
        self.start = Some(now);
        self.rung = 0;
    }

    /// Whether the last round has been over for so long that what arrives now does not belong to it.
    pub(super) fn may_revive(&self, now: Instant) -> bool {
        self.rung == 0 && self.ended.is_some_and(|ended| now.saturating_duration_since(ended) >= MIN_REVIVAL)
    }

    /// There is nobody to ask.
    pub(super) fn pause(&mut self) {
        self.start = None;
    }

    /// There is somebody again: the coming round is no sooner than it would have been.
    pub(super) fn resume(&mut self, now: Instant) {
        if self.start.is_none() && self.round > 0 {
            self.start = Some(now + gap_after(self.round - 1));
        }
    }

    pub(super) fn poll_timeout(&self) -> Option<Instant> {
        Some(self.start? + Duration::from_millis(RUNGS[self.rung]))
    }

    /// Steps onto the next rung if it is due. Returns the round that the rung belongs to.
    fn step(&mut self, now: Instant) -> Option<usize> {
        if self.poll_timeout().is_none_or(|due| now < due) {
            return None;
        }
        let round = self.round;
        self.rung += 1;
        if self.rung == RUNGS.len() {
            self.finish_round(now);
        }
        Some(round)
    }

    fn finish_round(&mut self, now: Instant) {
        self.ended = Some(now);
        self.start = Some(now + gap_after(self.round));
        self.rung = 0;
        self.round += 1;
    }
}

/// The silence after the n-th round.
fn gap_after(round: usize) -> Duration {
    GAPS[round.min(GAPS.len() - 1)]
}

impl Peer {
    /// Sends the probes that are due.
    pub(super) fn climb(&mut self, shared: &mut Shared, now: Instant) {
        while self.is_kept()
            && let Some(round) = self.ladder.step(now)
        {
            if self.ladder.rung == 1 && round > 0 && self.punch.is_resting() {
                self.prepare_again(shared, now);
            }
            for remote in self.pairs_to_probe(shared, now) {
                self.ping(remote, shared, now);
            }
            // With a path in use a later round only asks whether a better one has appeared; without a pair it asks nobody.
            if round > 0 && (self.direct.is_some() || self.pairs.is_empty()) && self.ladder.rung != 0 {
                self.ladder.finish_round(now);
            }
            if self.ladder.rung == 0 && self.punch.is_running() {
                self.punch.rest();
            }
            // Thousands of peers that say of no address of theirs, and have not been met, would cost turns for nothing.
            if self.ladder.rung == 0 && self.pairs.is_empty() && self.met.is_empty() {
                self.ladder.pause();
            }
        }
    }

    /// Starts the ladder over because the peer turned out to be there, unless that was just done.
    pub(super) fn revive(&mut self, shared: &mut Shared, now: Instant) {
        if self.ladder.may_revive(now) {
            // The peer's rounds must not use up this side's own short gaps.
            self.ladder.round = self.ladder.round.saturating_sub(1).max(1);
            self.ladder.start = Some(now);
            self.climb(shared, now);
        }
    }

    /// Without a path all pairs, with one only those that could replace it. When there are more than a rung holds, those
    /// that waited longest: the only address that works may sort behind every one that doesn't.
    fn pairs_to_probe(&self, shared: &Shared, now: Instant) -> Vec<SocketAddr> {
        let current = self.direct.and_then(|direct| Some((direct.remote, self.pairs.get(&direct.remote)?.tier)));
        let mut pairs: Vec<_> = self
            .pairs
            .iter()
            .filter(|(remote, pair)| !self.is_held(**remote, pair, shared, now))
            .filter(|(remote, pair)| match current {
                Some((selected, _)) if selected == **remote => pair.pongs < RTT_SAMPLES,
                Some((_, tier)) => pair.tier <= tier && pair.pongs < RTT_SAMPLES,
                None => true,
            })
            .map(|(remote, pair)| ((pair.tried, pair.heard == 0, pair.tier, pair.kind), *remote))
            .collect();
        pairs.sort();
        pairs.truncate(MAX_PAIRS);
        pairs.into_iter().map(|(_, remote)| remote).collect()
    }
}
