//! What relays say, and to which peer it matters.

use std::net::SocketAddr;

use wire::PublicKey;
use wire::control::{ToNode, ToRelay, VERSION};
use wire::probe::signal;
use wire::relay::Frame;

use super::Engine;
use crate::relay::{ControlChannel, MAX_DOMAIN, RelayId, RelayNews};

impl Engine {
    pub(super) fn handle_relay(&mut self, id: RelayId, news: RelayNews) {
        match news {
            RelayNews::Connecting { addresses } => {
                self.channel_lost(id, ControlChannel::Connecting);
                if let Some(relay) = self.shared.relays.entry(id) {
                    relay.stands_at(addresses);
                    self.recognise_relays();
                }
            }
            RelayNews::Closed => self.channel_closed(id),
            RelayNews::Removed => self.removed(id),
            RelayNews::Open { addresses } => {
                // What was told over a channel before this one is void.
                self.forget_channel(id, ControlChannel::Connecting);
                let Some(relay) = self.shared.relays.entry(id) else {
                    self.shared.stats.refused_relays += 1;
                    return;
                };
                relay.opened(addresses, self.peers.keys());
                self.recognise_relays();
                self.shared.send_control(id, ToRelay::Hello { version: VERSION, node: self.public_key() });
                self.channel_changed();
            }
            RelayNews::Within { domain } => {
                if let Some(relay) = self.shared.relays.entry(id) {
                    relay.domain = domain.filter(|domain| domain.len() <= MAX_DOMAIN);
                }
            }
            RelayNews::OverTcp { again } => {
                if let Some(relay) = self.shared.relays.entry(id) {
                    relay.over_tcp = true;
                    relay.over_tcp_again = again;
                }
            }
            // What a relay without a channel said was said over one that is no more.
            RelayNews::Said(message) if self.shared.relays.is_open(&id) => self.handle_said(id, message),
            RelayNews::Said(_) => {}
        }
    }

    pub(super) fn set_relays_unknown(&mut self, unknown: bool) {
        self.shared.relays.unknown = unknown;
        self.channel_changed();
    }

    fn handle_said(&mut self, id: RelayId, message: ToNode) {
        let now = self.now;
        match message {
            ToNode::Welcome { boot, .. } => {
                let before = self.shared.relays.entry(id).and_then(|relay| relay.welcomed(boot));
                if before.is_some_and(|before| before != boot) {
                    let shared = &mut self.shared;
                    self.peers.for_each(|peer| peer.on_relay_boot(id, shared, now));
                }
            }
            ToNode::Denied(reason) => {
                if let Some(relay) = self.shared.relays.entry(id) {
                    relay.denied(reason);
                }
                self.channel_closed(id);
            }
            ToNode::Present { node, met } => {
                if let Some(peer) = self.peers.get_mut(&node) {
                    peer.on_present(id, met, &mut self.shared, now);
                }
            }
            ToNode::Signal { from, bytes } => self.handle_signal(&from, &bytes),
            ToNode::StraySent { tx, from } => self.stray_test.on_sent(tx, from, &mut self.shared, now),
            ToNode::Drain { .. } => {
                if let Some(relay) = self.shared.relays.entry(id) {
                    relay.drains = true;
                }
                self.peers.for_each(|peer| peer.has_leg(id));
            }
            ToNode::Allocated { partner, leg } => {
                if let Some(peer) = self.peers.get_mut(&partner) {
                    peer.on_allocated(id, leg, &mut self.shared, now);
                }
            }
            ToNode::Refused { partner, reason } => {
                if let Some(peer) = self.peers.get_mut(&partner) {
                    peer.on_refused(id, reason, &mut self.shared, now);
                }
            }
            ToNode::Ready(partner) => {
                if let Some(peer) = self.peers.get_mut(&partner) {
                    peer.on_ready_leg(id, &mut self.shared, now);
                }
            }
            ToNode::Unbound(partner) => {
                if let Some(peer) = self.peers.get_mut(&partner) {
                    peer.on_unbound(id, now);
                }
            }
            ToNode::Released { partner, reason } => {
                if let Some(peer) = self.peers.get_mut(&partner) {
                    peer.on_released(id, reason, &mut self.shared, now);
                }
            }
            ToNode::Pong => {
                if let Some(relay) = self.shared.relays.entry(id) {
                    relay.asked = None;
                }
            }
            ToNode::Data { .. } => {}
        }
    }

    fn recognise_relays(&mut self) {
        let (shared, now) = (&mut self.shared, self.now);
        self.peers.for_each(|peer| peer.recognise_relay(shared, now));
    }

    /// A channel that is gone is missed, but for that of a relay that has only not heard of this node yet.
    fn channel_closed(&mut self, id: RelayId) {
        let is_early = self.shared.relays.get(&id).is_some_and(|relay| relay.is_early);
        self.channel_lost(id, if is_early { ControlChannel::Connecting } else { ControlChannel::Absent });
    }

    fn channel_lost(&mut self, id: RelayId, channel: ControlChannel) {
        self.forget_channel(id, channel);
        self.channel_changed();
    }

    /// A relay that is none any more is neither asked nor waited for, and found at no address.
    fn removed(&mut self, id: RelayId) {
        if self.shared.relays.get(&id).is_none() {
            return;
        }
        self.forget_channel(id, ControlChannel::Absent);
        self.shared.relays.remove(&id);
        let shared = &mut self.shared;
        self.peers.for_each(|peer| peer.relay_removed(id, shared));
        self.channel_changed();
    }

    /// The channel is gone, and with it whatever was to be said over it and whoever was met there.
    fn forget_channel(&mut self, id: RelayId, channel: ControlChannel) {
        let Some(relay) = self.shared.relays.entry(id) else {
            return;
        };
        relay.lost(channel);
        self.shared.controls.retain(|control| control.relay != id);
        let (shared, now) = (&mut self.shared, self.now);
        self.peers.for_each(|peer| {
            let left = peer.set_met(id, false, shared, now);
            peer.relay_lost(id, shared, now) || left
        });
    }

    fn channel_changed(&mut self) {
        let channel = self.shared.relays.channel();
        if std::mem::replace(&mut self.shared.channel, channel) == channel {
            return;
        }
        let (shared, now) = (&mut self.shared, self.now);
        self.peers.for_each(|peer| {
            peer.channel_change(shared, now);
            true
        });
    }

    /// Finds the leg of a relay message by where it came from and what it claims, before any cryptography.
    pub(super) fn handle_relay_message(&mut self, from: SocketAddr, payload: &[u8]) {
        let taken = Frame::parse(payload).is_some_and(|frame| {
            let owner = self.shared.legs.get(&(from, frame.header().allocation)).copied();
            let peer = owner.and_then(|key| self.peers.get_mut(&key));
            peer.is_some_and(|peer| peer.on_relay_message(from, &frame, &mut self.shared, self.now))
        });
        if taken {
            self.turn();
        } else {
            self.shared.stats.dropped_relay += 1;
        }
    }

    /// The relay's word about who sent a signal is proven by opening it.
    fn handle_signal(&mut self, from: &PublicKey, bytes: &[u8]) {
        let named = signal::key_id(bytes).and_then(|id| self.by_key_id.get(&id)).filter(|key| *key == from);
        match named.and_then(|key| self.peers.get_mut(key)) {
            Some(peer) => {
                peer.handle_signal(bytes, &mut self.shared, self.now);
            }
            None => self.shared.stats.dropped_signals += 1,
        }
    }
}
