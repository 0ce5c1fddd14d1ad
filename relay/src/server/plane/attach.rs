//! Legs that are channels, and what comes by them.

use std::time::Instant;

use wire::relay::{Side, is_forwardable};

use super::allocation::{End, slot_of};
use super::limits::REBIND_DEADLINE;
use super::table::LegRef;
use super::{Carried, ChannelId, NodeId, Onward, Outcome, Plane};

impl Plane {
    /// Binds the node's leg of a pair to its channel. The channel has proven who the node is, so there is no challenge. Answers to challenges
    /// from before are worth nothing from now on, or one that was held up could take the leg back.
    pub(super) fn attach(&mut self, by: NodeId, partner: NodeId, channel: ChannelId, now: Instant) {
        let outcome = match self.leg_of(by, partner) {
            None => Outcome::UnknownAllocation,
            Some(leg_ref) if !self.may_attach(leg_ref, now) => Outcome::OverBudget,
            Some(leg_ref) => {
                self.commit(leg_ref, End::Channel(channel), now);
                Outcome::Attached
            }
        };
        self.stats.count(outcome, 1);
    }

    fn may_attach(&mut self, leg_ref: LegRef, now: Instant) -> bool {
        let Some(allocation) = self.allocations.get_mut(leg_ref.slot) else { return false };
        let leg = allocation.leg_mut(leg_ref.side);
        if !leg.control.take(now) {
            return false;
        }
        leg.committed = leg.committed.max(leg.seen);
        true
    }

    /// Unbinds the legs that this channel of the node was.
    pub(super) fn detach(&mut self, by: NodeId, channel: ChannelId, now: Instant) {
        let Some(node) = self.node_slots.get(&by).and_then(|slot| self.nodes.get(*slot)) else { return };
        let slots: Vec<u32> = node.ports.allocations().map(|(_, slot)| slot).collect();
        for slot in slots {
            self.detach_from(slot, Some(channel), now);
        }
    }

    /// Unbinds every leg that is a channel.
    pub(super) fn detach_all(&mut self, now: Instant) {
        if self.attached == 0 {
            return;
        }
        let slots: Vec<u32> = self.pairs.values().copied().collect();
        for slot in slots {
            self.detach_from(slot, None, now);
        }
    }

    /// The node of a leg that goes is told nothing: its channel is no more. Its partner hears when the pair is ready again.
    fn detach_from(&mut self, slot: u32, channel: Option<ChannelId>, now: Instant) {
        for side in Side::BOTH {
            let Some(allocation) = self.allocations.get_mut(slot) else { return };
            let Some(End::Channel(found)) = allocation.leg(side).bound else { continue };
            if channel.is_none_or(|channel| channel == found) {
                if allocation.is_ready() {
                    allocation.unbound_until = now + REBIND_DEADLINE;
                }
                self.seat(LegRef { slot, side }, None, now);
                self.rearm(slot);
            }
        }
    }

    /// Judges a packet that came by a channel, and says where it goes.
    pub(super) fn carry(&mut self, carried: &Carried<'_>, now: Instant) -> Option<Onward> {
        match self.try_carry(carried, now) {
            Ok(onward) => {
                self.stats.count(Outcome::Forwarded, 1);
                self.stats.forwarded_bytes += carried.packet.len() as u64;
                Some(onward)
            }
            Err(outcome) => {
                self.stats.count(outcome, 1);
                None
            }
        }
    }

    fn try_carry(&mut self, carried: &Carried<'_>, now: Instant) -> Result<Onward, Outcome> {
        let Carried { channel, allocation: id, packet } = *carried;
        if !is_forwardable(packet) {
            return Err(Outcome::Unfit);
        }
        let slot = slot_of(id);
        let allocation = self.allocations.get_mut(slot).filter(|found| found.id == id);
        let allocation = allocation.ok_or(Outcome::UnknownAllocation)?;
        let is_its = |side: &Side| allocation.leg(*side).bound == Some(End::Channel(channel));
        let side = Side::BOTH.into_iter().find(is_its).ok_or(Outcome::NotAttached)?;
        allocation.leg_mut(side).active = now;
        let (to, port) = (allocation.leg(side.other()).bound, allocation.port);
        let Some(to) = to else {
            return Err(self.keep(LegRef { slot, side }, packet));
        };
        match self.pace(LegRef { slot, side }, 1, packet.len(), packet.len(), now) {
            0 => Err(Outcome::OverRate),
            _ => Ok(Onward { to, port }),
        }
    }
}
