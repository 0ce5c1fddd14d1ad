//! A change of a few peers' routes on a host network that stands, in one message for each route.

use ipnet::IpNet;
use nlink::{Connection, Route};

use super::compile::{self, Guard, TableRoute};
use super::own::{Asked, OwnChanges};
use super::ranges::is_v6;
use super::{NetError, NetPlan, PeerRoute, Underlay, routes};

/// What [`super::apply`] left standing, as far as later changes of routes depend on it.
#[derive(Debug, Clone)]
pub struct Ground {
    pub(super) device: u32,
    pub(super) underlay: Underlay,
    /// Families that have rules, IPv4 and IPv6.
    pub(super) families: [bool; 2],
}

/// Routes to peers that come and go; none is in both.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Rerouting {
    /// Routes to peers that are there now.
    pub add: Vec<PeerRoute>,
    /// Those of peers that are gone.
    pub remove: Vec<PeerRoute>,
}

/// Changes these routes and looks at nothing else; `plan` is the one that stands, whatever its routes are.
///
/// `false` if the change concerns more than these routes, or did not succeed: then the whole plan has to be applied.
pub async fn reroute(plan: &NetPlan, ground: &Ground, change: &Rerouting, own: &OwnChanges) -> Result<bool, NetError> {
    let guard = Guard::new(plan, &ground.underlay);
    let compiled = |list: &[PeerRoute]| list.iter().map(|route| alone(plan, ground, &guard, route)).collect();
    let (Some(add), Some(remove)): (Option<Vec<TableRoute>>, Option<Vec<TableRoute>>) =
        (compiled(&change.add), compiled(&change.remove))
    else {
        return Ok(false);
    };
    let conn = Connection::<Route>::new().map_err(NetError::netlink("open a route socket"))?;
    for route in &add {
        let key = routes::key(route);
        own.expect(Asked::Set, key);
        if let Err(error) = routes::put(&conn, ground.device, route).await {
            own.forget(Asked::Set, key);
            tracing::debug!(?route, %error, "a route was not set; looking at all of them");
            return Ok(false);
        }
    }
    for route in &remove {
        let key = routes::key(route);
        own.expect(Asked::Remove, key);
        if let Err(error) = routes::remove(&conn, &key, routes::KIND_OF_PEERS).await {
            own.forget(Asked::Remove, key);
            tracing::debug!(?route, %error, "a route was not removed; looking at all of them");
            return Ok(false);
        }
    }
    Ok(true)
}

/// The entry of a route that nothing else depends on.
fn alone(plan: &NetPlan, ground: &Ground, guard: &Guard, route: &PeerRoute) -> Option<TableRoute> {
    let entry = compile::peer_route(plan, route);
    let refused = !guard.admits(route.prefix, Some(route.kind), &mut Default::default());
    let stands = ground.families[usize::from(is_v6(&route.prefix))];
    (!refused && stands && !guard.cuts(&entry)).then_some(entry)
}

/// The least claims that close the same addresses: `ranges` of the mesh, and of `others` what lies in none of them that a
/// node takes for a claim.
pub fn least_claims(ranges: &[IpNet], others: impl IntoIterator<Item = IpNet>) -> Vec<IpNet> {
    let ranges: Vec<IpNet> = ranges.iter().map(IpNet::trunc).filter(compile::is_claimable).collect();
    let closed = |net: &IpNet| ranges.iter().any(|range| range.contains(net) && range != net);
    let mut claims: Vec<IpNet> = others.into_iter().map(|net| net.trunc()).filter(|net| !closed(net)).collect();
    claims.extend(&ranges);
    claims.sort_unstable();
    claims.dedup();
    claims
}
