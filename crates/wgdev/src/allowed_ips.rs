//! Who owns which addresses: longest prefix match, in both directions.

use std::{
    collections::{BTreeMap, HashMap},
    hash::Hash,
    net::IpAddr,
};

use ipnet::IpNet;

/// Prefixes and their owners. A prefix has one owner; giving it to another takes it from the first.
///
/// One hash look-up per distinct prefix length in use. A mesh has three or four of them per family,
/// which is quicker than walking a trie, and the lengths are few by nature (33 and 129). What an owner
/// has is kept beside that, so that a change of one owner costs nothing for the others.
#[derive(Clone, Debug)]
pub(crate) struct AllowedIps<T> {
    v4: Family<u32, T>,
    v6: Family<u128, T>,
    /// What each owner has, sorted; nobody who has nothing.
    owned: HashMap<T, Box<[IpNet]>>,
}

/// The prefixes of one family. `A` is an address of it as a number: of those of IPv4 a mesh has thousands, and they are small.
#[derive(Clone, Debug)]
struct Family<A, T> {
    /// By length and address; the host bits are zero.
    owners: HashMap<(u8, A), T>,
    /// How many prefixes there are of each length, in ascending order.
    lengths: BTreeMap<u8, usize>,
}

/// An address as a number.
trait Address: Copy + Eq + Hash {
    /// The address without the bits after the first `length`.
    fn network(self, length: u8) -> Self;
}

impl<T: Clone + Eq + Hash> AllowedIps<T> {
    pub(crate) fn new() -> Self {
        Self { v4: Family::new(), v6: Family::new(), owned: HashMap::new() }
    }

    /// Gives the owner exactly these prefixes, whoever had them before.
    pub(crate) fn set(&mut self, owner: &T, nets: &[IpNet]) {
        self.remove_owner(owner);
        let mut nets: Vec<IpNet> = nets.iter().map(IpNet::trunc).collect();
        nets.sort_unstable();
        nets.dedup();
        for net in &nets {
            let before = match net {
                IpNet::V4(net) => self.v4.insert(net.prefix_len(), net.addr().to_bits(), owner.clone()),
                IpNet::V6(net) => self.v6.insert(net.prefix_len(), net.addr().to_bits(), owner.clone()),
            };
            if let Some(before) = before {
                self.forget(&before, net);
            }
        }
        if !nets.is_empty() {
            self.owned.insert(owner.clone(), nets.into());
        }
    }

    /// Takes everything from an owner.
    pub(crate) fn remove_owner(&mut self, owner: &T) {
        for net in self.owned.remove(owner).unwrap_or_default() {
            match net {
                IpNet::V4(net) => self.v4.remove(net.prefix_len(), net.addr().to_bits()),
                IpNet::V6(net) => self.v6.remove(net.prefix_len(), net.addr().to_bits()),
            }
        }
    }

    /// What an owner has, sorted.
    pub(crate) fn of(&self, owner: &T) -> &[IpNet] {
        self.owned.get(owner).map_or(&[], |nets| &**nets)
    }

    /// Owner of the longest prefix that covers the address.
    pub(crate) fn find(&self, addr: IpAddr) -> Option<&T> {
        match addr {
            IpAddr::V4(v4) => self.v4.find(v4.to_bits()),
            IpAddr::V6(v6) => self.v6.find(v6.to_bits()),
        }
    }

    fn forget(&mut self, owner: &T, net: &IpNet) {
        if let Some(nets) = self.owned.get_mut(owner) {
            *nets = nets.iter().copied().filter(|other| other != net).collect();
            if nets.is_empty() {
                self.owned.remove(owner);
            }
        }
    }
}

impl<A: Address, T> Family<A, T> {
    fn new() -> Self {
        Self { owners: HashMap::new(), lengths: BTreeMap::new() }
    }

    /// Sets the owner of a prefix; returns the one before.
    fn insert(&mut self, length: u8, network: A, owner: T) -> Option<T> {
        let before = self.owners.insert((length, network), owner);
        if before.is_none() {
            *self.lengths.entry(length).or_default() += 1;
        }
        before
    }

    fn remove(&mut self, length: u8, network: A) {
        if self.owners.remove(&(length, network)).is_some()
            && let Some(count) = self.lengths.get_mut(&length)
        {
            *count -= 1;
            if *count == 0 {
                self.lengths.remove(&length);
            }
        }
    }

    fn find(&self, addr: A) -> Option<&T> {
        self.lengths.keys().rev().find_map(|&length| self.owners.get(&(length, addr.network(length))))
    }
}

impl Address for u32 {
    fn network(self, length: u8) -> Self {
        let mask = Self::MAX.checked_shl(Self::BITS - u32::from(length)).unwrap_or(0);
        self & mask
    }
}

impl Address for u128 {
    fn network(self, length: u8) -> Self {
        let mask = Self::MAX.checked_shl(Self::BITS - u32::from(length)).unwrap_or(0);
        self & mask
    }
}

#[cfg(test)]
mod tests {
    use std::{cell::Cell, hash::Hasher};

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
        for (owner, only) in [(1, "0.0.0.0/0"), (2, "10.0.0.0/8"), (3, "10.1.2.3/32"), (4, "::/0"), (5, "fd00::1/128")]
        {
            table.set(&owner, &[net(only)]);
        }
        assert_eq!(find(&table, "192.0.2.1"), Some(1));
        assert_eq!(find(&table, "10.1.2.4"), Some(2));
        assert_eq!(find(&table, "10.1.2.3"), Some(3));
        assert_eq!(find(&table, "2001:db8::1"), Some(4));
        assert_eq!(find(&table, "fd00::1"), Some(5));
    }

    #[test]
    fn families_are_apart() {
        let mut table = AllowedIps::new();
        table.set(&1, &[net("0.0.0.0/0")]);
        assert_eq!(find(&table, "::1"), None);
        assert_eq!(find(&table, "::ffff:10.0.0.1"), None);
    }

    #[test]
    fn a_prefix_has_one_owner() {
        let mut table = AllowedIps::new();
        table.set(&1, &[net("10.0.0.0/24"), net("10.9.0.0/16")]);
        table.set(&2, &[net("10.0.0.77/24")]);
        assert_eq!(find(&table, "10.0.0.1"), Some(2));
        assert_eq!(table.of(&1), [net("10.9.0.0/16")]);
        table.remove_owner(&1);
        assert_eq!(find(&table, "10.0.0.1"), Some(2));
        table.remove_owner(&2);
        assert_eq!(find(&table, "10.0.0.1"), None);
        assert!(table.of(&1).is_empty() && table.owned.is_empty() && table.v4.owners.is_empty());
    }

    /// An owner that counts how often one is compared with another.
    #[derive(Clone)]
    struct Counted<'a>(u32, &'a Cell<usize>);

    impl PartialEq for Counted<'_> {
        fn eq(&self, other: &Self) -> bool {
            self.1.set(self.1.get() + 1);
            self.0 == other.0
        }
    }

    impl Eq for Counted<'_> {}

    impl Hash for Counted<'_> {
        fn hash<H: Hasher>(&self, state: &mut H) {
            self.0.hash(state);
        }
    }

    #[test]
    fn a_change_of_one_owner_looks_at_no_other() {
        let compared = Cell::new(0);
        let mut table = AllowedIps::new();
        let nets = |n: u32| [1, 2, 3].map(|kind| IpNet::from(IpAddr::from((kind << 24 | n).to_be_bytes())));
        for n in 0..5_000 {
            table.set(&Counted(n, &compared), &nets(n));
        }
        compared.set(0);
        table.set(&Counted(7, &compared), &nets(5_000));
        assert_eq!(table.of(&Counted(7, &compared)), nets(5_000));
        table.remove_owner(&Counted(7, &compared));
        assert!(compared.get() < 10, "{} owners were looked at", compared.get());
        assert_eq!(table.v4.owners.len(), 3 * 4_999);
    }

    proptest! {
        #[test]
        fn agrees_with_a_linear_search(
            nets in prop::collection::vec((prop::collection::vec((any::<u32>(), 0u8..=32), 0..4), 0u8..4), 0..20),
            gone in 0u8..5,
            probes in prop::collection::vec(any::<u32>(), 0..20),
        ) {
            let mut table = AllowedIps::new();
            let mut list: Vec<(IpNet, u8)> = Vec::new();
            for (addresses, owner) in nets {
                let net = |(addr, length): (u32, u8)| IpNet::new(IpAddr::from(addr.to_be_bytes()), length).unwrap();
                let nets: Vec<IpNet> = addresses.into_iter().map(net).collect();
                table.set(&owner, &nets);
                list.retain(|(other, held_by)| *held_by != owner && !nets.iter().any(|net| net.trunc() == *other));
                list.extend(nets.iter().map(|net| (net.trunc(), owner)));
            }
            table.remove_owner(&gone);
            list.retain(|(_, owner)| *owner != gone);
            list.sort_unstable();
            list.dedup();
            for owner in 0..4 {
                let owned: Vec<IpNet> = list.iter().filter(|(_, o)| *o == owner).map(|(net, _)| *net).collect();
                prop_assert_eq!(table.of(&owner), owned);
            }
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
