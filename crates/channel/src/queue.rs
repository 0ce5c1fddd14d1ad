//! Frames that wait to be written: bounded in bytes, so that who does not read costs no more than that. Messages come first and are
//! never dropped, packets after them in lanes of their own.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::Instant;
use wire::relay::{AllocationId, is_handshake};

use crate::SendError;
use crate::lanes::Lanes;
use crate::message::Message;
use crate::room::{Room, Victims};

/// Bytes that wait for one channel: a burst of answers about every node of a mesh of some thousands, or a thousand signals.
pub const QUEUE_LEN: usize = 256 * 1024;

/// Bytes of packets that are written at once: some records of TLS with one system call, and little enough that the next
/// message need not wait long.
const WRITE_LEN: usize = 64 * 1024;

/// Who has had nothing written for so long does not read: above the time after which TCP sends again on most paths.
const IDLE: Duration = Duration::from_millis(250);

/// The same where it costs the channel: on nearly every path TCP has sent again by then.
const DEAF: Duration = Duration::from_secs(1);

/// Bytes of a frame before its packet: length, kind, allocation.
pub(crate) const FRAME_HEAD: usize = wire::control::LENGTH_LEN + 1 + 8;

#[derive(Debug)]
pub(crate) struct Queue {
    room: Arc<Room>,
    state: Mutex<State>,
    filled: Notify,
    emptied: Notify,
    changed: Notify,
}

#[derive(Debug, Default)]
struct State {
    bytes: Vec<u8>,
    lanes: Lanes,
    /// Bytes of packets that were taken last: they are being written.
    writing: usize,
    /// Bytes that this channel holds of the room for packets: both.
    held: usize,
    /// Bytes of messages that were taken last.
    saying: usize,
    /// Bytes that this channel holds of the room for messages: those and what waits.
    said: usize,
    /// When it last held nothing, or something of it was written.
    moved: Option<Instant>,
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
    /// An empty one, whose messages and packets wait in that room.
    pub(crate) fn new(room: &Arc<Room>) -> Arc<Self> {
        let (filled, emptied, changed) = Default::default();
        let queue = Arc::new(Self { room: Arc::clone(room), state: Mutex::default(), filled, emptied, changed });
        room.enter(&queue);
        queue
    }

    /// Adds a message, or says why not: the channel's queue has no room for it, or that of all channels together has none.
    pub(crate) fn push(&self, message: &impl Message) -> Result<(), SendError> {
        let mut state = self.lock();
        if state.phase != Phase::Open {
            return Err(SendError::Closed);
        }
        state.begin(Instant::now());
        let before = state.bytes.len();
        message.append(&mut state.bytes);
        let length = state.bytes.len() - before;
        if state.bytes.len() > QUEUE_LEN || !self.room.messages.take(&mut state.said, length) {
            state.bytes.truncate(before);
            return Err(SendError::Full);
        }
        drop(state);
        self.filled.notify_one();
        self.room.make_room_for_messages();
        Ok(())
    }

    /// Adds packets to their lanes. Returns how many were dropped for want of room, the oldest of each lane first: of this channel, or where
    /// all channels together hold too much, of those that hold most.
    pub(crate) fn offer<'a, M: Message>(
        &self,
        packets: impl IntoIterator<Item = (AllocationId, &'a [u8])>,
    ) -> Result<usize, SendError> {
        let mut state = self.lock();
        if state.phase != Phase::Open {
            return Err(SendError::Closed);
        }
        let now = Instant::now();
        state.begin(now);
        let mut dropped = 0;
        for (allocation, packet) in packets {
            let mut frame = Vec::with_capacity(FRAME_HEAD + packet.len());
            M::append_data(allocation, packet, &mut frame);
            if self.room.packets.take(&mut state.held, frame.len()) {
                dropped += state.lanes.push(allocation, frame, is_handshake(packet), now);
                state.settle(&self.room);
            } else {
                dropped += 1;
            }
        }
        drop(state);
        self.filled.notify_one();
        Ok(dropped + self.room.make_room())
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
        self.lock().written(&self.room);
        loop {
            let mut filled = std::pin::pin!(self.filled.notified());
            filled.as_mut().enable();
            {
                let mut state = self.lock();
                if !state.bytes.is_empty() || !state.lanes.is_empty() {
                    let mut bytes = std::mem::take(&mut state.bytes);
                    state.saying = bytes.len();
                    let limit = WRITE_LEN.min(self.room.packets.write_len());
                    let packets = state.lanes.take(limit.saturating_sub(bytes.len()));
                    state.writing = packets.iter().map(Vec::len).sum();
                    let length = state.writing;
                    drop(state);
                    if !bytes.is_empty() {
                        self.emptied.notify_waiters();
                    }
                    bytes.reserve(length);
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

    /// Drops its oldest packets until it holds no more than its share, if it is among those who are asked. Returns how many.
    pub(crate) fn give_up(&self, victims: Victims, share: usize) -> usize {
        let mut state = self.lock();
        if victims == Victims::Idle && !state.is_idle(IDLE) {
            return 0;
        }
        let limit = share.saturating_sub(state.writing);
        let dropped = state.lanes.shrink(limit);
        state.settle(&self.room);
        dropped
    }

    /// Ends the channel if it holds more messages than its share, and is among those who are asked. Returns whether it did.
    pub(crate) fn end_for_messages(&self, victims: Victims, share: usize) -> bool {
        let state = self.lock();
        let ends = state.said > share && (victims == Victims::All || state.is_idle(DEAF));
        drop(state);
        if ends {
            self.end();
        }
        ends
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
            // Whoever was writing is stopped.
            (state.writing, state.saying) = (0, 0);
        }
        state.settle(&self.room);
        drop(state);
        self.changed.notify_waiters();
        self.emptied.notify_waiters();
        self.filled.notify_one();
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Queue {
    fn drop(&mut self) {
        let state = self.state.get_mut().unwrap_or_else(PoisonError::into_inner);
        self.room.packets.give(&mut state.held, 0);
        self.room.messages.give(&mut state.said, 0);
    }
}

impl State {
    /// Something will wait from now on, unless something does already.
    fn begin(&mut self, now: Instant) {
        if self.held == 0 && self.said == 0 {
            self.moved = Some(now);
        }
    }

    /// Whether nothing of what waits was written for so long.
    fn is_idle(&self, time: Duration) -> bool {
        self.moved.is_some_and(|moved| moved.elapsed() >= time)
    }

    /// What was taken last has been written.
    fn written(&mut self, room: &Room) {
        (self.writing, self.saying) = (0, 0);
        self.moved = Some(Instant::now());
        self.settle(room);
    }

    /// Gives the room back what is neither waiting nor being written any more.
    fn settle(&mut self, room: &Room) {
        room.packets.give(&mut self.held, self.lanes.len() + self.writing);
        room.messages.give(&mut self.said, self.bytes.len() + self.saying);
    }
}

#[cfg(test)]
impl Queue {
    /// Whether anything is to be written.
    pub(crate) fn waits(&self) -> bool {
        let state = self.lock();
        !state.bytes.is_empty() || !state.lanes.is_empty()
    }

    /// Bytes that it holds of the room for messages, counted anew.
    pub(crate) fn said(&self) -> usize {
        let state = self.lock();
        state.bytes.len() + state.saying
    }

    /// Bytes that it holds of the room, counted anew.
    pub(crate) fn held(&self) -> usize {
        let state = self.lock();
        state.lanes.count() + state.writing
    }
}
