//! What nodes and relays say to each other, and what a relay makes of it.

use std::net::SocketAddr;
use std::time::Duration;

use path::{Control, RelayNews};
use wire::control::{RefusedReason, ToNode, ToRelay};
use wire::stun;

use super::STRAYS;
use crate::packet::{Packet, Payload};
use crate::relay::News;
use crate::world::{Action, Signalling, World};

/// The first of its ports; each stray has its own.
const FIRST_PORT: u16 = 20_000;
/// How often allocations are looked at.
const EXPIRY: Duration = Duration::from_secs(10);

impl World {
    /// A node's agent says something to a relay.
    pub(in crate::world) fn control(&mut self, node: usize, control: Control) {
        let Control { relay, message } = control;
        let Some(relay) = self.relays.iter().position(|known| known.id == relay) else {
            return;
        };
        let Some(channel) = self.relays[relay].channels_of(node).next() else {
            if self.relays[relay].up {
                // Another process resets what it knows nothing of.
                let start = self.nodes[node].starts;
                let delay = self.signal_delay();
                self.after(delay, Action::Lose { relay, node, start });
            }
            return;
        };
        let Some(Signalling { loss, ordered, .. }) = self.signalling else {
            return;
        };
        let mut delay = self.signal_delay() / 2;
        if let ToRelay::Signal { to, bytes } = &message {
            let text = self.describe_signal(bytes);
            self.note(&format!("n{node} signals {} {text}", self.name(to)));
            if loss > 0 && self.random.percent(loss) {
                return;
            }
            if !ordered {
                // The whole way at once, past everything else.
                delay = self.signal_delay();
                return self.after(delay, Action::ToRelay { relay, channel, message });
            }
        }
        let at = self.arrives(relay, channel, 0, delay);
        self.say(relay, at, Action::ToRelay { relay, channel, message });
    }

    pub(super) fn say(&mut self, relay: usize, delay: Duration, said: Action) {
        match &mut self.relays[relay].held {
            Some(held) => held.push(said),
            None => self.after(delay, said),
        }
    }

    /// How long a message of a channel takes that would take `delay` by itself.
    fn arrives(&mut self, relay: usize, channel: u64, direction: usize, delay: Duration) -> Duration {
        let Some(channel) = self.relays[relay].channels.get_mut(&channel) else {
            return delay;
        };
        let at = &mut channel.arrivals[direction];
        *at = (self.now + delay).max(*at);
        *at - self.now
    }

    /// A relay takes a message.
    pub(in crate::world) fn relay_hears(&mut self, relay: usize, channel: u64, message: ToRelay) {
        let host = &mut self.relays[relay];
        let Some(from) = host.channels.get_mut(&channel) else {
            return;
        };
        let (node, key) = (from.node, from.key);
        match message {
            ToRelay::Hello { node, .. } => {
                from.greeted = node == key;
                let observed = SocketAddr::new(self.nodes[from.node].outside, 1);
                let boot = host.boot;
                self.tell(relay, Some(channel), ToNode::Welcome { boot, observed });
            }
            _ if !from.greeted => self.violations.push(format!("n{node} spoke before it said who it is")),
            ToRelay::Meet(peer) => {
                let news = from.meets.insert(peer);
                if let (true, Some(partner)) = (host.wants(&peer, &key), host.channel_of(&peer)) {
                    self.tell(relay, Some(channel), ToNode::Present { node: peer, met: true });
                    if news {
                        self.tell(relay, Some(partner), ToNode::Present { node: key, met: true });
                    }
                }
            }
            ToRelay::Part(peer) => {
                from.meets.remove(&peer);
                if host.wants(&peer, &key) {
                    let partner = host.channel_of(&peer);
                    self.tell(relay, partner, ToNode::Present { node: key, met: false });
                }
            }
            ToRelay::Allocate { partner, .. } if !self.forwarding => {
                let reason = RefusedReason::Full;
                self.tell(relay, Some(channel), ToNode::Refused { partner, reason });
            }
            ToRelay::Allocate { partner, hint } => {
                let news = host.plane.allocate(key, partner, hint, &mut self.random, self.now);
                self.tell_all(relay, news);
                self.expire_soon(relay);
            }
            ToRelay::Signal { to, bytes } => {
                let met = from.meets.contains(&to) && host.wants(&to, &key);
                let partner = host.channel_of(&to).filter(|_| met);
                let message = ToNode::Signal { from: key, bytes };
                let in_order = self.signalling.is_some_and(|signalling| signalling.ordered);
                match partner {
                    Some(partner) if !in_order => {
                        self.after(Duration::ZERO, Action::ToNode { relay, channel: partner, message });
                    }
                    partner => self.tell(relay, partner, message),
                }
            }
            ToRelay::Stray { to, tx } => {
                self.strays += 1;
                let from = SocketAddr::new(STRAYS, FIRST_PORT + self.strays);
                self.inject(Packet::new(from, to, Payload::Plain(stun::encode_success(tx, to))));
                self.tell(relay, Some(channel), ToNode::StraySent { tx, from });
            }
            ToRelay::Release(partner) => {
                let news = host.plane.release(key, partner);
                self.tell_all(relay, news);
            }
            // Every node of this world sends UDP.
            ToRelay::Ping | ToRelay::Data { .. } | ToRelay::Attach { .. } => {}
        }
    }

    /// A packet reached a relay.
    pub(in crate::world) fn relay_arrival(&mut self, relay: usize, packet: &Packet) {
        let host = &mut self.relays[relay];
        let mut out = Vec::new();
        let news = host.plane.arrive(packet, host.boot, self.now, &mut out);
        for packet in out {
            self.inject(packet);
        }
        self.tell_all(relay, news);
    }

    pub(in crate::world) fn expire_allocations(&mut self, relay: usize) {
        let host = &mut self.relays[relay];
        host.expires = false;
        let news = host.plane.expire(self.now);
        self.tell_all(relay, news);
        self.expire_soon(relay);
    }

    fn expire_soon(&mut self, relay: usize) {
        let host = &mut self.relays[relay];
        if host.plane.allocations() > 0 && !std::mem::replace(&mut host.expires, true) {
            self.after(EXPIRY, Action::Expire { relay });
        }
    }

    pub(super) fn tell_all(&mut self, relay: usize, news: Vec<News>) {
        for (to, message) in news {
            if self.forgetful > 0 && self.random.percent(self.forgetful) {
                continue;
            }
            let channel = self.relays[relay].channel_of(&to);
            self.tell(relay, channel, message);
        }
    }

    /// A relay says something to a node that has a channel.
    pub(super) fn tell(&mut self, relay: usize, channel: Option<u64>, message: ToNode) {
        if let Some(channel) = channel {
            let delay = self.signal_delay() / 2;
            let at = self.arrives(relay, channel, 1, delay);
            self.say(relay, at, Action::ToNode { relay, channel, message });
        }
    }

    /// A node takes a relay's message, if its channel is still the one that it was sent over.
    pub(in crate::world) fn node_hears(&mut self, relay: usize, channel: u64, message: ToNode) {
        if let Some(channel) = self.relays[relay].channels.get(&channel) {
            let node = channel.node;
            self.relay_news(relay, node, RelayNews::Said(message));
        }
    }
}
