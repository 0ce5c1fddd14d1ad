//! Everything that breaks comes back without help, and what need not notice does not.

use std::process::ExitCode;

use anyhow::{Context, Result, ensure};
use e2e::cluster::control_plane::{self, Component};
use e2e::cluster::node;
use e2e::images::Set;
use e2e::lab::Lab;
use e2e::net::topology;
use e2e::outage::{SOON, during, on, reach, signal_operators};
use e2e::scenario::Scenario;
use e2e::secrets::key_file;
use e2e::workload;
use e2e::{checks, harness, wait, warren};

/// How long the control plane is gone, unless RECOVERY_SECONDS says otherwise; `make recovery` says 120.
const CONTROL_PLANE_GONE: u64 = 15;
/// How long a stream runs over a restart.
const RESTART: u64 = 15;

fn main() -> ExitCode {
    harness::main(
        Scenario::direct("t-recover"),
        Set::All,
        &[
            ("helm_install_returns_and_every_node_is_ready", checks::install),
            ("every_pod_reaches_every_pod", checks::pod_to_pod),
            ("an_agent_restarts_under_traffic", an_agent_restarts_under_traffic),
            ("no_packet_is_lost_while_no_operator_runs", nothing_is_lost_without_operators),
            ("no_packet_is_lost_while_the_api_server_is_gone", nothing_is_lost_without_the_api_server),
            ("no_packet_is_lost_while_both_are_gone", nothing_is_lost_without_a_control_plane),
            ("a_home_gets_another_address_and_mapping", a_home_gets_another_address),
            ("a_node_reboots", a_node_reboots),
            ("a_node_loses_its_key", a_node_loses_its_key),
            ("a_node_is_deleted_and_joins_again", a_node_is_deleted_and_joins_again),
        ],
    )
}

fn an_agent_restarts_under_traffic(lab: &Lab) -> Result<()> {
    let pods = workload::pods(lab)?;
    let (from, to) = (on(&pods, "pub")?, on(&pods, "home-a")?);
    let result =
        during(lab, from, to, RESTART, || lab.exec("home-a", "pkill", &["-9", "-x", "warren-agent"]).map(drop))?;
    eprintln!("           agent killed: {result}");
    ensure!(result["received"].as_u64() > Some(0), "nothing came back: {result}");
    reach(lab, "after an agent's restart")
}

fn nothing_is_lost_without_operators(lab: &Lab) -> Result<()> {
    nothing_is_lost_without(lab, &[Gone::Operators])
}

fn nothing_is_lost_without_the_api_server(lab: &Lab) -> Result<()> {
    nothing_is_lost_without(lab, &[Gone::ApiServer])
}

fn nothing_is_lost_without_a_control_plane(lab: &Lab) -> Result<()> {
    nothing_is_lost_without(lab, &[Gone::ApiServer, Gone::Operators])
}

/// What stops answering.
#[derive(Clone, Copy, Debug)]
enum Gone {
    ApiServer,
    Operators,
}

impl Gone {
    fn stop(self, lab: &Lab) -> Result<()> {
        match self {
            Self::ApiServer => control_plane::freeze(lab, Component::ApiServer),
            Self::Operators => signal_operators(lab, "-STOP"),
        }
    }

    fn resume(self, lab: &Lab) -> Result<()> {
        match self {
            Self::ApiServer => control_plane::thaw(lab, Component::ApiServer),
            Self::Operators => signal_operators(lab, "-CONT"),
        }
    }
}

fn nothing_is_lost_without(lab: &Lab, gone: &[Gone]) -> Result<()> {
    let seconds = match std::env::var("RECOVERY_SECONDS") {
        Ok(text) => text.parse().with_context(|| format!("RECOVERY_SECONDS={text:?} is no number of seconds"))?,
        Err(_) => CONTROL_PLANE_GONE,
    };
    let pods = workload::pods(lab)?;
    let (from, to) = (on(&pods, "home-b")?, on(&pods, "fw")?);
    let result = during(lab, from, to, seconds, || gone.iter().try_for_each(|part| part.stop(lab)));
    gone.iter().try_for_each(|part| part.resume(lab))?;
    control_plane::wait_ready(lab)?;
    let result = result?;
    eprintln!("           {gone:?} gone for {seconds} s: {result}");
    ensure!(result["sent"] == result["received"], "packets were lost: {result}");
    reach(lab, "after it came back")
}

fn a_home_gets_another_address(lab: &Lab) -> Result<()> {
    let wan = "198.51.100.11/28".parse().context("an address")?;
    topology::change_home(lab.scenario(), "home-a", wan, 9_000)?;
    reach(lab, "after the change of address")
}

fn a_node_reboots(lab: &Lab) -> Result<()> {
    node::reboot(lab, lab.node("home-b")?)?;
    reach(lab, "after the reboot")
}

fn a_node_loses_its_key(lab: &Lab) -> Result<()> {
    let path = key_file(lab, "fw");
    let old = lab.kubectl_json(&["get", "meshnode", "fw"])?["spec"]["admission"]["publicKey"].clone();
    std::fs::remove_file(&path).with_context(|| format!("removing {}", path.display()))?;
    lab.exec("fw", "pkill", &["-9", "-x", "warren-agent"])?;
    wait::until("another key to be admitted for fw", SOON, || {
        let object = lab.kubectl_json(&["get", "meshnode", "fw"]).map_err(|error| format!("{error:#}"))?;
        let now = &object["spec"]["admission"]["publicKey"];
        if now.is_string() && *now != old { Ok(()) } else { Err(format!("{now}, before {old}")) }
    })?;
    reach(lab, "with the new key")
}

fn a_node_is_deleted_and_joins_again(lab: &Lab) -> Result<()> {
    let spec = lab.node("home-a")?;
    node::power_cut(lab, spec)?;
    lab.kubectl(&["delete", "node", "home-a", "--timeout=60s"])?;
    // As a drain does: the node comes back with another pod range, and a pod keeps its address for life.
    let of_node = "--field-selector=spec.nodeName=home-a";
    lab.kubectl(&["delete", "pods", "-A", of_node, "--force", "--grace-period=0"])?;
    wait::until("the MeshNode of home-a to go", SOON, || match lab.kubectl(&["get", "meshnode", "home-a"]) {
        Err(error) if format!("{error:#}").contains("NotFound") => Ok(()),
        Err(error) => Err(format!("{error:#}")),
        Ok(_) => Err("it is still there".into()),
    })?;
    topology::detach(lab.scenario(), spec)?;
    topology::attach(lab.scenario(), spec)?;
    node::boot(lab, spec)?;
    node::wait_registered(lab, spec)?;
    warren::wait_ready(lab)?;
    reach(lab, "after joining again")
}
