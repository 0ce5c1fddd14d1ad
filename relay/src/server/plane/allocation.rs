//! One pair's place on the relay: a port and two legs.

use std::net::{IpAddr, SocketAddr};
use std::time::Instant;

use wire::relay::{AllocationId, INITIATION_LEN, LegKey, Side};

use super::limits::{CONTROL_BURST, CONTROL_PERIOD, IDLE_DEADLINE};
use super::pace::{Pace, Rate};
use super::secrets::Secrets;
use crate::server::Budget;

/// Where a leg's packets come from and go to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Destination {
    /// The node's address as the relay sees it.
    pub remote: SocketAddr,
    /// The relay's address that the node talks to, if it is known: a NAT takes an answer from no other.
    pub local: Option<IpAddr>,
}

/// Names an open channel. Whoever speaks to the data plane never uses a number twice.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ChannelId(pub u64);

/// Where a leg ends: what it is bound to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// An address that answered a challenge.
    Address(Destination),
    /// The control channel of a node that cannot send UDP.
    Channel(ChannelId),
}

impl End {
    /// Whether it is the same address or channel, by whichever of the relay's addresses.
    pub(super) fn is_at(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Address(one), Self::Address(other)) => one.remote == other.remote,
            (Self::Channel(one), Self::Channel(other)) => one == other,
            _ => false,
        }
    }
}

#[derive(Debug)]
pub(super) struct Leg {
    /// The node's place.
    pub(super) node: u32,
    pub(super) key: LegKey,
    /// The node has asked for this pair or bound its leg: it is not another's whim.
    pub(super) is_wanted: bool,
    /// The highest counter of a BIND, and of an ANSWER that bound the leg.
    pub(super) seen: u64,
    pub(super) committed: u64,
    pub(super) bound: Option<End>,
    /// When it last bound or sent data.
    pub(super) active: Instant,
    pub(super) control: Budget,
    /// Its last initiation, if that came before the partner's leg was bound.
    pub(super) kept: Option<Box<[u8; INITIATION_LEN]>>,
}

impl Leg {
    fn new(node: u32, key: LegKey, now: Instant) -> Self {
        let control = Budget::new(CONTROL_PERIOD, CONTROL_BURST, now);
        Self { node, key, is_wanted: false, seen: 0, committed: 0, bound: None, active: now, control, kept: None }
    }
}

#[derive(Debug)]
pub(super) struct Allocation {
    pub(super) id: AllocationId,
    pub(super) port: u16,
    /// By side.
    pub(super) legs: [Leg; 2],
    pub(super) pace: Pace,
    pub(super) born: Instant,
    /// When it goes if a leg is unbound until then.
    pub(super) unbound_until: Instant,
    /// Where it stands in the list of deadlines.
    pub(super) wake: Instant,
}

impl Allocation {
    pub(super) fn new(
        place: Place,
        secrets: &mut Secrets,
        rate: Option<Rate>,
        unbound_until: Instant,
        now: Instant,
    ) -> Self {
        let id = AllocationId(secrets.random() & !SLOT_MASK | u64::from(place.slot));
        let legs = place.nodes.map(|node| Leg::new(node, secrets.leg_key(), now));
        let pace = Pace::new(rate, now);
        Self { id, port: place.port, legs, pace, born: now, unbound_until, wake: unbound_until }
    }

    pub(super) fn leg(&self, side: Side) -> &Leg {
        &self.legs[side.index()]
    }

    pub(super) fn leg_mut(&mut self, side: Side) -> &mut Leg {
        &mut self.legs[side.index()]
    }

    /// Whether both legs are bound, so that data passes.
    pub(super) fn is_ready(&self) -> bool {
        self.legs.iter().all(|leg| leg.bound.is_some())
    }

    /// A leg that is an open channel is there, whether or not it has something to say.
    pub(super) fn see_channels(&mut self, now: Instant) {
        for leg in &mut self.legs {
            if matches!(leg.bound, Some(End::Channel(_))) {
                leg.active = now;
            }
        }
    }

    /// When this ends unless something happens.
    pub(super) fn ends_at(&self) -> Instant {
        let idle_at = self.legs.iter().map(|leg| leg.active).min().unwrap_or(self.born) + IDLE_DEADLINE;
        if self.is_ready() { idle_at } else { idle_at.min(self.unbound_until) }
    }
}

/// Where an allocation goes in the tables.
pub(super) struct Place {
    pub(super) slot: u32,
    pub(super) port: u16,
    /// By side.
    pub(super) nodes: [u32; 2],
}

const SLOT_MASK: u64 = 0xffff;

/// The place that an id names. Whether this very allocation stands there is to be checked.
pub(super) fn slot_of(id: AllocationId) -> u32 {
    (id.0 & SLOT_MASK) as u32
}
