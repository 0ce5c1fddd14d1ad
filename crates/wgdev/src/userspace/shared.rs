//! What the threads of a device and its handle share.

use std::{
    io,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Instant,
};

use wire::key::PrivateKey;

use super::{
    agenda::Agenda,
    alarm::Alarm,
    peer::{Clock, NEVER, Outbox, Peer, PeerState},
    peers::Peers,
    stop::Stop,
    tun::Tun,
    udp::{Destination, Port},
};
use crate::DeviceStats;

pub(super) struct Shared {
    pub(super) tun: Tun,
    pub(super) port: Port,
    pub(super) peers: Peers,
    pub(super) mtu: u16,
    pub(super) stop: Stop,
    pub(super) agenda: Agenda,
    pub(super) alarm: Alarm,
    pub(super) counters: Counters,
    pub(super) clock: Clock,
}

/// [`DeviceStats`] while they are counted.
#[derive(Default)]
pub(super) struct Counters {
    pub(super) shared_dropped: AtomicU64,
    pub(super) invalid_messages: AtomicU64,
    pub(super) wrong_source: AtomicU64,
    pub(super) no_peer: AtomicU64,
    pub(super) no_endpoint: AtomicU64,
    pub(super) send_errors: AtomicU64,
    pub(super) interface_errors: AtomicU64,
}

pub(super) fn count(counter: &AtomicU64, by: u64) {
    if by > 0 {
        counter.fetch_add(by, Ordering::Relaxed);
    }
}

impl Counters {
    pub(super) fn snapshot(&self) -> DeviceStats {
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        DeviceStats {
            shared_dropped: read(&self.shared_dropped),
            invalid_messages: read(&self.invalid_messages),
            wrong_source: read(&self.wrong_source),
            no_peer: read(&self.no_peer),
            no_endpoint: read(&self.no_endpoint),
            send_errors: read(&self.send_errors),
            interface_errors: read(&self.interface_errors),
        }
    }
}

impl Shared {
    pub(super) fn new(tun: Tun, port: Port, private_key: &PrivateKey, mtu: u16) -> io::Result<Self> {
        Ok(Self {
            tun,
            port,
            peers: Peers::new(private_key, mtu),
            mtu,
            stop: Stop::new()?,
            agenda: Agenda::default(),
            alarm: Alarm::new(),
            counters: Counters::default(),
            clock: Clock::new(),
        })
    }

    /// Lets `act` change the state of a peer, registers the indexes it made and sets its alarm.
    /// Returns where the messages in `out` go, if the peer has an endpoint.
    pub(super) fn with_peer<T>(
        &self,
        peer: &Arc<Peer>,
        now: Instant,
        out: &mut Outbox,
        act: impl FnOnce(&mut PeerState, &mut Outbox) -> T,
    ) -> (T, Option<Destination>) {
        let mut state = peer.lock();
        let shown = |state: &PeerState| (state.rx_bytes, state.tx_bytes, state.last_handshake, state.endpoint);
        let before = shown(&state);
        let result = act(&mut state, out);
        if state.removed {
            // Somebody had it in hand while it was removed; it says nothing any more.
            *out = Outbox::default();
            return (result, None);
        }
        if shown(&state) != before {
            self.peers.lively.note(peer, now);
        }
        // Under the lock: nobody may see the answer to a message before its index is known.
        self.peers.add_indexes(peer, &mut out.indexes);
        let due = state.next_poll(now).map_or(NEVER, |at| self.clock.millis(at));
        self.agenda.set_due(peer, due);
        let destination = state.destination();
        drop(state);
        self.alarm.hint(due);
        (result, destination)
    }

    /// Ends all threads.
    pub(super) fn halt(&self) {
        self.stop.set();
        self.alarm.wake();
    }

    /// Sends the messages in `out` and empties it.
    pub(super) fn send(&self, peer: &Arc<Peer>, destination: Option<Destination>, out: &mut Outbox, wait: bool) {
        if let Some(to) = destination
            && !out.packets.is_empty()
        {
            let sent = self.port.send_all(&to, &out.packets, wait);
            count(&self.counters.send_errors, sent.errors);
            if sent.local_is_gone {
                let mut state = peer.lock();
                if state.local == to.local {
                    state.local = None;
                }
            }
        }
        out.packets.clear();
    }
}
