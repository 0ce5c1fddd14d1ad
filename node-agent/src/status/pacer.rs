//! Decides when a changed status is written.
//!
//! Every write of a watched object reaches every watcher, so writes are scarce: a token bucket, and no write that says
//! nothing new. What peers wait for (key, proof, candidates) goes at once while tokens last; what only people read (how
//! many paths there are) waits until it stands still, so that a start with many peers costs one write instead of one a peer.

use super::bucket::TokenBucket;
use std::time::{Duration, Instant};

/// Writes that pass at once while the agent runs.
const BURST: u32 = 3;
/// Writes of a start beyond those: key, proof, candidates, device, peers and paths come one after the other, and peers wait for
/// the first three. A start that finds its status already written uses none of them.
const START: u32 = 5;
/// One more write each: 1,000 nodes stay below 34 writes a second even if all of them flap.
const INTERVAL: Duration = Duration::from_secs(30);
/// How long paths must stand still: a start connects its peers within this.
const SETTLE_PATHS: Duration = Duration::from_secs(5);
/// How long conditions must stand still: device, routes and CNI file follow each other within this.
const SETTLE_CONDITIONS: Duration = Duration::from_secs(1);
/// How long a part that never stands still may be put off.
const SETTLE_LIMIT: Duration = Duration::from_secs(60);

/// How urgent the difference between what is and what was written is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Change {
    /// No difference.
    None,
    /// Counts and health of paths: people read them.
    Paths,
    /// Other conditions.
    Conditions,
    /// What operator and peers wait for: key, proof, candidates.
    Prompt,
}

/// When to write.
#[derive(Clone, Debug)]
pub struct Pacer {
    start: u32,
    bucket: TokenBucket,
    /// Since when a change waits, and when its content last changed.
    waiting: Option<(Instant, Instant)>,
    /// Set after a failed write.
    not_before: Option<Instant>,
    failures: u32,
}

impl Pacer {
    /// A pacer that lets the first writes pass.
    pub fn new(now: Instant) -> Self {
        let bucket = TokenBucket::new(BURST, INTERVAL, now);
        Self { start: START, bucket, waiting: None, not_before: None, failures: 0 }
    }

    /// The difference was looked at: `changed` says that the wanted content is not the one of the last call.
    /// `Ok` means write now (a token is taken), `Err` when to look again, if ever.
    pub fn poll(&mut self, change: Change, changed: bool, now: Instant) -> Result<(), Option<Instant>> {
        let due = match change {
            Change::None => {
                self.waiting = None;
                return Err(None);
            }
            Change::Prompt => now,
            Change::Conditions => self.settled_at(SETTLE_CONDITIONS, changed, now),
            Change::Paths => self.settled_at(SETTLE_PATHS, changed, now),
        };
        let due = due.max(self.not_before.unwrap_or(due));
        if due > now {
            return Err(Some(due));
        }
        if self.start > 0 {
            self.start -= 1;
        } else {
            self.bucket.take(now).map_err(Some)?;
        }
        self.waiting = None;
        Ok(())
    }

    /// The last write went through.
    pub fn succeeded(&mut self) {
        self.failures = 0;
        self.not_before = None;
    }

    /// The last write failed; `jitter` is in 0..1. The next one waits longer each time.
    pub fn failed(&mut self, now: Instant, jitter: f64) {
        self.failures = (self.failures + 1).min(6);
        let longest = Duration::from_millis(500) * 2u32.pow(self.failures);
        self.not_before = Some(now + longest.mul_f64(0.5 + jitter.clamp(0.0, 1.0) / 2.0));
    }

    fn settled_at(&mut self, settle: Duration, changed: bool, now: Instant) -> Instant {
        let (since, last) = match self.waiting {
            Some((since, last)) => (since, if changed { now } else { last }),
            None => (now, now),
        };
        self.waiting = Some((since, last));
        (last + settle).min(since + SETTLE_LIMIT)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn s(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    #[test]
    fn a_prompt_change_is_written_at_once_and_an_equal_one_never() {
        let t = Instant::now();
        let mut pacer = Pacer::new(t);
        assert_eq!(pacer.poll(Change::Prompt, true, t), Ok(()));
        assert_eq!(pacer.poll(Change::None, false, t), Err(None));
    }

    #[test]
    fn a_start_and_a_burst_then_one_in_thirty_seconds() {
        let t = Instant::now();
        let mut pacer = Pacer::new(t);
        for _ in 0..START + BURST {
            assert_eq!(pacer.poll(Change::Prompt, true, t), Ok(()));
        }
        assert_eq!(pacer.poll(Change::Prompt, true, t), Err(Some(t + s(30))));
        assert_eq!(pacer.poll(Change::Prompt, true, t + s(30)), Ok(()));
    }

    #[test]
    fn slow_changes_wait_until_they_stand_still_and_are_then_one_write() {
        let t = Instant::now();
        let mut pacer = Pacer::new(t);
        for second in 0..4 {
            let at = t + s(second);
            assert_eq!(pacer.poll(Change::Paths, true, at), Err(Some(at + SETTLE_PATHS)));
        }
        assert_eq!(pacer.poll(Change::Paths, false, t + s(8)), Ok(()));
    }

    #[test]
    fn conditions_of_one_start_are_one_write() {
        let t = Instant::now();
        let mut pacer = Pacer::new(t);
        assert_eq!(pacer.poll(Change::Conditions, true, t), Err(Some(t + SETTLE_CONDITIONS)));
        assert_eq!(pacer.poll(Change::Conditions, false, t + SETTLE_CONDITIONS), Ok(()));
    }

    #[test]
    fn slow_changes_that_never_rest_are_written_once_a_minute() {
        let t = Instant::now();
        let mut pacer = Pacer::new(t);
        let writes = (0..600).filter(|second| pacer.poll(Change::Paths, true, t + s(*second)).is_ok()).count();
        assert!((9..=10).contains(&writes), "{writes}");
    }

    #[test]
    fn failures_wait_longer_each_time_and_a_success_ends_that() {
        let t = Instant::now();
        let mut pacer = Pacer::new(t);
        pacer.failed(t, 1.0);
        assert_eq!(pacer.poll(Change::Prompt, true, t), Err(Some(t + s(1))));
        pacer.failed(t, 1.0);
        assert_eq!(pacer.poll(Change::Prompt, true, t), Err(Some(t + s(2))));
        pacer.succeeded();
        assert_eq!(pacer.poll(Change::Prompt, true, t), Ok(()));
    }
}
