//! Nodes, and the allocations they ask for.

use std::collections::BTreeSet;
use std::time::Instant;

use wire::relay::Side;

use super::allocation::{Allocation, Place};
use super::limits::{BIND_DEADLINE, REQUEST_BURST, REQUEST_PERIOD};
use super::pace::Pace;
use super::ports::{self, Ports};
use super::table::LegRef;
use super::{Event, News, NodeId, Plane, RefusedReason, ReleasedReason};
use crate::server::Budget;

#[derive(Debug)]
pub(super) struct Node {
    pub(super) id: NodeId,
    pub(super) ports: Ports,
    pub(super) pace: Pace,
    requests: Budget,
}

impl Plane {
    pub(super) fn admit(&mut self, id: NodeId, now: Instant) {
        if self.node_slots.contains_key(&id) {
            return;
        }
        let node = Node {
            id,
            ports: Ports::new(self.config.ports),
            pace: Pace::new(self.config.node_rate, now),
            requests: Budget::new(REQUEST_PERIOD, REQUEST_BURST, now),
        };
        match self.nodes.insert(|_| node) {
            Some(slot) => {
                self.node_slots.insert(id, slot);
            }
            None => self.stats.refused_nodes += 1,
        }
    }

    pub(super) fn remove(&mut self, id: NodeId) {
        let Some(slot) = self.node_slots.remove(&id) else { return };
        let its: Vec<u32> = self
            .nodes
            .get(slot)
            .map_or_else(Vec::new, |node| node.ports.allocations().map(|(_, allocation)| allocation).collect());
        for allocation in its {
            self.end(allocation, ReleasedReason::Removed);
        }
        self.nodes.remove(slot);
    }

    pub(super) fn set_members(&mut self, members: &BTreeSet<NodeId>, now: Instant) {
        let gone: Vec<NodeId> = self.node_slots.keys().filter(|id| !members.contains(id)).copied().collect();
        for id in gone {
            self.remove(id);
        }
        for &id in members {
            self.admit(id, now);
        }
    }

    pub(super) fn release(&mut self, by: NodeId, partner: NodeId) {
        if let Ok(pair) = self.pair(by, partner)
            && let Some(&slot) = self.pairs.get(&pair.nodes)
        {
            self.end(slot, ReleasedReason::Asked);
        }
    }

    /// The node's leg of its pair with this partner, if there is one.
    pub(super) fn leg_of(&self, by: NodeId, partner: NodeId) -> Option<LegRef> {
        let pair = self.pair(by, partner).ok()?;
        Some(LegRef { slot: *self.pairs.get(&pair.nodes)?, side: pair.by })
    }

    pub(super) fn allocate(&mut self, by: NodeId, partner: NodeId, hint: Option<u16>, now: Instant) {
        if let Err(reason) = self.try_allocate(by, partner, hint, now) {
            self.push_event(Event { to: by, partner, news: News::Refused(reason) });
        }
    }

    fn try_allocate(
        &mut self,
        by: NodeId,
        partner: NodeId,
        hint: Option<u16>,
        now: Instant,
    ) -> Result<(), RefusedReason> {
        let pair = self.pair(by, partner)?;
        let asker = self.nodes.get_mut(pair.nodes[pair.by.index()]).ok_or(RefusedReason::NotAdmitted)?;
        if !asker.requests.take(now) {
            return Err(RefusedReason::TooMany);
        }
        let slot = match self.pairs.get(&pair.nodes) {
            Some(&slot) => slot,
            None => self.make(&pair, hint, now)?,
        };
        let Some(allocation) = self.allocations.get_mut(slot) else { return Err(RefusedReason::Full) };
        allocation.leg_mut(pair.by).is_wanted = true;
        self.tell_allocated(slot, pair.by);
        // Told each time: the first telling may have been lost with its session, and a leg that is bound may be one that its node let go.
        self.tell_allocated(slot, pair.by.other());
        if self.allocations.get(slot).is_some_and(Allocation::is_ready) {
            self.tell(slot, pair.by, News::Ready);
        }
        Ok(())
    }

    fn make(&mut self, pair: &Pair, hint: Option<u16>, now: Instant) -> Result<u32, RefusedReason> {
        if self.allocations.is_full() {
            return Err(RefusedReason::Full);
        }
        let hint = hint.and_then(|port| port.checked_sub(self.config.first_port));
        let port = match self.pick(pair, hint) {
            Some(port) => port,
            None => {
                let unwanted = self.unwanted(pair).ok_or(RefusedReason::PortsExhausted)?;
                self.end(unwanted, ReleasedReason::Unwanted);
                self.pick(pair, hint).ok_or(RefusedReason::PortsExhausted)?
            }
        };
        let (secrets, rate) = (&mut self.secrets, self.config.pair_rate);
        let make = |slot| {
            let place = Place { slot, port, nodes: pair.nodes };
            Allocation::new(place, secrets, rate, now + BIND_DEADLINE, now)
        };
        let slot = self.allocations.insert(make).ok_or(RefusedReason::Full)?;
        self.pairs.insert(pair.nodes, slot);
        for node in pair.nodes {
            if let Some(node) = self.nodes.get_mut(node) {
                node.ports.set(port, Some(slot));
            }
        }
        self.deadlines.insert((now + BIND_DEADLINE, slot));
        Ok(slot)
    }

    fn pick(&self, pair: &Pair, hint: Option<u16>) -> Option<u16> {
        let [low, high] = pair.nodes.map(|node| self.nodes.get(node));
        ports::pick(&low?.ports, &high?.ports, hint)
    }

    /// The oldest allocation that the asking node has never wanted and whose port its partner has free: others may offer pairs, but
    /// not keep a node from its own.
    fn unwanted(&self, pair: &Pair) -> Option<u32> {
        let asker = pair.nodes[pair.by.index()];
        let partner = self.nodes.get(pair.nodes[pair.by.other().index()])?;
        let in_the_way = self.nodes.get(asker)?.ports.allocations().filter_map(|(port, slot)| {
            let allocation = self.allocations.get(slot)?;
            let is_wanted = allocation.legs.iter().any(|leg| leg.node == asker && leg.is_wanted);
            (!is_wanted && partner.ports.is_free(port)).then_some((allocation.born, slot))
        });
        in_the_way.min().map(|(_, slot)| slot)
    }

    fn tell_allocated(&mut self, slot: u32, side: Side) {
        let Some(allocation) = self.allocations.get(slot) else { return };
        let leg = allocation.leg(side);
        let news = News::Allocated {
            allocation: allocation.id,
            side,
            port: self.config.first_port + allocation.port,
            key: leg.key.clone(),
            counter: leg.seen.max(leg.committed),
        };
        self.tell(slot, side, news);
    }

    fn pair(&self, by: NodeId, partner: NodeId) -> Result<Pair, RefusedReason> {
        let slot = |id| self.node_slots.get(id).copied().ok_or(RefusedReason::NotAdmitted);
        let (asker, partner_slot) = (slot(&by)?, slot(&partner)?);
        match by.cmp(&partner) {
            std::cmp::Ordering::Less => Ok(Pair { nodes: [asker, partner_slot], by: Side::Low }),
            std::cmp::Ordering::Greater => Ok(Pair { nodes: [partner_slot, asker], by: Side::High }),
            std::cmp::Ordering::Equal => Err(RefusedReason::NotAdmitted),
        }
    }
}

/// Two admitted nodes, the smaller id first, and which of them speaks.
struct Pair {
    nodes: [u32; 2],
    by: Side,
}
