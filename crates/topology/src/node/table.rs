//! The merge of all slices into one peer table, with the mass-removal guard.
//!
//! The table tells two things apart: what the slices say (`slices`, `tombstones`) and what is in force (`effective`).
//! New and changed entries pass at once. A peer that merely disappears, or falls back to an older generation, is
//! suspicious: an operator that removes a peer writes a tombstone, which passes at once as well.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use wire::key::PublicKey;

use crate::node::entries::Entries;
use crate::node::guard::{Guard, Peers};
use crate::peer::{Entry, Tombstone};

pub use crate::node::guard::GuardStatus;

/// The merged peer table of one agent. `now` is the time since any fixed instant of this machine's monotonic clock.
#[derive(Clone, Debug, Default)]
pub struct PeerTable {
    own_name: String,
    /// By their names.
    slices: BTreeMap<String, Entries>,
    tombstones: BTreeMap<String, Vec<Tombstone>>,
    effective: Entries,
    guard: Guard,
}

/// What a change of slices did to the peers; the node's own entry is none.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Delta {
    /// Names of the entries that are new or changed.
    pub upsert: Vec<String>,
    /// Peers that are gone, and former keys of peers that changed theirs: name and key.
    pub remove: Vec<(String, PublicKey)>,
}

impl Delta {
    /// Whether nothing changed.
    pub fn is_empty(&self) -> bool {
        self.upsert.is_empty() && self.remove.is_empty()
    }
}

impl PeerTable {
    /// An empty table of the node `own_name`.
    pub fn new(own_name: &str) -> Self {
        Self { own_name: own_name.to_owned(), ..Self::default() }
    }

    /// A table that starts from what was in force when it was cached on disk. It stays in force until the first list;
    /// what that list does not name meets the guard.
    pub fn restore(own_name: &str, entries: Vec<Entry>, tombstones: Vec<Tombstone>) -> Self {
        let mut table = Self::new(own_name);
        table.tombstones = by_node(tombstones);
        for entry in entries {
            let known = table.effective.get(&entry.name);
            let is_newest = known.is_none_or(|known| known.generation < entry.generation);
            if is_newest && !table.is_buried(&entry) {
                table.effective.insert(Arc::new(entry));
            }
        }
        table
    }

    /// A complete, fresh list of all peer slices and of the tombstones. Only this confirms a removal that is held.
    pub fn handle_list(
        &mut self,
        slices: BTreeMap<String, Vec<Entry>>,
        tombstones: Vec<Tombstone>,
        now: Duration,
    ) -> Delta {
        self.guard.note_list(now);
        self.tombstones = by_node(tombstones);
        self.slices = slices.into_iter().map(|(slice, entries)| (slice, shared(entries).collect())).collect();
        // A list without a single entry is a fault (deleted objects, an empty database), never the end of a mesh.
        let confirms = self.slices.values().any(|slice| !slice.is_empty());
        let listed = self.slices.values().flat_map(Entries::names);
        let affected = listed.chain(self.effective.names()).cloned().collect();
        self.settle(affected, confirms, now)
    }

    /// One slice was added or changed.
    pub fn handle_slice(&mut self, name: &str, entries: Vec<Entry>, now: Duration) -> Delta {
        let old = self.slices.remove(name).unwrap_or_default();
        // One value, however often it is told.
        let known = |entry: Arc<Entry>| old.get(&entry.name).filter(|known| **known == entry).cloned().unwrap_or(entry);
        let new: Entries = shared(entries).map(known).collect();
        let is_news = |entry: &&Arc<Entry>| !old.get(&entry.name).is_some_and(|known| Arc::ptr_eq(known, entry));
        let mut affected: BTreeSet<String> = new.iter().filter(is_news).map(|entry| entry.name.clone()).collect();
        affected.extend(old.names().filter(|name| !new.contains(name)).cloned());
        self.slices.insert(name.to_owned(), new);
        self.settle(affected, false, now)
    }

    /// One slice was deleted.
    pub fn handle_slice_deleted(&mut self, name: &str, now: Duration) -> Delta {
        let old = self.slices.remove(name).unwrap_or_default();
        self.settle(old.names().cloned().collect(), false, now)
    }

    /// The slice `removed` was added or changed.
    pub fn handle_tombstones(&mut self, tombstones: Vec<Tombstone>, now: Duration) -> Delta {
        let new = by_node(tombstones);
        let old = std::mem::replace(&mut self.tombstones, new);
        let named = self.tombstones.keys().chain(old.keys());
        let affected = named.filter(|name| self.tombstones.get(*name) != old.get(*name)).cloned().collect();
        self.settle(affected, false, now)
    }

    /// When the caller should fetch a complete fresh list and pass it to `handle_list`, because something is held and
    /// only such a list can settle it. `None`: nothing is held.
    pub fn poll_list(&self) -> Option<Duration> {
        self.guard.next_list()
    }

    /// The entries in force, our own included, by name.
    pub fn entries(&self) -> &Entries {
        &self.effective
    }

    /// Whether `name` is in force although no slice names it.
    pub fn is_held(&self, name: &str) -> bool {
        self.guard.is_missing(name)
    }

    /// The tombstones as last seen, for the disk cache.
    pub fn tombstones(&self) -> impl Iterator<Item = &Tombstone> {
        self.tombstones.values().flatten()
    }

    /// What the guard holds back.
    pub fn guard(&self, now: Duration) -> Option<GuardStatus> {
        self.guard.status(now)
    }

    /// Brings the affected names from what is in force to what the slices say, as far as the guard lets it.
    fn settle(&mut self, affected: BTreeSet<String>, confirms: bool, now: Duration) -> Delta {
        let mut delta = Delta::default();
        let before = self.peer_count();
        let mut missing = BTreeSet::new();
        let mut older = BTreeMap::new();
        for name in affected {
            let buried = self.effective.get(&name).is_some_and(|entry| self.is_buried(entry));
            match (self.target(&name), self.effective.get(&name)) {
                (None, None) => self.guard.forget(&name),
                (None, Some(_)) if buried || name == self.own_name => self.drop_peer(&name, &mut delta),
                (None, Some(_)) => {
                    missing.insert(name);
                }
                (Some(target), Some(known)) if target.generation < known.generation && !buried => {
                    older.insert(name, target);
                }
                (Some(target), _) => self.put(target, &mut delta),
            }
        }
        let peers = Peers { before, now: self.peer_count() };
        for name in self.guard.judge_missing(missing, peers, confirms, now) {
            self.drop_peer(&name, &mut delta);
        }
        for (name, target) in older {
            if self.guard.judge_older(&name, confirms, now) {
                self.put(target, &mut delta);
            }
        }
        delta
    }

    /// What the slices say about a node: of several entries (it is being moved) the newest, a buried one is none.
    fn target(&self, name: &str) -> Option<Arc<Entry>> {
        let entries = self.slices.values().filter_map(|slice| slice.get(name));
        let alive = entries.filter(|entry| !self.is_buried(entry));
        let newest = alive.reduce(|best, entry| if entry.generation > best.generation { entry } else { best });
        newest.cloned()
    }

    fn is_buried(&self, entry: &Entry) -> bool {
        let stones = self.tombstones.get(&entry.name);
        stones.is_some_and(|stones| stones.iter().any(|stone| stone.covers(entry)))
    }

    fn put(&mut self, entry: Arc<Entry>, delta: &mut Delta) {
        let name = entry.name.clone();
        self.guard.forget(&name);
        let before = self.effective.insert(entry.clone());
        let after = entry;
        if name == self.own_name || before.as_ref() == Some(&after) {
            return;
        }
        if let Some(before) = before.filter(|before| before.public_key != after.public_key) {
            delta.remove.push((name.clone(), before.public_key));
        }
        delta.upsert.push(name);
    }

    fn drop_peer(&mut self, name: &str, delta: &mut Delta) {
        self.guard.forget(name);
        let entry = self.effective.remove(name).filter(|_| name != self.own_name);
        delta.remove.extend(entry.map(|entry| (name.to_owned(), entry.public_key)));
    }

    fn peer_count(&self) -> usize {
        let own = usize::from(self.effective.contains(&self.own_name));
        self.effective.len() - own
    }
}

fn shared(entries: Vec<Entry>) -> impl Iterator<Item = Arc<Entry>> {
    entries.into_iter().map(Arc::new)
}

fn by_node(tombstones: Vec<Tombstone>) -> BTreeMap<String, Vec<Tombstone>> {
    let mut grouped: BTreeMap<String, Vec<Tombstone>> = BTreeMap::new();
    for stone in tombstones {
        grouped.entry(stone.name.clone()).or_default().push(stone);
    }
    grouped
}
