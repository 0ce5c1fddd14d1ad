//! Does a stranger's packet change what our next packet to him looks like?
//!
//! A Linux box that masquerades and has no rule against what comes in by itself keeps a connection for each stray packet.
//! That connection occupies our port towards the stranger, so our own next packet to him leaves from another port: to him
//! this node is behind a symmetric NAT, and two such nodes that probe each other never meet. Whoever is *poisonable* must
//! send first. The relay sends strays from sockets never sent to, and the same sockets say what our packets then look like.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use wire::control::ToRelay;
use wire::stun::{self, Class, TransactionId};

use crate::candidate::{Candidate, CandidateKind, canonical};
use crate::event::Event;
use crate::nat::NatClass;
use crate::relay::ControlChannel;
use crate::shared::Shared;
use crate::timer::earliest;

/// Strays of one test. One that is lost on its way looks harmless, and where one packet in fifty is, two were not enough.
const STRAYS: usize = 3;
/// How long the relay may take to say that it has sent one.
const RELAY: Duration = Duration::from_secs(2);
/// Between the relay's word and our own packet: the word may have travelled faster than the stray.
const HEAD_START: Duration = Duration::from_millis(300);
/// Waits after each of our requests to the stray's socket.
const RTO: [Duration; 3] = [Duration::from_millis(200), Duration::from_millis(400), Duration::from_millis(800)];
/// The next test when one was without a result.
const RETRY: Duration = Duration::from_secs(60);

/// The test of the mapping that this node has now.
#[derive(Debug, Default)]
pub(crate) struct StrayTest {
    /// The mapping under test.
    mapped: Option<SocketAddr>,
    strays: Vec<Stray>,
    retry_at: Option<Instant>,
}

#[derive(Debug)]
struct Stray {
    tx: TransactionId,
    state: State,
}

#[derive(Debug)]
enum State {
    /// The relay has been asked.
    Asked { give_up: Instant },
    /// The relay has sent it; our own requests to its socket follow.
    Sent { from: SocketAddr, requests: Vec<TransactionId>, due: Instant },
    /// Over: where our packets came from, if that was found out.
    Over { seen: Option<SocketAddr> },
}

impl StrayTest {
    /// Starts, continues and ends the test, and leaves what is known with the peers.
    pub(crate) fn handle_timeout(&mut self, shared: &mut Shared, now: Instant) {
        let mapped = subject(shared);
        if self.mapped != mapped || self.retry_at.is_some_and(|at| at <= now) {
            self.mapped = mapped;
            self.retry_at = None;
            self.strays.clear();
            if let Some(to) = mapped {
                self.strays = (0..STRAYS).map(|_| Stray::ask(to, shared, now)).collect();
            }
        }
        for stray in &mut self.strays {
            stray.drive(shared, now);
        }
        let running = self.strays.iter().any(|stray| !matches!(stray.state, State::Over { .. }));
        let before = shared.poisonable;
        shared.poisonable = match (shared.nat.v4, self.verdict()) {
            // Somebody whose port differs for every peer has nothing left to lose, nor has one without translation.
            (NatClass::Open | NatClass::AddressDependent | NatClass::AddressAndPortDependent, _) => Some(false),
            (_, verdict) => verdict,
        };
        shared.moved = self.moved(shared);
        if shared.poisonable != before {
            shared.events.push_back(Event::Poisonable(shared.poisonable));
        }
        shared.stray_test_failed = mapped.is_some() && !running && shared.poisonable.is_none();
        if shared.stray_test_failed {
            self.retry_at.get_or_insert(now + RETRY);
        }
    }

    pub(crate) fn poll_timeout(&self) -> Option<Instant> {
        let strays = self.strays.iter().filter_map(Stray::poll_timeout).min();
        earliest([strays, self.retry_at])
    }

    /// The relay has sent a stray.
    pub(crate) fn on_sent(&mut self, tx: TransactionId, from: SocketAddr, shared: &mut Shared, now: Instant) {
        let from = canonical(from);
        let asked = |stray: &&mut Stray| stray.tx == tx && matches!(stray.state, State::Asked { .. });
        let Some(stray) = self.strays.iter_mut().find(asked) else {
            return;
        };
        stray.state = match shared.filter.check_remote(from) {
            Ok(()) => State::Sent { from, requests: Vec::new(), due: now + HEAD_START },
            Err(refusal) => {
                shared.stats.refuse(refusal);
                State::Over { seen: None }
            }
        };
    }

    /// Takes a STUN answer: the stray itself, or what its socket saw of us. Returns whether it was one of them.
    pub(crate) fn handle_response(&mut self, from: SocketAddr, message: &stun::Message<'_>) -> bool {
        if message.class != Class::Success {
            return false;
        }
        let mapped = self.mapped;
        self.strays.iter_mut().any(|stray| stray.on_response(from, message, mapped))
    }

    /// Where packets to new destinations come from: as it was found out, and as it may be since then. What peers sent too early moves the port
    /// again, to one that new legs show and that stays for as long as they do.
    fn moved(&self, shared: &Shared) -> [Option<SocketAddr>; 2] {
        let tested = self.strays.iter().rev().filter_map(Stray::seen).find(|seen| Some(*seen) != self.mapped);
        let later = shared.seen_by_leg.filter(|seen| {
            let is_elsewhere = self.mapped.is_some_and(|mapped| *seen != mapped && seen.ip() == mapped.ip());
            is_elsewhere && tested != Some(*seen) && shared.poisonable == Some(true)
        });
        [tested, later]
    }

    /// One stray that moved our port is proof, one that did not may have been lost.
    fn verdict(&self) -> Option<bool> {
        let mut results = self.strays.iter().filter_map(Stray::seen);
        if results.clone().any(|seen| Some(seen) != self.mapped) {
            return Some(true);
        }
        let over = self.strays.iter().all(|stray| matches!(stray.state, State::Over { .. }));
        (over && results.next().is_some()).then_some(false)
    }
}

/// The mapping that is worth testing: an endpoint-independent one, while there is a relay to help.
fn subject(shared: &Shared) -> Option<SocketAddr> {
    let testable = shared.channel == ControlChannel::Open && shared.nat.v4 == NatClass::EndpointIndependent;
    let is_subject = |known: &&Candidate| {
        known.kind == CandidateKind::ServerReflexive
            && known.addr.is_ipv4()
            && !shared.moved.contains(&Some(known.addr))
    };
    let reflexive = shared.candidates.iter().find(is_subject);
    reflexive.filter(|_| testable).map(|known| known.addr)
}

impl Stray {
    fn ask(to: SocketAddr, shared: &mut Shared, now: Instant) -> Self {
        let tx = shared.nonces.transaction_id();
        let relay = shared.relays.open().next();
        if let Some(relay) = relay {
            shared.send_control(relay, ToRelay::Stray { to, tx });
        }
        Self { tx, state: State::Asked { give_up: now + RELAY } }
    }

    fn drive(&mut self, shared: &mut Shared, now: Instant) {
        if self.poll_timeout().is_none_or(|due| now < due) {
            return;
        }
        let State::Sent { from, requests, due } = &mut self.state else {
            self.state = State::Over { seen: None };
            return;
        };
        let Some(rto) = RTO.get(requests.len()) else {
            self.state = State::Over { seen: None };
            return;
        };
        let (tx, from) = (shared.nonces.transaction_id(), *from);
        requests.push(tx);
        *due = now + *rto;
        if shared.permit(from, false, now) {
            shared.stats.stun_requests += 1;
            shared.send(from, None, None, stun::encode_request(tx, stun::MEMBER_REQUEST_LEN));
        }
    }

    fn poll_timeout(&self) -> Option<Instant> {
        match &self.state {
            State::Asked { give_up } => Some(*give_up),
            State::Sent { due, .. } => Some(*due),
            State::Over { .. } => None,
        }
    }

    fn on_response(&mut self, from: SocketAddr, message: &stun::Message<'_>, mapped: Option<SocketAddr>) -> bool {
        let seen = match &self.state {
            // A NAT that lets strays in hands them on, and keeps nothing of its own.
            _ if message.tx == self.tx => mapped,
            State::Sent { from: socket, requests, .. } if *socket == from && requests.contains(&message.tx) => {
                message.mapped.map(canonical)
            }
            _ => return false,
        };
        self.state = State::Over { seen };
        true
    }

    /// Where our packets came from.
    fn seen(&self) -> Option<SocketAddr> {
        match self.state {
            State::Over { seen } => seen,
            _ => None,
        }
    }
}
