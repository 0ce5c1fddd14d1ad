//! Routes that this process itself changes, so that the kernel's announcement of it is told from somebody else's doing.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::routes::Key;

/// What the kernel is to do with a route.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Asked {
    Set,
    Remove,
}

/// Changes that were asked of the kernel and not announced yet. Clones share them.
#[derive(Debug, Clone, Default)]
pub struct OwnChanges(Arc<Mutex<BTreeSet<(Asked, Key)>>>);

impl OwnChanges {
    /// A change is about to be asked for.
    pub(super) fn expect(&self, asked: Asked, key: Key) {
        self.lock().insert((asked, key));
    }

    /// It was announced, or refused. Returns whether it was expected.
    pub(super) fn forget(&self, asked: Asked, key: Key) -> bool {
        self.lock().remove(&(asked, key))
    }

    /// Announcements were lost.
    pub(super) fn clear(&self) {
        self.lock().clear();
    }

    fn lock(&self) -> MutexGuard<'_, BTreeSet<(Asked, Key)>> {
        // Nothing panics while it holds the lock.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
