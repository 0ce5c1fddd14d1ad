//! Which peers have news for whoever reads the counters, so that reading costs nothing for the others.

use std::{collections::HashSet, sync::Arc, time::Instant};

use parking_lot::Mutex;

use super::peer::Peer;
use crate::LIVELY;

/// Peers that something happened to within [`LIVELY`].
///
/// A peer in the list is marked, and only one without the mark takes the lock: under load that is once in a while.
#[derive(Default)]
pub(super) struct Lively(Mutex<Vec<Arc<Peer>>>);

impl Lively {
    /// Something of the peer changed that its counters show. May be called with or without the peer's own lock.
    pub(super) fn note(&self, peer: &Arc<Peer>, now: Instant) {
        if peer.note(now) {
            self.0.lock().push(peer.clone());
        }
    }

    /// The peers, after those were dropped that have been quiet.
    pub(super) fn read(&self, now: Instant) -> Vec<Arc<Peer>> {
        let mut list = self.0.lock();
        list.retain(|peer| peer.is_noted(now, LIVELY));
        list.clone()
    }

    /// Forgets peers that are no peers any more.
    pub(super) fn forget_removed(&self, removed: &[Arc<Peer>]) {
        let removed: HashSet<*const Peer> = removed.iter().map(Arc::as_ptr).collect();
        self.0.lock().retain(|peer| !removed.contains(&Arc::as_ptr(peer)));
    }
}
