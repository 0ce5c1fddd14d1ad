//! The peer table and its mass-removal guard.
#![allow(missing_docs, clippy::unwrap_used)]

mod world;

use std::collections::BTreeMap;
use std::time::Duration;

use topology::node::{Delta, PeerTable};
use topology::peer::{Entry, Tombstone};
use world::*;

const LIST: &[Tombstone] = &[];

fn secs(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

fn peers(count: u16) -> Vec<Entry> {
    entries(&cluster_of(count))
}

fn one_slice(entries: &[Entry]) -> BTreeMap<String, Vec<Entry>> {
    BTreeMap::from([("peers-0001".to_owned(), entries.to_vec())])
}

/// The table of node 1 in a mesh of `count`.
fn table(count: u16) -> (PeerTable, Vec<Entry>) {
    let all = peers(count);
    let mut table = PeerTable::new(&name(1));
    table.handle_list(one_slice(&all), LIST.to_vec(), secs(0));
    (table, all)
}

fn stone(entry: &Entry) -> Tombstone {
    Tombstone {
        name: entry.name.clone(),
        uid: entry.uid.clone(),
        public_key: entry.public_key,
        generation: entry.generation,
    }
}

#[test]
fn one_peer_that_disappears_goes_at_once_two_are_held() {
    let (mut table, all) = table(6);
    let delta = table.handle_slice("peers-0001", all[..5].to_vec(), secs(1));
    assert_eq!(delta.remove, [(name(6), key(6))]);
    let delta = table.handle_slice("peers-0001", all[..2].to_vec(), secs(100));
    assert_eq!(delta, Delta::default());
    let guard = table.guard(secs(110)).unwrap();
    assert_eq!((guard.held, guard.since), (3, secs(10)));
    assert!(guard.message.contains(&name(3)));
    assert!(table.is_held(&name(3)) && table.entries().contains(&name(3)));
}

#[test]
fn peers_that_disappear_one_by_one_are_held_too() {
    let (mut table, all) = table(6);
    let mut removed = 0;
    for count in (1..=5).rev() {
        removed += table.handle_slice("peers-0001", all[..count].to_vec(), secs(10 - count as u64)).remove.len();
    }
    assert_eq!(removed, 1);
}

#[test]
fn the_only_peer_is_held() {
    let (mut table, all) = table(2);
    assert!(table.handle_slice("peers-0001", all[..1].to_vec(), secs(1)).is_empty());
    assert!(table.handle_list(one_slice(&all[..1]), LIST.to_vec(), secs(40)).is_empty());
    let delta = table.handle_list(one_slice(&all[..1]), LIST.to_vec(), secs(301));
    assert_eq!(delta.remove, [(name(2), key(2))]);
}

#[test]
fn an_empty_list_never_removes_anybody() {
    let (mut table, _) = table(6);
    for time in [1, 31, 62, 400, 4000] {
        assert!(table.handle_list(BTreeMap::new(), LIST.to_vec(), secs(time)).is_empty());
        assert!(table.handle_list(one_slice(&[]), LIST.to_vec(), secs(time)).is_empty());
    }
    assert!((2..=6).all(|number| table.entries().contains(&name(number))));
    assert!(table.guard(secs(4000)).is_some());
    assert!(table.poll_list().unwrap() > secs(4000), "no busy loop");
}

#[test]
fn a_confirmed_list_removes_half_after_30_s_and_the_rest_after_5_min() {
    let (mut table, all) = table(11);
    let alone = one_slice(&all[..1]);
    assert!(table.handle_list(alone.clone(), LIST.to_vec(), secs(10)).is_empty());
    assert_eq!(table.poll_list(), Some(secs(40)));
    assert!(table.handle_list(alone.clone(), LIST.to_vec(), secs(39)).is_empty());
    assert_eq!(table.handle_list(alone.clone(), LIST.to_vec(), secs(40)).remove.len(), 5);
    assert_eq!(table.handle_list(alone.clone(), LIST.to_vec(), secs(309)).remove.len(), 0);
    assert_eq!(table.handle_list(alone, LIST.to_vec(), secs(310)).remove.len(), 5);
    assert_eq!((table.guard(secs(310)), table.poll_list()), (None, None));
}

#[test]
fn watch_events_alone_confirm_nothing_and_a_peer_that_is_back_is_not_held() {
    let (mut table, all) = table(11);
    table.handle_slice("peers-0001", all[..8].to_vec(), secs(1));
    for time in 2..1000 {
        assert!(table.handle_slice("peers-0001", all[..8].to_vec(), secs(time)).is_empty());
    }
    let delta = table.handle_list(one_slice(&all), LIST.to_vec(), secs(1000));
    assert!(delta.is_empty() && table.guard(secs(1000)).is_none());
}

#[test]
fn tombstones_remove_any_number_at_once_before_and_after_the_slice() {
    for slice_first in [true, false] {
        let (mut table, all) = table(9);
        let stones: Vec<Tombstone> = all[1..].iter().map(stone).collect();
        let mut removed = 0;
        for slice_now in [slice_first, !slice_first] {
            let delta = if slice_now {
                table.handle_slice("peers-0001", all[..1].to_vec(), secs(1))
            } else {
                table.handle_tombstones(stones.clone(), secs(1))
            };
            removed += delta.remove.len();
        }
        assert_eq!(removed, 8, "slice first: {slice_first}");
        assert_eq!(table.guard(secs(1)), None);
    }
}

#[test]
fn a_tombstone_buries_neither_a_namesake_nor_a_later_generation() {
    let (mut table, all) = table(4);
    let mut other = stone(&all[1]);
    other.uid.0.push('x');
    let mut older = stone(&all[2]);
    older.generation -= 1;
    assert!(table.handle_tombstones(vec![other, older], secs(1)).is_empty());
}

#[test]
fn a_node_seen_in_two_slices_while_it_moves_counts_once_and_the_newer_entry_wins() {
    let (mut table, all) = table(4);
    let mut moved = all[3].clone();
    moved.generation += 1;
    moved.round = 7;
    assert_eq!(table.handle_slice("peers-0002", vec![moved.clone()], secs(1)).upsert, [name(4)]);
    assert!(table.handle_slice("peers-0001", all.clone(), secs(2)).is_empty(), "the older entry is ignored");
    assert!(table.handle_slice("peers-0001", all[..3].to_vec(), secs(3)).is_empty());
    assert_eq!(**table.entries().get(&name(4)).unwrap(), moved);
    assert!(table.handle_slice_deleted("peers-0009", secs(4)).is_empty());
}

#[test]
fn an_older_generation_is_ignored_until_a_fresh_list_still_says_so_30_s_later() {
    let (mut table, all) = table(4);
    let mut newer = all.clone();
    newer[2].generation += 5;
    newer[2].public_key = key(99);
    let delta = table.handle_slice("peers-0001", newer, secs(1));
    assert_eq!((delta.upsert, delta.remove), (vec![name(3)], vec![(name(3), key(3))]));
    assert!(table.handle_slice("peers-0001", all.clone(), secs(2)).is_empty());
    assert!(table.handle_list(one_slice(&all), LIST.to_vec(), secs(31)).is_empty());
    assert_eq!(table.poll_list(), Some(secs(32)));
    let delta = table.handle_list(one_slice(&all), LIST.to_vec(), secs(32));
    assert_eq!(delta.remove, [(name(3), key(99))]);
}

#[test]
fn a_restored_table_meets_the_first_list_with_the_guard_up() {
    let all = peers(6);
    let mut table = PeerTable::restore(&name(1), all.clone(), vec![stone(&all[5])]);
    assert_eq!(table.entries().len(), 5);
    assert!(table.handle_list(one_slice(&all[..2]), LIST.to_vec(), secs(0)).is_empty());
    assert_eq!(table.guard(secs(0)).unwrap().held, 3);
}
