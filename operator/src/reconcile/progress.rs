//! What a pass has carried out so far, and what may follow from it.

use super::diff::{Phase, Target, Write};
use crate::{coalesce::Lane, index::Kind};
use crds::names::REMOVED_SLICE;
use std::collections::BTreeSet;
use topology::cluster::{Event, EventReason};

/// Writes of one phase in one pass: a pass then ends within a second or two, and a removal never waits longer than that.
const PHASE_LIMIT: usize = 128;

/// One pass while it writes.
#[derive(Debug)]
pub struct Progress {
    lane: Lane,
    written: BTreeSet<Target>,
    blocked: bool,
    truncated: bool,
}

impl Progress {
    /// Nothing is written yet.
    pub fn new(lane: Lane) -> Self {
        Self { lane, written: BTreeSet::new(), blocked: false, truncated: false }
    }

    /// The writes of the next phase that may be sent now; `ready` says which objects don't wait after a failure.
    pub fn select(&mut self, phase: Phase, mut writes: Vec<Write>, ready: impl Fn(&Target) -> bool) -> Vec<Write> {
        let wrong_lane = self.lane == Lane::Fast && phase != Phase::Tombstones;
        if wrong_lane || self.truncated || (self.blocked && phase.is_guarded()) {
            return Vec::new();
        }
        writes.retain(|write| ready(&write.target));
        self.truncated |= writes.len() > PHASE_LIMIT;
        writes.truncate(PHASE_LIMIT);
        writes
    }

    /// Notes how the writes of a phase ended, of which there were to be `wanted`.
    pub fn note(&mut self, phase: Phase, wanted: usize, outcomes: Vec<(Target, bool)>) {
        let fine = outcomes.into_iter().filter(|(_, fine)| *fine).map(|(target, _)| target);
        let before = self.written.len();
        self.written.extend(fine);
        self.blocked |= phase.guards_the_next() && self.written.len() - before < wanted;
    }

    /// Whether something was left for the next pass because there was too much.
    pub fn truncated(&self) -> bool {
        self.truncated
    }

    /// Whether this write was completed.
    pub fn wrote(&self, target: &Target) -> bool {
        self.written.contains(target)
    }

    /// Whether what the event tells of has happened.
    pub fn has_happened(&self, event: &Event) -> bool {
        self.wrote(&match event.reason {
            EventReason::PeerRemoved => Target::new(Kind::MeshPeerSlice, REMOVED_SLICE),
            EventReason::Conflict => Target::status(Kind::MeshNode, &event.node),
            EventReason::KeyAccepted | EventReason::KeyReplaced | EventReason::AddressReassigned => {
                Target::new(Kind::MeshNode, &event.node)
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::{super::diff::Verb, *};
    use serde_json::Value;

    fn writes(count: usize) -> Vec<Write> {
        let target = |n| Target::new(Kind::MeshNode, &format!("n{n}"));
        (0..count).map(|n| Write { target: target(n), verb: Verb::Apply(Value::Null) }).collect()
    }

    fn slice(name: &str) -> Vec<Write> {
        vec![Write { target: Target::new(Kind::MeshPeerSlice, name), verb: Verb::Apply(Value::Null) }]
    }

    /// Carries a phase out, each write with the outcome `fine`; returns how many were sent.
    fn run(progress: &mut Progress, phase: Phase, writes: Vec<Write>, fine: bool) -> usize {
        let wanted = writes.len();
        let sent = progress.select(phase, writes, |_| true);
        let count = sent.len();
        progress.note(phase, wanted, sent.into_iter().map(|write| (write.target, fine)).collect());
        count
    }

    fn event(reason: EventReason, node: &str) -> Event {
        Event { node: node.into(), reason, message: String::new() }
    }

    #[test]
    fn a_mass_join_waits_and_a_revocation_does_not() {
        let mut progress = Progress::new(Lane::Slow);
        assert_eq!(run(&mut progress, Phase::Tombstones, slice(REMOVED_SLICE), true), 1);
        assert_eq!(run(&mut progress, Phase::Nodes, writes(1000), true), PHASE_LIMIT);
        assert_eq!(run(&mut progress, Phase::Slices, slice("peers-0001"), true), 0);
        assert!(progress.truncated());
    }

    #[test]
    fn slices_wait_for_tombstones_and_deletions_for_slices() {
        for failing in [Phase::Tombstones, Phase::Slices] {
            let mut progress = Progress::new(Lane::Slow);
            run(&mut progress, Phase::Tombstones, slice(REMOVED_SLICE), failing != Phase::Tombstones);
            assert_eq!(run(&mut progress, Phase::Nodes, writes(3), true), 3, "nobody else waits");
            let slices = run(&mut progress, Phase::Slices, slice("peers-0001"), failing != Phase::Slices);
            assert_eq!(slices, usize::from(failing == Phase::Slices));
            assert_eq!(run(&mut progress, Phase::StaleSlices, slice("peers-0002"), true), 0);
        }
    }

    #[test]
    fn the_fast_lane_writes_tombstones_alone() {
        let mut progress = Progress::new(Lane::Fast);
        assert_eq!(run(&mut progress, Phase::Tombstones, slice(REMOVED_SLICE), true), 1);
        for phase in [Phase::Retire, Phase::Nodes, Phase::Slices, Phase::StaleSlices, Phase::Conditions] {
            assert_eq!(run(&mut progress, phase, writes(1), true), 0);
        }
    }

    #[test]
    fn only_what_was_written_is_told() {
        let mut progress = Progress::new(Lane::Slow);
        run(&mut progress, Phase::Tombstones, slice(REMOVED_SLICE), false);
        assert!(!progress.has_happened(&event(EventReason::PeerRemoved, "n0")), "the write failed");
        run(&mut progress, Phase::Nodes, writes(1000), true);
        assert!(progress.has_happened(&event(EventReason::KeyAccepted, "n0")));
        assert!(!progress.has_happened(&event(EventReason::KeyAccepted, "n999")), "it was not its turn");
        assert!(!progress.has_happened(&event(EventReason::Conflict, "n0")), "the condition is not written yet");
    }
}
