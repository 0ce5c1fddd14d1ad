//! PING and PONG: which pairs carry packets both ways.

use std::collections::{BTreeMap, VecDeque};
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use wire::probe::{self, Probe};
use wire::stun::TransactionId;

use super::Peer;
use crate::shared::Shared;

/// Requests of ours that may still be answered: one rung with its repeats.
const MAX_REQUESTS: usize = 128;
/// An answer after this long says nothing about the path of now.
const REQUEST_LIFETIME: Duration = Duration::from_secs(5);
/// Transaction ids of the peer's requests remembered against replay: what ten replies a second take half a minute to fill.
const MAX_SEEN: usize = 256;

/// Requests under way, and those of the peer that were seen. Of most peers of a large mesh there are none, ever.
#[derive(Debug, Default)]
pub(super) struct Requests(Option<Box<Log>>);

#[derive(Debug, Default)]
struct Log {
    sent: BTreeMap<TransactionId, (SocketAddr, Instant)>,
    order: VecDeque<TransactionId>,
    seen: VecDeque<TransactionId>,
}

impl Requests {
    pub(super) fn insert(&mut self, tx: TransactionId, remote: SocketAddr, now: Instant) {
        let log = self.0.get_or_insert_default();
        if log.order.len() >= MAX_REQUESTS
            && let Some(oldest) = log.order.pop_front()
        {
            log.sent.remove(&oldest);
        }
        log.order.push_back(tx);
        log.sent.insert(tx, (remote, now));
    }

    /// When the request that this answers was sent, if it is one of ours and was sent to there lately.
    pub(super) fn answered(&mut self, tx: TransactionId, from: SocketAddr, now: Instant) -> Option<Instant> {
        let sent = &mut self.0.as_mut()?.sent;
        let (remote, at) = *sent.get(&tx)?;
        if remote != from {
            return None;
        }
        sent.remove(&tx);
        (now.saturating_duration_since(at) <= REQUEST_LIFETIME).then_some(at)
    }

    /// Remembers a request of the peer. Returns whether it is new.
    pub(super) fn first_sight(&mut self, tx: TransactionId) -> bool {
        let seen = &mut self.0.get_or_insert_default().seen;
        if seen.contains(&tx) {
            return false;
        }
        if seen.len() >= MAX_SEEN {
            seen.pop_front();
        }
        seen.push_back(tx);
        true
    }
}

/// An authentic request of the peer, as it arrived.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Arrival {
    pub(crate) from: SocketAddr,
    pub(crate) to: Option<IpAddr>,
    pub(crate) tx: TransactionId,
}

impl Peer {
    /// Takes a datagram under this peer's key id. Returns whether it was authentic and new.
    pub(crate) fn handle_datagram(
        &mut self,
        from: SocketAddr,
        to: Option<IpAddr>,
        payload: &[u8],
        shared: &mut Shared,
        now: Instant,
    ) -> bool {
        let Ok((tx, probe)) = probe::open(&self.keys, payload) else {
            shared.stats.dropped_forged += 1;
            return false;
        };
        let arrival = Arrival { from, to, tx };
        if probe.is_request() && !self.requests.first_sight(tx) {
            shared.stats.dropped_replayed += 1;
            return false;
        }
        if probe.is_request() && self.is_asleep() {
            self.wake(shared, now);
        }
        match probe {
            Probe::Ping => self.on_ping(arrival, shared, now),
            Probe::Pong { .. } => self.on_pong(arrival, shared, now),
            Probe::Nominate { epoch } => self.on_nominate(arrival, epoch, shared, now),
            Probe::NominateAck { epoch } => self.on_ack(arrival, epoch, shared, now),
        }
        true
    }

    /// Probes one pair, if the filter and the budget let it.
    pub(super) fn ping(&mut self, remote: SocketAddr, shared: &mut Shared, now: Instant) {
        self.ping_with(remote, None, shared, now);
    }

    /// The same with a packet that lives for so many hops.
    pub(super) fn ping_with(&mut self, remote: SocketAddr, ttl: Option<u8>, shared: &mut Shared, now: Instant) {
        let Some(pair) = self.pairs.get_mut(&remote) else {
            return;
        };
        pair.tried = Some(now);
        if !shared.permit(remote, pair.is_proven(now), now) {
            pair.withheld = pair.withheld.saturating_add(1);
            return;
        }
        pair.sent = pair.sent.saturating_add(1);
        shared.stats.pings_sent += 1;
        let tx = shared.nonces.transaction_id();
        self.requests.insert(tx, remote, now);
        shared.send(remote, None, ttl, probe::seal(&self.keys, tx, &Probe::Ping));
    }

    /// Answers a request from where it was sent to. Returns whether the answer was let through.
    pub(super) fn reply(&mut self, arrival: Arrival, answer: &Probe, shared: &mut Shared, now: Instant) -> bool {
        let Some(pair) = self.pairs.get_mut(&arrival.from) else {
            return false;
        };
        if !pair.replies.take(now) {
            shared.stats.dropped_reply_rate += 1;
            return false;
        }
        if !shared.permit(arrival.from, pair.is_proven(now), now) {
            return false;
        }
        let payload = probe::seal(&self.keys, arrival.tx, answer);
        shared.send(arrival.from, arrival.to, None, payload);
        true
    }

    fn on_ping(&mut self, arrival: Arrival, shared: &mut Shared, now: Instant) {
        shared.stats.pings_received += 1;
        let from = arrival.from;
        if !self.learn(from, shared, now) {
            return;
        }
        if !self.reply(arrival, &Probe::Pong { observed: from }, shared, now) {
            return;
        }
        shared.stats.pongs_sent += 1;
        let Some(pair) = self.pairs.get_mut(&from) else {
            return;
        };
        pair.heard = pair.heard.saturating_add(1);
        let proven = pair.is_proven(now);

        match self.direct {
            Some(direct) if direct.remote == from => return self.traffic.alive(now),
            // The peer looks for other ways: perhaps the one in use is dead for it.
            Some(_) => self.start_check(shared, now),
            None => {}
        }
        if !proven {
            self.ping(from, shared, now);
        }
        if self.direct.is_none() && !self.pairs.values().any(|pair| pair.is_proven(now)) {
            self.on_opened(from, shared, now);
            self.revive(shared, now);
        }
    }

    fn on_pong(&mut self, arrival: Arrival, shared: &mut Shared, now: Instant) {
        let from = arrival.from;
        let sent = self.requests.answered(arrival.tx, from, now);
        let (Some(sent), Some(pair)) = (sent, self.pairs.get_mut(&from)) else {
            shared.stats.dropped_unsolicited += 1;
            return;
        };
        shared.stats.pongs_received += 1;
        pair.on_pong(now.saturating_duration_since(sent), now);
        if self.direct.is_some_and(|direct| direct.remote == from) {
            self.traffic.alive(now);
            self.check_ponged(from, shared, now);
        }
        self.adopt_roamed(from, shared, now);
        self.on_proof(from, shared, now);
    }
}
