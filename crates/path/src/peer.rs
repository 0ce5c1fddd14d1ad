//! Everything about one peer: its pairs, the ladder that probes them, the path in use and its health.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use litemap::LiteMap;
use wire::PublicKey;
use wire::pair::PairKeys;

use crate::candidate::{Candidate, CandidateKind, Tier};
use crate::event::Event;
use crate::filter::{Filter, Refusal};
use crate::gather::MAX_CANDIDATES;
use crate::input::PeerConfig;
use crate::pair::Pair;
use crate::relay::RelayId;
use crate::seldom::Seldom;
use crate::shared::Shared;

mod check;
mod counters;
mod hold;
mod ladder;
mod leg;
mod nominate;
mod probing;
mod punch;
mod relay_path;
mod relayed;
mod report;
mod rest;
mod signals;
mod trial;

use check::Check;
use counters::Traffic;
use hold::Hold;
use ladder::Ladder;
use nominate::Nomination;
use probing::Requests;
use punch::Punch;
use relayed::Relayed;
use rest::Rest;
use trial::Trial;

/// Sources of authentic PINGs kept beyond the published candidates: a NAT that rebinds twice and a second uplink.
const MAX_PEER_REFLEXIVE: usize = 4;

/// Candidates looked at of what a peer publishes: the API's own limit, and room for what the filter refuses.
const MAX_OFFERED: usize = 4 * MAX_CANDIDATES;

/// What keeps the shortest common NAT and firewall timeout (30 s) from passing.
pub(crate) const KEEPALIVE: Duration = Duration::from_secs(25);

/// The confirmed path.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Direct {
    pub(crate) remote: SocketAddr,
    /// Since when the peer is direct, over whichever path.
    since: Instant,
}

/// What few peers have at a time is boxed: a large mesh has thousands of peers, most of them at rest.
pub(crate) struct Peer {
    pub(crate) key: PublicKey,
    keys: PairKeys,
    /// Whether this node chooses the path: the side with the smaller public key.
    nominates: bool,
    /// Whether the directory wants a path ..
    asked: bool,
    /// .. and there is to be one now: of a pair that sleeps there is none.
    wanted: bool,
    /// Whether the device's counters were read before: the first numbers are no traffic.
    counted: bool,
    /// How many milliseconds later than others it is checked when it is idle.
    idle_spread: u16,
    round: u32,
    /// The published candidates as they came, so that a changed filter can be asked again.
    offered: Vec<Candidate>,
    /// Those that came by signal, which are fresher.
    signalled: Vec<Candidate>,
    pairs: LiteMap<SocketAddr, Pair>,
    requests: Requests,
    /// The relays where this node and the peer have met, so that they pass signals.
    met: BTreeSet<RelayId>,
    ladder: Ladder,
    punch: Seldom<Punch>,
    nomination: Seldom<Nomination>,
    trial: Option<Box<Trial>>,
    check: Option<Box<Check>>,
    direct: Option<Direct>,
    relayed: Seldom<Relayed>,
    rest: Seldom<Rest>,
    /// The path that died last, worth trying before all others.
    lost: Option<Box<Lost>>,
    /// What WireGuard was told.
    endpoint: Option<(SocketAddr, Option<Duration>)>,
    traffic: Seldom<Traffic>,
    hold: Option<Box<Hold>>,
    shown: Option<report::Shown>,
}

/// A confirmed path that died.
#[derive(Debug, Clone, Copy)]
struct Lost {
    remote: SocketAddr,
    at: Instant,
    probe_at: Instant,
}

impl Peer {
    pub(crate) fn new(key: PublicKey, keys: PairKeys, shared: &mut Shared) -> Self {
        Self {
            key,
            keys,
            nominates: shared.own_key < key,
            asked: false,
            wanted: false,
            counted: false,
            idle_spread: counters::idle_spread(shared.nonces.token()),
            round: 0,
            offered: Vec::new(),
            signalled: Vec::new(),
            pairs: LiteMap::new(),
            requests: Requests::default(),
            met: BTreeSet::new(),
            ladder: Ladder::idle(),
            punch: Seldom::made(),
            nomination: Seldom::made(),
            trial: None,
            check: None,
            direct: None,
            relayed: Seldom::made(),
            rest: Seldom::made(),
            lost: None,
            endpoint: None,
            traffic: Seldom::made(),
            hold: None,
            shown: None,
        }
    }

    /// Gives room back that only a pair in use needs, if this one is none.
    pub(crate) fn put_away(&mut self) {
        self.punch.put_away();
        self.nomination.put_away();
        self.relayed.put_away();
        self.rest.put_away();
        self.traffic.put_away();
    }

    pub(crate) fn receive_id(&self) -> wire::pair::KeyId {
        self.keys.receive_id()
    }

    /// What WireGuard was told.
    pub(crate) fn endpoint(&self) -> Option<(SocketAddr, Option<Duration>)> {
        self.endpoint
    }

    /// Takes in what the directory says.
    pub(crate) fn configure(&mut self, config: &PeerConfig, shared: &mut Shared, now: Instant) {
        let offered = &config.candidates[..config.candidates.len().min(MAX_OFFERED)];
        for _ in offered.len()..config.candidates.len() {
            shared.stats.refuse(Refusal::OverCap);
        }
        let changed = self.offered != offered || self.round != config.round;
        let wanted_now = config.wanted && !self.asked;
        self.set_asked(config.wanted, shared, now);
        if self.round != config.round {
            self.signalled.clear();
        }
        self.round = config.round;
        if changed {
            self.offered = offered.to_vec();
            self.rebuild_pairs(shared, now);
        }
        if changed || wanted_now {
            self.start_over(shared, now);
            self.start_check(shared, now);
        }
        self.refresh_keepalive(shared, now);
    }

    /// Whatever was learned of paths may be wrong now: this node's network or addresses changed.
    pub(crate) fn local_change(&mut self, shared: &mut Shared, now: Instant) {
        // What was said before is no longer so.
        self.punch.rest();
        self.rebuild_pairs(shared, now);
        self.rebind_legs(now);
        self.start_over(shared, now);
        self.start_check(shared, now);
        self.refresh_keepalive(shared, now);
    }

    /// Other addresses are forbidden now. A pod that starts or a node that joins changes that list and hardly ever a pair;
    /// only a peer that won or lost one is probed again, and nothing that was learned of the others is forgotten. Returns
    /// whether this is one.
    pub(crate) fn verdicts_change(&mut self, shared: &mut Shared, now: Instant) -> bool {
        let is_forbidden = |remote: &SocketAddr| self.is_forbidden(*remote, shared);
        let endpoint = self.endpoint.map(|(remote, _)| remote);
        let lost = self.pairs.keys().chain(&endpoint).any(is_forbidden);
        let (accepted, _) = accept(self.claimed(), &shared.filter);
        let won = accepted.iter().any(|known| !self.pairs.contains_key(&known.addr));
        if !lost && !won {
            return false;
        }
        self.rebuild_pairs(shared, now);
        self.begin(shared, now);
        self.start_check(shared, now);
        true
    }

    fn start_over(&mut self, shared: &mut Shared, now: Instant) {
        for (_, pair) in self.pairs.iter_mut() {
            pair.forgive();
        }
        self.nomination.start_over();
        self.begin(shared, now);
    }

    /// Where the peer says it can be reached, the fresher word first.
    fn claimed(&self) -> impl Iterator<Item = &Candidate> {
        self.signalled.iter().chain(&self.offered)
    }

    /// Makes the table of pairs fit the candidates, keeping what is proven, in use, or learned from the peer's probes.
    fn rebuild_pairs(&mut self, shared: &mut Shared, now: Instant) {
        let (accepted, refused) = accept(self.claimed(), &shared.filter);
        refused.into_iter().for_each(|refusal| shared.stats.refuse(refusal));
        let in_use = [
            self.direct.map(|direct| direct.remote),
            self.trial.as_ref().map(|trial| trial.remote),
            self.lost.as_ref().map(|lost| lost.remote),
        ];
        self.pairs.retain(|remote, pair| {
            shared.filter.check_remote(*remote).is_ok()
                && (pair.kind == CandidateKind::PeerReflexive
                    || in_use.contains(&Some(*remote))
                    || accepted.iter().any(|known| known.addr == *remote))
        });
        for candidate in accepted {
            self.pairs.entry(candidate.addr).or_insert_with(|| Pair::new(candidate.kind, Tier::Ipv4, now)).kind =
                candidate.kind;
        }
        for (remote, pair) in &mut self.pairs {
            pair.tier = Tier::of(remote.ip(), &shared.hosts);
        }
        if !self.pairs.is_empty() {
            self.ladder.resume(now);
        }
        self.leave_forbidden(shared);
    }

    /// Gives up whatever is in use and has become forbidden.
    fn leave_forbidden(&mut self, shared: &mut Shared) {
        self.leave_forbidden_relays(shared);
        let gone = |remote: SocketAddr| !self.pairs.contains_key(&remote);
        self.direct = self.direct.filter(|direct| !gone(direct.remote));
        self.lost = self.lost.take().filter(|lost| !gone(lost.remote));
        if self.trial.as_ref().is_some_and(|trial| gone(trial.remote)) {
            self.trial = None;
        }
        let endpoint = self.endpoint.map(|(remote, _)| remote);
        if endpoint.is_some_and(|remote| self.is_forbidden(remote, shared)) {
            self.endpoint = None;
            let peer = self.key;
            shared.events.push_back(Event::ClearEndpoint { peer });
        }
    }

    /// Whether WireGuard must not send there. What stands for a relay's channel, or for a peer that sleeps, is the one use of loopback.
    fn is_forbidden(&self, remote: SocketAddr, shared: &Shared) -> bool {
        !self.relayed.is_carried_at(remote)
            && !self.is_bell(remote, shared)
            && shared.filter.check_remote(remote).is_err()
    }

    /// Makes a pair of an address that the peer was seen at, if there is room.
    fn learn(&mut self, remote: SocketAddr, shared: &mut Shared, now: Instant) -> bool {
        if self.pairs.contains_key(&remote) {
            return true;
        }
        if let Err(refusal) = shared.filter.check_remote(remote) {
            shared.stats.refuse(refusal);
            return false;
        }
        let learned = |pair: &Pair| pair.kind == CandidateKind::PeerReflexive;
        if self.pairs.values().filter(|pair| learned(pair)).count() >= MAX_PEER_REFLEXIVE {
            let used = self.direct.map(|direct| direct.remote);
            let tried = self.trial.as_ref().map(|trial| trial.remote);
            let oldest = self
                .pairs
                .iter()
                .filter(|(addr, pair)| {
                    learned(pair) && !pair.is_proven(now) && Some(**addr) != used && Some(**addr) != tried
                })
                .min_by_key(|(_, pair)| pair.born)
                .map(|(addr, _)| *addr);
            let Some(oldest) = oldest else {
                shared.stats.refuse(Refusal::OverCap);
                return false;
            };
            self.pairs.remove(&oldest);
        }
        let tier = Tier::of(remote.ip(), &shared.hosts);
        self.pairs.insert(remote, Pair::new(CandidateKind::PeerReflexive, tier, now));
        self.ladder.resume(now);
        true
    }

    /// Points WireGuard at an address.
    fn set_endpoint(&mut self, remote: SocketAddr, shared: &mut Shared, now: Instant) {
        let wanted = (remote, self.keepalive().filter(|_| !self.is_bell(remote, shared)));
        if self.endpoint == Some(wanted) {
            return;
        }
        if self.endpoint.is_none_or(|(old, _)| old != remote) {
            self.traffic.endpoint_set(now);
            self.hold = None;
        }
        self.endpoint = Some(wanted);
        shared.events.push_back(Event::SetEndpoint { peer: self.key, endpoint: remote, keepalive: wanted.1 });
    }

    fn refresh_keepalive(&mut self, shared: &mut Shared, now: Instant) {
        if let Some((remote, _)) = self.endpoint {
            self.set_endpoint(remote, shared, now);
        }
    }

    /// A keepalive on every pair that is to stay. The absence of a NAT is visible from outside, that of a stateful firewall is
    /// not, and an idle session through one dies without.
    fn keepalive(&self) -> Option<Duration> {
        // One that is switched on is sent at once, and without a session that is an initiation: the other side's is on its way.
        let waits = self.trial.as_ref().is_some_and(|trial| trial.awaits_handshake());
        (self.is_kept() && !waits).then_some(KEEPALIVE)
    }

    /// Whether this node's NAT mapping is held open by traffic to the peer.
    pub(crate) fn holds_mapping(&self) -> bool {
        let used = self.direct.map(|direct| direct.remote).or(self.relayed.confirmed_endpoint());
        self.wanted && used.is_some_and(|remote| remote.is_ipv4() && !remote.ip().is_loopback())
    }
}

/// The candidates of a peer that may be dialled, and why the others may not.
fn accept<'a>(offered: impl Iterator<Item = &'a Candidate>, filter: &Filter) -> (Vec<Candidate>, Vec<Refusal>) {
    let mut accepted: Vec<Candidate> = Vec::new();
    let mut refused = Vec::new();
    for candidate in offered {
        let candidate = Candidate::new(candidate.kind, candidate.addr);
        if let Err(refusal) = filter.check_remote(candidate.addr) {
            refused.push(refusal);
        } else if accepted.iter().any(|known| known.addr == candidate.addr) {
            // Said twice.
        } else if accepted.len() >= MAX_CANDIDATES {
            refused.push(Refusal::OverCap);
        } else {
            accepted.push(candidate);
        }
    }
    (accepted, refused)
}
