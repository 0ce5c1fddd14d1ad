//! What goes in and what comes out.

use std::collections::BTreeSet;
use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::ops::Range;

use ipnet::IpNet;
use wire::control::{RefusedReason, ReleasedReason};
use wire::relay::{AllocationId, INITIATION_LEN, LegKey, MESSAGE_LEN, Side};

use super::pace::Rate;
use super::{ChannelId, Destination, End};

/// A node, by its WireGuard public key. The control channel has made sure that whoever speaks for it is the member with that key.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NodeId(pub [u8; 32]);

impl fmt::Debug for NodeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0[..4].iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

/// What an operator of the relay chooses.
#[derive(Debug, Clone)]
pub struct Config {
    /// UDP port of the first relay port; the others follow it.
    pub first_port: u16,
    /// How many there are, at most [`super::MAX_PORTS`].
    pub ports: u16,
    /// Allocations at a time, at most [`super::MAX_ALLOCATIONS`].
    pub max_allocations: usize,
    /// What one node may send through this relay.
    pub node_rate: Option<Rate>,
    /// What one pair may send through this relay, both directions together.
    pub pair_rate: Option<Rate>,
    /// The addresses of this host: no leg may have one.
    pub own: Vec<IpAddr>,
    /// Other addresses that no leg may have.
    pub denied: Vec<IpNet>,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            first_port: 51900,
            ports: 64,
            max_allocations: 10_000,
            node_rate: None,
            pair_rate: None,
            own: Vec::new(),
            denied: Vec::new(),
        }
    }
}

/// A fact or wish from the control channel, which has authenticated whoever is named first in it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Input {
    /// The node is a member.
    Admit(NodeId),
    /// The node is none any more: all it has here goes at once.
    Remove(NodeId),
    /// These are the members, and nobody else is: what a control channel says that has started anew.
    Members(BTreeSet<NodeId>),
    /// The node wants its leg of this pair. Asked again it is told again, so a lost answer is no harm.
    Allocate {
        /// Who asks.
        by: NodeId,
        /// With whom.
        partner: NodeId,
        /// The UDP port that the pair had in an earlier life of this relay.
        hint: Option<u16>,
    },
    /// The node does not want this pair, or not any more.
    Release {
        /// Who says so.
        by: NodeId,
        /// With whom.
        partner: NodeId,
    },
    /// The node's leg of this pair is a channel: it cannot send UDP.
    Attach {
        /// Who says so.
        by: NodeId,
        /// With whom.
        partner: NodeId,
        /// Its channel.
        channel: ChannelId,
    },
    /// The channel has ended, and with it the legs that it was.
    Detach {
        /// Whose it was.
        by: NodeId,
        /// Which.
        channel: ChannelId,
    },
    /// All channels have ended: who held them has started anew, or is no more.
    DetachAll,
    /// The addresses of this host, when they have changed.
    Own(Vec<IpAddr>),
}

/// What the control channel is to tell `to`. Always about its pair with `partner`.
#[derive(Debug, Clone)]
pub struct Event {
    /// Whom to tell.
    pub to: NodeId,
    /// The other node of the pair.
    pub partner: NodeId,
    /// What to say.
    pub news: News,
}

/// What happened to a leg.
#[derive(Debug, Clone)]
pub enum News {
    /// It is there to be bound.
    Allocated {
        /// Names it in relay messages.
        allocation: AllocationId,
        /// Whose leg it is.
        side: Side,
        /// The UDP port on the relay.
        port: u16,
        /// Authenticates the leg's relay messages.
        key: LegKey,
        /// The highest counter that the relay has taken: the next BIND has a higher one.
        counter: u64,
    },
    /// It cannot be had.
    Refused(RefusedReason),
    /// It is bound to this address.
    Bound {
        /// The node's address as the relay sees it.
        observed: SocketAddr,
    },
    /// Both legs of the pair are bound: data passes. Told again to a node that asks for the pair again, or whose leg is now a channel.
    Ready,
    /// Another leg has taken its source, so the NAT in between has given that to somebody else: bind again.
    Unbound,
    /// It is gone.
    Released(ReleasedReason),
}

/// One or more datagrams of one source, as a socket gave them.
#[derive(Debug, Clone, Copy)]
pub struct Arrival<'a> {
    /// Index of the relay port that they came to.
    pub port: u16,
    /// Who sent them.
    pub source: SocketAddr,
    /// The address of this host that they were sent to.
    pub local: Option<IpAddr>,
    /// All of them, one after the other.
    pub data: &'a [u8],
    /// Bytes of each; the last may be shorter.
    pub segment: usize,
}

/// Datagrams of an arrival to send on, from the port they came to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Forward {
    /// Where to.
    pub to: End,
    /// Of which pair.
    pub allocation: AllocationId,
    /// Which of the arrival's bytes.
    pub range: Range<usize>,
    /// Bytes of each datagram; the last may be shorter.
    pub segment: usize,
}

/// A packet that came by a channel.
#[derive(Debug, Clone, Copy)]
pub struct Carried<'a> {
    /// By which.
    pub channel: ChannelId,
    /// For which pair, as the node says.
    pub allocation: AllocationId,
    /// The packet.
    pub packet: &'a [u8],
}

/// Where a packet that came by a channel goes on to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Onward {
    /// Where to.
    pub to: End,
    /// Index of the relay port to send it from, if it goes to an address.
    pub port: u16,
}

/// A relay message to send.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Transmit {
    /// Index of the relay port to send it from.
    pub port: u16,
    /// Where to.
    pub to: Destination,
    /// The message.
    pub message: [u8; MESSAGE_LEN],
}

/// An initiation that was kept until the partner's leg was bound, to send now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Kept {
    /// Where to.
    pub to: End,
    /// Index of the relay port to send it from, if it goes to an address.
    pub port: u16,
    /// Of which pair.
    pub allocation: AllocationId,
    /// The message.
    pub message: Box<[u8; INITIATION_LEN]>,
}
