//! Which relays a pair has legs on, and why.
//!
//! A wanted peer without a direct path gets a leg on the relay that both nodes prefer among those where they have met. The side
//! that nominates asks for it; the other one binds what it is told of, and asks only if nobody does. A direct pair keeps its leg
//! for half a minute. Whatever fails on one relay is tried on the next first.
//! While packets of users flow there is a [warm] leg as well.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use wire::control::ToRelay;

use super::Peer;
use super::leg::{Leg, May};
use super::relay_path::{Echoes, RelayPath, VAIN_GAP};
use crate::nat::NatClass;
use crate::relay::{MAX_RELAYS, RelayId, preference};
use crate::seldom::AsMade;
use crate::shared::Shared;
use crate::snapshot::LegReport;
use crate::timer::earliest;

mod news;
mod warm;

/// Legs of one peer: the one in use, and the one that it moves to.
const MAX_LEGS: usize = 2;
/// Sockets of relays that packets of this peer may still come from after their leg has gone.
const MAX_FORMER: usize = 4;
/// How long the side that does not nominate waits to be told of a leg before it asks for one itself.
const FOLLOWER_PATIENCE: Duration = Duration::from_secs(1);
/// How long a direct pair keeps its leg: a path that dies young finds the relay ready.
const RELEASE: Duration = Duration::from_secs(30);
/// The same on the other side, which is told when the leg goes, unless that was lost.
const FOLLOWER_RELEASE: Duration = Duration::from_secs(300);
/// How long a leg is kept beyond its time each time that the device turns out to use it.
const LINGER: Duration = Duration::from_secs(5);
/// Legs of this node up to which it keeps warm ones: a relay has 64 places for a node, and whoever needs one comes first.
const ROOM: usize = 24;
/// How long a pair does without a warm leg that the peer had no room for.
const NO_WARM: Duration = Duration::from_secs(300);
/// How long a doubt about the path in use keeps a leg elsewhere.
const DOUBT: Duration = Duration::from_secs(2);
/// How long another relay is preferred to one that failed, doubled each time ..
const SHUN: Duration = Duration::from_secs(5);
/// .. at most.
const MAX_SHUN: Duration = Duration::from_secs(300);

#[derive(Debug)]
pub(super) struct Relayed {
    /// The older first.
    pub(super) legs: Vec<Leg>,
    /// The relayed path in use, or being tried.
    pub(super) path: Option<RelayPath>,
    /// Echoes that try or check it.
    pub(super) echoes: Option<Echoes>,
    /// Smoothed round-trip time of echoes over it.
    pub(super) rtt: Option<Duration>,
    /// Attempts in a row that no echo came of.
    pub(super) failures: u32,
    /// When a relay that was alive was last left for a warm leg, and how often in quick succession.
    vain: Option<(Instant, u32)>,
    /// How often the device was led from the direct path to a relay.
    pub(super) led: u8,
    /// The relay in use, if the peer's agent has gone from there.
    missed_at: Option<RelayId>,
    /// When the path in use was last doubted, by this side or the peer.
    doubted: Option<Instant>,
    /// No warm leg is asked for before this.
    no_warm_until: Option<Instant>,
    shunned: BTreeMap<RelayId, Shunned>,
    former: Vec<SocketAddr>,
    /// Since when there is nobody to be told of a leg by.
    alone_since: Option<Instant>,
    release_at: Option<Instant>,
}

#[derive(Debug, Clone, Copy)]
struct Shunned {
    until: Instant,
    times: u32,
    /// The last that it said of a port for this pair is that it has none.
    no_port: bool,
}

impl AsMade for Relayed {
    const MADE: Self = Self {
        legs: Vec::new(),
        path: None,
        echoes: None,
        rtt: None,
        failures: 0,
        vain: None,
        led: 0,
        missed_at: None,
        doubted: None,
        no_warm_until: None,
        shunned: BTreeMap::new(),
        former: Vec::new(),
        alone_since: None,
        release_at: None,
    };

    fn made() -> &'static Self {
        static MADE: Relayed = Relayed::MADE;
        &MADE
    }

    fn is_as_made(&self) -> bool {
        let Self {
            legs,
            path,
            echoes,
            rtt,
            failures,
            vain,
            led,
            missed_at,
            doubted,
            no_warm_until,
            shunned,
            former,
            alone_since,
            release_at,
        } = self;
        legs.is_empty()
            && (path.is_none() && echoes.is_none() && rtt.is_none())
            && (*failures, *led) == (0, 0)
            && (vain.is_none() && missed_at.is_none() && doubted.is_none() && no_warm_until.is_none())
            && (alone_since.is_none() && release_at.is_none())
            && (shunned.is_empty() && former.is_empty())
    }
}

impl Relayed {
    pub(super) fn leg(&mut self, relay: &RelayId) -> Option<&mut Leg> {
        self.legs.iter_mut().find(|leg| leg.relay == *relay)
    }

    /// Whether packets go by a relay, proven by an echo.
    pub(super) fn is_confirmed(&self) -> bool {
        self.path.is_some_and(|path| path.confirmed)
    }

    /// Where packets go if they go by a relay.
    pub(super) fn confirmed_endpoint(&self) -> Option<SocketAddr> {
        self.path.filter(|path| path.confirmed).map(|path| path.endpoint)
    }

    /// Whether an address is a relay's socket for this pair, now or a while ago.
    pub(super) fn is_relay_socket(&self, remote: SocketAddr) -> bool {
        self.legs.iter().any(|leg| leg.is_at(remote)) || self.former.contains(&remote)
    }

    /// Whether an address of this machine's own stands for a relay's channel, now or a moment ago.
    pub(super) fn is_carried_at(&self, remote: SocketAddr) -> bool {
        self.legs.iter().any(|leg| leg.is_carried_at(remote))
    }

    /// The relay, other than the one in use, where this pair could go on at once.
    pub(super) fn warm_relay(&self) -> Option<RelayId> {
        let used = self.path.map(|path| path.relay);
        self.legs.iter().find(|leg| leg.is_ready() && Some(leg.relay) != used).map(|leg| leg.relay)
    }

    /// How often relays were left in vain in quick succession, until a moment ago.
    pub(super) fn vain_lately(&self, now: Instant) -> u32 {
        self.vain.filter(|(at, _)| now.saturating_duration_since(*at) < VAIN_GAP).map_or(0, |(_, times)| times)
    }

    /// Whether a leg elsewhere may be needed in a moment.
    fn is_in_doubt(&self, now: Instant) -> bool {
        self.doubted.is_some_and(|at| now.saturating_duration_since(at) < DOUBT)
    }

    /// The peer can't be expected to ask for a leg: this side does so at once.
    pub(super) fn ask_at_once(&mut self, now: Instant) {
        self.alone_since = Some(now.checked_sub(FOLLOWER_PATIENCE).unwrap_or(now));
    }

    /// The peer says something by a relay where this side has no leg yet: it has one there, and will not tell of another.
    pub(super) fn peer_is_heard(&mut self, now: Instant) {
        if let Some(since) = &mut self.alone_since {
            *since = now.checked_sub(FOLLOWER_PATIENCE).unwrap_or(*since);
        }
    }

    /// A relay that was left turns out to have been alive.
    pub(super) fn left_in_vain(&mut self, now: Instant) {
        self.vain = Some((now, self.vain_lately(now) + 1));
    }

    /// Whether packets of this pair may still come from a relay.
    pub(super) fn has_sockets(&self) -> bool {
        !self.legs.is_empty() || !self.former.is_empty()
    }

    /// Prefers other relays to this one for a while. Returns how long.
    pub(super) fn shun(&mut self, relay: RelayId, now: Instant) -> Duration {
        if !self.shunned.contains_key(&relay) && self.shunned.len() >= MAX_RELAYS {
            self.shunned.pop_first();
        }
        let shunned = self.shunned.entry(relay).or_insert(Shunned { until: now, times: 0, no_port: false });
        let time = SHUN.saturating_mul(1 << shunned.times.min(6)).min(MAX_SHUN);
        *shunned = Shunned { until: now + time, times: shunned.times.saturating_add(1), ..*shunned };
        time
    }

    /// The relay said whether it has a port for this pair.
    fn set_no_port(&mut self, relay: &RelayId, no_port: bool) {
        // Whoever has none is shunned as well, so there is an entry.
        if let Some(shunned) = self.shunned.get_mut(relay) {
            shunned.no_port = no_port;
        }
    }

    fn is_shunned(&self, relay: &RelayId, now: Instant) -> bool {
        self.shunned.get(relay).is_some_and(|shunned| now < shunned.until)
    }

    pub(super) fn forgive(&mut self, relay: &RelayId) {
        self.shunned.remove(relay);
    }

    fn retire(&mut self, mut leg: Leg, shared: &mut Shared) {
        if let Some(remote) = leg.socket() {
            if self.former.len() >= MAX_FORMER {
                self.former.remove(0);
            }
            self.former.push(remote);
        }
        leg.forget(shared);
    }

    pub(super) fn report(&self) -> Vec<LegReport> {
        self.legs.iter().map(Leg::report).collect()
    }
}

impl Peer {
    /// Whether there is a leg on this relay, or one is wanted.
    pub(crate) fn has_leg(&self, relay: RelayId) -> bool {
        self.relayed.legs.iter().any(|leg| leg.relay == relay)
    }

    /// A leg that the relay has, although this side does not know it any more.
    pub(super) fn expect_leg(&mut self, relay: RelayId, port: u16) {
        if self.relayed.leg(&relay).is_none() && self.relayed.legs.len() < MAX_LEGS {
            self.relayed.legs.push(Leg::wanted(relay, Some(port), None));
        }
    }

    /// This node's addresses or NATs are others.
    pub(super) fn rebind_legs(&mut self, now: Instant) {
        for leg in &mut self.relayed.legs {
            leg.bind_now(now);
        }
    }

    /// Gives up legs whose relay must not be sent to any more.
    pub(super) fn leave_forbidden_relays(&mut self, shared: &mut Shared) {
        let is_forbidden = |leg: &&Leg| leg.socket().is_some_and(|remote| shared.filter.check_remote(remote).is_err());
        let gone: Vec<RelayId> = self.relayed.legs.iter().filter(is_forbidden).map(|leg| leg.relay).collect();
        for relay in gone {
            if self.relayed.path.is_some_and(|path| path.relay == relay) {
                self.relayed.path = None;
                self.relayed.echoes = None;
            }
            self.give_up(relay, shared);
        }
    }

    /// Gives up all legs, saying so where that is possible.
    pub(crate) fn release_legs(&mut self, shared: &mut Shared) {
        for leg in std::mem::take(&mut self.relayed.legs) {
            self.say_release(&leg, shared);
            self.relayed.retire(leg, shared);
        }
        self.relayed.path = None;
        self.relayed.echoes = None;
        self.relayed.release_at = None;
        self.relayed.alone_since = None;
    }

    /// Asks, binds, refreshes and releases what is due.
    pub(super) fn drive_legs(&mut self, shared: &mut Shared, now: Instant) {
        if !self.wanted {
            return self.release_legs(shared);
        }
        if self.direct.is_some() {
            self.relayed.alone_since = None;
            self.drive_release(shared, now);
        } else {
            self.relayed.release_at = None;
            self.want_leg(shared, now);
        }
        self.keep_warm(shared, now);
        let peer = self.key;
        for at in 0..self.relayed.legs.len() {
            let may = self.may(self.relayed.legs[at].relay, now);
            self.relayed.legs[at].drive(peer, may, shared, now);
        }
        self.follow_leg(shared, now);
    }

    pub(super) fn legs_timeout(&self, now: Instant) -> Option<Instant> {
        let legs = self.relayed.legs.iter().filter_map(|leg| leg.poll_timeout(self.may(leg.relay, now)));
        let alone = self.relayed.alone_since;
        let cools = self.traffic.busy_until().filter(|at| !self.relayed.legs.is_empty() && now < *at);
        earliest([legs.min(), alone.map(|at| at + FOLLOWER_PATIENCE), self.relayed.release_at, cools])
    }

    /// What a leg may do now.
    fn may(&self, relay: RelayId, now: Instant) -> May {
        let keeps = self.keeps_legs(now);
        let is_held = !self.rest.is_let_go() && self.relayed.path.is_some_and(|path| path.relay == relay);
        let spare = self.direct.is_some() || !is_held;
        May { ask: keeps && self.met.contains(&relay), refresh: keeps, spare, use_own: self.uses_own_relay() }
    }

    /// Whether this node's leg is the relay's channel because neither of the two got there by UDP.
    pub(super) fn is_without_udp(&self, relay: RelayId, shared: &Shared) -> bool {
        let over_tcp = shared.relays.get(&relay).is_some_and(|known| known.over_tcp);
        let is_it = |leg: &Leg| leg.relay == relay && leg.is_attached() && leg.socket().is_some();
        over_tcp && self.relayed.legs.iter().any(is_it)
    }

    /// Whether this pair goes by a relay of this very node: the peer's network lets no UDP out, or the first round of probes came to
    /// nothing. Others are direct before that, because a relay's node is one that others reach.
    fn uses_own_relay(&self) -> bool {
        self.punch.told.is_some_and(|peer| peer.class == NatClass::Blocked) || !self.ladder.is_fresh()
    }

    /// A direct pair's leg may lapse, unless packets flow.
    fn keeps_legs(&self, now: Instant) -> bool {
        self.direct.is_none() || self.traffic.is_steady(now) || self.relayed.is_in_doubt(now)
    }

    fn drive_release(&mut self, shared: &mut Shared, now: Instant) {
        let has_room = shared.legs.len() <= ROOM;
        let is_needed = (has_room && self.traffic.is_steady(now)) || self.relayed.is_in_doubt(now);
        if self.relayed.legs.is_empty() || is_needed {
            self.relayed.release_at = None;
            return;
        }
        self.relayed.legs.retain(Leg::is_allocated);
        let time = if self.nominates || !has_room { RELEASE } else { FOLLOWER_RELEASE };
        let due = *self.relayed.release_at.get_or_insert(now + time);
        if due > now {
            return;
        }
        if self.traffic.device.is_some_and(|remote| self.relayed.is_relay_socket(remote)) {
            // Packets still go by the relay, whatever this side chose.
            self.relayed.release_at = Some(now + LINGER);
        } else {
            self.release_legs(shared);
        }
    }

    /// Sees to it that there is a leg on the way.
    fn want_leg(&mut self, shared: &mut Shared, now: Instant) {
        let Some(target) = self.best_relay(None, shared, now) else {
            self.relayed.alone_since = None;
            return;
        };
        let holds = |leg: &Leg| leg.relay == target || self.may_serve(leg, shared, now);
        if self.relayed.legs.iter().any(holds) {
            self.relayed.alone_since = None;
            return;
        }
        if !self.nominates {
            let since = *self.relayed.alone_since.get_or_insert(now);
            if now < since + FOLLOWER_PATIENCE {
                return;
            }
            self.relayed.alone_since = None;
        }
        self.make_room(shared);
        self.relayed.legs.push(Leg::wanted(target, None, Some(now)));
    }

    /// The relay that both nodes prefer, of those that can be used at all, but for one, and rather in another failure domain than that.
    fn best_relay(&self, except: Option<RelayId>, shared: &Shared, now: Instant) -> Option<RelayId> {
        let own = shared.own_key;
        let has_socket = |relay: &RelayId| shared.relay_socket(relay, 1, 0).is_some();
        let usable = self.usable_relays(shared).filter(|relay| Some(**relay) != except);
        let rank = |relay: &&RelayId| {
            let apart = except.is_none_or(|except| shared.relays.are_apart(relay, &except));
            (!self.relayed.is_shunned(relay, now), has_socket(relay), apart, preference(relay, &own, &self.key))
        };
        usable.max_by_key(rank).copied()
    }

    /// The relays where this node and the peer have met, of those that a leg can be had on.
    fn usable_relays(&self, shared: &Shared) -> impl Iterator<Item = &RelayId> {
        self.met.iter().filter(|relay| {
            !shared.relays.is_ending(relay)
                && (shared.relay_socket(relay, 1, 0).is_some() || (self.uses_own_relay() && shared.can_carry(relay)))
        })
    }

    /// Whether each of them, and there is one, has said that it has no port left for this pair.
    pub(super) fn finds_no_port(&self, shared: &Shared) -> bool {
        let has_none = |relay: &RelayId| self.relayed.shunned.get(relay).is_some_and(|shunned| shunned.no_port);
        let mut usable = self.usable_relays(shared).peekable();
        usable.peek().is_some() && usable.all(has_none)
    }

    /// Takes a leg away that is not in use, if there are as many as there may be.
    fn make_room(&mut self, shared: &mut Shared) {
        if self.relayed.legs.len() < MAX_LEGS {
            return;
        }
        let used = self.relayed.path.map(|path| path.relay);
        let spare = self.relayed.legs.iter().map(|leg| leg.relay).find(|relay| Some(*relay) != used);
        if let Some(spare) = spare {
            self.give_up(spare, shared);
        }
    }

    fn give_up_leg(&mut self, relay: RelayId, shared: &mut Shared, now: Instant) {
        self.relayed.shun(relay, now);
        self.give_up(relay, shared);
    }

    fn give_up(&mut self, relay: RelayId, shared: &mut Shared) {
        if let Some(leg) = self.relayed.legs.iter().find(|leg| leg.relay == relay) {
            self.say_release(leg, shared);
        }
        self.drop_leg(relay, shared);
    }

    pub(super) fn drop_leg(&mut self, relay: RelayId, shared: &mut Shared) {
        if let Some(at) = self.relayed.legs.iter().position(|leg| leg.relay == relay) {
            let leg = self.relayed.legs.remove(at);
            self.relayed.retire(leg, shared);
        }
    }

    fn say_release(&self, leg: &Leg, shared: &mut Shared) {
        if shared.relays.is_open(&leg.relay) {
            shared.send_control(leg.relay, ToRelay::Release(self.key));
        }
    }
}
