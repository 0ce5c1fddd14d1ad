//! What WireGuard sends to peers that sleep, on its way to the loop.

use std::{
    collections::VecDeque,
    sync::{Mutex, PoisonError},
};
use tokio::sync::Notify;
use wire::key::PublicKey;

/// Messages that wait for the loop: a few of each of many peers. WireGuard says again what is dropped.
const MAX_CALLS: usize = 1024;

/// A message of WireGuard's to a peer that sleeps.
#[derive(Debug, PartialEq, Eq)]
pub struct Call {
    /// To whom.
    pub peer: PublicKey,
    /// The message.
    pub message: Vec<u8>,
}

/// The queue between the socket and the loop.
#[derive(Default)]
pub struct Bells {
    calls: Mutex<VecDeque<Call>>,
    rung: Notify,
}

impl Bells {
    /// A message arrived. Returns whether there was room for it.
    pub(super) fn ring(&self, peer: PublicKey, message: &[u8]) -> bool {
        let mut calls = self.calls.lock().unwrap_or_else(PoisonError::into_inner);
        let has_room = calls.len() < MAX_CALLS;
        if has_room {
            calls.push_back(Call { peer, message: message.to_vec() });
            self.rung.notify_one();
        }
        has_room
    }

    /// There is more to take.
    pub fn ring_again(&self) {
        self.rung.notify_one();
    }

    /// Waits until there is something to take. Cancel safe.
    pub async fn rung(&self) {
        self.rung.notified().await;
    }

    /// The next message.
    pub fn take(&self) -> Option<Call> {
        self.calls.lock().unwrap_or_else(PoisonError::into_inner).pop_front()
    }
}
