//! The control plane is gone: nothing is lost, and a machine that boots meanwhile is back from its disk.

use std::time::Instant;

use anyhow::{Result, ensure};
use e2e::cluster::control_plane::{self, Component};
use e2e::guest::{self, member};
use e2e::lab::Lab;
use e2e::outage::signal_operators;
use e2e::warren;

use super::{SHORT_STREAM, STREAM, reach_all, row, sh};
use crate::pings::Addresses;
use crate::restarts::identity;
use crate::{A, B, pings};

/// Rows 1, 5 and 11 at once: no API server, no operator, and an agent that is killed meanwhile.
pub fn api_and_operators_gone(lab: &Lab) -> Result<()> {
    let began = Instant::now();
    let (before, addresses) = (identity(lab, A)?, Addresses::read(lab)?);
    let pings = without_control_plane(lab, || {
        pings::during(lab, &addresses, STREAM, || {
            member::end_agent(lab, lab.node(A)?, "-9")?;
            member::start_agent(lab, lab.node(A)?, None)?;
            member::wait_direct(lab, A, B).map(drop)
        })
    })?;
    row("1+11", "no API server, no operator, agent killed", "hold", pings, began.elapsed());
    ensure!(pings.lost == 0 && identity(lab, A)? == before, "{pings}");
    member::wait_ready(lab, A).map(drop)
}

/// Row 5: every operator is killed; kubelet starts them again.
pub fn operators_killed(lab: &Lab) -> Result<()> {
    let began = Instant::now();
    let pings = pings::during(lab, &Addresses::read(lab)?, SHORT_STREAM, || signal_operators(lab, "-9"))?;
    row("5", "operators killed", "hold", pings, began.elapsed());
    ensure!(pings.lost == 0, "{pings}");
    warren::wait_condition(lab, "meshnodes", "Ready")
}

/// Row 14: a machine boots while nobody can tell it anything.
pub fn reboots_without_control_plane(lab: &Lab) -> Result<()> {
    let addresses = Addresses::read(lab)?;
    let (_, port, key) = identity(lab, A)?;
    let node = lab.node(A)?;
    let (booted, took) = without_control_plane(lab, || {
        let began = Instant::now();
        guest::power_cut(lab, node)?;
        guest::boot(lab, node)?;
        let booted = began.elapsed();
        member::start_agent(lab, node, None)?;
        Ok((booted, reach_all(lab, A, &addresses)?))
    })?;
    let seen = format!("{:.1} s for the boot, then everybody reached, from disk", booted.as_secs_f32());
    row("14", "reboot, no API server, no operator", "in the mesh from disk", seen, took);
    let (_, port_after, key_after) = identity(lab, A)?;
    ensure!((port, key) == (port_after, key_after), "another port or key after the reboot");
    member::wait_ready(lab, A).map(drop)
}

/// Row 15: a machine boots with its clock a day behind: its handshakes look like old ones repeated to every peer that knew it.
pub fn boots_in_the_past(lab: &Lab) -> Result<()> {
    let addresses = Addresses::read(lab)?;
    let node = lab.node(B)?;
    guest::power_cut(lab, node)?;
    guest::boot(lab, node)?;
    sh(lab, B, "date -s @$(($(date +%s) - 86400))")?;
    member::start_agent(lab, node, None)?;
    let took = reach_all(lab, B, &addresses)?;
    row("15", "boot with the clock a day behind", "peers initiate, reached within 20 s", "everybody reached", took);
    sh(lab, B, "date -s @$(($(date +%s) + 86400))")?;
    member::wait_ready(lab, B).map(drop)
}

/// Works without API server and operators, and has them go on whatever came of it.
fn without_control_plane<T>(lab: &Lab, work: impl FnOnce() -> Result<T>) -> Result<T> {
    control_plane::freeze(lab, Component::ApiServer)?;
    let result = signal_operators(lab, "-STOP").and_then(|()| work());
    control_plane::thaw(lab, Component::ApiServer)?;
    // kubelet replaces operators that slept for long.
    let _ = signal_operators(lab, "-CONT");
    control_plane::wait_ready(lab)?;
    result
}
