//! A stream of "something changed", so that what others took away is put back at once.

use std::time::Duration;

use futures::stream::{BoxStream, StreamExt, select};
use nlink::netlink::RtnetlinkGroup;
use nlink::netlink::events::NetworkEvent;
use nlink::netlink::messages::RouteMessage;
use nlink::netlink::nftables::{NftablesEvent, NftablesGroup, SetElement, SetElementsEvent};
use nlink::{Connection, Nftables, Route};
use tokio::time::{Instant, sleep_until};

use super::own::{Asked, OwnChanges, Thing};
use super::routes::key_if_ours;
use super::{NFT_TABLE, NetError};

/// Silence that ends a burst: an interface that comes up makes a dozen events within a few milliseconds.
const QUIET: Duration = Duration::from_millis(100);

/// A burst is reported after this long even if it goes on; leaves most of two seconds to repair.
const LONGEST: Duration = Duration::from_millis(500);

/// What changed since the last report. All false never happens.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Changed {
    /// Interfaces or their addresses: candidates may be others now.
    pub links: bool,
    /// Routes, of anybody.
    pub routes: bool,
    /// Policy rules, of anybody.
    pub rules: bool,
    /// Our nftables table, or a forward chain of somebody else.
    pub firewall: bool,
    /// Events were lost: read everything again.
    pub lost: bool,
}

impl Changed {
    /// Everything may have changed.
    pub const ALL: Self = Self { links: true, routes: true, rules: true, firewall: true, lost: true };

    fn merge(&mut self, other: Self) {
        self.links |= other.links;
        self.routes |= other.routes;
        self.rules |= other.rules;
        self.firewall |= other.firewall;
        self.lost |= other.lost;
    }

    fn any(self) -> bool {
        self != Self::default()
    }
}

/// Watches the host network; see [`Watch::changed`].
pub struct Watch {
    events: BoxStream<'static, Option<Changed>>,
    pending: Changed,
    first: Option<Instant>,
    last: Option<Instant>,
}

/// Starts watching. Changes made from now on are reported, but for those in `own`. At others of our own apply again and find
/// nothing to do.
pub async fn watch(own: &OwnChanges) -> Result<Watch, NetError> {
    use RtnetlinkGroup::{Ipv4Addr, Ipv4Route, Ipv4Rule, Ipv6Addr, Ipv6Route, Ipv6Rule, Link};
    let route = Connection::<Route>::new().map_err(NetError::netlink("open a route socket"))?;
    route
        .subscribe(&[Link, Ipv4Addr, Ipv6Addr, Ipv4Route, Ipv6Route, Ipv4Rule, Ipv6Rule])
        .map_err(NetError::netlink("subscribe to network events"))?;
    // What was asked for before is not announced here.
    own.clear();
    let nft = Connection::<Nftables>::new().map_err(NetError::netlink("open an nftables socket"))?;
    nft.subscribe(&[NftablesGroup::All]).map_err(NetError::netlink("subscribe to nftables events"))?;
    let (own, own_sets) = (own.clone(), own.clone());
    let network = route.into_events().await.map(move |event| match event {
        Ok(event) => Some(of_network(&event, &own)),
        Err(error) => {
            own.clear();
            lost(&error)
        }
    });
    let ruleset = nft.into_events().await.map(move |event| match event {
        Ok(event) => Some(of_ruleset(&event, &own_sets)),
        Err(error) => {
            own_sets.clear();
            lost(&error)
        }
    });
    // Either stream's end is the end of both, or one half of the changes would go unseen.
    let events = select(network.chain(end()), ruleset.chain(end()));
    let events = events.filter(|c| std::future::ready(c.is_none_or(Changed::any))).boxed();
    Ok(Watch { events, pending: Changed::default(), first: None, last: None })
}

impl Watch {
    /// Waits for a change and for the burst it came in to end. `None` when the kernel closed the streams: watch anew.
    /// Dropping the future loses nothing.
    pub async fn changed(&mut self) -> Option<Changed> {
        loop {
            let due = self.first.zip(self.last).map(|(first, last)| (last + QUIET).min(first + LONGEST));
            tokio::select! {
                biased;
                () = async { if let Some(due) = due { sleep_until(due).await } }, if due.is_some() => {
                    self.first = None;
                    self.last = None;
                    return Some(std::mem::take(&mut self.pending));
                }
                event = self.events.next() => {
                    let event = event.flatten()?;
                    let now = Instant::now();
                    self.pending.merge(event);
                    self.first.get_or_insert(now);
                    self.last = Some(now);
                }
            }
        }
    }
}

/// A full socket buffer means that events were lost and more will come; any other error, that the socket is of no use.
fn lost(error: &nlink::Error) -> Option<Changed> {
    error.is_no_buffer_space().then_some(Changed::ALL)
}

fn end() -> impl futures::Stream<Item = Option<Changed>> {
    futures::stream::iter([None])
}

fn of_network(event: &NetworkEvent, own: &OwnChanges) -> Changed {
    use NetworkEvent::{DelAddress, DelLink, DelRoute, DelRule, NewAddress, NewLink, NewRoute, NewRule};
    let none = Changed::default();
    match event {
        NewLink(_) | DelLink(_) | NewAddress(_) | DelAddress(_) => Changed { links: true, ..none },
        NewRoute(route) if is_own(route, Asked::Set, own) => none,
        DelRoute(route) if is_own(route, Asked::Remove, own) => none,
        NewRoute(_) | DelRoute(_) => Changed { routes: true, ..none },
        NewRule(_) | DelRule(_) => Changed { rules: true, ..none },
        _ => none,
    }
}

fn is_own(route: &RouteMessage, asked: Asked, own: &OwnChanges) -> bool {
    key_if_ours(route).is_some_and(|key| own.forget(asked, Thing::Route(key)))
}

/// Whether somebody else changed one of these elements.
fn is_strange(event: &SetElementsEvent, asked: Asked, own: &OwnChanges) -> bool {
    let thing =
        |e: &SetElement| Thing::Element { set: event.set.clone(), key: e.key().to_vec(), ends: e.is_interval_end() };
    // Each of them, or the rest would stay expected for ever.
    let strange = event.elements.iter().filter(|element| !own.forget(asked, thing(element))).count();
    event.table == NFT_TABLE && strange > 0
}

/// Only what concerns us: kube-proxy rewrites its own table all day.
fn of_ruleset(event: &NftablesEvent, own: &OwnChanges) -> Changed {
    use NftablesEvent::{
        DelChain, DelRule, DelSet, DelSetElements, DelTable, NewChain, NewRule, NewSet, NewSetElements, NewTable,
    };
    let firewall = match event {
        NewTable(t) | DelTable(t) => t.name == NFT_TABLE,
        NewChain(c) | DelChain(c) => c.table == NFT_TABLE || super::forward::is_forward(c),
        NewRule(r) | DelRule(r) => r.table == NFT_TABLE,
        NewSet(s) | DelSet(s) => s.table == NFT_TABLE,
        NewSetElements(e) => is_strange(e, Asked::Set, own),
        DelSetElements(e) => is_strange(e, Asked::Remove, own),
        _ => false,
    };
    Changed { firewall, ..Changed::default() }
}
