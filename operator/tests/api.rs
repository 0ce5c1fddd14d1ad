//! The operator against a real API server: `WARREN_PARTS` names the folder with `etcd` and `kube-apiserver`.
//!
//! One API server for all scenarios, one after the other, each on an emptied cluster. Arguments filter by name. Without the
//! parts everything is skipped, with the reason, or fails when `REQUIRE_LAB=1`.

#[path = "api/cluster.rs"]
mod cluster;
#[path = "api/parts.rs"]
mod parts;
#[path = "api/placement.rs"]
mod placement;
#[path = "api/protection.rs"]
mod protection;
#[path = "api/repairs.rs"]
mod repairs;
#[path = "api/replicas.rs"]
mod replicas;
#[path = "api/schema.rs"]
mod schema;
#[path = "api/versions.rs"]
mod versions;

use anyhow::Result;
use cluster::Cluster;
use futures::future::LocalBoxFuture;
use std::{path::PathBuf, process::ExitCode, time::Instant};

type Scenario = for<'a> fn(&'a Cluster) -> LocalBoxFuture<'a, Result<()>>;

macro_rules! scenarios {
    ($($module:ident::$name:ident),* $(,)?) => {
        &[$((stringify!($name), |cluster| Box::pin($module::$name(cluster)))),*]
    };
}

const SCENARIOS: &[(&str, Scenario)] = scenarios![
    schema::every_rule_accepts_and_refuses,
    replicas::it_waits_for_definitions_and_then_serves,
    replicas::one_of_two_replicas_writes_and_the_other_takes_over,
    replicas::replicas_that_slept_past_the_lease_leave_one_writer,
    replicas::a_leader_that_slept_alone_makes_up_for_what_it_missed,
    replicas::nothing_is_written_when_nothing_changed,
    protection::no_key_is_admitted_without_the_policies,
    protection::altered_policies_are_noticed,
    protection::agents_write_only_their_own_status,
    protection::relays_write_only_their_own_status,
    protection::a_policy_altered_for_a_moment_voids_the_challenge,
    repairs::garbage_by_hand_is_named_and_nothing_is_lost,
    repairs::a_node_made_again_under_its_name_is_another_node,
    repairs::relays_follow_the_label,
    placement::a_relay_comes_to_stand_without_a_label_and_is_proven_by_those_who_reach_it,
    placement::what_an_admin_says_of_a_node_wins_and_labels_by_hand_stand,
    placement::the_operator_may_change_one_label_of_a_node_and_nothing_else,
    repairs::a_suspended_node_leaves_the_directory,
    versions::fields_of_a_newer_version_outlive_the_operators_writes,
    versions::definitions_deleted_under_a_running_operator_come_back_with_everything,
];

fn main() -> ExitCode {
    let filters: Vec<String> = std::env::args().skip(1).filter(|arg| !arg.starts_with('-')).collect();
    if std::env::args().any(|arg| arg == "--list") {
        SCENARIOS.iter().for_each(|(name, _)| println!("{name}: test"));
        return ExitCode::SUCCESS;
    }
    let Some(binaries) = std::env::var_os("WARREN_PARTS").map(PathBuf::from) else {
        let required = std::env::var("REQUIRE_LAB").is_ok_and(|value| value == "1");
        println!("skipped: WARREN_PARTS does not name a folder with etcd and kube-apiserver");
        return if required { ExitCode::FAILURE } else { ExitCode::SUCCESS };
    };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    runtime.block_on(run(&binaries, &filters))
}

async fn run(binaries: &std::path::Path, filters: &[String]) -> ExitCode {
    let cluster = match Cluster::start(binaries).await {
        Ok(cluster) => cluster,
        Err(error) => {
            println!("FAILED to start the API server: {error:#}");
            return ExitCode::FAILURE;
        }
    };
    if let Err(error) = cluster.install_crds().await {
        println!("FAILED to install the definitions: {error:#}");
        return ExitCode::FAILURE;
    }
    let mut failures = Vec::new();
    for (name, scenario) in SCENARIOS {
        if !filters.is_empty() && !filters.iter().any(|filter| name.contains(filter.as_str())) {
            continue;
        }
        let began = Instant::now();
        let result = match cluster.reset().await {
            Ok(()) => scenario(&cluster).await,
            Err(error) => Err(error.context("empty the cluster")),
        };
        let seconds = began.elapsed().as_secs_f32();
        match result {
            Ok(()) => println!("{name} ... ok ({seconds:.1} s)"),
            Err(error) => {
                println!("{name} ... FAILED ({seconds:.1} s): {error:#}\n  logs: {}", cluster.parts.dir.display());
                failures.push(format!("{name} ... FAILED: {error:#}"));
            }
        }
    }
    // Again, where whoever reads only the end of a long log finds them.
    failures.iter().for_each(|failure| println!("{failure}"));
    if failures.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
