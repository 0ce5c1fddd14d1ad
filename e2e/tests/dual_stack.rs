//! The demo's situation with IPv6 on the underlay and pods of both families.

use std::process::ExitCode;

use e2e::images::Set;
use e2e::scenario::Scenario;
use e2e::{checks, harness};

fn main() -> ExitCode {
    harness::main(
        Scenario { dual_stack: true, ..Scenario::demo("t-dual") },
        Set::All,
        &[
            ("helm_install_returns_and_every_node_is_ready", checks::install),
            ("every_pod_reaches_every_pod_by_both_families", checks::pod_to_pod),
            ("hosts_reach_remote_pods", checks::host_to_pod),
            ("pods_reach_the_world", checks::pod_to_outside),
            ("long_transfers_are_whole", checks::transfers),
            ("helm_test_passes", checks::helm_test),
        ],
    )
}
