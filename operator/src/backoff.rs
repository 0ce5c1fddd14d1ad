//! Growing pauses with jitter, for objects that cannot be written and watches that break.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

/// The first pause after a refusal or no answer.
const FIRST: Duration = Duration::from_millis(250);
/// The first pause after a conflict: by then the watch has brought what somebody else wrote.
const FIRST_CONFLICT: Duration = Duration::from_millis(40);
/// The longest pause between writes of one object: an admin who mends something sees the effect within a minute.
const LONGEST: Duration = Duration::from_secs(60);
/// The longest pause between attempts to watch: a fresh cluster gets its definitions late, and a watch is cheap to ask for.
const LONGEST_WATCH: Duration = Duration::from_secs(5);

/// The pause after `failures` failures in a row; `jitter` is uniform over all `u32` and spreads it over half to once its length.
fn pause(failures: u32, first: Duration, longest: Duration, jitter: u32) -> Duration {
    let full = first.saturating_mul(1 << failures.saturating_sub(1).min(16)).min(longest);
    let spread = f64::from(jitter) / f64::from(u32::MAX);
    full.mul_f64(0.5 + 0.5 * spread)
}

/// A number for jitter. Without the system's randomness every pause has its middle length, which is no reason to stop.
fn draw() -> u32 {
    getrandom::u32().unwrap_or(u32::MAX / 2)
}

/// Which objects wait before they are written again.
#[derive(Debug)]
pub struct Retries<K: Ord>(BTreeMap<K, Wait>);

impl<K: Ord> Default for Retries<K> {
    fn default() -> Self {
        Self(BTreeMap::new())
    }
}

#[derive(Clone, Copy, Debug)]
struct Wait {
    failures: u32,
    until: Instant,
}

impl<K: Ord + Clone> Retries<K> {
    /// Whether the object may be written now.
    pub fn ready(&self, key: &K, now: Instant) -> bool {
        self.0.get(key).is_none_or(|wait| wait.until <= now)
    }

    /// Notes a failed write.
    pub fn failed(&mut self, key: K, now: Instant) {
        self.wait(key, now, FIRST);
    }

    /// Notes a write that somebody else's overtook.
    pub fn overtaken(&mut self, key: K, now: Instant) {
        self.wait(key, now, FIRST_CONFLICT);
    }

    fn wait(&mut self, key: K, now: Instant, first: Duration) {
        let failures = self.0.get(&key).map_or(0, |wait| wait.failures).saturating_add(1);
        self.0.insert(key, Wait { failures, until: now + pause(failures, first, LONGEST, draw()) });
    }

    /// Notes a successful write.
    pub fn succeeded(&mut self, key: &K) {
        self.0.remove(key);
    }

    /// Forgets objects that nobody wants to write any more, so that the map never outgrows the plan.
    pub fn retain(&mut self, wanted: impl Fn(&K) -> bool) {
        self.0.retain(|key, _| wanted(key));
    }

    /// When the next object may be written again.
    pub fn next(&self, now: Instant) -> Option<Instant> {
        self.0.values().map(|wait| wait.until.max(now)).min()
    }

    /// How many objects wait.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether none waits.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

/// The pauses between attempts to watch.
#[derive(Clone, Debug, Default)]
pub struct WatchBackoff {
    failures: u32,
}

impl Iterator for WatchBackoff {
    type Item = Duration;

    fn next(&mut self) -> Option<Duration> {
        self.failures = self.failures.saturating_add(1);
        Some(pause(self.failures, FIRST, LONGEST_WATCH, draw()))
    }
}

impl kube::runtime::utils::Backoff for WatchBackoff {
    fn reset(&mut self) {
        self.failures = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_double_up_to_a_bound_and_never_vanish() {
        assert_eq!(pause(1, FIRST, LONGEST, u32::MAX), FIRST);
        assert_eq!(pause(2, FIRST, LONGEST, u32::MAX), FIRST * 2);
        assert_eq!(pause(2, FIRST, LONGEST, 0), FIRST);
        assert_eq!(pause(u32::MAX, FIRST, LONGEST, u32::MAX), LONGEST);
        assert_eq!(pause(40, FIRST, LONGEST_WATCH, 0), LONGEST_WATCH / 2);
    }

    #[test]
    fn a_failed_object_waits_and_the_others_do_not() {
        let now = Instant::now();
        let mut retries = Retries::default();
        retries.failed("a", now);
        assert!(!retries.ready(&"a", now));
        assert!(retries.ready(&"b", now));
        let due = retries.next(now).unwrap();
        assert!(due > now && due <= now + FIRST);
        assert!(retries.ready(&"a", due));
        retries.succeeded(&"a");
        assert!(retries.ready(&"a", now) && retries.is_empty());
    }

    #[test]
    fn objects_that_nobody_wants_are_forgotten() {
        let mut retries = Retries::default();
        retries.failed("a", Instant::now());
        retries.retain(|key| *key != "a");
        assert_eq!(retries.len(), 0);
    }
}
