//! The thread that polls peers when they are due.

use std::time::{Duration, Instant};

use super::{peer::Outbox, shared::Shared};

/// Stale receiver indexes are swept this often, if there is anything to do at all.
const SWEEP_EVERY: Duration = Duration::from_secs(60);

pub(super) fn run(shared: &Shared) {
    let mut out = Outbox::default();
    let mut swept = Instant::now();
    while !shared.stop.is_set() {
        let now = Instant::now();
        poll_due(shared, now, &mut out);
        if now - swept >= SWEEP_EVERY {
            shared.peers.sweep_indexes();
            swept = now;
        }
        shared.alarm.sleep(
            || {
                let stopped = shared.stop.is_set().then_some(0);
                stopped.or_else(|| shared.agenda.first())
            },
            |due| shared.clock.instant(due),
        );
    }
}

fn poll_due(shared: &Shared, now: Instant, out: &mut Outbox) {
    for peer in shared.agenda.take_due(shared.clock.millis(now)) {
        let ((), to) = shared.with_peer(&peer, now, out, |state, out| state.poll(now, out));
        shared.send(&peer, to, out, false);
    }
}
