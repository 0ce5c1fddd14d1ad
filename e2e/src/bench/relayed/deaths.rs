//! Relays that end, while the hard pair pings: told to, killed, or gone without a word.

use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use nix::sys::signal::Signal;

use super::{Effort, Hard, Piece, other_relays};
use crate::bench::echo::{Stream, Summary};
use crate::bench::restart::{REPLACED, is_whole, signal, until};
use crate::bench::{Goal, LAB, Row, Spread, usage};
use crate::lab::Lab;
use crate::net::namespace::Namespace;
use crate::net::topology;
use crate::progress::Progress;
use crate::{wait, warren};

/// The relay's own name for its process.
const RELAY: &str = "warren-relay";
/// Longest silence, in seconds, when a relay starts anew in its place ..
const RESTARTED: Goal = Goal::Most(2.0);
/// .. and when another has to take over.
const GONE: Goal = Goal::Mostly(1.0);
/// What was under way has arrived by then.
const UNDER_WAY: Duration = Duration::from_millis(150);

/// How the only relay ends.
#[derive(Clone, Copy)]
enum End {
    /// SIGKILL: kubelet starts it in its place, with the key that it had.
    Killed,
    /// Its pod is deleted, and the next one has another key.
    Replaced,
}

/// One restart of the only relay, in seconds.
struct Anew {
    silence: f64,
    from_start: f64,
}

pub fn measure(hard: &Hard<'_>, effort: Effort<'_>) -> Result<Vec<Row>> {
    let row = |what: &str, of: &[Summary]| Row::new(what, "s", Spread::of(of.iter().map(|one| one.outage)));
    let mut rows = Vec::new();
    if effort.wants(Piece::Gone) {
        let gone = repeat(hard.progress, "the relay is gone", effort.runs, || gone(hard))?;
        rows.push(row("gone without a word, another there: longest silence", &gone).goal(GONE));
    }
    if effort.wants(Piece::Killed) {
        let killed = repeat(hard.progress, "the relay is killed", effort.runs, || killed(hard))?;
        rows.push(row("killed, another there: longest silence", &killed).goal(GONE));
    }
    if effort.wants(Piece::ToldToEnd) {
        let ended = repeat(hard.progress, "the relay is told to end", effort.runs, || told_to_end(hard))?;
        let lost = Spread::of(ended.iter().map(|one| one.lost as f64));
        rows.push(Row::new("told to end, another there: pings lost", "pings", lost));
        rows.push(row("told to end, another there: longest silence", &ended));
    }
    Ok(rows)
}

/// A relay that is killed and comes back in its place, or whose pod is replaced, while all others are cut off.
pub fn measure_only(hard: &Hard<'_>, effort: Effort<'_>) -> Result<Vec<Row>> {
    let mut rows = Vec::new();
    if !effort.wants(Piece::OnlyKilled) && !effort.wants(Piece::OnlyReplaced) {
        return Ok(rows);
    }
    let (only, _) = hard.stream()?;
    let others = other_relays(hard.lab, &only)?;
    let _cut = others.iter().map(|other| Cut::new(hard.lab, other)).collect::<Result<Vec<_>>>()?;
    let times = |what, end| repeat(hard.progress, what, effort.runs, || started_anew(hard, &only, end));
    let silence = |of: &[Anew]| Spread::of(of.iter().map(|one| one.silence));
    let from_start = |of: &[Anew]| Spread::of(of.iter().map(|one| one.from_start));
    if effort.wants(Piece::OnlyKilled) {
        let killed = times("the only relay is killed", End::Killed)?;
        let longest = Row::new("killed and started in its place: longest silence", "s", silence(&killed));
        rows.push(longest.goal(RESTARTED));
        rows.push(Row::new("of it from the new process's start", "s", from_start(&killed)));
    }
    if effort.wants(Piece::OnlyReplaced) {
        let replaced = times("the only relay's pod is replaced", End::Replaced)?;
        rows.push(Row::new("its pod replaced, with another key: longest silence", "s", silence(&replaced)));
        rows.push(Row::new("of it from the new pod's process on", "s", from_start(&replaced)));
    }
    Ok(rows)
}

fn repeat<T>(progress: &Progress, what: &str, runs: usize, run: impl Fn() -> Result<T>) -> Result<Vec<T>> {
    (1..=runs).map(|number| progress.step(&format!("{what}, {number} of {runs}"), &run)).collect()
}

/// Nothing of the relay comes through any more and nobody says so, as when its machine loses power.
fn gone(hard: &Hard<'_>) -> Result<Summary> {
    let (relay, pings) = hard.stream()?;
    let cut = Cut::new(hard.lab, &relay)?;
    let summary = silence(pings, Instant::now());
    drop(cut);
    Ok(summary)
}

fn told_to_end(hard: &Hard<'_>) -> Result<Summary> {
    let (relay, pings) = hard.stream()?;
    let began = Instant::now();
    renew_pod(hard.lab, &relay)?;
    Ok(silence(pings, began))
}

fn killed(hard: &Hard<'_>) -> Result<Summary> {
    let (relay, pings) = hard.stream()?;
    let began = Instant::now();
    signal(process(hard.lab, &relay)?, Signal::SIGKILL)?;
    let summary = silence(pings, began);
    // What has failed once is started again only after a pause.
    renew_pod(hard.lab, &relay)?;
    Ok(summary)
}

fn started_anew(hard: &Hard<'_>, only: &str, end: End) -> Result<Anew> {
    let lab = hard.lab;
    let pings = hard.stream_through(only)?;
    let old = process(lab, only)?;
    let began = Instant::now();
    match end {
        End::Killed => signal(old, Signal::SIGKILL)?,
        End::Replaced => warren::delete_pods(lab, "relay", &format!("spec.nodeName={only}"))?,
    }
    let new = wait::until("kubelet to start the relay again", REPLACED, || {
        process(lab, only).ok().filter(|pid| *pid != old).ok_or_else(|| "there is none".into())
    })?;
    let start = usage::started(new)?;
    until(start, || pings.first_echo_after(start.max(began + UNDER_WAY)).is_some());
    let echo = pings.first_echo_after(start.max(began + UNDER_WAY));
    let from_start = echo.map_or(f64::INFINITY, |at| (at - start).as_secs_f64());
    let silence = silence(pings, began).outage;
    if matches!(end, End::Killed) {
        // What has failed once is started again only after a pause.
        renew_pod(lab, only)?;
    }
    Ok(Anew { silence, from_start })
}

/// What became of the pings, once the path is whole again; a path that never is was silent for ever.
fn silence(pings: Stream, began: Instant) -> Summary {
    until(began, || pings.first_echo_after(began + UNDER_WAY).is_some());
    let is_back = until(began, || is_whole(&pings).is_ok()).is_finite();
    let summary = pings.stop();
    if is_back { summary } else { Summary { outage: f64::INFINITY, ..summary } }
}

fn process(lab: &Lab, relay: &str) -> Result<i32> {
    let running = usage::running(RELAY, &topology::node(LAB, &lab.node(relay)?.name));
    running.into_iter().max().with_context(|| format!("no relay runs on {relay}"))
}

fn renew_pod(lab: &Lab, relay: &str) -> Result<()> {
    let old = process(lab, relay).ok();
    warren::delete_pods(lab, "relay", &format!("spec.nodeName={relay}"))?;
    wait::until(&format!("the new relay on {relay}"), REPLACED, || {
        process(lab, relay).ok().filter(|pid| Some(*pid) != old).map(drop).ok_or_else(|| "there is none".into())
    })
}

/// A relay that nothing reaches and that reaches nobody, until this is dropped. The rest of its node goes on.
struct Cut(Namespace);

impl Cut {
    fn new(lab: &Lab, relay: &str) -> Result<Self> {
        let node = topology::node(LAB, &lab.node(relay)?.name);
        node.nft(
            "table inet bench-cut {
               chain in {
                 type filter hook prerouting priority -400;
                 iifname eth0 udp dport { 3478, 51899-51963 } drop
                 iifname eth0 tcp dport { 443, 8443 } drop
               }
               chain out {
                 type filter hook postrouting priority 400;
                 oifname eth0 udp sport { 3478, 51899-51963 } drop
                 oifname eth0 tcp sport { 443, 8443 } drop
               }
             }",
        )?;
        Ok(Self(node))
    }
}

impl Drop for Cut {
    fn drop(&mut self) {
        // What fails here shows when the relay is used next.
        let _ = self.0.nft("delete table inet bench-cut");
    }
}
