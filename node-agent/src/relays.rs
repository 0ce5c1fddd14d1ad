//! Channels to relays: a task each, which connects, connects anew when it must, and is a pipe between the relay and the path engine.
//! Nothing is decided here but when to try again.
//!
//! [`Relays`] is the loop's side. It tells the engine of every relay before anything can be said by it ([`Relays::set`]), hands on what
//! arrives ([`Relays::next`], [`Relays::accept`]) and sends what the engine wants to say ([`Relays::send`]). Queues are bounded: a relay
//! that says more than the loop takes waits, and one that takes less than the engine says is closed, because a message that is
//! lost among others would be worse than all of them being said anew.

pub mod backoff;
pub mod last;
pub mod link;
pub mod proxy;
mod task;

pub use channel::Transport;
pub use link::{Incoming, Link, Outgoing};

use crate::{
    carry::{Feed, Lane},
    host::Host,
};
use path::{RelayId, RelayNews};
use std::{
    collections::BTreeMap,
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::Instant,
};
use tokio::{
    sync::{
        mpsc::{self, error::TrySendError},
        oneshot, watch,
    },
    task::AbortHandle,
};
use wire::{control::ToRelay, key::PublicKey};

/// Relays that a node keeps a channel to at most: every node keeps the first ones by name, so that two nodes have some in common.
pub const MAX_RELAYS: usize = 8;
/// Addresses of one relay that are tried at most.
pub const MAX_ADDRESSES: usize = 8;
/// What relays have said and the loop has not taken yet.
const NEWS_QUEUE: usize = 256;
/// What waits for one relay. When a channel opens, every peer of the largest mesh is named at once, and some are asked for.
const ORDERS_QUEUE: usize = 16_384;

/// A relay, as this node reaches it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Relay {
    /// Its identity key.
    pub id: RelayId,
    /// Name of its MeshRelay.
    pub name: String,
    /// What it fails together with, if somebody says so.
    pub domain: Option<String>,
    /// Where its channel answers over QUIC, best first.
    pub quic: Vec<SocketAddr>,
    /// Where its channel answers over TLS, best first.
    pub tls: Vec<SocketAddr>,
    /// Where its UDP ports are, best first. None for a relay on this very node, which relays for others only.
    pub udp: Vec<IpAddr>,
}

/// Who this node is to relays.
#[derive(Clone)]
pub struct Credentials {
    /// What it proves itself by.
    pub identity: channel::Identity,
    /// The mark that keeps the channel's own packets out of the mesh.
    pub fwmark: u32,
}

/// How a channel is doing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum State {
    /// It is being made for the first time.
    Connecting,
    /// It is open, over this.
    Open(Transport),
    /// It is not, and is tried again and again.
    Closed(String),
}

/// The name of the way that packets take to a relay where nothing is in the way.
pub const UDP: &str = "udp";

/// The name of a transport, as users see it.
pub fn transport_name(transport: Transport) -> &'static str {
    match transport {
        Transport::Quic => "quic",
        Transport::Tls => "tls",
    }
}

impl State {
    /// The names of [`Self::metric`], for series that start at zero.
    pub const NAMES: [&'static str; 4] = ["connecting", "open_quic", "open_tls", "closed"];

    /// The name that users see.
    pub fn as_str(&self) -> &'static str {
        match self {
            Self::Connecting => "connecting",
            Self::Open(_) => "open",
            Self::Closed(_) => "closed",
        }
    }

    /// The label of metrics.
    pub fn metric(&self) -> &'static str {
        match self {
            Self::Connecting => "connecting",
            Self::Open(Transport::Quic) => "open_quic",
            Self::Open(Transport::Tls) => "open_tls",
            Self::Closed(_) => "closed",
        }
    }
}

/// One channel, to be shown.
#[derive(Clone, Debug)]
pub struct Row {
    /// The relay.
    pub relay: Relay,
    /// How it is doing.
    pub state: State,
    /// Since when.
    pub since: Instant,
}

/// News of a channel from its task.
#[derive(Debug)]
pub struct Report {
    id: RelayId,
    /// Which task of that relay: those of a task that was ended don't count.
    task: u64,
    what: What,
}

#[derive(Debug)]
enum What {
    /// Over this; whether the one before it went over TLS too, if it does; and how to use it.
    Open(Transport, bool, Voice),
    Closed(String),
    Said(wire::control::ToNode),
}

/// What the loop holds of one open channel. It belongs to no other: the loop may hear late that a channel has ended, and that there is
/// another, and what it says until then must not be the first that the new one hears.
#[derive(Debug)]
struct Voice {
    orders: mpsc::Sender<ToRelay>,
    /// The channel ends when this is dropped, whatever is still to be said by it.
    _held: oneshot::Sender<()>,
}

/// The channels of one path engine.
pub struct Relays {
    host: Arc<dyn Host>,
    credentials: Credentials,
    /// Where packets go that relays say for legs; nothing if none are carried.
    feed: Option<Feed>,
    channels: BTreeMap<RelayId, Channel>,
    news: (mpsc::Sender<Report>, mpsc::Receiver<Report>),
    tasks: u64,
    admitted: watch::Sender<bool>,
}

struct Channel {
    row: Row,
    task: u64,
    /// Nothing while it is not open.
    voice: Option<Voice>,
    /// WireGuard's packets for it.
    lane: Arc<Lane>,
    abort: AbortHandle,
}

impl Drop for Channel {
    fn drop(&mut self) {
        self.abort.abort();
    }
}

impl Relays {
    /// None yet.
    pub fn new(host: Arc<dyn Host>, credentials: Credentials, feed: Option<Feed>) -> Self {
        Self {
            host,
            credentials,
            feed,
            channels: BTreeMap::new(),
            news: mpsc::channel(NEWS_QUEUE),
            tasks: 0,
            admitted: watch::Sender::new(false),
        }
    }

    /// Whether the operator has admitted this node's key. When it does, relays that knew nobody by it are asked again at once.
    pub fn set_admitted(&self, admitted: bool) {
        self.admitted.send_if_modified(|known| std::mem::replace(known, admitted) != admitted);
    }

    /// Keeps channels to exactly these, and answers what the engine must hear before anything else. A relay that moved is left and
    /// sought anew.
    pub fn set(&mut self, wanted: &[Relay], now: Instant) -> Vec<(RelayId, RelayNews)> {
        let mut news = Vec::new();
        let stays = |channel: &Channel| wanted.contains(&channel.row.relay);
        let gone: Vec<RelayId> = self.channels.iter().filter(|(_, c)| !stays(c)).map(|(id, _)| *id).collect();
        for id in gone {
            self.channels.remove(&id);
            let moved = wanted.iter().any(|relay| relay.id == id);
            news.push((id, if moved { RelayNews::Closed } else { RelayNews::Removed }));
        }
        for relay in wanted.iter().take(MAX_RELAYS) {
            if !self.channels.contains_key(&relay.id) {
                self.start(relay.clone(), now);
                news.push((relay.id, RelayNews::Connecting { addresses: relay.udp.clone() }));
                news.push((relay.id, RelayNews::Within { domain: relay.domain.clone() }));
            }
        }
        news
    }

    fn start(&mut self, relay: Relay, now: Instant) {
        self.tasks += 1;
        let lane = Arc::new(Lane::default());
        let task = task::Task {
            host: self.host.clone(),
            credentials: self.credentials.clone(),
            relay: relay.clone(),
            number: self.tasks,
            news: self.news.0.clone(),
            feed: self.feed.clone(),
            lane: lane.clone(),
            admitted: self.admitted.subscribe(),
        };
        let abort = tokio::spawn(task.run()).abort_handle();
        let row = Row { relay: relay.clone(), state: State::Connecting, since: now };
        self.channels.insert(relay.id, Channel { row, task: self.tasks, voice: None, lane, abort });
    }

    /// The next report of any channel; waits for ever when there is none. Cancel safe.
    pub async fn next(&mut self) -> Report {
        match self.news.1.recv().await {
            Some(report) => report,
            // A sender is kept beside the receiver.
            None => std::future::pending().await,
        }
    }

    /// The next one that is there already.
    pub fn try_next(&mut self) -> Option<Report> {
        self.news.1.try_recv().ok()
    }

    /// What the engine must hear of a report, in this order; nothing if its channel is not wanted any more.
    pub fn accept(&mut self, report: Report, now: Instant) -> Vec<(RelayId, RelayNews)> {
        let Report { id, task, what } = report;
        let Some(channel) = self.channels.get_mut(&id).filter(|channel| channel.task == task) else {
            return Vec::new();
        };
        let mut show = |state: State| {
            if channel.row.state != state {
                channel.row.state = state;
                channel.row.since = now;
            }
        };
        let mut over_tcp = None;
        let news = match what {
            What::Open(transport, again, voice) => {
                show(State::Open(transport));
                channel.voice = Some(voice);
                over_tcp = (transport == Transport::Tls).then_some(RelayNews::OverTcp { again });
                RelayNews::Open { addresses: channel.row.relay.udp.clone() }
            }
            What::Closed(why) => {
                let first = matches!(channel.row.state, State::Closed(_));
                if !first {
                    tracing::info!(
                        relay = channel.row.relay.name,
                        why,
                        "the channel to a relay is closed; trying again"
                    );
                }
                // What is wrong may change while it stays closed; since when it is does not.
                let since = if first { channel.row.since } else { now };
                channel.row.state = State::Closed(why);
                channel.row.since = since;
                channel.voice = None;
                RelayNews::Closed
            }
            What::Said(message) => RelayNews::Said(message),
        };
        let after = over_tcp.map(|news| (id, news));
        std::iter::once((id, news)).chain(after).collect()
    }

    /// WireGuard's packets for this relay go in there.
    pub fn lane(&self, id: RelayId) -> Option<Arc<Lane>> {
        self.channels.get(&id).map(|channel| channel.lane.clone())
    }

    /// What carries the channel to this relay, while it is open.
    pub fn transport(&self, id: RelayId) -> Option<Transport> {
        match self.channels.get(&id)?.row.state {
            State::Open(transport) => Some(transport),
            _ => None,
        }
    }

    /// Makes the channel to this relay anew, if there is one.
    pub fn renew(&mut self, id: RelayId) {
        if let Some(channel) = self.channels.get_mut(&id) {
            channel.voice = None;
        }
    }

    /// Says something over the channel to a relay, if it is open. What can't be taken ends it: it starts anew, and the engine with it.
    pub fn send(&mut self, id: RelayId, message: ToRelay, now: Instant) -> Option<(RelayId, RelayNews)> {
        let channel = self.channels.get(&id)?;
        match channel.voice.as_ref()?.orders.try_send(message) {
            // Of one that has ended the news is on its way.
            Ok(()) | Err(TrySendError::Closed(_)) => None,
            Err(TrySendError::Full(_)) => {
                let relay = channel.row.relay.clone();
                tracing::warn!(
                    relay = relay.name,
                    "a relay takes too little of what it is told; its channel starts anew"
                );
                self.channels.remove(&id);
                self.start(relay, now);
                Some((id, RelayNews::Closed))
            }
        }
    }

    /// The name of a relay; of one that is not wanted any more, the beginning of its key.
    pub fn name(&self, id: RelayId) -> String {
        match self.channels.get(&id) {
            Some(channel) => channel.row.relay.name.clone(),
            None => PublicKey::from_bytes(id.0).short(),
        }
    }

    /// The channels, to be shown.
    pub fn rows(&self) -> impl Iterator<Item = &Row> {
        self.channels.values().map(|channel| &channel.row)
    }
}
