//! Packets that wait to be written: a lane for each allocation, bounded, from which the oldest go when there are too many.
//!
//! What a network between two nodes does with packets, this does for those whose network is a channel: it forgets what it has no room for,
//! the oldest first, because a late packet is worth less than a new one. Handshakes pass data, so that a full lane does not cost a session.
//!
//! A lane is short, so that a slow path does not fill up with what is old. What comes at once, because whoever reads or writes had to wait for
//! its turn, is more than that and gone in a moment: a lane may be longer for as long as nothing in it is old.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use tokio::time::Instant;
use wire::relay::AllocationId;

/// Packets that wait for one allocation, if the oldest is old.
pub const LANE_PACKETS: usize = 64;

/// Bytes that wait for one allocation, if the oldest is old: 64 full packets on a common path.
pub const LANE_LEN: usize = 96 * 1024;

/// Bytes that wait for one channel in all its lanes: those of ten partners at once, and what who does not read costs at most.
pub const LANES_LEN: usize = 1024 * 1024;

/// Bytes that wait for one channel beyond which no lane may be longer than that: it leaves room for six whose packets are old.
pub const BURSTS_LEN: usize = 448 * 1024;

/// From this age on a packet is old: a few turns of everybody who works on the same machine.
pub const OLD: Duration = Duration::from_millis(20);

/// Bytes that a lane earns each round: above the largest packet, so that every round moves something.
const QUANTUM: usize = 16 * 1024;

/// All lanes of one channel; those that are empty are not here.
#[derive(Debug, Default)]
pub(crate) struct Lanes {
    lanes: BTreeMap<AllocationId, Lane>,
    /// The next one first.
    turns: VecDeque<AllocationId>,
    bytes: usize,
}

#[derive(Debug, Default)]
struct Lane {
    handshakes: VecDeque<Vec<u8>>,
    /// With the time of each.
    data: VecDeque<(Instant, Vec<u8>)>,
    bytes: usize,
    credit: usize,
}

impl Lanes {
    /// Adds a frame. Returns how many were dropped for it, or instead of it.
    pub(crate) fn push(&mut self, allocation: AllocationId, frame: Vec<u8>, is_handshake: bool, now: Instant) -> usize {
        let lane = self.lanes.entry(allocation).or_insert_with(|| {
            self.turns.push_back(allocation);
            Lane::default()
        });
        let mut dropped = 0;
        while !lane.has_room(frame.len(), self.bytes, now) || self.bytes + frame.len() > LANES_LEN {
            let Some(oldest) = lane.drop_oldest(is_handshake) else { return dropped + 1 };
            self.bytes -= oldest;
            dropped += 1;
        }
        self.bytes += frame.len();
        lane.bytes += frame.len();
        if is_handshake {
            lane.handshakes.push_back(frame);
        } else {
            lane.data.push_back((now, frame));
        }
        dropped
    }

    /// Takes out what is written next: at most `limit` bytes, but one frame if there is one. Lanes share by deficit round robin.
    pub(crate) fn take(&mut self, limit: usize) -> Vec<Vec<u8>> {
        let (mut taken, mut bytes) = (Vec::new(), 0);
        while let Some(&allocation) = self.turns.front() {
            let lane = self.lanes.get_mut(&allocation);
            let Some((lane, next)) = lane.and_then(|lane| lane.next_len().map(|next| (lane, next))) else {
                // It has nothing left, and saves nothing up for when it has.
                self.lanes.remove(&allocation);
                self.turns.pop_front();
                continue;
            };
            if lane.credit < next {
                lane.credit += QUANTUM;
                self.turns.rotate_left(1);
                continue;
            }
            if bytes > 0 && bytes + next > limit {
                break;
            }
            lane.credit -= next;
            bytes += next;
            self.bytes -= next;
            taken.extend(lane.pop());
        }
        taken
    }

    /// Drops the oldest of the fullest lane until no more than so many bytes are left. Returns how many frames.
    pub(crate) fn shrink(&mut self, limit: usize) -> usize {
        let mut dropped = 0;
        while self.bytes > limit {
            let fullest = self.lanes.values_mut().max_by_key(|lane| lane.bytes);
            let Some(oldest) = fullest.and_then(|lane| lane.drop_oldest(true)) else { break };
            self.bytes -= oldest;
            dropped += 1;
        }
        dropped
    }

    /// Bytes that wait.
    pub(crate) fn len(&self) -> usize {
        self.bytes
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.bytes == 0
    }

    /// Bytes that wait, counted anew.
    #[cfg(test)]
    pub(crate) fn count(&self) -> usize {
        let data = |lane: &Lane| lane.data.iter().map(|(_, frame)| frame.len()).sum::<usize>();
        let all = |lane: &Lane| lane.handshakes.iter().map(Vec::len).sum::<usize>() + data(lane);
        self.lanes.values().map(all).sum()
    }
}

impl Lane {
    /// Whether so many bytes more fit in, beside which the channel holds `all`.
    fn has_room(&self, length: usize, all: usize, now: Instant) -> bool {
        let is_short = self.handshakes.len() + self.data.len() < LANE_PACKETS && self.bytes + length <= LANE_LEN;
        let is_old = |since: &Instant| now.saturating_duration_since(*since) >= OLD;
        is_short || (all + length <= BURSTS_LEN && self.data.front().is_some_and(|(since, _)| !is_old(since)))
    }

    fn next_len(&self) -> Option<usize> {
        self.handshakes.front().or(self.data.front().map(|(_, frame)| frame)).map(Vec::len)
    }

    fn pop(&mut self) -> Option<Vec<u8>> {
        let frame = self.handshakes.pop_front().or_else(|| self.data.pop_front().map(|(_, frame)| frame))?;
        self.bytes -= frame.len();
        Some(frame)
    }

    /// Makes room for data at the cost of older data, for a handshake at that of an older handshake too. Returns its bytes.
    fn drop_oldest(&mut self, for_handshake: bool) -> Option<usize> {
        let handshake = || if for_handshake { self.handshakes.pop_front() } else { None };
        let oldest = self.data.pop_front().map(|(_, frame)| frame).or_else(handshake)?.len();
        self.bytes -= oldest;
        Some(oldest)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ONE: AllocationId = AllocationId(1);
    const OTHER: AllocationId = AllocationId(2);

    /// A frame that says its number.
    fn frame(number: u16, length: usize) -> Vec<u8> {
        let mut frame = vec![0; length];
        frame[..2].copy_from_slice(&number.to_be_bytes());
        frame
    }

    /// Moments so far apart that what came at the one before is old.
    fn late(number: u16) -> Instant {
        static START: std::sync::OnceLock<Instant> = std::sync::OnceLock::new();
        *START.get_or_init(Instant::now) + OLD * u32::from(number)
    }

    fn numbers(frames: &[Vec<u8>]) -> Vec<u16> {
        frames.iter().map(|frame| u16::from_be_bytes([frame[0], frame[1]])).collect()
    }

    #[test]
    fn the_oldest_packets_go_when_there_are_too_many() {
        let mut lanes = Lanes::default();
        let dropped: usize = (0..100).map(|number| lanes.push(ONE, frame(number, 100), false, late(number))).sum();
        assert_eq!(dropped, 100 - LANE_PACKETS);
        assert_eq!(numbers(&lanes.take(usize::MAX)), (36..100).collect::<Vec<_>>());
        assert!(lanes.is_empty());
    }

    #[test]
    fn a_lane_is_bounded_in_bytes_too() {
        let mut lanes = Lanes::default();
        for number in 0..100 {
            lanes.push(ONE, frame(number, 9011), false, late(number));
        }
        let taken = lanes.take(usize::MAX);
        assert_eq!(taken.len(), LANE_LEN / 9011);
        assert_eq!(numbers(&taken).last(), Some(&99));
    }

    #[test]
    fn what_comes_at_once_waits_together_and_is_cut_when_it_is_old() {
        let mut lanes = Lanes::default();
        let all = u16::try_from(BURSTS_LEN / 1400).unwrap();
        let dropped: usize = (0..all).map(|number| lanes.push(ONE, frame(number, 1400), false, late(0))).sum();
        assert_eq!((dropped, lanes.len()), (0, usize::from(all) * 1400));
        assert_eq!(lanes.push(ONE, frame(all, 1400), false, late(0)), 1, "there is an end to it");
        assert_eq!(lanes.push(OTHER, frame(all, 1400), false, late(0)), 0, "which is not that of others");
        lanes.push(ONE, frame(all + 1, 1400), false, late(1));
        let taken = lanes.take(usize::MAX);
        let newest: Vec<u16> = numbers(&taken).into_iter().filter(|number| *number != all).collect();
        assert_eq!(newest, (all + 2 - u16::try_from(LANE_PACKETS).unwrap()..all).chain([all + 1]).collect::<Vec<_>>());
    }

    #[test]
    fn handshakes_pass_data_and_are_not_dropped_for_it() {
        let mut lanes = Lanes::default();
        for number in 0..64 {
            lanes.push(ONE, frame(number, 1000), false, late(number));
        }
        lanes.push(ONE, frame(1000, 148), true, late(1000));
        for number in 64..128 {
            lanes.push(ONE, frame(number, 1000), false, late(number));
        }
        let taken = numbers(&lanes.take(usize::MAX));
        assert_eq!((taken[0], taken[1], taken.len()), (1000, 65, 64));
        for number in 0..64 {
            lanes.push(ONE, frame(number, 148), true, late(number));
        }
        assert_eq!(lanes.push(ONE, frame(64, 1000), false, late(64)), 1, "data does not displace a handshake");
        assert_eq!(lanes.push(ONE, frame(65, 148), true, late(65)), 1, "a newer handshake does");
        let mut expected: Vec<u16> = (1..64).collect();
        expected.push(65);
        assert_eq!(numbers(&lanes.take(usize::MAX)), expected);
    }

    #[test]
    fn all_lanes_together_are_bounded() {
        let mut lanes = Lanes::default();
        for allocation in 0..100 {
            for number in 0..64 {
                lanes.push(AllocationId(allocation), frame(number, 1500), false, late(number));
            }
            assert!(lanes.bytes <= LANES_LEN);
        }
        let taken: usize = lanes.take(usize::MAX).iter().map(Vec::len).sum();
        assert!(taken > LANES_LEN - 1500 && lanes.bytes == 0, "{taken}");
    }

    #[test]
    fn a_full_lane_leaves_others_their_share() {
        let mut lanes = Lanes::default();
        for number in 0..64 {
            lanes.push(ONE, frame(number, 1400), false, late(number));
        }
        for number in 100..103 {
            lanes.push(OTHER, frame(number, 1400), false, late(number));
        }
        let taken = numbers(&lanes.take(2 * QUANTUM));
        assert!(taken.iter().filter(|number| **number >= 100).count() == 3, "{taken:?}");
        assert!(taken.iter().map(|_| 1400).sum::<usize>() <= 2 * QUANTUM);
    }

    #[test]
    fn what_is_given_up_is_the_oldest_of_the_fullest_lane_and_no_handshake_before_data() {
        let mut lanes = Lanes::default();
        lanes.push(ONE, frame(1000, 148), true, late(1000));
        for number in 0..40 {
            lanes.push(ONE, frame(number, 1000), false, late(number));
        }
        for number in 100..110 {
            lanes.push(OTHER, frame(number, 1000), false, late(number));
        }
        assert_eq!((lanes.shrink(20_148), lanes.len()), (30, 20_148));
        let taken = numbers(&lanes.take(usize::MAX));
        let expected: Vec<u16> = [1000].into_iter().chain(30..40).chain(100..110).collect();
        assert!(taken.len() == 21 && expected.iter().all(|number| taken.contains(number)), "{taken:?}");
        assert_eq!((lanes.shrink(0), lanes.len()), (0, 0));
    }

    #[test]
    fn a_limit_below_a_packet_lets_one_through() {
        let mut lanes = Lanes::default();
        for number in 0..3 {
            lanes.push(ONE, frame(number, 9000), false, late(number));
        }
        assert_eq!(numbers(&lanes.take(1)), [0]);
        assert_eq!(numbers(&lanes.take(0)), [1]);
    }
}
