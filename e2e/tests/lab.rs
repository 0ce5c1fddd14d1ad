//! The lab itself, without Warren: its routers are what they claim, its watch sees, its nodes survive what is done to them.

use std::process::{Child, Command, ExitCode, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use e2e::cluster::control_plane::{self, Component};
use e2e::cluster::node;
use e2e::images::{Set, binary};
use e2e::lab::{Lab, OUTSIDE_PORT};
use e2e::net::namespace::Namespace;
use e2e::process::Process;
use e2e::scenario::{OUTSIDE, PORT_SHIFT, Scenario};
use e2e::workload::check_on_host;
use e2e::{checks, harness, teardown, wait};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// One way; the round trip has it twice.
const DELAY_MS: u64 = 15;
/// A listen port of WireGuard.
const PORT: u16 = 21_820;
const SOON: Duration = Duration::from_secs(60);

fn main() -> ExitCode {
    harness::main(
        Scenario { delay_ms: DELAY_MS, ..Scenario::demo("t-lab") },
        Set::LabOnly,
        &[
            ("a_home_maps_every_destination_to_one_shifted_port", a_home_maps_to_one_shifted_port),
            ("a_hard_nat_draws_a_port_for_each_destination", hard_nats_draw_a_port),
            ("a_strangers_packet_takes_the_port_of_a_plain_linux_box", a_plain_box_can_be_poisoned),
            ("nothing_unasked_comes_into_a_site", nothing_unasked_comes_in),
            ("the_internet_delays", the_internet_delays),
            ("planted_leaks_are_found", checks::planted_leaks_are_found),
            ("a_frozen_api_server_thaws", a_frozen_api_server_thaws),
            ("a_service_that_is_killed_comes_back", a_killed_service_comes_back),
            ("a_reboot_makes_the_network_anew", a_reboot_makes_the_network_anew),
            ("a_killed_runner_leaves_nothing_after_down", a_killed_runner_leaves_nothing),
            ("an_interrupted_runner_takes_its_lab_down", an_interrupted_runner_takes_its_lab_down),
        ],
    )
}

fn a_home_maps_to_one_shifted_port(lab: &Lab) -> Result<()> {
    let _second = serve(lab, "pub", 9000)?;
    let observers =
        [format!("{}:{}", OUTSIDE.addr(), OUTSIDE_PORT + 1), format!("{}:9001", lab.node("pub")?.outer_v4())];
    let seen = check_on_host(lab, "home-a", &["observed", "--from", &PORT.to_string(), &observers[0], &observers[1]])?;
    let expected = format!("{}:{}", lab.node("home-a")?.outer_v4(), PORT + PORT_SHIFT);
    ensure!(seen.trim() == format!("{expected}\n{expected}"), "home-a is seen as {seen:?}, expected {expected} twice");
    Ok(())
}

fn hard_nats_draw_a_port(lab: &Lab) -> Result<()> {
    let _second = serve(lab, "pub", 9000)?;
    let observers =
        [format!("{}:{}", OUTSIDE.addr(), OUTSIDE_PORT + 1), format!("{}:9001", lab.node("pub")?.outer_v4())];
    let seen = check_on_host(lab, "hard", &["observed", "--from", &PORT.to_string(), &observers[0], &observers[1]])?;
    let address = format!("{}:", lab.node("hard")?.outer_v4());
    let ports: Vec<&str> = seen.lines().filter_map(|line| line.trim().strip_prefix(&address)).collect();
    // Two of some 28,000 drawn ports are the same once in as many runs.
    ensure!(ports.len() == 2 && ports[0] != ports[1] && !ports.contains(&PORT.to_string().as_str()), "{seen:?}");
    Ok(())
}

/// A packet from a socket that was never sent to is enough: what goes to that socket afterwards leaves from another port.
fn a_plain_box_can_be_poisoned(lab: &Lab) -> Result<()> {
    let mapped = format!("{}:{PORT}", lab.node("plain")?.outer_v4());
    // Nobody answers: the packet is all that matters.
    let _ = check_on_host(lab, "pub", &["--timeout", "1", "observed", "--from", "9001", &mapped]);
    let _second = serve(lab, "pub", 9000)?;
    let observers =
        [format!("{}:{}", OUTSIDE.addr(), OUTSIDE_PORT + 1), format!("{}:9001", lab.node("pub")?.outer_v4())];
    let seen = check_on_host(lab, "plain", &["observed", "--from", &PORT.to_string(), &observers[0], &observers[1]])?;
    let ports: Vec<&str> = seen.lines().map(str::trim).collect();
    ensure!(
        ports.len() == 2 && ports[0] == mapped && ports[1] != mapped,
        "{seen:?}, expected {mapped} first and alone"
    );
    Ok(())
}

fn nothing_unasked_comes_in(lab: &Lab) -> Result<()> {
    let out = e2e::net::topology::outside(&lab.scenario().name);
    let probe = binary("lab-pod").to_string_lossy().into_owned();
    let udp = |target: &str| e2e::command::run(&mut out.command(&probe, &["--timeout", "1", "udp", target, "10"]));
    for (name, target) in [
        ("home-a", format!("{}:{}", lab.node("home-a")?.outer_v4(), PORT + PORT_SHIFT)),
        ("fw", format!("10.50.0.10:{PORT}")),
    ] {
        let _server = serve(lab, name, PORT)?;
        ensure!(udp(&target).is_err(), "a packet from outside reached {name} at {target}");
    }
    let _server = serve(lab, "pub", PORT)?;
    udp(&format!("{}:{PORT}", lab.node("pub")?.outer_v4())).context("the same packet to a public node").map(drop)
}

fn the_internet_delays(lab: &Lab) -> Result<()> {
    let target = format!("http://{}:{OUTSIDE_PORT}/", OUTSIDE.addr());
    let said = check_on_host(lab, "home-a", &["matrix", &format!("out={target}")])?;
    let answer: serde_json::Value = serde_json::from_str(&said).context("reading the check's answer")?;
    // Connecting is one round trip, the answer another.
    let least = (4 * DELAY_MS) as f64;
    ensure!(answer["out"]["ms"].as_f64().is_some_and(|ms| ms >= least), "expected at least {least} ms: {said}");
    Ok(())
}

fn a_frozen_api_server_thaws(lab: &Lab) -> Result<()> {
    control_plane::freeze(lab, Component::ApiServer)?;
    let answer = lab.kubectl(&["get", "nodes", "--request-timeout=2s"]);
    control_plane::thaw(lab, Component::ApiServer)?;
    ensure!(answer.is_err(), "a frozen API server answered");
    control_plane::wait_ready(lab)
}

fn a_killed_service_comes_back(lab: &Lab) -> Result<()> {
    let kubelet = || lab.exec("pub", "pgrep", &["-x", "kubelet"]).map_err(|error| format!("{error:#}"));
    let before = kubelet().map_err(anyhow::Error::msg)?;
    lab.exec("pub", "kill", &["-9", before.trim()])?;
    wait::until("another kubelet", SOON, || kubelet().and_then(|now| if now == before { Err(now) } else { Ok(()) }))
}

fn a_reboot_makes_the_network_anew(lab: &Lab) -> Result<()> {
    let spec = lab.node("home-a")?;
    // A node that has only just registered has no lease yet.
    let lease = ["get", "lease", "-n", "kube-node-lease", "home-a", "--ignore-not-found"];
    let renewed = || lab.kubectl(&[&lease[..], &["-o", "jsonpath={.spec.renewTime}"]].concat());
    let before = node::namespace(lab, spec).inode()?;
    lab.exec("home-a", "touch", &["/var/lib/warren/kept", "/run/gone"])?;
    node::reboot(lab, spec)?;
    let at_boot = renewed()?;
    ensure!(node::namespace(lab, spec).inode()? != before, "the network namespace is still the old one");
    wait::until("the rebooted kubelet to renew its lease", SOON, || {
        let now = renewed().map_err(|error| format!("{error:#}"))?;
        if now == at_boot { Err(now) } else { Ok(()) }
    })?;
    ensure!(lab.exec("home-a", "ls", &["/var/lib/warren"])?.contains("kept"), "the disk was lost");
    ensure!(lab.exec("home-a", "ls", &["/run/gone"]).is_err(), "/run survived");
    Ok(())
}

fn a_killed_runner_leaves_nothing(_: &Lab) -> Result<()> {
    const NAME: &str = "t-killed";
    let (mut runner, reached) = half_up(NAME)?;
    runner.kill().context("killing the runner")?;
    runner.wait().context("reaping the runner")?;
    teardown::down(NAME)?;
    teardown::ensure_gone(NAME)?;
    reached
}

fn an_interrupted_runner_takes_its_lab_down(_: &Lab) -> Result<()> {
    const NAME: &str = "t-ctrl-c";
    let (mut runner, reached) = half_up(NAME)?;
    kill(Pid::from_raw(i32::try_from(runner.id())?), Signal::SIGINT).context("interrupting the runner")?;
    let status = runner.wait().context("waiting for the runner")?;
    let left = teardown::ensure_gone(NAME);
    teardown::down(NAME)?;
    ensure!(status.code() == Some(130), "an interrupted run ended with {status}");
    left.and(reached)
}

/// A second lab in the middle of its start, and whether it got that far.
fn half_up(name: &str) -> Result<(Child, Result<()>)> {
    let mut up = Command::new(binary("warren-lab"));
    up.args(["up", "--bare", "--name", name]).stdout(Stdio::null()).stderr(Stdio::null());
    let runner = up.spawn().context("starting a second lab")?;
    let state = e2e::state::State::of(name)?;
    let reached = wait::until("the second lab to have a node and an API server", SOON, || {
        let started = [Component::ApiServer.name(), "cp"].iter().all(|name| Process::recorded(&state, name).is_some());
        if started { Ok(()) } else { Err(format!("{:?}", Namespace::all(name))) }
    });
    Ok((runner, reached))
}

/// A server on a node itself; it ends when the value is dropped.
struct Server(Process);

impl Drop for Server {
    fn drop(&mut self) {
        // The lab's end would end it too.
        let _ = self.0.end();
    }
}

fn serve(lab: &Lab, name: &str, port: u16) -> Result<Server> {
    let namespace = node::namespace(lab, lab.node(name)?);
    let program = binary("lab-pod").to_string_lossy().into_owned();
    let server = Process::start(
        lab.state(),
        &format!("serve-{name}"),
        &mut namespace.command(&program, &["serve", "--port", &port.to_string()]),
    )?;
    let url = format!("http://127.0.0.1:{port}/");
    wait::until(&format!("the server on {name}"), SOON, || {
        check_on_host(lab, name, &["get", &url]).map_err(|error| format!("{error:#}"))
    })?;
    Ok(Server(server))
}
