//! What travels.

use std::net::SocketAddr;
use std::time::Duration;

use wire::PublicKey;

/// Hops that an ordinary packet may live: Linux's default.
pub const DEFAULT_TTL: u8 = 64;

/// A UDP datagram of the outer network.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Packet {
    /// Source.
    pub src: SocketAddr,
    /// Destination.
    pub dst: SocketAddr,
    /// Hops that are left.
    pub ttl: u8,
    /// Content.
    pub payload: Payload,
}

impl Packet {
    /// A packet with the default lifetime.
    #[must_use]
    pub fn new(src: SocketAddr, dst: SocketAddr, payload: Payload) -> Self {
        Self { src, dst, ttl: DEFAULT_TTL, payload }
    }

    /// The packet after so many routers, if it lives.
    pub(crate) fn forwarded(mut self, routers: u8) -> Option<Self> {
        self.ttl = self.ttl.checked_sub(routers).filter(|ttl| *ttl > 0)?;
        Some(self)
    }
}

/// What the datagram contains.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Payload {
    /// STUN and probes: the bytes that a real socket would carry.
    Plain(Vec<u8>),
    /// WireGuard's messages, as the toy device understands them.
    WireGuard(Message),
}

/// A toy WireGuard message. That it is authentic is implied by its type.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Message {
    /// Type 1.
    Initiation {
        /// The initiator.
        from: PublicKey,
        /// The responder.
        to: PublicKey,
        /// Names the handshake.
        id: u64,
        /// Its timestamp: one that is older than the last is refused.
        made: Duration,
    },
    /// Type 2.
    Response {
        /// The responder.
        from: PublicKey,
        /// The handshake that it answers.
        id: u64,
    },
    /// Type 4.
    Data {
        /// The handshake that made the session.
        session: u64,
        /// The packet inside.
        inner: Inner,
    },
}

/// A packet inside the tunnel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Inner {
    /// Empty.
    Keepalive,
    /// The agent's echo request.
    EchoRequest(u64),
    /// Its answer.
    EchoReply(u64),
    /// A user's ping.
    Ping(u64),
    /// Its answer.
    Pong(u64),
}

impl Message {
    /// Bytes on the wire.
    #[must_use]
    pub fn wire_bytes(&self) -> u64 {
        match self {
            Self::Initiation { .. } => 148,
            Self::Response { .. } => 92,
            Self::Data { inner: Inner::Keepalive, .. } => 32,
            Self::Data { .. } => 96,
        }
    }

    /// A word for the trace.
    #[must_use]
    pub fn name(&self) -> &'static str {
        match self {
            Self::Initiation { .. } => "initiation",
            Self::Response { .. } => "response",
            Self::Data { inner, .. } => match inner {
                Inner::Keepalive => "keepalive",
                Inner::EchoRequest(_) => "echo",
                Inner::EchoReply(_) => "echo-reply",
                Inner::Ping(_) => "ping",
                Inner::Pong(_) => "pong",
            },
        }
    }
}
