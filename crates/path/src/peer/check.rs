//! Suspicion: does the path in use still carry probes and data?

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use super::Peer;
use crate::event::Event;
use crate::shared::Shared;
use crate::timer::earliest;

/// The least time that a PONG gets, unless two round trips are longer.
const PONG_TIMEOUT: Duration = Duration::from_millis(125);
/// How much longer the last one gets while no leg stands ready: to leave costs something then, and a leg takes as long to come about.
const NOWHERE_TO_GO: Duration = Duration::from_millis(150);
/// PINGs without an answer after which the path is dead.
const MAX_MISSED: u8 = 2;
/// Echoes through the tunnel, in milliseconds.
const ECHO_AT: [u64; 4] = [0, 200, 500, 1000];
/// When a path that carries probes gets a new handshake: the peer's device may have lost the session.
const HANDSHAKE: Duration = Duration::from_millis(500);
/// Without an echo for this long, the path carries probes only.
const CONFIRM: Duration = Duration::from_secs(2);
/// Between two checks: one-way traffic looks like silence all the time.
const MIN_GAP: Duration = Duration::from_secs(1);

#[derive(Debug)]
pub(super) struct Check {
    started: Instant,
    pub(super) ponged: bool,
    /// Where the device was led to meanwhile: it is brought back if the path answers.
    pub(super) led: Option<SocketAddr>,
    pings: u8,
    ping_due: Instant,
    token: u64,
    echoes: usize,
    /// When to start a handshake if only probes pass; `None` once that is done.
    handshake_due: Option<Instant>,
}

impl Check {
    fn echo_due(&self) -> Option<Instant> {
        let offset = ECHO_AT.get(self.echoes)?;
        Some(self.started + Duration::from_millis(*offset))
    }

    /// When the last PING is held for lost.
    fn ping_due(&self, has_way_out: bool) -> Instant {
        if self.pings < MAX_MISSED || has_way_out { self.ping_due } else { self.ping_due + NOWHERE_TO_GO }
    }

    pub(super) fn poll_timeout(&self, has_way_out: bool) -> Option<Instant> {
        earliest([
            (!self.ponged).then_some(self.ping_due(has_way_out)),
            self.echo_due(),
            self.handshake_due.filter(|_| self.ponged),
            Some(self.started + CONFIRM),
        ])
    }
}

impl Peer {
    /// Checks the path in use, unless that is being done, was just done, or a trial will tell anyway.
    pub(super) fn start_check(&mut self, shared: &mut Shared, now: Instant) {
        if self.direct.is_none() {
            return self.start_relay_check(shared, now);
        }
        let recent = self.traffic.checked.is_some_and(|at| now.saturating_duration_since(at) < MIN_GAP);
        if self.check.is_some() || self.trial.is_some() || recent {
            return;
        }
        self.traffic.checked = Some(now);
        // Only the nominator initiates, except when it does not seem to notice.
        let patience = if self.nominates { HANDSHAKE } else { HANDSHAKE * 3 };
        self.check = Some(Box::new(Check {
            started: now,
            ponged: false,
            led: None,
            pings: 0,
            ping_due: now,
            token: shared.nonces.token(),
            echoes: 0,
            handshake_due: Some(now + patience),
        }));
        self.drive_check(shared, now);
    }

    pub(super) fn drive_check(&mut self, shared: &mut Shared, now: Instant) {
        let (Some(check), Some(direct)) = (&mut self.check, self.direct) else {
            self.check = None;
            return;
        };
        let peer = self.key;
        let has_way_out = self.relayed.warm_relay().is_some();
        if check.echo_due().is_some_and(|due| due <= now) {
            check.echoes += 1;
            let token = check.token;
            if check.echoes > 1 && check.ponged && self.relayed.has_sockets() && !self.traffic.has_roamed() {
                // What circulates by a relay may have led the device there, where nobody need answer. A path that does not even answer
                // probes would only cost what is sent until the next packet leads the device away again.
                self.endpoint = None;
                self.set_endpoint(direct.remote, shared, now);
            }
            self.traffic.send_echo(peer, token, shared, now);
        }
        let Some(check) = &mut self.check else {
            return;
        };
        if check.started + CONFIRM <= now {
            return self.check_failed(shared, now);
        }
        if check.ponged {
            if check.handshake_due.take_if(|due| *due <= now).is_some() {
                shared.events.push_back(Event::StartHandshake { peer });
            }
            return;
        }
        if now < check.ping_due(has_way_out) {
            return;
        }
        if check.pings >= MAX_MISSED {
            // What answered until a moment ago would still count as proven, and be nominated once more.
            if let Some(pair) = self.pairs.get_mut(&direct.remote) {
                pair.last_pong = None;
            }
            return self.path_died(shared, now);
        }
        let rtt = self.pairs.get(&direct.remote).and_then(|pair| pair.rtt);
        check.pings += 1;
        check.ping_due = now + PONG_TIMEOUT.max(rtt.unwrap_or_default() * 2);
        let others = check.pings > 1;
        self.ping(direct.remote, shared, now);
        if others {
            shared.doubts_mapping = true;
            // The ways out should be proven by the time that they are needed.
            self.ping_others(direct.remote, shared, now);
            self.seek_way_out(shared, now);
        }
    }

    /// The path in use answered a probe.
    pub(super) fn check_ponged(&mut self, direct: SocketAddr, shared: &mut Shared, now: Instant) {
        let Some(check) = &mut self.check else {
            return;
        };
        check.ponged = true;
        if let Some(endpoint) = check.led.take() {
            self.bring_back(direct, endpoint, shared, now);
        }
    }

    /// The echo of a check came back. Where there are legs the peer's packets may have led the device to a relay, before anybody asks it
    /// where it is. An echo that came by that tells nothing of the path: only one from after the path's own answer does, when the device
    /// has been pointed there.
    pub(super) fn check_echoed(&mut self, token: u64) {
        let by_path_alone = !self.relayed.has_sockets();
        self.check.take_if(|check| check.token == token && (check.ponged || by_path_alone));
    }

    /// Data arrived on its own. A silent agent does not make a dead path.
    pub(super) fn check_overtaken(&mut self) {
        if self.check.take().is_some() {
            self.doubt_again();
        }
    }

    fn check_failed(&mut self, shared: &mut Shared, now: Instant) {
        if let Some(direct) = self.direct
            && let Some(pair) = self.pairs.get_mut(&direct.remote)
        {
            shared.stats.data_blocked += 1;
            pair.penalise(false, now);
        }
        self.path_died(shared, now);
    }
}
