//! A leg that is the relay's channel, because nothing answers its BINDs.
//!
//! It is bound with the word that says so: the channel loses nothing and keeps the order. It goes back to UDP with the first BOUND that
//! answers a BIND sent after that word, because the relay goes by what came last; and it goes with the channel.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use wire::PublicKey;
use wire::control::ToRelay;

use super::{Leg, May};
use crate::event::Event;
use crate::nat::NatClass;
use crate::shared::Shared;
use crate::timer::earliest;

/// Silence after which a leg becomes a channel that goes by UDP itself, or is given up: four BINDs, and time for the answer to the last.
pub(super) const PATIENCE: Duration = Duration::from_millis(1500);
/// The same for a channel over TCP: UDP was not there in time for the channel either. Two BINDs, and time for the answer.
const LITTLE_PATIENCE: Duration = Duration::from_millis(300);
/// Before the first BIND while the channel carries everything, doubled each time: the relay may have been silent altogether for a moment ..
const RETRY_UDP: Duration = Duration::from_secs(2);
/// .. up to this: the network may let UDP out again.
const MAX_RETRY_UDP: Duration = Duration::from_secs(30);
/// How long packets are taken in by way of the channel after UDP took the leg back: for what is on its way.
const SETTLE: Duration = Duration::from_secs(5);
/// A relay that does not answer over a channel by UDP for so long, when UDP to its other ports is dead, is not heard over it any more.
const RENEW: Duration = Duration::from_secs(1);
/// Between two channels made anew for that reason.
const RENEW_GAP: Duration = Duration::from_secs(30);

/// The address that stands for the channel.
#[derive(Debug)]
pub(super) struct Carried {
    at: SocketAddr,
    /// The counter of the last BIND before it was said.
    counter: u64,
    /// UDP has the leg again; until when what comes by the channel is still taken.
    until: Option<Instant>,
}

impl Carried {
    fn is_in_use(&self) -> bool {
        self.until.is_none()
    }

    /// Until the BIND after the one with this counter, while it is in use.
    pub(super) fn retry_gap(&self, counter: u64) -> Option<Duration> {
        let tries = counter.saturating_sub(self.counter).min(4);
        self.is_in_use().then(|| RETRY_UDP.saturating_mul(1 << tries).min(MAX_RETRY_UDP))
    }
}

impl Leg {
    /// Whether it is the relay's channel.
    pub(in crate::peer) fn is_attached(&self) -> bool {
        self.attached_at().is_some()
    }

    /// The address that stands for the channel, if it is in use.
    pub(super) fn attached_at(&self) -> Option<SocketAddr> {
        self.carried.as_ref().filter(|carried| carried.is_in_use()).map(|carried| carried.at)
    }

    /// Whether this address stands for its channel, or did a moment ago.
    pub(in crate::peer) fn is_carried_at(&self, remote: SocketAddr) -> bool {
        self.carried.as_ref().is_some_and(|carried| carried.at == remote)
    }

    /// When it becomes the channel, if nothing answers until then.
    pub(super) fn attach_due(&self, may: May, shared: &Shared) -> Option<Instant> {
        let allocation = self.allocation.as_ref()?;
        let relay = shared.relays.get(&self.relay)?;
        if !may.ask || !self.named || self.is_attached() || !shared.can_carry(&self.relay) {
            return None;
        }
        let Some(remote) = allocation.remote else {
            return may.use_own.then_some(allocation.since);
        };
        let is_blocked = relay.over_tcp_again || shared.nat.of(remote.ip()) == NatClass::Blocked;
        let patience = match (relay.over_tcp, is_blocked) {
            (true, true) => Duration::ZERO,
            (true, false) => LITTLE_PATIENCE,
            (false, _) => PATIENCE,
        };
        Some(self.unanswered? + patience)
    }

    /// Becomes the channel when that is due, and forgets that it was when that is over.
    pub(super) fn drive_attachment(&mut self, peer: PublicKey, may: May, shared: &mut Shared, now: Instant) {
        if self.carried.as_ref().and_then(|carried| carried.until).is_some_and(|until| until <= now) {
            self.uncarry(shared);
        }
        if self.attach_due(may, shared).is_some_and(|at| at <= now) {
            self.attach(peer, shared, now);
        }
        if self.renew_at.is_some_and(|at| at <= now) {
            self.renew_at = None;
            self.renew_channel(shared, now);
        }
    }

    /// Says so together with the wish for a leg, if it would be said as soon as there is one: the relay takes one after the other.
    pub(super) fn attach_with_it(&mut self, peer: PublicKey, shared: &mut Shared) {
        let is_known = shared.relays.get(&self.relay).is_some_and(|relay| relay.over_tcp_again);
        let has_socket = shared.relay_socket(&self.relay, 1, 0).is_some();
        if self.allocation.is_none() && is_known && has_socket && shared.can_carry(&self.relay) {
            self.attaches = true;
            self.say_attach(peer, shared);
        }
    }

    fn say_attach(&self, partner: PublicKey, shared: &mut Shared) {
        shared.stats.attached += 1;
        shared.send_control(self.relay, ToRelay::Attach { partner });
    }

    /// It is the channel: from now on an address stands for that. Returns whether there is one.
    pub(super) fn take_address(&mut self, shared: &mut Shared) -> bool {
        let Some(allocation) = &self.allocation else { return false };
        let at = match self.carried.take() {
            Some(carried) => carried.at,
            None => {
                let Some((at, event)) = shared.carriage.take(self.relay, allocation.id) else { return false };
                shared.events.push_back(event);
                at
            }
        };
        self.carried = Some(Carried { at, counter: self.counter, until: None });
        true
    }

    fn attach(&mut self, peer: PublicKey, shared: &mut Shared, now: Instant) {
        if !self.take_address(shared) {
            return;
        }
        if let Some(bind) = &mut self.bind {
            bind.due = now + RETRY_UDP;
        }
        self.say_attach(peer, shared);
        let by_udp = shared.relays.get(&self.relay).is_some_and(|relay| !relay.over_tcp);
        if self.bound.take().is_some() || by_udp {
            // Of a pair that was ready the relay says so again only when it is asked.
            self.ask_at(now);
        }
        // A relay on this very node was sent no BIND, and no silence speaks against its channel.
        if by_udp && self.socket().is_some() {
            // What else comes by the channel may be said to both sides of a pair, and shows only that this side hears.
            shared.ask_relay(self.relay, now);
            self.renew_at = Some(now + RENEW);
        }
    }

    fn renew_channel(&self, shared: &mut Shared, now: Instant) {
        let relay = self.relay;
        let Some(known) = shared.relays.entry(relay) else { return };
        let is_silent = known.asked.is_some_and(|at| now.saturating_duration_since(at) >= RENEW);
        if is_silent && known.renewed.is_none_or(|at| now.saturating_duration_since(at) >= RENEW_GAP) {
            known.renewed = Some(now);
            shared.events.push_back(Event::RenewChannel { relay });
        }
    }

    /// BOUND has arrived. One for a BIND from before may have been overtaken by the word that the channel is the leg.
    pub(super) fn on_bound_while_attached(&mut self, counter: u64, shared: &mut Shared, now: Instant) {
        let Some(carried) = self.carried.as_ref().filter(|carried| carried.is_in_use()) else { return };
        if counter <= carried.counter {
            return self.bind_now(now);
        }
        shared.stats.taken_back += 1;
        self.leave_channel(now);
    }

    /// Whether this answers a BIND from before the word that the channel is the leg. Whatever comes of that BIND is void to the relay, but UDP
    /// passes.
    pub(super) fn is_overtaken(&self, counter: u64) -> bool {
        self.carried.as_ref().is_some_and(|carried| carried.is_in_use() && counter <= carried.counter)
    }

    /// The channel is the leg no more. What is on its way by it is still taken.
    pub(super) fn leave_channel(&mut self, now: Instant) {
        if let Some(carried) = self.carried.as_mut().filter(|carried| carried.is_in_use()) {
            carried.until = Some(now + SETTLE);
        }
        self.renew_at = None;
    }

    /// Its channel is gone, and whatever was said over it. Returns whether it was the leg.
    pub(in crate::peer) fn channel_lost(&mut self, shared: &mut Shared, now: Instant) -> bool {
        let was_attached = self.is_attached();
        self.named = false;
        self.attaches = false;
        self.attach_at = None;
        self.uncarry(shared);
        if was_attached {
            self.bound = None;
            self.ready = false;
            self.bind_now(now);
        }
        was_attached
    }

    pub(super) fn uncarry(&mut self, shared: &mut Shared) {
        self.renew_at = None;
        if let Some(event) = self.carried.take().and_then(|carried| shared.carriage.give_back(carried.at)) {
            shared.events.push_back(event);
        }
    }

    pub(super) fn attachment_timeout(&self, may: bool) -> Option<Instant> {
        let until = self.carried.as_ref().and_then(|carried| carried.until);
        earliest([self.attach_at.filter(|_| may), self.renew_at, until])
    }
}
