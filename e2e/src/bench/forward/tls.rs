//! The TLS path: what goes from channel to channel through the relay, beside plain TLS of the same library between the same ends.
//!
//! Both carry frames of the same size, and write as many at once. The relay opens each record and seals another, so of two that did nothing
//! else it would have half the speed of one; all that works is on the same machine.

mod channels;
mod plain;

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, ensure};

use super::wires::Wires;
use crate::bench::versus::{self, Versus};
use crate::bench::{Goal, Row, Spread, table, usage};
use crate::progress::Progress;

/// As `relay.md` of the design has it, in Gbit/s.
const PER_CORE: Goal = Goal::Least(0.6);
/// The threads of the relay.
const THREADS: [&str; 2] = ["relay-udp", "relay-control"];
/// An end that is not under way by then never is.
const STARTED: Duration = Duration::from_secs(20);
/// WireGuard's packets: a full one, and what a small question makes.
const SIZES: [usize; 2] = [1_432, 128];

/// Bytes of a packet's frame beside the packet.
const FRAME_HEAD: usize = 11;

/// What the ends share with who measures.
#[derive(Debug, Default)]
pub(super) struct Gauge {
    packets: AtomicU64,
    stop: AtomicBool,
}

/// Packets a second, and for each CPU second of the relay.
#[derive(Clone, Copy, Debug)]
struct Carried {
    rate: f64,
    per_core: f64,
}

/// The tables of it.
pub fn measure(wires: &Wires, rounds: usize, seconds: u8, progress: &Progress) -> Result<Vec<String>> {
    wires.middle.sysctl(&["net.ipv4.ip_forward=1"])?;
    wires.sender.ip(&["route replace default via 192.0.2.1"])?;
    wires.receiver.ip(&["route replace default via 198.51.100.1"])?;
    let (mut beside, mut alone) = (Vec::new(), Vec::new());
    for size in SIZES {
        let (mut both, mut per_core) = (Vec::new(), Vec::new());
        for round in 1..=rounds {
            let what = |way: &str| format!("round {round} of {rounds}: {size} bytes by {way}");
            let ours = progress.step(&what("channels"), || channels::carry(wires, size, seconds))?;
            let theirs = progress.step(&what("plain TLS"), || plain::carry(wires, size, seconds))?;
            both.push((ours.rate, theirs.rate));
            per_core.push(ours.per_core);
        }
        let (unit, goal) = if size == SIZES[0] { ("Gbit/s", PER_CORE) } else { ("thousand/s", Goal::None) };
        beside.push(Versus::new(format!("packets of {size} bytes, one flow"), unit, &both, Goal::None));
        let what = format!("packets of {size} bytes for each CPU second of the relay's threads");
        alone.push(Row::new(what, unit, Spread::of(per_core)).goal(goal));
    }
    let heading = "What goes from channel to channel, beside plain TLS";
    Ok(vec![
        versus::table(heading, ["channels", "plain TLS"], &beside),
        table("What the TLS path costs the relay", &alone),
    ])
}

/// Counts what arrives for so long, once something does. `ends` run until they are told to stop.
fn count(
    gauge: &Gauge,
    size: usize,
    seconds: u8,
    ends: [Box<dyn FnOnce() -> Result<()> + Send + '_>; 2],
) -> Result<Carried> {
    thread::scope(|scope| {
        let ends = ends.map(|end| scope.spawn(end));
        let counted = between(gauge, size, seconds, || ends.iter().any(thread::ScopedJoinHandle::is_finished));
        gauge.stop.store(true, Ordering::Relaxed);
        for end in ends {
            end.join().map_err(|_| anyhow!("an end panicked"))??;
        }
        counted
    })
}

fn between(gauge: &Gauge, size: usize, seconds: u8, is_over: impl Fn() -> bool) -> Result<Carried> {
    let packets = || gauge.packets.load(Ordering::Relaxed);
    let began = Instant::now();
    while packets() == 0 {
        ensure!(!is_over() && began.elapsed() < STARTED, "nothing arrived");
        thread::sleep(Duration::from_millis(5));
    }
    // The first moments are those of TCP's window.
    thread::sleep(Duration::from_millis(500));
    let before = (packets(), cpu()?, Instant::now());
    thread::sleep(Duration::from_secs(seconds.into()));
    let after = (packets(), cpu()?, Instant::now());
    ensure!(!is_over(), "an end has ended early");
    let packets = (after.0 - before.0) as f64;
    let shown = if size == SIZES[0] { packets * size as f64 * 8.0 / 1e9 } else { packets / 1e3 };
    Ok(Carried { rate: shown / (after.2 - before.2).as_secs_f64(), per_core: shown / (after.1 - before.1) })
}

fn cpu() -> Result<f64> {
    let pid = std::process::id().cast_signed();
    THREADS.into_iter().map(|name| usage::of_threads(pid, name)).sum()
}

/// A WireGuard message of data.
fn packet(size: usize) -> Vec<u8> {
    let mut packet = vec![0x5a; size];
    packet[..4].copy_from_slice(&[4, 0, 0, 0]);
    packet
}

fn runtime() -> Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_current_thread().enable_all().build().context("a runtime")
}
