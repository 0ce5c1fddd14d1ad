//! Prefix arithmetic: overlap, and a map that finds every overlapping neighbour in logarithmic time.

use std::collections::BTreeMap;
use std::net::IpAddr;

use ipnet::{IpNet, Ipv4Net, Ipv6Net};

/// The prefix that holds exactly one address.
pub fn host(addr: IpAddr) -> IpNet {
    IpNet::from(addr)
}

/// Whether two prefixes share an address.
pub fn overlap(a: IpNet, b: IpNet) -> bool {
    a.contains(&b.network()) || b.contains(&a.network())
}

const fn v4(a: u8, b: u8, len: u8) -> IpNet {
    IpNet::V4(Ipv4Net::new_assert(std::net::Ipv4Addr::new(a, b, 0, 0), len))
}

const fn v6(first: u16, len: u8) -> IpNet {
    IpNet::V6(Ipv6Net::new_assert(std::net::Ipv6Addr::new(first, 0, 0, 0, 0, 0, 0, 0), len))
}

/// Ranges that no tunnel may carry: "this network", loopback, link-local, multicast and reserved (RFC 6890). The second
/// IPv6 line also covers `::`, `::1` and the IPv4-mapped addresses.
pub const NEVER_CARRIED: [IpNet; 7] =
    [v4(0, 0, 8), v4(127, 0, 8), v4(169, 254, 16), v4(224, 0, 3), v6(0, 16), v6(0xfe80, 10), v6(0xff00, 8)];

/// Whether a tunnel may carry the prefix at all. This excludes the default routes too.
pub fn is_carriable(net: IpNet) -> bool {
    !NEVER_CARRIED.iter().any(|never| overlap(*never, net))
}

/// Prefixes with a value each.
#[derive(Clone, Debug)]
pub struct PrefixMap<T>(BTreeMap<IpNet, T>);

impl<T> Default for PrefixMap<T> {
    fn default() -> Self {
        Self(BTreeMap::new())
    }
}

impl<T> PrefixMap<T> {
    /// Adds a prefix; its host bits are cleared.
    pub fn insert(&mut self, net: IpNet, value: T) {
        self.0.insert(net.trunc(), value);
    }

    /// Takes a prefix out again.
    pub fn remove(&mut self, net: IpNet) {
        self.0.remove(&net.trunc());
    }

    /// Every prefix that overlaps `net`: those inside it, it itself, and those around it.
    pub fn overlapping(&self, net: IpNet) -> impl Iterator<Item = (IpNet, &T)> {
        let net = net.trunc();
        let around = (0..net.prefix_len()).filter_map(move |len| {
            let wider = IpNet::new(net.addr(), len).ok()?.trunc();
            self.0.get(&wider).map(|value| (wider, value))
        });
        let first = IpNet::new(net.network(), 0).unwrap_or(net);
        let last = host(net.broadcast());
        let inside = self
            .0
            .range(first..=last)
            .filter(move |(known, _)| net.contains(&known.network()) && known.prefix_len() >= net.prefix_len())
            .map(|(known, value)| (*known, value));
        around.chain(inside)
    }

    /// The prefix that holds `addr`, if any.
    pub fn holding(&self, addr: IpAddr) -> Option<(IpNet, &T)> {
        self.overlapping(host(addr)).next()
    }
}
