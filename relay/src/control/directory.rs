//! The members as the API last had them. It outlives the front end, and the API's absence.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use tokio::sync::Notify;

use crate::server::control::Member;

/// Changes that wait for the front end. Beyond that it gets the whole list again.
const MAX_CHANGES: usize = 1024;

/// What the front end is to know.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Update {
    /// Everybody.
    All(BTreeMap<String, Member>),
    /// What has changed since.
    Changes(Vec<(String, Option<Member>)>),
}

/// Names of objects and who stands behind them: written by a watch, read by one front end.
#[derive(Debug, Default)]
pub struct Directory {
    state: Mutex<State>,
    changed: Notify,
}

#[derive(Debug, Default)]
struct State {
    members: BTreeMap<String, Member>,
    changes: Vec<(String, Option<Member>)>,
    /// Whether there was a list, ever.
    is_listed: bool,
    /// Whether the front end needs the whole of it.
    is_new: bool,
}

impl Directory {
    /// Takes a whole list.
    pub fn replace(&self, members: BTreeMap<String, Member>) {
        let mut state = self.lock();
        state.members = members;
        state.changes.clear();
        (state.is_listed, state.is_new) = (true, true);
        drop(state);
        self.changed.notify_one();
    }

    /// Takes what one object says now; nothing when it is gone, or no member any more.
    pub fn set(&self, name: String, member: Option<Member>) {
        let mut state = self.lock();
        let before = match member {
            Some(member) => state.members.insert(name.clone(), member),
            None => state.members.remove(&name),
        };
        if before == member {
            return;
        }
        if state.changes.len() >= MAX_CHANGES {
            state.changes.clear();
            state.is_new = true;
        }
        if !state.is_new {
            state.changes.push((name, member));
        }
        drop(state);
        self.changed.notify_one();
    }

    /// What an object said last.
    #[must_use]
    pub fn get(&self, name: &str) -> Option<Member> {
        self.lock().members.get(name).copied()
    }

    /// Everybody, for a front end that begins. `None` before the first list.
    #[must_use]
    pub fn begin(&self) -> Option<Update> {
        let mut state = self.lock();
        state.is_new = true;
        state.take()
    }

    /// The next update, once there is one.
    pub async fn next(&self) -> Update {
        loop {
            if let Some(update) = self.lock().take() {
                return update;
            }
            self.changed.notified().await;
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn take(&mut self) -> Option<Update> {
        if !self.is_listed {
            return None;
        }
        if std::mem::take(&mut self.is_new) {
            self.changes.clear();
            return Some(Update::All(self.members.clone()));
        }
        (!self.changes.is_empty()).then(|| Update::Changes(std::mem::take(&mut self.changes)))
    }
}

#[cfg(test)]
mod tests {
    use wire::PublicKey;

    use super::*;

    fn member(number: u8) -> Member {
        Member { node: PublicKey::from_bytes([number; 32]), identity: None }
    }

    #[tokio::test]
    async fn a_front_end_gets_the_list_first_and_then_what_changes() {
        let directory = Directory::default();
        assert_eq!(directory.begin(), None, "nobody has said who there is");
        directory.set("early".into(), Some(member(9)));
        assert_eq!(directory.begin(), None);
        let all = BTreeMap::from([("a".to_owned(), member(1))]);
        directory.replace(all.clone());
        assert_eq!(directory.next().await, Update::All(all.clone()));
        directory.set("a".into(), Some(member(1)));
        directory.set("b".into(), Some(member(2)));
        directory.set("a".into(), None);
        let changes = vec![("b".to_owned(), Some(member(2))), ("a".to_owned(), None)];
        assert_eq!(directory.next().await, Update::Changes(changes), "and nothing that is the same");
        directory.set("c".into(), Some(member(3)));
        let rest = BTreeMap::from([("b".to_owned(), member(2)), ("c".to_owned(), member(3))]);
        assert_eq!(directory.begin(), Some(Update::All(rest)), "one that starts anew gets all of it");
    }

    #[tokio::test]
    async fn changes_that_nobody_takes_become_a_list() {
        let directory = Directory::default();
        directory.replace(BTreeMap::new());
        directory.next().await;
        for number in 0..MAX_CHANGES * 3 {
            directory.set(number.to_string(), Some(member(1)));
            assert!(directory.lock().changes.len() <= MAX_CHANGES);
        }
        assert!(matches!(directory.next().await, Update::All(all) if all.len() == MAX_CHANGES * 3));
    }
}
