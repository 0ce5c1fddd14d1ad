//! Rows of the fault catalogue on nodes whose WireGuard is the kernel's. Each prints what is expected, what was seen, and how long it
//! took; none asserts a time.

pub mod control_plane;
pub mod device;
pub mod network;
pub mod state;

use std::fmt::Display;
use std::time::{Duration, Instant};

use anyhow::Result;
use e2e::guest::{SHELL, exec, member};
use e2e::lab::Lab;
use e2e::wait;

use crate::pings::Addresses;
use crate::{A, B, PUB};

/// How long pings go on over a fault that an agent is killed for, and over one that it isn't.
const STREAM: Duration = Duration::from_secs(10);
const SHORT_STREAM: Duration = Duration::from_secs(5);
/// Everything comes back by then.
pub const SOON: Duration = Duration::from_secs(120);

/// Prints one row.
pub fn row(number: &str, fault: &str, expected: &str, seen: impl Display, took: Duration) {
    eprintln!("           row {number:<4} {fault}: expected {expected}; seen {seen}; {:.1} s", took.as_secs_f32());
}

/// Waits until one node's ping to a mesh address is answered.
pub fn reach(lab: &Lab, from: &str, to: &str) -> Result<()> {
    let ping = ["-n", "-q", "-c", "1", "-W", "1", to];
    wait::until(&format!("{from} to reach {to}"), SOON, || {
        lab.exec(from, "ping", &ping).map_err(|error| format!("{error:#}"))
    })
    .map(drop)
}

/// Waits until a guest and everybody else reach each other again; returns how long that took. The others first: before its agent has
/// made device and routes, a machine sends its own packets to the mesh by its default route.
pub fn reach_all(lab: &Lab, guest: &str, addresses: &Addresses) -> Result<Duration> {
    let began = Instant::now();
    let others = [(A, &addresses.a), (B, &addresses.b), (PUB, &addresses.public)];
    for (other, address) in others.into_iter().filter(|(other, _)| *other != guest) {
        reach(lab, other, addresses.of(guest))?;
        reach(lab, guest, address)?;
    }
    Ok(began.elapsed())
}

/// Runs a shell script in a guest.
pub fn sh(lab: &Lab, guest: &str, script: &str) -> Result<String> {
    exec(lab, lab.node(guest)?, SHELL, &["-c", script])
}

/// Waits until a guest's agent has this condition, or has it no more.
fn wait_condition(lab: &Lab, guest: &str, kind: &str, present: bool) -> Result<()> {
    wait::until(&format!("condition {kind} of {guest}: {present}"), SOON, || {
        let status = member::report(lab, guest, "status").map_err(|error| format!("{error:#}"))?;
        let raised = member::condition(&status, kind).is_some_and(|one| one["status"] == "True");
        if raised == present { Ok(()) } else { Err(status["conditions"].to_string()) }
    })
}
