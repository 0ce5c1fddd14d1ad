//! One peer: the Noise core, where its packets go, and when it has to be looked at next.
//!
//! `gotatun`'s `Tunn` stamps everything with the time of its last `update_timers`, and tells nobody
//! when the next one is due. So it is polled before it is used, unless that was just done, and
//! [`Peer::due`] is an instant by which no timer of WireGuard can have been missed by more than
//! [`ACTIVE`].

mod core;
mod state;

#[cfg(test)]
mod tests;

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use gotatun::packet::Packet;
use parking_lot::{Mutex, MutexGuard};
use wire::key::PublicKey;

pub(super) use self::core::Common;
pub(super) use state::{Opened, PeerState};

use crate::PeerCounters;

/// How often a peer with recent data is polled: its timers are 5 to 180 s long.
const ACTIVE: Duration = Duration::from_secs(1);

/// A peer of the device.
pub(super) struct Peer {
    pub(super) key: PublicKey,
    state: Mutex<PeerState>,
    /// Milliseconds on the device's clock.
    due: AtomicU64,
    /// For when it stands in the agenda; `NEVER` if it doesn't.
    listed_for: AtomicU64,
    /// When something was last noted that the counters show; `None` while the peer is in no list of such.
    noted: Mutex<Option<Instant>>,
}

/// What is to be done after a peer's state has changed.
#[derive(Default)]
pub(super) struct Outbox {
    /// Messages for its endpoint.
    pub(super) packets: Vec<Packet>,
    /// Receiver indexes that from now on mean this peer.
    pub(super) indexes: Vec<u32>,
}

/// Milliseconds since the device was made.
#[derive(Clone, Copy, Debug)]
pub(super) struct Clock(Instant);

impl Clock {
    pub(super) fn new() -> Self {
        Self(Instant::now())
    }

    /// Rounded up, so that whoever sleeps until then finds the time has come.
    pub(super) fn millis(&self, at: Instant) -> u64 {
        let micros = at.saturating_duration_since(self.0).as_micros();
        u64::try_from(micros.div_ceil(1000)).unwrap_or(u64::MAX)
    }

    pub(super) fn instant(&self, millis: u64) -> Instant {
        self.0 + Duration::from_millis(millis)
    }
}

/// No timer runs.
pub(super) const NEVER: u64 = u64::MAX;

impl Peer {
    pub(super) fn new(key: PublicKey, state: PeerState) -> Arc<Self> {
        Arc::new(Self {
            key,
            state: Mutex::new(state),
            due: AtomicU64::new(NEVER),
            listed_for: AtomicU64::new(NEVER),
            noted: Mutex::new(None),
        })
    }

    /// Notes that the counters changed. Returns whether the peer has to be put into the list of those with news.
    pub(super) fn note(&self, now: Instant) -> bool {
        self.noted.lock().replace(now).is_none()
    }

    /// Whether that was noted within `time`; if not, the peer is in no list from now on.
    pub(super) fn is_noted(&self, now: Instant, time: Duration) -> bool {
        let mut noted = self.noted.lock();
        noted.take_if(|at| now.saturating_duration_since(*at) >= time);
        noted.is_some()
    }

    /// What the counters are; `state` is this peer's own.
    pub(super) fn counters(&self, state: &PeerState, now: Instant) -> PeerCounters {
        PeerCounters {
            public_key: self.key,
            endpoint: state.endpoint,
            rx_bytes: state.rx_bytes,
            tx_bytes: state.tx_bytes,
            last_handshake: state.last_handshake.map(|at| now - at),
        }
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, PeerState> {
        self.state.lock()
    }

    pub(super) fn due(&self) -> u64 {
        self.due.load(Ordering::SeqCst)
    }

    pub(super) fn set_due(&self, due: u64) {
        self.due.store(due, Ordering::SeqCst);
    }

    pub(super) fn listed_for(&self) -> u64 {
        self.listed_for.load(Ordering::SeqCst)
    }

    pub(super) fn set_listed_for(&self, due: u64) {
        self.listed_for.store(due, Ordering::SeqCst);
    }
}
