//! The release is upgraded and rolled back under traffic, agents of two revisions work together, and what an uninstall and a
//! cleanup leave on the nodes is what was there before. Losses are printed, never asserted: the agents' own WireGuard moves no
//! packet while one is replaced.

use std::collections::{BTreeMap, BTreeSet};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use e2e::images::{Set, TAG};
use e2e::lab::Lab;
use e2e::outage::{SOON, on, reach};
use e2e::scenario::Scenario;
use e2e::traffic::{Seen, throughout};
use e2e::{checks, harness, removal, wait, warren, workload};

/// The same programs under another tag: every pod of the release is replaced.
const NEXT: &str = "next";
/// The release's first revision.
const FIRST: u32 = 1;
/// The node whose agent stays behind.
const BEHIND: &str = "plain";
/// Where the networks before the installation are kept, for the check at the end.
const BEFORE: &str = "before-the-installation.json";
/// kube-proxy takes half a minute to drop the chains of a Service that is gone.
const SETTLED: Duration = Duration::from_secs(120);

fn main() -> ExitCode {
    harness::main(
        Scenario::demo("t-life"),
        Set::All,
        &[
            ("the_nodes_as_they_are_before", the_nodes_before),
            ("helm_install_returns_and_every_node_is_ready", checks::install),
            ("every_pod_reaches_every_pod", checks::pod_to_pod),
            ("an_upgrade_under_traffic_keeps_the_flow", an_upgrade_under_traffic),
            ("a_rollback_under_traffic_keeps_the_flow", a_rollback_under_traffic),
            ("agents_of_two_revisions_work_together", two_revisions),
            ("an_uninstall_and_a_cleanup_leave_the_nodes_as_they_were", an_uninstall_leaves_nothing),
        ],
    )
}

fn the_nodes_before(lab: &Lab) -> Result<()> {
    for node in lab.running() {
        wait::until(&format!("kube-proxy's rules on {}", node.name), SOON, || {
            let rules =
                lab.exec(&node.name, "nft", &["-s", "list", "ruleset"]).map_err(|error| format!("{error:#}"))?;
            if rules.contains("kube-proxy") && rules.contains("10.96.0.1") { Ok(()) } else { Err(rules) }
        })?;
        // Another installation needs a name of its own for what is the same program.
        for image in ["agent", "operator", "relay"] {
            let (from, to) = (format!("warren.dev/{image}:{TAG}"), format!("warren.dev/{image}:{NEXT}"));
            lab.exec(&node.name, "ctr", &["-n", "k8s.io", "images", "tag", "--force", &from, &to])?;
        }
    }
    removal::keep(lab, BEFORE, &removal::take_all(lab)?)
}

fn an_upgrade_under_traffic(lab: &Lab) -> Result<()> {
    changed_under_traffic(lab, "upgrade", NEXT, || {
        warren::upgrade(lab, &["--set-string", &format!("image.tag={NEXT}")])
    })
}

fn a_rollback_under_traffic(lab: &Lab) -> Result<()> {
    changed_under_traffic(lab, "rollback", TAG, || warren::rollback(lab, FIRST))
}

/// The flow lives through the change, every pair pings again after it, and every pod of the release is another than before.
fn changed_under_traffic(lab: &Lab, what: &str, tag: &str, change: impl FnOnce() -> Result<String>) -> Result<()> {
    let (pods, before) = (workload::pods(lab)?, running(lab)?);
    let (seconds, seen) = throughout(lab, &pods, (on(&pods, "home-a")?, on(&pods, "fw")?), || {
        let begin = Instant::now();
        change()?;
        warren::wait_rolled_out(lab)?;
        warren::wait_ready(lab)?;
        Ok(begin.elapsed().as_secs_f32())
    })?;
    eprintln!("           {what} in {seconds:.0} s: {seen}");
    print_rows(&seen);
    let after = running(lab)?;
    let kept: Vec<_> = before.keys().filter(|pod| after.contains_key(*pod)).collect();
    ensure!(kept.is_empty(), "pods of the release were not replaced: {kept:?}");
    ensure!(after.values().all(|image| image.ends_with(&format!(":{tag}"))), "not all run {tag}: {after:?}");
    for (from, to, pings) in seen.pairs() {
        ensure!(pings.received > 0, "{from} never had an answer of {to}");
    }
    reach(lab, &format!("after the {what}"))
}

fn print_rows(seen: &Seen) {
    let mut lost: BTreeMap<&str, (u64, u64)> = BTreeMap::new();
    for (from, to, pings) in seen.pairs() {
        for node in [from, to] {
            let sums = lost.entry(node).or_default();
            *sums = (sums.0 + pings.sent, sums.1 + pings.sent - pings.received);
        }
    }
    for (node, (sent, lost)) in lost {
        eprintln!("           from and to {node}: {lost} of {sent} lost");
    }
}

/// As in an upgrade that stands still half way: all agents but one are new.
fn two_revisions(lab: &Lab) -> Result<()> {
    let held = ["agent.updateStrategy.type=OnDelete", "agent.updateStrategy.rollingUpdate=null"];
    let tag = format!("image.tag={NEXT}");
    warren::upgrade(lab, &["--set", held[0], "--set", held[1], "--set-string", &tag])?;
    warren::delete_pods(lab, "agent", &format!("spec.nodeName!={BEHIND}"))?;
    wait::until("new agents on all nodes but one", SOON, || {
        let images: BTreeSet<String> = running(lab)
            .map_err(|error| format!("{error:#}"))?
            .into_iter()
            .filter_map(|(pod, image)| pod.contains("agent").then_some(image))
            .collect();
        if images.len() == 2 { Ok(()) } else { Err(format!("{images:?}")) }
    })?;
    reach(lab, "with agents of two revisions")?;
    let agents: Vec<String> =
        running(lab)?.into_iter().filter(|(pod, _)| pod.starts_with("warren-agent")).map(|(_, image)| image).collect();
    let new = agents.iter().filter(|image| image.ends_with(NEXT)).count();
    ensure!((new, agents.len()) == (lab.running().len() - 1, lab.running().len()), "agents run {agents:?}");
    Ok(())
}

/// The release's running pods and the image of each.
fn running(lab: &Lab) -> Result<BTreeMap<String, String>> {
    let pods = lab.kubectl_json(&["get", "pods", "-n", warren::NAMESPACE, "-l", "app.kubernetes.io/name=warren"])?;
    let items = pods["items"].as_array().context("a list")?;
    let alive = items
        .iter()
        .filter(|pod| pod["metadata"]["deletionTimestamp"].is_null() && pod["status"]["phase"] == "Running");
    let text = |value: &serde_json::Value| value.as_str().map(String::from).context("a text");
    alive.map(|pod| Ok((text(&pod["metadata"]["name"])?, text(&pod["spec"]["containers"][0]["image"])?))).collect()
}

fn an_uninstall_leaves_nothing(lab: &Lab) -> Result<()> {
    // Their interfaces and addresses are theirs, and the cleanup ends their network.
    lab.kubectl(&["delete", "namespace", workload::NAMESPACE, "--timeout=120s"])?;
    warren::uninstall(lab)?;
    let before = removal::kept(lab, BEFORE)?;
    let left = removal::take_all(lab)?;
    for node in lab.running() {
        let changes = before[&node.name].changes(&left[&node.name]).join("\n");
        // As documented: an uninstall by mistake is undone by an install. It also shows that the comparison sees something.
        for part in ["interface: ", "IPv4 routes: ", "IPv4 rules: ", "table inet warren", "file: /etc/cni/net.d/"] {
            ensure!(
                changes.contains(&format!("+ {part}")),
                "an uninstall alone took {part:?} from {}:\n{changes}",
                node.name
            );
        }
    }
    let would = removal::clean(lab, true)?;
    let unchanged = removal::changes(&left, &removal::take_all(lab)?);
    ensure!(unchanged.is_empty(), "the dry run changed something:\n{unchanged}");
    let did = removal::clean(lab, false)?;
    let would: BTreeSet<String> = would.iter().map(|line| line.replace("would remove", "removed")).collect();
    let did: BTreeSet<String> = did.into_iter().collect();
    let differ: Vec<&String> = would.symmetric_difference(&did).collect();
    ensure!(differ.is_empty(), "either the dry run or the cleanup said: {differ:?}");
    wait::until("the nodes to be as they were", SETTLED, || {
        let changes = removal::changes(&before, &removal::take_all(lab).map_err(|error| format!("{error:#}"))?);
        if changes.is_empty() { Ok(()) } else { Err(changes) }
    })?;
    let lines = before.values().map(removal::Snapshot::len).sum::<usize>();
    eprintln!("           {lines} lines of {} nodes compared: no difference", before.len());
    Ok(())
}
