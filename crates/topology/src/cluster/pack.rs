//! Append packing: which slice holds which entry.
//!
//! The assignment is read back from the stored slices, so that it needs no memory of its own and a fail-over writes
//! nothing. A new entry goes to the newest slice with room; slices that became nearly empty are merged.

use std::collections::{BTreeMap, BTreeSet};

use crate::cluster::plan::PlannedSlice;
use crate::cluster::view::SliceFacts;
use crate::peer::{Entry, MAX_SLICE_ENTRIES};

/// Two slices are merged when they hold this many entries together. A quarter of a slice stays free, so that one node
/// that comes and goes does not split and merge all the time. And a mesh of up to 64 nodes never has three slices,
/// so that the join that ends the age of volatile candidates still touches no more than two.
const MERGE_BELOW: usize = MAX_SLICE_ENTRIES * 3 / 4;

const PREFIX: &str = "peers-";

/// The name of the slice with this number.
pub fn slice_name(number: u32) -> String {
    format!("{PREFIX}{number:04}")
}

/// The number of a slice, if the name is one that `slice_name` makes.
pub fn slice_number(name: &str) -> Option<u32> {
    let number = name.strip_prefix(PREFIX)?.parse().ok()?;
    (number > 0 && slice_name(number) == name).then_some(number)
}

/// Packs the entries. Returns the slices that shall exist and the names of stored ones that shall not.
pub(super) fn pack(entries: Vec<Entry>, stored: &[SliceFacts]) -> (BTreeMap<String, PlannedSlice>, Vec<String>) {
    let mut by_name: BTreeMap<String, Entry> = entries.into_iter().map(|entry| (entry.name.clone(), entry)).collect();
    let mut bins = read_back(&by_name, stored);
    append(&by_name, &mut bins);
    merge(&mut bins);

    let before: BTreeMap<&str, &Vec<Entry>> = stored.iter().map(|slice| (&*slice.name, &slice.entries)).collect();
    let slices: BTreeMap<String, PlannedSlice> = bins
        .into_iter()
        .map(|(number, names)| {
            let entries: Vec<Entry> = names.iter().filter_map(|name| by_name.remove(name)).collect();
            let name = slice_name(number);
            let changed = before.get(&*name).is_none_or(|before| **before != entries);
            (name, PlannedSlice { entries, changed })
        })
        .collect();
    let stale = before.keys().filter(|name| !slices.contains_key(**name)).map(|name| (*name).to_owned()).collect();
    (slices, stale)
}

/// Slice number -> names of its entries.
type Bins = BTreeMap<u32, BTreeSet<String>>;

/// Where the entries are now. An entry in two slices (a merge that was cut short) stays in the older one; what is too
/// much for a slice is packed anew.
fn read_back(by_name: &BTreeMap<String, Entry>, stored: &[SliceFacts]) -> Bins {
    let slices: BTreeMap<u32, &SliceFacts> =
        stored.iter().filter_map(|slice| Some((slice_number(&slice.name)?, slice))).collect();
    let mut placed = BTreeSet::new();
    let mut bins = Bins::new();
    for (number, slice) in slices {
        let here: BTreeSet<String> = slice
            .entries
            .iter()
            .map(|entry| entry.name.clone())
            .filter(|name| by_name.contains_key(name) && !placed.contains(name))
            .collect();
        let here: BTreeSet<String> = here.into_iter().take(MAX_SLICE_ENTRIES).collect();
        placed.extend(here.iter().cloned());
        if !here.is_empty() {
            bins.insert(number, here);
        }
    }
    bins
}

fn append(by_name: &BTreeMap<String, Entry>, bins: &mut Bins) {
    let placed: BTreeSet<String> = bins.values().flatten().cloned().collect();
    for name in by_name.keys().filter(|name| !placed.contains(*name)) {
        let newest_with_room = bins.iter_mut().rev().find(|(_, names)| names.len() < MAX_SLICE_ENTRIES);
        match newest_with_room {
            Some((_, names)) => {
                names.insert(name.clone());
            }
            None => {
                let number = free_number(bins);
                bins.insert(number, BTreeSet::from([name.clone()]));
            }
        }
    }
}

/// One above the newest; the lowest gap once somebody has written a slice with the highest number there is.
fn free_number(bins: &Bins) -> u32 {
    let above = bins.last_key_value().map_or(Some(1), |(newest, _)| newest.checked_add(1));
    above.or_else(|| (1..u32::MAX).find(|number| !bins.contains_key(number))).unwrap_or(u32::MAX)
}

/// Empties newer slices into older ones until no two fit together.
fn merge(bins: &mut Bins) {
    while let Some((older, newer)) = mergeable(bins) {
        let moved = bins.remove(&newer).unwrap_or_default();
        bins.entry(older).or_default().extend(moved);
    }
}

fn mergeable(bins: &Bins) -> Option<(u32, u32)> {
    let mut sizes: Vec<(usize, u32)> = bins.iter().map(|(number, names)| (names.len(), *number)).collect();
    sizes.sort_unstable();
    // If the two smallest do not fit, no two do.
    match sizes[..] {
        [(a, first), (b, second), ..] if a + b <= MERGE_BELOW => Some((first.min(second), first.max(second))),
        _ => None,
    }
}
