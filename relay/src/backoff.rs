//! When to try again.

use std::time::Duration;

use tokio::time::Instant;

/// First wait after a failure: an API server that restarts is back within seconds.
const FIRST: Duration = Duration::from_secs(1);

/// Longest wait: a relay's new address should be known a minute after the API is back.
const LONGEST: Duration = Duration::from_secs(60);

/// Doubles the wait with every failure.
#[derive(Debug, Default)]
pub(crate) struct Backoff {
    last: Option<Duration>,
    due: Option<Instant>,
}

impl Backoff {
    /// Forgets failures.
    pub(crate) fn reset(&mut self) {
        *self = Self::default();
    }

    /// Notes a failure.
    pub(crate) fn failed(&mut self, now: Instant) {
        let wait = self.last.map_or(FIRST, |last| (last * 2).min(LONGEST));
        self.last = Some(wait);
        self.due = Some(now + wait);
    }

    /// Waits without having failed.
    pub(crate) fn wait(&mut self, now: Instant, wait: Duration) {
        self.due = Some(now + wait);
    }

    pub(crate) fn is_due(&self, now: Instant) -> bool {
        self.due.is_none_or(|due| due <= now)
    }

    pub(crate) fn due(&self) -> Option<Instant> {
        self.due
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_double_up_to_a_minute_and_start_over_after_success() {
        let now = Instant::now();
        let mut backoff = Backoff::default();
        assert!(backoff.is_due(now));
        for expected in [1, 2, 4, 8, 16, 32, 60, 60] {
            backoff.failed(now);
            assert_eq!(backoff.due(), Some(now + Duration::from_secs(expected)));
            assert!(!backoff.is_due(now));
        }
        backoff.reset();
        assert!(backoff.is_due(now));
        backoff.failed(now);
        assert_eq!(backoff.due(), Some(now + FIRST));
    }
}
