//! What a cluster does to a mesh: a database that restarts, definitions that are deleted, a node that comes back while nobody is there to
//! tell it anything, a machine that is a copy of another. Times and losses are printed, never asserted.

use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use e2e::cluster::control_plane::{self, Component};
use e2e::cluster::node;
use e2e::images::{self, Set};
use e2e::lab::Lab;
use e2e::net::topology;
use e2e::outage::{SOON, during, on, reach, signal_operators};
use e2e::process::Process;
use e2e::scenario::{API_PORT, Scenario};
use e2e::secrets::key_file;
use e2e::state::write;
use e2e::workload::{self, Pod, check_on_host};
use e2e::{checks, harness, wait, warren};
use serde_json::{Value, json};

/// How long something is gone, unless FAULT_SECONDS says otherwise.
const GONE: u64 = 10;

fn main() -> ExitCode {
    harness::main(
        Scenario::direct("t-faults"),
        Set::All,
        &[
            ("helm_install_returns_and_every_node_is_ready", checks::install),
            ("every_pod_reaches_every_pod", checks::pod_to_pod),
            ("no_packet_is_lost_while_etcd_is_killed_and_started_again", etcd_is_killed),
            ("a_copy_of_a_node_is_refused_and_the_original_loses_nothing", a_node_is_copied),
            ("a_node_reboots_with_another_address", a_node_reboots_with_another_address),
            ("a_node_reboots_while_api_and_operators_are_gone", a_node_reboots_alone),
            ("deleted_definitions_cost_no_packet_and_helm_puts_them_back", definitions_are_deleted),
        ],
    )
}

/// Every watch ends, and what the API server says meanwhile are errors.
fn etcd_is_killed(lab: &Lab) -> Result<()> {
    let seconds = gone()?;
    let pods = workload::pods(lab)?;
    let result = during(lab, on(&pods, "home-b")?, on(&pods, "fw")?, seconds + 5, || {
        let etcd = Process::recorded(lab.state(), Component::Etcd.name()).context("etcd does not run")?;
        etcd.end()?;
        std::thread::sleep(Duration::from_secs(seconds));
        control_plane::start_component(lab, Component::Etcd)?;
        control_plane::wait_ready(lab)
    })?;
    eprintln!("           etcd gone for {seconds} s: {result}");
    ensure!(result["sent"] == result["received"], "packets were lost: {result}");
    reach(lab, "after etcd came back")
}

/// As a machine made from another one's disk: it shows the key of the original, and holds its private half.
fn a_node_is_copied(lab: &Lab) -> Result<()> {
    let (copy, own) = (key_file(lab, "home-b"), std::fs::read(key_file(lab, "home-b")).context("reading a key")?);
    let original = std::fs::read(key_file(lab, "home-a")).context("reading a key")?;
    let pods = workload::pods(lab)?;
    let result = during(lab, on(&pods, "pub")?, on(&pods, "home-a")?, 20, || {
        write(&copy, &original)?;
        kill_agent(lab, "home-b")?;
        wait::until("the copy to be refused", SOON, || {
            let object = lab.kubectl_json(&["get", "meshnode", "home-b"]).map_err(|error| format!("{error:#}"))?;
            let said = &object["spec"]["admission"];
            if said["reason"] == "DuplicateKey" || condition(&object, "Admitted") == Some("DuplicateKey") {
                Ok(())
            } else {
                Err(object["status"].to_string())
            }
        })
    })?;
    eprintln!("           a copy of home-a on home-b: {result} from pub to home-a");
    write(&copy, &own)?;
    kill_agent(lab, "home-b")?;
    ensure!(result["sent"] == result["received"], "the original lost packets to its copy: {result}");
    reach(lab, "with its own key again")
}

fn a_node_reboots_with_another_address(lab: &Lab) -> Result<()> {
    let spec = lab.node("home-a")?;
    node::power_cut(lab, spec)?;
    topology::change_home(lab.scenario(), "home-a", "198.51.100.12/28".parse().context("an address")?, 8_000)?;
    topology::detach(lab.scenario(), spec)?;
    topology::attach(lab.scenario(), spec)?;
    node::boot(lab, spec)?;
    reach(lab, "after a reboot with another address")
}

/// Kubelet starts nothing before the API server has told it what, so an agent that is to come back alone is one that systemd starts. Here
/// the test does what its unit would.
fn a_node_reboots_alone(lab: &Lab) -> Result<()> {
    let spec = lab.node("home-b")?;
    let kubeconfig = kubeconfig(lab, "home-b")?;
    let pods: Vec<Pod> = workload::pods(lab)?.into_iter().filter(|pod| pod.node != "home-b").collect();
    control_plane::freeze(lab, Component::ApiServer)?;
    let _ = signal_operators(lab, "-STOP");
    let alone = || -> Result<Duration> {
        node::reboot(lab, spec)?;
        // Its disks are mounted by then.
        wait::until("containerd of home-b", SOON, || {
            lab.exec("home-b", "ctr", &["version"]).map_err(|error| format!("{error:#}"))
        })?;
        let begin = Instant::now();
        start_agent(lab, spec, &kubeconfig)?;
        // Until then a program of the node that dials a pod would do so by the node's default route, in clear.
        // It is not ready, since what it remembers of pod ranges starts no pod.
        wait::until("the node to be programmed from disk", SOON, || {
            let said = status(lab, "home-b").map_err(|error| format!("{error:#}"))?;
            let is_programmed = |one: &Value| one["type"] == "RoutesProgrammed" && one["status"] == "True";
            let conditions = said["conditions"].as_array();
            if conditions.is_some_and(|all| all.iter().any(is_programmed)) { Ok(()) } else { Err(said.to_string()) }
        })?;
        for url in pods.iter().flat_map(Pod::urls) {
            wait::until(&format!("home-b to reach {url}"), SOON, || {
                let get = ["--timeout", "3", "get", &format!("{url}/")];
                check_on_host(lab, "home-b", &get).map_err(|error| format!("{error:#}"))
            })?;
        }
        Ok(begin.elapsed())
    };
    let result = alone();
    // Kubelet's own agent waits for the lock of this one.
    let stopped = kill_agent(lab, "home-b");
    control_plane::thaw(lab, Component::ApiServer)?;
    let _ = signal_operators(lab, "-CONT");
    control_plane::wait_ready(lab)?;
    let took = result?;
    eprintln!(
        "           from disk, with nobody to ask: every node reached {:.1} s after the agent's start",
        took.as_secs_f32()
    );
    stopped?;
    reach(lab, "after everybody came back")
}

fn definitions_are_deleted(lab: &Lab) -> Result<()> {
    let kinds = ["meshes", "meshnodes", "meshpeerslices", "meshrelays"].map(|kind| format!("{kind}.warren.dev"));
    let pods = workload::pods(lab)?;
    let result = during(lab, on(&pods, "home-b")?, on(&pods, "fw")?, gone()? + 10, || {
        let mut delete = vec!["delete", "crd", "--timeout=120s"];
        delete.extend(kinds.iter().map(String::as_str));
        lab.kubectl(&delete)?;
        for node in lab.running() {
            wait::until(&format!("the guard on {}", node.name), SOON, || {
                let said = status(lab, &node.name).map_err(|error| format!("{error:#}"))?;
                let held = said["conditions"].to_string().contains("MassRemovalGuard");
                if held { Ok(()) } else { Err(said["conditions"].to_string()) }
            })?;
        }
        Ok(())
    })?;
    eprintln!("           definitions deleted: {result}");
    ensure!(result["sent"] == result["received"], "packets were lost: {result}");
    // What else a helm upgrade changes is nothing: the values are the same.
    warren::upgrade(lab, &[])?;
    reach(lab, "after the definitions came back")
}

fn gone() -> Result<u64> {
    match std::env::var("FAULT_SECONDS") {
        Ok(text) => text.parse().with_context(|| format!("FAULT_SECONDS={text:?} is no number of seconds")),
        Err(_) => Ok(GONE),
    }
}

/// Credentials as a machine's own agent has them: a token bound to its node.
fn kubeconfig(lab: &Lab, node: &str) -> Result<String> {
    let bound = format!("--bound-object-name={node}");
    let create = ["create", "token", "warren-agent", "-n", warren::NAMESPACE, "--bound-object-kind=Node", &bound];
    let token = lab.kubectl(&create)?;
    let server = format!("https://{}:{API_PORT}", lab.scenario().api_address());
    let ca = lab.state().pki().join("ca.crt");
    let config = json!({
        "apiVersion": "v1", "kind": "Config", "current-context": "own",
        "clusters": [{"name": "own", "cluster": {"server": server, "certificate-authority": ca}}],
        "users": [{"name": "own", "user": {"token": token.trim()}}],
        "contexts": [{"name": "own", "context": {"cluster": "own", "user": "own"}}],
    });
    let path = lab.state().dir().join(format!("agent-{node}.kubeconfig"));
    write(&path, config.to_string())?;
    Ok(path.to_string_lossy().into_owned())
}

/// The agent with the settings of the chart, as a service of the machine.
fn start_agent(lab: &Lab, spec: &e2e::scenario::Node, kubeconfig: &str) -> Result<()> {
    lab.exec(&spec.name, "mkdir", &["-p", "/run/warren"])?;
    let program = images::binary("warren-agent").to_string_lossy().into_owned();
    let args = [
        "--kubeconfig",
        kubeconfig,
        "--node-name",
        &spec.name,
        "--cni-mode=managed",
        "--cni-run-dir=/run/warren",
        "--metrics-listen=off",
    ];
    let mut agent = node::inside(lab, spec, &program, &args)?;
    Process::start(lab.state(), &format!("{}-agent", spec.name), &mut agent).map(drop)
}

fn status(lab: &Lab, node: &str) -> Result<Value> {
    let program = images::binary("warren-agent").to_string_lossy().into_owned();
    let text = lab.exec(node, &program, &["status", "--json"])?;
    serde_json::from_str(&text).with_context(|| format!("reading {text:?}"))
}

fn kill_agent(lab: &Lab, node: &str) -> Result<()> {
    lab.exec(node, "pkill", &["-9", "-x", "warren-agent"]).map(drop)
}

/// The reason of a condition.
fn condition<'a>(object: &'a Value, kind: &str) -> Option<&'a str> {
    let all = object["status"]["conditions"].as_array()?;
    all.iter().find(|one| one["type"] == kind)?["reason"].as_str()
}
