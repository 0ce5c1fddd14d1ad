//! One agent killed under a ping and started again by kubelet, with its identity and without.

use std::fs;
use std::net::Ipv4Addr;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::bench::cluster::{agent, is_reached, mesh_address};
use crate::bench::echo::{INTERVAL, Stream};
use crate::bench::usage;
use crate::lab::Lab;
use crate::net::topology;
use crate::process::stands_still;
use crate::secrets::key_file;
use crate::{wait, warren};

/// What is not there by then counts as never.
pub const DEADLINE: Duration = Duration::from_secs(30);
/// kubelet and the controllers need seconds to make a pod anew, more on a machine that builds.
pub const REPLACED: Duration = Duration::from_secs(90);
/// How often an agent is asked about its path: a twentieth of what is measured.
pub const POLL: Duration = Duration::from_millis(20);
/// So many echoes in a row are a path that is whole ..
const WHOLE: usize = 20;
/// .. of pings that had time to come back: the longest round trip of the lab is 80 ms.
const BACK: Duration = Duration::from_millis(200);

/// The two sorts of start.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Identity {
    /// The state folder is as it was.
    Kept,
    /// The state folder is empty.
    New,
}

/// One start of an agent, in seconds since its process began.
#[derive(Clone, Copy, Debug)]
pub struct Start {
    /// The first echo.
    pub first_ping: f64,
    /// The agent says that the path is the one that is to be.
    pub settled: f64,
    /// The longest run of lost pings, from the old process's death on.
    pub outage: f64,
}

impl Identity {
    /// How tables name it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Kept => "identity kept",
            Self::New => "new identity",
        }
    }
}

/// Kills the agent of `node` under a ping to `peer`, and measures the one that kubelet starts in its place until the peer is
/// reached as it is to be (`direct`, `relayed`).
pub fn restart(lab: &Lab, node: &str, peer: &str, state: &str, identity: Identity) -> Result<Start> {
    renew_pod(lab, node, peer, state)?;
    let to = mesh_address(lab, peer)?;
    let pings = whole_stream(lab, node, to, INTERVAL)?;
    let began = usage::started(kill_agent(lab, node, identity)?)?;
    let settled = until(began, || is_reached(lab, node, peer, state));
    let echoed = until(began, || pings.first_echo_after(began).is_some());
    let first_ping = pings.first_echo_after(began).map_or(echoed, |at| (at - began).as_secs_f64());
    until(began, || is_whole(&pings).is_ok());
    Ok(Start { first_ping, settled, outage: pings.stop().outage })
}

/// Kills the agent of a node, and returns the process that kubelet starts in its place.
pub fn kill_agent(lab: &Lab, node: &str, identity: Identity) -> Result<i32> {
    let old = agent(lab, node).with_context(|| format!("no agent runs on {node}"))?;
    if identity == Identity::New {
        signal(old, Signal::SIGSTOP)?;
        // A thread that is in a system call ends it first, and may make a file.
        wait::until("the agent to stand still", DEADLINE, || stands_still(old))?;
        empty_state(lab, node)?;
    }
    signal(old, Signal::SIGKILL)?;
    wait::until("kubelet to start the agent again", REPLACED, || {
        agent(lab, node).filter(|pid| *pid != old).ok_or_else(|| "there is none".into())
    })
}

/// Seconds since `began` when it first held, or never.
pub fn until(began: Instant, holds: impl FnMut() -> bool) -> f64 {
    within(DEADLINE, began, holds)
}

/// The same with a deadline of its own.
pub fn within(deadline: Duration, began: Instant, mut holds: impl FnMut() -> bool) -> f64 {
    while began.elapsed() < deadline {
        if holds() {
            return began.elapsed().as_secs_f64();
        }
        std::thread::sleep(POLL);
    }
    f64::INFINITY
}

/// A new pod whose agent reaches the peer as it is to be.
pub fn renew_pod(lab: &Lab, node: &str, peer: &str, state: &str) -> Result<()> {
    replace_pod(lab, node)?;
    wait::until(&format!("the new agent of {node} to reach {peer}"), REPLACED, || {
        if is_reached(lab, node, peer, state) { Ok(()) } else { Err(format!("it has no {state} path")) }
    })
}

/// A new pod: kubelet starts the container of one that has failed before only after a pause of its own.
pub fn replace_pod(lab: &Lab, node: &str) -> Result<()> {
    let old = agent(lab, node);
    warren::delete_pods(lab, "agent", &format!("spec.nodeName={node}"))?;
    wait::until(&format!("the new agent of {node}"), REPLACED, || {
        agent(lab, node).filter(|pid| Some(*pid) != old).map(drop).ok_or_else(|| "there is none".into())
    })
}

/// A ping from a node that has had its echoes for a while.
pub fn whole_stream(lab: &Lab, node: &str, to: Ipv4Addr, interval: Duration) -> Result<Stream> {
    let pings = Stream::start(&topology::node(&lab.scenario().name, node), to, interval)?;
    wait::until(&format!("echoes from {to} at {node}"), DEADLINE, || is_whole(&pings))?;
    Ok(pings)
}

/// Whether the last pings have all had their echo, but for those that may still be on their way.
pub fn is_whole(pings: &Stream) -> Result<(), String> {
    match pings.echoes_of_last(WHOLE, BACK) {
        WHOLE => Ok(()),
        echoes => Err(format!("{echoes} of the last {WHOLE}")),
    }
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

/// Sends a process a signal.
pub fn signal(pid: i32, signal: Signal) -> Result<()> {
    kill(Pid::from_raw(pid), signal).with_context(|| format!("sending {signal} to process {pid}"))
}
