//! Nodes whose WireGuard is the kernel's, in a real cluster: two virtual machines behind two NATs join the lab's API server, operator
//! and relay beside ordinary nodes, and what happens to an agent happens to no packet.

mod faults;
mod on_demand;
mod pings;
mod relayed;
mod restarts;
mod tracking;

use std::process::ExitCode;

use anyhow::{Context, Result, ensure};
use e2e::guest::{self, member};
use e2e::images::Set;
use e2e::lab::Lab;
use e2e::net::topology;
use e2e::scenario::{RELAY_QUIC_PORT, Scenario};
use e2e::{checks, command, harness};
use faults::{control_plane, device, network, state};

const A: &str = "guest-a";
const B: &str = "guest-b";
/// An ordinary node of the lab.
const PUB: &str = "pub";

fn main() -> ExitCode {
    harness::main(
        Scenario::guests("t-guest"),
        Set::All,
        &[
            ("helm_install_returns_and_every_node_is_ready", checks::install),
            ("guests_join_the_cluster", guests_join),
            ("two_nats_are_crossed_on_one_port", two_nats_are_crossed_on_one_port),
            ("an_agent_that_is_killed_costs_no_packet", restarts::killed),
            ("an_agent_that_is_restarted_costs_no_packet", restarts::restarted),
            ("an_agent_that_is_upgraded_costs_no_packet", restarts::upgraded),
            ("an_agent_that_is_away_costs_no_packet", restarts::away),
            ("idle_pairs_sleep_and_lose_no_first_ping", on_demand::direct),
            ("fault_1_api_and_operators_gone", control_plane::api_and_operators_gone),
            ("fault_5_operators_killed", control_plane::operators_killed),
            ("fault_14_reboot_without_control_plane", control_plane::reboots_without_control_plane),
            ("fault_15_clock_in_the_past", control_plane::boots_in_the_past),
            ("fault_21_cache_corrupt", state::cache_corrupt),
            ("fault_22_disk_full", state::disk_full),
            ("fault_25_interface_deleted", device::interface_deleted),
            ("fault_26_rules_flushed", device::rules_flushed),
            ("fault_27_routes_removed", device::routes_removed),
            ("fault_29_module_missing", device::module_missing),
            ("fault_30_port_taken", device::port_taken),
            ("fault_31_underlay_renamed", network::underlay_renamed),
            ("fault_32_lossy_link", network::lossy_link),
            // From here on the guests stand behind NATs that draw their ports, until the last of them.
            ("relayed_by_a_relay_and_nothing_else", relayed::hard_nats),
            ("relayed_idle_pairs_sleep_and_lose_no_first_ping", on_demand::relayed),
            ("relayed_an_agent_restarts", relayed::agents_restarted),
            ("relayed_moves_to_another_relay", relayed::moved),
            ("relayed_fault_47_relay_killed_in_place", relayed::killed_in_place),
            ("relayed_fault_50_drain_under_load", relayed::drained),
            ("relayed_scenario_25_without_udp", relayed::without_udp),
            ("relayed_scenario_27_with_udp_again", relayed::with_udp_again),
        ],
    )
}

/// Nodes, as Kubernetes and Warren see them, whose device is the kernel's.
fn guests_join(lab: &Lab) -> Result<()> {
    let guests = guest::all(lab)?;
    let join = |node| guest::create(lab, node).and_then(|()| member::register(lab, node));
    std::thread::scope(|scope| {
        let joining: Vec<_> = guests.iter().map(|node| scope.spawn(|| join(node))).collect();
        joining.into_iter().try_for_each(|thread| thread.join().expect("joining does not panic"))
    })?;
    for node in &guests {
        member::start_agent(lab, node, None)?;
    }
    for node in guests {
        let status = member::wait_ready(lab, &node.name)?;
        ensure!(status["backend"] == "kernel", "what Auto means on {}: {status}", node.name);
    }
    Ok(())
}

/// Each guest reaches the other and an ordinary node directly, and every UDP packet that its router has seen came from WireGuard's port:
/// questions to STUN, probes, data; but for the control channels to relays.
fn two_nats_are_crossed_on_one_port(lab: &Lab) -> Result<()> {
    for (node, peer) in [(A, B), (B, A), (A, PUB), (B, PUB)] {
        let path = member::wait_direct(lab, node, peer)?;
        eprintln!("           {node} to {peer}: {} at {}", path["tier"], path["endpoint"]);
    }
    for node in guest::all(lab)? {
        let status = member::report(lab, &node.name, "status")?;
        let port = status["listenPort"].as_u64().context("a port")?;
        let router = topology::router(&lab.scenario().name, &node.name);
        let inner = node.v4.addr().to_string();
        let flows = command::run(&mut router.command("conntrack", &["-L", "-p", "udp", "--orig-src", &inner]))?;
        let asked = |port: &str| flows.lines().any(|flow| flow.contains(&format!(" dport={port} ")));
        ensure!(asked("3478"), "{} never asked a STUN server: {flows}", node.name);
        let sport = format!(" sport={port} ");
        // The control channel to a relay is a connection of its own.
        let channel = format!(" dport={RELAY_QUIC_PORT} ");
        let is_strange = |flow: &&str| !flow.contains(&sport) && !flow.contains(&channel);
        let strangers: Vec<&str> = flows.lines().filter(is_strange).collect();
        ensure!(strangers.is_empty(), "{} also sent from other ports than {port}: {strangers:?}", node.name);
        eprintln!(
            "           {}: {} UDP flows, all but those to relays' channels from port {port}",
            node.name,
            flows.lines().count()
        );
    }
    Ok(())
}
