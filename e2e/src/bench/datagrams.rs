//! Small UDP datagrams through a pair: how many a second arrive, at most.
//!
//! The sender offers more and more until clearly fewer arrive than before. Whatever gets lost is counted: the figure is what the
//! receiver got, at the offered rate that served it best, beside what was lost on the way there.

use std::net::UdpSocket;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use nix::sys::socket::{setsockopt, sockopt};

use crate::bench::pair::{MESH, Pair};
use crate::net::namespace::Namespace;

/// Payload of a datagram: a voice frame, a DNS question, a move in a game.
pub const BYTES: usize = 64;
/// The first offer, in datagrams a second; every device does that with ease.
const FIRST: f64 = 20_000.0;
/// Each offer is so much more than the last.
const GROWTH: f64 = 1.2;
/// No offer is above this: one sender can't do it.
const MOST: f64 = 3e6;
/// So much less than the best was means that more would only be worse, if it happens [`WORSE`] times in a row.
const COLLAPSED: f64 = 0.7;
/// On a machine with other work a sender or receiver may miss its turn a few times.
const WORSE: u32 = 4;
/// How long an offer is kept up.
const OFFERED: Duration = Duration::from_millis(500);
/// The sender sleeps in between; so few come at once that no queue overflows by that alone.
const TICK: Duration = Duration::from_micros(250);
/// Nothing arrives for so long: what is still missing is lost.
const DRAINED: Duration = Duration::from_millis(100);
/// Room at the receiver, so that it is the device that loses.
const ROOM: usize = 8 << 20;
const PORT: u16 = 9;

/// The best offer.
#[derive(Clone, Copy, Debug)]
pub struct Delivered {
    /// Datagrams that arrived, in thousands a second.
    pub thousands_per_second: f64,
    /// Share of those sent that did not, in percent.
    pub lost_percent: f64,
}

/// Looks for the highest rate that arrives.
pub fn highest(pair: &Pair<'_>) -> Result<Delivered> {
    let receiver = Receiver::start(&pair.ends[1].namespace)?;
    let sender = pair.ends[0].namespace.enter(|| {
        let socket = UdpSocket::bind((MESH[0], 0)).context("binding the sender")?;
        socket.connect((MESH[1], PORT)).context("connecting the sender")?;
        Ok(socket)
    })?;
    let mut best = Delivered { thousands_per_second: 0.0, lost_percent: 0.0 };
    let (mut offer, mut worse) = (FIRST, 0);
    while offer < MOST && worse < WORSE {
        let (delivered, sent) = offered(&sender, &receiver, offer)?;
        if delivered.thousands_per_second > best.thousands_per_second {
            best = delivered;
        }
        // Either fewer arrive than did, or the sender itself is at its end.
        let collapsed = delivered.thousands_per_second < best.thousands_per_second * COLLAPSED;
        worse = if collapsed || sent < offer * COLLAPSED { worse + 1 } else { 0 };
        offer *= GROWTH;
    }
    ensure!(best.thousands_per_second > 0.0, "no datagram arrived");
    Ok(best)
}

/// Offers a rate, in datagrams a second; what arrived, and the rate that was really sent.
fn offered(sender: &UdpSocket, receiver: &Receiver, rate: f64) -> Result<(Delivered, f64)> {
    let before = receiver.received();
    let began = Instant::now();
    let mut sent = 0u64;
    let mut skipped = 0.0;
    loop {
        let time = began.elapsed();
        if time >= OFFERED {
            break;
        }
        // A sender that was not scheduled for a while does not make up for it with a burst.
        let due = rate * time.as_secs_f64() - skipped;
        let burst = (due - sent as f64).min(rate * TICK.as_secs_f64() * 4.0);
        skipped += due - sent as f64 - burst;
        for _ in 0..burst.max(0.0) as u64 {
            match sender.send(&[0; BYTES]) {
                Ok(_) => sent += 1,
                // Counted as lost: the device took too little out of its queue.
                Err(error) if error.raw_os_error() == Some(libc::ENOBUFS) => sent += 1,
                Err(error) => return Err(error).context("sending a datagram"),
            }
        }
        thread::sleep(TICK);
    }
    let time = began.elapsed().as_secs_f64();
    let received = receiver.drained() - before;
    let delivered = Delivered {
        thousands_per_second: received as f64 / time / 1e3,
        lost_percent: (1.0 - received as f64 / sent as f64) * 100.0,
    };
    Ok((delivered, sent as f64 / time))
}

/// Counts what arrives.
struct Receiver {
    count: Arc<AtomicU64>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Receiver {
    fn start(namespace: &Namespace) -> Result<Self> {
        let socket = namespace.enter(|| UdpSocket::bind((MESH[1], PORT)).context("binding the receiver"))?;
        setsockopt(&socket, sockopt::RcvBufForce, &ROOM).context("making room at the receiver")?;
        socket.set_read_timeout(Some(DRAINED)).context("setting a timeout")?;
        let (count, stop) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicBool::new(false)));
        let (counted, stopped) = (count.clone(), stop.clone());
        let thread = thread::spawn(move || {
            let mut buffer = [0; BYTES];
            while !stopped.load(Ordering::Relaxed) {
                if socket.recv(&mut buffer).is_ok() {
                    counted.fetch_add(1, Ordering::Relaxed);
                }
            }
        });
        Ok(Self { count, stop, thread: Some(thread) })
    }

    fn received(&self) -> u64 {
        self.count.load(Ordering::Relaxed)
    }

    /// What has arrived once nothing more does.
    fn drained(&self) -> u64 {
        let mut last = self.received();
        loop {
            thread::sleep(DRAINED);
            let now = self.received();
            if now == last {
                return now;
            }
            last = now;
        }
    }
}

impl Drop for Receiver {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}
