//! Makes a guest a member of the cluster and of the mesh, without kubelet and DaemonSet: the Node is registered as a kubelet would,
//! and the agent runs with the rights of the chart's agents and nothing more.

use std::time::Duration;

use anyhow::{Context, Result};
use base64::Engine;
use serde_json::{Value, json};

use super::{DISK, SHELL, exec, exec_with_input};
use crate::command::run_with_input;
use crate::images::binary;
use crate::lab::Lab;
use crate::scenario::{API_PORT, Node};
use crate::wait;
use crate::warren::{CONVERGED, NAMESPACE};

/// The agent's files on the guest's disk.
const STATE: &str = "state";
const KUBECONFIG: &str = "kubeconfig";
/// Where the agent's log goes: lost with the power, as that of a machine without a journal on disk.
pub const LOG: &str = "/tmp/agent.log";
/// A signal ends an agent within milliseconds.
const ENDS: Duration = Duration::from_secs(20);

/// Registers the Node with the node's own identity, and leaves credentials for the agent on the guest's disk.
pub fn register(lab: &Lab, node: &Node) -> Result<()> {
    let kubeconfig = lab.state().pki().join(format!("{}.kubeconfig", node.name)).display().to_string();
    // No label of an operating system: DaemonSets choose nodes by it, and nothing here starts pods.
    let labels = json!({"kubernetes.io/hostname": node.name});
    let status = json!({
        "addresses": [
            {"type": "InternalIP", "address": node.v4.addr()},
            {"type": "Hostname", "address": node.name},
        ],
        "conditions": [{"type": "Ready", "status": "True", "reason": "KubeletReady", "message": "registered by the lab"}],
    });
    let metadata = json!({"name": node.name, "labels": labels});
    let object = json!({"apiVersion": "v1", "kind": "Node", "metadata": metadata, "status": status});
    let create = ["--kubeconfig", &kubeconfig, "create", "--validate=false", "-f", "-"];
    run_with_input(&mut lab.kubectl_command(&create), &object.to_string())?;
    let token = wait::until(&format!("a token bound to {}", node.name), CONVERGED, || {
        let bound = ["--bound-object-kind=Node", "--bound-object-name", &node.name, "--duration=24h"];
        let create = [&["create", "token", "warren-agent", "-n", NAMESPACE], &bound[..]].concat();
        lab.kubectl(&create).map_err(|error| format!("{error:#}"))
    })?;
    let store = format!("umask 077; cat >{DISK}/{KUBECONFIG}; sync");
    exec_with_input(lab, node, SHELL, &["-c", &store], &credentials(lab, token.trim())?).map(drop)
}

/// A kubeconfig with a token of the agents' service account.
fn credentials(lab: &Lab, token: &str) -> Result<String> {
    let path = lab.state().pki().join("ca.crt");
    let authority = std::fs::read(&path).with_context(|| format!("reading {}", path.display()))?;
    let authority = base64::engine::general_purpose::STANDARD.encode(authority);
    let server = format!("https://{}:{API_PORT}", lab.scenario().api_address());
    let config = json!({
        "apiVersion": "v1", "kind": "Config", "current-context": "lab",
        "clusters": [{"name": "lab", "cluster": {"server": server, "certificate-authority-data": authority}}],
        "users": [{"name": "agent", "user": {"token": token}}],
        "contexts": [{"name": "lab", "context": {"cluster": "lab", "user": "agent"}}],
    });
    Ok(config.to_string())
}

/// Starts the agent of the guest: that of this build, or another program in its place.
pub fn start_agent(lab: &Lab, node: &Node, program: Option<&str>) -> Result<()> {
    let built = binary("warren-agent").display().to_string();
    let program = program.unwrap_or(&built);
    let flags = format!("--kubeconfig {DISK}/{KUBECONFIG} --node-name {} --state-dir {DISK}/{STATE}", node.name);
    let script = format!("setsid {program} {flags} --cni-mode none </dev/null >>{LOG} 2>&1 &");
    exec(lab, node, SHELL, &["-c", &script]).map(drop)
}

/// Ends the agent with this signal and waits until it is gone.
pub fn end_agent(lab: &Lab, node: &Node, signal: &str) -> Result<()> {
    exec(lab, node, "pkill", &[signal, "warren-agent"])?;
    wait::until(&format!("the agent of {} to end", node.name), ENDS, || {
        match exec(lab, node, "pgrep", &["warren-agent"]) {
            Ok(pid) => Err(format!("process {}", pid.trim())),
            Err(_) => Ok(()),
        }
    })
}

/// What a node's agent says of itself (`status`) or of its peers (`paths`), whatever kind of node it is.
pub fn report(lab: &Lab, node: &str, kind: &str) -> Result<Value> {
    let text = lab.exec(node, &binary("warren-agent").display().to_string(), &[kind, "--json"])?;
    serde_json::from_str(&text).with_context(|| format!("reading the {kind} of {node}"))
}

/// Waits until the agent has programmed the node as the operator published it.
pub fn wait_ready(lab: &Lab, node: &str) -> Result<Value> {
    wait::until(&format!("the agent of {node} to be ready"), CONVERGED, || {
        let status = report(lab, node, "status").map_err(|error| format!("{error:#}"))?;
        match condition(&status, "Ready") {
            Some(ready) if ready["status"] == "True" => Ok(status),
            other => Err(format!("{other:?}")),
        }
    })
}

/// Waits until this node reaches that one directly; returns what it says of the peer.
pub fn wait_direct(lab: &Lab, node: &str, peer: &str) -> Result<Value> {
    wait::until(&format!("a direct path from {node} to {peer}"), CONVERGED, || {
        let paths = report(lab, node, "paths").map_err(|error| format!("{error:#}"))?;
        let peers = paths["peers"].as_array().map(Vec::as_slice).unwrap_or_default();
        match peers.iter().find(|one| one["name"] == peer) {
            Some(found) if found["state"] == "direct" => Ok(found.clone()),
            Some(found) => Err(found.to_string()),
            None => Err(format!("no such peer in {paths}")),
        }
    })
}

/// A condition as the agent has it now, whatever Kubernetes was told.
#[must_use]
pub fn condition<'a>(status: &'a Value, kind: &str) -> Option<&'a Value> {
    status["conditions"].as_array()?.iter().find(|one| one["type"] == kind)
}
