//! Starting small: one node, then a home joins; then the release is upgraded, taken away and installed again.

use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use e2e::images::Set;
use e2e::lab::Lab;
use e2e::scenario::Scenario;
use e2e::{checks, harness, wait, warren};
use serde_json::Value;

const SOON: Duration = Duration::from_secs(120);
/// CAP_NET_ADMIN and CAP_NET_RAW, by their numbers in capability.h.
const AGENT_CAPABILITIES: u64 = 1 << 12 | 1 << 13;

fn main() -> ExitCode {
    harness::main(
        Scenario::single("t-single"),
        Set::All,
        &[
            ("helm_install_returns_on_one_node", checks::install),
            ("a_home_joins_later", a_home_joins_later),
            ("every_pod_reaches_every_pod", checks::pod_to_pod),
            ("helm_test_passes", checks::helm_test),
            ("no_container_has_more_privileges_than_it_needs", no_container_has_more_privileges),
            ("an_upgrade_keeps_keys_and_addresses", an_upgrade_keeps_keys_and_addresses),
            ("a_wrong_value_is_refused_and_nothing_changes", a_wrong_value_is_refused),
            ("an_uninstalled_mesh_comes_back_as_it_was", an_uninstalled_mesh_comes_back),
        ],
    )
}

fn a_home_joins_later(lab: &Lab) -> Result<()> {
    lab.join(&[lab.node("home-a")?])?;
    warren::wait_ready(lab)
}

/// What the kernel says of the running processes, not what the chart asks for.
fn no_container_has_more_privileges(lab: &Lab) -> Result<()> {
    let mut seen = 0;
    // By their first argument: probes and the pods of `helm test` run the same programs with less.
    for (program, capabilities, user) in [
        ("/warren-agent run", AGENT_CAPABILITIES, "0"),
        ("/warren-operator --", 0, "65532"),
        ("/warren-relay --", 0, "65532"),
    ] {
        for node in lab.running() {
            // Only some nodes run an operator or a relay.
            let Ok(pids) = lab.exec(&node.name, "pgrep", &["-f", &format!("^{program}")]) else { continue };
            for pid in pids.split_whitespace() {
                let status = lab.exec(&node.name, "cat", &[&format!("/proc/{pid}/status")])?;
                let field = |name: &str| {
                    let line = status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
                    line.map(str::trim).with_context(|| format!("no {name} in {status}"))
                };
                for set in ["CapEff", "CapPrm", "CapBnd"] {
                    let has = u64::from_str_radix(field(set)?, 16).context("reading capabilities")?;
                    ensure!(has == capabilities, "{program} on {}: {set} is {has:x}", node.name);
                }
                ensure!(field("NoNewPrivs")? == "1", "{program} on {} may gain privileges", node.name);
                ensure!(field("Seccomp")? == "2", "{program} on {} has no seccomp filter", node.name);
                ensure!(field("Uid")?.split_whitespace().all(|uid| uid == user), "{program}: {}", field("Uid")?);
                let mounts = lab.exec(&node.name, "cat", &[&format!("/proc/{pid}/mounts")])?;
                let root = mounts.lines().find(|line| line.split(' ').nth(1) == Some("/")).context("a root")?;
                let options = root.split(' ').nth(3).unwrap_or_default();
                ensure!(options.split(',').any(|option| option == "ro"), "the root of {program} is writable: {root}");
                seen += 1;
            }
        }
    }
    ensure!(seen >= 5, "two agents, two operators and a relay were expected, {seen} processes were seen");
    Ok(())
}

/// What must outlive every change of the release: keys, addresses, ports, and the mesh's own ranges.
fn identity(lab: &Lab) -> Result<Vec<Value>> {
    let nodes = lab.kubectl_json(&["get", "meshnodes"])?;
    let items = nodes["items"].as_array().context("a list")?;
    let of = |node: &Value| {
        let spec = &node["spec"];
        serde_json::json!([
            node["metadata"]["name"],
            spec["meshIPs"],
            spec["listenPort"],
            spec["podCIDRs"],
            spec["admission"]["publicKey"]
        ])
    };
    let mesh = lab.kubectl_json(&["get", "mesh", "default"])?["spec"]["addresses"].clone();
    Ok(items.iter().map(of).chain([mesh]).collect())
}

fn an_upgrade_keeps_keys_and_addresses(lab: &Lab) -> Result<()> {
    let before = identity(lab)?;
    // Another log filter is another pod template: every agent is replaced.
    warren::upgrade(lab, &["--set", "agent.logFilter=debug"])?;
    warren::wait_ready(lab)?;
    checks::pod_to_pod(lab)?;
    let after = identity(lab)?;
    ensure!(before == after, "the upgrade changed {before:?} to {after:?}");
    Ok(())
}

fn a_wrong_value_is_refused(lab: &Lab) -> Result<()> {
    let before = identity(lab)?;
    let refused = warren::upgrade(lab, &["--set", "cni.mode=sometimes"]);
    let text = refused.err().map(|error| format!("{error:#}")).unwrap_or_default();
    ensure!(text.contains("cni.mode") || text.contains("/cni/mode"), "helm said {text:?}");
    ensure!(identity(lab)? == before, "a refused upgrade changed something");
    checks::pod_to_pod(lab)
}

fn an_uninstalled_mesh_comes_back(lab: &Lab) -> Result<()> {
    let before = identity(lab)?;
    warren::uninstall(lab)?;
    let left = lab.kubectl(&[
        "get",
        "pods,daemonsets,deployments",
        "-n",
        warren::NAMESPACE,
        "-l",
        "app.kubernetes.io/name=warren",
        "-o",
        "name",
    ])?;
    ensure!(left.trim().is_empty(), "left behind: {left}");
    // Definitions and objects stay, so that nothing is lost by mistake.
    ensure!(identity(lab)? == before, "the uninstall changed the objects");
    warren::install(lab)?;
    wait::until("the mesh to be as it was", SOON, || {
        let now = identity(lab).map_err(|error| format!("{error:#}"))?;
        if now == before { Ok(()) } else { Err(format!("{now:?}, before {before:?}")) }
    })?;
    warren::wait_ready(lab)?;
    checks::pod_to_pod(lab)?;
    checks::helm_test(lab)
}
