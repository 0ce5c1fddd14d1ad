//! What can be said of a message before the lock of a peer is taken: its shape, the first MAC of a
//! handshake, whether the sender must prove its address, and which peer it is for.

use std::{
    net::SocketAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::BytesMut;
use gotatun::{
    noise::{TunnResult, handshake::parse_handshake_anon, rate_limiter::RateLimiter},
    packet::{Packet, WgKind},
};
use wire::key::PublicKey;

use crate::userspace::{peer::Peer, shared::Shared};

/// Handshakes per second, of all sources together, that are answered without proof of the address: one
/// takes about 0.3 ms of this thread. Sources are cheap to forge, so a limit for each isn't enough.
const HANDSHAKES_PER_SECOND: u32 = 1000;

const SECOND: Duration = Duration::from_secs(1);

/// Message types of a handshake (WireGuard, section 5.4).
const INITIATION: u8 = 1;
const RESPONSE: u8 = 2;

pub(super) enum Verdict {
    /// Worth a look by its peer.
    Message(WgKind),
    /// To be answered with this cookie, and forgotten.
    Answer(Packet),
    /// To be dropped.
    Invalid,
}

pub(super) struct Verifier<'a> {
    shared: &'a Shared,
    /// Demands proof of the address from everybody.
    strict: RateLimiter,
    second_began: Instant,
    this_second: u32,
}

impl<'a> Verifier<'a> {
    pub(super) fn new(shared: &'a Shared) -> Self {
        Self { shared, strict: RateLimiter::new(&shared.peers.public, 0), second_began: Instant::now(), this_second: 0 }
    }

    pub(super) fn verify(&mut self, datagram: BytesMut, from: SocketAddr) -> Verdict {
        let handshake = matches!(datagram.first(), Some(&(INITIATION | RESPONSE)));
        let limiter = if handshake && self.is_flooded() { &self.strict } else { self.shared.peers.limiter() };
        match limiter.verify_packet(from, Packet::from_bytes(datagram)) {
            Ok(message) => Verdict::Message(message),
            Err(TunnResult::WriteToNetwork(cookie)) => Verdict::Answer(cookie.into()),
            Err(_) => Verdict::Invalid,
        }
    }

    /// Counts a handshake; true once there were too many this second.
    fn is_flooded(&mut self) -> bool {
        let now = Instant::now();
        if now - self.second_began >= SECOND {
            self.second_began = now;
            self.this_second = 0;
            self.strict.try_reset_count();
            self.shared.peers.limiter().try_reset_count();
        }
        self.this_second = self.this_second.saturating_add(1);
        self.this_second > HANDSHAKES_PER_SECOND
    }

    /// The peer a message is for.
    pub(super) fn peer(&self, message: &WgKind) -> Option<Arc<Peer>> {
        let peers = &self.shared.peers;
        match message {
            WgKind::HandshakeInit(m) => {
                let half = parse_handshake_anon(peers.private(), &peers.public, m).ok()?;
                peers.by_key(&PublicKey::from_bytes(half.peer_static_public))
            }
            WgKind::HandshakeResp(m) => peers.by_index(m.receiver_idx.get()),
            WgKind::CookieReply(m) => peers.by_index(m.receiver_idx.get()),
            WgKind::Data(m) => peers.by_index(m.header.receiver_idx.get()),
        }
    }
}
