//! Bytes of control messages.

use std::net::{IpAddr, Ipv6Addr, SocketAddr};

use super::{
    DeniedReason, LENGTH_LEN, Leg, MAX_MESSAGE_LEN, MAX_SIGNAL_LEN, RefusedReason, ReleasedReason, ToNode, ToRelay,
};
use crate::PublicKey;
use crate::relay::{AllocationId, LegKey, MAX_FORWARDED_LEN, Side};
use crate::stun::TransactionId;

/// The other end breaks the protocol, or is of another version: the channel is to be closed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a control message is malformed")]
pub struct Malformed;

/// Bytes of a Data before its packet: kind and allocation.
const DATA_HEAD_LEN: usize = 1 + 8;

mod kind {
    pub(super) const HELLO: u8 = 0x01;
    pub(super) const MEET: u8 = 0x02;
    pub(super) const PART: u8 = 0x03;
    pub(super) const ALLOCATE: u8 = 0x04;
    pub(super) const RELEASE: u8 = 0x05;
    pub(super) const SIGNAL: u8 = 0x06;
    pub(super) const STRAY: u8 = 0x07;
    pub(super) const PING: u8 = 0x08;
    pub(super) const DATA: u8 = 0x09;
    pub(super) const ATTACH: u8 = 0x0a;

    pub(super) const WELCOME: u8 = 0x81;
    pub(super) const DENIED: u8 = 0x82;
    pub(super) const PRESENT: u8 = 0x83;
    pub(super) const ALLOCATED: u8 = 0x84;
    pub(super) const REFUSED: u8 = 0x85;
    pub(super) const READY: u8 = 0x86;
    pub(super) const UNBOUND: u8 = 0x87;
    pub(super) const RELEASED: u8 = 0x88;
    pub(super) const SIGNAL_FROM: u8 = 0x89;
    pub(super) const STRAY_SENT: u8 = 0x8a;
    pub(super) const DRAIN: u8 = 0x8b;
    pub(super) const PONG: u8 = 0x8c;
    pub(super) const DATA_FROM: u8 = 0x8d;
}

const DENIED: [DeniedReason; 5] = [
    DeniedReason::NotAdmitted,
    DeniedReason::Replaced,
    DeniedReason::Version,
    DeniedReason::Full,
    DeniedReason::Protocol,
];
const REFUSED: [RefusedReason; 4] =
    [RefusedReason::NotAdmitted, RefusedReason::PortsExhausted, RefusedReason::Full, RefusedReason::TooMany];
const RELEASED: [ReleasedReason; 5] = [
    ReleasedReason::Asked,
    ReleasedReason::NotBound,
    ReleasedReason::Idle,
    ReleasedReason::Removed,
    ReleasedReason::Unwanted,
];

impl ToRelay {
    /// Adds the message to `out`, its length before it. Bytes of a signal or packet beyond what may be sent are cut off.
    pub fn encode(&self, out: &mut Vec<u8>) {
        let mut message = Writer::new(out);
        match self {
            Self::Hello { version, node } => message.kind(kind::HELLO).bytes(&[*version]).key(node),
            Self::Meet(node) => message.kind(kind::MEET).key(node),
            Self::Part(node) => message.kind(kind::PART).key(node),
            // 0 is no port, and stands for none.
            Self::Allocate { partner, hint } => message.kind(kind::ALLOCATE).key(partner).u16(hint.unwrap_or(0)),
            Self::Release(partner) => message.kind(kind::RELEASE).key(partner),
            Self::Signal { to, bytes } => message.kind(kind::SIGNAL).key(to).tail(bytes, MAX_SIGNAL_LEN),
            Self::Stray { to, tx } => message.kind(kind::STRAY).bytes(&tx.0).address(*to),
            Self::Ping => message.kind(kind::PING),
            Self::Data { allocation, packet } => message.data(kind::DATA, *allocation, packet),
            Self::Attach { partner } => message.kind(kind::ATTACH).key(partner),
        };
        message.finish();
    }

    /// Adds a [`ToRelay::Data`] to `out` without having to own the packet, its length before it.
    pub fn encode_data(allocation: AllocationId, packet: &[u8], out: &mut Vec<u8>) {
        let mut message = Writer::new(out);
        message.data(kind::DATA, allocation, packet);
        message.finish();
    }

    /// What a [`ToRelay::Data`] says, without copying the packet; `None` for every other message and for what is none.
    #[must_use]
    pub fn as_data(message: &[u8]) -> Option<(AllocationId, &[u8])> {
        data(message, kind::DATA)
    }
}

impl ToNode {
    /// Adds the message to `out`, its length before it. Bytes of a signal or packet beyond what may be sent are cut off.
    pub fn encode(&self, out: &mut Vec<u8>) {
        let mut message = Writer::new(out);
        match self {
            Self::Welcome { boot, observed } => message.kind(kind::WELCOME).u64(*boot).address(*observed),
            Self::Denied(reason) => message.kind(kind::DENIED).one_of(&DENIED, reason),
            Self::Present { node, met } => message.kind(kind::PRESENT).key(node).bytes(&[u8::from(*met)]),
            Self::Allocated { partner, leg } => message
                .kind(kind::ALLOCATED)
                .key(partner)
                .u64(leg.allocation.0)
                .bytes(&[leg.side as u8])
                .u16(leg.port)
                .bytes(leg.key.expose_bytes())
                .u64(leg.counter),
            Self::Refused { partner, reason } => message.kind(kind::REFUSED).key(partner).one_of(&REFUSED, reason),
            Self::Ready(partner) => message.kind(kind::READY).key(partner),
            Self::Unbound(partner) => message.kind(kind::UNBOUND).key(partner),
            Self::Released { partner, reason } => message.kind(kind::RELEASED).key(partner).one_of(&RELEASED, reason),
            Self::Signal { from, bytes } => message.kind(kind::SIGNAL_FROM).key(from).tail(bytes, MAX_SIGNAL_LEN),
            Self::StraySent { tx, from } => message.kind(kind::STRAY_SENT).bytes(&tx.0).address(*from),
            Self::Drain { seconds } => message.kind(kind::DRAIN).u16(*seconds),
            Self::Pong => message.kind(kind::PONG),
            Self::Data { allocation, packet } => message.data(kind::DATA_FROM, *allocation, packet),
        };
        message.finish();
    }

    /// Adds a [`ToNode::Data`] to `out` without having to own the packet, its length before it.
    pub fn encode_data(allocation: AllocationId, packet: &[u8], out: &mut Vec<u8>) {
        let mut message = Writer::new(out);
        message.data(kind::DATA_FROM, allocation, packet);
        message.finish();
    }

    /// What a [`ToNode::Data`] says, without copying the packet; `None` for every other message and for what is none.
    #[must_use]
    pub fn as_data(message: &[u8]) -> Option<(AllocationId, &[u8])> {
        data(message, kind::DATA_FROM)
    }
}

fn data(message: &[u8], kind: u8) -> Option<(AllocationId, &[u8])> {
    let (&[found, ref allocation @ ..], packet) = message.split_first_chunk::<DATA_HEAD_LEN>()?;
    let is_data = found == kind && packet.len() <= MAX_FORWARDED_LEN;
    is_data.then(|| (AllocationId(u64::from_be_bytes(*allocation)), packet))
}

/// Reads a node's message, without its length.
///
/// # Errors
/// For anything but exactly one message.
pub fn decode_to_relay(message: &[u8]) -> Result<ToRelay, Malformed> {
    let mut rest = Reader(message);
    let decoded = match rest.u8()? {
        kind::HELLO => ToRelay::Hello { version: rest.u8()?, node: rest.key()? },
        kind::MEET => ToRelay::Meet(rest.key()?),
        kind::PART => ToRelay::Part(rest.key()?),
        kind::ALLOCATE => ToRelay::Allocate { partner: rest.key()?, hint: Some(rest.u16()?).filter(|&port| port != 0) },
        kind::RELEASE => ToRelay::Release(rest.key()?),
        kind::SIGNAL => ToRelay::Signal { to: rest.key()?, bytes: rest.tail(MAX_SIGNAL_LEN)? },
        kind::STRAY => ToRelay::Stray { tx: TransactionId(rest.array()?), to: rest.address()? },
        kind::PING => ToRelay::Ping,
        kind::DATA => ToRelay::Data { allocation: AllocationId(rest.u64()?), packet: rest.tail(MAX_FORWARDED_LEN)? },
        kind::ATTACH => ToRelay::Attach { partner: rest.key()? },
        _ => return Err(Malformed),
    };
    rest.finish(decoded)
}

/// Reads a relay's message, without its length.
///
/// # Errors
/// For anything but exactly one message.
pub fn decode_to_node(message: &[u8]) -> Result<ToNode, Malformed> {
    let mut rest = Reader(message);
    let decoded = match rest.u8()? {
        kind::WELCOME => ToNode::Welcome { boot: rest.u64()?, observed: rest.address()? },
        kind::DENIED => ToNode::Denied(rest.one_of(&DENIED)?),
        kind::PRESENT => ToNode::Present { node: rest.key()?, met: rest.one_of(&[false, true])? },
        kind::ALLOCATED => ToNode::Allocated { partner: rest.key()?, leg: rest.leg()? },
        kind::REFUSED => ToNode::Refused { partner: rest.key()?, reason: rest.one_of(&REFUSED)? },
        kind::READY => ToNode::Ready(rest.key()?),
        kind::UNBOUND => ToNode::Unbound(rest.key()?),
        kind::RELEASED => ToNode::Released { partner: rest.key()?, reason: rest.one_of(&RELEASED)? },
        kind::SIGNAL_FROM => ToNode::Signal { from: rest.key()?, bytes: rest.tail(MAX_SIGNAL_LEN)? },
        kind::STRAY_SENT => ToNode::StraySent { tx: TransactionId(rest.array()?), from: rest.address()? },
        kind::DRAIN => ToNode::Drain { seconds: rest.u16()? },
        kind::PONG => ToNode::Pong,
        kind::DATA_FROM => {
            ToNode::Data { allocation: AllocationId(rest.u64()?), packet: rest.tail(MAX_FORWARDED_LEN)? }
        }
        _ => return Err(Malformed),
    };
    rest.finish(decoded)
}

/// Writes one message and then its length.
struct Writer<'a> {
    out: &'a mut Vec<u8>,
    start: usize,
}

impl<'a> Writer<'a> {
    fn new(out: &'a mut Vec<u8>) -> Self {
        let start = out.len();
        out.extend_from_slice(&[0; LENGTH_LEN]);
        Self { out, start }
    }

    fn data(&mut self, kind: u8, allocation: AllocationId, packet: &[u8]) -> &mut Self {
        self.kind(kind).u64(allocation.0).tail(packet, MAX_FORWARDED_LEN)
    }

    fn kind(&mut self, kind: u8) -> &mut Self {
        self.bytes(&[kind])
    }

    fn bytes(&mut self, bytes: &[u8]) -> &mut Self {
        self.out.extend_from_slice(bytes);
        self
    }

    fn u16(&mut self, number: u16) -> &mut Self {
        self.bytes(&number.to_be_bytes())
    }

    fn u64(&mut self, number: u64) -> &mut Self {
        self.bytes(&number.to_be_bytes())
    }

    fn key(&mut self, key: &PublicKey) -> &mut Self {
        self.bytes(key.as_bytes())
    }

    fn address(&mut self, address: SocketAddr) -> &mut Self {
        let ip = match address.ip() {
            IpAddr::V4(ip) => ip.to_ipv6_mapped(),
            IpAddr::V6(ip) => ip,
        };
        self.bytes(&ip.octets()).u16(address.port())
    }

    fn one_of<T: PartialEq>(&mut self, all: &[T], value: &T) -> &mut Self {
        let index = all.iter().position(|known| known == value).expect("the table has every value");
        self.bytes(&[u8::try_from(index).expect("tables of reasons are short")])
    }

    fn tail(&mut self, bytes: &[u8], max: usize) -> &mut Self {
        self.bytes(&bytes[..bytes.len().min(max)])
    }

    fn finish(self) {
        let length = self.out.len() - self.start - LENGTH_LEN;
        let length = u16::try_from(length).expect("MAX_MESSAGE_LEN fits in 16 bits");
        self.out[self.start..self.start + LENGTH_LEN].copy_from_slice(&length.to_be_bytes());
    }
}

const _: () = assert!(MAX_MESSAGE_LEN <= u16::MAX as usize && MAX_SIGNAL_LEN < MAX_FORWARDED_LEN);

struct Reader<'a>(&'a [u8]);

impl Reader<'_> {
    fn array<const N: usize>(&mut self) -> Result<[u8; N], Malformed> {
        let (array, rest) = self.0.split_first_chunk().ok_or(Malformed)?;
        self.0 = rest;
        Ok(*array)
    }

    fn u8(&mut self) -> Result<u8, Malformed> {
        self.array().map(|[byte]| byte)
    }

    fn u16(&mut self) -> Result<u16, Malformed> {
        self.array().map(u16::from_be_bytes)
    }

    fn u64(&mut self) -> Result<u64, Malformed> {
        self.array().map(u64::from_be_bytes)
    }

    fn key(&mut self) -> Result<PublicKey, Malformed> {
        self.array().map(PublicKey::from_bytes)
    }

    fn address(&mut self) -> Result<SocketAddr, Malformed> {
        let ip = Ipv6Addr::from(self.array::<16>()?).to_canonical();
        Ok(SocketAddr::new(ip, self.u16()?))
    }

    fn leg(&mut self) -> Result<Leg, Malformed> {
        Ok(Leg {
            allocation: AllocationId(self.u64()?),
            side: self.one_of(&Side::BOTH)?,
            port: self.u16()?,
            key: LegKey::from_bytes(self.array()?),
            counter: self.u64()?,
        })
    }

    fn one_of<T: Copy>(&mut self, all: &[T]) -> Result<T, Malformed> {
        all.get(usize::from(self.u8()?)).copied().ok_or(Malformed)
    }

    fn tail(&mut self, max: usize) -> Result<Vec<u8>, Malformed> {
        let tail = std::mem::take(&mut self.0);
        if tail.len() > max { Err(Malformed) } else { Ok(tail.to_vec()) }
    }

    fn finish<T>(self, decoded: T) -> Result<T, Malformed> {
        if self.0.is_empty() { Ok(decoded) } else { Err(Malformed) }
    }
}
