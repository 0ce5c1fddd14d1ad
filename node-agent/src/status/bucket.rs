//! A token bucket in the caller's time.

use std::time::{Duration, Instant};

/// Lets a burst through at once and then one each interval.
#[derive(Clone, Debug)]
pub struct TokenBucket {
    interval: Duration,
    capacity: u32,
    /// When the bucket was, or will be, full: one instant says everything, and no fraction is ever rounded.
    full_at: Instant,
}

impl TokenBucket {
    /// A full bucket.
    pub fn new(capacity: u32, interval: Duration, now: Instant) -> Self {
        Self { interval, capacity, full_at: now }
    }

    /// Takes a token, or says when there will be one.
    pub fn take(&mut self, now: Instant) -> Result<(), Instant> {
        let ready = self.ready_at();
        if ready > now {
            return Err(ready);
        }
        self.full_at = self.full_at.max(now) + self.interval;
        Ok(())
    }

    /// When the next token is or was there.
    pub fn ready_at(&self) -> Instant {
        let spare = self.interval * self.capacity.saturating_sub(1);
        self.full_at.checked_sub(spare).unwrap_or(self.full_at)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const EVERY: Duration = Duration::from_secs(30);

    #[test]
    fn a_burst_passes_and_then_one_each_interval() {
        let start = Instant::now();
        let mut bucket = TokenBucket::new(3, EVERY, start);
        for _ in 0..3 {
            bucket.take(start).unwrap();
        }
        assert_eq!(bucket.take(start), Err(start + EVERY));
        assert_eq!(bucket.take(start + EVERY / 2), Err(start + EVERY));
        bucket.take(start + EVERY).unwrap();
        assert_eq!(bucket.take(start + EVERY), Err(start + EVERY * 2));
    }

    #[test]
    fn rest_fills_it_up_to_its_capacity_only() {
        let start = Instant::now();
        let mut bucket = TokenBucket::new(3, EVERY, start);
        let later = start + EVERY * 100;
        for _ in 0..3 {
            bucket.take(later).unwrap();
        }
        assert!(bucket.take(later).is_err());
    }
}
