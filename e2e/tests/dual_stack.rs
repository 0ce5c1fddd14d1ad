//! The demo's situation with IPv6 on the underlay and pods of both families.

use std::process::ExitCode;

use e2e::images::Set;
use e2e::scenario::Scenario;
use e2e::{checks, harness};

fn main() -> ExitCode {
    harness::main(
        Scenario { dual_stack: true, ..Scenario::direct("t-dual") },
        Set::All,
        &[
            ("helm_install_returns_and_every_node_is_ready", checks::install),
            ("every_pod_reaches_every_pod_by_both_families", checks::pod_to_pod),
            ("hosts_reach_remote_pods", checks::host_to_pod),
            ("pods_and_hosts_reach_a_service_of_both_families", checks::service),
            ("pods_reach_the_world", checks::pod_to_outside),
            ("the_api_server_reaches_a_webhook_behind_nat", checks::webhook),
            ("logs_and_exec_where_the_address_is_unique", checks::logs_and_exec),
            ("full_size_packets_fit", checks::full_size_packets),
            ("long_transfers_are_whole", checks::transfers),
            ("packets_to_dead_pods_stay_inside", checks::packets_to_dead_pods_stay_inside),
            ("the_api_server_is_reached_by_the_underlay", checks::api_by_the_underlay),
            ("helm_test_passes", checks::helm_test),
        ],
    )
}
