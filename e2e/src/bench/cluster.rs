//! The labs of the benchmark: sites with 40 ms between any two, Warren installed by Helm, and ways to look at an agent that cost next to
//! nothing.

use std::net::Ipv4Addr;

use anyhow::{Context, Result};
use serde_json::Value;

use crate::bench::{LAB, usage};
use crate::images::Set;
use crate::lab::Lab;
use crate::net::topology;
use crate::progress::Progress;
use crate::scenario::Scenario;
use crate::{agent, wait, warren};

/// One way, in milliseconds: 40 ms of round trip between any two sites.
const DELAY: u64 = 20;
/// The agent's own name for its process.
pub const AGENT: &str = "warren-agent";

/// Brings up the lab in which every pair can be direct, measures, and takes it down whatever came of it.
pub fn with_lab<T>(progress: &Progress, measure: impl FnOnce(&Lab) -> Result<T>) -> Result<T> {
    with(Scenario::direct(LAB), progress, |lab| {
        progress.step("every pair is direct", || wait_all_direct(lab))?;
        measure(lab)
    })
}

/// The same with another scenario, and without waiting for paths.
pub fn with<T>(scenario: Scenario, progress: &Progress, measure: impl FnOnce(&Lab) -> Result<T>) -> Result<T> {
    Lab::with(Scenario { delay_ms: DELAY, ..scenario }, Set::All, progress, |lab| {
        progress.step("helm install warren --wait", || warren::install(lab))?;
        progress.step("every node and MeshNode is Ready", || warren::wait_ready(lab))?;
        measure(lab)
    })
}

fn wait_all_direct(lab: &Lab) -> Result<()> {
    wait::until("every pair of nodes to be direct", warren::CONVERGED, || {
        let nodes = lab.running();
        let pairs = nodes.iter().flat_map(|from| nodes.iter().map(move |to| (&from.name, &to.name)));
        let lacking: Vec<String> = pairs
            .filter(|(from, to)| from != to && !is_reached(lab, from, to, "direct"))
            .map(|(from, to)| format!("{from} to {to}"))
            .collect();
        if lacking.is_empty() { Ok(()) } else { Err(lacking.join(", ")) }
    })
}

/// What the agent of `node` says of its path to `peer`; nothing when it does not answer.
#[must_use]
pub fn path(lab: &Lab, node: &str, peer: &str) -> Option<Value> {
    let report = agent::ask(lab, node, "/v1/paths").ok()?;
    report["peers"].as_array()?.iter().find(|entry| entry["name"] == peer).cloned()
}

/// Whether the agent of `node` says that it reaches `peer` in this state: `direct`, `relayed`.
#[must_use]
pub fn is_reached(lab: &Lab, node: &str, peer: &str, state: &str) -> bool {
    path(lab, node, peer).is_some_and(|path| path["state"] == state)
}

/// The process of the node's agent, if one runs.
#[must_use]
pub fn agent(lab: &Lab, node: &str) -> Option<i32> {
    usage::running(AGENT, &topology::node(LAB, &lab.node(node).ok()?.name)).into_iter().max()
}

/// The first IPv4 mesh address of a node.
pub fn mesh_address(lab: &Lab, node: &str) -> Result<Ipv4Addr> {
    let object = lab.kubectl_json(&["get", "meshnode", node])?;
    let all = object["spec"]["meshIPs"].as_array().map(Vec::as_slice).unwrap_or_default();
    let first = all.iter().find_map(|address| address.as_str()?.split('/').next()?.parse().ok());
    first.with_context(|| format!("meshnode {node} has no IPv4 mesh address"))
}
