//! The warm leg: bound and ready on another relay than the one in use, or on any if the pair is direct, while packets of users flow. What
//! dies then is left within a second, without asking anybody.

use std::time::Instant;

use super::ROOM;
use crate::peer::Peer;
use crate::peer::leg::Leg;
use crate::relay::RelayId;
use crate::shared::Shared;

impl Peer {
    /// Asks for a leg to fall back to while packets flow, and lets it go afterwards. The side that nominates does.
    pub(super) fn keep_warm(&mut self, shared: &mut Shared, now: Instant) {
        let used = self.relayed.path.filter(|path| path.confirmed);
        if !self.nominates || (self.direct.is_none() && used.is_none()) {
            return;
        }
        if !self.traffic.is_steady(now) {
            if self.relayed.is_in_doubt(now) {
                return;
            }
            if let Some(path) = used.filter(|path| path.is_settled(now) && !shared.relays.is_ending(&path.relay)) {
                self.drop_needless_legs(path.relay, shared, now);
            }
            return;
        }
        // Of a direct pair the peer may have let it go for want of room; a relayed one has nothing else to fall back to.
        let waits = self.direct.is_some() && self.relayed.no_warm_until.is_some_and(|until| now < until);
        if waits || shared.legs.len() >= ROOM {
            return;
        }
        let used = used.map(|path| path.relay);
        let serves = |leg: &Leg| Some(leg.relay) != used && self.may_serve(leg, shared, now);
        if self.relayed.legs.iter().any(serves) {
            return;
        }
        let target = self.best_relay(used, shared, now).filter(|relay| !self.relayed.is_shunned(relay, now));
        if let Some(target) = target.filter(|target| !self.relayed.legs.iter().any(|leg| leg.relay == *target)) {
            self.make_room(shared);
            self.relayed.legs.push(Leg::wanted(target, None, Some(now)));
        }
    }

    /// The path in use may be dead, and packets flow: a way out is to be there by the time that it is needed. Either side asks, because the
    /// other one may notice nothing.
    pub(in crate::peer) fn seek_way_out(&mut self, shared: &mut Shared, now: Instant) {
        if !self.wanted || !self.traffic.is_busy(now) {
            return;
        }
        self.relayed.doubted = Some(now);
        let used = self.relayed.path.map(|path| path.relay);
        let leads_out = |leg: &Leg| Some(leg.relay) != used && !shared.relays.is_ending(&leg.relay);
        if self.relayed.legs.iter().any(leads_out) {
            return;
        }
        if let Some(target) = self.best_relay(used, shared, now) {
            self.make_room(shared);
            self.relayed.legs.push(Leg::wanted(target, None, Some(now)));
        }
    }

    /// A check was over because data arrived. That was perhaps the last that had been on its way: with a leg to go to the next doubt need not
    /// wait.
    pub(in crate::peer) fn doubt_again(&mut self) {
        if self.relayed.warm_relay().is_some() {
            self.traffic.checked = None;
        }
    }

    /// The channel to a relay is gone: whether a leg there would still carry is to be known before it is needed. Returns whether there is one.
    pub(in crate::peer) fn ask_warm_leg(&mut self, relay: RelayId, now: Instant) -> bool {
        let is_kept = self.keeps_legs(now);
        let leg = self.relayed.leg(&relay).filter(|leg| is_kept && leg.is_ready());
        leg.map(|leg| leg.bind_now(now)).is_some()
    }

    /// Whether a leg is there, or can be hoped for.
    pub(super) fn may_serve(&self, leg: &Leg, shared: &Shared, now: Instant) -> bool {
        let reached = leg.is_hoped_for(now) || self.met.contains(&leg.relay);
        reached && !shared.relays.is_ending(&leg.relay) && !self.relayed.is_shunned(&leg.relay, now)
    }

    /// Lets legs go that a path in use has made needless: all others, but for the warm one while packets flow. One that carries is the
    /// nominating side's to let go, since that side would not learn that only its own end is left.
    pub(in crate::peer) fn drop_needless_legs(&mut self, used: RelayId, shared: &mut Shared, now: Instant) {
        let is_ours = |leg: &&Leg| self.nominates || !(leg.is_ready() && self.may_serve(leg, shared, now));
        let others: Vec<RelayId> = self.needless_legs(used, shared, now).filter(is_ours).map(|leg| leg.relay).collect();
        for relay in others {
            if self.nominates {
                self.give_up(relay, shared);
            } else {
                self.drop_leg(relay, shared);
            }
        }
    }

    /// Legs that a path in use leaves nothing to do for.
    pub(in crate::peer) fn needless_legs(
        &self,
        used: RelayId,
        shared: &Shared,
        now: Instant,
    ) -> impl Iterator<Item = &Leg> {
        let steady = self.traffic.is_steady(now) || self.relayed.is_in_doubt(now);
        let warm = move |leg: &Leg| steady && self.may_serve(leg, shared, now);
        self.relayed.legs.iter().filter(move |leg| leg.relay != used && !warm(leg))
    }
}
