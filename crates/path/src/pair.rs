//! A pair: this node's port and one address of a peer, and what is known about the way between them.

use std::time::{Duration, Instant};

use crate::budget::Bucket;
use crate::candidate::{CandidateKind, Tier};

/// Answers to one source at once, and a second: what a ladder and its liveness probes need, and no flood.
const REPLIES: u32 = 10;

/// How long a PONG proves a pair: NATs forget an unused mapping after 30 s at the earliest.
pub(crate) const PROOF_LIFETIME: Duration = Duration::from_secs(30);

/// How long a pair that carried probes and not WireGuard comes last: a session that one side had lost, or a machine that was
/// busy, is over by then.
const PENALTY: Duration = Duration::from_secs(10);

/// How often that time is doubled, to an hour and a half, for a pair that is tried again in vain: filters of that kind do not
/// change by the minute, and each trial costs what is sent meanwhile.
const MAX_DOUBLINGS: u32 = 9;

/// A failure this long after the last penalty was over has nothing to do with it.
const PENALTY_MEMORY: Duration = Duration::from_secs(600);

/// Round-trip times below this difference are the same.
const RTT_MARGIN: Duration = Duration::from_millis(5);

/// Measurements before round-trip times are compared: one packet may have met a queue.
pub(crate) const RTT_SAMPLES: u32 = 3;

#[derive(Debug)]
pub(crate) struct Pair {
    pub(crate) kind: CandidateKind,
    pub(crate) tier: Tier,
    /// PINGs sent.
    pub(crate) sent: u32,
    /// When a PING was last sent, or withheld by the budget.
    pub(crate) tried: Option<Instant>,
    /// PONGs received.
    pub(crate) pongs: u32,
    /// Authentic PINGs that came from there.
    pub(crate) heard: u32,
    /// Packets withheld by the budget.
    pub(crate) withheld: u32,
    pub(crate) rtt: Option<Duration>,
    pub(crate) last_pong: Option<Instant>,
    pub(crate) replies: Bucket,
    penalty: Option<Penalty>,
    pub(crate) born: Instant,
}

/// What became of trials.
#[derive(Debug, Clone, Copy)]
struct Penalty {
    until: Instant,
    times: u32,
    /// Whether there may have been no session to fill the pair with.
    doubtful: bool,
}

impl Pair {
    pub(crate) fn new(kind: CandidateKind, tier: Tier, now: Instant) -> Self {
        Self {
            kind,
            tier,
            sent: 0,
            tried: None,
            pongs: 0,
            heard: 0,
            withheld: 0,
            rtt: None,
            last_pong: None,
            replies: Bucket::full(REPLIES, REPLIES),
            penalty: None,
            born: now,
        }
    }

    pub(crate) fn on_pong(&mut self, rtt: Duration, now: Instant) {
        self.pongs = self.pongs.saturating_add(1);
        self.last_pong = Some(now);
        // RFC 6298's gain: a change shows within a dozen samples, one outlier moves it by an eighth.
        self.rtt = Some(self.rtt.map_or(rtt, |old| (old * 7 + rtt) / 8));
    }

    /// Whether packets went there and back lately.
    pub(crate) fn is_proven(&self, now: Instant) -> bool {
        self.last_pong.is_some_and(|at| now.saturating_duration_since(at) < PROOF_LIFETIME)
    }

    /// Puts it last for a while, longer each time. `doubtful` says that nothing else has shown that there is a session.
    pub(crate) fn penalise(&mut self, doubtful: bool, now: Instant) {
        let before = self.penalty.filter(|before| now < before.until + PENALTY_MEMORY);
        let times = before.map_or(0, |before| before.times.saturating_add(1));
        let until = now + PENALTY * (1 << times.min(MAX_DOUBLINGS));
        self.penalty = Some(Penalty { until, times, doubtful });
    }

    /// Packets of WireGuard pass now. What failed before is remembered, in case they soon do not.
    pub(crate) fn acquit(&mut self, now: Instant) {
        if let Some(penalty) = &mut self.penalty {
            penalty.until = penalty.until.min(now);
        }
    }

    /// There is a session, by another way: a failure from before that was known says nothing.
    pub(crate) fn forgive_doubtful(&mut self) {
        self.penalty.take_if(|penalty| penalty.doubtful);
    }

    pub(crate) fn forgive(&mut self) {
        self.penalty = None;
    }

    pub(crate) fn is_penalised(&self, now: Instant) -> bool {
        self.penalised_until(now).is_some()
    }

    /// When it will be forgiven, if it still has to be.
    pub(crate) fn penalised_until(&self, now: Instant) -> Option<Instant> {
        self.penalty.map(|penalty| penalty.until).filter(|until| now < *until)
    }

    /// Whether this pair should replace one that works.
    pub(crate) fn beats(&self, current: &Self) -> bool {
        if self.tier != current.tier {
            return self.tier < current.tier && self.pongs >= 2;
        }
        let (Some(own), Some(theirs)) = (self.rtt, current.rtt) else {
            return false;
        };
        let margin = RTT_MARGIN.max(theirs / 10);
        self.pongs >= RTT_SAMPLES && current.pongs >= RTT_SAMPLES && own + margin < theirs
    }

    /// The order in which pairs are probed and first chosen.
    pub(crate) fn rank(&self) -> (Tier, Duration, CandidateKind) {
        (self.tier, self.rtt.unwrap_or(Duration::MAX), self.kind)
    }
}
