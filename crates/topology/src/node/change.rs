//! What differs between two plans of a node.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use wire::key::PublicKey;

use crate::node::PeerPlan;

/// The peers of a plan.
pub type PeerPlans = BTreeMap<PublicKey, Arc<PeerPlan>>;

/// What a peer was planned as and is now; `None` where it is no peer.
pub type BeforeAfter = (Option<Arc<PeerPlan>>, Option<Arc<PeerPlan>>);

/// The peers that differ between two plans, each with its plan before and after.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PlanChange {
    /// By key; the two are never equal.
    pub peers: BTreeMap<PublicKey, BeforeAfter>,
}

/// The same in the order in which it is applied. Removals and shrinking come first: a prefix that moves from one peer to
/// another never has two owners.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PeerChanges {
    /// Peers to remove.
    pub remove: Vec<PublicKey>,
    /// Changed peers that lose an allowed IP.
    pub shrink: Vec<PublicKey>,
    /// All other new and changed peers.
    pub upsert: Vec<PublicKey>,
}

impl PlanChange {
    /// What to change to come from `before` to `after`.
    pub fn between(before: &PeerPlans, after: &PeerPlans) -> Self {
        let keys: BTreeSet<&PublicKey> = before.keys().chain(after.keys()).collect();
        let both = |key: &PublicKey| (before.get(key).cloned(), after.get(key).cloned());
        let differing = keys.into_iter().map(|key| (*key, both(key))).filter(|(_, (before, after))| before != after);
        Self { peers: differing.collect() }
    }

    /// Whether nothing differs.
    pub fn is_empty(&self) -> bool {
        self.peers.is_empty()
    }

    /// Makes this change to peers that are as before.
    pub fn apply(&self, peers: &mut PeerPlans) {
        for (key, (_, after)) in &self.peers {
            put(peers, key, after.as_ref());
        }
    }

    /// Takes it back.
    pub(super) fn revert(&self, peers: &mut PeerPlans) {
        for (key, (before, _)) in &self.peers {
            put(peers, key, before.as_ref());
        }
    }

    /// In which order to make it on a device.
    pub fn order(&self) -> PeerChanges {
        let mut order = PeerChanges::default();
        for (key, (before, after)) in &self.peers {
            let kept = |net| after.as_ref().is_some_and(|after| after.allowed_ips.contains(net));
            match (before, after) {
                (_, None) => order.remove.push(*key),
                (Some(before), Some(_)) if !before.allowed_ips.iter().all(kept) => order.shrink.push(*key),
                _ => order.upsert.push(*key),
            }
        }
        order
    }
}

fn put(peers: &mut PeerPlans, key: &PublicKey, peer: Option<&Arc<PeerPlan>>) {
    match peer {
        Some(peer) => _ = peers.insert(*key, peer.clone()),
        None => _ = peers.remove(key),
    }
}
