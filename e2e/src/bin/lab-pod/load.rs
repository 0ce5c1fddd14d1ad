//! A load: UDP packets at a rate, to an echo server and back, and what became of each.

use std::net::{SocketAddr, UdpSocket};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use serde::Serialize;
use socket2::SockRef;

use crate::check;

/// How often packets that are due leave.
const TICK: Duration = Duration::from_millis(1);
/// A sender that was not let run for longer leaves out what was due meanwhile: a burst of it would be another load than was asked for.
const BEHIND: Duration = Duration::from_millis(20);
/// When the first packet is sent again if it did not come back.
const AGAIN: Duration = Duration::from_secs(1);
/// A packet's number.
const NUMBER: usize = size_of::<u64>();
/// The number of the packet that goes before the load.
const BEFORE: u64 = u64::MAX;
/// Room for what comes while the receiver is not let run; the kernel gives what it allows.
const BUFFER: usize = 4 << 20;

/// What became of the packets.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Load {
    /// How many were sent.
    sent: u64,
    /// How many of them came back.
    received: u64,
    /// By how many later ones the most delayed packet was overtaken.
    overtaken: u64,
    /// The longest time in which none came back, in milliseconds.
    silence_ms: f64,
}

/// Sends `rate` packets of `size` bytes a second for so long; the last have `grace` to come back.
pub fn run(to: SocketAddr, time: Duration, rate: f64, size: usize, grace: Duration) -> Result<Load> {
    ensure!(size >= NUMBER, "{size} bytes have no room for a packet's number");
    ensure!(rate > 0.0, "{rate} packets a second");
    let socket = check::udp_socket(to, TICK)?;
    SockRef::from(&socket).set_recv_buffer_size(BUFFER).context("enlarging the receive buffer")?;
    begin(&socket, size, grace)?;
    let (sent, ended) = (AtomicU64::new(0), AtomicBool::new(false));
    std::thread::scope(|scope| {
        let sender = scope.spawn(|| {
            send(&socket, time, rate, size, &sent);
            ended.store(true, Ordering::Release);
        });
        let result = receive(&socket, size, grace, &sent, &ended);
        sender.join().map_err(|_| anyhow::anyhow!("the sender panicked"))?;
        Ok(Load { sent: sent.load(Ordering::Relaxed), ..result })
    })
}

/// One packet that comes back, so that whoever tracks connections knows this one: of two that come in one batch before he does, Linux drops
/// the second.
fn begin(socket: &UdpSocket, size: usize, grace: Duration) -> Result<()> {
    let (begin, mut packet, mut buffer) = (Instant::now(), vec![0x5a; size], vec![0; size + 1]);
    packet[..NUMBER].copy_from_slice(&BEFORE.to_be_bytes());
    let mut asked = None;
    while begin.elapsed() < grace {
        if asked.is_none_or(|at: Instant| at.elapsed() >= AGAIN) {
            asked = Some(Instant::now());
            let _ = socket.send(&packet);
        }
        if socket.recv(&mut buffer).is_ok() {
            return Ok(());
        }
    }
    bail!("the first packet never came back")
}

fn send(socket: &UdpSocket, time: Duration, rate: f64, size: usize, sent: &AtomicU64) {
    let (begin, mut packet, mut left_out) = (Instant::now(), vec![0x5a; size], 0);
    loop {
        let now = begin.elapsed();
        if now >= time {
            return;
        }
        let due = (now.as_secs_f64() * rate) as u64 - left_out;
        let late = due.saturating_sub(sent.load(Ordering::Relaxed)).saturating_sub(most_at_once(rate));
        left_out += late;
        for number in sent.load(Ordering::Relaxed)..due - late {
            packet[..NUMBER].copy_from_slice(&number.to_be_bytes());
            // A route that is missing for a moment is part of what is measured.
            let _ = socket.send(&packet);
            sent.fetch_add(1, Ordering::Relaxed);
        }
        std::thread::sleep(TICK);
    }
}

/// What may be due at once.
fn most_at_once(rate: f64) -> u64 {
    ((BEHIND.as_secs_f64() * rate) as u64).max(1)
}

fn receive(socket: &UdpSocket, size: usize, grace: Duration, sent: &AtomicU64, ended: &AtomicBool) -> Load {
    let (mut load, mut seen, mut end) = (Load::default(), Seen::default(), None);
    let (mut buffer, mut last) = (vec![0; size + 1], Instant::now());
    loop {
        if ended.load(Ordering::Acquire) {
            let end = *end.get_or_insert_with(Instant::now);
            if load.received == sent.load(Ordering::Relaxed) || end.elapsed() >= grace {
                load.silence_ms = load.silence_ms.max(millis(end.saturating_duration_since(last)));
                return load;
            }
        }
        let Ok(length) = socket.recv(&mut buffer) else { continue };
        let number = buffer.get(..length.min(NUMBER)).and_then(|bytes| bytes.try_into().ok()).map(u64::from_be_bytes);
        let number = number.filter(|number| length == size && *number != BEFORE);
        let Some(overtaken) = number.and_then(|number| seen.insert(number)) else { continue };
        load.received += 1;
        load.overtaken = load.overtaken.max(overtaken);
        load.silence_ms = load.silence_ms.max(millis(last.elapsed()));
        last = Instant::now();
    }
}

fn millis(time: Duration) -> f64 {
    time.as_secs_f64() * 1000.0
}

/// Which packets came back.
#[derive(Debug, Default)]
struct Seen {
    numbers: std::collections::BTreeSet<u64>,
}

impl Seen {
    /// By how many later packets this one was overtaken; nothing if it has come before.
    fn insert(&mut self, number: u64) -> Option<u64> {
        let overtaken = self.numbers.range(number..).count() as u64;
        self.numbers.insert(number).then_some(overtaken)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_packet_counts_once_and_tells_who_overtook_it() {
        let mut seen = Seen::default();
        let overtaken = [1, 2, 5, 4, 3, 4, 6].map(|number| seen.insert(number));
        assert_eq!(overtaken, [Some(0), Some(0), Some(0), Some(1), Some(2), None, Some(0)]);
    }

    #[test]
    fn what_an_echo_server_swallows_is_missing() {
        let server = UdpSocket::bind("127.0.0.1:0").unwrap();
        let address = server.local_addr().unwrap();
        std::thread::spawn(move || {
            let mut buffer = [0; 100];
            for count in 0_u64.. {
                let (length, from) = server.recv_from(&mut buffer).unwrap();
                // Each tenth is lost, each fourth comes twice.
                for _ in 0..[1, 2][usize::from(count % 4 == 0)] * u64::from(count % 10 != 9) {
                    server.send_to(&buffer[..length], from).unwrap();
                }
            }
        });
        let load = run(address, Duration::from_millis(200), 500.0, 100, Duration::from_secs(1)).unwrap();
        // The packet before the load was the first.
        assert!(load.sent > 0 && load.received == load.sent - (load.sent + 1) / 10, "{load:?}");
    }
}
