//! What all peers of one engine share: the filter, the budget, the outgoing queues.

use std::collections::{BTreeMap, VecDeque};
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use ipnet::IpNet;
use wire::PublicKey;
use wire::control::ToRelay;
use wire::relay::AllocationId;

use crate::budget::Budget;
use crate::candidate::Candidate;
use crate::carriage::Carriage;
use crate::control::Control;
use crate::event::{Event, Transmit};
use crate::filter::Filter;
use crate::input::{Config, OnDemand};
use crate::nat::{NatClass, NatReport};
use crate::nonces::Nonces;
use crate::relay::{ControlChannel, RelayId, Relays};
use crate::stats::Stats;

/// Datagrams waiting for the shell: two rungs of the ladder for a thousand peers. What is beyond would be stale when sent.
const MAX_TRANSMITS: usize = 16_384;
/// Messages waiting for the control channel: a few for each of a thousand peers.
const MAX_CONTROLS: usize = 4096;
/// Between two pings of a relay that packets go by, or would.
const PING_GAP: Duration = Duration::from_secs(1);

pub(crate) struct Shared {
    /// This node's public key.
    pub(crate) own_key: PublicKey,
    /// Whether the device starts a handshake whenever it is told to.
    pub(crate) repeats_handshakes: bool,
    pub(crate) filter: Filter,
    pub(crate) hosts: Vec<IpNet>,
    pub(crate) nat: NatReport,
    /// What this node published last.
    pub(crate) candidates: Vec<Candidate>,
    pub(crate) relays: Relays,
    /// Whose legs relay messages belong to: two a peer.
    pub(crate) legs: BTreeMap<(SocketAddr, AllocationId), PublicKey>,
    pub(crate) carriage: Carriage,
    /// Whether peers may sleep.
    pub(crate) on_demand: Option<OnDemand>,
    /// The best that any relay offers.
    pub(crate) channel: ControlChannel,
    /// Whether a stranger's packet moves this node's port, as far as it is known.
    pub(crate) poisonable: Option<bool>,
    /// Where the packets to new destinations come from since strays moved this node's port: as their test found out, and as a leg showed.
    pub(crate) moved: [Option<SocketAddr>; 2],
    /// Where else a relay saw a leg, which was a new destination when it was bound.
    pub(crate) seen_by_leg: Option<SocketAddr>,
    /// Whether that was tested in vain.
    pub(crate) stray_test_failed: bool,
    pub(crate) nonces: Nonces,
    pub(crate) transmits: VecDeque<Transmit>,
    /// How many of those the shell has taken so far.
    pub(crate) departed: u64,
    pub(crate) controls: VecDeque<Control>,
    pub(crate) events: VecDeque<Event>,
    pub(crate) stats: Stats,
    /// Set when a path falls silent: this node's own mapping may have changed, and only an observer can tell.
    pub(crate) doubts_mapping: bool,
    budget: Budget,
}

impl Shared {
    pub(crate) fn new(config: &Config) -> Self {
        Self {
            own_key: config.private_key.public_key(),
            repeats_handshakes: config.repeats_handshakes,
            filter: Filter::default(),
            hosts: Vec::new(),
            nat: NatReport::default(),
            candidates: Vec::new(),
            relays: Relays::default(),
            legs: BTreeMap::new(),
            carriage: Carriage::default(),
            on_demand: None,
            channel: ControlChannel::default(),
            poisonable: None,
            moved: [None; 2],
            seen_by_leg: None,
            stray_test_failed: false,
            nonces: Nonces::new(config.seed),
            transmits: VecDeque::new(),
            departed: 0,
            controls: VecDeque::new(),
            events: VecDeque::new(),
            stats: Stats::default(),
            doubts_mapping: false,
            budget: Budget::new(),
        }
    }

    /// Whether a packet may go to `remote` now. Counts it against the address if so, and the refusal if not.
    pub(crate) fn permit(&mut self, remote: SocketAddr, proven: bool, now: Instant) -> bool {
        if let Err(refusal) = self.filter.check_remote(remote) {
            self.stats.refuse(refusal);
            return false;
        }
        if self.transmits.len() >= MAX_TRANSMITS {
            self.stats.dropped_queue += 1;
            return false;
        }
        if !self.budget.take(remote, proven, now) {
            self.stats.dropped_budget += 1;
            return false;
        }
        true
    }

    /// Queues a datagram that [`Self::permit`] has let through.
    pub(crate) fn send(&mut self, remote: SocketAddr, local: Option<IpAddr>, ttl: Option<u8>, payload: Vec<u8>) {
        self.transmits.push_back(Transmit { remote, local, ttl, payload });
    }

    /// Queues a message for a relay.
    pub(crate) fn send_control(&mut self, relay: RelayId, message: ToRelay) {
        if self.controls.len() < MAX_CONTROLS {
            self.controls.push_back(Control { relay, message });
        } else {
            self.stats.dropped_queue += 1;
        }
    }

    /// Says something over a relay's channel, unless that was just done. A process that has taken another's place resets at once a
    /// channel that it knows nothing of, so who only answers, or only waits, hears of it within a second and not within five.
    pub(crate) fn ping_relay(&mut self, relay: RelayId, now: Instant) {
        if !self.relays.is_open(&relay) {
            return;
        }
        let Some(known) = self.relays.entry(relay) else { return };
        if known.pinged.is_none_or(|at| now.saturating_duration_since(at) >= PING_GAP) {
            known.pinged = Some(now);
            self.send_control(relay, ToRelay::Ping);
        }
    }

    /// Asks a relay for a sign of life over its channel.
    pub(crate) fn ask_relay(&mut self, relay: RelayId, now: Instant) {
        if let Some(known) = self.relays.entry(relay) {
            known.asked.get_or_insert(now);
            self.send_control(relay, ToRelay::Ping);
        }
    }

    /// The n-th of a relay's sockets at this port that this node may and can send to, counted round.
    pub(crate) fn relay_socket(&self, relay: &RelayId, port: u16, nth: usize) -> Option<SocketAddr> {
        let has_family =
            |ip: &IpAddr| self.hosts.is_empty() || self.hosts.iter().any(|host| host.addr().is_ipv4() == ip.is_ipv4());
        let addresses = &self.relays.get(relay)?.addresses;
        let sockets = addresses.iter().filter(|ip| has_family(ip)).map(|ip| SocketAddr::new(*ip, port));
        let usable: Vec<SocketAddr> = sockets.filter(|socket| self.filter.check_remote(*socket).is_ok()).collect();
        usable.get(nth.checked_rem(usable.len())?).copied()
    }

    /// Whether packets can go inside this relay's channel.
    pub(crate) fn can_carry(&self, relay: &RelayId) -> bool {
        self.carriage.is_open() && self.relays.is_open(relay)
    }

    /// A relay has seen packets of a leg come from there. What peers are told anyway is no news: a connection that a box has kept from before
    /// shows it too.
    pub(crate) fn on_leg_seen(&mut self, from: SocketAddr) {
        if from.is_ipv4() && self.candidates.iter().all(|known| known.addr != from) {
            self.seen_by_leg = Some(from);
        }
    }

    /// Whether there is something to tell peers about this node's NAT, and nothing more to be found out soon.
    pub(crate) fn knows_own_nat(&self) -> bool {
        let tested = self.poisonable.is_some() || self.stray_test_failed;
        !self.candidates.is_empty() && (tested || self.nat.v4 != NatClass::EndpointIndependent)
    }

    /// What peers are told. Whoever does not know is treated as if: a needless low TTL costs nothing.
    pub(crate) fn is_poisonable(&self) -> bool {
        self.poisonable.unwrap_or(true)
    }
}
