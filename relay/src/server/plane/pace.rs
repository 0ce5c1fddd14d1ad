//! A token bucket for bytes, as one instant: when it will be full again.

use std::time::{Duration, Instant};

use super::limits::{MIN_RATE_BURST, RATE_BURST};

/// Bytes a second, never zero.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rate(std::num::NonZeroU64);

impl Rate {
    /// `None` for zero, which means no limit.
    #[must_use]
    pub fn bytes_per_second(rate: u64) -> Option<Self> {
        std::num::NonZeroU64::new(rate).map(Self)
    }

    fn time_for(self, bytes: u64) -> Duration {
        let nanos = u128::from(bytes) * 1_000_000_000 / u128::from(self.0.get());
        Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX))
    }

    fn burst(self) -> Duration {
        RATE_BURST.max(self.time_for(MIN_RATE_BURST))
    }
}

/// The bucket of one node or pair.
#[derive(Debug)]
pub(super) struct Pace {
    rate: Option<Rate>,
    full_at: Instant,
}

impl Pace {
    pub(super) fn new(rate: Option<Rate>, now: Instant) -> Self {
        Self { rate, full_at: now }
    }

    /// How many of `count` datagrams of this size may pass now.
    pub(super) fn admits(&self, count: usize, size: usize, now: Instant) -> usize {
        let Some(rate) = self.rate else { return count };
        let each = rate.time_for(size as u64).as_nanos().max(1);
        let room = rate.burst().saturating_sub(self.full_at.saturating_duration_since(now));
        count.min(usize::try_from(room.as_nanos() / each).unwrap_or(usize::MAX))
    }

    /// Takes what passed.
    pub(super) fn spend(&mut self, bytes: usize, now: Instant) {
        if let Some(rate) = self.rate {
            self.full_at = self.full_at.max(now) + rate.time_for(bytes as u64);
        }
    }
}
