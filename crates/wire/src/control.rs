//! Control messages: what a node and a relay tell each other over an authenticated, encrypted, ordered channel.
//!
//! ```text
//! length    of what follows it, at most 9,009       2
//! kind      ToRelay below 0x80, ToNode from 0x80    1
//! fields    as the kind has them, in order, big-endian; nothing may follow them
//! ```
//!
//! A node opens the channel with [`ToRelay::Hello`], in which it names its WireGuard key; the channel has proven its identity key, and the
//! relay looks up whether the one belongs to the other. From then on every node is named by its WireGuard key. The relay answers with
//! [`ToNode::Welcome`], or closes the channel with [`ToNode::Denied`].
//!
//! A node hears of another, and takes signals from it, once it has sent [`ToRelay::Meet`]; and the two are *met* when both have. What goes
//! between them is sealed end to end ([`signal`](crate::probe::signal)); no message names a destination address but the request for
//! a stray packet, and that is refused for any address but the one that the relay itself sees the node at.

use std::net::SocketAddr;

use crate::PublicKey;
use crate::relay::{AllocationId, LegKey, MAX_FORWARDED_LEN, Side};
use crate::stun::TransactionId;

mod codec;

pub use codec::{Malformed, decode_to_node, decode_to_relay};

/// The version of these messages that this code speaks.
pub const VERSION: u8 = 1;

/// The protocol's name in the TLS handshake (RFC 7301).
pub const ALPN: &[u8] = b"warren-relay/1";

/// Bytes before a message that say how long it is.
pub const LENGTH_LEN: usize = 2;

/// Bytes of a message at most, without its length.
pub const MAX_MESSAGE_LEN: usize = 1 + 8 + MAX_FORWARDED_LEN;

/// Bytes of a signal at most.
pub const MAX_SIGNAL_LEN: usize = 1024;

/// What a node says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ToRelay {
    /// First of all: who it is, in the mesh.
    Hello {
        /// [`VERSION`].
        version: u8,
        /// Its WireGuard key.
        node: PublicKey,
    },
    /// Tell me whether this node is here, now and whenever that changes, and hand me its signals.
    Meet(PublicKey),
    /// No more of that.
    Part(PublicKey),
    /// I want a leg of the pair with this node. Asked again, the relay answers again.
    Allocate {
        /// With whom.
        partner: PublicKey,
        /// The UDP port that the pair had before.
        hint: Option<u16>,
    },
    /// I do not want that pair, or not any more.
    Release(PublicKey),
    /// Hand this to the node, if we have met.
    Signal {
        /// To whom.
        to: PublicKey,
        /// At most [`MAX_SIGNAL_LEN`] sealed bytes.
        bytes: Vec<u8>,
    },
    /// Send a STUN success response of this transaction from a socket and address that I never sent to, to show whether my NAT lets
    /// strangers in (RFC 5780, section 4.4) and what it then does to my mapping.
    Stray {
        /// Where to: an address of mine as you see it, with WireGuard's mapped port.
        to: SocketAddr,
        /// Its transaction.
        tx: TransactionId,
    },
    /// Are you there? For channels that have no keepalive of their own.
    Ping,
    /// A WireGuard message for the partner of this allocation, from a node whose leg is this channel.
    Data {
        /// Whose leg.
        allocation: AllocationId,
        /// At most [`MAX_FORWARDED_LEN`] bytes.
        packet: Vec<u8>,
    },
    /// My leg of the pair with this node is this channel: I cannot send UDP. Valid once the pair was [`ToNode::Allocated`]; it binds the leg
    /// as a BIND does that was answered, and whichever of the two came last counts. The leg goes with the channel.
    Attach {
        /// With whom.
        partner: PublicKey,
    },
}

/// What a relay says.
#[derive(Debug, Clone)]
pub enum ToNode {
    /// You are a member. Nothing that was said in an earlier life of this relay holds.
    Welcome {
        /// Another one for every process.
        boot: u64,
        /// Where the channel comes from.
        observed: SocketAddr,
    },
    /// You are not, or not any more; the channel ends.
    Denied(DeniedReason),
    /// The other node has come or gone, or its wish to meet you has.
    Present {
        /// Who.
        node: PublicKey,
        /// Whether you two have met.
        met: bool,
    },
    /// A leg of yours is there to be bound.
    Allocated {
        /// With whom.
        partner: PublicKey,
        /// How.
        leg: Leg,
    },
    /// There is none.
    Refused {
        /// With whom.
        partner: PublicKey,
        /// Why.
        reason: RefusedReason,
    },
    /// Both legs are bound, to an address or a channel each: packets pass from now on.
    Ready(PublicKey),
    /// Another leg took your source, so the NAT in between gave it to somebody else: bind again.
    Unbound(PublicKey),
    /// The pair's legs are gone.
    Released {
        /// With whom.
        partner: PublicKey,
        /// Why.
        reason: ReleasedReason,
    },
    /// From a node that you have met.
    Signal {
        /// From whom: the relay's word, which opening the seal proves.
        from: PublicKey,
        /// Sealed bytes.
        bytes: Vec<u8>,
    },
    /// The stray packet is on its way.
    StraySent {
        /// Its transaction.
        tx: TransactionId,
        /// The socket that it left from.
        from: SocketAddr,
    },
    /// This relay ends: go elsewhere within so many seconds.
    Drain {
        /// How many.
        seconds: u16,
    },
    /// I am here.
    Pong,
    /// A WireGuard message of your partner, for a leg that is this channel.
    Data {
        /// Of which pair.
        allocation: AllocationId,
        /// The message.
        packet: Vec<u8>,
    },
}

/// One node's leg of an allocation.
#[derive(Debug, Clone)]
pub struct Leg {
    /// Names the allocation in relay messages.
    pub allocation: AllocationId,
    /// Whose leg it is.
    pub side: Side,
    /// The UDP port on the relay.
    pub port: u16,
    /// Authenticates the leg's relay messages.
    pub key: LegKey,
    /// The highest counter that the relay has taken: the next BIND has a higher one.
    pub counter: u64,
}

/// Why a channel is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DeniedReason {
    /// No admitted node has this WireGuard key together with this identity key.
    NotAdmitted,
    /// The node has opened another channel since.
    Replaced,
    /// The relay speaks another version.
    Version,
    /// The relay has as many channels as it may.
    Full,
    /// The node said something that it must not.
    Protocol,
}

/// Why there is no allocation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RefusedReason {
    /// The partner is not admitted, or is the node itself.
    NotAdmitted,
    /// No port is free at both.
    PortsExhausted,
    /// The relay has as many allocations as it may.
    Full,
    /// The node asks too often.
    TooMany,
}

/// Why an allocation went.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ReleasedReason {
    /// One of the two released it.
    Asked,
    /// It was not bound in time.
    NotBound,
    /// One of its legs was silent for too long.
    Idle,
    /// One of the two is not a member any more.
    Removed,
    /// One of the two wanted its port for a pair of its own, and never wanted this one.
    Unwanted,
}
