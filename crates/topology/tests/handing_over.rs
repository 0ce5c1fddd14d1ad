//! In whatever order peers get, lose and exchange prefixes: told one after the other, a device never leaves a prefix without
//! a peer that has one before and after.
#![allow(missing_docs, clippy::unwrap_used)]

mod world;

use std::collections::BTreeMap;
use std::sync::Arc;

use ipnet::IpNet;
use proptest::collection::vec;
use proptest::prelude::*;
use topology::PublicKey;
use topology::node::{PeerPlan, PeerPlans, PlanChange};
use world::key;

/// Peers of a plan at most, and prefixes that they share.
const PEERS: u16 = 9;
const NETS: usize = 12;

fn net(number: usize) -> IpNet {
    format!("10.{number}.0.0/16").parse().unwrap()
}

/// Who has which prefix, and who else is a peer.
fn plan() -> impl Strategy<Value = PeerPlans> {
    let owners = vec(proptest::option::of(0..PEERS), NETS);
    (owners, vec(any::<bool>(), usize::from(PEERS))).prop_map(|(owners, without)| {
        let mut nets: BTreeMap<PublicKey, Vec<IpNet>> = BTreeMap::new();
        for number in (0..PEERS).filter(|number| without[usize::from(*number)]) {
            nets.entry(key(number + 2)).or_default();
        }
        for (number, owner) in owners.iter().enumerate() {
            if let Some(owner) = owner {
                nets.entry(key(owner + 2)).or_default().push(net(number));
            }
        }
        nets.into_iter().map(|(key, nets)| (key, Arc::new(peer(nets)))).collect()
    })
}

fn peer(mut allowed_ips: Vec<IpNet>) -> PeerPlan {
    allowed_ips.sort();
    PeerPlan { allowed_ips, ..PeerPlan::default() }
}

/// A device: its peers, and whose each prefix is.
#[derive(Clone, Debug, Default, PartialEq)]
struct Device {
    peers: Vec<PublicKey>,
    owners: BTreeMap<IpNet, PublicKey>,
}

impl Device {
    fn of(plans: &PeerPlans) -> Self {
        let mut device = Self::default();
        plans.iter().for_each(|(key, plan)| device.set(*key, &plan.allowed_ips));
        device
    }

    /// As WireGuard does it: a prefix that somebody else has moves over.
    fn set(&mut self, key: PublicKey, nets: &[IpNet]) {
        self.remove(key);
        self.peers.push(key);
        self.peers.sort();
        self.owners.extend(nets.iter().map(|net| (*net, key)));
    }

    fn remove(&mut self, key: PublicKey) {
        self.peers.retain(|known| *known != key);
        self.owners.retain(|_, owner| *owner != key);
    }
}

/// The states of a device on its way, one for each thing that it is told.
fn way(before: &PeerPlans, after: &PeerPlans) -> Vec<Device> {
    let order = PlanChange::between(before, after).order();
    let mut device = Device::of(before);
    let mut way = Vec::new();
    for key in &order.remove {
        device.remove(*key);
        way.push(device.clone());
    }
    for change in &order.upsert {
        device.set(change.key, &change.allowed_ips);
        way.push(device.clone());
    }
    for key in &order.remove_last {
        device.remove(*key);
        way.push(device.clone());
    }
    way
}

fn check(before: &PeerPlans, after: &PeerPlans) {
    let (first, last) = (Device::of(before), Device::of(after));
    let way = way(before, after);
    assert_eq!(way.last().unwrap_or(&first), &last);
    for device in &way {
        for net in (0..NETS).map(net) {
            let [was, is, will] = [&first, device, &last].map(|device| device.owners.get(&net));
            assert!(is == was || is == will, "{net} is {is:?}'s, between {was:?} and {will:?}");
        }
    }
}

proptest! {
    #![proptest_config(world::config(2_000))]

    #[test]
    fn every_prefix_is_its_old_peers_or_its_new_ones(before in plan(), after in plan()) {
        check(&before, &after);
    }
}

#[test]
fn a_ring_of_peers_passes_its_prefixes_on() {
    let ring = |by: usize| -> PeerPlans {
        (0..NETS).map(|n| (key(n as u16 + 2), Arc::new(peer(vec![net((n + by) % NETS)])))).collect()
    };
    check(&ring(0), &ring(1));
    check(&ring(0), &ring(NETS / 2));
    // Nobody is told more than once.
    assert_eq!(PlanChange::between(&ring(0), &ring(1)).order().upsert.len(), NETS);
}
