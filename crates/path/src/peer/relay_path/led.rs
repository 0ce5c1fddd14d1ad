//! A device that is at a relay without having been told: found there at the start, or led there by the peer's packets.

use std::net::SocketAddr;
use std::time::Instant;

use super::{Echoes, RelayPath};
use crate::peer::Peer;
use crate::peer::leg::{Heard, Leg};
use crate::relay::RelayId;
use crate::shared::Shared;

/// How often the device is pointed back to a direct path that answers, before this side goes along with the peer.
const MAX_LED: u8 = 3;

impl Peer {
    /// The relay that an address belongs to, unless it is the peer's own: a node may be on the host of a relay.
    pub(in crate::peer) fn unclaimed_relay(&self, remote: SocketAddr, shared: &Shared) -> Option<RelayId> {
        let relay = shared.relays.at(remote.ip())?;
        let is_peers = self.claimed().any(|known| known.addr == remote)
            || self.pairs.get(&remote).is_some_and(|pair| pair.pongs > 0 || pair.heard > 0);
        (!is_peers).then_some(relay)
    }

    /// A relay's addresses are known now. A session from before this engine may turn out to go by it.
    pub(crate) fn recognise_relay(&mut self, shared: &mut Shared, now: Instant) -> bool {
        let adopting = self.trial.as_ref().filter(|trial| trial.is_adopting()).map(|trial| trial.remote);
        let Some(remote) = self.direct.map(|direct| direct.remote).or(adopting) else {
            return false;
        };
        let Some(relay) = self.unclaimed_relay(remote, shared) else {
            return false;
        };
        let confirmed = self.direct.take().is_some();
        self.trial = None;
        self.check = None;
        self.pairs.remove(&remote);
        self.adopt_relayed(relay, remote, confirmed, shared, now);
        self.begin(shared, now);
        true
    }

    /// WireGuard is at a relay already, with a session. The relay has the legs still, or will be asked for them.
    pub(in crate::peer) fn adopt_relayed(
        &mut self,
        relay: RelayId,
        endpoint: SocketAddr,
        confirmed: bool,
        shared: &mut Shared,
        now: Instant,
    ) {
        self.expect_leg(relay, endpoint.port());
        let path = RelayPath { moved: true, confirmed, ..RelayPath::new(relay, endpoint, now) };
        self.relayed.path = Some(path);
        self.relayed.echoes = Some(Echoes::new(None, now));
        self.refresh_keepalive(shared, now);
        self.drive_relay(shared, now);
    }

    /// The device of this side was led to a relay by the peer's packets.
    pub(in crate::peer) fn led_to_relay(&mut self, endpoint: SocketAddr, shared: &mut Shared, now: Instant) {
        if let Some(direct) = self.direct {
            return self.led_from(direct.remote, endpoint, shared, now);
        }
        let leg = self.relayed.legs.iter().find(|leg| leg.is_at(endpoint) && leg.is_bound());
        let Some((relay, at)) = leg.map(|leg| (leg.relay, leg.remote())).filter(|_| self.wanted) else {
            return;
        };
        let (device, endpoint) = (endpoint, at.unwrap_or(endpoint));
        match &mut self.relayed.path {
            Some(path) if path.endpoint == endpoint && path.moved => {
                if device != endpoint {
                    // What was left of the leg by the channel leads away from UDP, or the other way round.
                    self.endpoint = None;
                    self.set_endpoint(endpoint, shared, now);
                }
            }
            _ => self.go_along(relay, endpoint, shared, now),
        }
    }

    fn go_along(&mut self, relay: RelayId, endpoint: SocketAddr, shared: &mut Shared, now: Instant) {
        self.enter_relay(relay, endpoint, shared, now);
        if self.relayed.path.is_some_and(|path| !path.moved) {
            self.move_to_relay(false, shared, now);
        }
    }

    /// The device was led from the relay in use to another one. Either that is what was on its way when this side left it, or the peer has
    /// left the one in use because that has died: then to point the device back there loses packets until the peer's next one. The relay
    /// itself is asked which. Returns whether the device is left where it is, for now or for good.
    pub(in crate::peer) fn follow_from_silent_relay(
        &mut self,
        endpoint: SocketAddr,
        shared: &mut Shared,
        now: Instant,
    ) -> bool {
        let Some((path, (relay, at))) = self.relayed.path.zip(self.led_to(endpoint)) else {
            return false;
        };
        let rtt = self.relayed.rtt.unwrap_or_default();
        match self.relayed.leg(&path.relay).map_or(Heard::Nothing, |leg| leg.hear(rtt, now)) {
            Heard::Answers => return false,
            Heard::Asked => {}
            Heard::Nothing => {
                self.hold = None;
                self.go_along(relay, at, shared, now);
            }
        }
        true
    }

    /// The relay in use has forgotten everything. If the device was led to another one meanwhile it stays there.
    pub(in crate::peer) fn follow_from_new_relay(&mut self, relay: RelayId, shared: &mut Shared, now: Instant) {
        let led = self.traffic.device.and_then(|device| self.led_to(device));
        if let Some((other, at)) = led.filter(|_| self.relayed.path.is_some_and(|path| path.relay == relay)) {
            self.hold = None;
            self.go_along(other, at, shared, now);
        }
    }

    /// The relay, other than the one in use, that a device was led to which is relayed, and where its leg is pointed at.
    fn led_to(&self, device: SocketAddr) -> Option<(RelayId, SocketAddr)> {
        let path = self.relayed.path.filter(|path| path.confirmed && path.moved && self.direct.is_none())?;
        let is_it = |leg: &&Leg| leg.relay != path.relay && leg.is_at(device) && leg.is_bound();
        let leg = self.relayed.legs.iter().find(is_it).filter(|_| self.wanted)?;
        Some((leg.relay, leg.remote()?))
    }

    /// The same from a direct path. Either the peer has left it, because it has died, or both devices follow what circulates by the
    /// relay. That tells nothing of the path, so it is asked, and to go back before it has answered would lose packets.
    fn led_from(&mut self, direct: SocketAddr, endpoint: SocketAddr, shared: &mut Shared, now: Instant) {
        self.start_check(shared, now);
        match &mut self.check {
            Some(check) if !check.ponged => check.led = Some(endpoint),
            Some(_) => self.bring_back(direct, endpoint, shared, now),
            // It has just been checked.
            None => {
                let pong = self.pairs.get(&direct).and_then(|pair| pair.last_pong);
                if self.traffic.checked.zip(pong).is_some_and(|(checked, pong)| checked <= pong) {
                    self.bring_back(direct, endpoint, shared, now);
                }
            }
        }
    }

    /// The direct path answers. The device goes back there, and so does the peer's: the side that nominates says so again, the other one
    /// asks for it. In the end this side goes along, for a while.
    pub(in crate::peer) fn bring_back(
        &mut self,
        direct: SocketAddr,
        endpoint: SocketAddr,
        shared: &mut Shared,
        now: Instant,
    ) {
        if !self.put_back(shared, now) {
            return;
        }
        self.relayed.led += 1;
        if self.relayed.led > MAX_LED {
            self.relayed.led = 0;
            if let Some(pair) = self.pairs.get_mut(&direct).filter(|_| self.nominates) {
                pair.penalise(false, now);
            }
            return self.path_died(shared, now);
        }
        if self.nominates {
            self.check = None;
            self.nominate(direct, false, shared, now);
        } else {
            self.ask(direct, shared, now);
        }
        self.hold(endpoint, now);
    }
}
