//! Whatever lists and events arrive and whenever, the guard drops no peer early and forgets none.
#![allow(missing_docs, clippy::unwrap_used)]

mod world;

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use proptest::collection::vec;
use proptest::prelude::*;
use topology::node::{CONFIRM_AFTER, Delta, LAST_HALF_AFTER, PeerTable};
use topology::peer::{Entry, Tombstone};
use world::*;

const NODES: u16 = 9;

/// What arrives: which nodes a slice or list names, by bit.
#[derive(Clone, Debug)]
enum Input {
    List(u16, Option<u16>),
    Slice(u8, u16),
    Deleted(u8),
    Bury(u16),
    Change(u16),
}

fn inputs() -> impl Strategy<Value = Vec<(u64, Input)>> {
    let mask = prop_oneof![Just(0u16), Just(1), Just(0x1ff), any::<u16>()];
    let input = prop_oneof![
        3 => (mask.clone(), proptest::option::of(any::<u16>())).prop_map(|(a, b)| Input::List(a, b)),
        3 => (0..2u8, mask).prop_map(|(slice, mask)| Input::Slice(slice, mask)),
        1 => (0..2u8).prop_map(Input::Deleted),
        1 => (0..NODES).prop_map(Input::Bury),
        1 => (0..NODES).prop_map(Input::Change),
    ];
    vec((prop_oneof![Just(0u64), 1..40u64, 20..400u64], input), 1..40)
}

/// What the table must look like from outside: kept apart from the table, with a simpler memory.
struct Reference {
    all: Vec<Entry>,
    slices: BTreeMap<String, BTreeSet<u16>>,
    stones: Vec<Tombstone>,
    /// In force as far as the deltas say.
    peers: BTreeSet<u16>,
    missing_since: BTreeMap<u16, Duration>,
    peers_at_start: usize,
    dropped: usize,
    last_loss: Option<Duration>,
}

impl Reference {
    fn listed(&self, number: u16) -> bool {
        let buried = self.stones.iter().any(|stone| stone.covers(&self.all[usize::from(number)]));
        !buried && self.slices.values().any(|slice| slice.contains(&number))
    }

    fn buried(&self, number: u16) -> bool {
        self.stones.iter().any(|stone| stone.name == name(number + 1))
    }

    /// Checks one delta against the rules of the guard.
    fn judge(&mut self, delta: &Delta, is_list: bool, now: Duration) {
        let before = self.peers.clone();
        let listed: Vec<u16> = (0..NODES).filter(|number| self.listed(*number)).collect();
        self.missing_since.retain(|number, _| !listed.contains(number));
        let changed: BTreeSet<&String> = delta.upsert.iter().collect();
        for number in 0..NODES {
            let is_gone =
                delta.remove.iter().any(|(gone, _)| *gone == name(number + 1)) && !changed.contains(&name(number + 1));
            if is_gone {
                assert!(self.peers.remove(&number), "{number} was dropped twice");
                assert!(!self.listed(number), "{number} is in a slice");
                if !self.buried(number) {
                    self.judge_drop(number, before.len(), is_list, now);
                }
            }
            if changed.contains(&name(number + 1)) {
                self.peers.insert(number);
            }
        }
        for number in 1..NODES {
            assert!(!self.listed(number) || self.peers.contains(&number), "{number} is in a slice but not in force");
            let is_missing = self.peers.contains(&number) && !self.listed(number);
            if !is_missing {
                self.missing_since.remove(&number);
            } else if !self.missing_since.contains_key(&number) {
                if self.missing_since.is_empty() {
                    (self.peers_at_start, self.dropped) = (before.len(), 0);
                }
                self.missing_since.insert(number, now);
                self.last_loss = Some(now);
            }
        }
    }

    fn judge_drop(&mut self, number: u16, before: usize, is_list: bool, now: Duration) {
        let Some(since) = self.missing_since.get(&number) else {
            let follows = self.last_loss.is_some_and(|last| now - last < CONFIRM_AFTER);
            assert!(before > 1 && !follows && self.missing_since.is_empty(), "{number} was dropped without a doubt");
            self.last_loss = Some(now);
            return;
        };
        self.dropped += 1;
        let waited = now - *since;
        assert!(is_list && self.slices.values().any(|slice| !slice.is_empty()), "{number}: nothing confirmed it");
        assert!(waited >= CONFIRM_AFTER, "{number} was dropped after {waited:?}");
        let in_first_half = self.dropped <= self.peers_at_start / 2;
        assert!(in_first_half || waited >= LAST_HALF_AFTER, "{number} of the last half was dropped after {waited:?}");
    }
}

fn numbers(mask: u16) -> BTreeSet<u16> {
    (0..NODES).filter(|number| mask & (1 << number) != 0).collect()
}

proptest! {
    #![proptest_config(config(400))]

    #[test]
    fn no_peer_is_dropped_early_and_none_is_lost(inputs in inputs()) {
        let all = entries(&cluster_of(NODES));
        let mut table = PeerTable::new(&name(1));
        let mut world = Reference {
            all,
            slices: BTreeMap::from([("peers-0001".to_owned(), numbers(u16::MAX))]),
            stones: vec![],
            peers: BTreeSet::new(),
            missing_since: BTreeMap::new(),
            peers_at_start: 0,
            dropped: 0,
            last_loss: None,
        };
        let of = |world: &Reference, set: &BTreeSet<u16>| -> Vec<Entry> {
            set.iter().map(|number| world.all[usize::from(*number)].clone()).collect()
        };
        let content = |world: &Reference| {
            let slices = world.slices.iter().map(|(slice, set)| (slice.clone(), of(world, set)));
            slices.collect::<BTreeMap<_, _>>()
        };
        let mut now = Duration::ZERO;
        let delta = table.handle_list(content(&world), vec![], now);
        world.judge(&delta, true, now);
        for (pause, input) in inputs {
            now += Duration::from_secs(pause);
            let delta = match &input {
                Input::List(first, second) => {
                    world.slices = BTreeMap::from([("peers-0001".to_owned(), numbers(*first))]);
                    world.slices.extend(second.map(|mask| ("peers-0002".to_owned(), numbers(mask))));
                    table.handle_list(content(&world), world.stones.clone(), now)
                }
                Input::Slice(slice, mask) => {
                    let (slice, set) = (format!("peers-000{}", slice + 1), numbers(*mask));
                    let delta = table.handle_slice(&slice, of(&world, &set), now);
                    world.slices.insert(slice, set);
                    delta
                }
                Input::Deleted(slice) => {
                    let slice = format!("peers-000{}", slice + 1);
                    world.slices.remove(&slice);
                    table.handle_slice_deleted(&slice, now)
                }
                Input::Bury(number) => {
                    let entry = &world.all[usize::from(*number)];
                    let stone = Tombstone {
                        name: entry.name.clone(),
                        uid: entry.uid.clone(),
                        public_key: entry.public_key,
                        generation: entry.generation,
                    };
                    world.stones.push(stone);
                    table.handle_tombstones(world.stones.clone(), now)
                }
                Input::Change(number) => {
                    world.all[usize::from(*number)].generation += 1;
                    let delta = table.handle_list(content(&world), world.stones.clone(), now);
                    world.judge(&delta, true, now);
                    continue;
                }
            };
            world.judge(&delta, matches!(input, Input::List(..)), now);
            let held = table.guard(now).map_or(0, |guard| guard.held);
            prop_assert_eq!(held, world.missing_since.len());
        }
    }
}
