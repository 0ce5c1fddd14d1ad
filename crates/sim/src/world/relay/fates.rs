//! What becomes of relays: they end, are cut off, and come back.

use std::time::Duration;

use path::{Input, RelayId, RelayNews};
use wire::control::ToNode;

use crate::relay::Plane;
use crate::world::{Action, World};

impl World {
    /// Ends a relay, with all that it knows. Its nodes hear of it at once.
    pub fn stop_relay(&mut self, relay: usize) {
        self.note(&format!("relay {relay} stops"));
        let host = &mut self.relays[relay];
        host.up = false;
        let address = host.plane.address();
        host.plane = Plane::new(address);
        let nodes: Vec<usize> = host.channels.values().map(|channel| channel.node).collect();
        host.channels.clear();
        self.internet.attach_relay(address, None);
        for node in nodes {
            self.lose_channel(relay, node);
        }
    }

    /// Ends a relay without a word: nodes hear of it when their channels have been silent for too long.
    pub fn kill_relay(&mut self, relay: usize) {
        self.cut_relay(relay);
        self.note(&format!("relay {relay} was killed"));
        let host = &mut self.relays[relay];
        host.plane = Plane::new(host.plane.address());
    }

    /// Cuts a relay off without a word, and leaves it what it knows.
    pub fn cut_relay(&mut self, relay: usize) {
        self.note(&format!("relay {relay} is gone"));
        let host = &mut self.relays[relay];
        host.up = false;
        let address = host.plane.address();
        let nodes: Vec<usize> = host.channels.values().map(|channel| channel.node).collect();
        host.channels.clear();
        self.internet.attach_relay(address, None);
        for node in nodes {
            let start = self.nodes[node].starts;
            let idle = self.within(self.channel_idle);
            self.after(idle, Action::Lose { relay, node, start });
        }
    }

    /// Lets nothing pass to a relay or from it, for less time than a channel takes to die: what is said over it arrives afterwards.
    pub fn darken_relay(&mut self, relay: usize) {
        self.note(&format!("relay {relay} is dark"));
        let host = &mut self.relays[relay];
        host.held = Some(Vec::new());
        let address = host.plane.address();
        self.internet.attach_relay(address, None);
    }

    /// Lets a relay be reached again, as it was.
    pub fn heal_relay(&mut self, relay: usize) {
        self.note(&format!("relay {relay} is there"));
        let host = &mut self.relays[relay];
        host.up = true;
        let address = host.plane.address();
        self.internet.attach_relay(address, Some(relay));
        for said in self.relays[relay].held.take().unwrap_or_default() {
            self.after(Duration::ZERO, said);
        }
    }

    /// A channel turned out to be dead.
    pub(in crate::world) fn lose(&mut self, relay: usize, node: usize, start: u32) {
        let is_new = self.relays[relay].channels_of(node).next().is_some();
        if self.nodes[node].starts == start && !is_new {
            self.lose_channel(relay, node);
        }
    }

    /// Starts a relay that was ended: it is another process.
    pub fn start_relay(&mut self, relay: usize) {
        self.note(&format!("relay {relay} starts"));
        self.relays[relay].boot += 1;
        self.heal_relay(relay);
    }

    /// Starts a relay that was ended with another key, at the same address. Its nodes hear of that from the directory, each in its time.
    pub fn replace_relay(&mut self, relay: usize) {
        let RelayId(mut key) = self.relays[relay].id;
        // Sorts before or after the one that it had.
        key[0] ^= if self.random.percent(50) { 0x80 } else { 0 };
        key[1] = key[1].wrapping_add(1);
        self.note(&format!("relay {relay} has another key"));
        self.start_relay(relay);
        let before = std::mem::replace(&mut self.relays[relay].id, RelayId(key));
        self.relays[relay].channels.clear();
        for node in 0..self.nodes.len() {
            let lag = self.within(self.directory_delay);
            self.after(lag, Action::Replaced { relay, node, before });
        }
    }

    /// A node hears from the directory that a relay has another key than before.
    pub(in crate::world) fn replaced(&mut self, relay: usize, node: usize, before: RelayId) {
        if self.nodes[node].engine.is_none() {
            return;
        }
        self.input(node, Input::Relay { relay: before, news: RelayNews::Removed });
        self.nodes[node].relays.insert(relay, self.relays[relay].id);
        let addresses = vec![self.relays[relay].plane.address()];
        self.relay_news(relay, node, RelayNews::Connecting { addresses });
        let start = self.nodes[node].starts;
        self.connect_again(relay, node, start);
    }

    /// Lets a relay say that it is about to end.
    pub fn drain_relay(&mut self, relay: usize) {
        let channels: Vec<u64> = self.relays[relay].channels.keys().copied().collect();
        for channel in channels {
            self.tell(relay, Some(channel), ToNode::Drain { seconds: 30 });
        }
    }
}
