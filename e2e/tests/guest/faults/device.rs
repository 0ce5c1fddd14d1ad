//! Somebody takes away what the agent made: interface, firewall, routes, port, module.

use std::time::Instant;

use anyhow::{Context, Result, ensure};
use e2e::guest::{self, member};
use e2e::lab::Lab;
use e2e::wait;

use super::{SOON, reach_all, row, sh, wait_condition};
use crate::A;
use crate::pings::Addresses;
use crate::restarts::identity;

/// Row 25.
pub fn interface_deleted(lab: &Lab) -> Result<()> {
    let addresses = Addresses::read(lab)?;
    let before = identity(lab, A)?;
    sh(lab, A, "ip link del warren0")?;
    let took = reach_all(lab, A, &addresses)?;
    let after = identity(lab, A)?;
    ensure!((&before.1, &before.2) == (&after.1, &after.2), "made again with another port or key");
    row("25", "ip link del warren0", "made again within 2 s, same key and port", "everybody reached", took);
    Ok(())
}

/// Row 26: once is an accident, again and again is a fight.
pub fn rules_flushed(lab: &Lab) -> Result<()> {
    let mut first = None;
    for _ in 0..6 {
        let began = Instant::now();
        sh(lab, A, "nft flush ruleset")?;
        wait::until("the packet filter to stand again", SOON, || {
            sh(lab, A, "nft list table inet warren").map_err(|error| format!("{error:#}"))
        })?;
        first.get_or_insert(began.elapsed());
    }
    row("26", "nft flush ruleset", "restored within 2 s", "restored", first.unwrap_or_default());
    let began = Instant::now();
    wait_condition(lab, A, "RulesContended", true)?;
    row("26", "nft flush ruleset, six times", "RulesContended", "RulesContended", began.elapsed());
    Ok(())
}

/// Row 27.
pub fn routes_removed(lab: &Lab) -> Result<()> {
    const ROUTING: &str = "ip rule; for table in 21820 21821; do ip route show table $table | sort; done";
    let before = sh(lab, A, ROUTING)?;
    let began = Instant::now();
    sh(
        lab,
        A,
        "ip route flush table 21820; ip rule | grep -E 'lookup (21820|21821)' | cut -d: -f1 | while read -r p; do ip rule del pref $p; done",
    )?;
    wait::until("rules and routes to stand again", SOON, || {
        let now = sh(lab, A, ROUTING).map_err(|error| format!("{error:#}"))?;
        if now == before { Ok(()) } else { Err(now) }
    })?;
    row("27", "routes and rules removed", "restored within 2 s", "restored", began.elapsed());
    Ok(())
}

/// Row 30: somebody has the port when the device is to be made.
pub fn port_taken(lab: &Lab) -> Result<()> {
    let addresses = Addresses::read(lab)?;
    let (_, port, _) = identity(lab, A)?;
    let node = lab.node(A)?;
    member::end_agent(lab, node, "-TERM")?;
    // Another WireGuard device holds the port while it is up.
    sh(
        lab,
        A,
        &format!(
            "ip link del warren0; ip link add foreign type wireguard; wg set foreign listen-port {port}; ip link set foreign up"
        ),
    )?;
    member::start_agent(lab, node, None)?;
    let took = reach_all(lab, A, &addresses)?;
    let now = identity(lab, A)?.1;
    ensure!(now != port, "it says that it has port {port}, which somebody else has");
    wait::until("the other port to be published", SOON, || {
        let object = lab.kubectl_json(&["get", "meshnode", A]).map_err(|error| format!("{error:#}"))?;
        if object["status"]["listenPort"] == now { Ok(()) } else { Err(object["status"].to_string()) }
    })?;
    row("30", "port taken", "another port, published", format!("{now} instead of {port}, everybody reached"), took);
    member::end_agent(lab, node, "-TERM")?;
    sh(lab, A, "ip link del foreign; ip link del warren0")?;
    member::start_agent(lab, node, None)?;
    reach_all(lab, A, &addresses).map(drop)
}

/// Row 29: a kernel without the module; and the same machine when it has it again.
pub fn module_missing(lab: &Lab) -> Result<()> {
    let addresses = Addresses::read(lab)?;
    let node = lab.node(A)?;
    member::end_agent(lab, node, "-TERM")?;
    sh(lab, A, "ip link del warren0; rmmod wireguard; rm $(find /lib/modules -name 'wireguard.ko*')")?;
    member::start_agent(lab, node, None)?;
    let took = reach_all(lab, A, &addresses)?;
    let backend = || -> Result<String> {
        let status = member::report(lab, A, "status")?;
        Ok(status["backend"].as_str().context("a backend")?.to_owned())
    };
    let seen = backend()?;
    ensure!(seen == "userspace", "backend {seen} without a module");
    row("29", "no WireGuard module", "userspace where allowed", format!("{seen}, everybody reached"), took);
    lab.kubectl(&["patch", "meshnode", A, "--type=merge", "-p", r#"{"spec":{"backend":"Kernel"}}"#])?;
    let began = Instant::now();
    wait_condition(lab, A, "NoKernelWireGuard", true)?;
    row("29", "no WireGuard module, backend Kernel", "NoKernelWireGuard", "NoKernelWireGuard", began.elapsed());
    lab.kubectl(&["patch", "meshnode", A, "--type=merge", "-p", r#"{"spec":{"backend":null}}"#])?;
    guest::power_cut(lab, node)?;
    guest::boot(lab, node)?;
    member::start_agent(lab, node, None)?;
    reach_all(lab, A, &addresses)?;
    ensure!(backend()? == "kernel", "with its module the node is on {}", backend()?);
    Ok(())
}
