//! Routes: ours are those of our two tables that carry our protocol number.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;
use nlink::netlink::messages::RouteMessage;
use nlink::netlink::types::route::{RouteProtocol, RouteScope, RouteType};
use nlink::{Connection, Ipv4Route, Ipv6Route, Route, RouteMetrics};

use super::compile::{TableRoute, Target};
use super::{ChangeKind, PROTOCOL, Problem, Report, TABLE_MESH, TABLE_NODES};

/// What tells two routes of the kernel apart.
pub(super) type Key = (u32, IpNet, u32);

/// The kind of the route of a claim.
pub(super) const KIND_OF_CLAIMS: RouteType = RouteType::Unreachable;

/// The kind of a route into the device.
pub(super) const KIND_OF_PEERS: RouteType = RouteType::Unicast;

pub(super) async fn apply(conn: &Connection<Route>, device: u32, desired: &BTreeSet<TableRoute>, report: &mut Report) {
    let found = match ours(conn).await {
        Ok(found) => found,
        Err(e) => return report.failed(ChangeKind::Route, "list the routes", e),
    };
    report.problems.extend(found.foreign);
    let wanted: BTreeMap<Key, &TableRoute> = desired.iter().map(|r| (key(r), r)).collect();
    // `unreachable` first, so that there is no moment in which a claimed prefix has no answer.
    let ordered = wanted.values().filter(|r| r.target == Target::Unreachable);
    let ordered = ordered.chain(wanted.values().filter(|r| r.target != Target::Unreachable));
    for route in ordered {
        if found.standing.get(&key(route)).is_some_and(|seen| seen.is(route, device)) {
            continue;
        }
        match put(conn, device, route).await {
            Ok(()) => report.changed(ChangeKind::Route, format!("set {route:?}")),
            Err(e) if matches!(route.target, Target::Device { .. }) => report.failed_peer(format!("set {route:?}"), e),
            Err(e) => report.failed(ChangeKind::Route, format!("set {route:?}"), e),
        }
    }
    for (key, seen) in found.standing.iter().filter(|(key, _)| !wanted.contains_key(*key)) {
        match remove(conn, key, seen.message.route_type()).await {
            Ok(()) => report.changed(ChangeKind::Route, format!("removed {key:?}")),
            Err(e) => report.failed(ChangeKind::Route, format!("remove {key:?}"), e),
        }
    }
}

/// Removes every route of ours, or says which it would remove.
pub(super) async fn remove_all(conn: &Connection<Route>, dry_run: bool, report: &mut Vec<String>) -> nlink::Result<()> {
    for (key, seen) in ours(conn).await?.standing {
        if !dry_run {
            remove(conn, &key, seen.message.route_type()).await?;
        }
        report.push(format!("route {} table {} metric {}", key.1, key.0, key.2));
    }
    Ok(())
}

struct Found {
    standing: BTreeMap<Key, Seen>,
    foreign: Vec<Problem>,
}

/// A route of ours as the kernel has it.
struct Seen {
    message: RouteMessage,
}

impl Seen {
    fn is(&self, route: &TableRoute, device: u32) -> bool {
        let m = &self.message;
        match &route.target {
            Target::Device { src, mtu } => {
                m.route_type() == RouteType::Unicast
                    && m.oif() == Some(device)
                    && m.gateway().is_none()
                    && m.prefsrc().copied() == *src
                    && m.metrics().and_then(|x| x.mtu) == *mtu
            }
            Target::Unreachable => m.route_type() == RouteType::Unreachable,
            Target::Throw => m.route_type() == RouteType::Throw,
        }
    }
}

async fn ours(conn: &Connection<Route>) -> nlink::Result<Found> {
    let mut found = Found { standing: BTreeMap::new(), foreign: Vec::new() };
    for message in conn.get_routes().await? {
        let table = message.table_id();
        if table != TABLE_MESH && table != TABLE_NODES {
            continue;
        }
        let Some(prefix) = prefix(&message) else {
            continue;
        };
        if message.protocol() == RouteProtocol::from(PROTOCOL) {
            found.standing.insert((table, prefix, message.priority().unwrap_or(0)), Seen { message });
        } else {
            found.foreign.push(Problem::RouteConflict {
                found: format!("route {prefix} of another owner in table {table}"),
                remedy: format!(
                    "remove it, or move it out of the table: tables {TABLE_MESH} and {TABLE_NODES} are Warren's"
                ),
            });
        }
    }
    Ok(found)
}

/// What tells this route from others, if it is one of ours.
pub(super) fn key_if_ours(message: &RouteMessage) -> Option<Key> {
    let table = message.table_id();
    let ours = [TABLE_MESH, TABLE_NODES].contains(&table) && message.protocol() == RouteProtocol::from(PROTOCOL);
    Some((table, prefix(message).filter(|_| ours)?, message.priority().unwrap_or(0)))
}

fn prefix(m: &RouteMessage) -> Option<IpNet> {
    let unspecified = if m.is_ipv6() { Ipv6Addr::UNSPECIFIED.into() } else { Ipv4Addr::UNSPECIFIED.into() };
    IpNet::new(m.destination().copied().unwrap_or(unspecified), m.dst_len()).ok()
}

pub(super) fn key(route: &TableRoute) -> Key {
    (route.table, route.prefix, route.metric)
}

pub(super) async fn put(conn: &Connection<Route>, device: u32, route: &TableRoute) -> nlink::Result<()> {
    let own = RouteProtocol::from(PROTOCOL);
    match route.prefix {
        IpNet::V4(net) => {
            let mut r = Ipv4Route::from_addr(net.addr(), net.prefix_len())
                .table(route.table)
                .protocol(own)
                .metric(route.metric);
            match &route.target {
                Target::Device { src, mtu } => {
                    r = r.dev_index(device).scope(RouteScope::Link);
                    if let Some(IpAddr::V4(src)) = src {
                        r = r.prefsrc(*src);
                    }
                    if let Some(mtu) = mtu {
                        r = r.metrics(RouteMetrics::new().mtu(*mtu));
                    }
                }
                Target::Unreachable => r = r.route_type(RouteType::Unreachable),
                Target::Throw => r = r.route_type(RouteType::Throw),
            }
            conn.replace_route(r).await
        }
        IpNet::V6(net) => {
            let mut r = Ipv6Route::from_addr(net.addr(), net.prefix_len())
                .table(route.table)
                .protocol(own)
                .metric(route.metric);
            match &route.target {
                Target::Device { src, mtu } => {
                    r = r.dev_index(device);
                    if let Some(IpAddr::V6(src)) = src {
                        r = r.prefsrc(*src);
                    }
                    if let Some(mtu) = mtu {
                        r = r.metrics(RouteMetrics::new().mtu(*mtu));
                    }
                }
                Target::Unreachable => r = r.route_type(RouteType::Unreachable),
                Target::Throw => r = r.route_type(RouteType::Throw),
            }
            conn.replace_route(r).await
        }
    }
}

pub(super) async fn remove(conn: &Connection<Route>, key: &Key, kind: RouteType) -> nlink::Result<()> {
    let (table, prefix, metric) = *key;
    let own = RouteProtocol::from(PROTOCOL);
    match prefix {
        IpNet::V4(net) => {
            let r = Ipv4Route::from_addr(net.addr(), net.prefix_len()).table(table).protocol(own).metric(metric);
            conn.del_route(r.route_type(kind).scope(RouteScope::Nowhere)).await
        }
        IpNet::V6(net) => {
            let r = Ipv6Route::from_addr(net.addr(), net.prefix_len()).table(table).protocol(own).metric(metric);
            conn.del_route(r.route_type(kind)).await
        }
    }
}
