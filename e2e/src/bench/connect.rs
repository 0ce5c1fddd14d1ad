//! How long a restarted agent takes to be connected again, and what a steady ping notices of restarts and of a control plane that is gone.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use nix::sys::signal::Signal;

use crate::bench::cluster::mesh_address;
use crate::bench::echo::{INTERVAL, Stream};
use crate::bench::restart::{Identity, POLL, Start, is_whole, restart, signal, whole_stream};
use crate::bench::{Goal, LAB, Row, Spread, usage};
use crate::cluster::control_plane::{self, Component};
use crate::lab::Lab;
use crate::net::topology;
use crate::progress::Progress;
use crate::wait;

/// The goals without a relay, in seconds: with its identity, and with a new one.
const GOALS: [f64; 2] = [1.0, 2.0];
/// Longest outage of a restart.
const OUTAGE: f64 = 3.0;
/// Longest outage of a change of address, without a relay.
const CHANGE: f64 = 60.0;
/// How long a pair may stay apart after a change of address until it counts as never.
const CHANGE_DEADLINE: Duration = Duration::from_secs(120);
/// How long the control plane is gone.
const CONTROL_PLANE_GONE: Duration = Duration::from_secs(120);
/// A pair of sites: the name, whose agent is restarted, whom it pings.
const PAIRS: [(&str, &str, &str); 3] =
    [("open x home", "home-a", "pub"), ("home x home", "home-a", "home-b"), ("home x fw", "fw", "home-a")];

/// Restarts agents and stops the control plane.
pub fn measure(lab: &Lab, repetitions: usize, progress: &Progress) -> Result<Vec<Row>> {
    let mut rows = Vec::new();
    for (name, node, peer) in PAIRS {
        for identity in [Identity::Kept, Identity::New] {
            let step = format!("{name}, {} x {repetitions}", identity.name());
            let starts = progress.step(&step, || {
                (0..repetitions).map(|_| restart(lab, node, peer, "direct", identity)).collect::<Result<Vec<_>>>()
            })?;
            rows.extend(start_rows(name, identity, &starts));
        }
    }
    let changes = progress.step(&format!("another address x {repetitions}"), || {
        (0..repetitions).map(|round| change_of_address(lab, round)).collect::<Result<Vec<_>>>()
    })?;
    let outage = Row::new("home x open: outage of a change of address and mapping", "s", Spread::of(changes));
    rows.push(outage.goal(Goal::Limit(CHANGE)));
    rows.extend(progress.step("control plane gone", || control_plane_gone(lab))?);
    Ok(rows)
}

fn start_rows(pair: &str, identity: Identity, starts: &[Start]) -> Vec<Row> {
    let each = |of: fn(&Start) -> f64| Spread::of(starts.iter().map(of));
    let goal = Goal::Most(GOALS[identity as usize]);
    let what = |what: &str| format!("{pair}, {}: {what}", identity.name());
    let mut rows = vec![
        Row::new(what("start to first ping"), "s", each(|start| start.first_ping)).goal(goal),
        Row::new(what("start to direct"), "s", each(|start| start.settled)).goal(goal),
    ];
    if identity == Identity::Kept {
        let outage = Row::new(what("outage of a killed agent"), "s", each(|start| start.outage));
        rows.push(outage.goal(Goal::Limit(OUTAGE)));
    }
    rows
}

/// A home gets another public address and port mapping under a ping from the public node: the outage in seconds.
fn change_of_address(lab: &Lab, round: usize) -> Result<f64> {
    let pings = whole_stream(lab, "pub", mesh_address(lab, "home-a")?, INTERVAL)?;
    let host = 11 + u8::try_from(round % 2).unwrap_or(0);
    let wan = format!("198.51.100.{host}/28").parse().context("an address")?;
    topology::change_home(lab.scenario(), "home-a", wan, if round.is_multiple_of(2) { 9_000 } else { 10_000 })?;
    let began = Instant::now();
    // The old path must have died before a whole one counts.
    while began.elapsed() < CHANGE_DEADLINE && pings.first_echo_after(began + Duration::from_secs(1)).is_none() {
        std::thread::sleep(POLL);
    }
    let back = wait::until("a whole path to the new address", CHANGE_DEADLINE, || is_whole(&pings));
    let outage = pings.stop().outage;
    Ok(if back.is_ok() { outage } else { f64::INFINITY })
}

/// The API server answers nobody and no operator runs, while two homes ping each other.
fn control_plane_gone(lab: &Lab) -> Result<Vec<Row>> {
    let pings = whole_stream(lab, "home-b", mesh_address(lab, "home-a")?, INTERVAL)?;
    drop(pings);
    let operators: Vec<i32> = lab
        .running()
        .iter()
        .flat_map(|node| usage::running("warren-operator", &topology::node(LAB, &node.name)))
        .collect();
    ensure!(!operators.is_empty(), "no operator runs");
    let pings = Stream::start(&topology::node(LAB, "home-b"), mesh_address(lab, "home-a")?, INTERVAL)?;
    control_plane::freeze(lab, Component::ApiServer)?;
    let stopped = operators.iter().try_for_each(|pid| signal(*pid, Signal::SIGSTOP));
    // The time is what is measured.
    std::thread::sleep(CONTROL_PLANE_GONE);
    let summary = pings.stop();
    // kubelet may have replaced one that did not answer for so long.
    operators.iter().for_each(|pid| drop(signal(*pid, Signal::SIGCONT)));
    control_plane::thaw(lab, Component::ApiServer)?;
    stopped?;
    control_plane::wait_ready(lab)?;
    let gone = CONTROL_PLANE_GONE.as_secs();
    let what = format!("operator and API server gone for {gone} s: pings lost of {}", summary.sent);
    Ok(vec![Row::new(what, "pings", Spread::of([summary.lost as f64])).goal(Goal::Limit(0.0))])
}
