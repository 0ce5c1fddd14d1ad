//! Relay messages: how a leg is bound to an address.

use std::net::SocketAddr;
use std::time::Instant;

use wire::relay::{self, Body, Frame, Header, Side, Token};

use super::allocation::{Allocation, Destination, End, slot_of};
use super::limits::REBIND_DEADLINE;
use super::table::LegRef;
use super::{Arrival, News, Outcome, Plane, Transmit, source};

impl Plane {
    /// Judges one relay message from `source` (canonical). What is cheap comes first, cryptography after a lookup that a stranger cannot pass.
    pub(super) fn bind(
        &mut self,
        arrival: &Arrival<'_>,
        source: SocketAddr,
        frame: Frame<'_>,
        now: Instant,
    ) -> Outcome {
        match self.try_bind(arrival, source, frame, now) {
            Ok(outcome) | Err(outcome) => outcome,
        }
    }

    fn try_bind(
        &mut self,
        arrival: &Arrival<'_>,
        source: SocketAddr,
        frame: Frame<'_>,
        now: Instant,
    ) -> Result<Outcome, Outcome> {
        if !frame.is_from_node() {
            return Err(Outcome::Unfit);
        }
        let header = frame.header();
        let slot = slot_of(header.allocation);
        let is_meant = |found: &&mut Allocation| found.id == header.allocation && found.port == arrival.port;
        let allocation = self.allocations.get_mut(slot).filter(is_meant).ok_or(Outcome::UnknownAllocation)?;
        if !source::is_admissible(source, &self.config.own, &self.config.denied) {
            return Err(Outcome::BadSource);
        }
        let leg = allocation.leg_mut(header.side);
        let body = frame.open(&leg.key).map_err(|_| Outcome::Forged)?;
        let to = Destination { remote: source, local: arrival.local };
        match body {
            Body::Bind => {
                if header.counter <= leg.seen {
                    return Err(Outcome::Replayed);
                }
                if !leg.control.take(now) {
                    return Err(Outcome::OverBudget);
                }
                // One CHALLENGE for each BIND, however often and from wherever somebody repeats it.
                leg.seen = header.counter;
                let token = self.secrets.token(source, &header, now);
                self.reply(slot, to, &header, &Body::Challenge(token));
                Ok(Outcome::Challenged)
            }
            Body::Answer(token) => {
                self.check_answer(slot, source, &header, &token, now)?;
                self.commit(LegRef { slot, side: header.side }, End::Address(to), now);
                self.reply(slot, to, &header, &Body::Bound { observed: source });
                Ok(Outcome::Bound)
            }
            Body::Challenge(_) | Body::Bound { .. } => Err(Outcome::Unfit),
        }
    }

    fn check_answer(
        &mut self,
        slot: u32,
        source: SocketAddr,
        header: &Header,
        token: &Token,
        now: Instant,
    ) -> Result<(), Outcome> {
        let allocation = self.allocations.get_mut(slot).ok_or(Outcome::UnknownAllocation)?;
        let leg = allocation.leg_mut(header.side);
        if header.counter <= leg.committed {
            return Err(Outcome::Replayed);
        }
        if !self.secrets.is_token(token, source, header, now) {
            return Err(Outcome::BadToken);
        }
        if !leg.control.take(now) {
            return Err(Outcome::OverBudget);
        }
        leg.committed = header.counter;
        Ok(())
    }

    /// Binds the leg to where it answered from, or to its node's channel.
    pub(super) fn commit(&mut self, leg_ref: LegRef, to: End, now: Instant) {
        let LegRef { slot, side } = leg_ref;
        let Some(allocation) = self.allocations.get_mut(slot) else { return };
        let was_ready = allocation.is_ready();
        let leg = allocation.leg_mut(side);
        leg.is_wanted = true;
        leg.active = now;
        let before = self.seat(leg_ref, Some(to), now);
        let has_moved = !before.is_some_and(|before| before.is_at(&to));
        if let End::Address(Destination { remote, .. }) = to
            && has_moved
        {
            self.tell(slot, side, News::Bound { observed: remote });
        }
        if self.allocations.get(slot).is_some_and(Allocation::is_ready) {
            // Who binds an address has BOUND for an answer; who attaches has this. The partner may have given up on where the leg was before.
            let attaches = matches!(to, End::Channel(_));
            let is_told = |told: &Side| !was_ready || if *told == side { attaches } else { has_moved };
            for side in Side::BOTH.into_iter().filter(is_told) {
                self.tell(slot, side, News::Ready);
            }
            self.pass_kept(slot);
        }
        self.rearm(slot);
    }

    /// Makes this what the leg is bound to, in every table. Returns what it was.
    pub(super) fn seat(&mut self, leg_ref: LegRef, to: Option<End>, now: Instant) -> Option<End> {
        let allocation = self.allocations.get_mut(leg_ref.slot)?;
        let port = allocation.port;
        let before = std::mem::replace(&mut allocation.leg_mut(leg_ref.side).bound, to);
        self.attached -= usize::from(matches!(before, Some(End::Channel(_))));
        self.attached += usize::from(matches!(to, Some(End::Channel(_))));
        if let (Some(before), Some(to)) = (before, to)
            && before.is_at(&to)
        {
            return Some(before);
        }
        if let Some(End::Address(before)) = before {
            self.table.remove(port, before.remote);
        }
        if let Some(End::Address(to)) = to
            && let Some(stale) = self.table.insert(port, to.remote, leg_ref)
        {
            self.evict(stale, now);
        }
        before
    }

    /// Unbinds a leg whose source has shown itself to be another's: NATs reuse ports.
    fn evict(&mut self, stale: LegRef, now: Instant) {
        let Some(allocation) = self.allocations.get_mut(stale.slot) else { return };
        // The table has the new one already.
        allocation.leg_mut(stale.side).bound = None;
        allocation.unbound_until = now + REBIND_DEADLINE;
        self.tell(stale.slot, stale.side, News::Unbound);
        self.rearm(stale.slot);
    }

    fn reply(&mut self, slot: u32, to: Destination, header: &Header, body: &Body) {
        let Some(allocation) = self.allocations.get(slot) else { return };
        let message = relay::seal(&allocation.leg(header.side).key, header, body);
        self.push_transmit(Transmit { port: allocation.port, to, message });
    }
}
