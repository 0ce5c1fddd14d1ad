//! Relay messages: how a node binds its leg of a relayed pair, from WireGuard's own port to the pair's port on the relay.
//!
//! ```text
//!  0      kind      0x81 BIND, 0x82 CHALLENGE, 0x83 ANSWER, 0x84 BOUND: never a WireGuard type, never STUN       1
//!  1      version   1                                                                                            1
//!  2      side      0 low, 1 high                                                                                1
//!  3      flags     zero                                                                                         1
//!  4      allocation                                                                                             8
//! 12      counter   grows with every BIND of a leg; the other three repeat that of their BIND                    8
//! 20      token     CHALLENGE and ANSWER, else zero                                                             16
//! 36      observed  BOUND: IPv6 or mapped IPv4 address and port, under a pad; else zero                         18
//! 54      zero                                                                                                  10
//! 64      tag       BLAKE2s-128 of bytes 0..64, keyed with the leg's key, personalised "wrn relM"               16
//! ```
//!
//! A node sends [`Body::Bind`] with the next counter. The relay answers with [`Body::Challenge`], whose token it can
//! recompute from the source address and the fields above, so it remembers nothing. The node repeats the token in
//! [`Body::Answer`], which proves that it receives at that address, and learns the address from [`Body::Bound`]. All
//! four have one size, so no reply is larger than its request. No message names a destination.
//!
//! The pad over the observed address (BLAKE2s with the same key over bytes 0..36, personalised "wrn relP") keeps middleboxes from
//! rewriting an address that they recognise.

use std::fmt;
use std::net::SocketAddr;
use std::ops::RangeInclusive;

use zeroize::Zeroizing;

mod codec;

pub use codec::{Frame, seal};

/// Bytes of every relay message.
pub const MESSAGE_LEN: usize = 80;

/// The first bytes that relay messages have.
pub const KINDS: RangeInclusive<u8> = codec::Kind::Bind as u8..=codec::Kind::Bound as u8;

/// Bytes of a leg's key: what BLAKE2s takes at most.
pub const LEG_KEY_LEN: usize = 32;

/// Bytes of a challenge's token.
pub const TOKEN_LEN: usize = 16;

/// Bytes of a relayed WireGuard message at most: the payload of a jumbo frame of 9,000 and some. Larger ones would be fragments.
pub const MAX_FORWARDED_LEN: usize = 9000;

/// Bytes of the first message of a WireGuard handshake (the WireGuard paper, section 5.4.2).
pub const INITIATION_LEN: usize = 148;

/// Names one allocation on one relay: 64 bits that outsiders cannot guess, so a forged message costs a lookup and no cryptography.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct AllocationId(pub u64);

impl fmt::Debug for AllocationId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

/// Which of the two nodes of an allocation: the one whose identity sorts first by bytes is low.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Side {
    /// The smaller identity.
    Low,
    /// The larger identity.
    High,
}

impl Side {
    /// Both, in order.
    pub const BOTH: [Self; 2] = [Self::Low, Self::High];

    /// The partner's.
    #[must_use]
    pub const fn other(self) -> Self {
        match self {
            Self::Low => Self::High,
            Self::High => Self::Low,
        }
    }

    /// 0 for low, 1 for high.
    #[must_use]
    pub const fn index(self) -> usize {
        self as usize
    }
}

/// The secret that a relay shares with one node for its leg of one allocation. The relay draws it and hands it over by the control
/// channel; the two sides of an allocation have different ones.
#[derive(Clone)]
pub struct LegKey(Zeroizing<[u8; LEG_KEY_LEN]>);

impl LegKey {
    /// Takes 32 secret bytes.
    #[must_use]
    pub fn from_bytes(bytes: [u8; LEG_KEY_LEN]) -> Self {
        Self(Zeroizing::new(bytes))
    }

    /// The secret bytes, for the control channel that hands them over.
    #[must_use]
    pub fn expose_bytes(&self) -> &[u8; LEG_KEY_LEN] {
        &self.0
    }
}

impl fmt::Debug for LegKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("LegKey(..)")
    }
}

/// What the relay can recompute and nobody else can make: proof that its bearer receives at an address.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Token(pub [u8; TOKEN_LEN]);

/// What stands in every relay message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Header {
    /// Which allocation.
    pub allocation: AllocationId,
    /// Whose leg of it.
    pub side: Side,
    /// The counter of the BIND that this belongs to.
    pub counter: u64,
}

/// What a relay message says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Body {
    /// Node to relay: this is where my leg begins.
    Bind,
    /// Relay to node: show that you receive there.
    Challenge(Token),
    /// Node to relay: I do.
    Answer(Token),
    /// Relay to node: your leg is bound to this address.
    Bound {
        /// Where the ANSWER came from.
        observed: SocketAddr,
    },
}

/// Why a framed relay message was not opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the relay message does not authenticate: it was altered, or made with another key")]
pub struct Forged;

/// Whether a datagram has the size and kind of a relay message: what of WireGuard's port is neither the device's nor STUN.
#[must_use]
pub fn is_relay(datagram: &[u8]) -> bool {
    datagram.len() == MESSAGE_LEN && codec::Kind::of(datagram[0]).is_some()
}

/// Whether a WireGuard message belongs to a handshake rather than being data: what a session cannot begin without.
#[must_use]
pub fn is_handshake(message: &[u8]) -> bool {
    matches!(message, [1..=3, 0, 0, 0, ..])
}

/// Whether a WireGuard message that may be forwarded is the first one of a handshake.
#[must_use]
pub fn is_initiation(message: &[u8]) -> bool {
    message.len() == INITIATION_LEN && message[0] == 1
}

/// Whether a relay may forward a datagram: a WireGuard message of one of the four types, reserved bytes zero, with the
/// length that its type has (the WireGuard paper, section 5.4; data is 32 bytes and more).
#[must_use]
pub fn is_forwardable(datagram: &[u8]) -> bool {
    match datagram {
        [1, 0, 0, 0, ..] => datagram.len() == INITIATION_LEN,
        [2, 0, 0, 0, ..] => datagram.len() == 92,
        [3, 0, 0, 0, ..] => datagram.len() == 64,
        [4, 0, 0, 0, ..] => (32..=MAX_FORWARDED_LEN).contains(&datagram.len()),
        _ => false,
    }
}
