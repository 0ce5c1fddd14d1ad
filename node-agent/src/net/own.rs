//! Routes that this process itself removes, so that the kernel's announcement of it is told from somebody else's doing.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::routes::Key;

/// Removals that were asked of the kernel and not announced yet. Clones share them.
#[derive(Debug, Clone, Default)]
pub struct OwnRemovals(Arc<Mutex<BTreeSet<Key>>>);

impl OwnRemovals {
    /// A removal is about to be asked for.
    pub(super) fn expect(&self, key: Key) {
        self.lock().insert(key);
    }

    /// It was announced, or refused. Returns whether it was expected.
    pub(super) fn forget(&self, key: &Key) -> bool {
        self.lock().remove(key)
    }

    /// Announcements were lost.
    pub(super) fn clear(&self) {
        self.lock().clear();
    }

    fn lock(&self) -> MutexGuard<'_, BTreeSet<Key>> {
        // Nothing panics while it holds the lock.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
