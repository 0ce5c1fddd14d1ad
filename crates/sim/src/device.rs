//! A toy WireGuard device: handshakes in one round trip, roams after authentic packets, counts, and stalls where the
//! real one stalls (two initiations at once, one initiation in 5 s).

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::Duration;

use path::PeerCounters;
use wire::PublicKey;

use crate::packet::{Inner, Message};
use crate::random::Random;

/// Between two initiations (WireGuard's `REKEY_TIMEOUT`).
pub(crate) const REKEY_TIMEOUT: Duration = Duration::from_secs(5);
/// After this the initiator makes a new session.
const REKEY_AFTER: Duration = Duration::from_secs(120);
/// After this a session is void.
const REJECT_AFTER: Duration = Duration::from_secs(180);
/// After this a receiver that had nothing to send says that it is there.
const PASSIVE_KEEPALIVE: Duration = Duration::from_secs(10);
/// Initiations without an answer are repeated for so long.
const GIVE_UP: Duration = Duration::from_secs(90);
/// Packets waiting for a session.
const MAX_QUEUE: usize = 16;

/// What the device wants done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Output {
    /// Send this to there.
    Transmit(SocketAddr, Message),
    /// A packet came out of the tunnel.
    Received(PublicKey, Inner),
}

/// The device of one node.
#[derive(Debug)]
pub struct Device {
    key: PublicKey,
    /// Whether a handshake that is asked for starts at once. The kernel waits 5 s after the last initiation, and over a live
    /// session it sends a keepalive and nothing more.
    forces_handshakes: bool,
    peers: BTreeMap<PublicKey, Peer>,
    outputs: Vec<Output>,
}

#[derive(Debug, Default)]
struct Peer {
    endpoint: Option<SocketAddr>,
    keepalive: Option<Duration>,
    handshake: Handshake,
    initiated: Option<Duration>,
    /// When the peer made the last initiation that was answered: what is older was held up, or is a recording.
    consumed: Option<Duration>,
    retry: Option<Duration>,
    retry_until: Duration,
    current: Option<Session>,
    next: Option<Session>,
    previous: Option<Session>,
    queue: Vec<Inner>,
    sent: Duration,
    passive: Option<Duration>,
    unanswered: Option<Duration>,
    completed: Option<Duration>,
    rx: u64,
    tx: u64,
}

#[derive(Debug, Default, PartialEq, Eq)]
enum Handshake {
    #[default]
    Idle,
    Sent(u64),
    Consumed,
}

#[derive(Debug, Clone, Copy)]
struct Session {
    id: u64,
    born: Duration,
    initiator: bool,
}

impl Device {
    /// A device without peers.
    #[must_use]
    pub fn new(key: PublicKey, forces_handshakes: bool) -> Self {
        Self { key, forces_handshakes, peers: BTreeMap::new(), outputs: Vec::new() }
    }

    /// Adds a peer if it is new.
    pub fn add_peer(&mut self, peer: PublicKey) {
        self.peers.entry(peer).or_default();
    }

    /// Points a peer's endpoint somewhere.
    pub fn set_endpoint(&mut self, peer: &PublicKey, endpoint: Option<SocketAddr>, keepalive: Option<Duration>) {
        if let Some(peer) = self.peers.get_mut(peer) {
            peer.endpoint = endpoint;
            peer.keepalive = keepalive;
        }
    }

    /// Where a peer's packets go now.
    #[must_use]
    pub fn endpoint(&self, peer: &PublicKey) -> Option<SocketAddr> {
        self.peers.get(peer)?.endpoint
    }

    /// Starts a handshake now, as far as this kind of device can.
    pub fn start_handshake(&mut self, key: &PublicKey, random: &mut Random, now: Duration) {
        if self.forces_handshakes {
            self.initiate(key, true, random, now);
        } else {
            self.send(key, Inner::Keepalive, random, now);
        }
    }

    /// Whether a handshake that is asked for starts at once.
    #[must_use]
    pub fn forces_handshakes(&self) -> bool {
        self.forces_handshakes
    }

    /// The same device made anew: without peers and sessions.
    #[must_use]
    pub fn anew(&self) -> Self {
        Self::new(self.key, self.forces_handshakes)
    }

    /// Sends a packet through the tunnel.
    pub fn send(&mut self, key: &PublicKey, inner: Inner, random: &mut Random, now: Duration) {
        let Some(peer) = self.peers.get_mut(key) else {
            return;
        };
        let Some(endpoint) = peer.endpoint else {
            return;
        };
        match peer.current.filter(|session| now - session.born < REJECT_AFTER) {
            Some(session) => {
                let message = Message::Data { session: session.id, inner };
                peer.tx += message.wire_bytes();
                peer.sent = now;
                peer.passive = None;
                if inner != Inner::Keepalive {
                    peer.unanswered.get_or_insert(now);
                }
                self.outputs.push(Output::Transmit(endpoint, message));
                if session.initiator && now - session.born >= REKEY_AFTER {
                    self.initiate(key, false, random, now);
                }
            }
            None => {
                if peer.queue.len() < MAX_QUEUE && inner != Inner::Keepalive {
                    peer.queue.push(inner);
                }
                self.initiate(key, false, random, now);
            }
        }
    }

    /// Takes a message.
    pub fn receive(&mut self, src: SocketAddr, message: &Message, random: &mut Random, now: Duration) {
        match message {
            Message::Initiation { from, to, id, made } if *to == self.key => {
                let fresh = |peer: &&mut Peer| peer.consumed.is_none_or(|last| last < *made);
                let Some(peer) = self.peers.get_mut(from).filter(fresh) else {
                    return;
                };
                peer.consumed = Some(*made);
                peer.handshake = Handshake::Consumed;
                peer.next = Some(Session { id: *id, born: now, initiator: false });
                peer.endpoint = Some(src);
                peer.initiated = Some(now);
                peer.retry = None;
                peer.rx += message.wire_bytes();
                let answer = Message::Response { from: self.key, id: *id };
                peer.tx += answer.wire_bytes();
                peer.sent = now;
                self.outputs.push(Output::Transmit(src, answer));
            }
            Message::Response { from, id } => {
                let Some(peer) = self.peers.get_mut(from) else {
                    return;
                };
                if peer.handshake != Handshake::Sent(*id) {
                    return;
                }
                peer.handshake = Handshake::Idle;
                peer.retry = None;
                peer.rx += message.wire_bytes();
                peer.endpoint = Some(src);
                peer.establish(Session { id: *id, born: now, initiator: true }, now);
                self.flush(&from.clone(), random, now);
            }
            Message::Data { session, inner } => self.receive_data(src, *session, *inner, random, now),
            Message::Initiation { .. } => {}
        }
    }

    fn receive_data(&mut self, src: SocketAddr, session: u64, inner: Inner, random: &mut Random, now: Duration) {
        let found = self.peers.iter_mut().find(|(_, peer)| peer.knows(session, now));
        let Some((key, peer)) = found else {
            return;
        };
        let key = *key;
        peer.rx += Message::Data { session, inner }.wire_bytes();
        peer.endpoint = Some(src);
        peer.unanswered = None;
        if let Some(next) = peer.next.take_if(|next| next.id == session) {
            peer.handshake = Handshake::Idle;
            peer.establish(next, now);
            if !peer.queue.is_empty() {
                self.flush(&key, random, now);
            }
        }
        if inner != Inner::Keepalive {
            if let Some(peer) = self.peers.get_mut(&key) {
                peer.passive.get_or_insert(now + PASSIVE_KEEPALIVE);
            }
            self.outputs.push(Output::Received(key, inner));
        }
    }

    fn flush(&mut self, key: &PublicKey, random: &mut Random, now: Duration) {
        let Some(peer) = self.peers.get_mut(key) else {
            return;
        };
        let mut queue = std::mem::take(&mut peer.queue);
        if queue.is_empty() {
            queue.push(Inner::Keepalive);
        }
        for inner in queue {
            self.send(key, inner, random, now);
        }
    }

    fn initiate(&mut self, key: &PublicKey, force: bool, random: &mut Random, now: Duration) {
        let from = self.key;
        let Some(peer) = self.peers.get_mut(key) else {
            return;
        };
        let Some(endpoint) = peer.endpoint else {
            return;
        };
        let recent = peer.initiated.is_some_and(|at| now - at < REKEY_TIMEOUT);
        if recent && !force {
            return;
        }
        if peer.retry.is_none() {
            peer.retry_until = now + GIVE_UP;
        }
        let id = random.word();
        peer.handshake = Handshake::Sent(id);
        peer.initiated = Some(now);
        peer.retry = Some(now + REKEY_TIMEOUT + Duration::from_millis(random.below(334)));
        peer.sent = now;
        let message = Message::Initiation { from, to: *key, id, made: now };
        peer.tx += message.wire_bytes();
        self.outputs.push(Output::Transmit(endpoint, message));
    }

    /// Does what is due.
    pub fn handle_timeout(&mut self, random: &mut Random, now: Duration) {
        let keys: Vec<PublicKey> = self.peers.keys().copied().collect();
        for key in keys {
            let Some(peer) = self.peers.get_mut(&key) else {
                continue;
            };
            if peer.retry.is_some_and(|at| at <= now) {
                let goes_on = now < peer.retry_until;
                peer.retry = None;
                if goes_on {
                    let until = peer.retry_until;
                    self.initiate(&key, true, random, now);
                    if let Some(peer) = self.peers.get_mut(&key) {
                        peer.retry_until = until;
                    }
                }
            }
            let Some(peer) = self.peers.get_mut(&key) else {
                continue;
            };
            if peer.unanswered.is_some_and(|at| at + REKEY_TIMEOUT + PASSIVE_KEEPALIVE <= now) {
                peer.unanswered = None;
                self.initiate(&key, false, random, now);
            }
            let Some(peer) = self.peers.get_mut(&key) else {
                continue;
            };
            if peer.passive.is_some_and(|at| at <= now) {
                peer.passive = None;
                self.send(&key, Inner::Keepalive, random, now);
            }
            let Some(peer) = self.peers.get_mut(&key) else {
                continue;
            };
            if peer.keepalive_due().is_some_and(|at| at <= now) {
                peer.sent = now;
                self.send(&key, Inner::Keepalive, random, now);
            }
        }
    }

    /// When [`Self::handle_timeout`] is due.
    #[must_use]
    pub fn poll_timeout(&self) -> Option<Duration> {
        self.peers
            .values()
            .flat_map(|peer| {
                [
                    peer.retry,
                    peer.passive,
                    peer.keepalive_due(),
                    peer.unanswered.map(|at| at + REKEY_TIMEOUT + PASSIVE_KEEPALIVE),
                ]
            })
            .flatten()
            .min()
    }

    /// What there is to do.
    pub fn take_outputs(&mut self) -> Vec<Output> {
        std::mem::take(&mut self.outputs)
    }

    /// What an agent that starts beside this device finds: the sessions of all peers.
    #[must_use]
    pub fn sessions(&self, now: Duration) -> Vec<path::Session> {
        let session = |(key, peer): (&PublicKey, &Peer)| {
            let (endpoint, completed) = (peer.endpoint?, peer.completed?);
            let keepalive = peer.keepalive;
            Some(path::Session { peer: *key, endpoint, keepalive, last_handshake: now - completed })
        };
        self.peers.iter().filter_map(session).collect()
    }

    /// The counters of all peers.
    #[must_use]
    pub fn counters(&self, now: Duration) -> Vec<PeerCounters> {
        self.peers
            .iter()
            .map(|(key, peer)| PeerCounters {
                public_key: *key,
                rx_bytes: peer.rx,
                tx_bytes: peer.tx,
                last_handshake: peer.completed.map(|at| now - at),
                endpoint: peer.endpoint,
            })
            .collect()
    }
}

impl Peer {
    fn establish(&mut self, session: Session, now: Duration) {
        self.previous = self.current.replace(session);
        self.completed = Some(now);
        self.unanswered = None;
    }

    fn knows(&self, session: u64, now: Duration) -> bool {
        [self.current, self.next, self.previous]
            .into_iter()
            .flatten()
            .any(|known| known.id == session && now - known.born < REJECT_AFTER)
    }

    fn keepalive_due(&self) -> Option<Duration> {
        self.endpoint?;
        Some(self.sent + self.keepalive?)
    }
}
