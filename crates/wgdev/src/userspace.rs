//! WireGuard in this process, on a persistent TUN interface.
//!
//! Three threads share one `Shared`. `outbound` reads the interface, finds the peer by destination,
//! seals under its lock and sends; `inbound` receives, finds the peer by receiver index, opens under its
//! lock, checks the source and writes to the interface; `timers` polls peers when they are due. Packets
//! cross each step in batches: the kernel hands over and takes up to 64 KiB of a flow at once on both
//! sides (`split`, `coalesce`, `udp`), and a peer's lock is taken once for each.

mod agenda;
mod alarm;
mod coalesce;
mod inbound;
mod ip;
mod lively;
mod outbound;
mod peer;
mod peers;
mod shared;
mod split;
mod stop;
mod timers;
mod tun;
mod udp;
mod vnet;

#[cfg(test)]
mod offload_tests;

use std::{io, sync::Arc, thread, time::Instant};

use tokio::sync::mpsc;
use wire::key::PublicKey;

use self::{
    peer::{Outbox, Peer},
    shared::Shared,
    tun::Tun,
    udp::{Destination, Port},
};
use crate::{
    Backend, BoxFuture, Datagram, Delta, Device, DeviceConfig, DeviceError, DeviceStats, PeerCounters, PeerStatus,
};

/// A userspace WireGuard device.
///
/// Dropping it stops its threads and leaves the interface as it is.
pub struct Userspace {
    name: String,
    shared: Arc<Shared>,
    arrived: tokio::sync::Mutex<mpsc::Receiver<Datagram>>,
    threads: Vec<thread::JoinHandle<()>>,
}

impl Userspace {
    /// Binds the port, attaches to the interface or creates it, and starts. Socket and interface are
    /// those of the calling thread's network namespace.
    pub fn open(config: DeviceConfig) -> Result<Self, DeviceError> {
        let DeviceConfig { name, private_key, listen_port, fwmark, mtu } = config;
        // The port first: an interface without anybody behind it is worse than none.
        let port = Port::bind(listen_port, fwmark)?;
        let tun = Tun::attach(&name, mtu)?;
        let shared =
            Shared::new(tun, port, &private_key, mtu).map_err(DeviceError::io("make the stop event of the device"))?;
        let (queue, arrived) = mpsc::channel(inbound::SHARED_QUEUE);
        let mut device = Self {
            name,
            shared: Arc::new(shared),
            arrived: tokio::sync::Mutex::new(arrived),
            threads: Vec::with_capacity(3),
        };
        device.spawn("wg-in", move |shared| inbound::run(shared, queue))?;
        device.spawn("wg-out", outbound::run)?;
        device.spawn("wg-timers", timers::run)?;
        Ok(device)
    }

    fn spawn(&mut self, name: &str, run: impl FnOnce(&Shared) + Send + 'static) -> Result<(), DeviceError> {
        let shared = self.shared.clone();
        let thread = thread::Builder::new()
            .name(name.into())
            .spawn(move || {
                let _halt = HaltAtEnd(&shared);
                run(&shared);
            })
            .map_err(DeviceError::io("start a thread of the device"))?;
        self.threads.push(thread);
        Ok(())
    }

    fn check(&self) -> Result<(), DeviceError> {
        if self.shared.stop.is_set() {
            return Err(DeviceError::Stopped);
        }
        Ok(())
    }

    /// Lets a new keepalive or endpoint take effect.
    fn refresh(&self, peer: &Arc<Peer>) {
        let (now, mut out) = (Instant::now(), Outbox::default());
        let ((), to) = self.shared.with_peer(peer, now, &mut out, |state, out| state.touch(now, out));
        self.shared.send(peer, to, &mut out, false);
    }

    fn initiate(&self, key: &PublicKey) -> Result<(), DeviceError> {
        self.check()?;
        let peer = self.shared.peers.by_key(key);
        let peer = peer.ok_or(DeviceError::UnknownPeer(*key))?;
        let (now, mut out) = (Instant::now(), Outbox::default());
        let ((), to) = self.shared.with_peer(&peer, now, &mut out, |state, out| {
            if state.endpoint.is_some() {
                state.initiate(now, out);
            }
        });
        to.ok_or(DeviceError::NoEndpoint(*key))?;
        self.shared.send(&peer, to, &mut out, false);
        Ok(())
    }
}

/// A device with two threads is none: whichever ends, also by a panic, ends the others, and the handle says so.
struct HaltAtEnd<'a>(&'a Shared);

impl Drop for HaltAtEnd<'_> {
    fn drop(&mut self) {
        self.0.halt();
    }
}

impl Drop for Userspace {
    fn drop(&mut self) {
        self.shared.halt();
        for thread in self.threads.drain(..) {
            if thread.join().is_err() {
                tracing::error!("a thread of the device had panicked");
            }
        }
    }
}

impl Device for Userspace {
    fn backend(&self) -> Backend {
        Backend::Userspace
    }

    fn name(&self) -> &str {
        &self.name
    }

    fn if_index(&self) -> u32 {
        self.shared.tun.if_index()
    }

    fn listen_port(&self) -> u16 {
        self.shared.port.port()
    }

    fn mtu(&self) -> u16 {
        self.shared.mtu
    }

    fn apply<'a>(&'a self, delta: &'a Delta) -> BoxFuture<'a, Result<(), DeviceError>> {
        Box::pin(async move {
            self.check()?;
            self.shared.peers.apply(delta, |peer| self.refresh(peer))
        })
    }

    fn peers(&self) -> BoxFuture<'_, Result<Vec<PeerStatus>, DeviceError>> {
        Box::pin(async move {
            self.check()?;
            Ok(self.shared.peers.statuses(Instant::now()))
        })
    }

    fn counters(&self) -> BoxFuture<'_, Result<Vec<PeerCounters>, DeviceError>> {
        Box::pin(async move {
            self.check()?;
            Ok(self.shared.peers.counters(Instant::now()))
        })
    }

    fn start_handshake<'a>(&'a self, peer: &'a PublicKey) -> BoxFuture<'a, Result<(), DeviceError>> {
        Box::pin(async move { self.initiate(peer) })
    }

    fn send(&self, datagram: Datagram) -> BoxFuture<'_, io::Result<()>> {
        Box::pin(async move {
            let Datagram { remote, local, payload } = datagram;
            let to = Destination { remote, local };
            self.shared.port.send_one(&to, &payload, None)
        })
    }

    fn send_with_ttl(&self, datagram: Datagram, ttl: u8) -> BoxFuture<'_, io::Result<()>> {
        Box::pin(async move {
            let Datagram { remote, local, payload } = datagram;
            self.shared.port.send_one(&Destination { remote, local }, &payload, Some(ttl))
        })
    }

    fn recv(&self) -> BoxFuture<'_, io::Result<Datagram>> {
        Box::pin(async move {
            let datagram = self.arrived.lock().await.recv().await;
            datagram.ok_or_else(|| io::ErrorKind::BrokenPipe.into())
        })
    }

    fn stats(&self) -> DeviceStats {
        self.shared.counters.snapshot()
    }
}
