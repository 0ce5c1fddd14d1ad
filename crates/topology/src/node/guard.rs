//! The mass-removal guard: no list that is empty, truncated or stale takes a working mesh down.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

/// A removal without a tombstone stands if a fresh list that is this much younger says the same: longer than an API
/// server takes to restart and to fill its watch cache.
pub const CONFIRM_AFTER: Duration = Duration::from_secs(30);

/// The last half of the peers is kept for this long: time for somebody to be woken by the condition.
pub const LAST_HALF_AFTER: Duration = Duration::from_secs(300);

/// The condition names this many peers.
const NAMED_PEERS: usize = 5;

/// What is held and since when.
#[derive(Clone, Debug, Default)]
pub(super) struct Guard {
    /// In force, but in no slice.
    missing: BTreeMap<String, Duration>,
    /// In force, but the slices have an older generation.
    older: BTreeMap<String, Duration>,
    /// How many peers there were when the first one went missing.
    peers_before: usize,
    /// How many of them were dropped since, for want of anybody who objects.
    dropped: usize,
    /// When a peer last disappeared without a tombstone.
    last_loss: Option<Duration>,
    /// When a list last came.
    last_list: Option<Duration>,
}

/// How many peers are in force.
#[derive(Clone, Copy, Debug)]
pub(super) struct Peers {
    /// Before the change.
    pub before: usize,
    /// After everything in it that is beyond doubt.
    pub now: usize,
}

/// What the guard holds back: the condition `MassRemovalGuard`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GuardStatus {
    /// How many peers are kept although no slice names them.
    pub held: usize,
    /// For how long the oldest has been.
    pub since: Duration,
    /// For people.
    pub message: String,
}

impl Guard {
    pub fn is_missing(&self, name: &str) -> bool {
        self.missing.contains_key(name)
    }

    pub fn forget(&mut self, name: &str) {
        self.missing.remove(name);
        self.older.remove(name);
    }

    /// A complete list came, whatever it says.
    pub fn note_list(&mut self, now: Duration) {
        self.last_list = Some(now);
    }

    /// Takes note of peers that no slice names any more, and answers which ones to drop now.
    pub fn judge_missing(
        &mut self,
        missing: BTreeSet<String>,
        peers: Peers,
        confirms: bool,
        now: Duration,
    ) -> Vec<String> {
        let new: Vec<&String> = missing.iter().filter(|name| !self.missing.contains_key(*name)).collect();
        if self.missing.is_empty() {
            self.peers_before = peers.before;
            self.dropped = 0;
            if let [single] = new[..]
                && self.may_pass_alone(peers, now)
            {
                self.last_loss = Some(now);
                return vec![single.clone()];
            }
        }
        for name in new {
            self.missing.insert(name.clone(), now);
            self.last_loss = Some(now);
        }
        if confirms { self.confirmed(peers, now) } else { Vec::new() }
    }

    /// One removal may pass, unless it is the last peer or follows another loss: slices that shrink one by one, or that
    /// were short a moment ago, are as suspicious as those that shrink at once.
    fn may_pass_alone(&self, peers: Peers, now: Duration) -> bool {
        let follows = self.last_loss.is_some_and(|last| now.saturating_sub(last) < CONFIRM_AFTER);
        peers.before > 1 && peers.now > 1 && !follows
    }

    fn confirmed(&mut self, peers: Peers, now: Duration) -> Vec<String> {
        let older_than = |limit: Duration| {
            let waited = move |since: &Duration| now.saturating_sub(*since) >= limit;
            let ripe = self.missing.iter().filter(move |(_, since)| waited(since));
            ripe.map(|(name, _)| name.clone())
        };
        let mut dropped: Vec<String> = older_than(LAST_HALF_AFTER).collect();
        // Peers that are new in the same list are no proof that the others may go: both bounds count.
        let last_half = self.peers_before.div_ceil(2);
        let spare = peers.now.saturating_sub(last_half);
        let spare = spare.min((self.peers_before - last_half).saturating_sub(self.dropped));
        let spare = spare.saturating_sub(dropped.len());
        let ripe = older_than(CONFIRM_AFTER).filter(|name| !dropped.contains(name));
        let ripe: Vec<String> = ripe.take(spare).collect();
        dropped.extend(ripe);
        self.dropped += dropped.len();
        dropped
    }

    /// Whether an older generation may take the place of a newer one: only if a fresh list still says so later, which
    /// means that the cluster was restored from a backup.
    pub fn judge_older(&mut self, name: &str, confirms: bool, now: Duration) -> bool {
        let since = *self.older.entry(name.to_owned()).or_insert(now);
        confirms && now.saturating_sub(since) >= CONFIRM_AFTER
    }

    /// When a list could next settle something.
    pub fn next_list(&self) -> Option<Duration> {
        let oldest = self.missing.values().chain(self.older.values()).min()?;
        let first = *oldest + CONFIRM_AFTER;
        let last = self.last_list.filter(|last| *last >= first);
        Some(last.map_or(first, |last| last + CONFIRM_AFTER))
    }

    pub fn status(&self, now: Duration) -> Option<GuardStatus> {
        let oldest = self.missing.values().min()?;
        let held = self.missing.len();
        let named: Vec<&str> = self.missing.keys().take(NAMED_PEERS).map(String::as_str).collect();
        let more = match held.saturating_sub(NAMED_PEERS) {
            0 => String::new(),
            more => format!(" and {more} more"),
        };
        Some(GuardStatus {
            held,
            since: now.saturating_sub(*oldest),
            message: format!(
                "expected a tombstone for every peer that leaves, found {held} peers in no slice and without one ({}{more}); \
                 they stay connected until a complete list confirms it; check the MeshPeerSlices and the operator",
                named.join(", ")
            ),
        })
    }
}
