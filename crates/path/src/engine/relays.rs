//! What relays say, and to which peer it matters.

use wire::PublicKey;
use wire::control::{ToNode, ToRelay, VERSION};
use wire::probe::signal;

use super::Engine;
use crate::relay::{ControlChannel, RelayId, RelayNews};

impl Engine {
    pub(super) fn handle_relay(&mut self, id: RelayId, news: RelayNews) {
        match news {
            RelayNews::Connecting => self.channel_lost(id, ControlChannel::Connecting),
            RelayNews::Closed => self.channel_lost(id, ControlChannel::Absent),
            RelayNews::Open { addresses } => {
                // What was told over a channel before this one is void.
                self.forget_channel(id, ControlChannel::Connecting);
                let Some(relay) = self.shared.relays.entry(id) else {
                    self.shared.stats.refused_relays += 1;
                    return;
                };
                relay.opened(addresses, self.peers.keys());
                self.shared.send_control(id, ToRelay::Hello { version: VERSION, node: self.public_key });
                self.channel_changed();
            }
            // What a relay without a channel said was said over one that is no more.
            RelayNews::Said(message) if self.shared.relays.is_open(&id) => self.handle_said(id, message),
            RelayNews::Said(_) => {}
        }
    }

    fn handle_said(&mut self, id: RelayId, message: ToNode) {
        let now = self.now;
        match message {
            ToNode::Welcome { boot, .. } => {
                if let Some(relay) = self.shared.relays.entry(id) {
                    relay.boot = Some(boot);
                }
            }
            ToNode::Denied(_) => self.channel_lost(id, ControlChannel::Absent),
            ToNode::Present { node, met } => {
                if let Some(peer) = self.peers.get_mut(&node) {
                    peer.set_met(id, met, &mut self.shared, now);
                }
            }
            ToNode::Signal { from, bytes } => self.handle_signal(&from, &bytes),
            ToNode::StraySent { tx, from } => self.stray_test.on_sent(tx, from, &mut self.shared, now),
            ToNode::Drain { .. } => {
                if let Some(relay) = self.shared.relays.entry(id) {
                    relay.drains = true;
                }
            }
            ToNode::Allocated { .. }
            | ToNode::Refused { .. }
            | ToNode::Ready(_)
            | ToNode::Unbound(_)
            | ToNode::Released { .. }
            | ToNode::Pong
            | ToNode::Data { .. } => {}
        }
    }

    fn channel_lost(&mut self, id: RelayId, channel: ControlChannel) {
        self.forget_channel(id, channel);
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
        self.peers.for_each(|peer| peer.set_met(id, false, shared, now));
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
