//! A handshake that begins with the ANSWER that binds this side's leg.
//!
//! To wait until both legs are known to be bound would be half a round trip of the pair's. The relay keeps the initiation for a partner that
//! is about to bind its own. It departs a little behind the ANSWER, because before that the relay takes nothing from this side. If either is
//! lost there is another handshake, so only a device begins early that starts one whenever it is told to.

use std::time::{Duration, Instant};

use super::RelayPath;
use super::doubt::{Echoes, SECOND_HANDSHAKE};
use crate::peer::Peer;
use crate::peer::leg::Leg;
use crate::relay::RelayId;
use crate::shared::Shared;

/// When the answer to a handshake that the relay has passed on is overdue, at the soonest.
const OVERDUE: Duration = Duration::from_millis(200);

/// What is known when the ANSWER is about to be sent.
#[derive(Debug, Clone, Copy)]
pub(super) struct Early {
    /// How many datagrams have departed when it has.
    departed: u64,
    /// Of the relay.
    rtt: Duration,
}

impl Early {
    /// Between the ANSWER and the initiation: packets that leave together may overtake each other.
    pub(super) fn gap(&self) -> Duration {
        self.rtt / 8
    }

    /// Whether the ANSWER has not left yet.
    pub(super) fn waits(&self, shared: &Shared) -> bool {
        shared.departed < self.departed
    }

    /// When there is another handshake, once the pair is ready. If the peer is further from the relay than this node by more than that the
    /// first one is wasted.
    fn overdue(&self) -> Duration {
        (self.rtt * 4).max(OVERDUE).min(SECOND_HANDSHAKE)
    }
}

impl Peer {
    /// The ANSWER for a leg is about to be sent, perhaps once more.
    pub(in crate::peer) fn begin_early(&mut self, relay: RelayId, rtt: Duration, shared: &Shared, now: Instant) {
        let begins = self.nominates && shared.repeats_handshakes;
        if !begins || !self.may_enter_relay() || self.is_session_open(now) {
            return;
        }
        let is_other = |path: RelayPath| path.early.is_none() || path.relay != relay;
        let leg = self.relayed.legs.iter().find(|leg| leg.relay == relay && !leg.is_ready() && !leg.is_attached());
        let Some(endpoint) = leg.and_then(Leg::socket).filter(|_| !self.relayed.path.is_some_and(is_other)) else {
            return;
        };
        let departed = shared.departed + shared.transmits.len() as u64;
        self.relayed.echoes = None;
        let early = Some(Early { departed, rtt });
        self.relayed.path = Some(RelayPath { early, ..RelayPath::new(relay, endpoint, now) });
    }

    /// Both legs are bound, and what was begun has passed or is about to.
    pub(super) fn met_early(&mut self, shared: &mut Shared, now: Instant) {
        let Some(path) = &mut self.relayed.path else { return };
        let Some(early) = path.early.take() else { return };
        path.entered = now;
        if path.moved {
            self.relayed.echoes = Some(Echoes::new(Some(now + early.overdue()), now));
            self.drive_relay(shared, now);
        } else {
            self.move_to_relay(true, shared, now);
        }
    }
}
