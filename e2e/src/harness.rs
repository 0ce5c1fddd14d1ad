//! Runs the checks of one test binary against one lab: brought up first, taken down at the end, logs kept when one fails.
//!
//! The checks run in the order in which they are written, because many need what an earlier one made; each says so by its place.
//! A machine that cannot run a lab skips them and says why; with `REQUIRE_LAB=1` that is a failure.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, Result};

use crate::command::{command, run};
use crate::guest::member;
use crate::images::{self, Set};
use crate::lab::Lab;
use crate::progress::Progress;
use crate::scenario::Scenario;
use crate::{interrupt, parts};

/// A named check.
pub type Check = (&'static str, fn(&Lab) -> Result<()>);

/// Runs the checks whose names contain one of the words on the command line, or all.
#[must_use]
pub fn main(scenario: Scenario, set: Set, checks: &[Check]) -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    if args.iter().any(|arg| arg == "--list") {
        checks.iter().for_each(|(name, _)| println!("{name}: test"));
        return ExitCode::SUCCESS;
    }
    let words: Vec<&String> = args.iter().filter(|arg| !arg.starts_with('-')).collect();
    let chosen: Vec<Check> = checks
        .iter()
        .filter(|(name, _)| words.is_empty() || words.iter().any(|word| name.contains(*word)))
        .copied()
        .collect();
    if chosen.is_empty() {
        return ExitCode::SUCCESS;
    }
    if let Err(reason) = parts::check_machine().and_then(|()| images::archive(set).map(drop)) {
        eprintln!("skipped, {} checks: {reason:#}", chosen.len());
        return if required() { ExitCode::FAILURE } else { ExitCode::SUCCESS };
    }
    match run_all(scenario, set, &chosen) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error:#}");
            ExitCode::FAILURE
        }
    }
}

fn required() -> bool {
    std::env::var_os("REQUIRE_LAB").is_some_and(|value| value == "1")
}

fn run_all(scenario: Scenario, set: Set, checks: &[Check]) -> Result<()> {
    let name = scenario.name.clone();
    let exe = images::binary("warren-lab");
    interrupt::take_down_on_interrupt(&name, &exe)?;
    let progress = Progress::new();
    if std::env::var_os("WARREN_LAB_KEEP").is_some() {
        progress.say(&format!("the lab stays up: warren-lab down --name {name}"));
        return Lab::up(scenario, &exe, set, &progress).and_then(|lab| run_checks(&lab, checks, &progress));
    }
    Lab::with(scenario, set, &progress, |lab| run_checks(lab, checks, &progress))
}

/// Every lab run ends with the verdict of the plaintext watch.
fn run_checks(lab: &Lab, checks: &[Check], progress: &Progress) -> Result<()> {
    let run =
        |(name, check): &Check| progress.step(name, || check(lab)).with_context(|| format!("check {name} failed"));
    let result = checks
        .iter()
        .try_for_each(run)
        .and_then(|()| progress.step("nothing in clear on the internet", || lab.sniffer().verdict().map(drop)));
    match &result {
        Ok(()) => println!("{} passed, 0 failed", checks.len()),
        Err(_) => keep_logs(lab, progress),
    }
    result
}

fn keep_logs(lab: &Lab, progress: &Progress) {
    let target = logs_dir(&lab.scenario().name);
    match collect(lab, &target) {
        Ok(()) => progress.say(&format!("logs are in {}", target.display())),
        Err(error) => progress.say(&format!("logs could not be kept: {error:#}")),
    }
}

fn logs_dir(name: &str) -> PathBuf {
    images::workspace().join("target/lab-logs").join(name)
}

/// Copies what explains a failure: logs of processes, nodes and pods, the objects, the networks of the nodes.
fn collect(lab: &Lab, target: &Path) -> Result<()> {
    let state = lab.state();
    let _ = fs::remove_dir_all(target);
    fs::create_dir_all(target).with_context(|| format!("making {}", target.display()))?;
    run(command("cp", ["-a"]).arg(state.logs()).arg(target))?;
    let save = |file: &str, result: Result<String>| {
        let text = result.unwrap_or_else(|error| format!("{error:#}"));
        let _ = fs::write(target.join(file), text);
    };
    save(
        "objects.txt",
        lab.kubectl(&["get", "nodes,pods,events,meshes,meshnodes,meshpeerslices,meshrelays", "-A", "-o", "wide"]),
    );
    save("warren.yaml", lab.kubectl(&["get", "meshes,meshnodes,meshpeerslices,meshrelays", "-A", "-o", "yaml"]));
    for node in lab.scenario().nodes.clone() {
        let dir = state.node(&node.name);
        let to = target.join(&node.name);
        fs::create_dir_all(&to).with_context(|| format!("making {}", to.display()))?;
        for log in
            ["node.log", "containerd.log", "kubelet.log", "kube-proxy.log", "warren-agent.log", "console", "output"]
        {
            let _ = fs::copy(dir.join(log), to.join(log));
        }
        if lab.scenario().is_guest(&node.name) {
            save(&format!("{}/agent.log", node.name), lab.exec(&node.name, "cat", &[member::LOG]));
        }
        // Without permissions and links: what is kept is text.
        let _ = run(command("cp", ["-r", "--no-preserve=all"]).arg(dir.join("disk/var/log/pods")).arg(&to));
        let network = "ip address; ip rule; ip route show table all; ip -6 route show table all; nft list ruleset";
        save(&format!("{}/network.txt", node.name), lab.exec(&node.name, "sh", &["-c", network]));
    }
    Ok(())
}
