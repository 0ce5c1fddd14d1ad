//! Frames that wait to be written: bounded in bytes, so that who does not read costs no more than that. Messages come first and are
//! never dropped, packets after them in lanes of their own.

use std::sync::{Mutex, MutexGuard, PoisonError};

use tokio::sync::Notify;
use wire::relay::{AllocationId, is_handshake};

use crate::SendError;
use crate::lanes::Lanes;
use crate::message::Message;

/// Bytes that wait for one channel: a burst of answers about every node of a mesh of some thousands, or a thousand signals.
pub const QUEUE_LEN: usize = 256 * 1024;

/// Bytes of packets that are written at once: some records of TLS with one system call, and little enough that the next
/// message need not wait long.
const WRITE_LEN: usize = 64 * 1024;

/// Bytes of a frame before its packet: length, kind, allocation.
const FRAME_HEAD: usize = wire::control::LENGTH_LEN + 1 + 8;

#[derive(Debug, Default)]
pub(crate) struct Queue {
    state: Mutex<State>,
    filled: Notify,
    emptied: Notify,
    changed: Notify,
}

#[derive(Debug, Default)]
struct State {
    bytes: Vec<u8>,
    lanes: Lanes,
    phase: Phase,
}

#[derive(Debug, Default, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Phase {
    #[default]
    Open,
    /// What is here is still written.
    Closing,
    Ended,
}

impl Queue {
    /// Adds a message, or says why not.
    pub(crate) fn push(&self, message: &impl Message) -> Result<(), SendError> {
        let mut state = self.lock();
        if state.phase != Phase::Open {
            return Err(SendError::Closed);
        }
        let before = state.bytes.len();
        message.append(&mut state.bytes);
        if state.bytes.len() > QUEUE_LEN {
            state.bytes.truncate(before);
            return Err(SendError::Full);
        }
        drop(state);
        self.filled.notify_one();
        Ok(())
    }

    /// Adds packets to their lanes. Returns how many were dropped for want of room, the oldest of each lane first.
    pub(crate) fn offer<'a, M: Message>(
        &self,
        packets: impl IntoIterator<Item = (AllocationId, &'a [u8])>,
    ) -> Result<usize, SendError> {
        let mut state = self.lock();
        if state.phase != Phase::Open {
            return Err(SendError::Closed);
        }
        let mut dropped = 0;
        for (allocation, packet) in packets {
            let mut frame = Vec::with_capacity(FRAME_HEAD + packet.len());
            M::append_data(allocation, packet, &mut frame);
            dropped += state.lanes.push(allocation, frame, is_handshake(packet));
        }
        drop(state);
        self.filled.notify_one();
        Ok(dropped)
    }

    /// Adds a message once there is room.
    pub(crate) async fn push_when_room(&self, message: &impl Message) -> Result<(), SendError> {
        loop {
            let mut emptied = std::pin::pin!(self.emptied.notified());
            // Before looking, or what happens in between goes unnoticed.
            emptied.as_mut().enable();
            match self.push(message) {
                Err(SendError::Full) => emptied.await,
                done => return done,
            }
        }
    }

    /// What is written next, once there is something: all messages, and packets behind them. `None` when it is closed and all messages
    /// were taken.
    pub(crate) async fn take(&self) -> Option<Vec<u8>> {
        loop {
            let mut filled = std::pin::pin!(self.filled.notified());
            filled.as_mut().enable();
            {
                let mut state = self.lock();
                if !state.bytes.is_empty() || !state.lanes.is_empty() {
                    let mut bytes = std::mem::take(&mut state.bytes);
                    let packets = state.lanes.take(WRITE_LEN.saturating_sub(bytes.len()));
                    drop(state);
                    if !bytes.is_empty() {
                        self.emptied.notify_waiters();
                    }
                    bytes.reserve(packets.iter().map(Vec::len).sum());
                    packets.iter().for_each(|packet| bytes.extend_from_slice(packet));
                    return Some(bytes);
                }
                if state.phase != Phase::Open {
                    return None;
                }
            }
            filled.await;
        }
    }

    /// No more is taken in.
    pub(crate) fn close(&self) {
        self.enter(Phase::Closing);
    }

    /// No more is written either.
    pub(crate) fn end(&self) {
        self.enter(Phase::Ended);
    }

    /// Ready once [`Self::close`] or [`Self::end`] was called.
    pub(crate) async fn closed(&self) {
        self.reached(Phase::Closing).await;
    }

    /// Ready once [`Self::end`] was called.
    pub(crate) async fn ended(&self) {
        self.reached(Phase::Ended).await;
    }

    async fn reached(&self, phase: Phase) {
        loop {
            let mut changed = std::pin::pin!(self.changed.notified());
            changed.as_mut().enable();
            if self.lock().phase >= phase {
                return;
            }
            changed.await;
        }
    }

    fn enter(&self, phase: Phase) {
        let mut state = self.lock();
        state.phase = state.phase.max(phase);
        // Nobody waits for packets of a channel that ends.
        state.lanes = Lanes::default();
        if phase == Phase::Ended {
            state.bytes = Vec::new();
        }
        drop(state);
        self.changed.notify_waiters();
        self.emptied.notify_waiters();
        self.filled.notify_one();
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
