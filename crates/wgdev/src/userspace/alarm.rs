//! The timer thread sleeps until the first peer is due, and not a moment less.

use std::{
    sync::atomic::{AtomicU64, Ordering},
    time::Instant,
};

use parking_lot::{Condvar, Mutex};

use super::peer::NEVER;

/// Wakes the timer thread when something becomes due before it meant to wake up.
pub(super) struct Alarm {
    /// When it means to wake up; `NEVER` while it is finding out.
    next: AtomicU64,
    lock: Mutex<()>,
    changed: Condvar,
}

impl Alarm {
    pub(super) fn new() -> Self {
        Self { next: AtomicU64::new(NEVER), lock: Mutex::new(()), changed: Condvar::new() }
    }

    /// Something is due then. Call it after the time was stored where `earliest` finds it.
    pub(super) fn hint(&self, due: u64) {
        if due < self.next.load(Ordering::SeqCst) {
            self.wake();
        }
    }

    /// Wakes the sleeper.
    pub(super) fn wake(&self) {
        // Taken, so that the sleeper is either asleep and hears it, or has yet to look.
        let _guard = self.lock.lock();
        self.changed.notify_one();
    }

    /// Sleeps until the earliest due time, or until woken. `earliest` is asked for after `next` was
    /// set to `NEVER`: whoever stores a time later sees that and wakes us.
    pub(super) fn sleep(&self, earliest: impl FnOnce() -> Option<u64>, instant: impl FnOnce(u64) -> Instant) {
        let mut guard = self.lock.lock();
        self.next.store(NEVER, Ordering::SeqCst);
        match earliest().filter(|&due| due != NEVER) {
            None => self.changed.wait(&mut guard),
            Some(due) => {
                self.next.store(due, Ordering::SeqCst);
                self.changed.wait_until(&mut guard, instant(due));
            }
        }
    }
}
