//! What a lab looks like: the nodes, where each stands, and the addresses everything has.
//!
//! A scenario is plain data, kept as JSON beside the running lab, so that every later command sees the lab as it was
//! built.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use anyhow::{Result, bail};
use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use serde::{Deserialize, Serialize};

pub use connection::Connection;

mod connection;

/// How far the source port that the world sees is from WireGuard's listen port behind [`Site::Home`].
pub const PORT_SHIFT: u16 = 10_000;
/// WireGuard's listen ports, as the `Mesh` object has them by default: the range that a home router shifts.
pub const LISTEN_PORTS: std::ops::RangeInclusive<u16> = 21_820..=22_843;
/// A machine outside the cluster that runs `lab-pod serve`: the target of pod-to-outside checks. Benchmark range, so
/// no filter for private or documentation addresses touches it.
pub const OUTSIDE: Ipv4Net = Ipv4Net::new_assert(Ipv4Addr::new(198, 18, 0, 1), 24);
/// The same machine's IPv6 address.
pub const OUTSIDE_V6: Ipv6Net = Ipv6Net::new_assert(Ipv6Addr::new(0x2001, 0xdb8, 0xff, 0, 0, 0, 0, 1), 64);
/// The port of the API server.
pub const API_PORT: u16 = 6443;
/// Where a relay's control channel is, by QUIC over UDP ..
pub const RELAY_QUIC_PORT: u16 = 51899;
/// .. and by TLS over TCP.
pub const RELAY_TLS_PORT: u16 = 8443;
/// The one port that [`Site::OnlyTls`] lets out to.
pub const HTTPS_PORT: u16 = 443;

/// Ethernet's.
pub const MTU: u16 = 1500;
/// An uplink that carries less, as many do.
pub const SMALL_MTU: u16 = 1400;

/// A whole lab.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Scenario {
    /// Names the lab: part of every namespace, cgroup and folder, so that several labs live side by side.
    pub name: String,
    /// The first is the control plane.
    pub nodes: Vec<Node>,
    /// IPv6 on the underlay, and pods and Services of both families.
    pub dual_stack: bool,
    /// One-way delay on the internet in milliseconds, by the shaper; 0 runs none.
    pub delay_ms: u64,
    /// kube-proxy's mode: `nftables` or `iptables`.
    pub proxy_mode: String,
    /// Nodes of the list that do not start with the lab: a test starts them later.
    pub later: Vec<String>,
    /// Nodes of the list that are virtual machines with a kernel of their own, and no part of Kubernetes' (see [`crate::guest`]). They
    /// do not start with the lab either.
    pub guests: Vec<String>,
}

/// One node: its name, its own address and where it stands.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Node {
    /// The Kubernetes name.
    pub name: String,
    /// Address of its `eth0`, in the network it shares with its gateway (always the first address of that network).
    pub v4: Ipv4Net,
    /// The same for IPv6, used in dual-stack labs.
    pub v6: Ipv6Net,
    /// What lies between it and the internet.
    pub site: Site,
    /// MTU of its `eth0`.
    pub mtu: u16,
}

/// What lies between a node and the internet. `wan` is the router's outer address.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Site {
    /// The node itself is on the internet.
    Public,
    /// A home router: endpoint-independent NAT that shifts WireGuard's port by `shift`, nothing unasked comes in.
    Home {
        /// Outer address.
        wan: Ipv4Net,
        /// Outer IPv6 address (IPv6 is routed, not translated).
        wan6: Ipv6Net,
        /// Distance between listen port and mapped port.
        shift: u16,
    },
    /// A NAT that draws another port for each destination, and lets nothing unasked in: no peer can know which port to aim at.
    Hard {
        /// Outer address.
        wan: Ipv4Net,
        /// Outer IPv6 address (IPv6 is routed, not translated).
        wan6: Ipv6Net,
    },
    /// A Linux box that masquerades and drops nothing: endpoint-independent until a stranger's packet arrives first, which takes the port.
    Plain {
        /// Outer address.
        wan: Ipv4Net,
        /// Outer IPv6 address (IPv6 is routed, not translated).
        wan6: Ipv6Net,
    },
    /// A network that lets nothing out but TCP to port 443. The lab's API server is on another port, so this router moves connections to
    /// it to 443, and the control plane's node takes them back: nothing else crosses the site's border.
    OnlyTls {
        /// Outer address.
        wan: Ipv4Net,
        /// Outer IPv6 address; nothing of IPv6 gets out.
        wan6: Ipv6Net,
    },
    /// A stateful firewall without translation; the internet routes the inner network to it.
    Firewall {
        /// Outer address.
        wan: Ipv4Net,
        /// Outer IPv6 address.
        wan6: Ipv6Net,
    },
    /// The inner address is translated 1:1 to the outer one, in both directions, as clouds do.
    OneToOne {
        /// Outer address.
        wan: Ipv4Net,
        /// Outer IPv6 address.
        wan6: Ipv6Net,
    },
}

impl Scenario {
    /// One of the scenarios that `warren-lab up --scenario` knows.
    pub fn named(kind: &str, name: &str) -> Result<Self> {
        let mut scenario = match kind {
            "demo" => Self::demo(name),
            "single" => Self::single(name),
            "dual-stack" => Self { dual_stack: true, ..Self::direct(name) },
            "nat-api" => Self::nat_api(name),
            "relayed" => Self::relayed(name),
            other => bail!("there is no scenario {other:?}: use demo, single, dual-stack, nat-api or relayed"),
        };
        scenario.delay_ms = if kind == "demo" { 5 } else { 0 };
        Ok(scenario)
    }

    /// A public control plane, a public worker, two homes alike to the last address, of which one is behind a plain Linux box, a firewalled
    /// site, a worker behind a NAT that draws its ports, and one from which only TCP to port 443 leaves: every sort of
    /// [connection](Self::connection) there is.
    #[must_use]
    pub fn demo(name: &str) -> Self {
        let hard = Node { name: "hard".into(), ..hard_a() };
        Self::of(
            name,
            vec![control_plane(), public(), home_a(), plain("plain", home_b()), firewalled(), hard, only_tls()],
        )
    }

    /// A public control plane, a public worker, two homes alike to the last address, and a firewalled site: every pair can be direct.
    #[must_use]
    pub fn direct(name: &str) -> Self {
        Self::of(name, vec![control_plane(), public(), home_a(), home_b(), firewalled()])
    }

    /// A public control plane, a public worker, two workers behind NATs that draw their ports, which are never direct, and one from which
    /// only TCP to port 443 leaves.
    #[must_use]
    pub fn relayed(name: &str) -> Self {
        Self::of(name, vec![control_plane(), public(), hard_a(), hard_b(), only_tls()])
    }

    /// [`Self::relayed`] and the two homes: a pair that is never direct and one that can be.
    #[must_use]
    pub fn paths(name: &str) -> Self {
        Self::of(name, vec![control_plane(), public(), hard_a(), hard_b(), home_a(), home_b()])
    }

    /// A public control plane, a public worker, two workers behind plain Linux boxes and one behind a home router: every pair can be direct,
    /// if both sides act in the right order.
    #[must_use]
    pub fn plain(name: &str) -> Self {
        Self::of(
            name,
            vec![control_plane(), public(), plain("plain-a", hard_a()), plain("plain-b", hard_b()), home_a()],
        )
    }

    /// The control plane alone; `home-a` may join later.
    #[must_use]
    pub fn single(name: &str) -> Self {
        Self { later: vec!["home-a".into()], ..Self::of(name, vec![control_plane(), home_a()]) }
    }

    /// Two public nodes.
    #[must_use]
    pub fn pair(name: &str) -> Self {
        Self::of(name, vec![control_plane(), public()])
    }

    /// A control plane behind 1:1 NAT that advertises its private address, a public worker and a home.
    #[must_use]
    pub fn nat_api(name: &str) -> Self {
        let cp = Node {
            v4: net4([10, 20, 0, 10], 24),
            site: Site::OneToOne { wan: net4([203, 0, 113, 10], 28), wan6: net6(0x1, 0x10, 10) },
            ..control_plane()
        };
        Self::of(name, vec![cp, public(), home_a()])
    }

    /// A public control plane, a public worker, and two machines with a kernel of their own, alike to the last address, behind
    /// home routers.
    #[must_use]
    pub fn guests(name: &str) -> Self {
        let guests = ["guest-a", "guest-b"].map(String::from);
        let [a, b] = [home_a(), home_b()];
        let nodes = vec![
            control_plane(),
            public(),
            Node { name: guests[0].clone(), ..a },
            Node { name: guests[1].clone(), ..b },
        ];
        Self { guests: guests.into(), ..Self::of(name, nodes) }
    }

    fn of(name: &str, nodes: Vec<Node>) -> Self {
        Self {
            name: name.into(),
            nodes,
            dual_stack: false,
            delay_ms: 0,
            proxy_mode: "nftables".into(),
            later: Vec::new(),
            guests: Vec::new(),
        }
    }

    /// The control plane's node.
    #[must_use]
    pub fn control_plane(&self) -> &Node {
        self.nodes.first().expect("every scenario has a control plane")
    }

    /// The node of that name.
    pub fn node(&self, name: &str) -> Result<&Node> {
        let known = || self.nodes.iter().map(|node| node.name.as_str()).collect::<Vec<_>>().join(", ");
        match self.nodes.iter().find(|node| node.name == name) {
            Some(node) => Ok(node),
            None => bail!("lab {:?} has no node {name:?}; it has {}", self.name, known()),
        }
    }

    /// The address at which everybody reaches the API server by the underlay.
    #[must_use]
    pub fn api_address(&self) -> Ipv4Addr {
        self.control_plane().outer_v4()
    }

    /// The pods' networks.
    #[must_use]
    pub fn pod_cidrs(&self) -> Vec<IpNet> {
        self.families(IpNet::V4(net4([10, 244, 0, 0], 16)), IpNet::V6(ula(0x244, 56)))
    }

    /// The Services' networks.
    #[must_use]
    pub fn service_cidrs(&self) -> Vec<IpNet> {
        self.families(IpNet::V4(net4([10, 96, 0, 0], 16)), IpNet::V6(ula(0x96, 112)))
    }

    /// Node addresses that Warren carries: private, and no other node's.
    #[must_use]
    pub fn carried_addresses(&self) -> Vec<IpAddr> {
        let unique = |node: &&Node| self.nodes.iter().filter(|other| other.v4.addr() == node.v4.addr()).count() == 1;
        let private = self.nodes.iter().filter(|node| node.v4.addr().is_private());
        private.filter(unique).map(|node| IpAddr::V4(node.v4.addr())).collect()
    }

    /// Whether the node is a virtual machine.
    #[must_use]
    pub fn is_guest(&self, node: &str) -> bool {
        self.guests.iter().any(|guest| guest == node)
    }

    /// Whether the API server can reach the node's kubelet: nothing else has its InternalIP.
    #[must_use]
    pub fn has_unique_address(&self, node: &Node) -> bool {
        self.nodes.iter().filter(|other| other.v4.addr() == node.v4.addr()).count() == 1
    }

    fn families(&self, v4: IpNet, v6: IpNet) -> Vec<IpNet> {
        if self.dual_stack { vec![v4, v6] } else { vec![v4] }
    }
}

impl Node {
    /// The IPv4 address that the internet sees.
    #[must_use]
    pub fn outer_v4(&self) -> Ipv4Addr {
        match &self.site {
            Site::Public | Site::Firewall { .. } => self.v4.addr(),
            Site::Home { wan, .. }
            | Site::Hard { wan, .. }
            | Site::Plain { wan, .. }
            | Site::OnlyTls { wan, .. }
            | Site::OneToOne { wan, .. } => wan.addr(),
        }
    }

    /// The outermost link of the site: of the node itself, or of its router.
    #[must_use]
    pub fn uplink(&self) -> (Ipv4Net, Ipv6Net) {
        match &self.site {
            Site::Public => (self.v4, self.v6),
            Site::Home { wan, wan6, .. }
            | Site::Hard { wan, wan6 }
            | Site::Plain { wan, wan6 }
            | Site::OnlyTls { wan, wan6 }
            | Site::Firewall { wan, wan6 }
            | Site::OneToOne { wan, wan6 } => (*wan, *wan6),
        }
    }

    /// Whether its network lets TCP to port 443 out and nothing else.
    #[must_use]
    pub fn has_only_tls(&self) -> bool {
        matches!(self.site, Site::OnlyTls { .. })
    }

    /// Whether a router stands before it.
    #[must_use]
    pub fn has_router(&self) -> bool {
        self.site != Site::Public
    }
}

/// The gateway of a network of the lab: always its first address.
#[must_use]
pub fn gateway4(net: Ipv4Net) -> Ipv4Net {
    let first = Ipv4Addr::from(u32::from(net.network()) + 1);
    Ipv4Net::new_assert(first, net.prefix_len())
}

/// The gateway of an IPv6 network of the lab.
#[must_use]
pub fn gateway6(net: Ipv6Net) -> Ipv6Net {
    let first = Ipv6Addr::from(u128::from(net.network()) + 1);
    Ipv6Net::new_assert(first, net.prefix_len())
}

fn control_plane() -> Node {
    node("cp", net4([203, 0, 113, 10], 28), net6(0x1, 0, 10), Site::Public)
}

fn public() -> Node {
    node("pub", net4([203, 0, 113, 20], 28), net6(0x2, 0, 20), Site::Public)
}

fn home_a() -> Node {
    let site = Site::Home { wan: net4([198, 51, 100, 10], 28), wan6: net6(0xa, 0xff, 10), shift: PORT_SHIFT };
    node("home-a", net4([192, 168, 1, 10], 24), net6(0xa, 0, 10), site)
}

fn home_b() -> Node {
    let site = Site::Home { wan: net4([198, 51, 100, 20], 28), wan6: net6(0xb, 0xff, 20), shift: PORT_SHIFT };
    node("home-b", net4([192, 168, 1, 10], 24), net6(0xb, 0, 10), site)
}

fn hard_a() -> Node {
    let site = Site::Hard { wan: net4([198, 51, 100, 70], 28), wan6: net6(0xc, 0xff, 70) };
    node("hard-a", net4([192, 168, 1, 10], 24), net6(0xc, 0, 10), site)
}

fn hard_b() -> Node {
    let site = Site::Hard { wan: net4([198, 51, 100, 90], 28), wan6: net6(0xd, 0xff, 90) };
    node("hard-b", net4([192, 168, 1, 10], 24), net6(0xd, 0, 10), site)
}

/// A node of that name behind a plain Linux box, where another one stands.
fn plain(name: &str, place: Node) -> Node {
    let (wan, wan6) = place.uplink();
    Node { name: name.into(), site: Site::Plain { wan, wan6 }, ..place }
}

fn only_tls() -> Node {
    let site = Site::OnlyTls { wan: net4([198, 51, 100, 110], 28), wan6: net6(0xe, 0xff, 110) };
    node("tls", net4([10, 60, 0, 10], 24), net6(0xe, 0, 10), site)
}

fn firewalled() -> Node {
    let site = Site::Firewall { wan: net4([198, 51, 100, 40], 28), wan6: net6(0xf, 0xff, 40) };
    Node { mtu: SMALL_MTU, ..node("fw", net4([10, 50, 0, 10], 24), net6(0xf, 0, 10), site) }
}

fn node(name: &str, v4: Ipv4Net, v6: Ipv6Net, site: Site) -> Node {
    Node { name: name.into(), v4, v6, site, mtu: MTU }
}

const fn net4(octets: [u8; 4], prefix: u8) -> Ipv4Net {
    Ipv4Net::new_assert(Ipv4Addr::new(octets[0], octets[1], octets[2], octets[3]), prefix)
}

const fn net6(site: u16, subnet: u16, host: u16) -> Ipv6Net {
    Ipv6Net::new_assert(Ipv6Addr::new(0x2001, 0xdb8, site, subnet, 0, 0, 0, host), 64)
}

const fn ula(subnet: u16, prefix: u8) -> Ipv6Net {
    Ipv6Net::new_assert(Ipv6Addr::new(0xfd00, 0x10, subnet, 0, 0, 0, 0, 0), prefix)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn the_homes_are_alike_inside_and_differ_outside() {
        let demo = Scenario::demo("t");
        let (a, b) = (demo.node("home-a").unwrap(), demo.node("plain").unwrap());
        assert_eq!(a.v4, b.v4);
        assert_ne!(a.outer_v4(), b.outer_v4());
        assert!(!demo.has_unique_address(a));
        assert_eq!(demo.carried_addresses(), [[10, 50, 0, 10], [10, 60, 0, 10]].map(IpAddr::from));
    }

    #[test]
    fn no_two_sites_share_an_internet_segment() {
        let named = ["demo", "single", "dual-stack", "nat-api", "relayed"]
            .map(|kind| (kind, Scenario::named(kind, "t").unwrap()));
        for (kind, scenario) in named.into_iter().chain([
            ("guests", Scenario::guests("t")),
            ("paths", Scenario::paths("t")),
            ("plain", Scenario::plain("t")),
        ]) {
            let uplinks = || scenario.nodes.iter().map(Node::uplink);
            let v4: BTreeSet<_> = uplinks().map(|(v4, _)| v4.trunc()).collect();
            let v6: BTreeSet<_> = uplinks().map(|(_, v6)| v6.trunc()).collect();
            assert_eq!((v4.len(), v6.len()), (scenario.nodes.len(), scenario.nodes.len()), "{kind}");
            assert!(uplinks().all(|(v4, _)| gateway4(v4).addr() != v4.addr()), "{kind}");
        }
    }

    #[test]
    fn a_mapped_port_is_a_port_and_never_a_listen_port() {
        let (low, high) = (LISTEN_PORTS.start() + PORT_SHIFT, LISTEN_PORTS.end().checked_add(PORT_SHIFT));
        assert!(!LISTEN_PORTS.contains(&low) && high.is_some());
    }
}
