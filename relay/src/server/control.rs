//! The control channel's logic: who may speak, who hears of whom, and what the data plane is asked for.
//!
//! # Model
//!
//! A *session* is one open channel. The channel has proven an identity key; [`ToRelay::Hello`] claims a WireGuard key, by which nodes are
//! named from then on. The *members* are what the Kubernetes API says: names of objects, each with an admitted WireGuard key and the identity key
//! that its node has published. A claim holds while a member has both keys; a copied identity key harms nobody, because only its holder
//! gets through the handshake. One node has one session: a new one replaces the one before.
//!
//! Two nodes have *met* while both have a session and each has said [`ToRelay::Meet`] of the other. Only then do signals pass between
//! them, and only who has asked about a node hears anything of it.
//!
//! # Life of a session
//!
//! [`Input::Opened`], a Hello within [`HELLO_TIMEOUT`], [`ToNode::Welcome`] or [`ToNode::Denied`]; then whatever is said, until the
//! channel is [`Input::Gone`], a newer session replaces it, or the member goes. Legs are the data plane's: they outlive sessions, so
//! traffic flows on while agents restart, and end with the member. Only a leg that is a channel ends with it: [`ToRelay::Attach`] makes it
//! that, and what is sent on it passes by this logic, from the shell to the data plane.
//!
//! # What it refuses
//!
//! * To say anything to who is no member, but that he is none.
//! * To send where a message says: a stray packet goes to the address that the session's own channel comes from or nowhere, one in
//!   [`STRAY_PERIOD`]; what is asked for at once waits its turn.
//! * To queue. Outputs are taken after each input; who does not read is closed by the shell. What one input can cause is bounded by
//!   [`MAX_SESSIONS`].
//! * To let one node's wishes cost others: wishes are capped at [`MAX_MEETS`], signals have a budget for each sender.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::{IpAddr, SocketAddr};
use std::time::Instant;

use ipnet::IpNet;
use wire::PublicKey;
use wire::control::{DeniedReason, ToNode, ToRelay, VERSION};

mod exchange;
pub mod limits;
mod members;
mod news;
mod session;
mod stats;
mod talk;

pub use exchange::{Identity, Input, Member, Output, SessionId};
pub use limits::{HELLO_TIMEOUT, MAX_MEETS, MAX_NEWCOMERS, MAX_SESSIONS, STRAY_PERIOD};
pub use stats::{Refusal, Stats};

use crate::server::plane;
use members::Members;
use session::{Newcomer, Session};

/// What stays as it is while a relay runs.
#[derive(Debug, Clone, Default)]
pub struct Config {
    /// Another number for every life of the data plane, drawn by the shell.
    pub boot: u64,
    /// The addresses of this host: no stray packet goes there.
    pub own: Vec<IpAddr>,
    /// Other addresses that no stray packet goes to.
    pub denied: Vec<IpNet>,
}

/// All sessions of one relay.
#[derive(Debug)]
pub struct Sessions {
    config: Config,
    members: Members,
    newcomers: BTreeMap<SessionId, Newcomer>,
    /// When newcomers must have said Hello.
    deadlines: BTreeSet<(Instant, SessionId)>,
    sessions: BTreeMap<SessionId, Session>,
    /// When sessions may have their next stray packet, of those that wait for one.
    strays_due: BTreeSet<(Instant, SessionId)>,
    by_node: BTreeMap<PublicKey, SessionId>,
    /// How long this relay goes on, if it ends.
    draining: Option<u16>,
    outputs: VecDeque<Output>,
    stats: Stats,
    now: Instant,
}

impl Sessions {
    /// No session, and nobody a member.
    #[must_use]
    pub fn new(config: Config, now: Instant) -> Self {
        Self {
            config,
            members: Members::default(),
            newcomers: BTreeMap::new(),
            deadlines: BTreeSet::new(),
            sessions: BTreeMap::new(),
            strays_due: BTreeSet::new(),
            by_node: BTreeMap::new(),
            draining: None,
            outputs: VecDeque::new(),
            stats: Stats::default(),
            now,
        }
    }

    /// Takes what channels, the API and the data plane say.
    pub fn handle_input(&mut self, input: Input, now: Instant) {
        self.now = now;
        match input {
            Input::Opened { session, identity } => self.opened(session, identity, now),
            Input::Heard { session, message, remote } => self.heard(session, message, remote, now),
            Input::Nonsense(session) => self.deny(session, DeniedReason::Protocol),
            Input::Gone(session) => self.forget(session),
            Input::Members(members) => self.set_members(members),
            Input::Member { name, member } => self.set_member(name, member),
            Input::Plane(event) => self.news(event),
            Input::StraySent { session, tx, from } => self.say(session, ToNode::StraySent { tx, from }),
            Input::Own(addresses) => {
                self.config.own.clone_from(&addresses);
                self.outputs.push_back(Output::Plane(plane::Input::Own(addresses)));
            }
            Input::Drain { seconds } => self.drain(seconds),
        }
    }

    /// Ends what has not said Hello in time, and sends the stray packets that are due.
    pub fn handle_timeout(&mut self, now: Instant) {
        self.now = now;
        while let Some(&(at, session)) = self.strays_due.first()
            && at <= now
        {
            self.send_stray(session, now);
        }
        while let Some(&(at, session)) = self.deadlines.first()
            && at <= now
        {
            self.close(session);
        }
    }

    /// The next thing to do. In order, and all of them before the next input.
    pub fn poll_output(&mut self) -> Option<Output> {
        self.outputs.pop_front()
    }

    /// When to call [`Self::handle_timeout`], and why. At once while there is output.
    #[must_use]
    pub fn poll_timeout(&self) -> Option<(Instant, &'static str)> {
        if !self.outputs.is_empty() {
            return Some((self.now, "output waits"));
        }
        let newcomer = self.deadlines.first().map(|&(at, _)| (at, "a newcomer may have been silent for too long"));
        let stray = self.strays_due.first().map(|&(at, _)| (at, "a stray packet is due"));
        [newcomer, stray].into_iter().flatten().min()
    }

    /// What happened so far.
    #[must_use]
    pub fn stats(&self) -> Stats {
        let mut stats = self.stats;
        stats.sessions = self.sessions.len();
        stats.newcomers = self.newcomers.len();
        stats.members = self.members.len();
        stats
    }

    fn opened(&mut self, session: SessionId, identity: Identity, now: Instant) {
        if self.newcomers.len() >= MAX_NEWCOMERS {
            return self.deny(session, DeniedReason::Full);
        }
        let hello_by = now + HELLO_TIMEOUT;
        self.newcomers.insert(session, Newcomer { identity, hello_by });
        self.deadlines.insert((hello_by, session));
    }

    fn heard(&mut self, session: SessionId, message: ToRelay, remote: SocketAddr, now: Instant) {
        if self.sessions.contains_key(&session) {
            return self.talk(session, message, remote, now);
        }
        let Some(Newcomer { identity, .. }) = self.newcomers.get(&session) else { return };
        match message {
            ToRelay::Hello { version, node } if version == VERSION => {
                self.hello(session, *identity, node, remote, now);
            }
            ToRelay::Hello { .. } => self.deny(session, DeniedReason::Version),
            _ => self.deny(session, DeniedReason::Protocol),
        }
    }

    fn hello(&mut self, session: SessionId, identity: Identity, node: PublicKey, remote: SocketAddr, now: Instant) {
        if !self.members.is_proven(node, identity) {
            return self.deny(session, DeniedReason::NotAdmitted);
        }
        if let Some(&before) = self.by_node.get(&node) {
            self.deny(before, DeniedReason::Replaced);
        }
        if self.sessions.len() >= MAX_SESSIONS {
            return self.deny(session, DeniedReason::Full);
        }
        self.forget(session);
        self.sessions.insert(session, Session::new(node, identity, now));
        self.by_node.insert(node, session);
        self.stats.welcomed += 1;
        self.say(session, ToNode::Welcome { boot: self.config.boot, observed: remote });
        if let Some(seconds) = self.draining {
            self.say(session, ToNode::Drain { seconds });
        }
    }

    fn drain(&mut self, seconds: u16) {
        self.draining = Some(seconds);
        let all: Vec<SessionId> = self.sessions.keys().copied().collect();
        for session in all {
            self.say(session, ToNode::Drain { seconds });
        }
    }

    /// Says why, and ends the session.
    fn deny(&mut self, session: SessionId, reason: DeniedReason) {
        self.stats.denied(reason);
        self.say(session, ToNode::Denied(reason));
        self.close(session);
    }

    fn close(&mut self, session: SessionId) {
        self.outputs.push_back(Output::Close(session));
        self.forget(session);
    }

    /// Takes a session out of every table and tells whom it had met.
    fn forget(&mut self, session: SessionId) {
        if let Some(newcomer) = self.newcomers.remove(&session) {
            self.deadlines.remove(&(newcomer.hello_by, session));
        }
        let Some(gone) = self.sessions.remove(&session) else { return };
        self.strays_due.remove(&(gone.next_stray_at, session));
        if gone.has_attached {
            let by = members::node_id(&gone.node);
            self.outputs.push_back(Output::Plane(plane::Input::Detach { by, channel: session.into() }));
        }
        if self.by_node.get(&gone.node) == Some(&session) {
            self.by_node.remove(&gone.node);
        }
        for partner in gone.meets {
            self.tell_parted(partner, gone.node);
        }
    }

    fn say(&mut self, session: SessionId, message: ToNode) {
        self.outputs.push_back(Output::Say { session, message });
    }
}
