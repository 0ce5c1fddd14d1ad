//! How each peer is reached, as people are told: every change at once in the local API and the metrics, and a calm summary
//! for `MeshNode.status`, where each write costs every watcher.

use path::{PathState, Reason};
use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::{Duration, Instant},
};
use wire::key::PublicKey;

/// A new peer may take this long before it counts as unconnected: two rounds of probes and a STUN timeout.
const GRACE: Duration = Duration::from_secs(15);
/// A connected peer counts as unconnected only after this long: a restart of its agent must not be written.
const DOWN_AFTER: Duration = Duration::from_secs(30);
/// A peer that was down counts as connected again after this long, doubled each time it went down.
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
    /// What the engine said last.
    pub state: PathState,
    /// Since when it is so.
    pub since: Instant,
    shown: Shown,
    downs: u32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Shown {
    Pending,
    Direct,
    Down,
}

/// The numbers for `MeshNode.status`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Summary {
    /// Peers connected directly.
    pub direct: u32,
    /// Peers not connected.
    pub down: u32,
    /// The first [`NAMED_PEERS`] of those with the reason, by name.
    pub unconnected: Vec<(String, Reason)>,
}

/// All peers. What is asked often is kept beside the rows, so that no answer looks at all of them.
#[derive(Clone, Debug, Default)]
pub struct PathTable {
    rows: BTreeMap<PublicKey, Row>,
    /// When time alone will change what is shown of a row.
    by_due: BTreeSet<(Instant, PublicKey)>,
    /// Rows that are shown as direct.
    direct: u32,
    /// Those that are shown as down, by name.
    unconnected: BTreeSet<(Arc<str>, PublicKey)>,
    /// Rows by state: direct, connecting, down.
    states: [u32; 3],
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
                Row { name: name.into(), state: PathState::Connecting, since: now, shown: Shown::Pending, downs: 0 }
            }
        };
        self.put_in(*key, row);
    }

    /// The engine reported a state. Returns the name of the peer if the news is worth a log line.
    pub fn report(&mut self, peer: &PublicKey, state: PathState, now: Instant) -> Option<&str> {
        let mut row = self.take_out(peer)?;
        let is_news = !row.state.same_news(&state);
        if is_news {
            row.settle(now);
            let labels = (state_name(&row.state), state_name(&state), reason_name(&state));
            if is_direct(&row.state) != is_direct(&state) {
                row.since = now;
            }
            *self.transitions.entry(labels).or_default() += 1;
        }
        row.state = state;
        if is_news {
            row.settle(now);
        }
        self.put_in(*peer, row);
        self.rows.get(peer).filter(|_| is_news).map(|row| &*row.name)
    }

    /// How many peers there are of each state: direct, connecting, down.
    pub fn states(&self) -> [u32; 3] {
        self.states
    }

    fn take_out(&mut self, key: &PublicKey) -> Option<Row> {
        let row = self.rows.remove(key)?;
        if let Some(due) = row.due() {
            self.by_due.remove(&(due, *key));
        }
        match row.shown {
            Shown::Pending => {}
            Shown::Direct => self.direct -= 1,
            Shown::Down => _ = self.unconnected.remove(&(row.name.clone(), *key)),
        }
        self.states[place(&row.state)] -= 1;
        Some(row)
    }

    fn put_in(&mut self, key: PublicKey, row: Row) {
        self.by_due.extend(row.due().map(|due| (due, key)));
        match row.shown {
            Shown::Pending => {}
            Shown::Direct => self.direct += 1,
            Shown::Down => _ = self.unconnected.insert((row.name.clone(), key)),
        }
        self.states[place(&row.state)] += 1;
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
        let named = |(name, key): &(Arc<str>, PublicKey)| Some((name.to_string(), reason(&self.rows.get(key)?.state)));
        Summary {
            direct: self.direct,
            down: self.unconnected.len().try_into().unwrap_or(u32::MAX),
            unconnected: self.unconnected.iter().take(NAMED_PEERS).filter_map(named).collect(),
        }
    }

    /// When time alone will change the summary.
    pub fn poll_timeout(&self) -> Option<Instant> {
        self.by_due.first().map(|(due, _)| *due)
    }
}

impl Row {
    fn settle(&mut self, now: Instant) {
        let direct = is_direct(&self.state);
        if direct && now.duration_since(self.since) >= FORGIVEN_AFTER {
            self.downs = 0;
        }
        if self.due().is_some_and(|due| due <= now) {
            self.downs += u32::from(!direct && self.shown == Shown::Direct);
            self.shown = if direct { Shown::Direct } else { Shown::Down };
        }
    }

    /// When what is shown will follow what is.
    fn due(&self) -> Option<Instant> {
        let wait = match (self.shown, is_direct(&self.state)) {
            (Shown::Pending, true) => Duration::ZERO,
            (Shown::Pending, false) => GRACE,
            (Shown::Direct, false) => DOWN_AFTER,
            (Shown::Down, true) if self.downs == 0 => Duration::ZERO,
            (Shown::Down, true) => UP_AFTER * 2u32.pow((self.downs - 1).min(MAX_DOUBLINGS)),
            (Shown::Direct, true) | (Shown::Down, false) => return None,
        };
        Some(self.since + wait)
    }
}

/// The place of a state among [`PathTable::states`].
fn place(state: &PathState) -> usize {
    match state {
        PathState::Direct { .. } => 0,
        PathState::Relayed { .. } | PathState::Connecting => 1,
        PathState::Down { .. } => 2,
    }
}

/// Whether packets go straight to the peer.
pub fn is_direct(state: &PathState) -> bool {
    matches!(state, PathState::Direct { .. })
}

/// The name of a state in tables and metrics.
pub fn state_name(state: &PathState) -> &'static str {
    match state {
        PathState::Direct { .. } => "direct",
        PathState::Relayed { .. } => "relayed",
        PathState::Connecting => "connecting",
        PathState::Down { .. } => "down",
    }
}

/// Why a state is not direct, for tables and metrics; empty when it is.
pub fn reason_name(state: &PathState) -> &'static str {
    match state {
        PathState::Direct { .. } => "",
        other => reason(other).as_str(),
    }
}

fn reason(state: &PathState) -> Reason {
    match state {
        PathState::Down { reason } | PathState::Relayed { reason, .. } => *reason,
        PathState::Connecting | PathState::Direct { .. } => Reason::NotTriedYet,
    }
}

#[cfg(test)]
mod tests;
