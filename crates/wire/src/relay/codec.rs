//! Bytes of relay messages, and their tag.

use std::net::{IpAddr, Ipv6Addr, SocketAddr};

use blake2::Blake2sMac;
use blake2::digest::array::ArraySize;
use blake2::digest::consts::{U16, U32};
use blake2::digest::typenum::{IsLessOrEqual, True};
use blake2::digest::{FixedOutput, Mac};

use super::{AllocationId, Body, Forged, Header, LegKey, MESSAGE_LEN, Side, TOKEN_LEN, Token};

const VERSION: u8 = 1;

const TOKEN_AT: usize = 20;
const OBSERVED_AT: usize = TOKEN_AT + TOKEN_LEN;
const OBSERVED_LEN: usize = 18;
const TAG_AT: usize = 64;

/// Separate the two uses of a leg's key.
const TAG_PERSONA: &[u8; 8] = b"wrn relM";
const PAD_PERSONA: &[u8; 8] = b"wrn relP";

#[derive(Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum Kind {
    Bind = 0x81,
    Challenge = 0x82,
    Answer = 0x83,
    Bound = 0x84,
}

impl Kind {
    pub(super) const fn of(byte: u8) -> Option<Self> {
        match byte {
            0x81 => Some(Self::Bind),
            0x82 => Some(Self::Challenge),
            0x83 => Some(Self::Answer),
            0x84 => Some(Self::Bound),
            _ => None,
        }
    }
}

/// Makes a relay message.
#[must_use]
pub fn seal(key: &LegKey, header: &Header, body: &Body) -> [u8; MESSAGE_LEN] {
    let mut message = [0; MESSAGE_LEN];
    let kind = match body {
        Body::Bind => Kind::Bind,
        Body::Challenge(_) => Kind::Challenge,
        Body::Answer(_) => Kind::Answer,
        Body::Bound { .. } => Kind::Bound,
    };
    message[..4].copy_from_slice(&[kind as u8, VERSION, header.side as u8, 0]);
    message[4..12].copy_from_slice(&header.allocation.0.to_be_bytes());
    message[12..TOKEN_AT].copy_from_slice(&header.counter.to_be_bytes());
    match body {
        Body::Bind => {}
        Body::Challenge(token) | Body::Answer(token) => message[TOKEN_AT..OBSERVED_AT].copy_from_slice(&token.0),
        Body::Bound { observed } => {
            let padded = xor(address(*observed), pad(key, &message));
            message[OBSERVED_AT..OBSERVED_AT + OBSERVED_LEN].copy_from_slice(&padded);
        }
    }
    let tag = tag(key, &message).finalize().into_bytes();
    message[TAG_AT..].copy_from_slice(&tag);
    message
}

/// A datagram that is framed as a relay message and not yet authenticated: enough to find the key.
#[derive(Clone, Copy)]
pub struct Frame<'a> {
    message: &'a [u8; MESSAGE_LEN],
    kind: Kind,
    side: Side,
}

impl<'a> Frame<'a> {
    /// `None` for another size, an unknown kind, version or side.
    #[must_use]
    pub fn parse(datagram: &'a [u8]) -> Option<Self> {
        let message: &[u8; MESSAGE_LEN] = datagram.try_into().ok()?;
        let kind = Kind::of(message[0])?;
        let side = match message[2] {
            0 => Side::Low,
            1 => Side::High,
            _ => return None,
        };
        (message[1] == VERSION).then_some(Self { message, kind, side })
    }

    /// What the message claims to belong to.
    #[must_use]
    pub fn header(&self) -> Header {
        Header { allocation: AllocationId(self.u64_at(4)), side: self.side, counter: self.u64_at(12) }
    }

    /// Whether it claims to come from a node (BIND, ANSWER) rather than from a relay.
    #[must_use]
    pub fn is_from_node(&self) -> bool {
        matches!(self.kind, Kind::Bind | Kind::Answer)
    }

    /// Checks the tag in constant time and reads the rest. Flags and unused bytes are authenticated and otherwise ignored, so
    /// that a later version may give them a meaning.
    ///
    /// # Errors
    /// When the message was not made with this key.
    pub fn open(&self, key: &LegKey) -> Result<Body, Forged> {
        tag(key, self.message).verify_slice(&self.message[TAG_AT..]).map_err(|_| Forged)?;
        let token = || {
            let mut token = [0; TOKEN_LEN];
            token.copy_from_slice(&self.message[TOKEN_AT..OBSERVED_AT]);
            Token(token)
        };
        Ok(match self.kind {
            Kind::Bind => Body::Bind,
            Kind::Challenge => Body::Challenge(token()),
            Kind::Answer => Body::Answer(token()),
            Kind::Bound => {
                let mut padded = [0; OBSERVED_LEN];
                padded.copy_from_slice(&self.message[OBSERVED_AT..OBSERVED_AT + OBSERVED_LEN]);
                Body::Bound { observed: socket_addr(xor(padded, pad(key, self.message))) }
            }
        })
    }

    fn u64_at(&self, at: usize) -> u64 {
        let mut bytes = [0; 8];
        bytes.copy_from_slice(&self.message[at..at + 8]);
        u64::from_be_bytes(bytes)
    }
}

fn tag(key: &LegKey, message: &[u8; MESSAGE_LEN]) -> Blake2sMac<U16> {
    mac(key, TAG_PERSONA).chain_update(&message[..TAG_AT])
}

fn pad(key: &LegKey, message: &[u8; MESSAGE_LEN]) -> [u8; OBSERVED_LEN] {
    let whole: [u8; 32] = mac::<U32>(key, PAD_PERSONA).chain_update(&message[..OBSERVED_AT]).finalize_fixed().into();
    let mut pad = [0; OBSERVED_LEN];
    pad.copy_from_slice(&whole[..OBSERVED_LEN]);
    pad
}

fn mac<Size>(key: &LegKey, persona: &[u8; 8]) -> Blake2sMac<Size>
where
    Size: ArraySize + IsLessOrEqual<U32, Output = True>,
{
    Blake2sMac::new_with_salt_and_personal(Some(key.expose_bytes()), &[], persona)
        .expect("the key has 32 bytes and the personalisation 8, which is what BLAKE2s takes")
}

/// One form for both families: IPv4 inside IPv6 (RFC 4291, section 2.5.5.2).
fn address(address: SocketAddr) -> [u8; OBSERVED_LEN] {
    let ip = match address.ip() {
        IpAddr::V4(ip) => ip.to_ipv6_mapped(),
        IpAddr::V6(ip) => ip,
    };
    let mut bytes = [0; OBSERVED_LEN];
    bytes[..16].copy_from_slice(&ip.octets());
    bytes[16..].copy_from_slice(&address.port().to_be_bytes());
    bytes
}

fn socket_addr(bytes: [u8; OBSERVED_LEN]) -> SocketAddr {
    let mut ip = [0; 16];
    ip.copy_from_slice(&bytes[..16]);
    SocketAddr::new(Ipv6Addr::from(ip).to_canonical(), u16::from_be_bytes([bytes[16], bytes[17]]))
}

fn xor(mut bytes: [u8; OBSERVED_LEN], pad: [u8; OBSERVED_LEN]) -> [u8; OBSERVED_LEN] {
    bytes.iter_mut().zip(pad).for_each(|(byte, pad)| *byte ^= pad);
    bytes
}
