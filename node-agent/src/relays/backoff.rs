//! When a channel is tried again. Pure.

use std::time::Duration;

/// A relay that starts anew in place is back within a second or two: the first tries are dense.
const FIRST: Duration = Duration::from_millis(200);
/// A relay that is gone for long costs a node four handshakes a minute.
const LAST: Duration = Duration::from_secs(15);
/// Whoever is told that trying again can't help soon waits this long.
const LONG: Duration = Duration::from_secs(30);
/// First and last time that a try may take: a lost packet of a handshake is repeated after a second, so a short one is
/// better begun anew while the relay may just be starting, and a long one is for slow lines.
const TRY: (Duration, Duration) = (Duration::from_millis(1500), Duration::from_secs(12));
/// A channel that held this long makes the one after it a first one.
const HELD: Duration = Duration::from_secs(5);

/// Counts what went wrong in a row.
#[derive(Clone, Copy, Debug, Default)]
pub struct Backoff {
    failures: u32,
}

impl Backoff {
    /// How long the next try may take.
    pub fn patience(self) -> Duration {
        (TRY.0 * 2u32.pow(self.failures.min(8))).min(TRY.1)
    }

    /// The pause after a failure, with `unit` in 0..1 spreading it over half of it, so that not all nodes come back at once.
    pub fn failed(&mut self, unit: f64) -> Duration {
        let pause = (FIRST * 2u32.pow(self.failures.min(16))).min(LAST);
        self.failures = self.failures.saturating_add(1);
        pause.mul_f64(0.5 + unit / 2.0)
    }

    /// The pause after a channel ended that had held for so long.
    pub fn ended(&mut self, held: Duration, unit: f64) -> Duration {
        if held >= HELD {
            self.failures = 0;
        }
        self.failed(unit)
    }

    /// The pause after a relay said no for a reason that stays.
    pub fn refused(&mut self, unit: f64) -> Duration {
        self.failures = self.failures.saturating_add(1);
        LONG.mul_f64(0.5 + unit / 2.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tries_are_dense_at_first_and_rare_later() {
        let mut backoff = Backoff::default();
        let pauses: Vec<u128> = (0..10).map(|_| backoff.failed(1.0).as_millis()).collect();
        assert_eq!(pauses, [200, 400, 800, 1600, 3200, 6400, 12800, 15000, 15000, 15000]);
        assert_eq!(backoff.patience(), TRY.1);
        assert_eq!(Backoff::default().patience(), TRY.0);
        assert_eq!(Backoff { failures: u32::MAX }.failed(0.0), LAST / 2);
    }

    #[test]
    fn a_channel_that_held_is_sought_at_once_and_one_that_flaps_is_not() {
        let mut backoff = Backoff { failures: 9 };
        assert_eq!(backoff.ended(HELD / 2, 1.0), LAST);
        assert_eq!(backoff.ended(HELD, 1.0), FIRST);
        assert_eq!(backoff.refused(0.0), LONG / 2);
    }
}
