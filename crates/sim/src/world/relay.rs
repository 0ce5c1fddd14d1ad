//! The relays, as far as engines need them: each hands signals on, and sends the strays of the filtering test.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use path::{Control, Input, RelayId, RelayNews};
use wire::PublicKey;
use wire::control::{RefusedReason, ToNode, ToRelay};
use wire::stun;

use super::{Action, World};
use crate::packet::{Packet, Payload};
use crate::relay::{News, Plane};

/// Where strays come from. Nobody ever sends there first.
pub(super) const STRAYS: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(192, 0, 2, 3));
/// The first of its ports; each stray has its own.
const FIRST_PORT: u16 = 20_000;
/// How often allocations are looked at.
const EXPIRY: Duration = Duration::from_secs(10);
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
    pub(super) fn lose(&mut self, relay: usize, node: usize, start: u32) {
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
    pub(super) fn replaced(&mut self, relay: usize, node: usize, before: RelayId) {
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

    /// A node's agent says something to a relay.
    pub(super) fn control(&mut self, node: usize, control: Control) {
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

    fn say(&mut self, relay: usize, delay: Duration, said: Action) {
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
    pub(super) fn relay_hears(&mut self, relay: usize, channel: u64, message: ToRelay) {
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
    pub(super) fn relay_arrival(&mut self, relay: usize, packet: &Packet) {
        let host = &mut self.relays[relay];
        let mut out = Vec::new();
        let news = host.plane.arrive(packet, host.boot, self.now, &mut out);
        for packet in out {
            self.inject(packet);
        }
        self.tell_all(relay, news);
    }

    pub(super) fn expire_allocations(&mut self, relay: usize) {
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

    fn tell_all(&mut self, relay: usize, news: Vec<News>) {
        for (to, message) in news {
            if self.forgetful > 0 && self.random.percent(self.forgetful) {
                continue;
            }
            let channel = self.relays[relay].channel_of(&to);
            self.tell(relay, channel, message);
        }
    }

    /// A relay says something to a node that has a channel.
    fn tell(&mut self, relay: usize, channel: Option<u64>, message: ToNode) {
        if let Some(channel) = channel {
            let delay = self.signal_delay() / 2;
            let at = self.arrives(relay, channel, 1, delay);
            self.say(relay, at, Action::ToNode { relay, channel, message });
        }
    }

    /// A node takes a relay's message, if its channel is still the one that it was sent over.
    pub(super) fn node_hears(&mut self, relay: usize, channel: u64, message: ToNode) {
        if let Some(channel) = self.relays[relay].channels.get(&channel) {
            let node = channel.node;
            self.relay_news(relay, node, RelayNews::Said(message));
        }
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
