//! What the lock of a peer guards.

use std::{
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::{Duration, Instant},
};

use gotatun::{
    noise::{Tunn, TunnResult, errors::WireGuardError},
    packet::{Packet, WgKind},
};

use super::{
    ACTIVE, Outbox,
    core::{Common, Core},
};
use crate::userspace::udp::Destination;
use wire::key::PublicKey;

/// The core's clock may lag this much behind; its shortest timer is 1 s (a keepalive).
const POLL_AFTER: Duration = Duration::from_millis(250);

/// Timers that data starts have fired by then: a keepalive after 10 s, a handshake after 15.4 s.
const DATA_TIMERS: Duration = Duration::from_secs(17);

/// An initiation is repeated after 5 to 5.34 s; polling begins then, in steps that keep the jitter.
const RETRY_AFTER: Duration = Duration::from_secs(5);
const RETRY_STEP: Duration = Duration::from_millis(100);

/// WireGuard's REKEY_AFTER_TIME, REJECT_AFTER_TIME and the age at which a receiving initiator rekeys.
const REKEY_AFTER: Duration = Duration::from_secs(120);
const REKEY_RECEIVING_AFTER: Duration = Duration::from_secs(165);
const REJECT_AFTER: Duration = Duration::from_secs(180);

/// Ages of a session at which the core has something to do: rekey (twice), forget.
const MILESTONES: [Duration; 3] = [REKEY_AFTER, REKEY_RECEIVING_AFTER, Duration::from_secs(181)];

/// The age at which the core erases a session's keys.
const ERASE_AFTER: Duration = Duration::from_secs(541);

/// Longer than the usual keepalive of 25 s takes: a pair that is silent for this long is kept by neither side.
const KEPT: Duration = Duration::from_secs(28);

/// The core gives an attempt up after 90 s; one that is older than this is started afresh on demand.
const STALE_ATTEMPT: Duration = Duration::from_secs(60);

pub(in crate::userspace) struct PeerState {
    core: Core,
    pub(in crate::userspace) endpoint: Option<SocketAddr>,
    /// Where its last packet arrived; answers leave from there.
    pub(in crate::userspace) local: Option<IpAddr>,
    pub(in crate::userspace) rx_bytes: u64,
    pub(in crate::userspace) tx_bytes: u64,
    pub(in crate::userspace) last_handshake: Option<Instant>,
    /// Nothing with a peer that never talked, as with most of a large mesh.
    talk: Option<Box<Talk>>,
    /// The core learns of it once there is an endpoint; else it would start attempts that go nowhere.
    keepalive: Option<u16>,
    /// It isn't a peer of the device any more.
    pub(in crate::userspace) removed: bool,
}

/// Sessions with a peer, and what was said last.
struct Talk {
    /// When the newest session was made, by whoever.
    session: Option<Instant>,
    /// The newest session was asked for by this side.
    initiator: bool,
    /// Index of a session that this side answered for, until the first packet under it proves it.
    unconfirmed: Option<u32>,
    /// First and last initiation of an attempt that is under way.
    attempt: Option<(Instant, Instant)>,
    /// The core may hold packets that wait for a session.
    backlog: bool,
    polled: Option<Instant>,
    last_packet: Option<Instant>,
    last_data: Option<Instant>,
}

impl Talk {
    const NONE: Self = Self {
        session: None,
        initiator: false,
        unconfirmed: None,
        attempt: None,
        backlog: false,
        polled: None,
        last_packet: None,
        last_data: None,
    };
}

/// What an incoming message was.
pub(in crate::userspace) enum Opened {
    /// A packet for the interface.
    Packet(Packet),
    /// Authentic, without a packet.
    Nothing,
    /// Not authentic, replayed, or for a session that is gone.
    Invalid,
}

impl PeerState {
    pub(in crate::userspace) fn new(common: Arc<Common>, peer: PublicKey) -> Self {
        Self {
            core: Core::new(common, peer),
            endpoint: None,
            local: None,
            rx_bytes: 0,
            tx_bytes: 0,
            last_handshake: None,
            talk: None,
            keepalive: None,
            removed: false,
        }
    }

    fn talk(&self) -> &Talk {
        self.talk.as_deref().unwrap_or(const { &Talk::NONE })
    }

    fn talk_mut(&mut self) -> &mut Talk {
        self.talk.get_or_insert_with(|| Box::new(Talk::NONE))
    }

    /// Whether it was ever needed to talk to the peer.
    #[cfg(test)]
    pub(in crate::userspace) fn has_core(&mut self) -> bool {
        self.core.if_made().is_some()
    }

    pub(in crate::userspace) fn destination(&self) -> Option<Destination> {
        self.endpoint.map(|remote| Destination { remote, local: self.local })
    }

    /// Sets the endpoint by configuration: routing chooses the local address anew.
    pub(in crate::userspace) fn set_endpoint(&mut self, endpoint: SocketAddr) {
        let endpoint = SocketAddr::new(endpoint.ip().to_canonical(), endpoint.port());
        self.local = None;
        self.move_endpoint(endpoint);
    }

    pub(in crate::userspace) fn keepalive(&self) -> Option<u16> {
        self.keepalive
    }

    /// Sets the keepalive; one that is switched on is due at once.
    pub(in crate::userspace) fn set_keepalive(&mut self, keepalive: Option<u16>) {
        self.keepalive = keepalive;
        if self.endpoint.is_some() {
            self.tell_keepalive();
        }
    }

    /// Seals packets from the interface, or keeps them and asks for a session.
    pub(in crate::userspace) fn seal(&mut self, packets: impl Iterator<Item = Packet>, now: Instant, out: &mut Outbox) {
        self.touch(now, out);
        self.start_afresh_if_stale(now);
        for packet in packets {
            let (core, mtu) = self.core.get_with_mtu();
            match core.handle_outgoing_packet(packet, Some(mtu)) {
                Some(message) => self.emit(message, now, out),
                None => self.talk_mut().backlog = true,
            }
        }
        self.talk_mut().last_data = Some(now);
    }

    /// Opens a message from the network.
    pub(in crate::userspace) fn open(
        &mut self,
        message: WgKind,
        from: SocketAddr,
        local: Option<IpAddr>,
        now: Instant,
        out: &mut Outbox,
    ) -> Opened {
        self.touch(now, out);
        let length = length(&message);
        let (index, is_init) = match &message {
            WgKind::Data(data) => (Some(data.header.receiver_idx.get()), false),
            WgKind::HandshakeInit(_) => (None, true),
            _ => (None, false),
        };
        match self.core.get().handle_incoming_packet(message) {
            TunnResult::WriteToTunnel(packet) => {
                self.authentic(length, from, local, now);
                if index.is_some() && index == self.talk().unconfirmed {
                    let talk = self.talk_mut();
                    talk.unconfirmed = None;
                    talk.initiator = false;
                    self.last_handshake = Some(now);
                }
                self.flush(now, out);
                self.rekey_if_old(REKEY_RECEIVING_AFTER, now, out);
                if packet.is_empty() {
                    return Opened::Nothing;
                }
                self.talk_mut().last_data = Some(now);
                Opened::Packet(packet)
            }
            TunnResult::WriteToNetwork(answer) => {
                self.authentic(length, from, local, now);
                let talk = self.talk_mut();
                talk.session = Some(now);
                if is_init {
                    talk.unconfirmed = index_of(&answer);
                } else {
                    talk.initiator = true;
                    talk.attempt = None;
                    talk.unconfirmed = None;
                    self.last_handshake = Some(now);
                }
                self.emit(answer, now, out);
                self.flush(now, out);
                Opened::Nothing
            }
            TunnResult::Done => Opened::Nothing,
            TunnResult::Err(_) => Opened::Invalid,
        }
    }

    /// Starts a handshake whatever the state of the session.
    pub(in crate::userspace) fn initiate(&mut self, now: Instant, out: &mut Outbox) {
        self.touch(now, out);
        self.start_afresh_if_stale(now);
        if let Some(initiation) = self.core.get().format_handshake_initiation(true) {
            self.emit(initiation.into(), now, out);
        }
    }

    /// Lets the timers act.
    pub(in crate::userspace) fn poll(&mut self, now: Instant, out: &mut Outbox) {
        // One that never talked has no timers.
        if self.core.if_made().is_none() {
            return;
        }
        self.talk_mut().polled = Some(now);
        let Some(core) = self.core.if_made() else { return };
        match core.update_timers() {
            Ok(Some(message)) => {
                let keepalive = matches!(message, WgKind::Data(_));
                self.emit(message, now, out);
                if keepalive {
                    self.rekey_if_old(REKEY_AFTER, now, out);
                }
            }
            Ok(None) => {}
            Err(WireGuardError::ConnectionExpired) => self.retry_when_expired(now, out),
            // It has no other error to give.
            Err(_) => {}
        }
    }

    /// When to poll next; `None` when no timer runs.
    pub(in crate::userspace) fn next_poll(&self, now: Instant) -> Option<Instant> {
        let attempt = self.talk().attempt.map(|(_, last)| {
            let first = last + RETRY_AFTER;
            if now < first { first } else { now + RETRY_STEP }
        });
        let data = self.talk().last_data.filter(|&at| now < at + DATA_TIMERS).map(|_| now + ACTIVE);
        let session = self.talk().session.and_then(|made| {
            // The core rekeys a session for having been used once. Nobody needs that of a pair that rests: its next packet finds the
            // core polled first, and WireGuard rekeys when it sends.
            let kept_until = self.talk().last_packet.map_or(now, |at| at + KEPT);
            let milestones = MILESTONES.iter().map(|&age| made + age).filter(|&at| at <= kept_until);
            milestones.chain([made + ERASE_AFTER]).filter(|&at| at > now).min()
        });
        let keepalive = self.core.keepalive().map(|secs| {
            let due = |at| at + Duration::from_secs(secs.into());
            // Not in the past: when the core has nothing to send, once a second is enough.
            self.talk().last_packet.map_or(now + ACTIVE, due).max(now + ACTIVE)
        });
        [attempt, data, session, keepalive].into_iter().flatten().min()
    }

    /// Polls, unless that was done a moment ago.
    pub(in crate::userspace) fn touch(&mut self, now: Instant, out: &mut Outbox) {
        if self.talk().polled.is_none_or(|at| now - at >= POLL_AFTER) {
            self.poll(now, out);
        }
    }

    fn has_session(&self, now: Instant) -> bool {
        self.talk().session.is_some_and(|made| now - made < REJECT_AFTER)
    }

    /// The core counts attempts and sessions from when it was made or last cleared; without a session
    /// that is long ago, and an attempt started now would be given up before its time.
    fn start_afresh_if_stale(&mut self, now: Instant) {
        let attempt_is_young = self.talk().attempt.is_some_and(|(first, _)| now - first < STALE_ATTEMPT);
        if !self.has_session(now) && !attempt_is_young {
            self.core.if_made().into_iter().for_each(Tunn::reset);
            let talk = self.talk_mut();
            talk.attempt = None;
            talk.backlog = false;
        }
    }

    /// The core gives up for good after 90 s without an answer. A peer with a keepalive is wanted, so
    /// it is tried again, as kernel WireGuard does.
    fn retry_when_expired(&mut self, now: Instant, out: &mut Outbox) {
        let talk = self.talk_mut();
        talk.attempt = None;
        talk.backlog = false;
        let Some(secs) = self.keepalive() else {
            return;
        };
        let pause = Duration::from_secs(secs.into());
        if self.talk().last_packet.is_none_or(|at| now - at >= pause)
            && let Some(initiation) = self.core.get().format_handshake_initiation(false)
        {
            self.emit(initiation.into(), now, out);
        }
    }

    /// Rekeys on keepalives too, not only on data, as kernel WireGuard does: else the session of an
    /// idle pair ends, and its first packet waits for a handshake.
    fn rekey_if_old(&mut self, age: Duration, now: Instant, out: &mut Outbox) {
        let old = self.talk().session.is_some_and(|made| now - made >= age);
        if self.talk().initiator
            && old
            && let Some(initiation) = self.core.get().format_handshake_initiation(false)
        {
            self.emit(initiation.into(), now, out);
        }
    }

    /// Sends what waited for a session, once one can be used.
    fn flush(&mut self, now: Instant, out: &mut Outbox) {
        let talk = self.talk();
        if !talk.backlog || talk.unconfirmed.is_some() {
            return;
        }
        self.talk_mut().backlog = false;
        let waiting: Vec<WgKind> = {
            let (core, mtu) = self.core.get_with_mtu();
            core.get_queued_packets(mtu).collect()
        };
        for message in waiting {
            self.emit(message, now, out);
        }
    }

    fn authentic(&mut self, length: usize, from: SocketAddr, local: Option<IpAddr>, now: Instant) {
        self.rx_bytes += length as u64;
        self.talk_mut().last_packet = Some(now);
        self.move_endpoint(from);
        self.local = local.filter(can_be_source);
    }

    fn move_endpoint(&mut self, endpoint: SocketAddr) {
        if self.endpoint.replace(endpoint).is_none() {
            self.tell_keepalive();
        }
    }

    fn tell_keepalive(&mut self) {
        if self.core.keepalive() != self.keepalive {
            self.core.get().set_persistent_keepalive(self.keepalive);
            self.talk_mut().polled = None;
        }
    }

    fn emit(&mut self, message: WgKind, now: Instant, out: &mut Outbox) {
        if let Some(index) = index_of(&message) {
            out.indexes.push(index);
        }
        if matches!(message, WgKind::HandshakeInit(_)) {
            let talk = self.talk_mut();
            let first = talk.attempt.map_or(now, |(first, _)| first);
            talk.attempt = Some((first, now));
            talk.backlog = true;
        }
        let packet: Packet = message.into();
        self.tx_bytes += packet.len() as u64;
        self.talk_mut().last_packet = Some(now);
        out.packets.push(packet);
    }
}

/// Link-local addresses need an interface to be sent from, and a group is nobody's address.
fn can_be_source(local: &IpAddr) -> bool {
    match local {
        IpAddr::V4(v4) => !v4.is_multicast() && !v4.is_broadcast() && !v4.is_link_local(),
        IpAddr::V6(v6) => !v6.is_multicast() && !v6.is_unicast_link_local(),
    }
}

/// The index by which the other side will address the session this message asks or answers for.
fn index_of(message: &WgKind) -> Option<u32> {
    match message {
        WgKind::HandshakeInit(m) => Some(m.sender_idx.get()),
        WgKind::HandshakeResp(m) => Some(m.sender_idx.get()),
        WgKind::CookieReply(_) | WgKind::Data(_) => None,
    }
}

fn length(message: &WgKind) -> usize {
    match message {
        WgKind::HandshakeInit(_) => 148,
        WgKind::HandshakeResp(_) => 92,
        WgKind::CookieReply(_) => 64,
        WgKind::Data(m) => 32 + m.encrypted_encapsulated_packet().len(),
    }
}
