//! Data: from one leg of a pair to the other.

use std::net::SocketAddr;
use std::ops::Range;
use std::time::Instant;

use wire::relay::{AllocationId, Frame, is_forwardable};

use super::allocation::End;
use super::table::LegRef;
use super::{Arrival, Forward, Outcome, Plane, source};

impl Plane {
    pub(super) fn receive(&mut self, arrival: &Arrival<'_>, now: Instant, out: &mut Vec<Forward>) {
        let source = source::canonical(arrival.source);
        let mut run = 0..0;
        // A kernel merges any datagrams of one size and sender, so each is judged by itself.
        for datagram in segments(arrival) {
            if is_forwardable(&arrival.data[datagram.clone()]) {
                run.end = datagram.end;
                continue;
            }
            self.forward(arrival, source, run, now, out);
            run = datagram.end..datagram.end;
            let outcome = match Frame::parse(&arrival.data[datagram]) {
                Some(frame) => self.bind(arrival, source, frame, now),
                None => Outcome::Unfit,
            };
            self.stats.count(outcome, 1);
        }
        self.forward(arrival, source, run, now, out);
    }

    /// Sends a run of WireGuard messages on, as far as rates allow.
    fn forward(
        &mut self,
        arrival: &Arrival<'_>,
        source: SocketAddr,
        run: Range<usize>,
        now: Instant,
        out: &mut Vec<Forward>,
    ) {
        if run.is_empty() {
            return;
        }
        let segment = arrival.segment.min(run.len());
        let count = run.len().div_ceil(segment);
        let Some((leg, allocation, to)) = self.way(arrival.port, source, now) else {
            return self.stats.count(Outcome::UnknownSource, count);
        };
        let Some(to) = to else {
            for datagram in arrival.data[run].chunks(segment) {
                let outcome = self.keep(leg, datagram);
                self.stats.count(outcome, 1);
            }
            return;
        };
        let admitted = self.pace(leg, count, segment, run.len(), now);
        self.stats.count(Outcome::OverRate, count - admitted);
        self.stats.count(Outcome::Forwarded, admitted);
        let end = run.end.min(run.start + admitted * segment);
        if end > run.start {
            self.stats.forwarded_bytes += (end - run.start) as u64;
            out.push(Forward { to, allocation, range: run.start..end, segment });
        }
    }

    /// Whose data of this source is, and where it goes once the partner's leg is bound.
    fn way(&mut self, port: u16, source: SocketAddr, now: Instant) -> Option<(LegRef, AllocationId, Option<End>)> {
        let leg = self.table.get(port, source)?;
        let allocation = self.allocations.get_mut(leg.slot)?;
        allocation.leg_mut(leg.side).active = now;
        Some((leg, allocation.id, allocation.leg(leg.side.other()).bound))
    }

    /// How many of the datagrams the rates of node and pair admit; those are paid for.
    pub(super) fn pace(&mut self, leg: LegRef, count: usize, segment: usize, bytes: usize, now: Instant) -> usize {
        let Some(allocation) = self.allocations.get_mut(leg.slot) else { return 0 };
        let Some(node) = self.nodes.get_mut(allocation.leg(leg.side).node) else { return 0 };
        let admitted = node.pace.admits(count, segment, now).min(allocation.pace.admits(count, segment, now));
        let spent = bytes.min(admitted * segment);
        node.pace.spend(spent, now);
        allocation.pace.spend(spent, now);
        admitted
    }
}

/// Where each datagram of an arrival lies.
fn segments(arrival: &Arrival<'_>) -> impl Iterator<Item = Range<usize>> + use<> {
    let (length, segment) = (arrival.data.len(), arrival.segment.max(1));
    (0..length).step_by(segment).map(move |start| start..length.min(start + segment))
}
