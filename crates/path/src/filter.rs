//! Which addresses must never carry the outer packets of the mesh.
//!
//! The filter is asked three times: before an own address is published, when a peer's candidate arrives, and again
//! before every single packet, because the forbidden networks can change after a candidate was taken in.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use ipnet::IpNet;

use crate::candidate::canonical;

/// Most networks and addresses taken in. Beyond what the largest mesh can name (10,000 peers with 16 ranges each), because
/// a network that is left out would be dialled; merged they are few, and found by halving.
const MAX_ENTRIES: usize = 1 << 18;

/// Addresses at which clouds serve instance credentials: AWS and most others, AWS on IPv6, Azure, Alibaba, Oracle.
const METADATA: [IpAddr; 5] = [
    IpAddr::V4(Ipv4Addr::new(169, 254, 169, 254)),
    IpAddr::V6(Ipv6Addr::new(0xfd00, 0xec2, 0, 0, 0, 0, 0, 0x254)),
    IpAddr::V4(Ipv4Addr::new(168, 63, 129, 16)),
    IpAddr::V4(Ipv4Addr::new(100, 100, 100, 200)),
    IpAddr::V4(Ipv4Addr::new(192, 0, 0, 192)),
];

/// Why an address was refused. The name is a metric label.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Refusal {
    /// Port 0 is no destination.
    ZeroPort,
    /// `0.0.0.0/8` or `::`.
    Unspecified,
    /// The node itself.
    Loopback,
    /// A group or a broadcast, never one peer.
    Multicast,
    /// Valid on one link only, and ambiguous without its interface.
    LinkLocal,
    /// A cloud's metadata service.
    Metadata,
    /// Inside a pod, service or mesh network: the mesh would carry itself.
    MeshNetwork,
    /// One of this node's own addresses.
    OwnAddress,
    /// The API server's socket: nothing may disturb what the cluster is coordinated by.
    ApiServer,
    /// One more than are kept of one peer.
    OverCap,
}

impl Refusal {
    /// Every value, for metrics that start at zero.
    pub const ALL: [Self; 10] = [
        Self::ZeroPort,
        Self::Unspecified,
        Self::Loopback,
        Self::Multicast,
        Self::LinkLocal,
        Self::Metadata,
        Self::MeshNetwork,
        Self::OwnAddress,
        Self::ApiServer,
        Self::OverCap,
    ];

    /// The metric label.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::ZeroPort => "zero_port",
            Self::Unspecified => "unspecified",
            Self::Loopback => "loopback",
            Self::Multicast => "multicast",
            Self::LinkLocal => "link_local",
            Self::Metadata => "metadata",
            Self::MeshNetwork => "mesh_network",
            Self::OwnAddress => "own_address",
            Self::ApiServer => "api_server",
            Self::OverCap => "over_cap",
        }
    }
}

/// What the shell knows to be off limits.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Forbidden {
    /// Pod, service and mesh networks.
    pub networks: Vec<IpNet>,
    /// Every address that any interface of this node has, whatever it is used for.
    pub own_addresses: Vec<IpAddr>,
    /// The sockets of the API server. Not its addresses: the control-plane node is often the only public one.
    pub api_servers: Vec<SocketAddr>,
}

impl Forbidden {
    /// Whether packets may be sent to a remote address, for whoever dials besides the engine.
    ///
    /// # Errors
    /// Why they may not.
    pub fn check(&self, addr: SocketAddr) -> Result<(), Refusal> {
        let addr = canonical(addr);
        Filter::default().check_published(addr)?;
        if self.networks.iter().any(|network| network.contains(&addr.ip())) {
            return Err(Refusal::MeshNetwork);
        }
        if self.own_addresses.iter().any(|own| own.to_canonical() == addr.ip()) {
            return Err(Refusal::OwnAddress);
        }
        if self.api_servers.iter().any(|api| canonical(*api) == addr) {
            return Err(Refusal::ApiServer);
        }
        Ok(())
    }
}

/// The filter in the form it is asked in.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Filter {
    /// Sorted, and none inside another.
    networks: Vec<IpNet>,
    own_addresses: BTreeSet<IpAddr>,
    api_servers: BTreeSet<SocketAddr>,
    broadcasts: BTreeSet<IpAddr>,
}

impl Filter {
    /// Takes the new list. Returns whether it differs from the one before.
    pub(crate) fn set_forbidden(&mut self, mut forbidden: Forbidden) -> bool {
        forbidden.networks.truncate(MAX_ENTRIES);
        let own: Vec<IpAddr> = forbidden.own_addresses;
        let own = own.iter().take(MAX_ENTRIES).map(IpAddr::to_canonical);
        let api = forbidden.api_servers.into_iter().take(MAX_ENTRIES);
        let new = Self {
            networks: IpNet::aggregate(&forbidden.networks),
            own_addresses: own.collect(),
            api_servers: api.map(canonical).collect(),
            broadcasts: std::mem::take(&mut self.broadcasts),
        };
        let broadcasts = new.broadcasts.clone();
        let old = std::mem::replace(self, new);
        Self { broadcasts, ..old } != *self
    }

    /// Learns the subnets' broadcast addresses from the host addresses.
    pub(crate) fn set_hosts(&mut self, hosts: &[IpNet]) {
        self.broadcasts = hosts
            .iter()
            .filter(|host| matches!(host, IpNet::V4(net) if net.prefix_len() < 31))
            .map(IpNet::broadcast)
            .collect();
    }

    /// Whether packets may be sent to, or believed from, a remote address.
    pub(crate) fn check_remote(&self, addr: SocketAddr) -> Result<(), Refusal> {
        let addr = canonical(addr);
        self.check_published(addr)?;
        if self.own_addresses.contains(&addr.ip()) {
            return Err(Refusal::OwnAddress);
        }
        if self.broadcasts.contains(&addr.ip()) {
            return Err(Refusal::Multicast);
        }
        if self.api_servers.contains(&addr) {
            return Err(Refusal::ApiServer);
        }
        Ok(())
    }

    /// Whether an own address may be told to peers.
    pub(crate) fn check_published(&self, addr: SocketAddr) -> Result<(), Refusal> {
        let ip = addr.ip().to_canonical();
        if addr.port() == 0 {
            return Err(Refusal::ZeroPort);
        }
        if METADATA.contains(&ip) {
            return Err(Refusal::Metadata);
        }
        check_scope(ip)?;
        let after = self.networks.partition_point(|net| net.network() <= ip);
        if after.checked_sub(1).is_some_and(|last| self.networks[last].contains(&ip)) {
            return Err(Refusal::MeshNetwork);
        }
        Ok(())
    }
}

/// What the address says about itself.
fn check_scope(ip: IpAddr) -> Result<(), Refusal> {
    let refusal = match ip {
        IpAddr::V4(v4) if v4.octets()[0] == 0 => Refusal::Unspecified,
        IpAddr::V4(v4) if v4.is_link_local() => Refusal::LinkLocal,
        IpAddr::V4(v4) if v4.is_multicast() || v4.is_broadcast() => Refusal::Multicast,
        IpAddr::V6(v6) if v6.is_unicast_link_local() => Refusal::LinkLocal,
        ip if ip.is_unspecified() => Refusal::Unspecified,
        ip if ip.is_loopback() => Refusal::Loopback,
        ip if ip.is_multicast() => Refusal::Multicast,
        _ => return Ok(()),
    };
    Err(refusal)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn forbidden() -> Forbidden {
        Forbidden {
            networks: vec!["10.42.0.0/16".parse().unwrap(), "fd77::/48".parse().unwrap()],
            own_addresses: vec!["192.168.1.10".parse().unwrap()],
            api_servers: vec!["203.0.113.9:6443".parse().unwrap()],
        }
    }

    fn filter() -> Filter {
        let mut filter = Filter::default();
        filter.set_forbidden(forbidden());
        filter.set_hosts(&["192.168.1.10/24".parse().unwrap()]);
        filter
    }

    #[test]
    fn every_kind_of_forbidden_address_is_named() {
        let filter = filter();
        for (addr, refusal) in [
            ("198.51.100.1:0", Refusal::ZeroPort),
            ("0.0.0.0:21820", Refusal::Unspecified),
            ("[::]:21820", Refusal::Unspecified),
            ("127.8.8.8:21820", Refusal::Loopback),
            ("[::1]:21820", Refusal::Loopback),
            ("[::ffff:127.0.0.1]:21820", Refusal::Loopback),
            ("224.0.0.251:21820", Refusal::Multicast),
            ("255.255.255.255:21820", Refusal::Multicast),
            ("192.168.1.255:21820", Refusal::Multicast),
            ("[ff02::1]:21820", Refusal::Multicast),
            ("169.254.7.7:21820", Refusal::LinkLocal),
            ("[fe80::1]:21820", Refusal::LinkLocal),
            ("169.254.169.254:80", Refusal::Metadata),
            ("[::ffff:169.254.169.254]:80", Refusal::Metadata),
            ("10.42.3.4:21820", Refusal::MeshNetwork),
            ("[fd77::5]:21820", Refusal::MeshNetwork),
            ("192.168.1.10:21999", Refusal::OwnAddress),
            ("203.0.113.9:6443", Refusal::ApiServer),
        ] {
            assert_eq!(filter.check_remote(addr.parse().unwrap()), Err(refusal), "{addr}");
            // Who has no host addresses knows no broadcast by its subnet.
            let alone = if addr == "192.168.1.255:21820" { Ok(()) } else { Err(refusal) };
            assert_eq!(forbidden().check(addr.parse().unwrap()), alone, "{addr}");
        }
        assert_eq!(forbidden().check("203.0.113.9:6444".parse().unwrap()), Ok(()));
    }

    #[test]
    fn no_network_of_two_thousand_dual_stack_nodes_is_left_out() {
        let gap = |n: u32| 2 * n;
        let v4 = |n: u32| IpNet::new(Ipv4Addr::from(0x0a80_0000 + (gap(n) << 8)).into(), 24).unwrap();
        let v6 =
            |n: u32| IpNet::new(Ipv6Addr::from((0xfd77_u128 << 112) | (u128::from(gap(n)) << 64)).into(), 64).unwrap();
        let networks: Vec<IpNet> = (0..2000).map(v4).chain((0..2000).map(v6)).collect();
        let mut filter = Filter::default();
        filter.set_forbidden(Forbidden { networks: networks.clone(), ..Forbidden::default() });
        for net in networks {
            for ip in [net.network(), net.broadcast()] {
                assert_eq!(filter.check_remote(SocketAddr::new(ip, 21_820)), Err(Refusal::MeshNetwork), "{ip}");
            }
            let beyond = match net.broadcast() {
                IpAddr::V4(ip) => IpAddr::from(Ipv4Addr::from(u32::from(ip) + 1)),
                IpAddr::V6(ip) => IpAddr::from(Ipv6Addr::from(u128::from(ip) + 1)),
            };
            assert_eq!(filter.check_remote(SocketAddr::new(beyond, 21_820)), Ok(()), "{beyond}");
        }
    }

    #[test]
    fn a_network_inside_another_makes_no_difference() {
        let mut filter = filter();
        let inside = ["10.42.0.0/16", "10.42.7.0/24", "10.42.7.0/24", "fd77::/48", "fd77:0:0:9::/64"];
        let more = Forbidden {
            networks: inside.map(|net| net.parse().unwrap()).to_vec(),
            own_addresses: vec!["192.168.1.10".parse().unwrap()],
            api_servers: vec!["203.0.113.9:6443".parse().unwrap()],
        };
        assert!(!filter.set_forbidden(more));
    }

    #[test]
    fn the_api_servers_address_with_another_port_may_be_a_peer() {
        let addr = "203.0.113.9:21820".parse().unwrap();
        assert_eq!(filter().check_remote(addr), Ok(()));
    }

    #[test]
    fn an_own_address_may_be_published_but_not_dialled() {
        let addr = "192.168.1.10:21820".parse().unwrap();
        assert_eq!(filter().check_published(addr), Ok(()));
        assert_eq!(filter().check_remote(addr), Err(Refusal::OwnAddress));
    }
}
