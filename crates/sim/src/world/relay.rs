//! The relays, as far as engines need them: each hands signals on, and sends the strays of the filtering test.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::time::Duration;

use path::{Input, RelayId, RelayNews};
use wire::PublicKey;
use wire::control::ToNode;

use super::{Action, World};
use crate::relay::Plane;

mod fates;
mod messages;

/// Where strays come from. Nobody ever sends there first.
pub(super) const STRAYS: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(192, 0, 2, 3));
/// How long a channel is silent before a node gives it up.
pub(super) const CHANNEL_IDLE: (Duration, Duration) = (Duration::from_secs(3), Duration::from_secs(3));
/// How long a node waits before it makes a lost channel again.
pub(super) const RECONNECT: (Duration, Duration) = (Duration::from_millis(500), Duration::from_millis(500));

/// How the relays' control channels treat messages.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Signalling {
    /// One way from node to node: at least, and at most.
    pub delay: (Duration, Duration),
    /// Signals that are lost, of 100.
    pub loss: u8,
    /// Whether signals from one node to another arrive in the order in which they were sent.
    pub ordered: bool,
}

/// One relay.
#[derive(Debug)]
pub(super) struct Relay {
    id: RelayId,
    plane: Plane,
    boot: u64,
    up: bool,
    /// Whether its allocations will be looked at.
    expires: bool,
    channels: BTreeMap<u64, Channel>,
    /// What waits on both sides of it while nothing passes.
    held: Option<Vec<Action>>,
}

/// An open control channel.
#[derive(Debug)]
struct Channel {
    node: usize,
    key: PublicKey,
    /// Whether it has said who it is.
    greeted: bool,
    /// Whom it wants to meet.
    meets: BTreeSet<PublicKey>,
    /// When the last message to the relay, and to the node, arrives: what is said later arrives later.
    arrivals: [Duration; 2],
}

impl World {
    pub(super) fn add_relays(&mut self) {
        self.internet.attach_stun(STRAYS);
        self.add_relay();
    }

    /// Adds a relay. Nodes that start afterwards know it.
    pub fn add_relay(&mut self) -> usize {
        let index = self.relays.len();
        let number = u8::try_from(index + 1).unwrap_or(u8::MAX);
        let address = IpAddr::from([192, 0, 2, 10 + number]);
        let id = RelayId([number; 32]);
        self.relays.push(Relay {
            id,
            plane: Plane::new(address),
            boot: 1,
            up: true,
            expires: false,
            channels: BTreeMap::new(),
            held: None,
        });
        self.internet.attach_relay(address, Some(index));
        index
    }

    /// How many relays there are.
    #[must_use]
    pub fn relays(&self) -> usize {
        self.relays.len()
    }

    /// What a relay is called.
    #[must_use]
    pub fn relay_id(&self, relay: usize) -> RelayId {
        self.relays[relay].id
    }

    /// Where a relay stands.
    #[must_use]
    pub fn relay_address(&self, relay: usize) -> IpAddr {
        self.relays[relay].plane.address()
    }

    /// How many pairs a relay has a place for.
    #[must_use]
    pub fn allocations(&self, relay: usize) -> usize {
        self.relays[relay].plane.allocations()
    }

    /// Whether a node has a channel to a relay on which both have said who they are.
    #[must_use]
    pub fn has_channel(&self, relay: usize, node: usize) -> bool {
        self.relays[relay].channels.values().any(|channel| channel.node == node && channel.greeted)
    }

    /// Breaks a node's channel to a relay, with all that is on its way. The node makes another one.
    pub fn break_channel(&mut self, relay: usize, node: usize) {
        if self.hang_up(relay, node) {
            self.lose_channel(relay, node);
        }
    }

    fn lose_channel(&mut self, relay: usize, node: usize) {
        self.relay_news(relay, node, RelayNews::Closed);
        let start = self.nodes[node].starts;
        self.connect_again(relay, node, start);
    }

    fn connect_again(&mut self, relay: usize, node: usize, start: u32) {
        let pause = self.within(self.reconnect);
        self.after(pause, Action::Connect { relay, node, start });
    }

    /// A node's agent started: its control channels will be there in a while.
    pub(super) fn connect_soon(&mut self, node: usize) {
        if self.signalling.is_none() {
            return;
        }
        for relay in 0..self.relays.len() {
            let id = self.relays[relay].id;
            self.nodes[node].relays.insert(relay, id);
            let addresses = vec![self.relays[relay].plane.address()];
            self.relay_news(relay, node, RelayNews::Connecting { addresses });
            let delay = self.signal_delay();
            let start = self.nodes[node].starts;
            self.after(delay, Action::Connect { relay, node, start });
        }
    }

    /// A node's control channel is there.
    pub(super) fn connect(&mut self, relay: usize, node: usize, start: u32) {
        if self.nodes[node].engine.is_none() || self.nodes[node].starts != start {
            return;
        }
        // A relay with another key than it is known by is none.
        if !self.relays[relay].up || self.nodes[node].relays.get(&relay) != Some(&self.relays[relay].id) {
            self.relay_news(relay, node, RelayNews::Closed);
            return self.connect_again(relay, node, start);
        }
        self.hang_up(relay, node);
        self.channels += 1;
        let key = self.nodes[node].key;
        let arrivals = [self.now; 2];
        let channel = Channel { node, key, greeted: false, meets: BTreeSet::new(), arrivals };
        self.relays[relay].channels.insert(self.channels, channel);
        let addresses = vec![self.relays[relay].plane.address()];
        self.relay_news(relay, node, RelayNews::Open { addresses });
    }

    /// A node's agent ends, and its control channels with it.
    pub(super) fn disconnect(&mut self, node: usize) {
        for relay in 0..self.relays.len() {
            self.hang_up(relay, node);
        }
    }

    /// A channel ends, if there is one, and whoever the node had met hears of it.
    fn hang_up(&mut self, relay: usize, node: usize) -> bool {
        let its: Vec<u64> = self.relays[relay].channels_of(node).collect();
        for channel in &its {
            let Some(gone) = self.relays[relay].channels.remove(channel) else { continue };
            let met = gone.meets.iter().filter(|peer| self.relays[relay].wants(peer, &gone.key));
            for peer in met.collect::<Vec<_>>() {
                let partner = self.relays[relay].channel_of(peer);
                self.tell(relay, partner, ToNode::Present { node: gone.key, met: false });
            }
        }
        !its.is_empty()
    }

    fn relay_news(&mut self, relay: usize, node: usize, news: RelayNews) {
        let known = self.nodes[node].relays.get(&relay);
        let relay = *known.unwrap_or(&self.relays[relay].id);
        self.input(node, Input::Relay { relay, news });
    }

    fn signal_delay(&mut self) -> Duration {
        self.within(self.signalling.map(|signalling| signalling.delay).unwrap_or_default())
    }

    fn within(&mut self, (least, most): (Duration, Duration)) -> Duration {
        if least == most {
            return least;
        }
        let spread = u64::try_from((most - least).as_micros()).unwrap_or(0) + 1;
        least + Duration::from_micros(self.random.below(spread))
    }
}

impl Relay {
    fn channels_of(&self, node: usize) -> impl Iterator<Item = u64> {
        self.channels.iter().filter(move |(_, channel)| channel.node == node).map(|(serial, _)| *serial)
    }

    fn channel_of(&self, key: &PublicKey) -> Option<u64> {
        self.channels.iter().find(|(_, channel)| channel.key == *key).map(|(serial, _)| *serial)
    }

    /// Whether `who` is here and wants to meet `whom`.
    fn wants(&self, who: &PublicKey, whom: &PublicKey) -> bool {
        self.channels.values().any(|channel| channel.key == *who && channel.meets.contains(whom))
    }
}
