//! Pairs that nobody uses, where [paths are made on demand](crate::OnDemand).
//!
//! ```text
//! in use    a user's packet was seen within the idle time, or the pair has just been woken
//! let go    no keepalive of this side's, no check and no round of probes; the path stays where it is, and is answered for
//! asleep    the peer has been silent as well: no path, no leg, no timer, and WireGuard is pointed at the peer's bell
//! ```
//!
//! The *bell* is a loopback address that stands for the peer. What WireGuard sends there is a user's packet, or the handshake that one
//! asks for, and wakes the pair: it starts over as if both nodes had just learned of each other. The peer wakes by whatever that brings
//! about: the CALL, the leg on a relay, a PING.
//!
//! A side lets go by itself and sleeps only when nothing has come from the peer for longer than its keepalive takes. So two idle sides
//! agree without a word, and a peer that keeps its pairs, because it knows nothing else or was told so, is never left alone. What is let
//! go moves to the bell before any NAT has forgotten the last packet, so that no packet goes to where nobody is.
//!
//! Only a peer that can be called may sleep: one that was met at a relay, or will be in a moment.

use std::net::SocketAddr;
use std::num::NonZeroU16;
use std::time::{Duration, Instant};

use super::trial::SESSION_LIFETIME;
use super::{KEEPALIVE, Peer};
use crate::candidate::canonical;
use crate::carriage;
use crate::event::Event;
use crate::input::{PeerCounters, Session};
use crate::relay::ControlChannel;
use crate::seldom::AsMade;
use crate::shared::Shared;

/// Silence after which the peer has let go as well: its keepalive, and what that takes to arrive. Common NATs forget after 30 s at the
/// soonest.
const SILENT: Duration = Duration::from_secs(KEEPALIVE.as_secs() + 4);
/// How long a peer sleeps that is at no relay: one that starts anew takes less.
const UNMET: Duration = Duration::from_secs(30);

#[derive(Debug, PartialEq)]
pub(super) struct Rest {
    /// The number of the loopback address that stands for the peer.
    bell: Option<NonZeroU16>,
    /// When a packet of a user was last seen, or the pair was woken.
    used: Option<Instant>,
    /// Since when it is let go.
    let_go: Option<Instant>,
    /// Since when it sleeps and can't be called.
    unmet: Option<Instant>,
    /// When something is to be done about all that.
    due: Option<Instant>,
}

impl AsMade for Rest {
    const MADE: Self = Self { bell: None, used: None, let_go: None, unmet: None, due: None };

    fn made() -> &'static Self {
        const { &Self::MADE }
    }

    fn is_as_made(&self) -> bool {
        *self == Self::MADE
    }
}

impl Rest {
    /// Whether this side does nothing to keep the pair.
    pub(super) fn is_let_go(&self) -> bool {
        self.let_go.is_some()
    }

    pub(super) fn poll_timeout(&self) -> Option<Instant> {
        self.due
    }
}

impl Peer {
    /// Whether there is to be no path until somebody needs one.
    pub(super) fn is_asleep(&self) -> bool {
        self.asked && !self.wanted
    }

    /// Whether this side does something for the pair by itself: probes, checks, keepalives.
    pub(super) fn is_kept(&self) -> bool {
        self.wanted && !self.rest.is_let_go()
    }

    /// The directory wants a path, or none.
    pub(super) fn set_asked(&mut self, asked: bool, shared: &mut Shared, now: Instant) {
        if asked == self.asked {
            return;
        }
        self.asked = asked;
        self.wanted = asked;
        if asked && shared.on_demand.is_some() && shared.channel != ControlChannel::Absent {
            self.fall_asleep(shared, now);
        }
    }

    /// Whether an address stands for this peer, and nobody is there.
    pub(super) fn is_bell(&self, remote: SocketAddr, shared: &Shared) -> bool {
        let on_demand = self.rest.bell.zip(shared.on_demand);
        on_demand.is_some_and(|(bell, on_demand)| carriage::socket(bell, on_demand.port) == remote)
    }

    /// Lets everything go: path, leg, probes, keepalive. Returns whether the peer can be waited for at a bell.
    pub(super) fn fall_asleep(&mut self, shared: &mut Shared, now: Instant) -> bool {
        let Some(bell) = self.bell(shared) else {
            return false;
        };
        self.wanted = false;
        (self.trial, self.check, self.hold, self.lost, self.direct) = (None, None, None, None, None);
        self.nomination.start_over();
        self.punch.rest();
        self.ladder.pause();
        self.release_legs(shared);
        if !self.traffic.is_put_away() {
            self.traffic.rest(now);
        }
        (self.rest.used, self.rest.let_go, self.rest.unmet) = (None, None, None);
        self.endpoint = Some((bell, None));
        shared.events.push_back(Event::SetEndpoint { peer: self.key, endpoint: bell, keepalive: None });
        true
    }

    /// The address that stands for the peer.
    fn bell(&mut self, shared: &mut Shared) -> Option<SocketAddr> {
        let port = shared.on_demand?.port;
        if let Some(bell) = self.rest.bell {
            return Some(carriage::socket(bell, port));
        }
        let bell = shared.carriage.take_bell()?;
        self.rest.bell = Some(bell);
        let endpoint = carriage::socket(bell, port);
        shared.events.push_back(Event::Await { peer: self.key, endpoint });
        Some(endpoint)
    }

    /// Bells are elsewhere from now on, or nowhere. Returns whether the peer had one.
    pub(crate) fn leave_bell(&mut self, port: Option<u16>, shared: &mut Shared, now: Instant) -> bool {
        let bell = self.give_bell_back(port, shared);
        if self.endpoint.take_if(|(remote, _)| Some(*remote) == bell).is_some() {
            shared.events.push_back(Event::ClearEndpoint { peer: self.key });
        }
        self.wake(shared, now);
        bell.is_some()
    }

    /// Nothing stands for the peer any more. Returns what did.
    pub(crate) fn give_bell_back(&mut self, port: Option<u16>, shared: &mut Shared) -> Option<SocketAddr> {
        if self.rest.is_put_away() {
            return None;
        }
        let (bell, port) = self.rest.bell.take().zip(port)?;
        let at = carriage::socket(bell, port);
        let no_more = shared.carriage.give_back(at);
        shared.events.extend(no_more);
        Some(at)
    }

    /// Somebody needs a path: everything starts over.
    pub(super) fn wake(&mut self, shared: &mut Shared, now: Instant) {
        if !self.is_asleep() {
            return;
        }
        self.wanted = true;
        (self.rest.used, self.rest.unmet) = (Some(now), None);
        shared.stats.woken += 1;
        self.start_over(shared, now);
    }

    /// The peer needs a path, so this side keeps it.
    pub(super) fn stir(&mut self, shared: &mut Shared, now: Instant) {
        self.wake(shared, now);
        if self.rest.is_let_go() {
            self.on_use(shared, now);
        }
    }

    /// Packets of this node's users wait at the bell.
    pub(crate) fn on_called(&mut self, shared: &mut Shared, now: Instant) {
        if self.is_asleep() {
            self.wake(shared, now);
            self.relayed.ask_at_once(now);
        } else if shared.on_demand.is_some() && self.wanted {
            self.on_use(shared, now);
        }
    }

    /// A user's packet was seen.
    pub(super) fn on_use(&mut self, shared: &mut Shared, now: Instant) {
        if shared.on_demand.is_none() || !self.wanted {
            return;
        }
        self.rest.used = Some(now);
        if self.rest.let_go.take().is_some() {
            self.refresh_keepalive(shared, now);
        }
    }

    /// The device of this side received something although the peer sleeps: it was led to where the peer is awake.
    pub(super) fn roused(&mut self, counters: &PeerCounters, shared: &mut Shared, now: Instant) {
        let endpoint = counters.endpoint.map(canonical).filter(|endpoint| !self.is_bell(*endpoint, shared));
        match endpoint.zip(counters.last_handshake) {
            Some((endpoint, last_handshake)) => {
                let session = Session { peer: self.key, endpoint, keepalive: None, last_handshake };
                self.wake_with(&session, shared, now);
                self.wake(shared, now);
            }
            None => self.wake(shared, now),
        }
    }

    /// The device has a session with a peer that sleeps. It is put on trial where it is, if that is anywhere.
    pub(super) fn wake_with(&mut self, session: &Session, shared: &mut Shared, now: Instant) {
        let remote = canonical(session.endpoint);
        if session.last_handshake >= SESSION_LIFETIME || shared.filter.check_remote(remote).is_err() {
            return;
        }
        let bell = self.endpoint.take();
        self.wanted = true;
        // The keepalive is set in any case: the device may have been told of the bell a moment ago.
        self.adopt(&Session { keepalive: None, ..*session }, shared, now);
        self.wanted = false;
        if self.endpoint.is_some() {
            self.wake(shared, now);
        } else {
            self.endpoint = bell;
        }
    }

    /// Lets go of what is idle, and wakes whom nobody could call.
    pub(super) fn drive_rest(&mut self, shared: &mut Shared, now: Instant) {
        let Some(on_demand) = shared.on_demand else {
            return self.never_rest(shared, now);
        };
        if self.is_asleep() {
            if self.met.is_empty() {
                let since = *self.rest.unmet.get_or_insert(now);
                if since + UNMET <= now {
                    self.wake(shared, now);
                }
            } else if !self.rest.is_put_away() {
                self.rest.unmet = None;
            }
        } else if self.wanted {
            self.rest.used.get_or_insert(now);
            self.rest_if_idle(on_demand.idle, shared, now);
        }
        if !self.rest.is_put_away() {
            self.rest.due = self.rest_due(on_demand.idle);
        }
    }

    fn rest_if_idle(&mut self, idle: Duration, shared: &mut Shared, now: Instant) {
        if self.rest_due(idle).is_none_or(|due| now < due) {
            return;
        }
        if !self.rest.is_let_go() {
            self.rest.let_go = Some(now);
            self.refresh_keepalive(shared, now);
        } else if !self.fall_asleep(shared, now) {
            // There is no room for its bell. It is asked again when it has been idle for as long once more.
            self.on_use(shared, now);
        }
    }

    fn rest_due(&self, idle: Duration) -> Option<Instant> {
        let Rest { used, let_go, unmet, .. } = *self.rest;
        if self.is_asleep() {
            return unmet.map(|since| since + UNMET);
        }
        if self.met.is_empty() {
            return None;
        }
        match let_go {
            Some(since) => Some(since.max(self.traffic.last_alive().unwrap_or(since)) + SILENT),
            None => used.map(|at| at + idle),
        }
    }

    /// Pairs are to stay.
    fn never_rest(&mut self, shared: &mut Shared, now: Instant) {
        self.wake(shared, now);
        if self.rest.is_put_away() {
            return;
        }
        let was_let_go = self.rest.let_go.take().is_some();
        (self.rest.used, self.rest.unmet, self.rest.due) = (None, None, None);
        if was_let_go {
            self.refresh_keepalive(shared, now);
        }
    }
}
