//! Which replica may write: an election over one Lease object.
//!
//! [`Elector`] is the state machine, without a clock or a client; [`driver`] feeds it. No two machines' clocks are ever
//! compared: a replica watches whether the record *changes*, and takes over when it has stood still for the lease's length by
//! the replica's own clock, which goes on while the machine sleeps. A Lease that vanishes is treated like one that stands still:
//! its holder may be writing. The holder counts from the moment *before* it sent its last renewal, which is earlier
//! than anybody could have seen it, and stops [`WRITE_TIMEOUT`] before others may take over.

pub mod clock;
pub mod driver;

use clock::Moment;
use std::time::Duration;

/// How long the record must stand still before another replica takes over: several renewals may be lost on the way, and a
/// restart of the API server fits in.
pub const LEASE_DURATION: Duration = Duration::from_secs(15);
/// How long after its last renewal a holder may begin a write: the rest of the lease is for the write to end.
pub const RENEW_DEADLINE: Duration = Duration::from_secs(10);
/// A write that has not ended by then is given up: shorter than what is left of the lease.
pub const WRITE_TIMEOUT: Duration = Duration::from_secs(4);
/// Pause between renewals and between looks at somebody else's lease: five tries within the deadline.
pub const RETRY: Duration = Duration::from_secs(2);

/// What the Lease object says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    /// Who holds it; empty when it was released.
    pub holder: String,
    /// The object's `resourceVersion`: it changes with every renewal.
    pub version: String,
    /// For how long.
    pub duration: Duration,
    /// How often it has changed hands.
    pub transitions: i32,
}

/// What to do next.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// Make the Lease, with us as the holder.
    Create,
    /// Write ourselves into it, if it still has this `version`.
    Write {
        /// The precondition.
        version: String,
        /// The number of changes of hands to write.
        transitions: i32,
    },
    /// Somebody else holds it.
    Wait,
}

/// One replica's view of the election.
#[derive(Debug)]
pub struct Elector {
    identity: String,
    seen: Option<(Record, Moment)>,
    /// When the Lease that was seen turned out to be deleted.
    gone: Option<Moment>,
    valid_until: Option<Moment>,
}

impl Elector {
    /// A replica that has not looked yet.
    pub fn new(identity: String) -> Self {
        Self { identity, seen: None, gone: None, valid_until: None }
    }

    /// The Lease was read at `now`.
    pub fn observe(&mut self, record: Option<Record>, now: Moment) {
        let Some(record) = record else {
            self.valid_until = None;
            self.gone.get_or_insert(now);
            return;
        };
        self.gone = None;
        if record.holder != self.identity {
            self.valid_until = None;
        }
        if self.seen.as_ref().is_none_or(|(known, _)| *known != record) {
            self.seen = Some((record, now));
        }
    }

    /// What to do now, given the last observation.
    pub fn next(&self, now: Moment) -> Step {
        let Some((record, since)) = &self.seen else { return Step::Create };
        let version = record.version.clone();
        let ours = record.holder == self.identity;
        let stands_since = self.gone.unwrap_or(*since);
        let over = now.saturating_duration_since(stands_since) >= record.duration.max(LEASE_DURATION);
        let free = ours || record.holder.is_empty() || over;
        match self.gone {
            _ if !free => Step::Wait,
            Some(_) => Step::Create,
            None if ours => Step::Write { version, transitions: record.transitions },
            None => Step::Write { version, transitions: record.transitions.saturating_add(1) },
        }
    }

    /// Our write of the Lease succeeded; it was sent at `sent` and left this record.
    pub fn written(&mut self, record: Record, sent: Moment) {
        self.valid_until = Some(sent + RENEW_DEADLINE);
        self.gone = None;
        self.seen = Some((record, sent));
    }

    /// Until when we may begin to write, if we hold the lease.
    pub fn valid_until(&self) -> Option<Moment> {
        self.valid_until
    }

    /// The version to release, if the Lease still names us.
    pub fn release(&mut self) -> Option<Record> {
        self.valid_until = None;
        self.seen.take().map(|(record, _)| record).filter(|record| record.holder == self.identity)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(holder: &str, version: u32) -> Record {
        Record { holder: holder.into(), version: version.to_string(), duration: LEASE_DURATION, transitions: 3 }
    }

    fn holder(sent: Moment) -> Elector {
        let mut elector = Elector::new("a".into());
        elector.written(record("a", 1), sent);
        elector
    }

    #[test]
    fn without_a_lease_it_is_made() {
        let elector = Elector::new("a".into());
        assert_eq!(elector.next(Moment::now()), Step::Create);
    }

    #[test]
    fn a_lease_that_moves_is_left_alone_however_old_it_says_it_is() {
        let start = Moment::now();
        let mut elector = Elector::new("a".into());
        for n in 0..100 {
            let now = start + RETRY * n;
            elector.observe(Some(record("b", n)), now);
            assert_eq!(elector.next(now), Step::Wait);
        }
    }

    #[test]
    fn a_lease_that_stands_still_is_taken_over_after_its_length() {
        let start = Moment::now();
        let mut elector = Elector::new("a".into());
        elector.observe(Some(record("b", 7)), start);
        let almost = start + (LEASE_DURATION - Duration::from_millis(1));
        elector.observe(Some(record("b", 7)), almost);
        assert_eq!(elector.next(almost), Step::Wait);
        assert_eq!(elector.next(start + LEASE_DURATION), Step::Write { version: "7".into(), transitions: 4 });
    }

    #[test]
    fn a_released_lease_is_taken_at_once() {
        let now = Moment::now();
        let mut elector = Elector::new("a".into());
        elector.observe(Some(record("", 7)), now);
        assert_eq!(elector.next(now), Step::Write { version: "7".into(), transitions: 4 });
    }

    #[test]
    fn a_holder_stops_writing_before_anybody_may_take_over() {
        let start = Moment::now();
        let until = holder(start).valid_until().unwrap();
        assert!(until + WRITE_TIMEOUT < start + LEASE_DURATION);
    }

    #[test]
    fn a_holder_that_slept_notices_that_another_took_over() {
        let start = Moment::now();
        let mut elector = holder(start);
        let awake = start + LEASE_DURATION * 2;
        assert!(elector.valid_until().unwrap() < awake, "the old term has run out before anything is read");
        elector.observe(Some(record("b", 2)), awake);
        assert_eq!(elector.valid_until(), None);
        assert_eq!(elector.next(awake), Step::Wait);
    }

    #[test]
    fn a_holder_that_slept_alone_renews_with_the_version_it_sees() {
        let start = Moment::now();
        let mut elector = holder(start);
        let awake = start + LEASE_DURATION * 2;
        elector.observe(Some(record("a", 1)), awake);
        assert_eq!(elector.next(awake), Step::Write { version: "1".into(), transitions: 3 });
        assert!(elector.valid_until().unwrap() < awake, "not valid before the renewal is written");
    }

    #[test]
    fn only_the_own_lease_is_released() {
        let now = Moment::now();
        assert!(holder(now).release().is_some());
        let mut other = Elector::new("a".into());
        other.observe(Some(record("b", 1)), now);
        assert_eq!(other.release(), None);
    }

    #[test]
    fn a_deleted_lease_ends_the_term() {
        let now = Moment::now();
        let mut elector = holder(now);
        elector.observe(None, now);
        assert_eq!((elector.valid_until(), elector.next(now)), (None, Step::Create));
    }

    #[test]
    fn a_lease_that_vanishes_under_another_is_not_taken_before_its_time() {
        let start = Moment::now();
        let mut elector = Elector::new("a".into());
        elector.observe(Some(record("b", 7)), start);
        let gone = start + RETRY;
        elector.observe(None, gone);
        elector.observe(None, gone + RETRY);
        assert_eq!(elector.next(gone + (LEASE_DURATION - Duration::from_millis(1))), Step::Wait);
        assert_eq!(elector.next(gone + LEASE_DURATION), Step::Create);
        elector.observe(Some(record("b", 9)), gone + LEASE_DURATION);
        assert_eq!(elector.next(gone + LEASE_DURATION), Step::Wait, "its holder made it again");
    }
}
