use super::*;
use path::{CandidateKind, Selected, Tier};

const DOWN: PathState = PathState::Down { reason: Reason::NoAnswer };

const PORTLESS: PathState = PathState::Down { reason: Reason::RelayPortsExhausted };

fn direct(now: Instant) -> PathState {
    let pair = Selected { remote: "192.0.2.1:1".parse().unwrap(), kind: CandidateKind::Host, tier: Tier::Ipv4 };
    PathState::Direct { pair, rtt: Duration::from_millis(5), since: now }
}

fn table(now: Instant) -> (PathTable, PublicKey) {
    let key = PublicKey::from_bytes([7; 32]);
    let mut table = PathTable::default();
    table.set_peers([(&key, "peer")].into_iter(), now);
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
fn a_peer_without_a_port_on_any_relay_is_counted_once_it_counts_as_unconnected() {
    let t = Instant::now();
    let (mut table, key) = table(t);
    table.report(&key, PORTLESS, t);
    assert_eq!(table.summary(t).portless, 0);
    assert_eq!(table.summary(t + GRACE).portless, 1);
    table.report(&key, DOWN, t + GRACE);
    assert_eq!(table.summary(t + GRACE).portless, 0);
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
    table.set_peers([(&key, "renamed")].into_iter(), t);
    assert_eq!(&*table.rows()[&key].name, "renamed");
    assert!(matches!(table.rows()[&key].state(), PathState::Direct { .. }));
    table.set_peers(std::iter::empty(), t);
    assert_eq!(table.report(&key, DOWN, t), None);
    assert_eq!((table.states(), table.poll_timeout(), counts(&mut table, t + GRACE)), ([0; 5], None, (0, 0)));
}

#[test]
fn what_is_kept_beside_the_rows_is_what_the_rows_say() {
    let t = Instant::now();
    let keys: Vec<PublicKey> = (1..30).map(|n| PublicKey::from_bytes([n; 32])).collect();
    let mut table = PathTable::default();
    table.set_peers(keys.iter().map(|key| (key, "peer")), t);
    for step in 0..600u64 {
        let (now, key) = (t + s(step), &keys[(step * 7 % 29) as usize]);
        match step % 7 {
            0 => table.set_peer(key, Some("other"), now),
            1 => table.set_peer(key, None, now),
            2 if step % 4 == 0 => _ = table.report(key, PORTLESS, now),
            2 => _ = table.report(key, DOWN, now),
            3 => _ = table.report(key, relayed(now), now),
            4 => _ = table.report(key, PathState::Idle, now),
            _ => _ = table.report(key, direct(now), now),
        }
        let summary = table.summary(now);
        let count = |shown| table.rows.values().filter(|row| row.shown == shown).count() as u32;
        let shown = [Class::Direct, Class::Relayed, Class::Down].map(|class| count(Shown::As(class)));
        assert_eq!([summary.direct, summary.relayed, summary.down], shown);
        assert_eq!(summary.portless as usize, table.rows.values().filter(|row| row.is_portless()).count());
        assert_eq!(summary.unconnected.len(), NAMED_PEERS.min(summary.down as usize));
        assert_eq!(table.poll_timeout(), table.rows.values().filter_map(Row::due).min());
        assert_eq!(table.states.iter().sum::<u32>(), table.rows.len() as u32);
        let in_state = |n| table.rows.values().filter(|row| place(&row.state()) == n).count() as u32;
        assert_eq!(table.states, [0, 1, 2, 3, 4].map(in_state));
    }
}

fn relayed(now: Instant) -> PathState {
    let endpoint = "192.0.2.9:51900".parse().unwrap();
    let reason = Reason::HardNat;
    PathState::Relayed { relay: path::RelayId([9; 32]), endpoint, rtt: None, since: now, reason }
}

#[test]
fn a_relayed_peer_is_connected_and_counted_apart_once_it_stays() {
    let t = Instant::now();
    let (mut table, key) = table(t);
    table.report(&key, relayed(t), t);
    assert_eq!((table.states(), table.summary(t)), ([0, 1, 0, 0, 0], Summary::default()));
    let summary = table.summary(t + RELAYED_AFTER);
    assert_eq!((summary.direct, summary.relayed, summary.down, summary.unconnected.len()), (0, 1, 0, 0));
    assert_eq!(table.poll_timeout(), None);
    assert!(table.transitions().contains_key(&("connecting", "relayed", "HardNAT")));
}

#[test]
fn a_pair_that_nobody_needs_is_counted_as_it_was_last_and_missed_by_nobody() {
    let t = Instant::now();
    let (mut table, key) = table(t);
    table.report(&key, PathState::Idle, t);
    assert_eq!((table.states(), counts(&mut table, t + s(3600))), ([0, 0, 0, 0, 1], (0, 0)), "it was never needed");
    table.report(&key, direct(t), t + s(3600));
    table.report(&key, PathState::Idle, t + s(3900));
    assert_eq!(counts(&mut table, t + s(9000)), (1, 0));
    // To be made anew takes a moment, which nobody writes down.
    table.report(&key, PathState::Connecting, t + s(9000));
    table.report(&key, direct(t), t + s(9001));
    assert_eq!(counts(&mut table, t + s(9001)), (1, 0));
    table.report(&key, DOWN, t + s(9100));
    assert_eq!(counts(&mut table, t + s(9130)), (0, 1));
    table.report(&key, PathState::Idle, t + s(9400));
    assert_eq!(
        (counts(&mut table, t + s(9400)), table.poll_timeout()),
        ((0, 0), None),
        "whom nobody needs is not missed"
    );
}

#[test]
fn a_pair_that_leaves_the_relay_soon_was_never_shown_on_it() {
    let t = Instant::now();
    let (mut table, key) = table(t);
    table.report(&key, relayed(t), t);
    table.report(&key, direct(t), t + s(1));
    let summary = table.summary(t + s(1));
    assert_eq!((summary.direct, summary.relayed), (1, 0));
}

#[test]
fn falling_back_to_a_relay_is_shown_late_and_coming_back_later_each_time() {
    let t = Instant::now();
    let (mut table, key) = table(t);
    let counts = |table: &mut PathTable, now| {
        let summary = table.summary(now);
        (summary.direct, summary.relayed, summary.down)
    };
    table.report(&key, direct(t), t);
    table.report(&key, relayed(t), t + s(100));
    assert_eq!(counts(&mut table, t + s(129)), (1, 0, 0));
    assert_eq!(counts(&mut table, t + s(130)), (0, 1, 0));
    table.report(&key, direct(t), t + s(200));
    assert_eq!(counts(&mut table, t + s(209)), (0, 1, 0));
    assert_eq!(counts(&mut table, t + s(210)), (1, 0, 0));
    table.report(&key, DOWN, t + s(300));
    assert_eq!(counts(&mut table, t + s(330)), (0, 0, 1));
}
