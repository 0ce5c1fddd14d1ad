//! Frames that wait to be written: bounded in bytes, so that who does not read costs no more than that.

use std::sync::{Mutex, MutexGuard, PoisonError};

use tokio::sync::Notify;

use crate::SendError;
use crate::message::Message;

/// Bytes that wait for one channel: a burst of answers about every node of a mesh of some thousands, or a thousand signals.
pub const QUEUE_LEN: usize = 256 * 1024;

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

    /// Everything that waits, once there is something; `None` when it is closed and all was taken.
    pub(crate) async fn take(&self) -> Option<Vec<u8>> {
        loop {
            let mut filled = std::pin::pin!(self.filled.notified());
            filled.as_mut().enable();
            {
                let mut state = self.lock();
                if !state.bytes.is_empty() {
                    let bytes = std::mem::take(&mut state.bytes);
                    drop(state);
                    self.emptied.notify_waiters();
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
