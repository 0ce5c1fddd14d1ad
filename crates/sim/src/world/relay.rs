//! The relay, as far as engines need one: it hands signals on, and sends the strays of the filtering test.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use path::{Control, ControlChannel, Input};
use wire::PublicKey;
use wire::stun::{self, TransactionId};

use super::{Action, World};
use crate::packet::{Packet, Payload};

/// Where strays come from. Nobody ever sends there first.
const ADDRESS: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(192, 0, 2, 3));
/// The first of its ports; each stray has its own.
const FIRST_PORT: u16 = 20_000;

/// How the relay's control channels treat messages.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Signalling {
    /// One way from node to node: at least, and at most.
    pub delay: (Duration, Duration),
    /// Lost, of 100.
    pub loss: u8,
    /// Whether signals from one node to another arrive in the order in which they were sent.
    pub ordered: bool,
}

impl World {
    pub(super) fn add_relay(&mut self) {
        self.internet.attach_stun(ADDRESS);
    }

    /// A node's agent started: its control channel will be there in a while.
    pub(super) fn connect_soon(&mut self, node: usize) {
        if self.signalling.is_some() {
            let delay = self.signal_delay() + self.signal_delay();
            let start = self.nodes[node].starts;
            self.after(delay, Action::Connect { node, start });
        }
    }

    /// A node's control channel is there: the relay tells both sides of every pair that can talk now.
    pub(super) fn connect(&mut self, node: usize, start: u32) {
        if self.nodes[node].engine.is_none() || self.nodes[node].starts != start {
            return;
        }
        self.nodes[node].connected = true;
        self.input(node, Input::ControlChannel(ControlChannel::Open));
        for other in 0..self.nodes.len() {
            if other != node && self.nodes[other].connected {
                self.announce(node, other, true);
                self.announce(other, node, true);
            }
        }
    }

    /// A node's control channel is gone.
    pub(super) fn disconnect(&mut self, node: usize) {
        if !std::mem::take(&mut self.nodes[node].connected) {
            return;
        }
        for other in 0..self.nodes.len() {
            if other != node && self.nodes[other].connected {
                self.announce(other, node, false);
            }
        }
    }

    fn announce(&mut self, to: usize, peer: usize, live: bool) {
        let peer = self.nodes[peer].key;
        self.input(to, Input::Signalling { peer, live });
    }

    /// A node's agent says something to the relay.
    pub(super) fn control(&mut self, node: usize, control: Control) {
        let Some(Signalling { loss, ordered, .. }) = self.signalling else {
            return;
        };
        let delay = self.signal_delay();
        match control {
            Control::Signal { to, bytes } => {
                let text = self.describe_signal(&bytes);
                self.note(&format!("n{node} signals {} {text}", self.name(&to)));
                if loss > 0 && self.random.percent(loss) {
                    return;
                }
                let pair = (self.nodes[node].key, to);
                let mut at = self.now + delay;
                if ordered {
                    at = at.max(self.signalled.get(&pair).copied().unwrap_or_default());
                    self.signalled.insert(pair, at);
                }
                self.after(at - self.now, Action::Signal { to, bytes });
            }
            Control::Stray { to, tx } => self.after(delay / 2, Action::Stray { node, to, tx }),
        }
    }

    pub(super) fn signal(&mut self, to: PublicKey, bytes: Vec<u8>) {
        if let Some(node) = self.nodes.iter().position(|node| node.key == to && node.connected) {
            self.input(node, Input::Signal(bytes));
        }
    }

    pub(super) fn stray(&mut self, node: usize, to: SocketAddr, tx: TransactionId) {
        self.strays += 1;
        let src = SocketAddr::new(ADDRESS, FIRST_PORT + self.strays);
        self.inject(Packet::new(src, to, Payload::Plain(stun::encode_success(tx, to))));
        let delay = self.signal_delay() / 2;
        self.after(delay, Action::StraySent { node, tx, from: src });
    }

    fn signal_delay(&mut self) -> Duration {
        let (least, most) = self.signalling.map(|signalling| signalling.delay).unwrap_or_default();
        let spread = u64::try_from((most - least).as_micros()).unwrap_or(0) + 1;
        least + Duration::from_micros(self.random.below(spread))
    }
}
