//! Is somebody undoing our work again and again?

use std::collections::VecDeque;
use std::time::{Duration, Instant};

/// Repairs within [`WINDOW`] that are no longer an accident: one flush and what it drags along make one or two.
const MOST: usize = 5;

/// How long a repair counts.
const WINDOW: Duration = Duration::from_secs(60);

/// Counts repairs, for the condition `RulesContended`. Tell it only of applies of a plan that did not change: what a new plan
/// brings is no repair.
#[derive(Debug, Default)]
pub struct Contention {
    repairs: VecDeque<Instant>,
}

impl Contention {
    /// Takes note of an apply that had something to put back.
    pub fn repaired(&mut self, now: Instant) {
        self.repairs.push_back(now);
        // Older ones than these decide nothing.
        if self.repairs.len() > MOST {
            self.repairs.pop_front();
        }
    }

    /// Whether somebody is fighting us.
    pub fn is_fight(&self, now: Instant) -> bool {
        let recent = |at: &Instant| now.saturating_duration_since(*at) <= WINDOW;
        self.repairs.len() >= MOST && self.repairs.iter().all(recent)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    #[test]
    fn five_repairs_in_a_minute_are_a_fight_and_an_hour_of_peace_ends_it() {
        let start = Instant::now();
        let mut contention = Contention::default();
        let at = |seconds| start + Duration::from_secs(seconds);
        let mut repaired = |seconds| {
            contention.repaired(at(seconds));
            contention.is_fight(at(seconds))
        };
        assert!(!(0..4).any(|n| repaired(n * 10)));
        assert!(repaired(50));
        assert!(!(0..9).any(|n| repaired(4000 + n * 16)), "four in any minute");
        assert!((0..5).any(|n| repaired(5000 + n)));
        assert!(contention.is_fight(at(5055)));
        assert!(!contention.is_fight(at(8600)));
    }
}
