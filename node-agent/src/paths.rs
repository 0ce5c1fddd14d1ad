//! How each peer is reached, as people are told: every change at once in the local API and the metrics, and a calm summary
//! for `MeshNode.status`, where each write costs every watcher.

use path::{KeptState, PathState, Reason};
use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::{Duration, Instant},
};
use wire::key::PublicKey;

/// A new peer may take this long before it counts as unconnected: two rounds of probes and a STUN timeout.
const GRACE: Duration = Duration::from_secs(15);
/// A new peer that is relayed counts as such after this long: most pairs are direct by then.
const RELAYED_AFTER: Duration = Duration::from_secs(5);
/// A peer counts as worse connected than it was only after this long: a restart of its agent must not be written.
const DOWN_AFTER: Duration = Duration::from_secs(30);
/// A peer that was worse connected counts as better again after this long, doubled each time it became worse.
const UP_AFTER: Duration = Duration::from_secs(10);
/// Doublings at most: a path that flaps is written less than once in ten minutes.
const MAX_DOUBLINGS: u32 = 6;
/// A path that held this long is a good one again, whatever it did before.
const FORGIVEN_AFTER: Duration = Duration::from_secs(3600);

/// Unconnected peers that are named at most; the table of all is in the metrics and in `warren-agent paths`.
pub const NAMED_PEERS: usize = 5;

/// What is shown of one peer.
#[derive(Clone, Debug)]
pub struct Row {
    /// Name of the MeshNode.
    pub name: Arc<str>,
    /// Since when it is so.
    pub since: Instant,
    state: KeptState,
    shown: Shown,
    downs: u32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Shown {
    Pending,
    As(Class),
}

/// How well a peer is connected, worst first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Class {
    Down,
    Relayed,
    Direct,
}

impl Class {
    /// `None` where nobody needs a path.
    fn of(state: &PathState) -> Option<Self> {
        match state {
            PathState::Direct { .. } => Some(Self::Direct),
            PathState::Relayed { .. } => Some(Self::Relayed),
            PathState::Idle => None,
            PathState::Connecting | PathState::Down { .. } => Some(Self::Down),
        }
    }
}

/// The numbers for `MeshNode.status`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Summary {
    /// Peers connected directly.
    pub direct: u32,
    /// Peers connected through a relay.
    pub relayed: u32,
    /// Peers not connected.
    pub down: u32,
    /// The first [`NAMED_PEERS`] of those with the reason, by name.
    pub unconnected: Vec<(String, Reason)>,
    /// Peers not connected that no relay has a port for.
    pub portless: u32,
}

/// All peers. What is asked often is kept beside the rows, so that no answer looks at all of them.
#[derive(Clone, Debug, Default)]
pub struct PathTable {
    rows: BTreeMap<PublicKey, Row>,
    /// When time alone will change what is shown of a row.
    by_due: BTreeSet<(Instant, PublicKey)>,
    /// Rows that are shown as direct, and as relayed.
    direct: u32,
    relayed: u32,
    /// Those that are shown as down, by name.
    unconnected: BTreeSet<(Arc<str>, PublicKey)>,
    /// How many of those no relay has a port for.
    portless: u32,
    /// Rows by state, as [`STATES`] has them.
    states: [u32; STATES.len()],
    /// Counts what the engine reported, by the names of the states.
    transitions: BTreeMap<(&'static str, &'static str, &'static str), u64>,
}

impl PathTable {
    /// Makes the table hold exactly these peers.
    pub fn set_peers<'a>(&mut self, peers: impl Iterator<Item = (&'a PublicKey, &'a str)>, now: Instant) {
        let mut gone: BTreeSet<PublicKey> = self.rows.keys().copied().collect();
        for (key, name) in peers {
            gone.remove(key);
            self.set_peer(key, Some(name), now);
        }
        gone.iter().for_each(|key| self.set_peer(key, None, now));
    }

    /// A peer has this name, or is none any more.
    pub fn set_peer(&mut self, key: &PublicKey, name: Option<&str>, now: Instant) {
        let known = self.take_out(key);
        let Some(name) = name else { return };
        let row = match known {
            Some(row) if *row.name == *name => row,
            Some(row) => Row { name: name.into(), ..row },
            None => {
                let state = PathState::Connecting.into();
                Row { name: name.into(), since: now, state, shown: Shown::Pending, downs: 0 }
            }
        };
        self.put_in(*key, row);
    }

    /// The engine reported a state. Returns the name of the peer if the news is worth a log line.
    pub fn report(&mut self, peer: &PublicKey, state: PathState, now: Instant) -> Option<&str> {
        let mut row = self.take_out(peer)?;
        let before = row.state();
        let is_news = !before.same_news(&state);
        if is_news {
            row.settle(now);
            let labels = (state_name(&before), state_name(&state), reason_name(&state));
            if Class::of(&before) != Class::of(&state) {
                row.since = now;
            }
            *self.transitions.entry(labels).or_default() += 1;
        }
        row.state = state.into();
        if is_news {
            row.settle(now);
        }
        self.put_in(*peer, row);
        self.rows.get(peer).filter(|_| is_news).map(|row| &*row.name)
    }

    /// How many peers there are of each of [`STATES`].
    pub fn states(&self) -> [u32; STATES.len()] {
        self.states
    }

    fn take_out(&mut self, key: &PublicKey) -> Option<Row> {
        let row = self.rows.remove(key)?;
        if let Some(due) = row.due() {
            self.by_due.remove(&(due, *key));
        }
        match row.shown {
            Shown::Pending => {}
            Shown::As(Class::Direct) => self.direct -= 1,
            Shown::As(Class::Relayed) => self.relayed -= 1,
            Shown::As(Class::Down) => _ = self.unconnected.remove(&(row.name.clone(), *key)),
        }
        self.portless -= u32::from(row.is_portless());
        self.states[place(&row.state())] -= 1;
        Some(row)
    }

    fn put_in(&mut self, key: PublicKey, row: Row) {
        self.by_due.extend(row.due().map(|due| (due, key)));
        match row.shown {
            Shown::Pending => {}
            Shown::As(Class::Direct) => self.direct += 1,
            Shown::As(Class::Relayed) => self.relayed += 1,
            Shown::As(Class::Down) => _ = self.unconnected.insert((row.name.clone(), key)),
        }
        self.portless += u32::from(row.is_portless());
        self.states[place(&row.state())] += 1;
        self.rows.insert(key, row);
    }

    /// The rows by key.
    pub fn rows(&self) -> &BTreeMap<PublicKey, Row> {
        &self.rows
    }

    /// How often a state followed another: from, to, reason.
    pub fn transitions(&self) -> &BTreeMap<(&'static str, &'static str, &'static str), u64> {
        &self.transitions
    }

    /// The calm numbers.
    pub fn summary(&mut self, now: Instant) -> Summary {
        while let Some((_, key)) = self.by_due.first().copied().filter(|(due, _)| *due <= now) {
            if let Some(mut row) = self.take_out(&key) {
                row.settle(now);
                self.put_in(key, row);
            }
        }
        let named =
            |(name, key): &(Arc<str>, PublicKey)| Some((name.to_string(), reason(&self.rows.get(key)?.state())));
        Summary {
            direct: self.direct,
            relayed: self.relayed,
            down: self.unconnected.len().try_into().unwrap_or(u32::MAX),
            unconnected: self.unconnected.iter().take(NAMED_PEERS).filter_map(named).collect(),
            portless: self.portless,
        }
    }

    /// When time alone will change the summary.
    pub fn poll_timeout(&self) -> Option<Instant> {
        self.by_due.first().map(|(due, _)| *due)
    }
}

impl Row {
    /// What the engine said last.
    pub fn state(&self) -> PathState {
        self.state.get()
    }

    /// Whether it is shown as not connected, and that for want of a port on a relay.
    fn is_portless(&self) -> bool {
        self.shown == Shown::As(Class::Down) && reason(&self.state()) == Reason::RelayPortsExhausted
    }

    fn settle(&mut self, now: Instant) {
        let Some(class) = Class::of(&self.state()) else {
            // Whom nobody needs is not missed. How it was reached is shown for as long as nothing else is known.
            if self.shown == Shown::As(Class::Down) {
                self.shown = Shown::Pending;
            }
            return;
        };
        if class > Class::Down && now.duration_since(self.since) >= FORGIVEN_AFTER {
            self.downs = 0;
        }
        if self.due().is_some_and(|due| due <= now) {
            self.downs += u32::from(matches!(self.shown, Shown::As(shown) if class < shown));
            self.shown = Shown::As(class);
        }
    }

    /// When what is shown will follow what is.
    fn due(&self) -> Option<Instant> {
        let wait = match (self.shown, Class::of(&self.state())?) {
            (Shown::Pending, Class::Direct) => Duration::ZERO,
            (Shown::Pending, Class::Relayed) => RELAYED_AFTER,
            (Shown::Pending, Class::Down) => GRACE,
            (Shown::As(shown), class) if class == shown => return None,
            (Shown::As(shown), class) if class < shown => DOWN_AFTER,
            (Shown::As(_), _) if self.downs == 0 => Duration::ZERO,
            (Shown::As(_), _) => UP_AFTER * 2u32.pow((self.downs - 1).min(MAX_DOUBLINGS)),
        };
        Some(self.since + wait)
    }
}

/// The names of the states in tables and metrics.
pub const STATES: [&str; 5] = ["direct", "relayed", "connecting", "down", "idle"];

/// The place of a state among [`STATES`].
fn place(state: &PathState) -> usize {
    match state {
        PathState::Direct { .. } => 0,
        PathState::Relayed { .. } => 1,
        PathState::Connecting => 2,
        PathState::Down { .. } => 3,
        PathState::Idle => 4,
    }
}

/// The name of a state in tables and metrics.
pub fn state_name(state: &PathState) -> &'static str {
    STATES[place(state)]
}

/// The round-trip time, as far as it is known.
pub fn rtt(state: &PathState) -> Option<Duration> {
    match state {
        PathState::Direct { rtt, .. } => Some(*rtt),
        PathState::Relayed { rtt, .. } => *rtt,
        PathState::Idle | PathState::Connecting | PathState::Down { .. } => None,
    }
}

/// Why a state is not direct, for tables and metrics; empty when it is, or when nobody needs it to be.
pub fn reason_name(state: &PathState) -> &'static str {
    match state {
        PathState::Direct { .. } | PathState::Idle => "",
        other => reason(other).as_str(),
    }
}

fn reason(state: &PathState) -> Reason {
    match state {
        PathState::Down { reason } | PathState::Relayed { reason, .. } => *reason,
        PathState::Idle | PathState::Connecting | PathState::Direct { .. } => Reason::NotTriedYet,
    }
}

#[cfg(test)]
mod tests;
