//! The data plane: lets the two nodes of a pair talk through a port of this host, without a header and without a key of theirs.
//!
//! # Model
//!
//! The control channel, which is elsewhere, says which *nodes* are admitted and which of them want to talk. A pair that wants to has
//! one *allocation*: a relay port that no other allocation of either node has, and two *legs*, one a node. A leg is *bound* to the
//! address from which its node has answered a challenge, over the relay port itself and from WireGuard's own port, so the NAT mapping that
//! is bound is the one that WireGuard uses. From then on what arrives at the port from one leg's address is sent from the port to the
//! other's. The node's WireGuard has the relay's address and the port as its peer's endpoint and never learns more.
//!
//! A relay port is shared by allocations whose nodes all differ; the source address tells them apart.
//!
//! # Life of an allocation
//!
//! 1. [`Input::Allocate`] by one node: smallest free port, fresh id, a key for each leg; [`News::Allocated`] for both.
//! 2. Each node whose agent wants the pair sends BIND, is challenged, answers, is [`News::Bound`]: that is its consent. Data flows once
//!    both have, and both hear [`News::Ready`]. If one does not within [`BIND_DEADLINE`], the allocation goes.
//! 3. BIND again every minute, and when the address may have changed. A leg that is authentic at a new address moves; if that address was
//!    another leg's, that one is unbound and told so. A node that cannot send UDP says [`Input::Attach`] instead: its leg is then its channel,
//!    until it binds an address after all or the channel ends. Whichever came last counts, and packets follow it.
//! 4. It ends by [`Input::Release`] of either, when one of them is removed, or when one leg was silent for
//!    [`IDLE_DEADLINE`]: nobody is sent to who has not lately shown that he is there (as RFC 7675 has it). An open channel shows it.
//!
//! A new process knows nothing. Agents ask again, hinting at the port they had, and bind again. WireGuard's sessions go on.
//!
//! # What it refuses
//!
//! * To answer anybody who does not hold a leg's key: strangers get no byte, whatever they send. Whoever holds one gets as much as he
//!   sent, at most.
//! * To send where a message says: no message names a destination. It sends to sources that answered a challenge, and to none of its own,
//!   loopback, link-local or multicast addresses.
//! * To carry anything but WireGuard messages. Every datagram of a merged batch is looked at.
//! * To queue data. What cannot be sent on at once is dropped, as a router would. What waits for a channel waits in that channel's own queue. One
//!   message of a leg waits for the partner's: the handshake's first, [`Kept`].
//! * To let one member use up what others need: ports go to those who want a pair before those that only their partner wants; rates,
//!   tables and queues are capped in [`limits`], and [`Schedule`] shares the time between ports.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Instant;

use wire::relay::Side;

mod allocation;
mod attach;
mod bind;
mod exchange;
mod forward;
mod kept;
pub mod limits;
mod membership;
mod pace;
mod ports;
mod schedule;
mod secrets;
mod slots;
mod source;
mod stats;
mod table;

pub use allocation::{ChannelId, Destination, End};
pub use exchange::{Arrival, Carried, Config, Event, Forward, Input, Kept, News, NodeId, Onward, Transmit};
pub use limits::{BIND_DEADLINE, IDLE_DEADLINE, MAX_ALLOCATIONS, MAX_NODES, MAX_PORTS};
pub use pace::Rate;
pub use schedule::Schedule;
pub use source::is_admissible;
pub use stats::{Outcome, Stats};
/// What nodes are told by the control channel, word for word.
pub use wire::control::{RefusedReason, ReleasedReason};

use allocation::Allocation;
use limits::{MAX_EVENTS, MAX_TRANSMITS};
use membership::Node;
use secrets::Secrets;
use slots::Slots;
use table::{LegRef, Table};

/// The data plane of one relay.
#[derive(Debug)]
pub struct Plane {
    config: Config,
    secrets: Secrets,
    nodes: Slots<Node>,
    node_slots: BTreeMap<NodeId, u32>,
    allocations: Slots<Allocation>,
    /// Low and high node of each allocation.
    pairs: BTreeMap<[u32; 2], u32>,
    table: Table,
    /// Legs that are channels.
    attached: usize,
    /// One for each allocation.
    deadlines: BTreeSet<(Instant, u32)>,
    transmits: VecDeque<Transmit>,
    kept: VecDeque<Kept>,
    events: VecDeque<Event>,
    stats: Stats,
    now: Instant,
}

impl Plane {
    /// A data plane without nodes. The seed comes from a CSPRNG, fresh for every process: all secrets are made of it.
    #[must_use]
    pub fn new(config: Config, seed: [u8; 32], now: Instant) -> Self {
        let ports = config.ports.min(MAX_PORTS);
        let max_allocations = config.max_allocations.min(MAX_ALLOCATIONS);
        Self {
            secrets: Secrets::new(seed, now),
            nodes: Slots::new(MAX_NODES),
            node_slots: BTreeMap::new(),
            allocations: Slots::new(max_allocations),
            pairs: BTreeMap::new(),
            table: Table::new(ports),
            attached: 0,
            deadlines: BTreeSet::new(),
            transmits: VecDeque::new(),
            kept: VecDeque::new(),
            events: VecDeque::new(),
            stats: Stats::default(),
            now,
            config: Config { ports, max_allocations, ..config },
        }
    }

    /// Takes what the control channel says.
    pub fn handle_input(&mut self, input: Input, now: Instant) {
        self.now = now;
        match input {
            Input::Admit(node) => self.admit(node, now),
            Input::Remove(node) => self.remove(node),
            Input::Members(members) => self.set_members(&members, now),
            Input::Allocate { by, partner, hint } => self.allocate(by, partner, hint, now),
            Input::Release { by, partner } => self.release(by, partner),
            Input::Attach { by, partner, channel } => self.attach(by, partner, channel, now),
            Input::Detach { by, channel } => self.detach(by, channel, now),
            Input::DetachAll => self.detach_all(now),
            Input::Own(addresses) => self.config.own = addresses,
        }
    }

    /// Takes what arrived at a relay port; what is to be sent on is added to `out`.
    pub fn handle_arrival(&mut self, arrival: &Arrival<'_>, now: Instant, out: &mut Vec<Forward>) {
        self.now = now;
        self.receive(arrival, now, out);
    }

    /// Takes a packet that came by a channel; what is to be sent on goes where the answer says.
    pub fn handle_carried(&mut self, carried: &Carried<'_>, now: Instant) -> Option<Onward> {
        self.now = now;
        self.carry(carried, now)
    }

    /// Ends what has run out.
    pub fn handle_timeout(&mut self, now: Instant) {
        self.now = now;
        while let Some(&(wake, slot)) = self.deadlines.first()
            && wake <= now
        {
            let Some(allocation) = self.allocations.get_mut(slot) else {
                self.deadlines.remove(&(wake, slot));
                continue;
            };
            allocation.see_channels(now);
            if allocation.ends_at() > now {
                self.rearm(slot);
                continue;
            }
            let is_ready = allocation.is_ready();
            self.end(slot, if is_ready { ReleasedReason::Idle } else { ReleasedReason::NotBound });
        }
    }

    /// The next relay message to send.
    pub fn poll_transmit(&mut self) -> Option<Transmit> {
        self.transmits.pop_front()
    }

    /// The next initiation to send on, after the relay messages: who is bound by one of them hears that first.
    pub fn poll_kept(&mut self) -> Option<Kept> {
        self.kept.pop_front()
    }

    /// The next event for the control channel.
    pub fn poll_event(&mut self) -> Option<Event> {
        self.events.pop_front()
    }

    /// When to call [`Self::handle_timeout`], and why. At once while there is output.
    #[must_use]
    pub fn poll_timeout(&self) -> Option<(Instant, &'static str)> {
        if !self.transmits.is_empty() || !self.kept.is_empty() || !self.events.is_empty() {
            return Some((self.now, "output waits"));
        }
        self.deadlines.first().map(|&(wake, _)| (wake, "an allocation may end"))
    }

    /// What happened so far.
    #[must_use]
    pub fn stats(&self) -> Stats {
        let mut stats = self.stats;
        stats.nodes = self.nodes.len();
        stats.allocations = self.allocations.len();
        stats.bound_legs = self.table.len() + self.attached;
        stats.attached_legs = self.attached;
        stats
    }

    /// Takes an allocation out of every table and tells both nodes.
    fn end(&mut self, slot: u32, reason: ReleasedReason) {
        for side in Side::BOTH {
            self.tell(slot, side, News::Released(reason));
            self.seat(LegRef { slot, side }, None, self.now);
        }
        let Some(allocation) = self.allocations.remove(slot) else { return };
        self.deadlines.remove(&(allocation.wake, slot));
        self.pairs.remove(&allocation.legs.each_ref().map(|leg| leg.node));
        for leg in &allocation.legs {
            if let Some(node) = self.nodes.get_mut(leg.node) {
                node.ports.set(allocation.port, None);
            }
        }
    }

    /// Puts the allocation where its end now is in the list of deadlines.
    fn rearm(&mut self, slot: u32) {
        if let Some(allocation) = self.allocations.get_mut(slot) {
            self.deadlines.remove(&(allocation.wake, slot));
            allocation.wake = allocation.ends_at();
            self.deadlines.insert((allocation.wake, slot));
        }
    }

    /// Queues news for the node of this side.
    fn tell(&mut self, slot: u32, side: Side, news: News) {
        let Some(allocation) = self.allocations.get(slot) else { return };
        let id = |side| self.nodes.get(allocation.leg(side).node).map(|node| node.id);
        if let (Some(to), Some(partner)) = (id(side), id(side.other())) {
            self.push_event(Event { to, partner, news });
        }
    }

    fn push_event(&mut self, event: Event) {
        if self.events.len() >= MAX_EVENTS {
            self.events.pop_front();
            self.stats.lost_events += 1;
        }
        self.events.push_back(event);
    }

    fn push_transmit(&mut self, transmit: Transmit) {
        if self.transmits.len() >= MAX_TRANSMITS {
            self.stats.lost_transmits += 1;
        } else {
            self.transmits.push_back(transmit);
        }
    }
}
