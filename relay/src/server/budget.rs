//! A token bucket in whole nanoseconds.

use std::time::{Duration, Instant};

/// One token a period, at most `burst` of them saved up.
#[derive(Debug)]
pub struct Budget {
    period: Duration,
    capacity: Duration,
    /// Time that has been earned and not spent; a token costs one period.
    saved: Duration,
    updated: Instant,
}

impl Budget {
    /// A full bucket.
    #[must_use]
    pub fn new(period: Duration, burst: u32, now: Instant) -> Self {
        let capacity = period * burst;
        Self { period, capacity, saved: capacity, updated: now }
    }

    /// Takes a token if there is one. A `now` before the last one earns nothing.
    pub fn take(&mut self, now: Instant) -> bool {
        let earned = now.saturating_duration_since(self.updated);
        self.saved = self.saved.saturating_add(earned).min(self.capacity);
        self.updated = self.updated.max(now);
        match self.saved.checked_sub(self.period) {
            Some(rest) => {
                self.saved = rest;
                true
            }
            None => false,
        }
    }
}
