//! The relayed path in use: entered when both legs are bound, proven by an echo, watched like a direct one, left for a direct
//! one that is proven.
//!
//! The order matters to WireGuard. Legs are bound before anything is pointed at them. Only the side that nominates starts the
//! handshake, [early] if it can; the other one, if it has no session, waits for that handshake and lets its device follow it.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use super::Peer;
use super::leg::Leg;
use super::trial::SESSION_LIFETIME;
use crate::event::Event;
use crate::relay::RelayId;
use crate::shared::Shared;
use crate::timer::earliest;

mod doubt;
mod early;
mod led;

use doubt::SECOND_HANDSHAKE;
pub(super) use doubt::{Echoes, VAIN_GAP};
use early::Early;

/// For so long a handshake by relay is not disturbed by one over a direct pair: the device would answer the wrong one.
const UNDISTURBED: Duration = Duration::from_secs(1);
/// How long the side that follows waits for the other one's handshake before it starts its own.
const SILENT_NOMINATOR: Duration = Duration::from_secs(3);
/// How much later than this side the peer gives a trial up.
const GIVEN_UP: Duration = Duration::from_millis(600);
/// How long a leg is kept that the path has left: for what is on its way ..
const SETTLE: Duration = Duration::from_secs(5);
/// .. and then what circulates there is fetched, for so long.
const SWEEP: Duration = Duration::from_secs(1);

#[derive(Debug, Clone, Copy)]
pub(super) struct RelayPath {
    pub(super) relay: RelayId,
    pub(super) endpoint: SocketAddr,
    /// Since when the pair is relayed, over whichever relay.
    pub(super) since: Instant,
    entered: Instant,
    /// While the peer's leg is not known to be bound.
    early: Option<Early>,
    /// Whether WireGuard was pointed there.
    moved: bool,
    /// Whether an echo came back.
    pub(super) confirmed: bool,
    /// When legs on other relays may go ..
    pub(super) settles: Option<Instant>,
    /// .. and whether what still circulates there was fetched before.
    swept: bool,
}

impl RelayPath {
    /// A relay that has just been chosen, and that nothing is known of.
    fn new(relay: RelayId, endpoint: SocketAddr, now: Instant) -> Self {
        Self {
            relay,
            endpoint,
            since: now,
            entered: now,
            early: None,
            moved: false,
            confirmed: false,
            settles: None,
            swept: false,
        }
    }

    /// Whether nothing is on its way any more by a leg that was left for this one.
    pub(super) fn is_settled(&self, now: Instant) -> bool {
        self.settles.is_none() && self.entered + SETTLE <= now
    }

    /// When this side points WireGuard there and begins a handshake, if nothing has come from the other one before.
    fn begins_at(&self) -> Instant {
        self.entered + self.early.map_or(SILENT_NOMINATOR, |early| early.gap())
    }
}

impl Peer {
    /// A leg is ready: use it if it is needed.
    pub(super) fn consider_relay(&mut self, relay: RelayId, shared: &mut Shared, now: Instant) {
        if !self.may_enter_relay() {
            return;
        }
        let ready = self.relayed.legs.iter().find(|leg| leg.relay == relay && leg.is_ready());
        let Some(endpoint) = ready.and_then(Leg::remote) else {
            return;
        };
        match self.relayed.path {
            Some(path) if (path.relay, path.endpoint) == (relay, endpoint) => {
                if path.early.is_some() {
                    self.met_early(shared, now);
                } else {
                    self.meet_anew(shared, now);
                }
            }
            Some(path) if path.relay != relay && path.confirmed && !shared.relays.is_ending(&path.relay) => {}
            _ => self.enter_relay(relay, endpoint, shared, now),
        }
    }

    /// Whether there is nothing better than a relay, and nothing better is being tried.
    fn may_enter_relay(&self) -> bool {
        self.wanted && self.direct.is_none() && !self.trial.as_ref().is_some_and(|trial| trial.has_moved())
    }

    fn is_session_open(&self, now: Instant) -> bool {
        self.traffic.has_session(now) || self.traffic.shook_hands_within(SESSION_LIFETIME, now)
    }

    fn enter_relay(&mut self, relay: RelayId, endpoint: SocketAddr, shared: &mut Shared, now: Instant) {
        let before = self.relayed.path.filter(|path| path.confirmed);
        let has_session = before.is_some() || self.is_session_open(now);
        let since = before.map_or(now, |path| path.since);
        let confirmed = before.is_some();
        // Packets may show that it works before an echo does.
        let settles = before.map(|_| now + SETTLE);
        self.relayed.path = Some(RelayPath { since, confirmed, settles, ..RelayPath::new(relay, endpoint, now) });
        self.relayed.echoes = None;
        if self.nominates || has_session {
            self.move_to_relay(self.nominates && before.is_none(), shared, now);
        }
    }

    /// Points WireGuard at the relay, with or without a handshake.
    fn move_to_relay(&mut self, initiates: bool, shared: &mut Shared, now: Instant) {
        let Some(path) = &mut self.relayed.path else {
            return;
        };
        path.moved = true;
        let (endpoint, switches) = (path.endpoint, path.confirmed);
        let left = self.endpoint.map(|(left, _)| left).filter(|left| *left != endpoint);
        self.set_endpoint(endpoint, shared, now);
        if let (Some(left), true) = (left, switches) {
            self.hold(left, now);
        }
        if initiates {
            let peer = self.key;
            shared.events.push_back(Event::StartHandshake { peer });
        }
        self.relayed.echoes = Some(Echoes::new(initiates.then_some(now + SECOND_HANDSHAKE), now));
        self.drive_relay(shared, now);
    }

    /// The leg of the path in use has become its relay's channel, or is not any more: WireGuard goes along, without a handshake if it has
    /// a session by it.
    pub(super) fn follow_leg(&mut self, shared: &mut Shared, now: Instant) {
        let relayed = &mut *self.relayed;
        let Some(path) = &mut relayed.path else {
            return;
        };
        let leg = relayed.legs.iter().find(|leg| leg.relay == path.relay && leg.is_bound());
        let Some(remote) = leg.and_then(Leg::remote).filter(|remote| *remote != path.endpoint) else {
            return;
        };
        if !remote.ip().is_loopback() && !path.endpoint.ip().is_loopback() {
            return;
        }
        path.endpoint = remote;
        let initiates = self.nominates && !path.confirmed;
        if path.moved && !self.trial.as_ref().is_some_and(|trial| trial.has_moved()) {
            self.move_to_relay(initiates, shared, now);
        }
    }

    /// The peer's echo came through the tunnel, which is open now: if this side waited for that at a relay, it follows.
    pub(super) fn relay_heard(&mut self, shared: &mut Shared, now: Instant) {
        self.relayed.peer_is_heard(now);
        if self.relayed.path.is_some_and(|path| !path.moved) && self.trial.is_none() {
            self.move_to_relay(false, shared, now);
        }
    }

    pub(super) fn on_relay_echo(&mut self, token: u64, shared: &mut Shared, now: Instant) {
        let relayed = &mut *self.relayed;
        let sent = relayed.echoes.as_ref().and_then(|echoes| echoes.sent.iter().find(|(own, _)| *own == token));
        let (Some((_, at)), Some(path)) = (sent, &mut relayed.path) else {
            return;
        };
        let rtt = now.saturating_duration_since(*at);
        let relay = path.relay;
        relayed.echoes = None;
        path.settles = Some(now + SETTLE).filter(|_| relayed.legs.len() > 1);
        self.relayed.forgive(&relay);
        if self.relayed.is_confirmed() {
            self.relayed.rtt = Some(self.relayed.rtt.map_or(rtt, |old| (old * 7 + rtt) / 8));
            return;
        }
        if let Some(path) = &mut self.relayed.path {
            path.confirmed = true;
            path.early = None;
            path.since = now;
        }
        self.relayed.failures = 0;
        shared.stats.relayed += 1;
        self.pairs.iter_mut().for_each(|(_, pair)| pair.forgive_doubtful());
        // The first one had to wait for the session and tells nothing of the round trip.
        self.relayed.echoes = Some(Echoes::new(None, now));
        self.choose(shared, now);
        self.drive_relay(shared, now);
    }

    /// The channel to a relay is gone. Its data plane may be alive all the same. Returns whether this peer has to find that out.
    pub(crate) fn relay_lost(&mut self, relay: RelayId, shared: &mut Shared, now: Instant) -> bool {
        if self.carriage_lost(relay, shared, now) {
            return true;
        }
        if self.relayed.path.is_some_and(|path| path.relay == relay) {
            self.start_relay_check(shared, now);
            return true;
        }
        self.ask_warm_leg(relay, now)
    }

    /// Sends what the relayed path has due, and ends it in time.
    pub(super) fn drive_relay(&mut self, shared: &mut Shared, now: Instant) {
        let Some(path) = self.relayed.path else {
            return;
        };
        let better = self.relayed.warm_relay().filter(|relay| !shared.relays.is_ending(relay));
        // Both sides leave a relay that ends. Who only answers would be led back by each packet that the other one sends there, and
        // the other one by the answers.
        if let Some(relay) = better.filter(|_| path.confirmed && shared.relays.is_ending(&path.relay)) {
            return self.consider_relay(relay, shared, now);
        }
        if path.settles.is_some_and(|at| at <= now) {
            let left = self.needless_legs(path.relay, shared, now).find_map(Leg::remote);
            let sweeps = left.filter(|_| !path.swept);
            self.relayed.path = Some(RelayPath { settles: sweeps.map(|_| now + SWEEP), swept: true, ..path });
            match sweeps {
                Some(left) => self.hold(left, now),
                None => self.drop_needless_legs(path.relay, shared, now),
            }
        }
        let waits = path.early.is_some_and(|early| early.waits(shared));
        if !path.moved && path.begins_at() <= now && !waits && self.trial.is_none() {
            return self.move_to_relay(true, shared, now);
        }
        if self.echoes_deadline().is_some_and(|at| at <= now) {
            return self.relay_path_died(shared, now);
        }
        if let Some(echoes) = &mut self.relayed.echoes {
            let peer = self.key;
            let due = echoes.due().is_some_and(|due| due <= now);
            let handshake = echoes.handshake_due.take_if(|due| *due <= now).is_some();
            let doubts = echoes.doubt_due.take_if(|due| *due <= now).is_some();
            if due {
                let token = shared.nonces.token();
                echoes.sent.push((token, now));
                self.traffic.send_echo(peer, token, shared, now);
            }
            if due && echoes.sent.len() == 2 && path.confirmed {
                self.suspect_relay(path, shared, now);
            }
            if handshake {
                shared.events.push_back(Event::StartHandshake { peer });
            }
            if doubts {
                self.seek_way_out(shared, now);
            }
        }
        if !path.confirmed && path.entered + UNDISTURBED <= now {
            self.choose(shared, now);
        }
    }

    /// Whether a handshake by relay is under way that nothing else should disturb.
    pub(super) fn is_entering_relay(&self, now: Instant) -> bool {
        let is_entered = |path: RelayPath| path.moved && !path.confirmed && path.early.is_none();
        self.relayed.path.is_some_and(|path| is_entered(path) && now < path.entered + UNDISTURBED)
    }

    pub(super) fn relay_timeout(&self, now: Instant) -> Option<Instant> {
        let path = self.relayed.path?;
        let echoes = self.relayed.echoes.as_ref();
        let echo = echoes.and_then(Echoes::due);
        let handshake = echoes.and_then(|echoes| echoes.handshake_due);
        let silent = (!path.moved && self.trial.is_none()).then(|| path.begins_at());
        let undisturbed = Some(path.entered + UNDISTURBED).filter(|at| !path.confirmed && now < *at);
        let doubt = echoes.and_then(|echoes| echoes.doubt_due);
        earliest([echo, handshake, doubt, self.echoes_deadline(), silent, undisturbed, path.settles])
    }

    /// Nothing comes back by the relay. WireGuard keeps its endpoint until something better is there.
    pub(super) fn relay_path_died(&mut self, shared: &mut Shared, now: Instant) {
        let Some(path) = self.relayed.path.take() else {
            return;
        };
        self.relayed.echoes = None;
        if path.early.is_some() {
            // Nothing could be expected of it yet.
            return;
        }
        self.relayed.rtt = None;
        let wait = self.relayed.shun(path.relay, now);
        if path.confirmed {
            shared.stats.relay_died += 1;
            shared.doubts_mapping = true;
        } else {
            self.relayed.failures = self.relayed.failures.saturating_add(1);
        }
        if shared.relays.get(&path.relay).is_none() {
            self.drop_leg(path.relay, shared);
        } else if let Some(leg) = self.relayed.leg(&path.relay) {
            let ask_at = if path.confirmed { now } else { now + wait };
            leg.doubt(ask_at, now);
        }
        if let Some(relay) = self.ready_relay(shared).filter(|_| path.confirmed) {
            return self.go_on_at(relay, path, shared, now);
        }
        if !self.use_relay(shared, now) {
            if !self.nominates && !self.traffic.shook_hands_within(SESSION_LIFETIME, now) && self.trial.is_none() {
                self.clear_endpoint(shared);
            }
            self.choose(shared, now);
        }
    }

    /// Packets go on at a relay where a leg stands ready. Either side may do that: the device of the other one follows.
    fn go_on_at(&mut self, relay: RelayId, left: RelayPath, shared: &mut Shared, now: Instant) {
        if let Some(leg) = self.relayed.leg(&left.relay) {
            leg.leave();
        }
        let Some(endpoint) = self.relayed.leg(&relay).and_then(|leg| leg.remote()) else {
            return;
        };
        // Still one that works, until its echoes tell otherwise.
        self.relayed.path = Some(left);
        self.enter_relay(relay, endpoint, shared, now);
        let handshake_due = now + self.handshake_patience();
        if let Some(echoes) = &mut self.relayed.echoes {
            echoes.handshake_due = Some(handshake_due);
        }
    }

    /// A relay of this mesh where a leg is ready.
    fn ready_relay(&self, shared: &Shared) -> Option<RelayId> {
        let mut ready = self.relayed.legs.iter().filter(|leg| leg.is_ready()).map(|leg| leg.relay);
        ready.find(|relay| shared.relays.get(relay).is_some())
    }

    /// Goes to a relay, or back to it, if there is one with a leg that is ready. Returns whether there is.
    pub(super) fn use_relay(&mut self, shared: &mut Shared, now: Instant) -> bool {
        if let Some(path) = self.relayed.path.filter(|path| path.confirmed) {
            self.set_endpoint(path.endpoint, shared, now);
            // Not before the peer has given up what was tried.
            self.relayed.echoes = Some(Echoes::new(None, now + GIVEN_UP));
        } else if let Some(relay) = self.ready_relay(shared) {
            self.relayed.path = None;
            self.consider_relay(relay, shared, now);
        }
        self.relayed.path.is_some()
    }

    /// WireGuard goes elsewhere, to try it.
    pub(super) fn leave_relay(&mut self) {
        self.relayed.echoes = None;
        self.relayed.path = self.relayed.path.filter(|path| path.confirmed);
    }
}
