//! The situation of the demo: public, home, a second home alike to the last address behind a plain Linux box, a firewalled site with a
//! smaller uplink, a NAT that draws its ports, and a site from which only TCP to port 443 leaves.

use std::process::ExitCode;

use anyhow::{Result, ensure};
use e2e::agent::both_ways;
use e2e::images::Set;
use e2e::lab::Lab;
use e2e::outage::SOON;
use e2e::scenario::{Connection, Scenario};
use e2e::{agent, checks, demo, harness, wait};

fn main() -> ExitCode {
    harness::main(
        Scenario::demo("t-demo"),
        Set::All,
        &[
            ("helm_install_returns_and_every_node_is_ready", checks::install),
            ("every_pod_reaches_every_pod", checks::pod_to_pod),
            ("every_pair_is_connected_as_it_can_be_and_says_why", every_pair_is_at_its_best),
            ("the_plain_linux_box_is_direct_with_everybody_who_can_be", the_plain_box_is_direct),
            ("who_has_tls_alone_is_relayed_over_it_and_says_why", who_has_tls_alone_is_relayed),
            ("hosts_reach_remote_pods", checks::host_to_pod),
            ("pods_and_hosts_reach_a_service", checks::service),
            ("pods_reach_the_world", checks::pod_to_outside),
            ("the_api_server_reaches_a_webhook_behind_nat", checks::webhook),
            ("logs_and_exec_where_the_address_is_unique", checks::logs_and_exec),
            ("full_size_packets_fit", checks::full_size_packets),
            ("long_transfers_are_whole", checks::transfers),
            ("packets_to_dead_pods_stay_inside", checks::packets_to_dead_pods_stay_inside),
            ("the_api_server_is_reached_by_the_underlay", checks::api_by_the_underlay),
            ("planted_leaks_are_found", checks::planted_leaks_are_found),
            ("helm_test_passes", checks::helm_test),
        ],
    )
}

/// What the demo prints is what every agent says, and none of it is worse than the sites allow.
fn every_pair_is_at_its_best(lab: &Lab) -> Result<()> {
    let paths = wait::until("every pair to have the best path there is", SOON, || {
        let paths = demo::paths(lab);
        let unsettled = demo::unsettled(lab.scenario(), &paths);
        if unsettled.is_empty() { Ok(paths) } else { Err(unsettled.join("; ")) }
    })?;
    let table = demo::picture::paths(lab.scenario(), &paths);
    eprintln!("{table}");
    for said in [
        "hard to home-a: by the relay on ",
        "home-a to hard: by the relay on ",
        "because of HardNAT",
        "over tls, because of UDPBlocked",
    ] {
        ensure!(table.contains(said), "no {said:?} in the table");
    }
    Ok(())
}

fn the_plain_box_is_direct(lab: &Lab) -> Result<()> {
    for other in ["cp", "pub", "home-a", "fw"] {
        ensure!(lab.scenario().connection("plain", other)? == Connection::Direct, "the demo has other sites now");
        wait::until(&format!("plain and {other} to be direct"), SOON, || {
            both_ways(lab, ("plain", other), |path| path["state"] == "direct").map(drop)
        })?;
    }
    Ok(())
}

fn who_has_tls_alone_is_relayed(lab: &Lab) -> Result<()> {
    for to in lab.running().iter().map(|node| node.name.as_str()).filter(|to| *to != "tls") {
        wait::until(&format!("tls to reach {to} over TLS"), SOON, || match agent::path(lab, "tls", to)? {
            path if path["state"] == "relayed" && path["transport"] == "tls" && path["reason"] == "UDPBlocked" => {
                Ok(())
            }
            path => Err(path.to_string()),
        })?;
    }
    Ok(())
}
