//! What carried the last channel to each relay, also that of an agent before this one: where UDP did not get to the relay then, nobody needs to
//! wait for it now.

use super::Transport;
use crate::cache::{Cache, Name};
use std::{
    collections::BTreeSet,
    sync::{Mutex, PoisonError},
};

/// Relays that are remembered at most: far more than a mesh has.
const MAX_REMEMBERED: usize = 64;

/// The names of the relays whose last channel went over TLS. Their keys change with their pods.
pub struct LastOverTls {
    cache: Cache,
    relays: Mutex<BTreeSet<String>>,
}

impl LastOverTls {
    /// As it was left on disk.
    pub fn load(cache: Cache) -> Self {
        let relays: BTreeSet<String> = cache.load(&Self::name()).unwrap_or_default();
        Self { relays: Mutex::new(relays.into_iter().take(MAX_REMEMBERED).collect()), cache }
    }

    fn name() -> Name {
        Name::single("over-tls")
    }

    /// Whether the last channel to this relay went over TLS.
    pub fn was_over_tls(&self, relay: &str) -> bool {
        self.relays.lock().unwrap_or_else(PoisonError::into_inner).contains(relay)
    }

    /// A channel to this relay has opened.
    pub fn opened(&self, relay: &str, transport: Transport) {
        let mut relays = self.relays.lock().unwrap_or_else(PoisonError::into_inner);
        let changed = match transport {
            Transport::Quic => relays.remove(relay),
            Transport::Tls => relays.insert(relay.to_owned()),
        };
        if relays.len() > MAX_REMEMBERED {
            // Any other: the worst that comes of it is a wait.
            relays.pop_first();
        }
        if changed {
            self.cache.store(&Self::name(), &*relays);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::TempDir;

    #[test]
    fn what_the_last_channel_went_over_is_known_to_the_next_process() {
        let dir = TempDir::new("last");
        let open = || LastOverTls::load(Cache::open(dir.path()).unwrap());
        let first = open();
        first.opened("one", Transport::Tls);
        first.opened("other", Transport::Tls);
        first.opened("other", Transport::Quic);
        first.cache.flush();
        let next = open();
        assert_eq!(["one", "other", "third"].map(|relay| next.was_over_tls(relay)), [true, false, false]);
    }

    #[test]
    fn no_more_are_remembered_than_there_is_room_for() {
        let dir = TempDir::new("last-many");
        let last = LastOverTls::load(Cache::open(dir.path()).unwrap());
        for number in 0..MAX_REMEMBERED + 10 {
            last.opened(&format!("r{number:03}"), Transport::Tls);
        }
        assert_eq!(last.relays.lock().unwrap().len(), MAX_REMEMBERED);
    }
}
