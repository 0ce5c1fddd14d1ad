//! How many packets an address may get from this node, whatever peers say.
//!
//! Candidates come from other nodes, and sources of replayed packets can be forged, so both can name a victim. Each
//! address that has not proven itself has a small allowance of its own, shared by all peers that claim it.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

/// Unproven packets to one address at once: a home with a dozen nodes, eight rungs each.
const UNPROVEN_BURST: u32 = 100;
/// Unproven packets to one address a second, forever.
const UNPROVEN_RATE: u32 = 10;
/// Packets at once to a socket that answered: a nomination, its repeats, and liveness probes.
const PROVEN_BURST: u32 = 60;
/// Packets a second to a socket that answered.
const PROVEN_RATE: u32 = 20;
/// All packets of this node at once: 64 peers with twelve pairs each start together, with room.
const NODE_BURST: u32 = 2048;
/// All packets of this node a second, so that no list of peers makes it a flood.
const NODE_RATE: u32 = 1000;
/// Buckets kept of each kind. When all are in use, new addresses get nothing.
const MAX_BUCKETS: usize = 4096;

/// A token bucket that needs no timer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Bucket {
    burst: u32,
    rate: u32,
    /// Thousandths of a token.
    level: u64,
    /// As of when; one that is full since ever has not been looked at yet.
    filled: Option<Instant>,
}

impl Bucket {
    /// A full one.
    pub(crate) const fn full(burst: u32, rate: u32) -> Self {
        Self { burst, rate, level: burst as u64 * 1000, filled: None }
    }

    pub(crate) fn take(&mut self, now: Instant) -> bool {
        self.refill(now);
        if self.level < 1000 {
            return false;
        }
        self.level -= 1000;
        true
    }

    fn refill(&mut self, now: Instant) {
        let filled = self.filled.get_or_insert(now);
        let millis = now.saturating_duration_since(*filled).as_millis();
        if millis == 0 {
            return;
        }
        let millis = u64::try_from(millis).unwrap_or(u64::MAX);
        let cap = u64::from(self.burst) * 1000;
        self.level = cap.min(self.level.saturating_add(millis.saturating_mul(self.rate.into())));
        *filled += Duration::from_millis(millis);
    }

    fn is_full(&mut self, now: Instant) -> bool {
        self.refill(now);
        self.level == u64::from(self.burst) * 1000
    }
}

/// Everything that this node may still send.
#[derive(Debug)]
pub(crate) struct Budget {
    node: Bucket,
    unproven: BTreeMap<IpAddr, Bucket>,
    proven: BTreeMap<SocketAddr, Bucket>,
}

impl Budget {
    pub(crate) fn new() -> Self {
        Self { node: Bucket::full(NODE_BURST, NODE_RATE), unproven: BTreeMap::new(), proven: BTreeMap::new() }
    }

    /// Takes one packet to `remote`, or refuses. `proven` means that a peer lately answered from exactly there.
    pub(crate) fn take(&mut self, remote: SocketAddr, proven: bool, now: Instant) -> bool {
        let allowed = if proven {
            take_from(&mut self.proven, remote, PROVEN_BURST, PROVEN_RATE, now)
        } else {
            take_from(&mut self.unproven, remote.ip(), UNPROVEN_BURST, UNPROVEN_RATE, now)
        };
        allowed && self.node.take(now)
    }
}

fn take_from<K: Ord>(buckets: &mut BTreeMap<K, Bucket>, key: K, burst: u32, rate: u32, now: Instant) -> bool {
    if let Some(bucket) = buckets.get_mut(&key) {
        return bucket.take(now);
    }
    if buckets.len() >= MAX_BUCKETS {
        buckets.retain(|_, bucket| !bucket.is_full(now));
        if buckets.len() >= MAX_BUCKETS {
            return false;
        }
    }
    buckets.entry(key).or_insert_with(|| Bucket::full(burst, rate)).take(now)
}
