//! A steady ping from inside a network namespace, with the instants of every echo: the system's `ping` tells neither exactly, and
//! is not on every machine.

use std::fs::File;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use nix::sched::{CloneFlags, setns};
use socket2::{Domain, Protocol, Socket, Type};

use crate::net::namespace::Namespace;

/// 20 Hz.
pub const INTERVAL: Duration = Duration::from_millis(50);
/// Pings at most: the sequence number has 16 bits.
const MOST: usize = 65_536;
/// An echo that takes longer counts as lost.
const LAST_ECHO: Duration = Duration::from_secs(1);

/// One ping.
#[derive(Clone, Copy, Debug)]
struct Ping {
    sent: Instant,
    echoed: Option<Instant>,
}

/// A stream of pings that runs until it is stopped.
#[derive(Debug)]
pub struct Stream {
    pings: Arc<Mutex<Vec<Ping>>>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

/// What became of a stream.
#[derive(Clone, Debug, PartialEq)]
pub struct Summary {
    /// Pings sent.
    pub sent: usize,
    /// Pings without an echo.
    pub lost: usize,
    /// The longest time in which pings were lost, in seconds.
    pub outage: f64,
    /// Round trips in milliseconds.
    pub round_trips: Vec<f64>,
}

impl Stream {
    /// Starts pinging `to` from inside `namespace`.
    pub fn start(namespace: &Namespace, to: Ipv4Addr, interval: Duration) -> Result<Self> {
        let path = namespace.path();
        let file = File::open(&path).with_context(|| format!("opening {}", path.display()))?;
        let pings = Arc::new(Mutex::new(Vec::new()));
        let stop = Arc::new(AtomicBool::new(false));
        let (shared, end) = (Arc::clone(&pings), Arc::clone(&stop));
        let (ready, opened) = std::sync::mpsc::channel();
        let thread = std::thread::spawn(move || {
            // Only this thread moves.
            let socket = setns(&file, CloneFlags::CLONE_NEWNET)
                .context("entering the namespace")
                .and_then(|()| Socket::new(Domain::IPV4, Type::RAW, Some(Protocol::ICMPV4)).context("a raw socket"));
            let result = socket.map(|socket| ready.send(Ok(())).map(|()| socket).ok());
            match result {
                Ok(Some(socket)) => run(&socket, to, interval, &shared, &end),
                Ok(None) => {}
                Err(error) => drop(ready.send(Err(error))),
            }
        });
        opened.recv().context("the pinging thread ended")??;
        Ok(Self { pings, stop, thread: Some(thread) })
    }

    /// When the first echo after `instant` came, if one has.
    #[must_use]
    pub fn first_echo_after(&self, instant: Instant) -> Option<Instant> {
        lock(&self.pings).iter().filter_map(|ping| ping.echoed).filter(|at| *at >= instant).min()
    }

    /// How many of the last `count` pings that were sent so long ago have had an echo.
    #[must_use]
    pub fn echoes_of_last(&self, count: usize, ago: Duration) -> usize {
        let pings = lock(&self.pings);
        let due = pings.iter().rev().skip_while(|ping| ping.sent.elapsed() < ago);
        due.take(count).filter(|ping| ping.echoed.is_some()).count()
    }

    /// Ends it, the last echoes included.
    #[must_use]
    pub fn stop(mut self) -> Summary {
        self.join();
        summarise(&lock(&self.pings))
    }

    fn join(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        self.join();
    }
}

fn run(socket: &Socket, to: Ipv4Addr, interval: Duration, pings: &Mutex<Vec<Ping>>, stop: &AtomicBool) {
    static STREAMS: std::sync::atomic::AtomicU16 = std::sync::atomic::AtomicU16::new(0);
    let id = STREAMS.fetch_add(1, Ordering::Relaxed) ^ (std::process::id() & 0xffff) as u16;
    let target = SocketAddr::from((to, 0)).into();
    let mut due = Instant::now();
    let mut end = None;
    loop {
        let now = Instant::now();
        if stop.load(Ordering::Relaxed) && end.is_none() {
            end = Some(now + LAST_ECHO);
        }
        if end.is_some_and(|end| now >= end || is_complete(&lock(pings), now)) {
            return;
        }
        if end.is_none() && now >= due {
            let mut all = lock(pings);
            if all.len() < MOST {
                all.push(Ping { sent: now, echoed: None });
                let request = request(id, (all.len() - 1) as u16);
                // A route that is missing for a moment is part of what is measured.
                let _ = socket.send_to(&request, &target);
            }
            due += interval;
        }
        let left = due.saturating_duration_since(Instant::now()).clamp(Duration::from_millis(1), interval);
        receive(socket, left, id, to, pings);
    }
}

/// Whether no echo is awaited any more. The last ping's is not the last to come: where a path became shorter it overtakes others.
fn is_complete(pings: &[Ping], now: Instant) -> bool {
    let mut awaited = pings.iter().rev().take_while(|ping| now - ping.sent < LAST_ECHO);
    awaited.all(|ping| ping.echoed.is_some())
}

fn receive(socket: &Socket, wait: Duration, id: u16, from: Ipv4Addr, pings: &Mutex<Vec<Ping>>) {
    use std::io::Read;
    let mut buffer = [0; 256];
    let mut reader = socket;
    if socket.set_read_timeout(Some(wait)).is_err() {
        return;
    }
    let Ok(length) = reader.read(&mut buffer) else { return };
    let Some(sequence) = sequence(&buffer[..length], id, from) else { return };
    if let Some(ping) = lock(pings).get_mut(usize::from(sequence)) {
        ping.echoed.get_or_insert_with(Instant::now);
    }
}

/// The sequence number of an echo reply (RFC 792) that belongs to this stream.
fn sequence(packet: &[u8], id: u16, from: Ipv4Addr) -> Option<u16> {
    let header = usize::from(packet.first()? & 0xf) * 4;
    let icmp = packet.get(header..header + 8)?;
    let ours = icmp[0] == 0 && icmp[4..6] == id.to_be_bytes() && packet.get(12..16)? == from.octets();
    ours.then(|| u16::from_be_bytes([icmp[6], icmp[7]]))
}

fn request(id: u16, sequence: u16) -> [u8; 8] {
    let mut packet = [8, 0, 0, 0, 0, 0, 0, 0];
    packet[4..6].copy_from_slice(&id.to_be_bytes());
    packet[6..8].copy_from_slice(&sequence.to_be_bytes());
    let sum: u32 = 0x0800 + u32::from(id) + u32::from(sequence);
    let folded = (sum & 0xffff) + (sum >> 16);
    let folded = (folded & 0xffff) + (folded >> 16);
    packet[2..4].copy_from_slice(&(!(folded as u16)).to_be_bytes());
    packet
}

fn summarise(pings: &[Ping]) -> Summary {
    let mut outage = Duration::ZERO;
    let mut since: Option<Instant> = None;
    for ping in pings {
        match ping.echoed {
            None => since = since.or(Some(ping.sent)),
            Some(_) => outage = outage.max(since.take().map_or(Duration::ZERO, |since| ping.sent - since)),
        }
    }
    let unfinished = since.and(pings.last()).zip(since).map(|(last, since)| last.sent - since);
    let round_trip = |ping: &Ping| ping.echoed.map(|at| (at - ping.sent).as_secs_f64() * 1000.0);
    let round_trips: Vec<f64> = pings.iter().filter_map(round_trip).collect();
    Summary {
        sent: pings.len(),
        lost: pings.len() - round_trips.len(),
        outage: outage.max(unfinished.unwrap_or_default()).as_secs_f64(),
        round_trips,
    }
}

/// A thread that panicked has written whole entries only.
fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_outage_is_the_longest_run_of_lost_pings() {
        let begin = Instant::now();
        let ping = |(i, echoed): (usize, &bool)| {
            let sent = begin + INTERVAL * u32::try_from(i).unwrap();
            Ping { sent, echoed: echoed.then(|| sent + Duration::from_millis(40)) }
        };
        let of = |echoes: &[bool]| summarise(&echoes.iter().enumerate().map(ping).collect::<Vec<_>>());
        let one = of(&[true, false, true, false, false, true]);
        assert_eq!((one.sent, one.lost), (6, 3));
        assert!((one.outage - 0.1).abs() < 1e-9, "{one:?}");
        assert!((of(&[true, false, false, false]).outage - 0.1).abs() < 1e-9);
        assert_eq!(of(&[true, true]).outage, 0.0);
        assert_eq!(of(&[]).sent, 0);
    }

    #[test]
    fn an_echo_that_was_overtaken_is_still_awaited() {
        let sent = Instant::now();
        let ping = |sent, echoed: bool| Ping { sent, echoed: echoed.then_some(sent) };
        let (later, latest) = (sent + INTERVAL, sent + LAST_ECHO);
        let pings = [ping(sent, false), ping(later, true)];
        assert!(!is_complete(&pings, later));
        assert!(is_complete(&pings, latest), "the first one is lost");
        assert!(is_complete(&[ping(sent, true), ping(later, true)], later));
        assert!(is_complete(&[], sent));
    }

    #[test]
    fn a_request_has_a_right_checksum_and_only_its_echo_counts() {
        for (id, seq) in [(0, 0), (1, 2), (0xffff, 0xffff), (0xf7ff, 0)] {
            let sent = request(id, seq);
            let sum: u32 = sent.chunks(2).map(|pair| u32::from(u16::from_be_bytes([pair[0], pair[1]]))).sum();
            assert_eq!((sum & 0xffff) + (sum >> 16), 0xffff);
            let from = Ipv4Addr::new(10, 118, 0, 2);
            let mut packet = vec![0x45; 12];
            packet.extend(from.octets());
            packet.extend([0; 4]);
            packet.extend(sent);
            assert_eq!(sequence(&packet, id, from), None, "a request is no echo");
            packet[20] = 0;
            assert_eq!(sequence(&packet, id, from), Some(seq));
            assert_eq!(sequence(&packet, id ^ 1, from), None);
            assert_eq!(sequence(&packet, id, Ipv4Addr::LOCALHOST), None);
            assert_eq!(sequence(&packet[..25], id, from), None);
        }
    }
}
