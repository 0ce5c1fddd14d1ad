//! What WireGuard sent to peers that slept, until there is a path: a user's first packet is not lost for having come too early.
//!
//! Data goes to where the endpoint is set next. A handshake goes when one is to start: the kernel starts no other for 5 s after the one
//! that went to the bell, so that one is handed on as it is, and its answer finds the kernel waiting for it.

use crate::carry::Call;
use std::{
    collections::{BTreeMap, VecDeque},
    time::{Duration, Instant},
};
use wire::key::PublicKey;

/// After this WireGuard starts another handshake itself (its `REKEY_TIMEOUT`), and data is as good as lost.
const LIFETIME: Duration = Duration::from_secs(5);
/// Messages kept of one peer: what a user says before he waits for an answer.
const MAX_MESSAGES: usize = 32;
/// Bytes kept of all peers.
const MAX_BYTES: usize = 4 << 20;
/// WireGuard's type of an initiation.
const INITIATION: u8 = 1;

/// What waits.
#[derive(Debug, Default)]
pub struct Callers {
    by_peer: BTreeMap<PublicKey, VecDeque<(Instant, Vec<u8>)>>,
    bytes: usize,
}

impl Callers {
    /// Keeps a message, unless too much is kept already.
    pub fn keep(&mut self, call: Call, now: Instant) {
        let Call { peer, message } = call;
        if self.bytes + message.len() > MAX_BYTES {
            self.prune(now);
        }
        if self.bytes + message.len() > MAX_BYTES {
            return;
        }
        let waiting = self.by_peer.entry(peer).or_default();
        if waiting.len() >= MAX_MESSAGES
            && let Some((_, oldest)) = waiting.pop_front()
        {
            self.bytes -= oldest.len();
        }
        self.bytes += message.len();
        waiting.push_back((now, message));
    }

    /// Takes the data that waits for a peer.
    pub fn data(&mut self, peer: &PublicKey, now: Instant) -> Vec<Vec<u8>> {
        let waiting = self.take(peer, now);
        let is_handshake = |(_, message): &(Instant, Vec<u8>)| message.first() == Some(&INITIATION);
        let (handshakes, data): (VecDeque<_>, VecDeque<_>) = waiting.into_iter().partition(is_handshake);
        self.put(*peer, handshakes);
        data.into_iter().map(|(_, message)| message).collect()
    }

    /// The handshake that WireGuard is waiting for an answer to, if it was started a moment ago.
    pub fn initiation(&self, peer: &PublicKey, now: Instant) -> Option<&[u8]> {
        let is_it = |(at, message): &&(Instant, Vec<u8>)| message.first() == Some(&INITIATION) && is_young(*at, now);
        self.by_peer.get(peer)?.iter().rev().find(is_it).map(|(_, message)| &**message)
    }

    /// Nothing waits for this peer any more.
    pub fn forget(&mut self, peer: &PublicKey) {
        let waiting = self.by_peer.remove(peer).unwrap_or_default();
        self.bytes -= waiting.iter().map(|(_, message)| message.len()).sum::<usize>();
    }

    fn prune(&mut self, now: Instant) {
        for peer in self.by_peer.keys().copied().collect::<Vec<_>>() {
            let young = self.take(&peer, now);
            self.put(peer, young);
        }
    }

    fn take(&mut self, peer: &PublicKey, now: Instant) -> VecDeque<(Instant, Vec<u8>)> {
        let mut waiting = self.by_peer.remove(peer).unwrap_or_default();
        self.bytes -= waiting.iter().map(|(_, message)| message.len()).sum::<usize>();
        waiting.retain(|(at, _)| is_young(*at, now));
        waiting
    }

    fn put(&mut self, peer: PublicKey, waiting: VecDeque<(Instant, Vec<u8>)>) {
        if !waiting.is_empty() {
            self.bytes += waiting.iter().map(|(_, message)| message.len()).sum::<usize>();
            self.by_peer.insert(peer, waiting);
        }
    }
}

fn is_young(at: Instant, now: Instant) -> bool {
    now.saturating_duration_since(at) < LIFETIME
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(n: u8) -> PublicKey {
        PublicKey::from_bytes([n; 32])
    }

    fn call(n: u8, kind: u8, length: usize) -> Call {
        Call { peer: key(n), message: [&[kind][..], &vec![0; length - 1]].concat() }
    }

    #[test]
    fn data_is_taken_once_and_a_handshake_stays_for_as_long_as_it_can_be_answered() {
        let (mut callers, now) = (Callers::default(), Instant::now());
        for (kind, length) in [(INITIATION, 148), (4, 96), (4, 112)] {
            callers.keep(call(1, kind, length), now);
        }
        let lengths = |data: Vec<Vec<u8>>| data.iter().map(Vec::len).collect::<Vec<_>>();
        let none = Vec::<usize>::new();
        assert_eq!(lengths(callers.data(&key(2), now)), none);
        assert_eq!(lengths(callers.data(&key(1), now)), [96, 112]);
        assert_eq!(lengths(callers.data(&key(1), now)), none);
        assert_eq!(callers.initiation(&key(1), now).map(<[u8]>::len), Some(148));
        assert_eq!(callers.initiation(&key(1), now + LIFETIME), None);
        callers.forget(&key(1));
        assert_eq!((callers.initiation(&key(1), now), callers.bytes), (None, 0));
    }

    #[test]
    fn no_peer_takes_more_than_its_share_and_all_together_no_more_than_there_is() {
        let (mut callers, now) = (Callers::default(), Instant::now());
        for _ in 0..10 * MAX_MESSAGES {
            callers.keep(call(1, 4, 9_000), now);
        }
        assert_eq!(callers.bytes, MAX_MESSAGES * 9_000);
        for n in 2..=255 {
            for _ in 0..MAX_MESSAGES {
                callers.keep(call(n, 4, 9_000), now);
            }
        }
        assert!(callers.bytes <= MAX_BYTES && callers.bytes > MAX_BYTES - 9_000);
        // What is old makes room.
        callers.keep(call(255, 4, 9_000), now + LIFETIME);
        assert_eq!((callers.bytes, callers.data(&key(255), now + LIFETIME).len()), (9_000, 1));
        assert_eq!(callers.bytes, 0);
    }
}
