//! The trial of a nominated pair: WireGuard is pointed at it, and only an echo through the tunnel makes it a path.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use super::{Direct, Lost, Peer};
use crate::candidate::canonical;
use crate::event::Event;
use crate::input::Session;
use crate::shared::Shared;
use crate::timer::earliest;

/// Nominations until one is acknowledged, in milliseconds.
const NOMINATE_AT: [u64; 5] = [0, 100, 250, 500, 900];
/// Echoes through the tunnel after the move, in milliseconds.
const ECHO_AT: [u64; 5] = [0, 200, 500, 1000, 1500];
/// The follower of a new path keeps its echoes back: one without a session would start a second handshake, and two at
/// once stall WireGuard for 5 s.
const FOLLOWER_DELAY: Duration = Duration::from_millis(400);
/// When the handshake is tried once more: longer than any path's round trip that is worth having, because a new
/// initiation makes the answer to the old one void.
const SECOND_HANDSHAKE: Duration = Duration::from_millis(600);
/// Without a confirmation this long after the move, the pair carries no data.
const CONFIRM: Duration = Duration::from_secs(2);
/// Of a pair that has a relay to go back to, the peer's echoes count for no longer than this: later ones may come by the relay,
/// where the peer went back to, and draw an answer from there that would pass for one over the pair on trial.
const LAST_PROMPT: Duration = Duration::from_millis(1800);
/// How long the acknowledgement may take when there is a path to lose.
const ACKNOWLEDGE: Duration = Duration::from_millis(1500);
/// How many times a nomination is repeated above an epoch that the follower remembers.
const MAX_RAISES: u8 = 3;
/// A path that died is probed this often at first ..
const LOST_GAP: Duration = Duration::from_secs(1);
/// .. for this long ..
const LOST_EAGER: Duration = Duration::from_secs(60);
/// .. then this often ..
const LOST_PATIENT_GAP: Duration = Duration::from_secs(5);
/// .. until the ladder's rounds are all that is left.
const LOST_LIFETIME: Duration = Duration::from_secs(600);
/// After this the session is void (WireGuard's `REJECT_AFTER_TIME`), and the side that does not nominate would only
/// start handshakes that collide.
pub(super) const SESSION_LIFETIME: Duration = Duration::from_secs(180);

#[derive(Debug)]
pub(super) struct Trial {
    pub(super) remote: SocketAddr,
    pub(super) epoch: u64,
    pub(super) acked: bool,
    /// Whether this is a later attempt at a pair known to be bad, which is no news.
    pub(super) quiet: bool,
    started: Instant,
    moved: Option<Instant>,
    /// Whether a handshake is part of it, because no session can be relied on.
    fresh: bool,
    handshakes: u8,
    token: u64,
    echoes: usize,
    /// Echoes sent because the peer's arrived.
    prompted: usize,
    nominations: usize,
    raises: u8,
    follows: bool,
    /// Whether this is a session that was there before the engine.
    adopts: bool,
}

impl Trial {
    pub(super) fn nominating(remote: SocketAddr, epoch: u64, token: u64, quiet: bool, now: Instant) -> Self {
        Self {
            remote,
            epoch,
            acked: false,
            quiet,
            started: now,
            moved: None,
            fresh: false,
            handshakes: 0,
            token,
            echoes: 0,
            prompted: 0,
            nominations: 0,
            raises: 0,
            follows: false,
            adopts: false,
        }
    }

    /// WireGuard is there already, with a session, and the peer need not be asked.
    fn adopting(remote: SocketAddr, token: u64, now: Instant) -> Self {
        let moved = Some(now);
        Self { acked: true, follows: true, adopts: true, moved, ..Self::nominating(remote, 0, token, false, now) }
    }

    pub(super) fn is_adopting(&self) -> bool {
        self.adopts
    }

    /// Whether there is no session yet, and the peer makes one.
    pub(super) fn awaits_handshake(&self) -> bool {
        self.follows && self.fresh
    }

    pub(super) fn has_moved(&self) -> bool {
        self.moved.is_some()
    }

    pub(super) fn may_raise(&mut self) -> bool {
        self.raises += 1;
        self.raises <= MAX_RAISES
    }

    fn nomination_due(&self) -> Option<Instant> {
        if self.acked || self.follows {
            return None;
        }
        let offset = NOMINATE_AT.get(self.nominations)?;
        Some(self.started + Duration::from_millis(*offset))
    }

    fn echo_due(&self) -> Option<Instant> {
        let offset = Duration::from_millis(*ECHO_AT.get(self.echoes)?);
        let delay = if self.follows && self.fresh { FOLLOWER_DELAY } else { Duration::ZERO };
        Some(self.moved? + delay + offset)
    }

    fn second_handshake_due(&self) -> Option<Instant> {
        (self.handshakes == 1).then_some(self.moved? + SECOND_HANDSHAKE)
    }

    fn deadline(&self) -> Instant {
        match self.moved {
            Some(moved) if self.follows => moved + FOLLOWER_DELAY + CONFIRM,
            Some(moved) => moved + CONFIRM,
            None => self.started + ACKNOWLEDGE,
        }
    }

    pub(super) fn poll_timeout(&self) -> Option<Instant> {
        earliest([self.nomination_due(), self.echo_due(), self.second_handshake_due(), Some(self.deadline())])
    }
}

impl Peer {
    /// Points WireGuard at the pair on trial.
    pub(super) fn move_to_trial(&mut self, fresh: bool, shared: &mut Shared, now: Instant) {
        let Some(trial) = &mut self.trial else {
            return;
        };
        trial.moved = Some(now);
        trial.fresh = fresh;
        self.leave_relay();
        let Some(trial) = &mut self.trial else {
            return;
        };
        let remote = trial.remote;
        let initiates = fresh && !trial.follows;
        trial.handshakes = u8::from(initiates);
        let (told, device) = (self.endpoint.map(|(told, _)| told), self.traffic.device);
        let left = [told, device].into_iter().flatten().find(|left| *left != remote);
        if !fresh || device.is_some_and(|device| device != remote) {
            // Even if it was told so before: the peer's packets may have led it elsewhere.
            self.endpoint = None;
        }
        self.set_endpoint(remote, shared, now);
        if let (Some(left), false) = (left, fresh) {
            self.hold(left, now);
        }
        if initiates {
            let peer = self.key;
            shared.events.push_back(Event::StartHandshake { peer });
        }
    }

    /// The nominator chose a pair that this side has proven too.
    pub(super) fn follow(&mut self, remote: SocketAddr, epoch: u64, shared: &mut Shared, now: Instant) {
        let token = shared.nonces.token();
        let penalised = self.pairs.get(&remote).is_some_and(|pair| pair.is_penalised(now));
        let mut trial = Trial::nominating(remote, epoch, token, penalised, now);
        trial.follows = true;
        trial.acked = true;
        self.trial = Some(Box::new(trial));
        let has_path = self.direct.is_some() || self.relayed.is_confirmed();
        let fresh = !has_path && !self.traffic.has_session(now);
        self.move_to_trial(fresh, shared, now);
        self.drive_trial(shared, now);
    }

    /// Puts the session that the device has from before on trial, where it is.
    pub(crate) fn adopt(&mut self, session: &Session, shared: &mut Shared, now: Instant) {
        if self.is_asleep() {
            return self.wake_with(session, shared, now);
        }
        let remote = canonical(session.endpoint);
        let is_known = self.direct.is_some() || self.trial.is_some() || self.endpoint.is_some();
        if is_known || session.last_handshake >= SESSION_LIFETIME {
            return;
        }
        if let Some(relay) = self.unclaimed_relay(remote, shared) {
            self.endpoint = Some((remote, session.keepalive));
            return self.adopt_relayed(relay, remote, false, shared, now);
        }
        if !self.learn(remote, shared, now) {
            return;
        }
        self.endpoint = Some((remote, session.keepalive));
        self.refresh_keepalive(shared, now);
        self.trial = Some(Box::new(Trial::adopting(remote, shared.nonces.token(), now)));
        self.drive_trial(shared, now);
    }

    /// Data arrived. On an adopted session that is as good as an echo, and comes also from a peer whose agent is silent.
    pub(super) fn adoption_overtaken(&mut self, endpoint: Option<SocketAddr>, shared: &mut Shared, now: Instant) {
        if self.trial.as_ref().is_some_and(|trial| trial.adopts && endpoint == Some(trial.remote)) {
            self.trial_confirmed(shared, now);
        }
    }

    /// Sends what the trial has due, and ends it in time.
    pub(super) fn drive_trial(&mut self, shared: &mut Shared, now: Instant) {
        let peer = self.key;
        let Some(trial) = &mut self.trial else {
            return;
        };
        if trial.deadline() <= now {
            return self.trial_failed(shared, now);
        }
        if trial.echo_due().is_some_and(|due| due <= now) {
            trial.echoes += 1;
            let token = trial.token;
            self.traffic.send_echo(peer, token, shared, now);
            let (remote, again) = (trial.remote, trial.echoes > 1);
            if again {
                // Tells a path that died from one that carries probes only.
                self.ping(remote, shared, now);
            }
        }
        let Some(trial) = &mut self.trial else {
            return;
        };
        if trial.second_handshake_due().is_some_and(|due| due <= now) {
            trial.handshakes += 1;
            shared.events.push_back(Event::StartHandshake { peer });
        }
        if trial.nomination_due().is_some_and(|due| due <= now) {
            trial.nominations += 1;
            let (remote, epoch) = (trial.remote, trial.epoch);
            self.send_nomination(remote, epoch, shared, now);
        }
    }

    /// The peer's echo came through the tunnel: there is a session, so this side's own echo may go.
    pub(crate) fn on_echo_request(&mut self, shared: &mut Shared, now: Instant) {
        self.traffic.alive(now);
        self.traffic.session_seen(now);
        self.traffic.echoed = Some(now);
        let peer = self.key;
        self.relay_heard(shared, now);
        // Those sent before may have met a session that the peer no longer had.
        if let Some(trial) = &mut self.trial
            && trial.has_moved()
            && trial.prompted < ECHO_AT.len()
            && !(self.relayed.is_confirmed() && trial.moved.is_some_and(|at| at + LAST_PROMPT <= now))
        {
            trial.prompted += 1;
            let token = trial.token;
            self.traffic.send_echo(peer, token, shared, now);
        }
    }

    pub(crate) fn on_echo_reply(&mut self, token: u64, shared: &mut Shared, now: Instant) {
        self.traffic.alive(now);
        self.traffic.echoed = Some(now);
        if self.trial.as_ref().is_some_and(|trial| trial.token == token && trial.has_moved()) {
            self.trial_confirmed(shared, now);
        } else {
            self.check_echoed(token);
            self.on_relay_echo(token, shared, now);
        }
    }

    fn trial_confirmed(&mut self, shared: &mut Shared, now: Instant) {
        let Some(trial) = self.trial.take() else {
            return;
        };
        shared.stats.confirmed += 1;
        if self.direct.is_none_or(|direct| direct.remote != trial.remote) {
            self.nomination.switched = Some(now);
        }
        self.relayed.path = None;
        self.relayed.echoes = None;
        self.direct = Some(Direct { remote: trial.remote, since: self.direct.map_or(now, |direct| direct.since) });
        self.lost = None;
        self.check = None;
        self.punch.rest();
        self.nomination.reset_retries();
        if trial.awaits_handshake() {
            self.refresh_keepalive(shared, now);
        }
        if let Some(pair) = self.pairs.get_mut(&trial.remote) {
            pair.acquit(now);
        }
        // A better pair may have been proven meanwhile.
        self.choose(shared, now);
    }

    fn trial_failed(&mut self, shared: &mut Shared, now: Instant) {
        let Some(trial) = self.trial.take() else {
            return;
        };
        let Some(moved) = trial.moved else {
            // The follower never answered, so nothing was moved and nothing is known to be wrong but this pair's proof.
            if let Some(pair) = self.pairs.get_mut(&trial.remote) {
                pair.last_pong = None;
            }
            return;
        };
        let doubtful = !self.relayed.is_confirmed();
        if let Some(pair) = self.pairs.get_mut(&trial.remote) {
            if pair.last_pong.is_some_and(|at| at > moved) {
                shared.stats.data_blocked += 1;
                pair.penalise(doubtful, now);
            } else {
                pair.last_pong = None;
            }
        }
        match self.direct {
            Some(direct) if direct.remote != trial.remote => self.revert(direct, shared, now),
            Some(_) => self.path_died(shared, now),
            None if trial.adopts => {
                self.lost = Some(Box::new(Lost { remote: trial.remote, at: now, probe_at: now + LOST_GAP }));
                self.use_relay(shared, now);
                self.choose(shared, now);
            }
            None => {
                if !self.use_relay(shared, now) && trial.follows {
                    self.clear_endpoint(shared);
                }
                self.schedule_retry(now);
                self.choose(shared, now);
            }
        }
    }

    /// Back to the path that worked, which has to show that it still does.
    fn revert(&mut self, direct: Direct, shared: &mut Shared, now: Instant) {
        self.set_endpoint(direct.remote, shared, now);
        if self.nominates {
            self.nominate(direct.remote, true, shared, now);
        } else {
            self.start_check(shared, now);
        }
    }

    /// Two sides that initiate at once stall each other, and users' packets make both initiate. So the side that does
    /// not nominate has an endpoint only while there is a session, or one is being made.
    pub(super) fn clear_endpoint(&mut self, shared: &mut Shared) {
        if self.endpoint.take().is_some() {
            let peer = self.key;
            shared.events.push_back(Event::ClearEndpoint { peer });
        }
    }

    /// The path in use is dead. WireGuard keeps pointing at it until something better is proven: a path that heals
    /// carries data again before anybody has to notice.
    pub(super) fn path_died(&mut self, shared: &mut Shared, now: Instant) {
        self.check = None;
        let Some(direct) = self.direct.take() else {
            return;
        };
        shared.stats.died += 1;
        shared.doubts_mapping = true;
        self.lost = Some(Box::new(Lost { remote: direct.remote, at: now, probe_at: now + LOST_GAP }));
        self.begin(shared, now);
        // Waiting for an acknowledgement made sense only while there was a path to lose.
        if !self.use_relay(shared, now) && self.trial.as_ref().is_some_and(|trial| !trial.has_moved()) {
            self.move_to_trial(true, shared, now);
            self.drive_trial(shared, now);
        }
        self.schedule_retry(now);
        self.choose(shared, now);
    }

    /// Probes the path that died last.
    pub(super) fn drive_lost(&mut self, shared: &mut Shared, now: Instant) {
        let Some(lost) = &mut self.lost else {
            return;
        };
        if now < lost.probe_at {
            return;
        }
        let age = now.saturating_duration_since(lost.at);
        lost.probe_at = now + if age < LOST_EAGER { LOST_GAP } else { LOST_PATIENT_GAP };
        let remote = lost.remote;
        let session_over = age >= SESSION_LIFETIME && !self.traffic.shook_hands_within(SESSION_LIFETIME, now);
        if session_over && !self.nominates && self.trial.is_none() && self.relayed.path.is_none() {
            self.clear_endpoint(shared);
        }
        if age >= LOST_LIFETIME || !self.wanted {
            self.lost = None;
        }
        self.ping(remote, shared, now);
    }
}
