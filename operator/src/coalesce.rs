//! When to plan: at once for a few changes, gathered during a burst, soon when somebody must go.

use std::time::{Duration, Instant};

/// Changes in a row that are planned at once: the join of one node is three (Node, key, candidates), and it must talk within a second.
const AT_ONCE: u32 = 4;
/// In a burst a change is held back until nothing else has changed for this long, at most: a join of 1,000 nodes costs a few passes.
const QUIET: Duration = Duration::from_secs(1);
/// The same, at least: the objects of one admin's `kubectl apply` arrive within it.
const QUIET_LEAST: Duration = Duration::from_millis(50);
/// A pass rewrites two slices or so, which go to every node, and an API server shall deliver 1,000 events a second on our
/// account: so each node may hold a change back by this much.
const QUIET_PER_NODE: Duration = Duration::from_millis(2);
/// A burst is not gathered for longer than so many quiet times, so that the first of many nodes does not wait for the last.
/// After as long one more change may be planned at once.
const LONGEST: u32 = 5;
/// Somebody who must go is gone from the directory after this at the latest; a burst of removals shares the write.
const URGENT: Duration = Duration::from_millis(250);

/// How much a pass may write.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Lane {
    /// The tombstones alone.
    Fast,
    /// Everything.
    Slow,
}

/// Gathers changes.
#[derive(Debug)]
pub struct Coalescer {
    quiet: Duration,
    budget: u32,
    refilled: Instant,
    last_fast: Option<Instant>,
    slow: Option<Burst>,
    fast: Option<Instant>,
    wake: Option<Instant>,
}

#[derive(Clone, Copy, Debug)]
struct Burst {
    first: Instant,
    due: Instant,
}

impl Coalescer {
    /// Nothing has changed yet.
    pub fn new(now: Instant) -> Self {
        Self { quiet: QUIET_LEAST, budget: AT_ONCE, refilled: now, last_fast: None, slow: None, fast: None, wake: None }
    }

    /// So many nodes watch what a pass writes.
    pub fn set_nodes(&mut self, nodes: usize) {
        let nodes = u32::try_from(nodes).unwrap_or(u32::MAX);
        self.quiet = QUIET_PER_NODE.saturating_mul(nodes).clamp(QUIET_LEAST, QUIET);
    }

    fn longest(&self) -> Duration {
        self.quiet * LONGEST
    }

    /// Something changed.
    pub fn changed(&mut self, now: Instant) {
        self.refill(now);
        self.slow = Some(match self.slow {
            Some(burst) if burst.due <= now => burst,
            Some(Burst { first, .. }) => Burst { first, due: (now + self.quiet).min(first + self.longest()) },
            None if self.budget > 0 => {
                self.budget -= 1;
                Burst { first: now, due: now }
            }
            None => Burst { first: now, due: now + self.quiet },
        });
    }

    fn refill(&mut self, now: Instant) {
        let periods = now.saturating_duration_since(self.refilled).as_millis() / self.longest().as_millis();
        let periods = u32::try_from(periods).unwrap_or(u32::MAX);
        self.budget = self.budget.saturating_add(periods).min(AT_ONCE);
        self.refilled += self.longest().saturating_mul(periods);
    }

    /// Somebody must go.
    pub fn removed(&mut self, now: Instant) {
        self.changed(now);
        let due = self.last_fast.map_or(now, |last| (last + URGENT).max(now));
        self.fast.get_or_insert(due);
    }

    /// A full pass is wanted at `when`, whatever else happens.
    pub fn wake(&mut self, when: Instant) {
        self.wake = Some(self.wake.map_or(when, |due| due.min(when)));
    }

    /// When [`Self::take`] has something next.
    pub fn due(&self) -> Option<Instant> {
        [self.slow.map(|burst| burst.due), self.fast, self.wake].into_iter().flatten().min()
    }

    /// The pass that is due now. The slow one covers the fast one.
    pub fn take(&mut self, now: Instant) -> Option<Lane> {
        let slow = self.slow.map(|burst| burst.due).into_iter().chain(self.wake).min();
        if slow.is_some_and(|due| due <= now) {
            if self.fast.take().is_some() {
                self.last_fast = Some(now);
            }
            (self.slow, self.wake) = (None, None);
            return Some(Lane::Slow);
        }
        if self.fast.is_some_and(|due| due <= now) {
            self.fast = None;
            self.last_fast = Some(now);
            return Some(Lane::Fast);
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ms(n: u64) -> Duration {
        Duration::from_millis(n)
    }

    fn busy(now: Instant) -> Coalescer {
        let mut coalescer = Coalescer::new(now);
        coalescer.set_nodes(1000);
        for _ in 0..AT_ONCE {
            coalescer.changed(now);
            assert_eq!(coalescer.take(now), Some(Lane::Slow));
        }
        coalescer
    }

    #[test]
    fn a_few_changes_are_planned_at_once() {
        let start = Instant::now();
        let mut coalescer = Coalescer::new(start);
        assert_eq!((coalescer.due(), coalescer.take(start)), (None, None));
        coalescer.changed(start);
        coalescer.changed(start);
        assert_eq!(coalescer.take(start), Some(Lane::Slow));
        assert_eq!(coalescer.take(start), None);
    }

    #[test]
    fn a_quiet_time_allows_as_many_again_and_no_more() {
        let start = Instant::now();
        let mut coalescer = busy(start);
        let later = start + QUIET * 5000;
        for _ in 0..AT_ONCE {
            coalescer.changed(later);
            assert_eq!(coalescer.take(later), Some(Lane::Slow));
        }
        coalescer.changed(later);
        assert_eq!(coalescer.take(later), None);
    }

    #[test]
    fn a_burst_is_gathered_until_it_is_quiet_or_old() {
        let start = Instant::now();
        let mut coalescer = busy(start);
        coalescer.changed(start + ms(100));
        coalescer.changed(start + ms(200));
        assert_eq!(coalescer.due(), Some(start + ms(200) + QUIET));
        for n in 3..50 {
            coalescer.changed(start + ms(100 * n));
        }
        assert_eq!(coalescer.due(), Some(start + ms(100) + QUIET * LONGEST));
        assert_eq!(coalescer.take(start + ms(100) + QUIET * LONGEST), Some(Lane::Slow));
    }

    #[test]
    fn a_small_mesh_hardly_waits_and_a_large_one_a_second() {
        let start = Instant::now();
        for (nodes, wait) in [(0, 50), (5, 50), (100, 200), (500, 1000), (100_000, 1000)] {
            let mut coalescer = busy(start);
            coalescer.set_nodes(nodes);
            coalescer.changed(start);
            assert_eq!(coalescer.due(), Some(start + ms(wait)), "{nodes} nodes");
        }
    }

    #[test]
    fn a_removal_does_not_wait_for_the_burst() {
        let start = Instant::now();
        let mut coalescer = busy(start);
        coalescer.changed(start + ms(10));
        coalescer.removed(start + ms(20));
        assert_eq!(coalescer.take(start + ms(20)), Some(Lane::Fast));
        assert_eq!(coalescer.take(start + ms(20)), None);
        coalescer.removed(start + ms(30));
        coalescer.removed(start + ms(200));
        let due = coalescer.due().unwrap();
        assert!(due <= start + ms(30) + URGENT, "a burst of removals shares a write, and none waits longer");
        assert_eq!(coalescer.take(due), Some(Lane::Fast));
        assert_eq!(coalescer.take(start + ms(200) + QUIET), Some(Lane::Slow));
        assert_eq!(coalescer.due(), None);
    }

    #[test]
    fn the_full_pass_covers_a_removal() {
        let start = Instant::now();
        let mut coalescer = Coalescer::new(start);
        coalescer.removed(start);
        assert_eq!(coalescer.take(start), Some(Lane::Slow));
        assert_eq!(coalescer.due(), None);
    }

    #[test]
    fn a_wake_up_is_never_late_and_holds_no_change_back() {
        let start = Instant::now();
        let mut coalescer = Coalescer::new(start);
        for wanted in [700, 500, 600] {
            coalescer.wake(start + ms(wanted));
        }
        assert_eq!(coalescer.due(), Some(start + ms(500)));
        coalescer.changed(start);
        assert_eq!(coalescer.take(start), Some(Lane::Slow));
    }
}
