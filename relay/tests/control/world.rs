//! Sessions in virtual time, and nodes that speak to them.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use relay::server::control::{Config, Input, Member, Output, SessionId, Sessions};
use relay::server::plane::{self, NodeId};
use wire::PublicKey;
use wire::control::{ToNode, ToRelay, VERSION};

pub const BOOT: u64 = 77;

pub fn key(number: u8) -> PublicKey {
    PublicKey::from_bytes([number; 32])
}

pub fn node_id(number: u8) -> NodeId {
    NodeId([number; 32])
}

/// The identity key of node `number`, which is no node's WireGuard key.
pub fn identity(number: u8) -> [u8; 32] {
    [number | 0x80; 32]
}

pub fn member(number: u8) -> Member {
    Member { node: key(number), identity: Some(identity(number)) }
}

/// Where node `number` comes from.
pub fn home(number: u8) -> SocketAddr {
    SocketAddr::from(([198, 51, 100, number], 4433))
}

/// What a node heard, or that its channel was closed.
#[derive(Debug, Clone)]
pub enum Heard {
    Said(ToNode),
    Closed,
}

pub struct World {
    pub sessions: Sessions,
    pub now: Instant,
    next: u64,
    /// What was said to each session and not looked at yet.
    pub heard: BTreeMap<SessionId, Vec<Heard>>,
    pub plane: Vec<plane::Input>,
    pub strays: Vec<(SessionId, SocketAddr)>,
}

impl World {
    /// With members 1 to `count`, none of them here.
    pub fn of(count: u8) -> Self {
        let mut world = Self::empty();
        let members = (1..=count).map(|number| (format!("node-{number}"), member(number))).collect();
        world.input(Input::Members(members));
        world.plane.clear();
        world
    }

    pub fn empty() -> Self {
        let now = Instant::now();
        let config = Config { boot: BOOT, ..Config::default() };
        Self {
            sessions: Sessions::new(config, now),
            now,
            next: 0,
            heard: BTreeMap::new(),
            plane: Vec::new(),
            strays: Vec::new(),
        }
    }

    pub fn input(&mut self, input: Input) {
        self.sessions.handle_input(input, self.now);
        self.take();
    }

    pub fn pass(&mut self, time: Duration) {
        self.now += time;
        self.sessions.handle_timeout(self.now);
        self.take();
    }

    fn take(&mut self) {
        while let Some(output) = self.sessions.poll_output() {
            match output {
                Output::Say { session, message } => self.heard.entry(session).or_default().push(Heard::Said(message)),
                Output::Close(session) => self.heard.entry(session).or_default().push(Heard::Closed),
                Output::Plane(input) => self.plane.push(input),
                Output::Stray { session, to, .. } => self.strays.push((session, to)),
            }
        }
    }

    /// A channel whose other end has proven this identity.
    pub fn open(&mut self, identity: [u8; 32]) -> SessionId {
        self.next += 1;
        let session = SessionId(self.next);
        self.input(Input::Opened { session, identity });
        session
    }

    pub fn say_from(&mut self, session: SessionId, message: ToRelay, remote: SocketAddr) {
        self.input(Input::Heard { session, message, remote });
    }

    pub fn say(&mut self, session: SessionId, message: ToRelay) {
        self.say_from(session, message, home(200));
    }

    /// What this session has heard since it was asked last.
    pub fn hear(&mut self, session: SessionId) -> Vec<Heard> {
        self.heard.remove(&session).unwrap_or_default()
    }

    /// Node `number` comes, and is welcome.
    pub fn come(&mut self, number: u8) -> SessionId {
        let session = self.open(identity(number));
        self.say_from(session, ToRelay::Hello { version: VERSION, node: key(number) }, home(number));
        let heard = self.hear(session);
        let is_welcome =
            matches!(heard[..], [Heard::Said(ToNode::Welcome { boot: BOOT, observed })] if observed == home(number));
        assert!(is_welcome, "{heard:?}");
        session
    }

    /// Two nodes that have met, and nothing left to hear of it.
    pub fn meet(&mut self, one: u8, other: u8) -> [SessionId; 2] {
        let sessions = [self.come(one), self.come(other)];
        self.say(sessions[0], ToRelay::Meet(key(other)));
        self.say(sessions[1], ToRelay::Meet(key(one)));
        sessions.map(|session| {
            assert!(presence(&self.hear(session)).last().is_some_and(|(_, met)| *met));
            session
        })
    }

    /// Tells what the data plane would.
    pub fn news(&mut self, to: u8, partner: u8, news: plane::News) {
        self.input(Input::Plane(plane::Event { to: node_id(to), partner: node_id(partner), news }));
    }
}

/// What was said about who is here.
pub fn presence(heard: &[Heard]) -> Vec<(PublicKey, bool)> {
    let of = |heard: &Heard| match heard {
        Heard::Said(ToNode::Present { node, met }) => Some((*node, *met)),
        _ => None,
    };
    heard.iter().filter_map(of).collect()
}

/// Why the session was ended, if it was.
pub fn denied(heard: &[Heard]) -> Option<wire::control::DeniedReason> {
    match heard {
        [.., Heard::Said(ToNode::Denied(reason)), Heard::Closed] => Some(*reason),
        _ => None,
    }
}
