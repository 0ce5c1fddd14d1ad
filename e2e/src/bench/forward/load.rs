//! Datagrams under way, and how many arrive.

use std::net::SocketAddr;
use std::os::fd::AsRawFd;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail, ensure};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags};
use socket2::Socket;
use udpsock::{Outgoing, Receiver, Sender};

use super::way::Carrier;

/// Bytes on their way at most: what a relay port's socket takes even when every datagram has the kernel's overhead.
const WINDOW_BYTES: u64 = 256 << 10;
/// And datagrams.
const WINDOW: u64 = 512;
/// Nothing arrives for so long: what is missing is lost, and others may be sent in its place.
const STALLED: Duration = Duration::from_millis(50);
/// A reply within this, or none.
const PATIENCE: u16 = 5_000;
/// Datagrams for one figure.
const LATENCIES: usize = 5_000;
/// Datagrams handed over with one call when each is alone.
const BURST: usize = 32;

/// What is sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shape {
    /// Full packets, merged as a WireGuard with offloads sends a TCP stream.
    Bulk,
    /// Small ones, each alone.
    Small,
}

impl Shape {
    pub const ALL: [Self; 2] = [Self::Bulk, Self::Small];

    pub fn name(self, pairs: usize) -> String {
        let what = match self {
            Self::Bulk => "1,432 bytes, merged by 32",
            Self::Small => "128 bytes, single",
        };
        format!("{what}, pairs: {pairs}")
    }

    pub fn unit(self) -> &'static str {
        match self {
            Self::Bulk => "Gbit/s",
            Self::Small => "thousand/s",
        }
    }

    fn bytes(self) -> usize {
        match self {
            Self::Bulk => 1_432,
            Self::Small => 128,
        }
    }

    fn merged(self) -> usize {
        match self {
            Self::Bulk => 32,
            Self::Small => 1,
        }
    }

    /// In the unit of this shape.
    fn rate(self, datagrams: u64, seconds: f64) -> f64 {
        match self {
            Self::Bulk => datagrams as f64 * self.bytes() as f64 * 8.0 / seconds / 1e9,
            Self::Small => datagrams as f64 / seconds / 1e3,
        }
    }
}

/// What arrived.
#[derive(Clone, Copy, Debug)]
pub struct Carried {
    /// A second.
    pub rate: f64,
    /// For each CPU second of the program in the middle, if it is one.
    pub rate_per_core: Option<f64>,
}

/// Sends for so long.
pub fn carry(carrier: &Carrier, shape: Shape, seconds: u8) -> Result<Carried> {
    let (sent, received, stop) = (AtomicU64::new(0), AtomicU64::new(0), AtomicBool::new(false));
    thread::scope(|scope| {
        let receiver = scope.spawn(|| receive_all(carrier, &received, &stop));
        let sender = scope.spawn(|| send_all(carrier, shape, &sent, &received, &stop));
        // The first moments are the caches'.
        thread::sleep(Duration::from_millis(300));
        let before = (received.load(Ordering::Relaxed), carrier.cpu(), Instant::now());
        thread::sleep(Duration::from_secs(seconds.into()));
        let after = (received.load(Ordering::Relaxed), carrier.cpu(), Instant::now());
        stop.store(true, Ordering::Relaxed);
        sender.join().map_err(|_| anyhow!("the sender panicked"))??;
        receiver.join().map_err(|_| anyhow!("the receiver panicked"))??;
        let datagrams = after.0 - before.0;
        ensure!(datagrams > 0, "nothing arrived");
        let cpu = after.1?.zip(before.1?).map(|(after, before)| after - before);
        Ok(Carried {
            rate: shape.rate(datagrams, (after.2 - before.2).as_secs_f64()),
            rate_per_core: cpu.map(|cpu| shape.rate(datagrams, cpu)),
        })
    })
}

fn send_all(carrier: &Carrier, shape: Shape, sent: &AtomicU64, received: &AtomicU64, stop: &AtomicBool) -> Result<()> {
    let header = (carrier.flows[0].header)(shape.bytes());
    let mut one = header.clone();
    one.extend([4, 0, 0, 0]);
    one.resize(header.len() + shape.bytes(), 0x5a);
    let data = one.repeat(shape.merged());
    let calls = if shape.merged() > 1 { 1 } else { BURST };
    let per_call = (calls * shape.merged()) as u64;
    let window = (WINDOW_BYTES / one.len() as u64).min(WINDOW).max(per_call);
    let mut sender = Sender::new(false);
    let mut moved = (0, Instant::now());
    for (socket, flow) in carrier.from.iter().zip(&carrier.flows).cycle() {
        loop {
            if stop.load(Ordering::Relaxed) {
                return Ok(());
            }
            let (out, back) = (sent.load(Ordering::Relaxed), received.load(Ordering::Relaxed));
            if back != moved.0 {
                moved = (back, Instant::now());
            } else if moved.1.elapsed() > STALLED {
                sent.store(back, Ordering::Relaxed);
                moved.1 = Instant::now();
            }
            if out.saturating_sub(back) + per_call <= window {
                break;
            }
            thread::yield_now();
        }
        let outgoing: Vec<_> =
            (0..calls).map(|_| Outgoing { to: flow.to, local: None, data: &data, segment: one.len() }).collect();
        let taken = sender.send(socket, &outgoing);
        ensure!(taken.errors == 0, "the kernel refused {} datagrams", taken.errors);
        sent.fetch_add(per_call, Ordering::Relaxed);
    }
    Ok(())
}

fn receive_all(carrier: &Carrier, count: &AtomicU64, stop: &AtomicBool) -> Result<()> {
    let epoll = Epoll::new(EpollCreateFlags::empty()).context("an epoll")?;
    for (index, socket) in (0u64..).zip(&carrier.to) {
        epoll.add(socket, EpollEvent::new(EpollFlags::EPOLLIN, index)).context("watching a socket")?;
    }
    let mut receiver = Receiver::new();
    let mut received = Vec::new();
    let mut ready = [EpollEvent::empty(); 64];
    while !stop.load(Ordering::Relaxed) {
        let some = epoll.wait(&mut ready, 20u8).context("waiting for datagrams")?;
        for event in &ready[..some] {
            let index = usize::try_from(event.data()).context("the index of a socket")?;
            received.clear();
            match receiver.receive(carrier.to[index].as_raw_fd(), &mut received) {
                Err(error) if error.kind() != std::io::ErrorKind::WouldBlock => return Err(error.into()),
                _ => {}
            }
            let datagrams: usize = received.iter().map(|one| one.data.len().div_ceil(one.segment)).sum();
            count.fetch_add(datagrams as u64, Ordering::Relaxed);
        }
    }
    Ok(())
}

/// Median time of one small datagram from end to end, in microseconds; the next is sent when it has arrived.
pub fn latency(carrier: &Carrier) -> Result<f64> {
    let flow = &carrier.flows[0];
    let mut datagram = (flow.header)(Shape::Small.bytes());
    let header = datagram.len();
    datagram.extend([4, 0, 0, 0]);
    datagram.resize(header + Shape::Small.bytes(), 0);
    let mut times = Vec::with_capacity(LATENCIES);
    for _ in 0..LATENCIES {
        let began = Instant::now();
        send(&carrier.from[0], flow.to, &datagram)?;
        receive(&carrier.to[0])?;
        times.push(began.elapsed().as_secs_f64() * 1e6);
    }
    times.sort_by(f64::total_cmp);
    Ok(times[times.len() / 2])
}

/// Sends one datagram.
pub fn send(socket: &Socket, to: SocketAddr, datagram: &[u8]) -> Result<()> {
    socket.send_to(datagram, &to.into()).with_context(|| format!("sending to {to}")).map(drop)
}

/// The next datagram.
pub fn receive(socket: &Socket) -> Result<Vec<u8>> {
    let mut buffer = vec![0; 2048];
    let mut ready = [PollFd::new(std::os::fd::AsFd::as_fd(socket), PollFlags::POLLIN)];
    if poll(&mut ready, PollTimeout::from(PATIENCE)).context("waiting for a datagram")? == 0 {
        bail!("no datagram within {PATIENCE} ms");
    }
    let length = std::io::Read::read(&mut &*socket, &mut buffer).context("receiving a datagram")?;
    buffer.truncate(length);
    Ok(buffer)
}
