//! The slices: merged into the peer table, and mirrored on disk as far as the guard lets them.

use super::{MAX_SLICES, View, convert};
use crate::{
    api::{Fed, Listing},
    cache::Name,
};
use crds::{MeshPeerSlice, names};
use kube::ResourceExt;
use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};
use topology::{
    node::Delta,
    peer::{Entry, Tombstone},
};

impl View {
    /// Takes in news of slices. Returns whether that changed anything for this node.
    pub(super) fn slices(&mut self, fed: Fed<MeshPeerSlice>, now: Duration) -> bool {
        let delta = match &fed {
            Fed::Listed(all) => self.list(all, now),
            Fed::Applied(slice) if slice.name_any() == names::REMOVED_SLICE => {
                self.table.handle_tombstones(convert::tombstones(slice), now)
            }
            Fed::Applied(slice) => {
                self.told.insert(slice.name_any(), Arc::new(convert::names(slice)));
                self.table.handle_slice(&slice.name_any(), self.entries(slice), now)
            }
            Fed::Deleted(name) => {
                self.told.remove(name);
                self.table.handle_slice_deleted(name, now)
            }
        };
        if let Some(changed) = &mut self.changed {
            changed.extend(delta.upsert.iter().chain(delta.remove.iter().map(|(name, _)| name)).cloned());
        }
        self.listed |= matches!(fed, Fed::Listed(_));
        let holds = self.table.guard(now).is_some();
        let was_complete = self.complete;
        self.complete = self.listed && !holds && !self.table.entries().is_empty();
        self.persist(fed, holds);
        !delta.is_empty() || was_complete != self.complete
    }

    fn list(&mut self, all: &Listing<MeshPeerSlice>, now: Duration) -> Delta {
        let is_removed = |name: &str| name == names::REMOVED_SLICE;
        let tombstones: Vec<Tombstone> = if all.unreadable.iter().any(|name| is_removed(name)) {
            self.table.tombstones().cloned().collect()
        } else {
            all.objects.iter().flat_map(convert::tombstones).collect()
        };
        let peers = all.objects.iter().filter(|slice| !is_removed(&slice.name_any())).take(MAX_SLICES);
        let mut lists: BTreeMap<String, Vec<Entry>> =
            peers.clone().map(|slice| (slice.name_any(), self.entries(slice))).collect();
        let mut told: BTreeMap<String, Arc<BTreeSet<String>>> =
            peers.map(|slice| (slice.name_any(), Arc::new(convert::names(slice)))).collect();
        // A slice that is there and can't be read is as it was.
        for name in all.unreadable.iter().filter(|name| !is_removed(name)) {
            let names = self.told.get(name).cloned().unwrap_or_default();
            lists.insert(name.clone(), names.iter().filter_map(|name| self.known(name)).collect());
            told.insert(name.clone(), names);
        }
        self.told = told;
        self.table.handle_list(lists, tombstones, now)
    }

    fn entries(&self, slice: &MeshPeerSlice) -> Vec<Entry> {
        convert::entries(slice, |name| self.known(name))
    }

    fn known(&self, name: &str) -> Option<Entry> {
        self.table.entries().get(name).map(|entry| Entry::clone(entry))
    }

    /// The disk follows what is in force: while the guard holds a peer back, the slice that names it stays as it is there,
    /// because a restart must not do what the guard prevented. All else is kept, tombstones above all, because a restart
    /// must not undo a revocation either.
    fn persist(&mut self, fed: Fed<MeshPeerSlice>, holds: bool) {
        match fed {
            Fed::Listed(all) => {
                let Listing { objects: all, unreadable } = all;
                let listed: BTreeSet<String> = all.iter().map(ResourceExt::name_any).chain(unreadable).collect();
                let gone: Vec<String> = self.stored.keys().filter(|name| !listed.contains(*name)).cloned().collect();
                gone.iter().for_each(|name| self.forget_slice(name, holds));
                all.iter().for_each(|slice| self.keep_slice(slice));
            }
            Fed::Applied(slice) => self.keep_slice(&slice),
            Fed::Deleted(name) => self.forget_slice(&name, holds),
        }
    }

    fn keep_slice(&mut self, slice: &MeshPeerSlice) {
        let name = slice.name_any();
        // The same list as that of what was told, not another copy.
        let names = self.told.get(&name).cloned().unwrap_or_else(|| Arc::new(convert::names(slice)));
        if self.would_lose(&name, &names) || (self.stored.len() >= MAX_SLICES && !self.stored.contains_key(&name)) {
            return;
        }
        if let Some(file) = Name::of("slice", &name) {
            self.cache.store(&file, &convert::whole(slice, || self.cache.load(&file)));
            self.stored.insert(name, names);
        }
    }

    /// Whether the disk would forget somebody whom the guard holds.
    fn would_lose(&self, slice: &str, names: &BTreeSet<String>) -> bool {
        let stored = self.stored.get(slice);
        stored.is_some_and(|stored| stored.difference(names).any(|name| self.table.is_held(name)))
    }

    fn forget_slice(&mut self, name: &str, holds: bool) {
        // Slices that stay for the guard may still name those whom the tombstones bury.
        if self.would_lose(name, &BTreeSet::new()) || (holds && name == names::REMOVED_SLICE) {
            return;
        }
        self.stored.remove(name);
        if let Some(file) = Name::of("slice", name) {
            self.cache.remove(&file);
        }
    }
}
