//! Doubt about the relayed path in use: echoes ask whether it is still there, and how long they may go unanswered depends on what there is
//! to go on with.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use super::RelayPath;
use crate::event::Event;
use crate::peer::Peer;
use crate::shared::Shared;

/// Echoes through the tunnel, in milliseconds.
const ECHO_AT: [u64; 5] = [0, 200, 500, 1000, 1500];
/// Without an answer for so long, the relay carries nothing.
const CONFIRM: Duration = Duration::from_secs(2);
/// The same if the relay's channel is gone: two echoes and their answers.
const LOST_CHANNEL: Duration = Duration::from_millis(600);
/// The same if a warm leg stands ready, unless three round trips are longer. To leave costs next to nothing.
const WARM: Duration = Duration::from_millis(250);
/// A relay that was left in vain this soon after another doubles that time for the next: it is the peer that is slow, and no relay.
pub(in crate::peer) const VAIN_GAP: Duration = Duration::from_secs(60);
/// When the handshake is tried once more: longer than any round trip that is worth having.
pub(super) const SECOND_HANDSHAKE: Duration = Duration::from_millis(600);
/// When a path that was fine gets a new handshake: the peer's device may have lost the session.
const CHECK_HANDSHAKE: Duration = Duration::from_millis(500);
/// Between two checks: one-way traffic looks like silence all the time.
const MIN_GAP: Duration = Duration::from_secs(1);

/// Echoes that try a path, or ask whether it is still there.
#[derive(Debug)]
pub(in crate::peer) struct Echoes {
    started: Instant,
    pub(super) sent: Vec<(u64, Instant)>,
    pub(super) handshake_due: Option<Instant>,
    deadline: Instant,
    /// The deadline once a warm leg stands ready.
    if_warm: Option<Instant>,
    /// When a leg elsewhere is asked for.
    pub(super) doubt_due: Option<Instant>,
}

impl Echoes {
    pub(super) fn new(handshake_due: Option<Instant>, now: Instant) -> Self {
        Self { started: now, sent: Vec::new(), handshake_due, deadline: now + CONFIRM, if_warm: None, doubt_due: None }
    }

    /// Silence is no reason to look elsewhere before the deadline.
    fn trust(&mut self) {
        (self.if_warm, self.doubt_due) = (None, None);
    }

    pub(super) fn due(&self) -> Option<Instant> {
        ECHO_AT.get(self.sent.len()).map(|millis| self.started + Duration::from_millis(*millis))
    }
}

impl Peer {
    /// Asks whether the relayed path in use is still there, unless that is being done, or was just done.
    pub(in crate::peer) fn start_relay_check(&mut self, shared: &mut Shared, now: Instant) {
        let recent = self.traffic.checked.is_some_and(|at| now.saturating_duration_since(at) < MIN_GAP);
        if !recent {
            self.check_relay(self.handshake_patience(), shared, now);
        }
    }

    /// The peer's agent has come back to the relay in use, maybe without the session. This side starts handshakes.
    pub(in crate::peer) fn greet(&mut self, shared: &mut Shared, now: Instant) {
        let peer = self.key;
        shared.events.push_back(Event::StartHandshake { peer });
        self.relayed.echoes = None;
        self.check_relay(SECOND_HANDSHAKE, shared, now);
        // The first echo met the old session. That is no fault of the relay's.
        self.relayed.echoes.iter_mut().for_each(Echoes::trust);
    }

    /// Both legs of the path in use are bound once more: the peer came anew, maybe without the session. A handshake that was begun when it
    /// was back at the relay may have met nobody, so there is another one when the answer to that is overdue; sooner it would make the answer
    /// void.
    pub(in crate::peer) fn meet_anew(&mut self, shared: &mut Shared, now: Instant) {
        let overdue = self.relayed.rtt.filter(|_| self.nominates).map(|rtt| rtt + rtt / 8);
        match (&mut self.relayed.echoes, overdue) {
            (Some(echoes), Some(overdue)) => {
                let at = echoes.started + overdue;
                echoes.handshake_due = echoes.handshake_due.map(|due| due.min(at));
                self.drive_relay(shared, now);
            }
            _ => self.start_relay_check(shared, now),
        }
    }

    /// Asks whether the relayed path in use is still there, with a handshake if no answer has come for so long.
    fn check_relay(&mut self, handshake: Duration, shared: &mut Shared, now: Instant) {
        let tries = self.trial.as_ref().is_some_and(|trial| trial.has_moved());
        if !self.relayed.is_confirmed() || self.relayed.echoes.is_some() || tries {
            return;
        }
        self.traffic.checked = Some(now);
        let mut echoes = Echoes::new(Some(now + handshake), now);
        let lost = self.relayed.path.is_some_and(|path| !shared.relays.is_open(&path.relay));
        let least = self.relayed.rtt.unwrap_or_default() * 3;
        if lost {
            echoes.deadline = now + LOST_CHANNEL.max(least);
        }
        let warm = (WARM * (1 << self.relayed.vain_lately(now).min(3))).max(least);
        echoes.if_warm = Some(now + warm);
        echoes.doubt_due = Some(now + warm / 2);
        self.relayed.echoes = Some(echoes);
        self.drive_relay(shared, now);
    }

    /// Data arrived on its own. A silent agent does not make a dead path.
    pub(in crate::peer) fn relay_overtaken(&mut self, endpoint: Option<SocketAddr>, now: Instant) {
        if !self.relayed.path.is_some_and(|path| path.confirmed && Some(path.endpoint) == endpoint) {
            return;
        }
        let relayed = &mut *self.relayed;
        match &mut relayed.echoes {
            // The first round-trip time is still to be measured.
            Some(echoes) if relayed.rtt.is_none() => {
                echoes.deadline = now + CONFIRM;
                echoes.trust();
            }
            echoes => {
                if echoes.take().is_some() {
                    self.doubt_again();
                }
            }
        }
    }

    /// When the echoes have gone unanswered for too long: sooner where there is something to go on with.
    pub(super) fn echoes_deadline(&self) -> Option<Instant> {
        let echoes = self.relayed.echoes.as_ref()?;
        let if_warm = echoes.if_warm.filter(|_| self.relayed.warm_relay().is_some());
        Some(if_warm.map_or(echoes.deadline, |at| at.min(echoes.deadline)))
    }

    /// The first echo of a check was not answered: perhaps this node's NAT moved its port, or the device its endpoint.
    pub(super) fn suspect_relay(&mut self, path: RelayPath, shared: &mut Shared, now: Instant) {
        shared.doubts_mapping = true;
        if let Some(leg) = self.relayed.leg(&path.relay) {
            leg.bind_now(now);
        }
        self.endpoint = None;
        self.set_endpoint(path.endpoint, shared, now);
    }

    /// How long a path in use may be silent before a handshake: two initiations at once stall WireGuard, so one side waits.
    pub(super) fn handshake_patience(&self) -> Duration {
        if self.nominates { CHECK_HANDSHAKE } else { CHECK_HANDSHAKE * 3 }
    }
}
