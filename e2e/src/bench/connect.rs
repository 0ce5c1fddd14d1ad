//! How long a restarted agent takes to be connected again, and what a steady ping notices of restarts and of a control plane that is gone.

use std::fs;
use std::net::Ipv4Addr;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::bench::cluster::{agent, is_direct, mesh_address};
use crate::bench::echo::{INTERVAL, Stream};
use crate::bench::{Goal, LAB, Row, Spread, usage};
use crate::cluster::control_plane::{self, Component};
use crate::lab::Lab;
use crate::net::topology;
use crate::progress::Progress;
use crate::secrets::key_file;
use crate::{wait, warren};

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
/// What is not there by then counts as never.
const DEADLINE: Duration = Duration::from_secs(30);
/// kubelet and the controllers need seconds to make a pod anew, more on a machine that builds.
const REPLACED: Duration = Duration::from_secs(90);
/// How often an agent is asked about its path: a twentieth of what is measured.
const POLL: Duration = Duration::from_millis(20);
/// So many echoes in a row are a path that is whole.
const WHOLE: usize = 20;

/// A pair of sites: the name, whose agent is restarted, whom it pings.
const PAIRS: [(&str, &str, &str); 3] =
    [("open x home", "home-a", "pub"), ("home x home", "home-a", "home-b"), ("home x fw", "fw", "home-a")];

/// The two sorts of start.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Identity {
    Kept,
    New,
}

/// One start of an agent, in seconds since its process began.
#[derive(Clone, Copy, Debug)]
struct Start {
    first_ping: f64,
    direct: f64,
    outage: f64,
}

/// Restarts agents and stops the control plane.
pub fn measure(lab: &Lab, repetitions: usize, progress: &Progress) -> Result<Vec<Row>> {
    let mut rows = Vec::new();
    for (name, node, peer) in PAIRS {
        for identity in [Identity::Kept, Identity::New] {
            let step = format!("{name}, {} x {repetitions}", identity.name());
            let starts = progress.step(&step, || {
                (0..repetitions).map(|_| restart(lab, node, peer, identity)).collect::<Result<Vec<_>>>()
            })?;
            rows.extend(identity.rows(name, &starts));
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

impl Identity {
    fn name(self) -> &'static str {
        match self {
            Self::Kept => "identity kept",
            Self::New => "new identity",
        }
    }

    fn rows(self, pair: &str, starts: &[Start]) -> Vec<Row> {
        let each = |of: fn(&Start) -> f64| Spread::of(starts.iter().map(of));
        let goal = Goal::Most(GOALS[self as usize]);
        let what = |what: &str| format!("{pair}, {}: {what}", self.name());
        let mut rows = vec![
            Row::new(what("start to first ping"), "s", each(|start| start.first_ping)).goal(goal),
            Row::new(what("start to direct"), "s", each(|start| start.direct)).goal(goal),
        ];
        if self == Self::Kept {
            let outage = Row::new(what("outage of a killed agent"), "s", each(|start| start.outage));
            rows.push(outage.goal(Goal::Limit(OUTAGE)));
        }
        rows
    }
}

/// Kills the agent of `node` under a ping to `peer`, and measures the one that kubelet starts in its place.
fn restart(lab: &Lab, node: &str, peer: &str, identity: Identity) -> Result<Start> {
    renew_pod(lab, node, peer)?;
    let to = mesh_address(lab, peer)?;
    let pings = whole_stream(lab, node, to)?;
    let old = agent(lab, node).with_context(|| format!("no agent runs on {node}"))?;
    if identity == Identity::New {
        signal(old, Signal::SIGSTOP)?;
        empty_state(lab, node)?;
    }
    signal(old, Signal::SIGKILL)?;
    let new = wait::until("kubelet to start the agent again", REPLACED, || {
        agent(lab, node).filter(|pid| *pid != old).ok_or_else(|| "there is none".into())
    })?;
    let began = usage::started(new)?;
    let direct = until(began, || is_direct(lab, node, peer));
    let echoed = until(began, || pings.first_echo_after(began).is_some());
    let first_ping = pings.first_echo_after(began).map_or(echoed, |at| (at - began).as_secs_f64());
    until(began, || pings.echoes_of_last(WHOLE) == WHOLE);
    Ok(Start { first_ping, direct, outage: pings.stop().outage })
}

/// Seconds since `began` when it first held, or never.
fn until(began: Instant, mut holds: impl FnMut() -> bool) -> f64 {
    while began.elapsed() < DEADLINE {
        if holds() {
            return began.elapsed().as_secs_f64();
        }
        std::thread::sleep(POLL);
    }
    f64::INFINITY
}

/// A new pod: kubelet starts the container of one that has failed before only after a pause of its own.
fn renew_pod(lab: &Lab, node: &str, peer: &str) -> Result<()> {
    let old = agent(lab, node);
    let field = format!("spec.nodeName={node}");
    let labels = "app.kubernetes.io/component=agent";
    lab.kubectl(&["delete", "pod", "-n", warren::NAMESPACE, "-l", labels, "--field-selector", &field])?;
    wait::until(&format!("the new agent of {node} to reach {peer}"), REPLACED, || {
        match agent(lab, node).filter(|pid| Some(*pid) != old) {
            None => Err("there is none".into()),
            Some(_) if !is_direct(lab, node, peer) => Err("it has no direct path".into()),
            Some(_) => Ok(()),
        }
    })
}

fn whole_stream(lab: &Lab, node: &str, to: Ipv4Addr) -> Result<Stream> {
    let pings = Stream::start(&topology::node(&lab.scenario().name, node), to, INTERVAL)?;
    wait::until(&format!("echoes from {to} at {node}"), DEADLINE, || match pings.echoes_of_last(2 * WHOLE) {
        // The youngest are still on their way.
        echoes if echoes + 4 >= 2 * WHOLE => Ok(()),
        echoes => Err(format!("{echoes} of the last {}", 2 * WHOLE)),
    })?;
    Ok(pings)
}

/// Everything that the agent remembers, its key included.
fn empty_state(lab: &Lab, node: &str) -> Result<()> {
    let key = key_file(lab, node);
    ensure!(key.exists(), "expected the agent's key at {}", key.display());
    let folder = key.parent().context("the state folder")?;
    for entry in fs::read_dir(folder).with_context(|| format!("listing {}", folder.display()))? {
        let path = entry.context("listing the agent's state")?.path();
        if path.is_dir() { fs::remove_dir_all(&path) } else { fs::remove_file(&path) }
            .with_context(|| format!("removing {}", path.display()))?;
    }
    Ok(())
}

/// A home gets another public address and port mapping under a ping from the public node: the outage in seconds.
fn change_of_address(lab: &Lab, round: usize) -> Result<f64> {
    let pings = whole_stream(lab, "pub", mesh_address(lab, "home-a")?)?;
    let host = 11 + u8::try_from(round % 2).unwrap_or(0);
    let wan = format!("198.51.100.{host}/28").parse().context("an address")?;
    topology::change_home(lab.scenario(), "home-a", wan, if round.is_multiple_of(2) { 9_000 } else { 10_000 })?;
    let began = Instant::now();
    // The old path must have died before a whole one counts.
    while began.elapsed() < CHANGE_DEADLINE && pings.first_echo_after(began + Duration::from_secs(1)).is_none() {
        std::thread::sleep(POLL);
    }
    let back = wait::until("a whole path to the new address", CHANGE_DEADLINE, || match pings.echoes_of_last(WHOLE) {
        WHOLE => Ok(()),
        echoes => Err(format!("{echoes} of the last {WHOLE}")),
    });
    let outage = pings.stop().outage;
    Ok(if back.is_ok() { outage } else { f64::INFINITY })
}

/// The API server answers nobody and no operator runs, while two homes ping each other.
fn control_plane_gone(lab: &Lab) -> Result<Vec<Row>> {
    let pings = whole_stream(lab, "home-b", mesh_address(lab, "home-a")?)?;
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

fn signal(pid: i32, signal: Signal) -> Result<()> {
    kill(Pid::from_raw(pid), signal).with_context(|| format!("sending {signal} to process {pid}"))
}
