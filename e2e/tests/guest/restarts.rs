//! What happens to an agent happens to no packet: the kernel goes on, and the next agent finds everything as it was.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use e2e::guest::{self, DISK, SHELL, member};
use e2e::images::binary;
use e2e::lab::Lab;
use serde_json::Value;

use crate::{A, B, PUB, pings};

/// How long an agent is away, unless GUEST_SECONDS says otherwise; `make guest-lane` says 600.
const AWAY: u64 = 15;
/// Four streams of this many seconds at 10 Hz are 600 pings.
const STREAM: u64 = 15;
/// Each stream alone sends 600 pings in the long form.
const LONG_STREAM: u64 = 60;

pub fn killed(lab: &Lab) -> Result<()> {
    nothing_is_lost(lab, stream()?, "killed", || {
        member::end_agent(lab, lab.node(A)?, "-9")?;
        start(lab, A, None)
    })
}

pub fn restarted(lab: &Lab) -> Result<()> {
    nothing_is_lost(lab, stream()?, "restarted", || {
        member::end_agent(lab, lab.node(A)?, "-TERM")?;
        start(lab, A, None)
    })
}

/// Both at once, and another program takes the place of each.
pub fn upgraded(lab: &Lab) -> Result<()> {
    let next = format!("{DISK}/next/warren-agent");
    for node in guest::all(lab)? {
        let built = binary("warren-agent").display().to_string();
        guest::exec(lab, node, SHELL, &["-c", &format!("mkdir -p {DISK}/next; cp {built} {next}")])?;
    }
    nothing_is_lost(lab, stream()?, "upgraded", || {
        for node in guest::all(lab)? {
            member::end_agent(lab, node, "-TERM")?;
        }
        for node in [A, B] {
            start(lab, node, Some(&next))?;
        }
        Ok(())
    })?;
    let running = lab.exec(A, SHELL, &["-c", "readlink /proc/$(pgrep warren-agent)/exe"])?;
    ensure!(running.trim() == next, "{} runs", running.trim());
    Ok(())
}

pub fn away(lab: &Lab) -> Result<()> {
    let away = Duration::from_secs(seconds()?);
    nothing_is_lost(lab, away + Duration::from_secs(STREAM), &format!("away for {} s", away.as_secs()), || {
        member::end_agent(lab, lab.node(A)?, "-TERM")?;
        // The time is what is tested.
        std::thread::sleep(away);
        start(lab, A, None)
    })
}

fn start(lab: &Lab, name: &str, program: Option<&str>) -> Result<()> {
    let began = Instant::now();
    member::start_agent(lab, lab.node(name)?, program)?;
    for peer in [A, B, PUB].into_iter().filter(|peer| *peer != name) {
        member::wait_direct(lab, name, peer)?;
    }
    eprintln!("           the agent of {name} calls every path direct after {:.1} s", began.elapsed().as_secs_f32());
    Ok(())
}

fn nothing_is_lost(lab: &Lab, time: Duration, what: &str, happens: impl FnOnce() -> Result<()>) -> Result<()> {
    let before = [identity(lab, A)?, identity(lab, B)?];
    pings::none_lost(lab, time, what, happens)?;
    let after = [identity(lab, A)?, identity(lab, B)?];
    ensure!(before == after, "{what}: interface, port or key changed from {before:?} to {after:?}");
    Ok(())
}

/// Number of the interface, port and key.
pub fn identity(lab: &Lab, node: &str) -> Result<(String, Value, Value)> {
    let status = member::report(lab, node, "status")?;
    let index = lab.exec(node, "cat", &["/sys/class/net/warren0/ifindex"])?;
    Ok((index.trim().into(), status["listenPort"].clone(), status["publicKey"].clone()))
}

fn seconds() -> Result<u64> {
    match std::env::var("GUEST_SECONDS") {
        Ok(text) => text.parse().with_context(|| format!("GUEST_SECONDS={text:?} is no number of seconds")),
        Err(_) => Ok(AWAY),
    }
}

fn stream() -> Result<Duration> {
    Ok(Duration::from_secs(seconds()?.clamp(STREAM, LONG_STREAM)))
}
