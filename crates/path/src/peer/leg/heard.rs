//! Whether the relay of a leg was heard of lately: it answers every BIND, whatever packets do.

use std::time::{Duration, Instant};

use super::Leg;
use super::attached::PATIENCE;

/// An answer that is as old as this tells nothing of a relay any more.
const FRESH: Duration = Duration::from_secs(1);
/// Without an answer for so long, unless three round trips are longer, there is none: two BINDs more were sent by then.
const SILENCE: Duration = Duration::from_millis(250);

/// What the relay of a leg says if it is asked whether it is there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::peer) enum Heard {
    /// It has just answered.
    Answers,
    /// It has been asked.
    Asked,
    /// It does not answer, or knows nothing of the leg.
    Nothing,
}

impl Leg {
    /// Asks the relay whether it is there, unless that is known.
    pub(in crate::peer) fn hear(&mut self, rtt: Duration, now: Instant) -> Heard {
        let since = |at: Instant| now.saturating_duration_since(at);
        if self.is_attached() {
            // Its BINDs go where nothing answers anyway; the channel has a check of its own.
            return Heard::Answers;
        }
        if !self.is_bound() || self.unanswered.is_some_and(|at| since(at) >= SILENCE.max(rtt * 3)) {
            return Heard::Nothing;
        }
        if self.bound.is_some_and(|at| since(at) < FRESH) {
            return Heard::Answers;
        }
        if self.bind.is_none() {
            self.bind_now(now);
        }
        Heard::Asked
    }

    /// Whether the relay has named it, and nothing speaks against its carrying packets: a data plane outlives its channel, a relay that is
    /// gone leaves BINDs without an answer. One that can become the channel has done so by then.
    pub(in crate::peer) fn is_hoped_for(&self, now: Instant) -> bool {
        let is_silent = self.unanswered.is_some_and(|at| now.saturating_duration_since(at) >= PATIENCE);
        self.is_allocated() && (self.is_attached() || !is_silent)
    }

    /// A leg that nobody answers is none to go on with.
    pub(super) fn lose_hope(&mut self, now: Instant) {
        if !self.is_hoped_for(now) {
            self.ready = false;
            self.bound = None;
        }
    }
}
