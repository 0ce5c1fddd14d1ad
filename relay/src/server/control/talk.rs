//! What a member may say.

use std::net::SocketAddr;
use std::time::Instant;

use wire::PublicKey;
use wire::control::{DeniedReason, MAX_SIGNAL_LEN, ToNode, ToRelay};
use wire::stun::TransactionId;

use super::limits::{MAX_STRAYS, STRAY_PERIOD};
use super::members::node_id;
use super::{MAX_MEETS, Output, Refusal, SessionId, Sessions};
use crate::server::plane::{self, is_admissible};

impl Sessions {
    pub(super) fn talk(&mut self, session: SessionId, message: ToRelay, remote: SocketAddr, now: Instant) {
        let Some(node) = self.sessions.get(&session).map(|session| session.node) else { return };
        match message {
            ToRelay::Hello { .. } => self.deny(session, DeniedReason::Protocol),
            ToRelay::Meet(partner) => self.meet(session, node, partner),
            ToRelay::Part(partner) => self.part(session, node, partner),
            ToRelay::Allocate { partner, hint } => self.allocate(session, node, partner, hint),
            ToRelay::Release(partner) => self.release(session, node, partner),
            ToRelay::Signal { to, bytes } => self.signal(session, node, to, bytes, now),
            ToRelay::Stray { to, tx } => self.stray(session, to, tx, remote, now),
            ToRelay::Ping => self.say(session, ToNode::Pong),
            ToRelay::Attach { partner } => self.attach(session, node, partner),
            // The shell hands what members send to the data plane itself, which knows whose leg is which channel.
            ToRelay::Data { .. } => self.stats.refused(Refusal::Data),
        }
    }

    fn meet(&mut self, id: SessionId, node: PublicKey, partner: PublicKey) {
        let Some(session) = self.sessions.get_mut(&id) else { return };
        if partner == node || (session.meets.len() >= MAX_MEETS && !session.meets.contains(&partner)) {
            return self.stats.refused(Refusal::Meet);
        }
        let is_new = session.meets.insert(partner);
        let other = self.met(node, partner);
        self.say(id, ToNode::Present { node: partner, met: other.is_some() });
        if let Some(other) = other
            && is_new
        {
            self.say(other, ToNode::Present { node, met: true });
        }
    }

    fn part(&mut self, id: SessionId, node: PublicKey, partner: PublicKey) {
        if self.sessions.get_mut(&id).is_some_and(|session| session.meets.remove(&partner)) {
            self.tell_parted(partner, node);
        }
    }

    /// Tells a node that it has no longer met another, if it had.
    pub(super) fn tell_parted(&mut self, to: PublicKey, gone: PublicKey) {
        if let Some(&id) = self.by_node.get(&to)
            && self.sessions.get(&id).is_some_and(|session| session.meets.contains(&gone))
        {
            self.say(id, ToNode::Present { node: gone, met: false });
        }
    }

    /// The partner's session, if the two have met.
    fn met(&self, node: PublicKey, partner: PublicKey) -> Option<SessionId> {
        let meets = |of: PublicKey, whom: PublicKey| {
            let id = *self.by_node.get(&of)?;
            self.sessions.get(&id)?.meets.contains(&whom).then_some(id)
        };
        meets(node, partner).and(meets(partner, node))
    }

    fn allocate(&mut self, id: SessionId, node: PublicKey, partner: PublicKey, hint: Option<u16>) {
        if let Some(session) = self.sessions.get_mut(&id) {
            session.wants.insert(partner);
        }
        let (by, partner) = (node_id(&node), node_id(&partner));
        self.outputs.push_back(Output::Plane(plane::Input::Allocate { by, partner, hint }));
    }

    fn release(&mut self, id: SessionId, node: PublicKey, partner: PublicKey) {
        if let Some(session) = self.sessions.get_mut(&id) {
            session.wants.remove(&partner);
        }
        let (by, partner) = (node_id(&node), node_id(&partner));
        self.outputs.push_back(Output::Plane(plane::Input::Release { by, partner }));
    }

    fn attach(&mut self, id: SessionId, node: PublicKey, partner: PublicKey) {
        if let Some(session) = self.sessions.get_mut(&id) {
            session.has_attached = true;
        }
        let (by, partner) = (node_id(&node), node_id(&partner));
        self.outputs.push_back(Output::Plane(plane::Input::Attach { by, partner, channel: id.into() }));
    }

    fn signal(&mut self, id: SessionId, from: PublicKey, to: PublicKey, bytes: Vec<u8>, now: Instant) {
        let Some(other) = self.met(from, to) else { return self.stats.refused(Refusal::NotMet) };
        if bytes.len() > MAX_SIGNAL_LEN || !self.sessions.get_mut(&id).is_some_and(|session| session.signals.take(now))
        {
            return self.stats.refused(Refusal::SignalRate);
        }
        self.stats.signals += 1;
        self.say(other, ToNode::Signal { from, bytes });
    }

    /// Only to whom it comes from: anywhere else it would be a reflector with a member's key.
    fn stray(&mut self, id: SessionId, to: SocketAddr, tx: TransactionId, remote: SocketAddr, now: Instant) {
        let to = SocketAddr::new(to.ip().to_canonical(), to.port());
        if to.ip() != remote.ip().to_canonical() || !is_admissible(to, &self.config.own, &self.config.denied) {
            return self.stats.refused(Refusal::StrayAddress);
        }
        let Some(session) = self.sessions.get_mut(&id) else { return };
        if session.strays.len() >= MAX_STRAYS {
            return self.stats.refused(Refusal::StrayRate);
        }
        session.strays.push_back((to, tx));
        self.send_stray(id, now);
    }

    /// Sends the session's next stray packet if it is time to, and comes back when the one after it may leave.
    pub(super) fn send_stray(&mut self, id: SessionId, now: Instant) {
        let Some(session) = self.sessions.get_mut(&id) else { return };
        self.strays_due.remove(&(session.next_stray_at, id));
        if session.next_stray_at <= now
            && let Some((to, tx)) = session.strays.pop_front()
        {
            session.next_stray_at = now + STRAY_PERIOD;
            self.stats.strays += 1;
            self.outputs.push_back(Output::Stray { session: id, to, tx });
        }
        if !session.strays.is_empty() {
            self.strays_due.insert((session.next_stray_at, id));
        }
    }
}
