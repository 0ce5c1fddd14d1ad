//! What the process owes to the secrets it holds: no core file, no debugger, one agent a node.
#![allow(unsafe_code)]

use std::{
    fs::{File, OpenOptions, TryLockError},
    io,
    os::unix::fs::OpenOptionsExt,
    path::Path,
};

/// Makes the process undumpable. Must run before the private key is read: memory that was dumped can't be called back.
pub fn forbid_core_dumps() -> io::Result<()> {
    let none = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: both calls take plain values, and `none` outlives the call that reads it.
    let failed = unsafe {
        libc::setrlimit(libc::RLIMIT_CORE, &none) != 0 || libc::prctl(libc::PR_SET_DUMPABLE, 0, 0, 0, 0) != 0
    };
    if failed { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Held as long as this agent is the only one; the kernel lets go of it when the process ends, however it ends.
#[derive(Debug)]
pub struct Lock {
    _file: File,
}

/// Why the lock was not taken.
#[derive(Debug, thiserror::Error)]
pub enum LockError {
    /// Somebody has it.
    #[error(
        "expected to be the only agent on this node, found {0} locked by another; stop that one, or give this one its own --state-dir and --device"
    )]
    Held(String),
    /// The file can't be used.
    #[error("expected to lock {path}: {source}; the state folder must be a writable local disk")]
    Io {
        /// The file.
        path: String,
        /// What the system said.
        source: io::Error,
    },
}

/// Takes the lock of this node, or says who has it.
pub fn lock(path: &Path) -> Result<Lock, LockError> {
    let shown = || path.display().to_string();
    let io_error = |source| LockError::Io { path: shown(), source };
    let file = OpenOptions::new().create(true).truncate(false).write(true).mode(0o600).open(path).map_err(io_error)?;
    match file.try_lock() {
        Ok(()) => Ok(Lock { _file: file }),
        Err(TryLockError::WouldBlock) => Err(LockError::Held(shown())),
        Err(TryLockError::Error(e)) => Err(io_error(e)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_agent_is_refused_until_the_first_is_gone() {
        let dir = crate::testing::TempDir::new("lock");
        let path = dir.path().join("lock");
        let first = lock(&path).unwrap();
        assert!(matches!(lock(&path), Err(LockError::Held(_))));
        drop(first);
        lock(&path).unwrap();
    }

    #[test]
    fn the_process_cannot_be_dumped() {
        forbid_core_dumps().unwrap();
        // SAFETY: PR_GET_DUMPABLE takes no pointer.
        assert_eq!(unsafe { libc::prctl(libc::PR_GET_DUMPABLE, 0, 0, 0, 0) }, 0);
    }
}
