//! What waits to be carried over one relay's channel: little, because what waits long is worth less than a drop that TCP inside the
//! tunnel notices. Handshakes go first and are never dropped for data; of the rest the oldest goes.

use std::{
    collections::VecDeque,
    sync::{Mutex, MutexGuard, PoisonError},
};
use tokio::sync::Notify;
use wire::relay::AllocationId;

/// Packets that wait at most: what one merged datagram of the userspace device may hold, twice.
pub const MAX_PACKETS: usize = 128;
/// Their bytes at most.
pub const MAX_BYTES: usize = 192 * 1024;
/// Handshakes that wait at most: as many as one member may ask of the relay at once.
const MAX_HANDSHAKES: usize = 64;
/// First byte of a WireGuard message that carries data.
const DATA: u8 = 4;

/// A WireGuard message and whose it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Packet {
    /// The pair's allocation.
    pub allocation: AllocationId,
    /// The message.
    pub message: Vec<u8>,
}

/// The queue before one channel.
#[derive(Debug, Default)]
pub struct Lane {
    waiting: Mutex<Waiting>,
    filled: Notify,
}

#[derive(Debug, Default)]
struct Waiting {
    handshakes: VecDeque<Packet>,
    data: VecDeque<Packet>,
    bytes: usize,
}

impl Waiting {
    fn push(&mut self, packet: Packet) -> usize {
        let mut dropped = 0;
        if packet.message.first() != Some(&DATA) {
            if self.handshakes.len() >= MAX_HANDSHAKES {
                self.handshakes.pop_front();
                dropped += 1;
            }
            self.handshakes.push_back(packet);
            return dropped;
        }
        self.bytes += packet.message.len();
        self.data.push_back(packet);
        while self.data.len() > MAX_PACKETS || self.bytes > MAX_BYTES {
            let Some(oldest) = self.data.pop_front() else { break };
            self.bytes -= oldest.message.len();
            dropped += 1;
        }
        dropped
    }

    fn take(&mut self) -> Vec<Packet> {
        self.bytes = 0;
        self.handshakes.drain(..).chain(self.data.drain(..)).collect()
    }
}

impl Lane {
    /// Adds a packet. Returns how many had to go for it.
    pub fn push(&self, packet: Packet) -> usize {
        let dropped = self.lock().push(packet);
        self.filled.notify_one();
        dropped
    }

    /// Everything that waits, handshakes first, once there is something. Cancel safe.
    pub async fn take(&self) -> Vec<Packet> {
        loop {
            let taken = self.lock().take();
            if !taken.is_empty() {
                return taken;
            }
            self.filled.notified().await;
        }
    }

    /// Whether another merged datagram might not find room.
    pub fn is_filling(&self) -> bool {
        let waiting = self.lock();
        waiting.data.len() > MAX_PACKETS / 2 || waiting.bytes > MAX_BYTES / 2
    }

    /// Forgets what waits: it was meant for a channel that is no more.
    pub fn clear(&self) {
        self.lock().take();
    }

    fn lock(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn packet(kind: u8, number: u8, length: usize) -> Packet {
        Packet {
            allocation: AllocationId(number.into()),
            message: [&[kind, 0, 0, 0][..], &vec![0; length - 4]].concat(),
        }
    }

    fn numbers(packets: &[Packet]) -> Vec<u64> {
        packets.iter().map(|packet| packet.allocation.0).collect()
    }

    #[tokio::test]
    async fn handshakes_go_first_and_the_oldest_data_goes_when_there_is_no_room() {
        let lane = Lane::default();
        let dropped: usize = (0..130).map(|number| lane.push(packet(4, number, 100))).sum();
        assert_eq!((dropped, lane.push(packet(1, 200, 148))), (2, 0));
        let taken = numbers(&lane.take().await);
        assert_eq!((taken.len(), &taken[..3], taken.last()), (MAX_PACKETS + 1, &[200, 2, 3][..], Some(&129)));
    }

    #[tokio::test]
    async fn bytes_are_bounded_too_and_what_was_taken_or_forgotten_counts_no_more() {
        let lane = Lane::default();
        for round in 0..3 {
            let dropped: usize = (0..4).map(|number| lane.push(packet(4, number, MAX_BYTES / 3))).sum();
            assert_eq!(dropped, 1, "round {round}");
            if round == 0 {
                lane.clear();
            } else {
                assert_eq!(numbers(&lane.take().await), [1, 2, 3]);
            }
        }
    }

    #[test]
    fn a_flood_of_handshakes_is_bounded() {
        let lane = Lane::default();
        let dropped: usize = (0..100).map(|number| lane.push(packet(1, number, 148))).sum();
        assert_eq!(dropped, 100 - MAX_HANDSHAKES);
    }
}
