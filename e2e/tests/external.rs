//! A machine without kubelet joins the mesh by the agent's systemd unit and the manifests of `docs/external.md`. systemd itself does not run
//! here: the test does what the unit says, and the machine's process 1 starts the agent again when it ends.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use e2e::cluster::control_plane::{self, Component};
use e2e::cluster::node::{self, Boot};
use e2e::guest::member;
use e2e::images::{self, Set, workspace};
use e2e::lab::Lab;
use e2e::net::topology;
use e2e::outage::SOON;
use e2e::scenario::Scenario;
use e2e::state::write;
use e2e::workload::{self, Pod, check_on_host};
use e2e::{checks, harness, wait, warren};

const MACHINE: &str = "home-a";
/// Where the unit expects the program.
const PROGRAM: &str = "/usr/local/bin/warren-agent";
/// The unit's folder on the machine.
const ETC: &str = "/etc/warren";

fn main() -> ExitCode {
    harness::main(
        Scenario::single("t-external"),
        Set::All,
        &[
            ("helm_install_returns_on_one_node", checks::install),
            ("a_machine_joins_by_its_unit", a_machine_joins),
            ("it_is_programmed_from_disk_before_it_counts_as_started", it_starts_from_disk),
        ],
    )
}

fn a_machine_joins(lab: &Lab) -> Result<()> {
    // Before the machine is there: it will never run a pod.
    let pods = workload::deploy(lab)?;
    lab.apply(&of_the_document("kind: Node")?.replace("MACHINE", MACHINE))?;
    let bound = ["--bound-object-kind=Node", "--bound-object-name", MACHINE, "--duration=8760h"];
    let token = lab.kubectl(&[&["create", "token", "warren-agent", "-n", warren::NAMESPACE], &bound[..]].concat())?;
    furnish(lab, token.trim())?;
    let begin = Instant::now();
    node::boot(lab, lab.node(MACHINE)?)?;
    started(lab)?;
    eprintln!("           programmed {:.1} s after its first start", begin.elapsed().as_secs_f32());
    reaches(lab, &pods)?;
    is_reached(lab)?;
    let files = lab.exec(MACHINE, "find", &["/etc/cni", "!", "-type", "d"])?;
    ensure!(files.is_empty(), "the machine has no pods, and yet it has {files}");
    let routes = lab.exec(MACHINE, "ip", &["route", "show", "table", "all"])?;
    let own = lab.kubectl_json(&["get", "node", MACHINE])?["spec"]["podCIDR"].clone();
    let own = own.as_str().context("the controller manager gives every Node a pod range")?;
    ensure!(!routes.contains(own), "the machine took its unused pod range for its own:\n{routes}");
    Ok(())
}

fn it_starts_from_disk(lab: &Lab) -> Result<()> {
    let pods: Vec<Pod> = serving(lab)?;
    control_plane::freeze(lab, Component::ApiServer)?;
    let alone = || -> Result<f32> {
        node::power_cut(lab, lab.node(MACHINE)?)?;
        topology::detach(lab.scenario(), lab.node(MACHINE)?)?;
        topology::attach(lab.scenario(), lab.node(MACHINE)?)?;
        let begin = Instant::now();
        node::boot(lab, lab.node(MACHINE)?)?;
        started(lab)?;
        let took = begin.elapsed().as_secs_f32();
        // What is ordered after the unit dials at once: the watch tells whether anything left in clear.
        let url = format!("http://{}/", pods.first().context("no pod")?.socket());
        let _ = check_on_host(lab, MACHINE, &["--timeout", "1", "get", &url]);
        reaches(lab, &pods)?;
        Ok(took)
    };
    let result = alone();
    control_plane::thaw(lab, Component::ApiServer)?;
    control_plane::wait_ready(lab)?;
    eprintln!("           with nobody to ask: programmed {:.1} s after power came back", result?);
    is_reached(lab)
}

/// Lays out the machine's disk: credentials, and a process 1 that keeps the unit's program running.
fn furnish(lab: &Lab, token: &str) -> Result<()> {
    let spec = lab.node(MACHINE)?;
    topology::attach(lab.scenario(), spec)?;
    let dir = lab.state().node(MACHINE);
    let etc = dir.join("upper").join(ETC.trim_start_matches('/'));
    fs::create_dir_all(&etc).with_context(|| format!("making {}", etc.display()))?;
    fs::create_dir_all(dir.join("etc")).context("making the machine's folder")?;
    for name in ["hosts", "resolv.conf"] {
        write(&dir.join("etc").join(name), "")?;
    }
    let server = format!("https://{}", lab.scenario().api_address());
    write(&etc.join("kubeconfig"), of_the_document("kind: Config")?.replace("https://API_SERVER", &server))?;
    write(&etc.join("token"), token)?;
    fs::set_permissions(etc.join("token"), fs::Permissions::from_mode(0o600)).context("hiding the token")?;
    fs::copy(lab.state().pki().join("ca.crt"), etc.join("ca.crt")).context("copying the authority")?;
    let mut args = vec![format!("NODE_NAME={MACHINE}"), images::binary("warren-agent").display().to_string()];
    let line = of_the_unit("ExecStart")?;
    let words = line.strip_prefix(PROGRAM).with_context(|| format!("ExecStart is {line:?}"))?;
    args.extend(words.split_whitespace().map(String::from));
    let boot = Boot {
        hostname: MACHINE.into(),
        cgroup: node::cgroup(&lab.scenario().name, MACHINE),
        images: lab.images()?,
        services: vec![("warren-agent".into(), "env".into(), args)],
        dir: dir.clone(),
    };
    write(&dir.join("boot.json"), serde_json::to_string_pretty(&boot)?)
}

/// What the unit runs before it counts as started.
fn started(lab: &Lab) -> Result<()> {
    let line = of_the_unit("ExecStartPost")?;
    let line = line.trim_start_matches('-').replace(PROGRAM, &images::binary("warren-agent").display().to_string());
    // Process 1 has mounted nothing yet when it has just been started.
    wait::until("the machine's own file systems", SOON, || {
        let ready = lab.exec(MACHINE, "test", &["-d", "/run/warren"]);
        ready.map_err(|error| format!("{error:#}"))
    })?;
    lab.exec(MACHINE, "sh", &["-c", &line]).map(drop).context("the unit did not start in its time")
}

fn serving(lab: &Lab) -> Result<Vec<Pod>> {
    workload::pods_on(lab, &[lab.scenario().control_plane()])
}

fn reaches(lab: &Lab, pods: &[Pod]) -> Result<()> {
    for url in pods.iter().flat_map(Pod::urls) {
        let said = wait::until(&format!("the machine to reach {url}"), SOON, || {
            check_on_host(lab, MACHINE, &["--timeout", "3", "get", &url]).map_err(|error| format!("{error:#}"))
        })?;
        ensure!(said.contains("pod=lab-pod"), "{url} answered {said:?}");
    }
    Ok(())
}

/// By its mesh address, from the cluster's node and from a pod.
fn is_reached(lab: &Lab) -> Result<()> {
    member::wait_ready(lab, MACHINE)?;
    warren::wait_condition_of(lab, "meshnode", MACHINE, "Ready")?;
    let object = lab.kubectl_json(&["get", "meshnode", MACHINE])?;
    let address = object["spec"]["meshIPs"][0].as_str().context("a mesh address")?;
    let ping = ["--timeout", "3", "icmp", address, "1000"];
    for pod in serving(lab)? {
        wait::until(&format!("{} to reach the machine", pod.node), Duration::from_secs(60), || {
            check_on_host(lab, &pod.node, &ping).map_err(|error| format!("{error:#}"))?;
            pod.check(lab, &ping).map_err(|error| format!("{error:#}"))
        })?;
    }
    Ok(())
}

/// The value of a setting of the unit.
fn of_the_unit(setting: &str) -> Result<String> {
    let path = workspace().join("packaging/systemd/warren-agent.service");
    let text = fs::read_to_string(&path).with_context(|| format!("reading {}", path.display()))?;
    let value = text.lines().find_map(|line| line.strip_prefix(setting)?.strip_prefix('='));
    value.map(String::from).with_context(|| format!("the unit has no {setting}"))
}

/// The manifest in `docs/external.md` that contains these words.
fn of_the_document(words: &str) -> Result<String> {
    let path = workspace().join("docs/external.md");
    let text = fs::read_to_string(&path).with_context(|| format!("reading {}", path.display()))?;
    let blocks = text.split("```yaml\n").skip(1).filter_map(|rest| rest.split("```").next());
    let block = blocks.into_iter().find(|block| block.contains(words));
    block.map(String::from).with_context(|| format!("docs/external.md has no manifest with {words:?}"))
}
