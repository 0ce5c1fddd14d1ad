//! All peers: by key, by receiver index, by address.
//!
//! Lock order: a thread that holds the lock of a peer may take `indexes`, never `table`; one that
//! holds `table` takes no lock of a peer. So the control calls can't deadlock with the packets.

use std::{
    collections::{BTreeMap, HashMap},
    hash::{Hash, Hasher},
    net::IpAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use gotatun::{
    noise::{index_table::IndexTable, rate_limiter::RateLimiter},
    tun::MtuWatcher,
    x25519,
};
use parking_lot::RwLock;
use wire::key::{PrivateKey, PublicKey};

use super::{
    lively::Lively,
    peer::{Common, Peer, PeerState},
};
use crate::{
    Delta, DeviceError, MAX_PEERS, PeerCounters, PeerStatus, PeerUpdate, Refusal, RefusalReason,
    allowed_ips::AllowedIps,
    check::{keepalive_secs, refuse},
};

/// Handshakes per second and source address that are answered without proof of the address.
pub(super) const HANDSHAKES_PER_SOURCE: u64 = 100;

/// A peer that is compared by identity, so that one which was removed and added again is another.
#[derive(Clone)]
struct Owner(Arc<Peer>);

impl PartialEq for Owner {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }
}

impl Eq for Owner {}

impl Hash for Owner {
    fn hash<H: Hasher>(&self, state: &mut H) {
        Arc::as_ptr(&self.0).hash(state);
    }
}

struct Table {
    by_key: BTreeMap<PublicKey, Arc<Peer>>,
    allowed_ips: AllowedIps<Owner>,
}

pub(super) struct Peers {
    pub(super) public: x25519::PublicKey,
    own: PublicKey,
    /// An entry of `by_index` that no session of theirs holds is stale.
    cores: Arc<Common>,
    /// Those with news for whoever reads counters.
    pub(super) lively: Lively,
    by_index: RwLock<HashMap<u32, Arc<Peer>>>,
    table: RwLock<Table>,
}

impl Peers {
    pub(super) fn new(private_key: &PrivateKey, mtu: u16) -> Self {
        let private = x25519::StaticSecret::from(*private_key.expose_bytes());
        let public = x25519::PublicKey::from(&private);
        Self {
            cores: Arc::new(Common {
                private,
                limiter: Arc::new(RateLimiter::new(&public, HANDSHAKES_PER_SOURCE)),
                in_use: IndexTable::from_os_rng(),
                mtu: MtuWatcher::new(mtu),
            }),
            own: private_key.public_key(),
            public,
            lively: Lively::default(),
            by_index: RwLock::default(),
            table: RwLock::new(Table { by_key: BTreeMap::new(), allowed_ips: AllowedIps::new() }),
        }
    }

    pub(super) fn limiter(&self) -> &RateLimiter {
        &self.cores.limiter
    }

    pub(super) fn private(&self) -> &x25519::StaticSecret {
        &self.cores.private
    }

    pub(super) fn by_key(&self, key: &PublicKey) -> Option<Arc<Peer>> {
        self.table.read().by_key.get(key).cloned()
    }

    pub(super) fn by_index(&self, index: u32) -> Option<Arc<Peer>> {
        self.by_index.read().get(&index).cloned()
    }

    /// The peer that owns the address.
    pub(super) fn by_address(&self, address: IpAddr) -> Option<Arc<Peer>> {
        let table = self.table.read();
        table.allowed_ips.find(address).map(|owner| owner.0.clone())
    }

    pub(super) fn add_indexes(&self, peer: &Arc<Peer>, indexes: &mut Vec<u32>) {
        if indexes.is_empty() {
            return;
        }
        let mut by_index = self.by_index.write();
        by_index.extend(indexes.drain(..).map(|index| (index, peer.clone())));
    }

    /// Forgets indexes of sessions that are gone.
    pub(super) fn sweep_indexes(&self) {
        let mut by_index = self.by_index.write();
        by_index.retain(|index, _| self.cores.in_use.in_use(*index));
        by_index.shrink_to(64);
    }

    /// Applies a delta; `changed` gets every peer that was added or changed, after its lock is free.
    pub(super) fn apply(&self, delta: &Delta, mut changed: impl FnMut(&Arc<Peer>)) -> Result<(), DeviceError> {
        self.remove(&delta.remove);
        let mut refused = Vec::new();
        for update in &delta.upsert {
            match self.upsert(update) {
                Ok(peer) => changed(&peer),
                Err(reason) => refused.push(Refusal { public_key: update.public_key, reason }),
            }
        }
        if refused.is_empty() { Ok(()) } else { Err(DeviceError::Refused(refused)) }
    }

    fn remove(&self, keys: &[PublicKey]) {
        let mut removed = Vec::new();
        {
            let mut table = self.table.write();
            for key in keys {
                if let Some(peer) = table.by_key.remove(key) {
                    table.allowed_ips.remove_owner(&Owner(peer.clone()));
                    removed.push(peer);
                }
            }
        }
        if !removed.is_empty() {
            for peer in &removed {
                peer.lock().removed = true;
            }
            self.lively.forget_removed(&removed);
            let gone = |peer: &Arc<Peer>| removed.iter().any(|r| Arc::ptr_eq(r, peer));
            self.by_index.write().retain(|_, peer| !gone(peer));
        }
    }

    fn upsert(&self, update: &PeerUpdate) -> Result<Arc<Peer>, RefusalReason> {
        if let Some(reason) = refuse(update, &self.own) {
            return Err(reason);
        }
        let peer = self.find_or_add(&update.public_key)?;
        {
            let mut state = peer.lock();
            if let Some(endpoint) = update.endpoint {
                state.set_endpoint(endpoint);
                self.lively.note(&peer, Instant::now());
            }
            if let Some(keepalive) = update.keepalive {
                state.set_keepalive(keepalive_secs(keepalive));
            }
        }
        if let Some(nets) = &update.allowed_ips {
            self.table.write().allowed_ips.set(&Owner(peer.clone()), nets);
        }
        Ok(peer)
    }

    fn find_or_add(&self, key: &PublicKey) -> Result<Arc<Peer>, RefusalReason> {
        if let Some(peer) = self.by_key(key) {
            return Ok(peer);
        }
        let added = Peer::new(*key, PeerState::new(self.cores.clone(), *key));
        let peer = {
            let mut table = self.table.write();
            if table.by_key.len() >= MAX_PEERS {
                return Err(RefusalReason::TooManyPeers);
            }
            table.by_key.entry(*key).or_insert(added).clone()
        };
        // What it starts from is news too.
        self.lively.note(&peer, Instant::now());
        Ok(peer)
    }

    pub(super) fn statuses(&self, now: Instant) -> Vec<PeerStatus> {
        let (peers, nets): (Vec<_>, Vec<_>) = {
            let table = self.table.read();
            let with_nets = |peer: &Arc<Peer>| (peer.clone(), table.allowed_ips.of(&Owner(peer.clone())).to_vec());
            table.by_key.values().map(with_nets).unzip()
        };
        let status = |(peer, allowed_ips): (&Arc<Peer>, Vec<_>)| {
            let state = peer.lock();
            let PeerCounters { public_key, endpoint, rx_bytes, tx_bytes, last_handshake } = peer.counters(&state, now);
            let keepalive = state.keepalive().map(|s| Duration::from_secs(s.into()));
            PeerStatus { public_key, endpoint, allowed_ips, keepalive, rx_bytes, tx_bytes, last_handshake }
        };
        peers.iter().zip(nets).map(status).collect()
    }

    /// Counters of the peers that were noted within [`crate::LIVELY`], and of no other.
    pub(super) fn counters(&self, now: Instant) -> Vec<PeerCounters> {
        self.lively.read(now).iter().map(|peer| peer.counters(&peer.lock(), now)).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::{super::peer::Outbox, *};

    fn key(n: u8) -> PublicKey {
        PrivateKey::from_bytes([n; 32]).public_key()
    }

    fn told(peers: &Peers, now: Instant) -> Vec<PublicKey> {
        peers.counters(now).iter().map(|counters| counters.public_key).collect()
    }

    #[test]
    fn the_counters_tell_of_those_with_news_and_of_no_other() {
        let peers = Peers::new(&PrivateKey::from_bytes([99; 32]), 1420);
        let upsert: Vec<_> = (1..4).map(|n| PeerUpdate::new(key(n))).collect();
        peers.apply(&Delta { upsert, remove: vec![] }, |_| {}).unwrap();
        let added = Instant::now();
        assert_eq!(told(&peers, added).len(), 3);
        let later = added + crate::LIVELY;
        assert_eq!(told(&peers, later), []);
        // Twice, and it is told of once, for as long as anything happens and a while after.
        let peer = peers.by_key(&key(2)).unwrap();
        peers.lively.note(&peer, later);
        peers.lively.note(&peer, later + crate::LIVELY / 2);
        assert_eq!(told(&peers, later + crate::LIVELY), [key(2)]);
        peers.apply(&Delta { upsert: vec![], remove: vec![key(2)] }, |_| {}).unwrap();
        assert_eq!(told(&peers, later + crate::LIVELY), []);
        assert_eq!(peers.statuses(later).len(), 2);
    }

    #[test]
    fn a_peer_that_never_talks_is_small() {
        let peers = Peers::new(&PrivateKey::from_bytes([99; 32]), 1420);
        let told = PeerUpdate {
            endpoint: Some("192.0.2.1:1".parse().unwrap()),
            allowed_ips: Some(vec!["10.0.0.1/32".parse().unwrap()]),
            keepalive: Some(None),
            ..PeerUpdate::new(key(1))
        };
        peers.apply(&Delta { upsert: vec![told], remove: vec![] }, |_| {}).unwrap();
        let (peer, now, mut out) = (peers.by_key(&key(1)).unwrap(), Instant::now(), Outbox::default());
        peer.lock().touch(now, &mut out);
        assert!(!peer.lock().has_core() && out.packets.is_empty());
        assert!(size_of::<Peer>() <= 256, "{}", size_of::<Peer>());
        peer.lock().initiate(now, &mut out);
        assert!(peer.lock().has_core() && out.packets.len() == 1);
    }
}
