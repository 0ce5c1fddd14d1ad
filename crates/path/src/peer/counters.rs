//! What WireGuard's counters say: traffic, silence, roaming.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use wire::PublicKey;

use super::{Direct, Peer};
use crate::candidate::canonical;
use crate::event::Event;
use crate::input::PeerCounters;
use crate::pair::Pair;
use crate::seldom::AsMade;
use crate::shared::Shared;
use crate::timer::earliest;

/// Silence that is suspicious while sending, unless three round trips are longer.
const SILENCE: Duration = Duration::from_millis(300);
/// A keepalive is this long; what is longer carries something that deserves an answer.
const KEEPALIVE_BYTES: u64 = 32;
/// What WireGuard pads data to, and its handshake's messages.
const BLOCK: u64 = 16;
const INITIATION_BYTES: u64 = 148;
const RESPONSE_BYTES: u64 = 92;
/// How long an echo may take from the agent to the device's counters, or back.
const ECHO_LAG: Duration = Duration::from_millis(500);
/// Without any sign of life for this long, an idle path is checked. Two missed keepalives of the peer come first.
const IDLE_CHECK: Duration = Duration::from_secs(60);
/// The checks of both sides differ by up to this, so that the first one serves both.
const IDLE_SPREAD_MS: u16 = 10_000;
/// A report of the device may still show the endpoint from before a change.
const ENDPOINT_LAG: Duration = Duration::from_secs(1);
/// How long an echo request from the peer shows that there is a session.
const SESSION_MEMORY: Duration = Duration::from_secs(2);
/// Between two corrections of an endpoint that roams into forbidden networks.
const PUT_BACK_GAP: Duration = Duration::from_secs(5);
/// How long after the last traffic a pair counts as busy.
const BUSY: Duration = Duration::from_secs(10);
/// Traffic that has lasted so long is more than the echoes of a check, or a handshake.
const STEADY: Duration = Duration::from_secs(2);

#[derive(Debug, PartialEq)]
pub(super) struct Traffic {
    /// Bytes received and sent, as last read.
    rx: u64,
    tx: u64,
    /// Bytes sent since something was last received, and when that became more than keepalives.
    unanswered: u64,
    unanswered_since: Option<Instant>,
    /// When an authentic packet last arrived on the path in use.
    alive: Option<Instant>,
    pub(super) checked: Option<Instant>,
    busy: Option<Instant>,
    /// Since when without a pause.
    busy_since: Option<Instant>,
    /// When something was last seen to be sent.
    sending: Option<Instant>,
    /// Where WireGuard went on its own, until this side has proof.
    roamed: Option<SocketAddr>,
    endpoint_set: Option<Instant>,
    /// Where the device was last seen to send.
    pub(super) device: Option<SocketAddr>,
    /// When the peer last said something through the tunnel.
    session: Option<Instant>,
    /// When WireGuard last completed a handshake.
    handshake: Option<Instant>,
    put_back: Option<Instant>,
    /// When the counters were last read ..
    read: Option<Instant>,
    /// .. and when an echo of an agent last went through the tunnel.
    pub(super) echoed: Option<Instant>,
}

impl AsMade for Traffic {
    const MADE: Self = Self {
        rx: 0,
        tx: 0,
        unanswered: 0,
        unanswered_since: None,
        alive: None,
        checked: None,
        busy: None,
        busy_since: None,
        sending: None,
        roamed: None,
        endpoint_set: None,
        device: None,
        session: None,
        handshake: None,
        put_back: None,
        read: None,
        echoed: None,
    };

    fn made() -> &'static Self {
        static MADE: Traffic = Traffic::MADE;
        &MADE
    }

    fn is_as_made(&self) -> bool {
        *self == Self::MADE
    }
}

impl Traffic {
    /// An authentic packet arrived on the path in use.
    pub(super) fn alive(&mut self, now: Instant) {
        self.alive = Some(now);
    }

    pub(super) fn endpoint_set(&mut self, now: Instant) {
        self.endpoint_set = Some(now);
        self.roamed = None;
    }

    /// Whether WireGuard went somewhere on its own, and that is still being looked into.
    pub(super) fn has_roamed(&self) -> bool {
        self.roamed.is_some()
    }

    pub(super) fn session_seen(&mut self, now: Instant) {
        self.session = Some(now);
    }

    /// Whether the tunnel was open a moment ago, so that data can be sent without a handshake.
    pub(super) fn has_session(&self, now: Instant) -> bool {
        self.session.is_some_and(|at| now.saturating_duration_since(at) < SESSION_MEMORY)
    }

    pub(super) fn shook_hands_within(&self, time: Duration, now: Instant) -> bool {
        self.handshake.is_some_and(|at| now.saturating_duration_since(at) < time)
    }

    pub(super) fn is_busy(&self, now: Instant) -> bool {
        self.busy.is_some_and(|at| now.saturating_duration_since(at) < BUSY)
    }

    /// Whether packets of users flow, and have for a while.
    pub(super) fn is_steady(&self, now: Instant) -> bool {
        let lasted = self.busy.zip(self.busy_since).is_some_and(|(last, since)| last >= since + STEADY);
        lasted && self.is_busy(now)
    }

    /// When traffic that flows now is over unless there is more.
    pub(super) fn busy_until(&self) -> Option<Instant> {
        self.busy.map(|at| at + BUSY)
    }

    fn silence_due(&self, rtt: Option<Duration>) -> Option<Instant> {
        let patience = SILENCE.max(rtt.unwrap_or_default() * 3);
        Some(self.unanswered_since? + patience)
    }

    /// Whether packets of users are among what is new. A keepalive is none, nor is a handshake, whose messages are known by their
    /// length, nor an echo of the agents', which is known by its time.
    fn is_of_users(&self, counters: &PeerCounters, now: Instant) -> bool {
        let since = self.read.unwrap_or(now).checked_sub(ECHO_LAG);
        if self.echoed.is_some_and(|at| since.is_none_or(|since| at >= since)) {
            return false;
        }
        let news = [(counters.rx_bytes, self.rx), (counters.tx_bytes, self.tx)];
        news.into_iter().any(|(new, old)| without_handshake(new.saturating_sub(old)) > 2 * KEEPALIVE_BYTES)
    }

    /// Sends an echo into the tunnel. It is no packet of a user's.
    pub(super) fn send_echo(&mut self, peer: PublicKey, token: u64, shared: &mut Shared, now: Instant) {
        self.echoed = Some(now);
        shared.events.push_back(Event::SendEcho { peer, token });
    }

    /// The pair rests: what was on its way is no reason for anything any more.
    pub(super) fn rest(&mut self, now: Instant) {
        self.endpoint_set(now);
        self.unanswered = 0;
        self.unanswered_since = None;
        self.session = None;
    }

    /// When an authentic packet last arrived on the path in use.
    pub(super) fn last_alive(&self) -> Option<Instant> {
        self.alive
    }

    /// Takes new numbers; `first` says that there were none before to compare them with. Returns whether data came in.
    fn update(&mut self, counters: &PeerCounters, first: bool, now: Instant) -> bool {
        self.read = Some(now);
        self.device = counters.endpoint.map(canonical);
        self.handshake = counters.last_handshake.and_then(|ago| now.checked_sub(ago));
        let (rx, tx) = (counters.rx_bytes, counters.tx_bytes);
        let (old_rx, old_tx) = (std::mem::replace(&mut self.rx, rx), std::mem::replace(&mut self.tx, tx));
        if first || rx < old_rx || tx < old_tx {
            return false;
        }
        let (received, sent) = (rx - old_rx, tx - old_tx);
        if received > KEEPALIVE_BYTES || sent > KEEPALIVE_BYTES {
            if !self.is_busy(now) {
                self.busy_since = Some(now);
            }
            self.busy = Some(now);
        }
        // If the reading before this one saw packets sent as well, the silence began no later than that.
        let began = self.sending.filter(|at| now.saturating_duration_since(*at) <= SILENCE).unwrap_or(now);
        if sent > KEEPALIVE_BYTES {
            self.sending = Some(now);
        }
        if received > 0 {
            self.alive = Some(now);
            self.unanswered = 0;
            self.unanswered_since = None;
        } else if sent > 0 {
            self.unanswered = self.unanswered.saturating_add(sent);
            if self.unanswered > KEEPALIVE_BYTES {
                self.unanswered_since.get_or_insert(began);
            }
        }
        received > KEEPALIVE_BYTES
    }
}

/// Bytes of messages, without those of the handshake among them. Data comes in whole blocks of 16, initiations and responses do not. A
/// packet as long as the MTU does not either, and is still long afterwards.
fn without_handshake(bytes: u64) -> u64 {
    let handshake = match bytes % BLOCK {
        4 => INITIATION_BYTES,
        12 => RESPONSE_BYTES,
        // Two of one kind.
        8 if bytes >= 2 * INITIATION_BYTES => 2 * INITIATION_BYTES,
        8 => 2 * RESPONSE_BYTES,
        _ => 0,
    };
    bytes.saturating_sub(handshake)
}

/// Draws how many milliseconds later than [`IDLE_CHECK`] a peer is checked.
pub(super) fn idle_spread(token: u64) -> u16 {
    (token % u64::from(IDLE_SPREAD_MS)) as u16
}

impl Peer {
    /// Until when traffic of a moment ago counts, if there was any.
    pub(crate) fn busy_until(&self) -> Option<Instant> {
        self.traffic.busy_until()
    }

    pub(crate) fn on_counters(&mut self, counters: &PeerCounters, shared: &mut Shared, now: Instant) {
        let PeerCounters { public_key: _, rx_bytes, tx_bytes, last_handshake, endpoint } = counters;
        let is_there = endpoint.is_none() || (self.is_asleep() && *endpoint == self.endpoint.map(|(remote, _)| remote));
        let is_silent = (*rx_bytes, *tx_bytes) == (0, 0) && last_handshake.is_none() && is_there;
        if is_silent && self.traffic.is_put_away() {
            // As it always was, of thousands of peers that a device was just told of.
            self.counted = true;
            return;
        }
        let first = !std::mem::replace(&mut self.counted, true);
        let (rx_before, is_used) = (self.traffic.rx, !first && self.traffic.is_of_users(counters, now));
        let data = self.traffic.update(counters, first, now);
        if is_used {
            self.on_use(shared, now);
        }
        if self.is_asleep() && !first && *rx_bytes > rx_before {
            self.roused(counters, shared, now);
        }
        let held = self.hold.as_ref().is_some_and(|hold| hold.poll_timeout().is_some());
        if data && !held && self.direct.is_some_and(|direct| self.traffic.device == Some(direct.remote)) {
            self.relayed.led = 0;
        }
        if data {
            // By a relay it came although the direct path may be dead.
            if !self.traffic.device.is_some_and(|device| self.relayed.is_relay_socket(device)) {
                self.check_overtaken();
            }
            self.relay_overtaken(counters.endpoint.map(canonical), now);
            self.adoption_overtaken(counters.endpoint.map(canonical), shared, now);
        }
        if self.traffic.is_busy(now) {
            self.relayed.legs.iter().for_each(|leg| shared.ping_relay(leg.relay, now));
        }
        if let Some(endpoint) = counters.endpoint.map(canonical) {
            self.on_device_endpoint(endpoint, shared, now);
        }
    }

    /// When silence or idleness becomes a reason to look.
    pub(super) fn suspicion_due(&self) -> Option<Instant> {
        let rtt = match self.direct {
            Some(direct) => self.pairs.get(&direct.remote).and_then(|pair| pair.rtt),
            None if self.relayed.is_confirmed() => self.relayed.rtt,
            None => return None,
        };
        if self.check.is_some() || self.trial.is_some() || self.relayed.echoes.is_some() {
            return None;
        }
        let idle_after = IDLE_CHECK + Duration::from_millis(self.idle_spread.into());
        let idle = self.traffic.alive.filter(|_| self.is_kept()).map(|alive| alive + idle_after);
        let due = earliest([self.traffic.silence_due(rtt), idle])?;
        // Not sooner than a new check is possible, or the timer would spin.
        let possible = self.traffic.checked.map_or(due, |at| at + Duration::from_secs(1));
        Some(due.max(possible))
    }

    pub(super) fn drive_suspicion(&mut self, shared: &mut Shared, now: Instant) {
        if self.suspicion_due().is_some_and(|due| due <= now) {
            self.start_check(shared, now);
        }
    }

    /// WireGuard follows authenticated packets. That is observed, verified, and undone only if it leads into the mesh.
    fn on_device_endpoint(&mut self, endpoint: SocketAddr, shared: &mut Shared, now: Instant) {
        let lags = self.traffic.endpoint_set.is_some_and(|at| now.saturating_duration_since(at) < ENDPOINT_LAG);
        let told = self.endpoint.map(|(remote, _)| remote);
        if lags || self.trial.is_some() || told == Some(endpoint) {
            return;
        }
        if self.is_forbidden(endpoint, shared) || self.is_asleep() {
            self.put_back(shared, now);
            return;
        }
        let asks = self.follow_from_silent_relay(endpoint, shared, now) || self.asks_before_hold(endpoint, shared, now);
        if asks || self.hold_against(endpoint, now) {
            return;
        }
        if self.relayed.is_relay_socket(endpoint) || self.unclaimed_relay(endpoint, shared).is_some() {
            return self.led_to_relay(endpoint, shared, now);
        }
        if !self.learn(endpoint, shared, now) {
            return;
        }
        if self.pairs.get(&endpoint).is_some_and(|pair| pair.is_proven(now)) {
            self.traffic.roamed = Some(endpoint);
            self.adopt_roamed(endpoint, shared, now);
            if self.direct.is_none() {
                // The peer sends by a way that this side does not count on.
                self.on_proof(endpoint, shared, now);
            }
        } else if self.traffic.roamed != Some(endpoint) || self.direct.is_some() {
            self.traffic.roamed = Some(endpoint);
            self.ping(endpoint, shared, now);
        }
    }

    /// Points the device where it was told to be, unless that was just done. Returns whether it did.
    pub(super) fn put_back(&mut self, shared: &mut Shared, now: Instant) -> bool {
        let recent = self.traffic.put_back.is_some_and(|at| now.saturating_duration_since(at) < PUT_BACK_GAP);
        if recent {
            return false;
        }
        self.traffic.put_back = Some(now);
        shared.stats.put_back += 1;
        let peer = self.key;
        match self.endpoint.take() {
            Some((remote, _)) => self.set_endpoint(remote, shared, now),
            None => shared.events.push_back(Event::ClearEndpoint { peer }),
        }
        true
    }

    /// The address that WireGuard roamed to is proven: it is the path now, and the echo has to confirm it.
    pub(super) fn adopt_roamed(&mut self, from: SocketAddr, shared: &mut Shared, now: Instant) {
        if self.traffic.roamed != Some(from) || self.trial.is_some() {
            return;
        }
        let Some(direct) = self.direct else {
            return;
        };
        self.traffic.roamed = None;
        if direct.remote == from {
            return;
        }
        self.direct = Some(Direct { remote: from, since: direct.since });
        self.nomination.switched = Some(now);
        self.set_endpoint(from, shared, now);
        self.check = None;
        self.traffic.checked = None;
        self.start_check(shared, now);
    }

    /// Probes every pair but one.
    pub(super) fn ping_others(&mut self, except: SocketAddr, shared: &mut Shared, now: Instant) {
        let others: Vec<SocketAddr> = self
            .pairs
            .iter()
            .filter(|(remote, pair): &(&SocketAddr, &Pair)| {
                **remote != except && !pair.is_penalised(now) && !self.is_held(**remote, pair, shared, now)
            })
            .map(|(remote, _)| *remote)
            .collect();
        for remote in others {
            self.ping(remote, shared, now);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn handshakes_are_told_from_data_by_their_length() {
        let (keepalive, data) = (KEEPALIVE_BYTES, 96);
        for (bytes, rest) in [
            (INITIATION_BYTES, 0),
            (RESPONSE_BYTES, 0),
            (2 * INITIATION_BYTES, 0),
            (2 * RESPONSE_BYTES, 0),
            (keepalive, keepalive),
            (INITIATION_BYTES + 2 * keepalive, 2 * keepalive),
            (RESPONSE_BYTES + data, data),
            (2 * INITIATION_BYTES + data, data),
            (data, data),
        ] {
            assert_eq!(without_handshake(bytes), rest, "{bytes}");
        }
        // As long as the MTU allows, and so in no whole blocks.
        assert!(without_handshake(1452) > 1_000);
    }
}
