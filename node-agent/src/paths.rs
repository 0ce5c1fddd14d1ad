//! How each peer is reached, as people are told: every change at once in the local API and the metrics, and a calm summary
//! for `MeshNode.status`, where each write costs every watcher.

use path::{PathState, Reason};
use std::{
    collections::BTreeMap,
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

/// What is shown of one peer.
#[derive(Clone, Debug)]
pub struct Row {
    /// Name of the MeshNode.
    pub name: String,
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
    /// The unconnected ones with the reason, by name.
    pub unconnected: Vec<(String, Reason)>,
}

/// All peers.
#[derive(Clone, Debug, Default)]
pub struct PathTable {
    rows: BTreeMap<PublicKey, Row>,
    /// Counts what the engine reported, by the names of the states.
    transitions: BTreeMap<(&'static str, &'static str, &'static str), u64>,
}

impl PathTable {
    /// Makes the table hold exactly these peers.
    pub fn set_peers(&mut self, peers: &BTreeMap<PublicKey, String>, now: Instant) {
        self.rows.retain(|key, _| peers.contains_key(key));
        for (key, name) in peers {
            let new = || Row {
                name: name.clone(),
                state: PathState::Connecting,
                since: now,
                shown: Shown::Pending,
                downs: 0,
            };
            self.rows.entry(*key).or_insert_with(new).name.clone_from(name);
        }
    }

    /// The engine reported a state. Returns the name of the peer if the news is worth a log line.
    pub fn report(&mut self, peer: &PublicKey, state: PathState, now: Instant) -> Option<&str> {
        let row = self.rows.get_mut(peer)?;
        if row.state.same_news(&state) {
            row.state = state;
            return None;
        }
        row.settle(now);
        let labels = (state_name(&row.state), state_name(&state), reason_name(&state));
        if is_direct(&row.state) != is_direct(&state) {
            row.since = now;
        }
        row.state = state;
        row.settle(now);
        *self.transitions.entry(labels).or_default() += 1;
        Some(&row.name)
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
        let mut summary = Summary::default();
        for row in self.rows.values_mut() {
            row.settle(now);
            match row.shown {
                Shown::Pending => {}
                Shown::Direct => summary.direct += 1,
                Shown::Down => {
                    summary.down += 1;
                    summary.unconnected.push((row.name.clone(), reason(&row.state)));
                }
            }
        }
        summary.unconnected.sort();
        summary
    }

    /// When time alone will change the summary.
    pub fn poll_timeout(&self) -> Option<Instant> {
        self.rows.values().filter_map(Row::due).min()
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

/// Whether packets go straight to the peer.
pub fn is_direct(state: &PathState) -> bool {
    matches!(state, PathState::Direct { .. })
}

/// The name of a state in tables and metrics.
pub fn state_name(state: &PathState) -> &'static str {
    match state {
        PathState::Direct { .. } => "direct",
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
        PathState::Down { reason } => *reason,
        PathState::Connecting | PathState::Direct { .. } => Reason::NotTriedYet,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use path::{CandidateKind, Selected, Tier};

    const DOWN: PathState = PathState::Down { reason: Reason::NoAnswer };

    fn direct(now: Instant) -> PathState {
        let pair = Selected { remote: "192.0.2.1:1".parse().unwrap(), kind: CandidateKind::Host, tier: Tier::Ipv4 };
        PathState::Direct { pair, rtt: Duration::from_millis(5), since: now }
    }

    fn table(now: Instant) -> (PathTable, PublicKey) {
        let key = PublicKey::from_bytes([7; 32]);
        let mut table = PathTable::default();
        table.set_peers(&BTreeMap::from([(key, "peer".into())]), now);
        (table, key)
    }

    fn s(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    fn counts(table: &mut PathTable, now: Instant) -> (u32, u32) {
        let summary = table.summary(now);
        (summary.direct, summary.down)
    }

    #[test]
    fn a_new_peer_counts_as_connected_at_once_and_as_unconnected_after_its_grace() {
        let t = Instant::now();
        let (mut table, key) = table(t);
        assert_eq!(counts(&mut table, t), (0, 0));
        assert_eq!(table.poll_timeout(), Some(t + GRACE));
        assert_eq!(counts(&mut table.clone(), t + GRACE), (0, 1));
        table.report(&key, direct(t), t + s(1));
        assert_eq!(counts(&mut table, t + s(1)), (1, 0));
        assert_eq!(table.poll_timeout(), None);
    }

    #[test]
    fn a_short_interruption_is_never_written() {
        let t = Instant::now();
        let (mut table, key) = table(t);
        table.report(&key, direct(t), t);
        table.report(&key, DOWN, t + s(100));
        assert_eq!(counts(&mut table, t + s(129)), (1, 0));
        table.report(&key, direct(t), t + s(129));
        assert_eq!(counts(&mut table, t + s(1000)), (1, 0));
    }

    #[test]
    fn an_unconnected_peer_is_named_with_its_reason() {
        let t = Instant::now();
        let (mut table, key) = table(t);
        table.report(&key, DOWN, t);
        assert_eq!(table.summary(t + GRACE).unconnected, [("peer".to_owned(), Reason::NoAnswer)]);
    }

    #[test]
    fn a_path_that_flaps_is_written_ever_less_often() {
        let t = Instant::now();
        let (mut table, key) = table(t);
        let (mut now, mut last, mut writes) = (t, (0, 0), 0);
        for _ in 0..120 {
            for (state, seconds) in [(direct(now), 40), (DOWN, 40)] {
                table.report(&key, state, now);
                for _ in 0..seconds {
                    now += s(1);
                    let shown = counts(&mut table, now);
                    writes += u32::from(shown != last);
                    last = shown;
                }
            }
        }
        // 160 minutes of flapping, 240 real changes.
        assert!(writes <= 10, "{writes}");
    }

    #[test]
    fn peers_that_left_are_forgotten_and_renamed_ones_keep_their_state() {
        let t = Instant::now();
        let (mut table, key) = table(t);
        table.report(&key, direct(t), t);
        table.set_peers(&BTreeMap::from([(key, "renamed".into())]), t);
        assert_eq!(table.rows()[&key].name, "renamed");
        assert!(is_direct(&table.rows()[&key].state));
        table.set_peers(&BTreeMap::new(), t);
        assert_eq!(table.report(&key, DOWN, t), None);
    }
}
