//! The control channel between a node and a relay, both ends of it.
//!
//! # Model
//!
//! A channel carries the messages of [`wire::control`] in both directions, in order, encrypted, between two ends of which each has
//! proven an Ed25519 *identity key*: by TLS 1.3 with raw public keys (RFC 7250), so there is no certificate, no name, no authority
//! and no clock in it. A node [`connect()`]s and accepts the one relay whose key it was given. A relay [`Listener`] takes in everybody who
//! has a key, and says which: whether its holder is a member is for others to look up.
//!
//! Two transports carry it: QUIC over UDP, and TLS over TCP for sites that drop UDP. A node starts with the first, begins the
//! second a moment later, and takes what is open first.
//!
//! # Life of a channel
//!
//! [`Channel::split`] gives a [`Sender`] and a [`Receiver`]. What is sent waits in a queue of [`QUEUE_LEN`] bytes for the channel's own
//! task, which writes it. The node's end shows every [`KEEPALIVE`] that it is there, by QUIC's own means or by a
//! [`Ping`](wire::control::ToRelay::Ping) that the other end answers; neither leaves this crate. After [`IDLE`] without a sign the channel ends.
//! Dropping the last sender closes it, after what was said last.
//!
//! All channels of a listener together hold no more than [`MESSAGES_LEN`] of messages and [`ROOM_LEN`] of packets.
//!
//! Packets of nodes that cannot send UDP travel on the same stream ([`Outlet::offer`], [`Receiver::hear`]). They wait behind all messages,
//! in a lane for each allocation, and are dropped where a message would end the channel: who reads slowly loses packets and nothing else. What is
//! here already is heard in one turn, whatever pieces it came in.
//!
//! # What it refuses
//!
//! * To speak TLS 1.2, to resume sessions, to send early data, to take certificates.
//! * To take memory in proportion to what a stranger says: a message that is announced as too long ends the channel before there is room
//!   for it, what is no message ends it too, and newcomers have [`MAX_NEWCOMERS`] places, [`MAX_NEWCOMERS_OF_SOURCE`] from one site.
//! * To know what the messages mean.

mod ahead;
mod connect;
mod ends;
mod gate;
mod identity;
mod lanes;
mod listen;
mod message;
mod packets;
mod proxy;
mod queue;
mod quic;
mod room;
mod tls;

pub use connect::{Attempt, ConnectError, HEAD_START, MAX_ADDRESSES, Options, STAGGER, Target, connect};
pub use ends::{Channel, Heard, IDLE, KEEPALIVE, Outlet, Receiver, RelayChannel, Sender, Transport};
pub use gate::{MAX_NEWCOMERS, MAX_NEWCOMERS_OF_SOURCE, Place};
pub use identity::{IDENTITY_LEN, Identity};
pub use lanes::{BURSTS_LEN, LANE_LEN, LANE_PACKETS, LANES_LEN, OLD};
pub use listen::{HANDSHAKE_TIMEOUT, Incoming, ListenError, Listener};
pub use message::Message;
pub use packets::{PACKET_COST, PACKETS_COST, Packets};
pub use proxy::Proxy;
pub use queue::QUEUE_LEN;
pub use room::{MESSAGES_LEN, ROOM_LEN};

/// Why something could not be said.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum SendError {
    /// The channel has ended.
    #[error("the channel has ended")]
    Closed,
    /// The other end does not read.
    #[error("the channel's queue is full: the other end does not read")]
    Full,
}

/// Why a channel ended.
#[derive(Debug, thiserror::Error)]
pub enum RecvError {
    /// The other end announced a message that is longer than any.
    #[error("expected a message of at most {} bytes, one of {found} was announced", wire::control::MAX_MESSAGE_LEN)]
    TooLong {
        /// Its length in bytes.
        found: usize,
    },
    /// The other end said what is no message.
    #[error("the other end said what is no message")]
    Malformed,
    /// The channel was closed within a message.
    #[error("the channel was closed within a message")]
    Truncated,
    /// The other end gave no sign for too long.
    #[error("no sign of the other end for {} s", IDLE.as_secs())]
    Idle,
    /// The connection broke.
    #[error("the connection broke: {0}")]
    Lost(std::io::Error),
}

#[cfg(test)]
mod tests;
