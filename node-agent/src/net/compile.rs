//! From plan and underlay to the exact entries: pure, so that what is refused and what is claimed can be tested as a table.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr};

use ipnet::IpNet;

use super::ranges::{is_v6, ranges};
use super::{NetPlan, Overlap, PortRange, Protected, RouteKind, TABLE_MESH, TABLE_NODES, Underlay};

/// Metric of a route to a programmed peer; better than the one below for the same prefix.
const METRIC_PEER: u32 = 100;

/// Metric of `unreachable`, so that adding and removing a peer's route leaves no moment without an answer.
const METRIC_UNREACHABLE: u32 = 4000;

/// No private range is wider: RFC 1918's widest is 10.0.0.0/8, the unique local addresses are fc00::/7. A shorter prefix by a
/// mistake in an object would take the node's Internet away.
const WIDEST: [u8; 2] = [8, 7];

/// Every entry that must exist, and what was refused.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Desired {
    pub routes: BTreeSet<TableRoute>,
    pub rules: Vec<PolicyRule>,
    pub sets: Vec<AddressSet>,
    pub overlaps: Vec<Overlap>,
}

/// One route of one of our tables.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct TableRoute {
    pub table: u32,
    pub prefix: IpNet,
    pub metric: u32,
    pub target: Target,
}

/// Where a route leads.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Target {
    /// Into the device.
    Device { src: Option<IpAddr>, mtu: Option<u32> },
    /// Nowhere, and the sender is told.
    Unreachable,
    /// On with the next rule: something local inside a claimed range.
    Throw,
}

/// One policy rule; `offset` counts from the base priority.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct PolicyRule {
    pub v6: bool,
    pub offset: u32,
    pub select: Select,
    pub action: Action,
}

/// What a rule matches.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Select {
    All,
    To(IpNet),
    NotMark { value: u32, mask: u32 },
    LocalPort { ip_proto: u8, ports: PortRange },
}

/// What a rule does.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Action {
    Lookup { table: u32, suppress_prefixlen: Option<u32> },
    Goto { offset: u32 },
    Nop,
}

/// One nftables set of disjoint ranges.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct AddressSet {
    pub name: &'static str,
    pub v6: bool,
    pub ranges: Vec<(IpAddr, IpAddr)>,
}

/// The offsets that the module documentation of `net` lists.
mod offset {
    pub const OWN_PODS: u32 = 0;
    pub const MESH: u32 = 1;
    pub const LOCAL_PORTS: u32 = 2;
    pub const API: u32 = 3;
    pub const SERVES_API: u32 = 4;
    pub const NODES: u32 = 5;
    pub const LANDING: u32 = 6;
}

const MAIN: u32 = 254;
const TCP: u8 = 6;
const UDP: u8 = 17;

pub(super) fn compile(plan: &NetPlan, underlay: &Underlay) -> Desired {
    let guard = Guard::new(plan, underlay);
    let mut overlaps = BTreeSet::new();
    let peers: Vec<TableRoute> = plan
        .routes
        .iter()
        .filter(|r| guard.admits(r.prefix, Some(r.kind), &mut overlaps))
        .map(|r| peer_route(plan, r))
        .collect();
    let claims: Vec<IpNet> =
        plan.claims.iter().map(IpNet::trunc).filter(|c| guard.admits(*c, None, &mut overlaps)).collect();

    let mut routes: BTreeSet<TableRoute> = peers.into_iter().collect();
    for claim in claims.iter().chain(&plan.own_pod_cidrs) {
        routes.insert(claim_route(claim));
    }
    let throws = guard.throws(&routes);
    let mut sets = sets(plan, &claims, &throws);
    sets.extend(relay_sets(plan, underlay));
    routes.extend(throws);
    let rules = rules(plan, &routes);
    Desired { routes, rules, sets, overlaps: overlaps.into_iter().collect() }
}

/// The entry of a route to a peer.
pub(super) fn peer_route(plan: &NetPlan, route: &super::PeerRoute) -> TableRoute {
    let (table, prefix, target) = (table_of(route.kind), route.prefix.trunc(), device(plan, route));
    TableRoute { table, prefix, metric: METRIC_PEER, target }
}

/// The entry that leaves no packet for a claimed prefix without an answer.
pub(super) fn claim_route(claim: &IpNet) -> TableRoute {
    TableRoute { table: TABLE_MESH, prefix: claim.trunc(), metric: METRIC_UNREACHABLE, target: Target::Unreachable }
}

fn table_of(kind: RouteKind) -> u32 {
    match kind {
        RouteKind::Mesh | RouteKind::Pod => TABLE_MESH,
        RouteKind::Node => TABLE_NODES,
    }
}

fn device(plan: &NetPlan, route: &super::PeerRoute) -> Target {
    let v6 = is_v6(&route.prefix);
    let own = || plan.addresses.iter().copied().find(|a| a.is_ipv6() == v6);
    let src = route.src.filter(|s| s.is_ipv6() == v6 && plan.addresses.contains(s)).or_else(own);
    Target::Device { src, mtu: route.mtu.map(u32::from) }
}

/// What is never routed into the mesh.
pub(super) struct Guard {
    protected: Vec<(IpNet, Protected)>,
    own: Vec<IpNet>,
}

impl Guard {
    pub(super) fn new(plan: &NetPlan, underlay: &Underlay) -> Self {
        let hosts = |addresses: &[IpAddr], why| addresses.iter().map(|a| (IpNet::from(*a), why)).collect::<Vec<_>>();
        let api: Vec<IpAddr> = plan.api_servers.iter().map(std::net::SocketAddr::ip).collect();
        let mut protected: Vec<_> = underlay.connected.iter().map(|n| (*n, Protected::Connected)).collect();
        protected.extend(hosts(&underlay.gateways, Protected::Gateway));
        protected.extend(hosts(&underlay.resolvers, Protected::Resolver));
        // Bridges of a CNI, and a cluster resolver, are in ranges that are this node's own and decided before.
        protected.retain(|(net, _)| !plan.own_pod_cidrs.iter().any(|own| own.contains(net)));
        protected.extend(hosts(&api, Protected::ApiServer));
        protected.retain(|(net, _)| !net.addr().is_loopback());
        let addresses = plan.addresses.iter().map(|a| IpNet::from(*a));
        let own =
            addresses.chain(plan.own_pod_cidrs.iter().copied()).chain(plan.own_node_cidrs.iter().copied()).collect();
        Self { protected, own }
    }

    pub(super) fn admits(&self, prefix: IpNet, kind: Option<RouteKind>, overlaps: &mut BTreeSet<Overlap>) -> bool {
        let prefix = prefix.trunc();
        // A claim covers this node's own part of it; a route to a peer must not.
        let own = self.own.iter().find(|net| kind.is_some() && net.contains(&prefix)).map(|net| (*net, Protected::Own));
        let wide = is_wide(&prefix).then_some((prefix, Protected::Internet));
        let special = is_special(prefix.addr()).then_some((prefix, Protected::Special));
        let local = || self.protected.iter().find(|(net, _)| net.contains(&prefix)).copied();
        let hit = own.or(wide).or(special).or_else(local);
        overlaps.extend(hit.map(|(with, why)| Overlap { prefix, kind, with: with.trunc(), why }));
        hit.is_none()
    }

    /// Whether something protected lies within this route, so that it needs others beside it.
    pub(super) fn cuts(&self, route: &TableRoute) -> bool {
        self.protected.iter().any(|(net, _)| route.prefix.contains(net))
    }

    /// `throw` for every protected prefix that lies within a route or claim of the same table.
    fn throws(&self, routes: &BTreeSet<TableRoute>) -> BTreeSet<TableRoute> {
        let mut throws = BTreeSet::new();
        for route in routes {
            for (net, _) in self.protected.iter().filter(|(net, _)| route.prefix.contains(net)) {
                throws.insert(TableRoute {
                    table: route.table,
                    prefix: net.trunc(),
                    metric: METRIC_PEER,
                    target: Target::Throw,
                });
            }
        }
        throws
    }
}

/// Whether a claim of this prefix can be made at all, whatever the node's own network is.
pub(super) fn is_claimable(prefix: &IpNet) -> bool {
    !is_wide(prefix) && !is_special(prefix.addr())
}

fn is_wide(prefix: &IpNet) -> bool {
    prefix.prefix_len() < WIDEST[usize::from(is_v6(prefix))]
}

fn is_special(address: IpAddr) -> bool {
    let one_of_v4 = |a: Ipv4Addr| a.is_link_local() || a.is_broadcast() || a.octets()[0] == 0;
    let other = match address {
        IpAddr::V4(a) => one_of_v4(a),
        IpAddr::V6(a) => a.is_unicast_link_local() || a.is_unspecified() || a.to_ipv4_mapped().is_some(),
    };
    address.is_loopback() || address.is_multicast() || other
}

fn rules(plan: &NetPlan, routes: &BTreeSet<TableRoute>) -> Vec<PolicyRule> {
    let mut rules = Vec::new();
    for v6 in [false, true] {
        let used = |table| routes.iter().any(|r| r.table == table && is_v6(&r.prefix) == v6);
        if !used(TABLE_MESH) && !used(TABLE_NODES) {
            continue;
        }
        let mut rule = |offset, select, action| rules.push(PolicyRule { v6, offset, select, action });
        let exempt = Action::Goto { offset: offset::LANDING };
        for own in plan.own_pod_cidrs.iter().filter(|n| is_v6(n) == v6 && n.prefix_len() > 0) {
            let suppress_prefixlen = Some(u32::from(own.prefix_len()) - 1);
            rule(offset::OWN_PODS, Select::To(own.trunc()), Action::Lookup { table: MAIN, suppress_prefixlen });
        }
        let unmarked = Select::NotMark { value: plan.mark.value, mask: plan.mark.mask };
        let lookup = |table| Action::Lookup { table, suppress_prefixlen: None };
        rule(offset::MESH, unmarked.clone(), lookup(TABLE_MESH));
        let udp: BTreeSet<PortRange> =
            plan.relay_ports.iter().copied().chain([PortRange::one(plan.listen_port)]).collect();
        for ports in udp.into_iter().filter(|p| p.first != 0) {
            rule(offset::LOCAL_PORTS, Select::LocalPort { ip_proto: UDP, ports }, exempt.clone());
        }
        for ports in plan.relay_tcp_ports.iter().copied().collect::<BTreeSet<PortRange>>() {
            rule(offset::LOCAL_PORTS, Select::LocalPort { ip_proto: TCP, ports }, exempt.clone());
        }
        let api: BTreeSet<IpAddr> = plan.api_servers.iter().map(|a| a.ip()).filter(|a| a.is_ipv6() == v6).collect();
        for address in api {
            rule(offset::API, Select::To(address.into()), exempt.clone());
        }
        if let Some(port) = plan.serves_api {
            rule(offset::SERVES_API, Select::LocalPort { ip_proto: TCP, ports: PortRange::one(port) }, exempt.clone());
        }
        rule(offset::NODES, unmarked, lookup(TABLE_NODES));
        rule(offset::LANDING, Select::All, Action::Nop);
    }
    rules
}

/// The sets that hold what the mesh claims, as long as nothing protected lies within a claim.
pub(super) fn claimed(plan: &NetPlan, claims: &[IpNet], guard: &Guard) -> Vec<AddressSet> {
    let admitted = |claim: &IpNet| guard.admits(*claim, None, &mut BTreeSet::new());
    let claims: Vec<IpNet> = claims.iter().map(IpNet::trunc).filter(admitted).collect();
    let mut sets = sets(plan, &claims, &BTreeSet::new());
    sets.retain(|set| CLAIMED.contains(&set.name));
    sets
}

/// Which sets those are.
const CLAIMED: [&str; 2] = ["mesh", "inside"];

/// The nftables sets, for both families, so that the ruleset never changes when a family comes or goes.
fn sets(plan: &NetPlan, claims: &[IpNet], throws: &BTreeSet<TableRoute>) -> Vec<AddressSet> {
    let addresses: Vec<IpNet> = plan.addresses.iter().map(|a| IpNet::from(*a)).collect();
    let own: Vec<IpNet> = [&addresses[..], &plan.own_pod_cidrs, &plan.own_node_cidrs].concat();
    let mesh: Vec<IpNet> = [&addresses[..], &plan.own_pod_cidrs, claims].concat();
    let inside: Vec<IpNet> = [&mesh[..], &plan.service_cidrs, &plan.masquerade.exclude].concat();
    let local: Vec<IpNet> = throws.iter().filter(|t| t.table == TABLE_MESH).map(|t| t.prefix).collect();
    let named = [("own", &own), ("pods", &plan.own_pod_cidrs), ("mesh", &mesh), ("inside", &inside), ("local", &local)];
    let mut sets = Vec::new();
    for (name, nets) in named {
        for v6 in [false, true] {
            sets.push(AddressSet { name, v6, ranges: ranges(nets, v6) });
        }
    }
    sets
}

/// The addresses of this node at which a relay on it is reached by a redirected port. None of what only looks like one: an
/// address that a load balancer has put on an interface of its own stays the balancer's.
fn relay_sets(plan: &NetPlan, underlay: &Underlay) -> impl Iterator<Item = AddressSet> {
    let own = underlay.candidates.iter().filter(|_| plan.relay_redirect.is_some());
    let own: Vec<IpNet> = own.map(|address| IpNet::from(*address)).collect();
    [false, true].into_iter().map(move |v6| AddressSet { name: "relay", v6, ranges: ranges(&own, v6) })
}

#[cfg(test)]
mod tests;
#[cfg(test)]
pub(super) use tests::plan as example;
