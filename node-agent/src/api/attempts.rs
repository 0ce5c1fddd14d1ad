//! When an API that does not answer is asked again: one question at a time for the whole agent, however many would like to ask.
//!
//! Feeds and writer share one connection, so they learn of an outage together, and together they would ask again. They take
//! turns instead: whoever takes one asks for all, and the first answer lets everybody go on.

use std::time::{Duration, Instant};

/// First pause after a failure: long enough not to spin, short enough for a start.
const FIRST: Duration = Duration::from_millis(250);
/// Longest pause, of which jitter takes up to a half: one request in ten seconds and agent at most, for as long as the API is away.
const LONGEST: Duration = Duration::from_secs(20);
/// An API that answered for this long was well; one that fails again sooner is treated as if it had never answered.
const HEALTHY_AFTER: Duration = Duration::from_secs(30);

/// Paces attempts during an outage; between outages it says yes.
#[derive(Clone, Debug)]
pub struct Attempts {
    endpoints: u32,
    /// Attempts that were put off since the API was last well.
    made: u32,
    /// During an outage: when the next turn may be taken.
    next: Option<Instant>,
    /// When the last outage ended.
    worked_at: Option<Instant>,
}

impl Attempts {
    /// For an API with so many addresses: the pause grows when all of them were tried.
    pub fn new(endpoints: usize) -> Self {
        let endpoints = u32::try_from(endpoints).unwrap_or(u32::MAX).max(1);
        Self { endpoints, made: 0, next: None, worked_at: None }
    }

    /// A request failed; `jitter` is in 0..1.
    pub fn failed(&mut self, now: Instant, jitter: f64) {
        if self.next.is_some() {
            return;
        }
        if self.worked_at.is_none_or(|at| now.saturating_duration_since(at) > HEALTHY_AFTER) {
            self.made = 0;
        }
        self.put_off(now, jitter);
    }

    /// A request was answered.
    pub fn worked(&mut self, now: Instant) {
        if self.next.take().is_some() {
            self.worked_at = Some(now);
        }
    }

    /// Until when nobody may ask, if so.
    pub fn waits_until(&self, now: Instant) -> Option<Instant> {
        self.next.filter(|at| *at > now)
    }

    /// Takes a turn: one request may be made. `Err` says when to come back.
    pub fn take(&mut self, now: Instant, jitter: f64) -> Result<(), Instant> {
        if let Some(at) = self.waits_until(now) {
            return Err(at);
        }
        if self.next.is_some() {
            self.put_off(now, jitter);
        }
        Ok(())
    }

    fn put_off(&mut self, now: Instant, jitter: f64) {
        let doublings = (self.made / self.endpoints).min(16);
        let pause = (FIRST * 2u32.pow(doublings)).min(LONGEST);
        self.next = Some(now + pause.mul_f64(0.5 + jitter.clamp(0.0, 1.0) / 2.0));
        self.made = self.made.saturating_add(1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEN_MINUTES: Duration = Duration::from_secs(600);

    /// The moments at which turns are taken from a failure on, by callers who ask at the very moment they may.
    fn turns(attempts: &mut Attempts, began: Instant, jitter: f64) -> Vec<Duration> {
        let mut taken = Vec::new();
        let mut now = began;
        attempts.failed(now, jitter);
        while now < began + TEN_MINUTES {
            match attempts.take(now, jitter) {
                Ok(()) => taken.push(now - began),
                Err(at) => now = at,
            }
        }
        taken
    }

    #[test]
    fn ten_minutes_without_an_answer_are_at_most_one_request_in_ten_seconds() {
        for jitter in [0.0, 0.5, 1.0] {
            let taken = turns(&mut Attempts::new(1), Instant::now(), jitter);
            assert!((30..=67).contains(&taken.len()), "{}: {taken:?}", taken.len());
            let steady: Vec<_> = taken.iter().filter(|at| **at > Duration::from_secs(60)).collect();
            let gaps = steady.windows(2).map(|pair| *pair[1] - *pair[0]);
            assert!(gaps.min() >= Some(Duration::from_secs(10)), "{taken:?}");
        }
    }

    #[test]
    fn every_address_is_tried_before_the_pause_grows() {
        let taken = turns(&mut Attempts::new(4), Instant::now(), 1.0);
        assert_eq!(taken[3], Duration::from_secs(1), "{taken:?}");
        assert_eq!(taken[7], Duration::from_secs(3), "{taken:?}");
    }

    #[test]
    fn an_answer_lets_everybody_go_on_and_a_soon_failure_waits_as_long_as_before() {
        let began = Instant::now();
        let mut attempts = Attempts::new(1);
        turns(&mut attempts, began, 1.0);
        let now = began + TEN_MINUTES;
        attempts.worked(now);
        assert!((0..10).all(|_| attempts.take(now, 1.0).is_ok()));
        attempts.failed(now + Duration::from_secs(5), 1.0);
        assert_eq!(attempts.take(now + Duration::from_secs(5), 1.0), Err(now + Duration::from_secs(25)));
        // After an answer that lasted, an outage begins with the first pause.
        attempts.worked(now + Duration::from_secs(25));
        let later = now + Duration::from_secs(85);
        attempts.failed(later, 1.0);
        assert_eq!(attempts.take(later, 1.0), Err(later + FIRST));
    }

    #[test]
    fn several_who_fail_together_are_one_failure() {
        let now = Instant::now();
        let mut attempts = Attempts::new(1);
        (0..5).for_each(|_| attempts.failed(now, 1.0));
        assert_eq!(attempts.waits_until(now), Some(now + FIRST));
    }
}
