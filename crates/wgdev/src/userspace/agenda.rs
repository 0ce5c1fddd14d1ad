//! When which peer has to be polled next, so that the timer thread looks at those alone.

use std::{cmp::Reverse, collections::BinaryHeap, sync::Arc};

use parking_lot::Mutex;

use super::peer::{NEVER, Peer};

/// Peers by when they are due.
///
/// Data moves the due time of a peer on all the time, and nearly always to a later one: an entry that comes up too early
/// is put back, which costs once a second what a change of the order would cost with each batch of packets.
#[derive(Default)]
pub(super) struct Agenda(Mutex<BinaryHeap<Reverse<Entry>>>);

struct Entry {
    due: u64,
    peer: Arc<Peer>,
}

impl Agenda {
    /// The peer is due then. Call it under the peer's lock.
    pub(super) fn set_due(&self, peer: &Arc<Peer>, due: u64) {
        peer.set_due(due);
        if due < peer.listed_for() {
            let mut entries = self.0.lock();
            peer.set_listed_for(due);
            entries.push(Reverse(Entry { due, peer: peer.clone() }));
        }
    }

    /// Takes those that are due at `now`.
    pub(super) fn take_due(&self, now: u64) -> Vec<Arc<Peer>> {
        let mut entries = self.0.lock();
        let mut taken = Vec::new();
        while entries.peek().is_some_and(|Reverse(entry)| entry.due <= now) {
            let Some(Reverse(Entry { due, peer })) = entries.pop() else { break };
            // An earlier entry has had its turn, and there is another since.
            if peer.listed_for() != due {
                continue;
            }
            match relist(&peer, now) {
                Some(NEVER) => {}
                Some(later) => entries.push(Reverse(Entry { due: later, peer })),
                None => taken.push(peer),
            }
        }
        taken
    }

    /// When the first entry comes up.
    pub(super) fn first(&self) -> Option<u64> {
        self.0.lock().peek().map(|Reverse(entry)| entry.due)
    }
}

/// When a peer whose entry came up is due after all; `None` if that is now, and then it is listed no more.
fn relist(peer: &Peer, now: u64) -> Option<u64> {
    loop {
        let due = peer.due();
        let later = (due > now).then_some(due);
        peer.set_listed_for(later.unwrap_or(NEVER));
        // Whoever made it due earlier meanwhile either saw what was just set, or is seen here.
        if peer.due() == due {
            return later;
        }
    }
}

impl PartialEq for Entry {
    fn eq(&self, other: &Self) -> bool {
        self.due == other.due
    }
}

impl Eq for Entry {}

impl PartialOrd for Entry {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Entry {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        self.due.cmp(&other.due)
    }
}

#[cfg(test)]
mod tests {
    use wire::key::PrivateKey;

    use super::*;
    use crate::{Delta, PeerUpdate, userspace::peers::Peers};

    #[test]
    fn peers_come_up_when_they_are_due_and_not_before() {
        let peers = Peers::new(&PrivateKey::from_bytes([99; 32]), 1420);
        let keys = [1, 2, 3].map(|n| PrivateKey::from_bytes([n; 32]).public_key());
        peers.apply(&Delta { upsert: keys.map(PeerUpdate::new).to_vec(), remove: vec![] }, |_| {}).unwrap();
        let [a, b, c] = keys.map(|key| peers.by_key(&key).unwrap());
        let agenda = Agenda::default();
        let due = |now| agenda.take_due(now).iter().map(|peer| peer.key).collect::<Vec<_>>();
        for (peer, at) in [(&a, 50), (&b, 20), (&c, NEVER)] {
            agenda.set_due(peer, at);
        }
        assert_eq!(agenda.first(), Some(20));
        // Moved on: the entry comes up and is put back.
        agenda.set_due(&b, 70);
        assert_eq!((due(30), agenda.first()), (vec![], Some(50)));
        // Moved forward: the later entry is void.
        agenda.set_due(&a, 40);
        assert_eq!(due(45), [a.key]);
        agenda.set_due(&a, NEVER);
        assert_eq!(due(60), []);
        agenda.set_due(&c, 65);
        assert_eq!(due(100), [c.key, b.key]);
        assert_eq!((due(1_000), agenda.first()), (vec![], None));
    }
}
