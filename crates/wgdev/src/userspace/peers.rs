//! All peers: by key, by receiver index, by address.
//!
//! Lock order: a thread that holds the lock of a peer may take `indexes`, never `table`; one that
//! holds `table` takes no lock of a peer. So the control calls can't deadlock with the packets.

use std::{
    collections::{BTreeMap, HashMap},
    net::IpAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use gotatun::{
    noise::{Tunn, index_table::IndexTable, rate_limiter::RateLimiter},
    x25519,
};
use parking_lot::RwLock;
use wire::key::{PrivateKey, PublicKey};

use super::peer::{Peer, PeerState};
use crate::{
    Delta, DeviceError, MAX_PEERS, PeerStatus, PeerUpdate, Refusal, RefusalReason,
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

struct Table {
    by_key: BTreeMap<PublicKey, Arc<Peer>>,
    allowed_ips: AllowedIps<Owner>,
}

pub(super) struct Peers {
    pub(super) private: x25519::StaticSecret,
    pub(super) public: x25519::PublicKey,
    own: PublicKey,
    mtu: u16,
    limiter: Arc<RateLimiter>,
    /// Which receiver indexes sessions hold; an entry of `by_index` without one is stale.
    in_use: IndexTable,
    by_index: RwLock<HashMap<u32, Arc<Peer>>>,
    table: RwLock<Table>,
}

impl Peers {
    pub(super) fn new(private_key: &PrivateKey, mtu: u16) -> Self {
        let private = x25519::StaticSecret::from(*private_key.expose_bytes());
        let public = x25519::PublicKey::from(&private);
        Self {
            limiter: Arc::new(RateLimiter::new(&public, HANDSHAKES_PER_SOURCE)),
            own: private_key.public_key(),
            private,
            public,
            mtu,
            in_use: IndexTable::from_os_rng(),
            by_index: RwLock::default(),
            table: RwLock::new(Table { by_key: BTreeMap::new(), allowed_ips: AllowedIps::new() }),
        }
    }

    pub(super) fn limiter(&self) -> &RateLimiter {
        &self.limiter
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

    /// All peers.
    pub(super) fn all(&self) -> Vec<Arc<Peer>> {
        self.table.read().by_key.values().cloned().collect()
    }

    /// The earliest time at which one of them has to be polled.
    pub(super) fn earliest_due(&self) -> Option<u64> {
        self.table.read().by_key.values().map(|p| p.due()).min()
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
        by_index.retain(|index, _| self.in_use.in_use(*index));
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
            }
            if let Some(keepalive) = update.keepalive {
                state.set_keepalive(keepalive_secs(keepalive));
            }
        }
        if let Some(nets) = &update.allowed_ips {
            let owner = Owner(peer.clone());
            let mut table = self.table.write();
            table.allowed_ips.remove_owner(&owner);
            for net in nets {
                table.allowed_ips.insert(*net, owner.clone());
            }
        }
        Ok(peer)
    }

    fn find_or_add(&self, key: &PublicKey) -> Result<Arc<Peer>, RefusalReason> {
        if let Some(peer) = self.by_key(key) {
            return Ok(peer);
        }
        // Before the lock: it multiplies points, and packets wait for the table.
        let added = Peer::new(*key, PeerState::new(self.new_tunn(key), self.mtu));
        let mut table = self.table.write();
        if table.by_key.len() >= MAX_PEERS {
            return Err(RefusalReason::TooManyPeers);
        }
        Ok(table.by_key.entry(*key).or_insert(added).clone())
    }

    fn new_tunn(&self, peer: &PublicKey) -> Tunn {
        Tunn::new(
            self.private.clone(),
            x25519::PublicKey::from(*peer.as_bytes()),
            None,
            None,
            self.in_use.clone(),
            self.limiter.clone(),
        )
    }

    pub(super) fn statuses(&self, now: Instant) -> Vec<PeerStatus> {
        let (peers, mut nets) = {
            let table = self.table.read();
            let peers: Vec<_> = table.by_key.values().cloned().collect();
            let mut nets: HashMap<PublicKey, Vec<_>> = HashMap::with_capacity(peers.len());
            for (net, owner) in table.allowed_ips.iter() {
                nets.entry(owner.0.key).or_default().push(net);
            }
            (peers, nets)
        };
        let status = |peer: &Arc<Peer>| {
            let mut allowed_ips = nets.remove(&peer.key).unwrap_or_default();
            allowed_ips.sort();
            let state = peer.lock();
            PeerStatus {
                public_key: peer.key,
                endpoint: state.endpoint,
                allowed_ips,
                keepalive: state.keepalive().map(|s| Duration::from_secs(s.into())),
                rx_bytes: state.rx_bytes,
                tx_bytes: state.tx_bytes,
                last_handshake: state.last_handshake.map(|at| now - at),
            }
        };
        peers.iter().map(status).collect()
    }
}
