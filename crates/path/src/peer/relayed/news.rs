//! What a relay says of legs, and what becomes of it.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use wire::control::{self, RefusedReason, ReleasedReason, ToRelay};
use wire::relay::Frame;

use super::{FOLLOWER_PATIENCE, NO_WARM};
use crate::peer::Peer;
use crate::peer::leg::{Leg, Taken};
use crate::relay::RelayId;
use crate::shared::Shared;

impl Peer {
    /// The relay named a leg of this node.
    pub(crate) fn on_allocated(&mut self, relay: RelayId, told: control::Leg, shared: &mut Shared, now: Instant) {
        self.stir(shared, now);
        if !self.wanted {
            // Said rather than left to time, so that the peer need not wait for it.
            shared.send_control(relay, ToRelay::Release(self.key));
            return;
        }
        self.relayed.set_no_port(&relay, false);
        let is_news = self.relayed.leg(&relay).is_none();
        if is_news {
            if self.relayed.is_confirmed() {
                // The peer asks for another relay than the one in use.
                self.relayed.doubted = Some(now);
            }
            self.make_room(shared);
            self.relayed.legs.push(Leg::wanted(relay, None, None));
        }
        if self.direct.is_some() {
            self.relayed.release_at = None;
            if is_news && !self.traffic.is_busy(now) {
                // The peer asks for a relay although this side thinks that there is no need. While packets flow it is the warm leg, and
                // silence tells of itself.
                self.start_check(shared, now);
            }
        }
        let peer = self.key;
        let Some(leg) = self.relayed.leg(&relay) else {
            return;
        };
        if !leg.on_allocated(peer, told, shared, now) {
            // None of the relay's addresses may be sent to.
            self.give_up_leg(relay, shared, now);
        }
    }

    pub(crate) fn on_refused(&mut self, relay: RelayId, reason: RefusedReason, shared: &mut Shared, now: Instant) {
        let time = self.relayed.shun(relay, now);
        self.relayed.set_no_port(&relay, reason == RefusedReason::PortsExhausted);
        if let Some(leg) = self.relayed.leg(&relay) {
            if reason != RefusedReason::TooMany {
                leg.forget(shared);
            }
            leg.ask_after(now + time);
        }
    }

    /// Both legs are bound.
    pub(crate) fn on_ready_leg(&mut self, relay: RelayId, shared: &mut Shared, now: Instant) {
        let Some(leg) = self.relayed.leg(&relay) else {
            return;
        };
        leg.on_ready(now);
        self.consider_relay(relay, shared, now);
    }

    pub(crate) fn on_unbound(&mut self, relay: RelayId, now: Instant) {
        if let Some(leg) = self.relayed.leg(&relay) {
            leg.on_unbound(now);
        }
    }

    pub(crate) fn on_released(&mut self, relay: RelayId, reason: ReleasedReason, shared: &mut Shared, now: Instant) {
        let Some(leg) = self.relayed.leg(&relay) else {
            return;
        };
        leg.forget(shared);
        // A warm leg goes soon after the last packet, however long a pair may rest.
        let in_use = self.relayed.path.is_none_or(|path| path.relay == relay);
        if reason == ReleasedReason::Asked && in_use && self.direct.is_none() && self.rest.is_let_go() {
            // Neither side needs it, and the peer was the first to find that out.
            self.drop_leg(relay, shared);
            self.fall_asleep(shared, now);
            return;
        }
        let has_other = self.relayed.legs.iter().any(|leg| leg.relay != relay && leg.is_allocated());
        if reason == ReleasedReason::Asked && self.direct.is_some() {
            self.relayed.no_warm_until = Some(now + NO_WARM);
        }
        if self.direct.is_some() || !self.wanted || has_other {
            self.drop_leg(relay, shared);
            if self.relayed.path.is_some_and(|path| path.relay == relay) {
                self.relay_path_died(shared, now);
            }
            return;
        }
        // One that fell silent was fine; of the other reasons none will be gone at once.
        let wait = match reason {
            ReleasedReason::Idle => Duration::ZERO,
            ReleasedReason::Asked if !self.nominates => FOLLOWER_PATIENCE,
            _ => self.relayed.shun(relay, now),
        };
        if let Some(leg) = self.relayed.leg(&relay) {
            leg.ask_after(now + wait);
        }
        if self.relayed.path.is_some_and(|path| path.relay == relay) {
            self.relay_path_died(shared, now);
        }
    }

    /// The relay is another process than before: nothing holds that was said to the old one.
    pub(crate) fn on_relay_boot(&mut self, relay: RelayId, shared: &mut Shared, now: Instant) -> bool {
        let Some(leg) = self.relayed.leg(&relay) else {
            return false;
        };
        leg.forget(shared);
        leg.ask_at(now);
        self.follow_from_new_relay(relay, shared, now);
        true
    }

    /// The relay is none any more. What is not in use there goes now, the rest when it is left. Returns whether there was a leg.
    pub(crate) fn relay_removed(&mut self, relay: RelayId, shared: &mut Shared) -> bool {
        let had = self.relayed.leg(&relay).is_some();
        if self.relayed.path.is_none_or(|path| path.relay != relay) {
            self.drop_leg(relay, shared);
        }
        self.relayed.forgive(&relay);
        had
    }

    /// Takes a relay message for one of the legs. Returns whether it was authentic and of use.
    pub(crate) fn on_relay_message(
        &mut self,
        from: SocketAddr,
        frame: &Frame<'_>,
        shared: &mut Shared,
        now: Instant,
    ) -> bool {
        let legs = &mut self.relayed.legs;
        let Some((leg, taken)) =
            legs.iter_mut().find_map(|leg| leg.on_message(from, frame, shared, now).map(|taken| (leg, taken)))
        else {
            return false;
        };
        let (relay, was_there) = (leg.relay, leg.was_there(frame.header().counter));
        if was_there {
            self.relayed.left_in_vain(now);
        }
        if let Taken::Answered(rtt) = taken {
            self.begin_early(relay, rtt, shared, now);
        }
        true
    }

    /// The relay says that the peer is there, or has gone. Its legs outlive its agent, so one that comes back to the relay in use has
    /// packets as before, and perhaps no session: a handshake says so at once, and costs a session that lives nothing.
    pub(crate) fn on_present(&mut self, relay: RelayId, met: bool, shared: &mut Shared, now: Instant) {
        self.set_met(relay, met, shared, now);
        let is_used = self.relayed.path.is_some_and(|path| path.confirmed && path.relay == relay);
        if is_used && !met {
            self.relayed.missed_at = Some(relay);
        } else if is_used && self.relayed.missed_at.take() == Some(relay) && self.nominates {
            self.greet(shared, now);
        }
    }

    /// The peer is at the relay, from now on or no longer.
    pub(in crate::peer) fn met_at(&mut self, relay: RelayId, now: Instant) {
        if let Some(leg) = self.relayed.leg(&relay) {
            // What the relay said over a channel before this one may have been lost.
            leg.ask_at(now);
        }
    }

    /// The shell carries packets by another port, or not any more.
    pub(crate) fn carrier_changed(&mut self, shared: &mut Shared, now: Instant) -> bool {
        let relays: Vec<RelayId> = self.relayed.legs.iter().map(|leg| leg.relay).collect();
        for relay in relays {
            self.carriage_lost(relay, shared, now);
            // Named once more it may be carried once more.
            self.met_at(relay, now);
        }
        !self.relayed.legs.is_empty()
    }

    /// Nothing is carried by the relay's channel any more. Returns whether a leg depended on that.
    pub(in crate::peer) fn carriage_lost(&mut self, relay: RelayId, shared: &mut Shared, now: Instant) -> bool {
        let was_attached = self.relayed.leg(&relay).is_some_and(|leg| leg.channel_lost(shared, now));
        if was_attached && self.relayed.path.is_some_and(|path| path.relay == relay) {
            self.relay_path_died(shared, now);
        }
        was_attached
    }
}
