//! What this node has without the mesh: usable addresses, subnets, gateways, resolvers, path MTU.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use ipnet::IpNet;
use nlink::netlink::messages::{AddressMessage, LinkMessage, RouteMessage};
use nlink::netlink::types::route::RouteType;
use nlink::{Connection, Route};

use super::device::is_link_local;
use super::{NetError, TABLE_MESH, TABLE_NODES};

/// WireGuard's and the outer headers' cost over IPv6, the dearer family: 40 IPv6 + 8 UDP + 32 WireGuard.
const OVERHEAD: u32 = 80;
/// WireGuard pads what it seals to multiples of this.
const PADDING: u32 = 16;
/// MTU of Ethernet.
const ETHERNET: u32 = 1500;

/// IPv6 needs this much on every link; below it the kernel turns IPv6 off on the device. Outer packets are then fragmented.
const LEAST_MTU: u32 = 1280;

/// More interfaces with addresses than any machine that can be a node; keeps the ruleset bounded.
const MOST_DEVICES: usize = 64;

/// More candidates or subnets than are ever tried.
const MOST_ADDRESSES: usize = 256;

/// `IFA_F_TEMPORARY`, which has the same bit as "secondary" and means "privacy address" for IPv6 only.
const TEMPORARY: u32 = 0x01;

/// Interfaces whose addresses are no way to this node from another: containers, overlays, VPNs, load-balancer addresses. An
/// entry that ends in `*` is a prefix. Kinds are not enough: a veth is an underlay inside a network namespace.
const NOT_UNDERLAY: &[&str] = &[
    "cni*",
    "veth*",
    "docker*",
    "br-*",
    "podman*",
    "virbr*",
    "lxc*",
    "lxdbr*",
    "incusbr*",
    "cilium*",
    "flannel*",
    "cali*",
    "vxlan.calico",
    "tunl*",
    "weave*",
    "antrea*",
    "genev_sys_*",
    "ovn-k8s*",
    "kube-*",
    "nodelocaldns",
    "dummy*",
    "tun*",
    "tap*",
    "wg*",
    "tailscale*",
    "zt*",
    "nebula*",
    "warren*",
];

/// Kinds of interfaces that are tunnels or placeholders under any name.
const NOT_UNDERLAY_KINDS: &[&str] =
    &["tun", "wireguard", "dummy", "vxlan", "geneve", "ipip", "sit", "ip6tnl", "gre", "ifb"];

/// The node's own network.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Underlay {
    /// Interfaces that other nodes may be reached by, in order of index.
    pub devices: Vec<UnderlayDevice>,
    /// Host candidates: stable addresses of those interfaces, in order of interface, as the kernel lists them.
    pub candidates: Vec<IpAddr>,
    /// Subnets that any interface except our own is directly connected to.
    pub connected: Vec<IpNet>,
    /// Gateways of default routes.
    pub gateways: Vec<IpAddr>,
    /// Resolvers of `/etc/resolv.conf`.
    pub resolvers: Vec<IpAddr>,
    /// The smallest MTU of these interfaces and of the routes over them.
    pub mtu: Option<u32>,
}

/// An interface that other nodes may be reached by.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UnderlayDevice {
    /// Its name.
    pub name: String,
    /// Its index.
    pub index: u32,
    /// Whether its IPv6 default route comes from router advertisements.
    pub learns_routes: bool,
}

impl Underlay {
    /// The MTU for the WireGuard device: what the narrowest underlay route leaves, in whole blocks of WireGuard's padding.
    ///
    /// A sender whose own MTU is larger fills a packet up to the next block (up to its MTU where that comes first), and the filled one
    /// must still fit here: with 1,320 over IPv6, a full packet came as 1,408 bytes to an uplink of 1,400. Ethernet stays at the 1,420
    /// that every WireGuard has there: only a sender with jumbo frames would fill it, and only IPv6 has no room for that.
    pub fn device_mtu(&self) -> u16 {
        let underlay = self.mtu.unwrap_or(ETHERNET);
        let mtu = underlay.saturating_sub(OVERHEAD);
        let whole = if underlay == ETHERNET { mtu } else { mtu - mtu % PADDING };
        u16::try_from(whole.max(LEAST_MTU)).unwrap_or(u16::MAX)
    }
}

/// Reads the underlay; `device` is our own interface, which is not part of it.
pub async fn read(device: &str) -> Result<Underlay, NetError> {
    let conn = Connection::<Route>::new().map_err(NetError::netlink("open a route socket"))?;
    read_with(&conn, device).await
}

pub(super) async fn read_with(conn: &Connection<Route>, device: &str) -> Result<Underlay, NetError> {
    let links = conn.get_links().await.map_err(NetError::netlink("list the interfaces"))?;
    let addresses = conn.get_addresses().await.map_err(NetError::netlink("list the addresses"))?;
    let routes = conn.get_routes().await.map_err(NetError::netlink("list the routes"))?;
    let resolvers = std::fs::read_to_string("/etc/resolv.conf").map(|t| resolvers(&t)).unwrap_or_default();
    Ok(survey(device, &links, &addresses, &routes, resolvers))
}

fn survey(
    device: &str,
    links: &[LinkMessage],
    addresses: &[AddressMessage],
    routes: &[RouteMessage],
    resolvers: Vec<IpAddr>,
) -> Underlay {
    let own = links.iter().find(|l| l.name() == Some(device)).map(LinkMessage::ifindex);
    let routes: Vec<&RouteMessage> =
        routes.iter().filter(|r| r.table_id() != TABLE_MESH && r.table_id() != TABLE_NODES).collect();
    let usable: BTreeMap<u32, &LinkMessage> =
        links.iter().filter(|l| l.is_up() && is_underlay(l, device)).map(|l| (l.ifindex(), l)).collect();

    let mut candidates = Vec::new();
    let mut holders = BTreeSet::new();
    for message in addresses.iter().filter(|a| usable.contains_key(&a.ifindex())) {
        if let Some(address) = message.primary_address().copied().filter(|a| is_candidate(a, message)) {
            holders.insert(message.ifindex());
            if !candidates.contains(&address) && candidates.len() < MOST_ADDRESSES {
                candidates.push(address);
            }
        }
    }
    // An interface without an address of its own may still be the way out (unnumbered links).
    holders.extend(routes.iter().filter(|r| is_default(r)).flat_map(|r| interfaces(r)));
    let devices: Vec<UnderlayDevice> = holders
        .iter()
        .filter_map(|index| usable.get(index))
        .take(MOST_DEVICES)
        .map(|link| UnderlayDevice {
            name: link.name_or("").to_owned(),
            index: link.ifindex(),
            learns_routes: routes.iter().any(|r| is_learned_default(r, link.ifindex())),
        })
        .collect();
    Underlay {
        mtu: smallest_mtu(&devices, &usable, &routes),
        connected: connected(addresses, own),
        gateways: gateways(&routes, own),
        candidates,
        devices,
        resolvers,
    }
}

fn is_underlay(link: &LinkMessage, device: &str) -> bool {
    let Some(name) = link.name() else {
        return false;
    };
    let named = NOT_UNDERLAY.iter().any(|pattern| match pattern.strip_suffix('*') {
        Some(prefix) => name.starts_with(prefix),
        None => name == *pattern,
    });
    let kind = link.kind().is_some_and(|k| NOT_UNDERLAY_KINDS.contains(&k));
    !named && !kind && name != device && !link.is_loopback()
}

fn is_candidate(address: &IpAddr, message: &AddressMessage) -> bool {
    let unstable = message.is_deprecated() || message.is_tentative() || message.is_dad_failed();
    let temporary = address.is_ipv6() && message.flags() & TEMPORARY != 0;
    let unusable =
        address.is_loopback() || address.is_multicast() || address.is_unspecified() || is_link_local(address);
    !unstable && !temporary && !unusable
}

fn is_default(route: &RouteMessage) -> bool {
    route.dst_len() == 0 && route.route_type() == RouteType::Unicast
}

fn interfaces(route: &RouteMessage) -> impl Iterator<Item = u32> {
    let hops = route.multipath().into_iter().flatten().map(|hop| hop.ifindex);
    route.oif().into_iter().chain(hops)
}

fn is_learned_default(route: &RouteMessage, index: u32) -> bool {
    /// `RTPROT_RA`.
    const ROUTER_ADVERTISEMENT: u8 = 9;
    let learned = nlink::netlink::types::route::RouteProtocol::from(ROUTER_ADVERTISEMENT);
    route.is_ipv6() && is_default(route) && route.oif() == Some(index) && route.protocol() == learned
}

fn smallest_mtu(
    devices: &[UnderlayDevice],
    links: &BTreeMap<u32, &LinkMessage>,
    routes: &[&RouteMessage],
) -> Option<u32> {
    let of_links = devices.iter().filter_map(|d| links.get(&d.index)?.mtu());
    let of_routes =
        routes.iter().filter(|r| devices.iter().any(|d| r.oif() == Some(d.index))).filter_map(|r| r.metrics()?.mtu);
    of_links.chain(of_routes).filter(|mtu| *mtu > 0).min()
}

fn connected(addresses: &[AddressMessage], own: Option<u32>) -> Vec<IpNet> {
    let mut nets = BTreeSet::new();
    for message in addresses.iter().filter(|a| Some(a.ifindex()) != own) {
        let Some(address) = message.primary_address().copied() else {
            continue;
        };
        let whole = if address.is_ipv4() { 32 } else { 128 };
        let prefix = message.prefix_len();
        if address.is_loopback() || is_link_local(&address) || prefix >= whole || prefix == 0 {
            continue;
        }
        nets.extend(IpNet::new(address, prefix).ok().map(|n| n.trunc()));
    }
    nets.into_iter().take(MOST_ADDRESSES).collect()
}

fn gateways(routes: &[&RouteMessage], own: Option<u32>) -> Vec<IpAddr> {
    let mut found = BTreeSet::new();
    for route in routes.iter().filter(|r| is_default(r) && (r.oif().is_none() || r.oif() != own)) {
        found.extend(route.gateway().or(route.via()).copied());
        found.extend(route.multipath().into_iter().flatten().filter_map(|hop| hop.gateway));
    }
    // A link-local gateway can be in no prefix of the mesh.
    found.into_iter().filter(|g| !is_link_local(g)).take(MOST_ADDRESSES).collect()
}

/// The servers of a `resolv.conf`. Zone names (`%eth0`) are cut, loopback stubs left out.
fn resolvers(text: &str) -> Vec<IpAddr> {
    let mut found = BTreeSet::new();
    for line in text.lines() {
        let mut words = line.split_whitespace();
        if words.next() != Some("nameserver") {
            continue;
        }
        let address = words.next().and_then(|w| w.split('%').next()).and_then(|w| w.parse::<IpAddr>().ok());
        found.extend(address.filter(|a| !a.is_loopback() && !is_link_local(a)));
    }
    found.into_iter().take(MOST_ADDRESSES).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn resolvers_are_read_leniently() {
        let text = "# x\nsearch a b\nnameserver 192.0.2.53 # c\nnameserver fe80::1%eth0\nnameserver 127.0.0.53\nnameserver 2001:db8::53\nnameserver\nnameserver x";
        assert_eq!(resolvers(text), ["192.0.2.53".parse::<IpAddr>().unwrap(), "2001:db8::53".parse().unwrap()]);
    }

    #[test]
    fn the_device_gets_what_the_narrowest_route_leaves_but_never_too_little_for_ipv6() {
        let mtu = |mtu| Underlay { mtu, ..Underlay::default() }.device_mtu();
        assert_eq!((mtu(Some(1500)), mtu(Some(9000)), mtu(Some(1300)), mtu(None)), (1420, 8912, 1280, 1420));
        // A full packet, filled to a whole block by a sender with more room, fits the uplink of 1,400.
        assert!(u32::from(mtu(Some(1400))).next_multiple_of(PADDING) + OVERHEAD <= 1400);
    }
}
