//! A control plane behind 1:1 NAT that advertises its private address.

use std::process::ExitCode;

use e2e::images::Set;
use e2e::scenario::Scenario;
use e2e::{checks, harness};

fn main() -> ExitCode {
    harness::main(
        Scenario::nat_api("t-natapi"),
        Set::All,
        &[
            ("helm_install_returns_and_every_node_is_ready", checks::install),
            ("every_pod_reaches_every_pod", checks::pod_to_pod),
            ("pods_and_hosts_reach_a_service", checks::service),
            ("logs_and_exec_where_the_address_is_unique", checks::logs_and_exec),
            ("the_api_server_is_reached_by_the_underlay", checks::api_by_the_underlay),
            ("helm_test_passes", checks::helm_test),
        ],
    )
}
