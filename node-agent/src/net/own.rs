//! What this process itself changes, so that the kernel's announcement of it is told from somebody else's doing.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::routes::Key;

/// What the kernel is to do with a thing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Asked {
    Set,
    Remove,
}

/// What is changed.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Thing {
    Route(Key),
    /// An element of a set of our table: where a range starts, or where it has ended.
    Element {
        set: String,
        key: Vec<u8>,
        ends: bool,
    },
}

/// Changes that were asked of the kernel and not announced yet. Clones share them.
#[derive(Debug, Clone, Default)]
pub struct OwnChanges(Arc<Mutex<BTreeSet<(Asked, Thing)>>>);

impl OwnChanges {
    /// A change is about to be asked for.
    pub(super) fn expect(&self, asked: Asked, thing: Thing) {
        self.lock().insert((asked, thing));
    }

    /// It was announced, or refused. Returns whether it was expected.
    pub(super) fn forget(&self, asked: Asked, thing: Thing) -> bool {
        self.lock().remove(&(asked, thing))
    }

    /// Announcements were lost.
    pub(super) fn clear(&self) {
        self.lock().clear();
    }

    fn lock(&self) -> MutexGuard<'_, BTreeSet<(Asked, Thing)>> {
        // Nothing panics while it holds the lock.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
