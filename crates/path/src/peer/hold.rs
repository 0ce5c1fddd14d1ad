//! Holding a path that was just chosen against WireGuard's own roaming.
//!
//! A device sends where the last authentic packet came from. When both sides leave one address for another under load, each
//! is led back by what the other had on its way over the old one, and its answers lead the other back: what circulates
//! keeps circulating. Each time the device is pointed at the new address, what it sends until the next old packet arrives
//! comes back over the new one for good. So it is pointed there again and again, at a packet's distance, until nothing old
//! is left: no packet is lost, and no device has to know more than where to send.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use super::Peer;
use crate::event::Event;
use crate::shared::Shared;

/// Between two corrections, at least. Below, the shell would do nothing else.
const GAP: Duration = Duration::from_micros(500);
/// After the first correction of a pair that no traffic was seen of, doubled ..
const QUIET_GAP: Duration = Duration::from_millis(5);
/// .. to this: traffic that has just begun is not seen yet, and a stream of fifty packets a second is to meet most corrections. A relay
/// has few pairs of one node.
const MAX_QUIET_GAP: Duration = Duration::from_millis(10);
/// Added at random, or corrections could fall between the packets of a regular stream for ever.
const GAP_SPREAD_MICROS: u64 = 1000;
/// Round trips that one round of corrections lasts. Each converts what is sent in two or three milliseconds of it.
const ROUND_TRIPS: u32 = 6;
/// A round is not shorter than this, for round-trip times that were measured on too few packets ..
const SHORTEST: Duration = Duration::from_millis(250);
/// .. nor longer than this: on the way round the world there are other worries.
const LONGEST: Duration = Duration::from_secs(1);
/// Rounds until the old path is accepted: at ten thousand packets a second one is not enough.
const MAX_ROUNDS: u8 = 4;
/// What leads back later than this is no packet that was on its way.
const MEMORY: Duration = Duration::from_secs(10);
/// An answer that is older than this is no reason to hold a path.
const FRESH: Duration = Duration::from_secs(1);
/// How long the old path is then left in peace: traffic that drowned the corrections does not stop within the minute.
const RESIGNED: Duration = Duration::from_secs(300);

#[derive(Debug)]
pub(super) struct Hold {
    left: SocketAddr,
    since: Instant,
    until: Instant,
    next: Instant,
    rounds: u8,
    /// Between two corrections: as long as no traffic was seen, ever longer.
    gap: Duration,
}

impl Hold {
    /// Whether this is the address that was left, not long ago.
    fn is_against(&self, endpoint: SocketAddr, now: Instant) -> bool {
        self.left == endpoint && now.saturating_duration_since(self.since) <= MEMORY
    }

    pub(super) fn poll_timeout(&self) -> Option<Instant> {
        (self.next < self.until).then_some(self.next)
    }
}

impl Peer {
    /// Begins to hold the endpoint that was just set against what is on its way over the one before. The device's counters may
    /// not have been read since a relay's traffic began, so a pair that leaves one is held as well, with fewer corrections.
    pub(super) fn hold(&mut self, left: SocketAddr, now: Instant) {
        let gap = if self.traffic.is_busy(now) {
            GAP
        } else if self.relayed.is_relay_socket(left) {
            QUIET_GAP
        } else {
            return;
        };
        let until = now + self.hold_round(left);
        self.hold = Some(Box::new(Hold { left, since: now, until, next: now + gap, rounds: 1, gap }));
    }

    /// Points the device at the chosen path again.
    pub(super) fn drive_hold(&mut self, shared: &mut Shared, now: Instant) {
        let (Some(hold), Some((endpoint, keepalive))) = (&mut self.hold, self.endpoint) else {
            return;
        };
        if hold.poll_timeout().is_none_or(|next| now < next) {
            return;
        }
        if hold.gap > GAP {
            hold.gap = (hold.gap * 2).min(MAX_QUIET_GAP);
        }
        hold.next = now + hold.gap + Duration::from_micros(shared.nonces.token() % GAP_SPREAD_MICROS);
        self.traffic.endpoint_set(now);
        shared.events.push_back(Event::SetEndpoint { peer: self.key, endpoint, keepalive });
    }

    /// The device is back at the relay that was left for a direct path. Perhaps the peer is, because the path has died: to hold that would
    /// lose packets. So it is asked first, unless it has just answered. Returns whether the device is left where it is until then.
    pub(super) fn asks_before_hold(&mut self, endpoint: SocketAddr, shared: &mut Shared, now: Instant) -> bool {
        let is_held = self.hold.as_ref().is_some_and(|hold| hold.is_against(endpoint, now));
        let Some(direct) = self.direct.filter(|_| is_held && self.relayed.is_relay_socket(endpoint)) else {
            return false;
        };
        let pong = self.pairs.get(&direct.remote).and_then(|pair| pair.last_pong);
        if pong.is_some_and(|at| now.saturating_duration_since(at) < FRESH) {
            return false;
        }
        self.start_check(shared, now);
        self.check.is_some()
    }

    /// The device is back at the address that was left. Returns whether that is not accepted yet.
    pub(super) fn hold_against(&mut self, endpoint: SocketAddr, now: Instant) -> bool {
        let Some(hold) = self.hold.as_ref().filter(|hold| hold.is_against(endpoint, now)) else {
            return false;
        };
        if hold.rounds >= MAX_ROUNDS {
            self.nomination.resigned_until = Some(now + RESIGNED);
            return false;
        }
        let until = now + self.hold_round(endpoint);
        if let Some(hold) = &mut self.hold {
            hold.rounds += 1;
            hold.gap = GAP;
            hold.next = now;
            hold.until = until;
        }
        true
    }

    fn hold_round(&self, left: SocketAddr) -> Duration {
        let by_relay = self.relayed.rtt.filter(|_| self.relayed.is_relay_socket(left));
        let rtt = self.pairs.get(&left).and_then(|pair| pair.rtt).or(by_relay).unwrap_or_default();
        (rtt * ROUND_TRIPS).clamp(SHORTEST, LONGEST)
    }
}
