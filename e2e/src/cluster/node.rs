//! A node as seen from outside: boot, power cut, reboot, programs inside.

use std::fs::{self, OpenOptions};
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};

use crate::cluster::kubelet;
use crate::command::{command, run};
use crate::lab::Lab;
use crate::net::namespace::{Namespace, prefix};
use crate::net::topology;
use crate::process::Process;
use crate::scenario::Node;
use crate::state::write;
use crate::wait;

/// A node registers within 2 s of its boot on an idle machine.
const REGISTERED: Duration = Duration::from_secs(120);

/// Everything that process 1 of a node must know, as JSON in the node's folder.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Boot {
    /// Host name.
    pub hostname: String,
    /// The node's folder.
    pub dir: PathBuf,
    /// Its root in every cgroup hierarchy.
    pub cgroup: String,
    /// Images to import.
    pub images: PathBuf,
    /// The services in the order of their start: name, program, arguments.
    pub services: Vec<(String, PathBuf, Vec<String>)>,
}

/// Makes the node's network and disk and boots it.
pub fn create(lab: &Lab, node: &Node) -> Result<()> {
    topology::attach(lab.scenario(), node)?;
    install(lab, node)?;
    boot(lab, node)
}

/// Boots it from its disk.
pub fn boot(lab: &Lab, node: &Node) -> Result<()> {
    let dir = lab.state().node(&node.name);
    let path = dir.join("node.log");
    let log = OpenOptions::new()
        .create(true)
        .append(true)
        .open(&path)
        .with_context(|| format!("opening {}", path.display()))?;
    let net = format!("--net={}", topology::node(&lab.scenario().name, &node.name).path().display());
    // --kill-child: when this parent dies, so does process 1 and with it everything in the node.
    let unshare = "unshare --mount --uts --ipc --pid --fork --kill-child --propagation private --";
    let mut command = command("setsid", ["nsenter", &net, "--"]);
    command.args(unshare.split(' ')).arg(lab.exe()).args(["internal", "init"]).arg(dir.join("boot.json"));
    command.stdout(log.try_clone().context("sharing the log")?).stderr(log);
    let child = command.spawn().with_context(|| format!("starting node {}", node.name))?;
    let parent = Process::of(i32::try_from(child.id()).context("a process id")?)?;
    parent.record(lab.state(), &format!("{}-parent", node.name))?;
    parent.child()?.record(lab.state(), &node.name)
}

/// Cuts the power: every process, mount and pod of the node is gone, its disk stays.
pub fn power_cut(lab: &Lab, node: &Node) -> Result<()> {
    for name in [node.name.clone(), format!("{}-parent", node.name)] {
        if let Some(process) = Process::recorded(lab.state(), &name) {
            process.end()?;
        }
    }
    Ok(())
}

/// Cuts the power, makes the network namespace anew and boots: what a real reboot leaves is the disk.
pub fn reboot(lab: &Lab, node: &Node) -> Result<()> {
    power_cut(lab, node)?;
    topology::detach(lab.scenario(), node)?;
    topology::attach(lab.scenario(), node)?;
    boot(lab, node)
}

/// A program inside the node: its network, mounts, processes and host name.
pub fn inside(lab: &Lab, node: &Node, program: &str, args: &[&str]) -> Result<Command> {
    let init =
        Process::recorded(lab.state(), &node.name).with_context(|| format!("node {} is not running", node.name))?;
    let target = init.pid.to_string();
    let mut command =
        command("nsenter", ["--target", &target, "--mount", "--net", "--uts", "--ipc", "--pid", "--", program]);
    command.args(args);
    Ok(command)
}

/// Waits until the Node object exists.
pub fn wait_registered(lab: &Lab, node: &Node) -> Result<()> {
    wait::until(&format!("node {} to register", node.name), REGISTERED, || {
        if Process::recorded(lab.state(), &node.name).is_none() {
            return Err(format!("it is not running; see {}", lab.state().node(&node.name).join("node.log").display()));
        }
        lab.kubectl(&["get", "node", &node.name]).map_err(|error| format!("{error:#}"))
    })
    .map(drop)
}

/// The node's root in every cgroup hierarchy.
#[must_use]
pub fn cgroup(lab: &str, node: &str) -> String {
    format!("{}{node}", prefix(lab))
}

/// Lays the node's disk out: configuration, CNI plugins, empty directories.
fn install(lab: &Lab, node: &Node) -> Result<()> {
    let (scenario, state) = (lab.scenario(), lab.state());
    let (dir, pki) = (state.node(&node.name), state.pki());
    let (etc, plugins) = (dir.join("etc"), dir.join("disk/opt/cni/bin"));
    for dir in [&dir, &etc, &plugins] {
        fs::create_dir_all(dir).with_context(|| format!("making {}", dir.display()))?;
    }
    run(command("cp", ["-a", "-T"]).arg(lab.parts().cni()).arg(&plugins))?;
    let cgroup = cgroup(&scenario.name, &node.name);
    let (resolv, hosts) = (etc.join("resolv.conf"), etc.join("hosts"));
    // No resolver exists in the lab; a name that must be looked up is a mistake that shows.
    write(&resolv, "nameserver 127.0.0.1\n")?;
    write(&hosts, format!("127.0.0.1 localhost\n::1 localhost\n127.0.1.1 {}\n", node.name))?;
    let (containerd, config, proxy) =
        (etc.join("containerd.toml"), etc.join("kubelet.json"), etc.join("kube-proxy.json"));
    write(&containerd, kubelet::containerd())?;
    write(&config, kubelet::kubelet(scenario, node, &pki, &cgroup, &resolv).to_string())?;
    write(&proxy, kubelet::kube_proxy(scenario, node, &pki).to_string())?;
    let service = |name: &str, args: Vec<String>| (name.to_owned(), lab.parts().program(name), args);
    let boot = Boot {
        hostname: node.name.clone(),
        cgroup,
        images: lab.images()?,
        services: vec![
            ("containerd".into(), "containerd".into(), vec![format!("--config={}", containerd.display())]),
            service("kubelet", kubelet::kubelet_flags(scenario, node, &pki, &config)),
            service("kube-proxy", vec![format!("--config={}", proxy.display())]),
        ],
        dir: dir.clone(),
    };
    write(&dir.join("boot.json"), serde_json::to_string_pretty(&boot)?)
}

/// The node's network namespace.
#[must_use]
pub fn namespace(lab: &Lab, node: &Node) -> Namespace {
    topology::node(&lab.scenario().name, &node.name)
}
