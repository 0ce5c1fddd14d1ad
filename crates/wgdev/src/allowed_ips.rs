//! Who owns which addresses: longest prefix match, in both directions.

use std::{
    collections::{BTreeMap, HashMap},
    net::IpAddr,
};

use ipnet::IpNet;

/// Prefixes and their owners. A prefix has one owner; giving it to another takes it from the first.
///
/// One hash look-up per distinct prefix length in use. A mesh has three or four of them per family,
/// which is quicker than walking a trie, and the lengths are few by nature (33 and 129).
#[derive(Clone, Debug)]
pub(crate) struct AllowedIps<T> {
    v4: Family<T>,
    v6: Family<T>,
}

#[derive(Clone, Debug)]
struct Family<T> {
    bits: u8,
    owners: HashMap<(u8, u128), T>,
    /// How many prefixes there are of each length, in ascending order.
    lengths: BTreeMap<u8, usize>,
}

impl<T: Clone + PartialEq> AllowedIps<T> {
    pub(crate) fn new() -> Self {
        Self { v4: Family::new(32), v6: Family::new(128) }
    }

    /// Gives the prefix to `owner`, whoever had it before.
    pub(crate) fn insert(&mut self, net: IpNet, owner: T) {
        let (length, bits) = (net.prefix_len(), bits(net.network()));
        self.family_mut(net.addr()).insert(length, bits, owner);
    }

    /// Takes everything from an owner.
    pub(crate) fn remove_owner(&mut self, owner: &T) {
        self.v4.remove_owner(owner);
        self.v6.remove_owner(owner);
    }

    /// Owner of the longest prefix that covers the address.
    pub(crate) fn find(&self, addr: IpAddr) -> Option<&T> {
        match addr {
            IpAddr::V4(_) => self.v4.find(bits(addr)),
            IpAddr::V6(_) => self.v6.find(bits(addr)),
        }
    }

    /// All prefixes with their owners, in no order.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (IpNet, &T)> {
        let v4 = self.v4.owners.iter().map(|((length, bits), owner)| {
            let addr = IpAddr::from((*bits as u32).to_be_bytes());
            (IpNet::new_assert(addr, *length), owner)
        });
        let v6 = self.v6.owners.iter().map(|((length, bits), owner)| {
            let addr = IpAddr::from(bits.to_be_bytes());
            (IpNet::new_assert(addr, *length), owner)
        });
        v4.chain(v6)
    }

    fn family_mut(&mut self, addr: IpAddr) -> &mut Family<T> {
        match addr {
            IpAddr::V4(_) => &mut self.v4,
            IpAddr::V6(_) => &mut self.v6,
        }
    }
}

impl<T: PartialEq> Family<T> {
    fn new(bits: u8) -> Self {
        Self { bits, owners: HashMap::new(), lengths: BTreeMap::new() }
    }

    fn insert(&mut self, length: u8, bits: u128, owner: T) {
        if self.owners.insert((length, bits), owner).is_none() {
            *self.lengths.entry(length).or_default() += 1;
        }
    }

    fn remove_owner(&mut self, owner: &T) {
        let Self { owners, lengths, .. } = self;
        owners.retain(|(length, _), held_by| {
            if held_by != owner {
                return true;
            }
            if let Some(count) = lengths.get_mut(length) {
                *count -= 1;
                if *count == 0 {
                    lengths.remove(length);
                }
            }
            false
        });
    }

    fn find(&self, addr: u128) -> Option<&T> {
        self.lengths.keys().rev().find_map(|&length| {
            let host_bits = u32::from(self.bits - length);
            let network = addr.checked_shr(host_bits).and_then(|n| n.checked_shl(host_bits)).unwrap_or(0);
            self.owners.get(&(length, network))
        })
    }
}

fn bits(addr: IpAddr) -> u128 {
    match addr {
        IpAddr::V4(v4) => u128::from(v4.to_bits()),
        IpAddr::V6(v6) => v6.to_bits(),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn net(s: &str) -> IpNet {
        s.parse().unwrap()
    }

    fn find(table: &AllowedIps<u8>, addr: &str) -> Option<u8> {
        table.find(addr.parse().unwrap()).copied()
    }

    #[test]
    fn the_longest_prefix_wins() {
        let mut table = AllowedIps::new();
        table.insert(net("0.0.0.0/0"), 1);
        table.insert(net("10.0.0.0/8"), 2);
        table.insert(net("10.1.2.3/32"), 3);
        table.insert(net("::/0"), 4);
        table.insert(net("fd00::1/128"), 5);
        assert_eq!(find(&table, "192.0.2.1"), Some(1));
        assert_eq!(find(&table, "10.1.2.4"), Some(2));
        assert_eq!(find(&table, "10.1.2.3"), Some(3));
        assert_eq!(find(&table, "2001:db8::1"), Some(4));
        assert_eq!(find(&table, "fd00::1"), Some(5));
    }

    #[test]
    fn families_are_apart() {
        let mut table = AllowedIps::new();
        table.insert(net("0.0.0.0/0"), 1);
        assert_eq!(find(&table, "::1"), None);
        assert_eq!(find(&table, "::ffff:10.0.0.1"), None);
    }

    #[test]
    fn a_prefix_has_one_owner() {
        let mut table = AllowedIps::new();
        table.insert(net("10.0.0.0/24"), 1);
        table.insert(net("10.0.0.77/24"), 2);
        assert_eq!(find(&table, "10.0.0.1"), Some(2));
        table.remove_owner(&1);
        assert_eq!(find(&table, "10.0.0.1"), Some(2));
        table.remove_owner(&2);
        assert_eq!(find(&table, "10.0.0.1"), None);
        assert_eq!(table.iter().count(), 0);
    }

    proptest! {
        #[test]
        fn agrees_with_a_linear_search(
            nets in prop::collection::vec((any::<u32>(), 0u8..=32, 0u8..4), 0..40),
            gone in 0u8..5,
            probes in prop::collection::vec(any::<u32>(), 0..20),
        ) {
            let mut table = AllowedIps::new();
            let mut list: Vec<(IpNet, u8)> = Vec::new();
            for (addr, length, owner) in nets {
                let net = IpNet::new(IpAddr::from(addr.to_be_bytes()), length).unwrap().trunc();
                table.insert(net, owner);
                list.retain(|(other, _)| *other != net);
                list.push((net, owner));
            }
            table.remove_owner(&gone);
            list.retain(|(_, owner)| *owner != gone);
            let addresses = probes.into_iter().map(|p| IpAddr::from(p.to_be_bytes()));
            for addr in addresses.chain(list.iter().map(|(net, _)| net.broadcast())) {
                let expected = list
                    .iter()
                    .filter(|(net, _)| net.contains(&addr))
                    .max_by_key(|(net, _)| net.prefix_len())
                    .map(|(_, owner)| *owner);
                prop_assert_eq!(table.find(addr).copied(), expected);
            }
        }
    }
}
