//! The peers of an engine, and which of them there is a reason to look at: what happens to one costs nothing for the others.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Instant;

use wire::PublicKey;

use crate::peer::Peer;

/// All peers, those that something happened to since they were last looked at, and when the others are due.
#[derive(Default)]
pub(super) struct Roster {
    /// Boxed: a map leaves a third of its places empty, and a peer is more than a kilobyte.
    members: BTreeMap<PublicKey, Box<Member>>,
    touched: BTreeSet<PublicKey>,
    by_due: BTreeSet<(Instant, PublicKey)>,
    /// How many hold a mapping.
    holding: usize,
    /// Until when one of them counts as busy, or one that was removed since would have.
    busy_until: Option<Instant>,
}

struct Member {
    peer: Peer,
    due: Option<Instant>,
    holds_mapping: bool,
}

impl Roster {
    pub(super) fn len(&self) -> usize {
        self.members.len()
    }

    pub(super) fn contains(&self, key: &PublicKey) -> bool {
        self.members.contains_key(key)
    }

    /// Adds a peer that is not among them yet.
    pub(super) fn insert(&mut self, peer: Peer) {
        let key = peer.key;
        self.members.insert(key, Box::new(Member { peer, due: None, holds_mapping: false }));
        self.touched.insert(key);
    }

    pub(super) fn remove(&mut self, key: &PublicKey) -> Option<Peer> {
        let member = self.members.remove(key)?;
        self.touched.remove(key);
        if let Some(due) = member.due {
            self.by_due.remove(&(due, *key));
        }
        self.holding -= usize::from(member.holds_mapping);
        Some(member.peer)
    }

    pub(super) fn get(&self, key: &PublicKey) -> Option<&Peer> {
        self.members.get(key).map(|member| &member.peer)
    }

    /// A peer to change: it is looked at in the next turn.
    pub(super) fn get_mut(&mut self, key: &PublicKey) -> Option<&mut Peer> {
        let member = self.members.get_mut(key)?;
        self.touched.insert(*key);
        Some(&mut member.peer)
    }

    /// Lets `change` see each peer and say whether it changed it.
    pub(super) fn for_each(&mut self, mut change: impl FnMut(&mut Peer) -> bool) {
        let changed = self.members.iter_mut().filter_map(|(key, member)| change(&mut member.peer).then_some(*key));
        self.touched.extend(changed);
    }

    /// Something happened to all of them.
    pub(super) fn touch_all(&mut self) {
        self.touched.extend(self.members.keys());
    }

    pub(super) fn keys(&self) -> impl Iterator<Item = PublicKey> {
        self.members.keys().copied()
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &Peer> {
        self.members.values().map(|member| &member.peer)
    }

    /// Whether a NAT mapping of this node is held open by traffic to some peer.
    pub(super) fn holds_mapping(&mut self) -> bool {
        for key in &self.touched {
            if let Some(member) = self.members.get_mut(key) {
                self.holding -= usize::from(member.holds_mapping);
                member.holds_mapping = member.peer.holds_mapping();
                self.holding += usize::from(member.holds_mapping);
            }
        }
        self.holding > 0
    }

    /// Whether packets flow, or did a moment ago.
    pub(super) fn is_busy(&self, now: Instant) -> bool {
        self.busy_until.is_some_and(|until| now < until)
    }

    /// Those to look at now: something happened to them, or they are due.
    pub(super) fn due(&self, now: Instant) -> BTreeSet<PublicKey> {
        let due = self.by_due.iter().take_while(|(at, _)| *at <= now);
        self.touched.iter().copied().chain(due.map(|(_, key)| *key)).collect()
    }

    /// Looks at one: `look` changes it, and what follows from that is noted.
    pub(super) fn look(&mut self, key: &PublicKey, now: Instant, look: impl FnOnce(&mut Peer)) {
        let Some(member) = self.members.get_mut(key) else {
            return;
        };
        look(&mut member.peer);
        let due = member.peer.poll_timeout(now);
        if member.due != due {
            let entry = |at: Instant| (at, *key);
            member.due.map(entry).map(|old| self.by_due.remove(&old));
            self.by_due.extend(due.map(entry));
            member.due = due;
        }
        self.holding -= usize::from(member.holds_mapping);
        member.holds_mapping = member.peer.holds_mapping();
        self.holding += usize::from(member.holds_mapping);
        self.busy_until = self.busy_until.max(member.peer.busy_until());
        self.touched.remove(key);
    }

    /// When the first of them is due.
    pub(super) fn poll_timeout(&self) -> Option<Instant> {
        self.by_due.first().map(|(at, _)| *at)
    }
}
