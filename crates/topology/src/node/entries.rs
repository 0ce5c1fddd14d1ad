//! Entries by name, in places that hold nothing else: a map would keep each name a second time, and a mesh has thousands.

use std::borrow::Borrow;
use std::cmp::Ordering;
use std::collections::BTreeSet;
use std::sync::Arc;

use crate::peer::Entry;

/// Entries, no two of one name, in the order of their names.
#[derive(Clone, Debug, Default)]
pub struct Entries(BTreeSet<ByName>);

/// An entry that is compared by its name.
#[derive(Clone, Debug)]
struct ByName(Arc<Entry>);

impl Entries {
    /// The entry of this name.
    pub fn get(&self, name: &str) -> Option<&Arc<Entry>> {
        self.0.get(name).map(|ByName(entry)| entry)
    }

    /// Whether there is one of this name.
    pub fn contains(&self, name: &str) -> bool {
        self.0.contains(name)
    }

    /// All of them.
    pub fn iter(&self) -> impl DoubleEndedIterator<Item = &Arc<Entry>> {
        self.0.iter().map(|ByName(entry)| entry)
    }

    /// Their names.
    pub fn names(&self) -> impl Iterator<Item = &String> {
        self.iter().map(|entry| &entry.name)
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Puts an entry in the place of the one of its name, and answers that.
    pub(super) fn insert(&mut self, entry: Arc<Entry>) -> Option<Arc<Entry>> {
        self.0.replace(ByName(entry)).map(|ByName(entry)| entry)
    }

    pub(super) fn remove(&mut self, name: &str) -> Option<Arc<Entry>> {
        self.0.take(name).map(|ByName(entry)| entry)
    }
}

/// Of two with one name the later one counts.
impl FromIterator<Arc<Entry>> for Entries {
    fn from_iter<I: IntoIterator<Item = Arc<Entry>>>(entries: I) -> Self {
        let mut all = Self::default();
        entries.into_iter().for_each(|entry| _ = all.insert(entry));
        all
    }
}

impl Borrow<str> for ByName {
    fn borrow(&self) -> &str {
        &self.0.name
    }
}

impl PartialEq for ByName {
    fn eq(&self, other: &Self) -> bool {
        self.0.name == other.0.name
    }
}

impl Eq for ByName {}

impl PartialOrd for ByName {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for ByName {
    fn cmp(&self, other: &Self) -> Ordering {
        self.0.name.cmp(&other.0.name)
    }
}
