//! Waiting for a file descriptor or the end, whichever comes first.
#![allow(unsafe_code)]

use std::{
    fs::File,
    io::{self, Write},
    os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd},
    sync::atomic::{AtomicBool, Ordering},
};

/// Tells the threads of a device to end, and wakes those that wait for packets.
pub(super) struct Stop {
    flag: AtomicBool,
    event: File,
}

impl Stop {
    pub(super) fn new() -> io::Result<Self> {
        // SAFETY: no pointers are passed; the result is checked before it is owned.
        let raw = unsafe { libc::eventfd(0, libc::EFD_CLOEXEC | libc::EFD_NONBLOCK) };
        if raw < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: `raw` is a descriptor that was opened above and belongs to nobody else.
        let event = unsafe { OwnedFd::from_raw_fd(raw) };
        Ok(Self { flag: AtomicBool::new(false), event: event.into() })
    }

    pub(super) fn set(&self) {
        self.flag.store(true, Ordering::SeqCst);
        // Fails only when the counter is at its limit, and then everybody is awake already.
        let _ = (&self.event).write(&1u64.to_ne_bytes());
    }

    pub(super) fn is_set(&self) -> bool {
        self.flag.load(Ordering::SeqCst)
    }

    /// Blocks until `fd` is readable (or broken) or the stop is set.
    pub(super) fn wait_readable(&self, fd: RawFd) {
        let entry = |fd| libc::pollfd { fd, events: libc::POLLIN, revents: 0 };
        let mut entries = [entry(fd), entry(self.event.as_raw_fd())];
        // SAFETY: `entries` is a valid array of the length that is passed. An interrupted call is
        // like a spurious wake-up: the caller reads and finds nothing.
        unsafe { libc::poll(entries.as_mut_ptr(), 2, -1) };
    }
}
