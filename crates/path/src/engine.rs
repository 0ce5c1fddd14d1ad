//! The engine: one per node, for all its peers.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use wire::pair::{KeyId, PairKeys};
use wire::{PublicKey, probe, relay, stun};

use crate::candidate::canonical;
use crate::control::Control;
use crate::event::{Event, Transmit};
use crate::gather::Gather;
use crate::input::{Config, Input, OnDemand, PeerConfig};
use crate::nat::NatReport;
use crate::peer::Peer;
use crate::shared::Shared;
use crate::snapshot::Snapshot;
use crate::stats::Stats;
use crate::stray::StrayTest;
use crate::timer::earliest;

mod relays;
mod roster;

use roster::Roster;

/// Peers of one node: ten times the largest mesh that the design is tested with.
const MAX_PEERS: usize = 10_000;

/// Places that an empty queue keeps.
const SPARE_PLACES: usize = 256;

/// Between two readings of the device's counters while packets flow: fine enough to see 300 ms of silence.
const COUNTERS_BUSY: Duration = Duration::from_millis(250);
/// The same while nothing flows: how late the start of traffic may be noticed.
const COUNTERS_IDLE: Duration = Duration::from_secs(1);

/// The path engine. See the crate's documentation for the model.
pub struct Engine {
    config: Config,
    shared: Shared,
    gather: Gather,
    stray_test: StrayTest,
    peers: Roster,
    by_key_id: BTreeMap<KeyId, PublicKey>,
    /// The last `now` seen.
    now: Instant,
    /// When something is due, so that a datagram that changes nothing costs no search.
    due: Option<Instant>,
    /// The NATs that the states shown were told by.
    nat: NatReport,
}

impl Engine {
    /// An engine that knows nothing yet.
    #[must_use]
    pub fn new(config: Config, now: Instant) -> Self {
        Self {
            shared: Shared::new(&config),
            gather: Gather::new(config.listen_port),
            stray_test: StrayTest::default(),
            config,
            peers: Roster::default(),
            by_key_id: BTreeMap::new(),
            now,
            due: None,
            nat: NatReport::default(),
        }
    }

    /// Takes in one fact.
    pub fn handle_input(&mut self, input: Input, now: Instant) {
        self.now = self.now.max(now);
        let now = self.now;
        match input {
            Input::Datagram { from, to, payload } => {
                return self.handle_datagram(from, to, &payload);
            }
            Input::HostCandidates(mut hosts) => {
                hosts.sort();
                hosts.dedup();
                let known = self.shared.hosts == hosts;
                self.shared.filter.set_hosts(&hosts);
                self.shared.hosts.clone_from(&hosts);
                self.gather.set_hosts(hosts, now);
                if !known {
                    self.local_change();
                }
            }
            Input::ExtraCandidates(extra) => self.gather.set_extra(extra, now),
            Input::StunServers(servers) => self.gather.set_servers(servers, now),
            Input::Peers { upsert, remove } => {
                for key in remove {
                    self.remove(&key);
                }
                for config in upsert {
                    self.upsert(&config);
                }
            }
            Input::Forbidden(forbidden) => {
                if self.shared.filter.set_forbidden(forbidden) {
                    self.gather.reconsider();
                    let shared = &mut self.shared;
                    self.peers.for_each(|peer| peer.verdicts_change(shared, now));
                }
            }
            Input::Sessions(sessions) => {
                for session in &sessions {
                    if let Some(peer) = self.peers.get_mut(&session.peer) {
                        peer.adopt(session, &mut self.shared, now);
                    }
                }
            }
            Input::Counters(counters) => {
                for counters in &counters {
                    if let Some(peer) = self.peers.get_mut(&counters.public_key) {
                        peer.on_counters(counters, &mut self.shared, now);
                    }
                }
            }
            Input::EchoRequest { peer } => {
                if let Some(peer) = self.peers.get_mut(&peer) {
                    peer.on_echo_request(&mut self.shared, now);
                }
            }
            Input::EchoReply { peer, token } => {
                if let Some(peer) = self.peers.get_mut(&peer) {
                    peer.on_echo_reply(token, &mut self.shared, now);
                }
            }
            Input::Relay { relay, news } => self.handle_relay(relay, news),
            Input::Carrier(port) => {
                if self.shared.carriage.set_port(port) {
                    let shared = &mut self.shared;
                    self.peers.for_each(|peer| peer.carrier_changed(shared, now));
                }
            }
            Input::RelaysUnknown(unknown) => self.set_relays_unknown(unknown),
            Input::OnDemand(on_demand) => self.set_on_demand(on_demand),
            Input::Called { peer } => {
                if let Some(peer) = self.peers.get_mut(&peer) {
                    peer.on_called(&mut self.shared, now);
                }
            }
            Input::NetworkChanged => {
                self.shared.candidates.clear();
                self.gather.restart(now);
                self.local_change();
            }
        }
        self.turn();
    }

    /// Does what is due.
    pub fn handle_timeout(&mut self, now: Instant) {
        self.now = self.now.max(now);
        if self.due.is_some_and(|due| due <= self.now) {
            self.turn();
        }
    }

    /// The next datagram to send.
    pub fn poll_transmit(&mut self) -> Option<Transmit> {
        let transmit = pop(&mut self.shared.transmits);
        self.shared.departed += u64::from(transmit.is_some());
        transmit
    }

    /// The next message for a relay. It goes out after what [`Self::poll_transmit`] has: a peer that is told
    /// of packets must not answer before they have opened the way.
    pub fn poll_control(&mut self) -> Option<Control> {
        let waiting = pop(&mut self.shared.controls);
        waiting.or_else(|| self.shared.relays.next_unsaid().map(|(relay, message)| Control { relay, message }))
    }

    /// The next thing for the shell to do.
    pub fn poll_event(&mut self) -> Option<Event> {
        pop(&mut self.shared.events)
    }

    /// When [`Self::handle_timeout`] wants to be called, and what for. While output is queued that is at once.
    #[must_use]
    pub fn poll_timeout(&self) -> Option<(Instant, &'static str)> {
        let Shared { transmits, events, controls, relays, .. } = &self.shared;
        if !transmits.is_empty() || !events.is_empty() || !controls.is_empty() || relays.has_unsaid() {
            return Some((self.now, "output is queued"));
        }
        self.due.map(|due| (due, "a timer of the path engine"))
    }

    /// How long the shell may wait before it reads the device's counters again.
    #[must_use]
    pub fn counters_interval(&self) -> Duration {
        if self.peers.is_busy(self.now) { COUNTERS_BUSY } else { COUNTERS_IDLE }
    }

    /// Endpoint and keepalive that the device was told last for a peer: what it needs again after it has lost the peer.
    #[must_use]
    pub fn endpoint_of(&self, peer: &PublicKey) -> Option<(SocketAddr, Option<Duration>)> {
        self.peers.get(peer)?.endpoint()
    }

    /// Everything there is to show.
    #[must_use]
    pub fn snapshot(&self) -> Snapshot {
        Snapshot {
            nat: self.shared.nat,
            poisonable: self.poisonable(),
            peers: self.peers.iter().map(|peer| (peer.key, peer.report(&self.shared, self.now))).collect(),
        }
    }

    /// Whether a stranger's packet moves this node's port towards him, if that was found out.
    #[must_use]
    pub fn poisonable(&self) -> Option<bool> {
        self.shared.poisonable
    }

    /// What was counted.
    #[must_use]
    pub fn stats(&self) -> &Stats {
        &self.shared.stats
    }

    /// This node's public key.
    #[must_use]
    pub fn public_key(&self) -> PublicKey {
        self.shared.own_key
    }

    /// Runs every timer that is due, shows what changed, and finds the next one. Only peers that something happened to or
    /// that are due are looked at.
    fn turn(&mut self) {
        let now = self.now;
        let warm = self.peers.holds_mapping();
        let mut changed = self.gather.handle_timeout(&mut self.shared, warm, now);
        let moved = self.shared.moved;
        self.stray_test.handle_timeout(&mut self.shared, now);
        if self.shared.moved != moved {
            self.gather.reconsider();
            changed |= self.gather.handle_timeout(&mut self.shared, warm, now);
        }
        if changed {
            self.local_change();
        }
        if std::mem::replace(&mut self.nat, self.shared.nat) != self.shared.nat {
            // The reason why a peer is not reached may be another one.
            self.peers.touch_all();
        }
        for key in self.peers.due(now) {
            let shared = &mut self.shared;
            shared.stats.looks += 1;
            self.peers.look(&key, now, |peer| {
                peer.handle_timeout(shared, now);
                peer.show(shared, now);
                peer.put_away();
            });
        }
        if std::mem::take(&mut self.shared.doubts_mapping) {
            self.gather.verify(now);
            self.gather.handle_timeout(&mut self.shared, warm, now);
        }
        self.due = earliest([self.peers.poll_timeout(), self.gather.poll_timeout(), self.stray_test.poll_timeout()]);
    }

    fn local_change(&mut self) {
        let (shared, now) = (&mut self.shared, self.now);
        self.peers.for_each(|peer| {
            peer.local_change(shared, now);
            true
        });
    }

    fn set_on_demand(&mut self, on_demand: Option<OnDemand>) {
        let before = std::mem::replace(&mut self.shared.on_demand, on_demand);
        if before == on_demand {
            return;
        }
        let port = |on_demand: Option<OnDemand>| on_demand.map(|on_demand| on_demand.port);
        if port(before) != port(on_demand) {
            let (shared, now) = (&mut self.shared, self.now);
            self.peers.for_each(|peer| peer.leave_bell(port(before), shared, now));
        }
        self.peers.touch_all();
    }

    fn upsert(&mut self, config: &PeerConfig) {
        let key = config.public_key;
        if !self.peers.contains(&key) {
            let keys = PairKeys::derive(&self.config.private_key, &key, &self.config.mesh_id, self.config.psk.as_ref());
            let (Ok(keys), true) = (keys, self.peers.len() < MAX_PEERS) else {
                self.shared.stats.refused_peers += 1;
                return;
            };
            self.by_key_id.insert(keys.receive_id(), key);
            let peer = Peer::new(key, keys, &mut self.shared);
            self.peers.insert(peer);
            self.shared.relays.meet(key, true);
        }
        if let Some(peer) = self.peers.get_mut(&key) {
            peer.configure(config, &mut self.shared, self.now);
        }
    }

    fn remove(&mut self, key: &PublicKey) {
        if let Some(mut peer) = self.peers.remove(key) {
            self.by_key_id.remove(&peer.receive_id());
            peer.release_legs(&mut self.shared);
            peer.give_bell_back(self.shared.on_demand.map(|on_demand| on_demand.port), &mut self.shared);
            self.shared.relays.meet(*key, false);
        }
    }

    /// Sorts out a datagram by the cheapest test first. Junk costs no search, no cryptography and no memory.
    fn handle_datagram(&mut self, from: SocketAddr, to: Option<IpAddr>, payload: &[u8]) {
        let from = canonical(from);
        let now = self.now;
        if let Some(key_id) = probe::key_id(payload) {
            let Some(peer) = self.by_key_id.get(&key_id).and_then(|key| self.peers.get_mut(key)) else {
                self.shared.stats.dropped_unknown_key += 1;
                return;
            };
            // What seems to come out of the mesh, or from this node itself, was misrouted or forged.
            if let Err(refusal) = self.shared.filter.check_remote(from) {
                self.shared.stats.refuse(refusal);
                return;
            }
            if peer.handle_datagram(from, to, payload, &mut self.shared, now) {
                self.turn();
            }
            return;
        }
        if relay::is_relay(payload) {
            return self.handle_relay_message(from, payload);
        }
        let answered = stun::decode(payload).is_ok_and(|message| {
            self.gather.handle_response(from, &message, &mut self.shared, now)
                || self.stray_test.handle_response(from, &message)
        });
        if answered {
            self.turn();
        } else {
            self.shared.stats.dropped_junk += 1;
        }
    }
}

/// Takes the first; a queue that a start of thousands of peers has made long gives its memory back when it is empty.
fn pop<T>(queue: &mut VecDeque<T>) -> Option<T> {
    let first = queue.pop_front();
    if queue.is_empty() && queue.capacity() > SPARE_PLACES {
        queue.shrink_to(SPARE_PLACES);
    }
    first
}

impl fmt::Debug for Engine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Engine")
            .field("public_key", &self.public_key())
            .field("peers", &self.peers.iter().map(|peer| peer.key).collect::<BTreeSet<_>>())
            .finish_non_exhaustive()
    }
}
