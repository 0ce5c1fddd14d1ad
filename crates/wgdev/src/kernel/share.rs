//! When the shared port is open, and what waits there to be received.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use parking_lot::Mutex;
use tokio::sync::mpsc;

use super::port::{BUFFER, Family, Port};
use crate::Datagram;

/// Datagrams that wait for `recv`: a burst of probes from every peer of a middling mesh.
pub(super) const QUEUE: usize = 256;

/// Nothing that shares the port is larger: probes and STUN fit into one packet of 1,500 bytes.
const MAX_SHARED: usize = 2048;

/// The sockets close after so long without anybody who receives or sends: each costs every UDP datagram of the host
/// about 100 ns.
const IDLE: Duration = Duration::from_secs(60);

/// What the handle and the thread of a device share.
pub(super) struct Share {
    port: Mutex<Option<Arc<Port>>>,
    receiving: AtomicUsize,
    last_use: Mutex<Instant>,
    /// A port of an interface that is down answers "port unreachable", so nothing may be sent from it.
    up: AtomicBool,
    dropped: AtomicU64,
}

impl Share {
    pub(super) fn new() -> Self {
        Self {
            port: Mutex::new(None),
            receiving: AtomicUsize::new(0),
            last_use: Mutex::new(Instant::now()),
            up: AtomicBool::new(true),
            dropped: AtomicU64::new(0),
        }
    }

    /// The sockets, if they are open; they stay open for a while.
    pub(super) fn port(&self) -> Option<Arc<Port>> {
        let port = self.port.lock();
        *self.last_use.lock() = Instant::now();
        port.clone()
    }

    pub(super) fn open(&self, port: Arc<Port>) {
        let mut slot = self.port.lock();
        *self.last_use.lock() = Instant::now();
        *slot = Some(port);
    }

    /// While what it returns lives somebody receives.
    pub(super) fn receiving(&self) -> Receiving<'_> {
        self.receiving.fetch_add(1, Ordering::SeqCst);
        Receiving(self)
    }

    /// When to ask [`Share::close_if_idle`]; `None` while the sockets are closed.
    pub(super) fn idle_at(&self) -> Option<Instant> {
        self.port.lock().as_ref()?;
        let since = if self.is_receiving() { Instant::now() } else { *self.last_use.lock() };
        Some(since + IDLE)
    }

    /// Closes the sockets if nobody has needed them for long; true when it did.
    pub(super) fn close_if_idle(&self) -> bool {
        // Looked at while the sockets can't be taken for use: who gets them after this finds none and opens them.
        let mut port = self.port.lock();
        let idle = !self.is_receiving() && self.last_use.lock().elapsed() >= IDLE;
        idle && port.take().is_some()
    }

    pub(super) fn is_up(&self) -> bool {
        self.up.load(Ordering::SeqCst)
    }

    pub(super) fn set_up(&self, up: bool) {
        self.up.store(up, Ordering::SeqCst);
    }

    /// Datagrams that found the queue full or were too large.
    pub(super) fn dropped(&self) -> u64 {
        self.dropped.load(Ordering::Relaxed)
    }

    fn is_receiving(&self) -> bool {
        self.receiving.load(Ordering::SeqCst) > 0
    }
}

/// Somebody who receives.
pub(super) struct Receiving<'a>(&'a Share);

impl Drop for Receiving<'_> {
    fn drop(&mut self) {
        *self.0.last_use.lock() = Instant::now();
        self.0.receiving.fetch_sub(1, Ordering::SeqCst);
    }
}

/// Moves datagrams of one family to the queue until it is aborted.
pub(super) async fn receive(share: Arc<Share>, port: Arc<Port>, family: Family, queue: mpsc::Sender<Datagram>) {
    let socket = match port.watch(family) {
        Ok(socket) => socket,
        Err(error) => {
            tracing::error!(%error, ?family, "the shared port can't be watched");
            return;
        }
    };
    let mut buffer = vec![0; BUFFER];
    while let Ok(mut ready) = socket.readable().await {
        let each = |datagram: Datagram| {
            let fits = datagram.payload.len() <= MAX_SHARED && queue.try_send(datagram).is_ok();
            share.dropped.fetch_add(u64::from(!fits), Ordering::Relaxed);
        };
        match port.receive(family, &mut buffer, each) {
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => ready.clear_ready(),
            // A pending error of the socket: it is reported once, and the next call goes on.
            Err(error) => tracing::trace!(%error, "receive failed"),
            Ok(()) => {}
        }
    }
}
