//! Is somebody undoing our work again and again?

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use super::Report;

/// Repairs within [`WINDOW`] that are no longer an accident: one flush and what it drags along make one or two.
const MOST: usize = 5;

/// How long a repair counts.
const WINDOW: Duration = Duration::from_secs(60);

/// Counts repairs, for the condition `RulesContended`. Feed it only the applies of a plan that did not change: what a new
/// plan brings is no repair.
#[derive(Debug, Default)]
pub struct Contention {
    repairs: VecDeque<Instant>,
}

impl Contention {
    /// Takes note of an apply; answers whether somebody is fighting us.
    pub fn observe(&mut self, report: &Report, now: Instant) -> bool {
        while self.repairs.front().is_some_and(|first| now.saturating_duration_since(*first) > WINDOW) {
            self.repairs.pop_front();
        }
        if !report.changes.is_empty() {
            self.repairs.push_back(now);
            // Older ones than these decide nothing.
            while self.repairs.len() > MOST {
                self.repairs.pop_front();
            }
        }
        self.repairs.len() >= MOST
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::net::{ChangeKind, Underlay};

    #[test]
    fn five_repairs_in_a_minute_are_a_fight_and_an_hour_of_peace_ends_it() {
        let quiet = Report::new(Underlay::default());
        let mut repair = quiet.clone();
        repair.changed(ChangeKind::Rule, "put back");
        let start = Instant::now();
        let mut contention = Contention::default();
        let at = |seconds| start + Duration::from_secs(seconds);
        assert!(!(0..4).any(|n| contention.observe(&repair, at(n * 10))));
        assert!(contention.observe(&repair, at(50)));
        assert!(contention.observe(&quiet, at(55)));
        assert!(!contention.observe(&quiet, at(3600)));
        assert!(!(0..9).any(|n| contention.observe(&repair, at(4000 + n * 16))), "four in any minute");
    }
}
