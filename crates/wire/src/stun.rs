//! STUN Binding (RFC 8489): requests, success responses, and the rules for sharing a UDP port with WireGuard.
//!
//! Decoding accepts what real servers send (padding, SOFTWARE, FINGERPRINT, MAPPED-ADDRESS of RFC 3489) and checks
//! framing strictly: the length field must equal the datagram's. FINGERPRINT and MESSAGE-INTEGRITY are skipped, since
//! Binding to a public observer has no credential, and the cookie with the exact length separates the protocols.

use std::fmt;
use std::net::SocketAddr;

mod address;
mod decode;
mod encode;

pub use decode::{Class, DecodeError, Message, decode};
pub(crate) use encode::encode_probe;
pub use encode::{encode_request, encode_success};

/// Bytes of a STUN header (RFC 8489, section 5).
pub const HEADER_LEN: usize = 20;

/// Bytes of the largest success response of ours: header and XOR-MAPPED-ADDRESS with an IPv6 address.
///
/// A request of at least this size can be answered by anybody without amplifying.
pub const MAX_SUCCESS_LEN: usize = HEADER_LEN + ATTRIBUTE_HEADER_LEN + 20;

/// Bytes to which the members of a mesh pad their requests.
pub const MEMBER_REQUEST_LEN: usize = MAX_SUCCESS_LEN;

/// Bytes of the largest request that [`encode_request`] makes: what every path carries unfragmented (RFC 8200, section 5).
pub const MAX_REQUEST_LEN: usize = 1232;

/// The fixed value that tells STUN from other protocols (RFC 8489, section 5).
const MAGIC_COOKIE: [u8; 4] = [0x21, 0x12, 0xa4, 0x42];

/// Type and length before an attribute's value.
const ATTRIBUTE_HEADER_LEN: usize = 4;

/// Bytes of the smallest WireGuard message: the header of a data packet (16) and its tag (16), a keepalive.
const WIREGUARD_MIN_LEN: usize = 32;

/// Message types of the Binding method: method 1 with each of the four classes mixed in.
mod message_type {
    pub(super) const REQUEST: u16 = 0x0001;
    pub(super) const INDICATION: u16 = 0x0011;
    pub(super) const SUCCESS: u16 = 0x0101;
    pub(super) const ERROR: u16 = 0x0111;
}

/// Attribute types (RFC 8489, section 18.3). Those of 0x8000 and above may be skipped by whoever does not know them.
mod attribute {
    pub(super) const MAPPED_ADDRESS: u16 = 0x0001;
    pub(super) const USERNAME: u16 = 0x0006;
    pub(super) const MESSAGE_INTEGRITY: u16 = 0x0008;
    pub(super) const ERROR_CODE: u16 = 0x0009;
    pub(super) const UNKNOWN_ATTRIBUTES: u16 = 0x000a;
    pub(super) const REALM: u16 = 0x0014;
    pub(super) const NONCE: u16 = 0x0015;
    pub(super) const MESSAGE_INTEGRITY_SHA256: u16 = 0x001c;
    pub(super) const PASSWORD_ALGORITHM: u16 = 0x001d;
    pub(super) const USERHASH: u16 = 0x001e;
    pub(super) const XOR_MAPPED_ADDRESS: u16 = 0x0020;
    /// First of the types that a receiver may skip.
    pub(super) const OPTIONAL: u16 = 0x8000;
    /// Ours: a sealed probe. From the range of first come, first served, in a part that the registry leaves empty.
    pub(super) const PROBE: u16 = 0xda57;
    /// Ours: zeros that make a request as large as its answer. RFC 5780's PADDING must be understood, so it would be refused.
    pub(super) const FILLER: u16 = 0xda58;
}

/// Names one transaction. Fresh random bytes for every request: an off-path forger has to guess it.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TransactionId(pub [u8; 12]);

impl fmt::Debug for TransactionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

/// Whether a datagram is framed as STUN: two zero bits, magic cookie, and a length field that fits exactly.
///
/// Never true of what [`is_wireguard`] accepts: with WireGuard's three reserved zeros the length field says 20 bytes in all.
#[must_use]
pub fn is_stun(datagram: &[u8]) -> bool {
    let Some(header) = datagram.first_chunk::<HEADER_LEN>() else {
        return false;
    };
    let length = usize::from(u16::from_be_bytes([header[2], header[3]]));
    header[0] < 0x40 && header[4..8] == MAGIC_COOKIE && length % 4 == 0 && length == datagram.len() - HEADER_LEN
}

/// Whether a datagram has the shape of a WireGuard message: type 1 to 4, reserved bytes zero, room for the smallest one.
///
/// Nobody but the WireGuard device may take such a datagram, not even for its magic cookie, because a receiver index may
/// equal the cookie by chance.
#[must_use]
pub fn is_wireguard(datagram: &[u8]) -> bool {
    datagram.len() >= WIREGUARD_MIN_LEN && matches!(datagram, [1..=4, 0, 0, 0, ..])
}

/// The address as peers on the internet would write it: IPv4 when a dual-stack socket shows it inside IPv6.
fn canonical(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip().to_canonical(), address.port())
}
