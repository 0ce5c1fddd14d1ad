//! States as they are kept of thousands of peers.

use crate::event::{PathState, Reason};

/// A [`PathState`] that takes no more room than its reason while there is no path.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeptState(Kept);

#[derive(Debug, Clone, PartialEq, Eq)]
enum Kept {
    Idle,
    Connecting,
    Down(Reason),
    Path(Box<PathState>),
}

impl KeptState {
    /// The state.
    #[must_use]
    pub fn get(&self) -> PathState {
        match &self.0 {
            Kept::Idle => PathState::Idle,
            Kept::Connecting => PathState::Connecting,
            Kept::Down(reason) => PathState::Down { reason: *reason },
            Kept::Path(state) => **state,
        }
    }
}

impl From<PathState> for KeptState {
    fn from(state: PathState) -> Self {
        Self(match state {
            PathState::Idle => Kept::Idle,
            PathState::Connecting => Kept::Connecting,
            PathState::Down { reason } => Kept::Down(reason),
            PathState::Direct { .. } | PathState::Relayed { .. } => Kept::Path(Box::new(state)),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::candidate::{CandidateKind, Tier};
    use crate::event::Selected;
    use std::time::{Duration, Instant};

    #[test]
    #[allow(clippy::disallowed_methods)]
    fn what_is_kept_is_what_was_told() {
        let remote = "192.0.2.1:1".parse().unwrap();
        let pair = Selected { remote, kind: CandidateKind::Host, tier: Tier::Ipv4 };
        let direct = PathState::Direct { pair, rtt: Duration::from_millis(5), since: Instant::now() };
        for state in [direct, PathState::Idle, PathState::Connecting, PathState::Down { reason: Reason::NoAnswer }] {
            assert_eq!(KeptState::from(state).get(), state);
        }
        assert!(size_of::<KeptState>() <= 16);
    }
}
