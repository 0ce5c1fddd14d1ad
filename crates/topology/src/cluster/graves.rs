//! Tombstones: what tells agents at once, and beyond doubt, that a peer is gone.

use std::collections::BTreeMap;

use crate::cluster::view::ClusterView;
use crate::peer::{Entry, MAX_TOMBSTONES, Tombstone, Uid};

/// The tombstones that shall stand, oldest first, and those of them that are new.
///
/// An entry that is stored but not planned any more gets one. A stone of a node that is back stays, as the memory of the
/// generation, as long as it does not bury the new entry.
pub(super) fn tombstones(view: &ClusterView, entries: &[Entry]) -> (Vec<Tombstone>, Vec<Tombstone>) {
    let alive: BTreeMap<(&str, &Uid), &Entry> =
        entries.iter().map(|entry| ((&*entry.name, &entry.uid), entry)).collect();
    let mut stones = newest_of_each(&view.tombstones);
    stones.retain(|stone| {
        let entry = alive.get(&(&*stone.name, &stone.uid));
        entry.is_none_or(|entry| !stone.covers(entry))
    });

    let mut gone: BTreeMap<(String, Uid), Tombstone> = BTreeMap::new();
    for entry in view.slices.iter().flat_map(|slice| &slice.entries) {
        if alive.contains_key(&(&*entry.name, &entry.uid)) || stones.iter().any(|stone| stone.covers(entry)) {
            continue;
        }
        let stone = Tombstone {
            name: entry.name.clone(),
            uid: entry.uid.clone(),
            public_key: entry.public_key,
            generation: entry.generation,
        };
        let key = (entry.name.clone(), entry.uid.clone());
        let known = gone.entry(key).or_insert_with(|| stone.clone());
        if (known.generation, known.public_key) < (stone.generation, stone.public_key) {
            *known = stone;
        }
    }
    stones.retain(|stone| !gone.contains_key(&(stone.name.clone(), stone.uid.clone())));
    let new: Vec<Tombstone> = gone.into_values().collect();
    stones.extend(new.iter().cloned());
    let excess = stones.len().saturating_sub(MAX_TOMBSTONES);
    stones.drain(..excess);
    (stones, new)
}

fn newest_of_each(stored: &[Tombstone]) -> Vec<Tombstone> {
    let mut highest: BTreeMap<(&str, &Uid), u64> = BTreeMap::new();
    for stone in stored {
        let known = highest.entry((&stone.name, &stone.uid)).or_default();
        *known = (*known).max(stone.generation);
    }
    let mut kept = Vec::new();
    for stone in stored {
        let key = (&*stone.name, &stone.uid);
        if highest.get(&key) == Some(&stone.generation) {
            highest.remove(&key);
            kept.push(stone.clone());
        }
    }
    kept
}
