//! A change of a few peers' routes, and of what the mesh claims on their account, on a host network that stands: one message
//! for each route, and one for the sets of the packet filter.

use ipnet::IpNet;
use nlink::netlink::types::route::RouteType;
use nlink::{Connection, Nftables, Route};

use super::compile::{self, Guard, TableRoute};
use super::own::{Asked, OwnChanges, Thing};
use super::ranges::is_v6;
use super::{NetError, NetPlan, PeerRoute, Underlay, firewall, routes};

/// What [`super::apply`] left standing, as far as later changes of routes depend on it.
#[derive(Debug, Clone)]
pub struct Ground {
    pub(super) device: u32,
    pub(super) underlay: Underlay,
    /// Families that have rules, IPv4 and IPv6.
    pub(super) families: [bool; 2],
}

/// Routes to peers that come and go, and what the mesh claims besides or no longer; nothing is in two lists.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Rerouting {
    /// Routes to peers that are there now.
    pub add: Vec<PeerRoute>,
    /// Those of peers that are gone.
    pub remove: Vec<PeerRoute>,
    /// Claims that are made now.
    pub claim: Vec<IpNet>,
    /// Claims that are given up.
    pub unclaim: Vec<IpNet>,
}

/// Changes these routes and claims and looks at nothing else; `plan` is the one that stands then, whatever its routes are.
///
/// `false` if the change concerns more than these, or did not succeed: then the whole plan has to be applied.
pub async fn reroute(plan: &NetPlan, ground: &Ground, change: &Rerouting, own: &OwnChanges) -> Result<bool, NetError> {
    let guard = Guard::new(plan, &ground.underlay);
    let route = |list: &[PeerRoute]| list.iter().map(|route| alone(plan, ground, &guard, route)).collect();
    let claim = |list: &[IpNet]| list.iter().map(|claim| claim_alone(plan, ground, &guard, claim)).collect();
    let of_peers: [Option<Vec<TableRoute>>; 2] = [&change.add, &change.remove].map(|list| route(list));
    let of_claims: [Option<Vec<TableRoute>>; 2] = [&change.claim, &change.unclaim].map(|list| claim(list));
    let ([Some(add), Some(remove)], [Some(claim), Some(unclaim)]) = (of_peers, of_claims) else { return Ok(false) };
    let conn = Connection::<Route>::new().map_err(NetError::netlink("open a route socket"))?;
    let changer = Changer { conn: &conn, device: ground.device, own };
    // What is closed is closed before a way leads in, and open only when none does any more.
    let done = changer.put(&claim).await
        && close(plan, &guard, change, own).await?
        && changer.put(&add).await
        && changer.remove(&remove, routes::KIND_OF_PEERS).await
        && changer.remove(&unclaim, routes::KIND_OF_CLAIMS).await
        && open(plan, &guard, change, own).await?;
    Ok(done)
}

/// Changes single routes, which the watch then takes for our own doing.
struct Changer<'a> {
    conn: &'a Connection<Route>,
    device: u32,
    own: &'a OwnChanges,
}

impl Changer<'_> {
    async fn put(&self, list: &[TableRoute]) -> bool {
        for route in list {
            let thing = Thing::Route(routes::key(route));
            self.own.expect(Asked::Set, thing.clone());
            if let Err(error) = routes::put(self.conn, self.device, route).await {
                self.own.forget(Asked::Set, thing);
                tracing::debug!(?route, %error, "a route was not set; looking at all of them");
                return false;
            }
        }
        true
    }

    async fn remove(&self, list: &[TableRoute], kind: RouteType) -> bool {
        for route in list {
            let key = routes::key(route);
            self.own.expect(Asked::Remove, Thing::Route(key));
            if let Err(error) = routes::remove(self.conn, &key, kind).await {
                self.own.forget(Asked::Remove, Thing::Route(key));
                tracing::debug!(?route, %error, "a route was not removed; looking at all of them");
                return false;
            }
        }
        true
    }
}

/// Puts new claims into the sets of the packet filter; those that are given up are in them still.
async fn close(plan: &NetPlan, guard: &Guard, change: &Rerouting, own: &OwnChanges) -> Result<bool, NetError> {
    if change.claim.is_empty() {
        return Ok(true);
    }
    let kept = plan.claims.iter().filter(|claim| !change.claim.contains(claim)).copied();
    let before: Vec<IpNet> = kept.chain(change.unclaim.iter().copied()).collect();
    refill(plan, [&before, &[&plan.claims[..], &change.unclaim].concat()], guard, own).await
}

/// Takes claims that are given up out of them.
async fn open(plan: &NetPlan, guard: &Guard, change: &Rerouting, own: &OwnChanges) -> Result<bool, NetError> {
    if change.unclaim.is_empty() {
        return Ok(true);
    }
    refill(plan, [&[&plan.claims[..], &change.unclaim].concat(), &plan.claims], guard, own).await
}

/// Changes the sets from those of some claims to those of others.
async fn refill(plan: &NetPlan, claims: [&[IpNet]; 2], guard: &Guard, own: &OwnChanges) -> Result<bool, NetError> {
    let nft = Connection::<Nftables>::new().map_err(NetError::netlink("open an nftables socket"))?;
    let [before, after] = claims.map(|claims| compile::claimed(plan, claims, guard));
    let changed = firewall::change(&nft, &before, &after, own).await;
    Ok(changed.unwrap_or_else(|error| {
        tracing::debug!(%error, "claims were not changed alone; looking at everything");
        false
    }))
}

/// The entry of a route that nothing else depends on.
fn alone(plan: &NetPlan, ground: &Ground, guard: &Guard, route: &PeerRoute) -> Option<TableRoute> {
    let entry = compile::peer_route(plan, route);
    let refused = !guard.admits(route.prefix, Some(route.kind), &mut Default::default());
    let stands = ground.families[usize::from(is_v6(&route.prefix))];
    (!refused && stands && !guard.cuts(&entry)).then_some(entry)
}

/// The entry of a claim that is not the only one of its family, and that nothing of this node's own has to do with.
fn claim_alone(plan: &NetPlan, ground: &Ground, guard: &Guard, claim: &IpNet) -> Option<TableRoute> {
    let entry = compile::claim_route(claim);
    let refused = !guard.admits(*claim, None, &mut Default::default());
    let own = plan.own_pod_cidrs.iter().any(|own| own.trunc() == entry.prefix);
    let others = plan.claims.iter().any(|other| is_v6(other) == is_v6(claim) && other.trunc() != entry.prefix);
    let stands = ground.families[usize::from(is_v6(claim))] && others;
    (!refused && !own && stands && !guard.cuts(&entry)).then_some(entry)
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
