//! What differs between two plans of a node.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use ipnet::IpNet;
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

/// What a device must be told of a change, in this order, whatever it is told at once: a prefix that moves from one peer to
/// another is at no moment without one of the two.
///
/// WireGuard takes a prefix from its peer when it gives it to another, so the one that loses a prefix does nothing for that.
/// It must not give the prefix up before: each peer keeps what peers further down will take from it. Two that swap theirs
/// thus do so in three steps (one has both, the other takes its own), and a ring of any length does too.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PeerChanges {
    /// Peers to remove whose prefixes nobody gets.
    pub remove: Vec<PublicKey>,
    /// Peers to add or change, those that only gain first.
    pub upsert: Vec<PeerChange>,
    /// Peers to remove whose prefixes others have by then.
    pub remove_last: Vec<PublicKey>,
}

/// What one peer is to be told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PeerChange {
    /// Which peer.
    pub key: PublicKey,
    /// All allowed IPs to give it, sorted.
    pub allowed_ips: Vec<IpNet>,
    /// How many of those it is not planned to have: peers further down take them.
    pub lent: usize,
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

    /// How to make it on a device. Peers whose allowed IPs stay as they are need not be told anything.
    pub fn order(&self) -> PeerChanges {
        let mut order = PeerChanges::default();
        let gains = |(before, after): &BeforeAfter| -> Vec<IpNet> {
            let had = |net: &&IpNet| before.as_ref().is_some_and(|before| before.allowed_ips.contains(net));
            after.iter().flat_map(|after| &after.allowed_ips).filter(|net| !had(net)).copied().collect()
        };
        let taken: BTreeSet<IpNet> = self.peers.values().flat_map(gains).collect();
        let (mut growing, mut shrinking) = (Vec::new(), Vec::new());
        for (key, peer) in &self.peers {
            match peer {
                (Some(before), None) if before.allowed_ips.iter().any(|net| taken.contains(net)) => {
                    order.remove_last.push(*key);
                }
                (_, None) => order.remove.push(*key),
                (None, Some(after)) => growing.push((key, peer, after)),
                (Some(before), Some(after)) if before.allowed_ips == after.allowed_ips => {}
                (Some(before), Some(after)) if before.allowed_ips.iter().all(|net| after.allowed_ips.contains(net)) => {
                    growing.push((key, peer, after));
                }
                (Some(_), Some(after)) => shrinking.push((key, peer, after)),
            }
        }
        // From the last one up, so that what peers further down take is known.
        let mut taken_later = BTreeSet::new();
        for (key, peer, after) in growing.into_iter().chain(shrinking).rev() {
            let lends = |net: &&IpNet| !after.allowed_ips.contains(net) && taken_later.contains(*net);
            let lent: Vec<IpNet> =
                peer.0.iter().flat_map(|before| &before.allowed_ips).filter(lends).copied().collect();
            let mut allowed_ips = after.allowed_ips.clone();
            allowed_ips.extend(&lent);
            allowed_ips.sort_unstable();
            taken_later.extend(gains(peer));
            order.upsert.push(PeerChange { key: *key, allowed_ips, lent: lent.len() });
        }
        order.upsert.reverse();
        order
    }
}

fn put(peers: &mut PeerPlans, key: &PublicKey, peer: Option<&Arc<PeerPlan>>) {
    match peer {
        Some(peer) => _ = peers.insert(*key, peer.clone()),
        None => _ = peers.remove(key),
    }
}
