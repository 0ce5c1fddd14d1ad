//! Candidates of this node: its interfaces' addresses and what STUN servers see of its port.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use ipnet::IpNet;
use wire::stun::{self, Class};

use crate::candidate::{Candidate, CandidateKind, canonical};
use crate::event::Event;
use crate::nat::{NatClass, NatReport, Observation, classify};
use crate::shared::Shared;
use crate::timer::earliest;

mod server;

use server::Server;

/// Candidates that a node publishes and that are kept of a peer.
pub(crate) const MAX_CANDIDATES: usize = 16;
/// Observers asked. Two tell the class, the others stand in for those that are down.
const MAX_SERVERS: usize = 8;
/// How long publishing waits for slow observers: two transmissions, then peers should know at least the rest.
const SETTLE: Duration = Duration::from_millis(400);
/// Between full rounds, to notice a changed mapping without anybody calling.
const REFRESH: Duration = Duration::from_secs(180);
/// The next round when no observer answered: soon enough that a network that opens up is used within a minute or so.
const RETRY: Duration = Duration::from_secs(60);
/// Between two rounds that silent paths set off: many peers may fall silent at once.
const VERIFY_GAP: Duration = Duration::from_secs(5);
/// One packet to one observer while no peer's keepalive holds the mapping: below the 30 s of short-lived NATs.
const WARM: Duration = Duration::from_secs(25);

#[derive(Debug)]
pub(crate) struct Gather {
    listen_port: u16,
    hosts: Vec<IpNet>,
    extra: Vec<Candidate>,
    servers: Vec<Server>,
    /// When to publish although observers have not answered.
    settle_at: Option<Instant>,
    refresh_at: Option<Instant>,
    warm_at: Option<Instant>,
    verified_at: Option<Instant>,
    published: Option<(Vec<Candidate>, NatReport)>,
    /// Whether anything happened since that may make it differ.
    dirty: bool,
}

impl Gather {
    pub(crate) fn new(listen_port: u16) -> Self {
        Self {
            listen_port,
            hosts: Vec::new(),
            extra: Vec::new(),
            servers: Vec::new(),
            settle_at: None,
            refresh_at: None,
            warm_at: None,
            verified_at: None,
            published: None,
            dirty: true,
        }
    }

    /// The filter is another one, so other addresses may be told.
    pub(crate) fn reconsider(&mut self) {
        self.dirty = true;
    }

    pub(crate) fn set_hosts(&mut self, hosts: Vec<IpNet>, now: Instant) {
        if self.hosts != hosts || self.published.is_none() {
            self.hosts = hosts;
            self.restart(now);
        }
    }

    pub(crate) fn set_extra(&mut self, extra: Vec<Candidate>, now: Instant) {
        self.extra = extra;
        self.extra.truncate(MAX_CANDIDATES);
        self.dirty = true;
        self.settle_at.get_or_insert(now);
    }

    pub(crate) fn set_servers(&mut self, servers: Vec<SocketAddr>, now: Instant) {
        let wanted: BTreeSet<SocketAddr> = servers.into_iter().map(canonical).take(MAX_SERVERS).collect();
        self.servers.retain(|server| wanted.contains(&server.addr) || server.mapped.is_some());
        for server in self.servers.iter_mut().filter(|server| !wanted.contains(&server.addr)) {
            server.retire();
        }
        for addr in wanted {
            match self.servers.iter_mut().find(|server| server.addr == addr) {
                Some(known) => known.recall(now),
                None => self.servers.push(Server::new(addr, now)),
            }
        }
        self.servers.sort_by_key(|server| server.addr);
        self.dirty = true;
        self.settle_at.get_or_insert(now + SETTLE);
    }

    /// Asks everybody again, keeping what was seen until they answer.
    pub(crate) fn verify(&mut self, now: Instant) {
        let recent = self.verified_at.is_some_and(|at| now.saturating_duration_since(at) < VERIFY_GAP);
        if recent {
            return;
        }
        self.verified_at = Some(now);
        for server in &mut self.servers {
            server.ask_again(now);
        }
    }

    /// Asks everybody again and forgets what was seen: the network is another one.
    pub(crate) fn restart(&mut self, now: Instant) {
        self.servers.retain(|server| !server.retired);
        for server in &mut self.servers {
            *server = Server::new(server.addr, now);
        }
        self.settle_at = Some(now + SETTLE);
        self.refresh_at = None;
        self.dirty = true;
    }

    /// Takes a STUN answer. Returns whether it belonged to a request of ours.
    pub(crate) fn handle_response(
        &mut self,
        from: SocketAddr,
        message: &stun::Message<'_>,
        shared: &mut Shared,
        now: Instant,
    ) -> bool {
        let from = canonical(from);
        let Some(server) = self.servers.iter_mut().find(|server| server.addr == from && server.has_asked(message.tx))
        else {
            return false;
        };
        // RFC 8489, section 6.3.3: an answer with something that must be understood and is not is no answer.
        let believed = message.class == Class::Success && message.unknown_required.is_none();
        let Some(mapped) = message.mapped.filter(|_| believed) else {
            return true;
        };
        let mapped = canonical(mapped);
        if let Err(refusal) = shared.filter.check_published(mapped) {
            shared.stats.refuse(refusal);
            return true;
        }
        shared.stats.stun_responses += 1;
        self.dirty = true;
        let changed = server.answered(mapped);
        self.servers.retain(|server| !(server.retired && server.addr.is_ipv4() == from.is_ipv4()));
        if changed {
            // One observer's news is not yet a change of class: hear the others before telling anybody.
            for server in self.servers.iter_mut().filter(|server| server.addr != from) {
                server.doubt(now);
            }
        }
        true
    }

    /// Sends what is due and publishes what is settled. Returns whether that replaced something published before: then
    /// paths may have changed with it.
    pub(crate) fn handle_timeout(&mut self, shared: &mut Shared, warm: bool, now: Instant) -> bool {
        self.keep_fresh(warm, now);
        for server in &mut self.servers {
            self.dirty |= server.handle_timeout(shared, now);
        }
        if self.servers.iter().any(Server::is_running) {
            if self.settle_at.is_none_or(|at| now < at) {
                return false;
            }
        } else {
            self.refresh_at.get_or_insert_with(|| {
                let answered = self.servers.iter().any(Server::is_answering);
                now + if answered { REFRESH } else { RETRY }
            });
            // Without any observer the list may still be on its way to this node.
            if self.servers.is_empty() && self.settle_at.is_some_and(|at| now < at) {
                return false;
            }
        }
        self.settle_at = None;
        std::mem::take(&mut self.dirty) && self.publish(shared)
    }

    fn keep_fresh(&mut self, warm: bool, now: Instant) {
        if self.refresh_at.is_some_and(|at| at <= now) {
            self.refresh_at = None;
            for server in &mut self.servers {
                server.ask_again(now);
            }
        }
        let translated = self
            .servers
            .iter_mut()
            .filter(|server| server.mapped.is_some_and(|mapped| mapped.is_ipv4()))
            .find(|server| !server.is_running() && !server.retired);
        let Some(server) = translated.filter(|_| !warm) else {
            self.warm_at = None;
            return;
        };
        let due = *self.warm_at.get_or_insert(now + WARM);
        if due <= now {
            server.ask_again(now);
            self.warm_at = Some(now + WARM);
        }
    }

    pub(crate) fn poll_timeout(&self) -> Option<Instant> {
        let servers = self.servers.iter().filter_map(Server::poll_timeout).min();
        earliest([servers, self.settle_at, self.refresh_at, self.warm_at])
    }

    fn publish(&mut self, shared: &mut Shared) -> bool {
        if self.hosts.is_empty() && self.servers.iter().all(|server| server.mapped.is_none()) {
            return false;
        }
        let report = self.report(shared.moved);
        shared.nat = report;
        let candidates = self.candidates(report, shared);
        shared.candidates.clone_from(&candidates);
        let news = (candidates, report);
        if self.published.as_ref() == Some(&news) {
            return false;
        }
        let (candidates, report) = news.clone();
        shared.events.push_back(Event::LocalCandidates(candidates, report));
        self.published.replace(news).is_some()
    }

    /// What the NATs are. An observer who sees the port that strays moved this node to is no sign of a port for each destination.
    fn report(&self, moved: [Option<SocketAddr>; 2]) -> NatReport {
        let own = self.host_sockets();
        let seen = || self.servers.iter().filter_map(|server| server.mapped);
        let is_moved = |mapped: SocketAddr| moved.contains(&Some(mapped));
        let has_moved = |mapped: SocketAddr| moved.iter().flatten().any(|to| to.ip() == mapped.ip());
        let tested = seen().find(|mapped| !is_moved(*mapped) && has_moved(*mapped));
        let before = |mapped: SocketAddr| tested.filter(|_| is_moved(mapped)).unwrap_or(mapped);
        let class = |v4: bool| {
            let observations: Vec<Observation> = self
                .servers
                .iter()
                .filter(|server| server.addr.is_ipv4() == v4)
                .filter(|server| server.mapped.is_some() || !server.is_running())
                .map(|server| (server.addr, server.mapped.map(before)))
                .collect();
            classify(&observations, &own)
        };
        let has = |v4: bool| self.hosts.iter().any(|host| host.addr().is_ipv4() == v4);
        NatReport {
            v4: if has(true) { class(true) } else { NatClass::Unknown },
            v6: if has(false) { class(false) } else { NatClass::Unknown },
        }
    }

    fn candidates(&self, report: NatReport, shared: &mut Shared) -> Vec<Candidate> {
        let extra = self.extra.iter().copied();
        let reflexive = self.reflexive(report, shared.moved).into_iter();
        let hosts = self.host_sockets().into_iter().map(|addr| Candidate::new(CandidateKind::Host, addr));
        let mut known = BTreeSet::new();
        let mut candidates = Vec::new();
        // Those that reach across networks first: a host with many interfaces must not push them out.
        for candidate in extra.chain(reflexive).chain(hosts) {
            if let Err(refusal) = shared.filter.check_published(candidate.addr) {
                shared.stats.refuse(refusal);
            } else if candidates.len() >= MAX_CANDIDATES {
                shared.stats.refuse(crate::filter::Refusal::OverCap);
            } else if known.insert(candidate.addr) {
                candidates.push(candidate);
            }
        }
        candidates.sort();
        candidates
    }

    /// The mapped addresses that are none of the host's own. Behind a hard NAT the port means nothing to peers, only the
    /// address does; there the port that was published first stays, so that no refresh makes news.
    /// A box that strays have moved shows its old port to those who knew it, the observers among them, and the one that it was
    /// moved to (in `moved`) to everybody else.
    fn reflexive(&self, report: NatReport, moved: [Option<SocketAddr>; 2]) -> Vec<Candidate> {
        let own = self.host_sockets();
        let mut found: Vec<Candidate> = Vec::new();
        for mapped in self.servers.iter().filter_map(|server| server.mapped) {
            if own.contains(&mapped) {
                continue;
            }
            let candidate = Candidate::new(CandidateKind::ServerReflexive, mapped);
            if !report.of(mapped.ip()).is_hard() {
                found.push(candidate);
            } else if !found.iter().any(|known| known.addr.ip() == mapped.ip()) {
                found.push(self.published_at(candidate).unwrap_or(candidate));
            }
        }
        // Each has the address of one that was found.
        for to in moved.into_iter().flatten() {
            if found.iter().any(|known| known.addr.ip() == to.ip()) {
                found.push(Candidate::new(CandidateKind::ServerReflexive, to));
            }
        }
        found
    }

    fn published_at(&self, candidate: Candidate) -> Option<Candidate> {
        let (published, _) = self.published.as_ref()?;
        published.iter().find(|known| known.kind == candidate.kind && known.addr.ip() == candidate.addr.ip()).copied()
    }

    fn host_sockets(&self) -> Vec<SocketAddr> {
        self.hosts.iter().map(|host| SocketAddr::new(host.addr().to_canonical(), self.listen_port)).collect()
    }
}
