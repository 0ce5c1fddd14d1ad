//! A whole lab: brings it up, hands out ways to use it.

use std::fs::{self, File};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use nix::fcntl::{Flock, FlockArg};
use serde_json::Value;

use crate::cluster::{control_plane, init, node, pki};
use crate::command::{command, run, run_with_input};
use crate::guest::{self, Channels};
use crate::images::{self, Set};
use crate::net::sniffer::Sniffer;
use crate::net::{namespace::Namespace, topology};
use crate::parts::{self, Parts};
use crate::process::Process;
use crate::progress::Progress;
use crate::scenario::{Node, OUTSIDE, Scenario};
use crate::state::{State, cache, write};
use crate::teardown;
use crate::wait;

/// The machine outside answers on this port.
pub const OUTSIDE_PORT: u16 = 8080;
/// A process that the lab starts itself serves within milliseconds.
const SERVES: Duration = Duration::from_secs(20);

/// A lab that is up.
#[derive(Clone, Debug)]
pub struct Lab {
    scenario: Scenario,
    state: State,
    parts: Parts,
    exe: PathBuf,
    set: Set,
    channels: Channels,
    /// Held by whoever brought the lab up, for as long as that program uses it.
    _lock: Option<Arc<Flock<File>>>,
}

impl Lab {
    /// Brings a lab up to registered nodes; what a killed run left under the same name goes first. `exe` is the
    /// `warren-lab` program, which also plays the node's process 1, the shaper and the plaintext watch.
    pub fn up(scenario: Scenario, exe: &Path, set: Set, progress: &Progress) -> Result<Self> {
        parts::prepare(progress)?;
        let state = State::of(&scenario.name)?;
        let lock = lock(&state, progress)?;
        if state.exists() || !Namespace::all(&scenario.name)?.is_empty() {
            progress.step("removed what an earlier run left", || teardown::down(&scenario.name))?;
        }
        let parts = Parts::build(progress)?;
        progress.step("images packed", || images::archive(set))?;
        teardown::remember_machine(&state)?;
        state.create(&scenario)?;
        let lab =
            Self { scenario, state, parts, exe: exe.into(), set, channels: Channels::default(), _lock: Some(lock) };
        write(&lab.state.dir().join("parts"), lab.parts.dir().to_string_lossy().as_bytes())?;
        lab.write_wrappers()?;
        lab.bring_up(progress)?;
        Ok(lab)
    }

    /// Brings a lab up, works in it, and takes it down whatever came of that. The first error counts: one of the teardown never hides
    /// why the work failed. The name stays locked until nothing is left of it.
    pub fn with<T>(
        scenario: Scenario,
        set: Set,
        progress: &Progress,
        work: impl FnOnce(&Self) -> Result<T>,
    ) -> Result<T> {
        let name = scenario.name.clone();
        // The optimised program: as the plaintext watch it must keep up with everything on the lab's internet.
        let lab = Self::up(scenario, &images::binary("warren-lab"), set, progress);
        let (_held, result) = match lab {
            Ok(lab) => {
                let result = work(&lab);
                (Some(lab), result)
            }
            Err(error) => (None, Err(error)),
        };
        let gone = progress.step("lab down", || teardown::down(&name).and_then(|()| teardown::ensure_gone(&name)));
        result.and_then(|value| gone.map(|()| value))
    }

    /// The running lab of this name.
    pub fn open(name: &str, exe: &Path) -> Result<Self> {
        let state = State::of(name)?;
        let scenario = state.scenario()?;
        let parts = fs::read_to_string(state.dir().join("parts")).context("finding the lab's parts")?;
        let parts = Parts::of(parts.into());
        Ok(Self { scenario, state, parts, exe: exe.into(), set: Set::All, channels: Channels::default(), _lock: None })
    }

    fn bring_up(&self, progress: &Progress) -> Result<()> {
        progress.step("internet and routers", || self.start_internet())?;
        progress.step("keys and certificates", || pki::Authority::create(&self.state, &self.scenario))?;
        let cp = self.scenario.control_plane();
        progress.step("node cp", || node::create(self, cp))?;
        progress.step("API server ready", || control_plane::start(self))?;
        progress.step("control plane initialised", || control_plane::initialise(self))?;
        let first = |node: &&Node| !self.scenario.later.contains(&node.name) && !self.scenario.is_guest(&node.name);
        let nodes: Vec<&Node> = self.scenario.nodes.iter().filter(first).collect();
        progress.step("nodes booted and registered", || self.join(&nodes))
    }

    /// Boots nodes (all at once) that are not running yet and waits until they are registered.
    pub fn join(&self, nodes: &[&Node]) -> Result<()> {
        for node in nodes.iter().filter(|node| Process::recorded(&self.state, &node.name).is_none()) {
            node::create(self, node)?;
        }
        nodes.iter().try_for_each(|node| node::wait_registered(self, node))
    }

    fn start_internet(&self) -> Result<()> {
        topology::create(&self.scenario)?;
        if self.scenario.delay_ms > 0 {
            self.start_shaper()?;
        }
        // After the shaper: the watch leaves out what comes back from it.
        self.sniffer().start()?;
        let serve = images::binary("lab-pod");
        let outside = topology::outside(&self.scenario.name);
        let net = format!("--net={}", outside.path().display());
        let mut process = command("setsid", ["nsenter", &net, "--"]);
        process.arg(serve).arg("serve").env("POD_NAME", "outside").env("NODE_NAME", "outside");
        Process::start(&self.state, "outside", &mut process)?;
        let url = format!("http://{}:{OUTSIDE_PORT}/", OUTSIDE.addr());
        let program = images::binary("lab-pod").to_string_lossy().into_owned();
        wait::until("the machine outside to serve", SERVES, || {
            run(&mut outside.command(&program, &["get", &url])).map_err(|error| format!("{error:#}"))
        })
        .map(drop)
    }

    /// Sites attach later too: the rules name every site's interface, whether it exists yet or not.
    fn start_shaper(&self) -> Result<()> {
        let net = format!("--net={}", topology::internet(&self.scenario.name).path().display());
        let mut process = command("setsid", ["nsenter", &net, "--"]);
        process.arg(&self.exe).args(["internal", "shape", &self.scenario.delay_ms.to_string()]);
        process.args(self.scenario.nodes.iter().map(|node| topology::uplink(&node.name)));
        process.arg(topology::UPLINK_OUTSIDE);
        Process::start(&self.state, "shaper", &mut process)?;
        let inet = topology::internet(&self.scenario.name);
        wait::until("the shaper's rules", SERVES, || {
            let rules = run(&mut inet.command("ip", &["-6", "rule"])).map_err(|error| format!("{error:#}"))?;
            if rules.contains(topology::UPLINK_OUTSIDE) { Ok(()) } else { Err(rules) }
        })
    }

    /// What the lab looks like.
    #[must_use]
    pub fn scenario(&self) -> &Scenario {
        &self.scenario
    }

    /// Where it keeps its files.
    #[must_use]
    pub fn state(&self) -> &State {
        &self.state
    }

    /// The cluster's programs.
    #[must_use]
    pub fn parts(&self) -> &Parts {
        &self.parts
    }

    /// The `warren-lab` program.
    #[must_use]
    pub fn exe(&self) -> &Path {
        &self.exe
    }

    /// The archive of images that nodes import.
    pub fn images(&self) -> Result<PathBuf> {
        images::archive(self.set)
    }

    /// The plaintext watch.
    #[must_use]
    pub fn sniffer(&self) -> Sniffer {
        Sniffer::of(&self.state, &self.scenario, &self.exe)
    }

    /// The node of that name.
    pub fn node(&self, name: &str) -> Result<&Node> {
        self.scenario.node(name)
    }

    /// Runs a program inside a node, of whatever kind, and returns what it printed.
    pub fn exec(&self, name: &str, program: &str, args: &[&str]) -> Result<String> {
        let node = self.node(name)?;
        if self.scenario.is_guest(name) {
            return guest::exec(self, node, program, args);
        }
        run(&mut node::inside(self, node, program, args)?)
    }

    /// The channels to the lab's virtual machines.
    #[must_use]
    pub fn channels(&self) -> &Channels {
        &self.channels
    }

    /// Runs kubectl as administrator on the control plane's node.
    pub fn kubectl(&self, args: &[&str]) -> Result<String> {
        run(&mut self.kubectl_command(args))
    }

    /// kubectl, not started yet.
    #[must_use]
    pub fn kubectl_command(&self, args: &[&str]) -> Command {
        self.on_control_plane("kubectl", args)
    }

    /// kubectl's answer as JSON.
    pub fn kubectl_json(&self, args: &[&str]) -> Result<Value> {
        let mut all = args.to_vec();
        all.extend(["-o", "json"]);
        let text = self.kubectl(&all)?;
        serde_json::from_str(&text).with_context(|| format!("reading the answer of kubectl {}", args.join(" ")))
    }

    /// `kubectl apply` of a manifest of ours. The server validates it: kubectl would first fetch the schemas of all kinds, which takes
    /// longer than its own time limit on a busy machine.
    pub fn apply(&self, manifest: &str) -> Result<String> {
        run_with_input(&mut self.kubectl_command(&["apply", "--server-side", "--validate=false", "-f", "-"]), manifest)
    }

    /// Runs Helm as administrator on the control plane's node.
    pub fn helm(&self, args: &[&str]) -> Result<String> {
        let home = self.state.dir().join("helm");
        let mut helm = self.on_control_plane("helm", args);
        for name in ["HELM_CACHE_HOME", "HELM_CONFIG_HOME", "HELM_DATA_HOME"] {
            helm.env(name, &home);
        }
        run(&mut helm)
    }

    /// Builds the images again and imports them into every running node.
    pub fn reload_images(&self) -> Result<()> {
        images::build_binaries()?;
        let archive = self.images()?;
        for node in self.running() {
            let import = ["-n", "k8s.io", "images", "import", &archive.to_string_lossy()];
            self.exec(&node.name, "ctr", &import)?;
        }
        Ok(())
    }

    /// The nodes that are powered on.
    #[must_use]
    pub fn running(&self) -> Vec<&Node> {
        self.scenario.nodes.iter().filter(|node| Process::recorded(&self.state, &node.name).is_some()).collect()
    }

    fn on_control_plane(&self, program: &str, args: &[&str]) -> Command {
        let path = self.parts.program(program).to_string_lossy().into_owned();
        let mut command = topology::node(&self.scenario.name, &self.scenario.control_plane().name).command(&path, args);
        command.env("KUBECONFIG", self.state.kubeconfig());
        command
    }

    /// `kubectl` and `helm` for a user's shell: the cluster's addresses exist only inside the lab.
    fn write_wrappers(&self) -> Result<()> {
        let net = topology::node(&self.scenario.name, &self.scenario.control_plane().name).path();
        for name in ["kubectl", "helm"] {
            let path = self.state.dir().join("bin").join(name);
            let program = self.parts.program(name);
            let config = self.state.kubeconfig();
            write(
                &path,
                format!(
                    "#!/bin/sh\nexport KUBECONFIG=\"${{KUBECONFIG:-{}}}\"\nexec nsenter --net='{}' -- '{}' \"$@\"\n",
                    config.display(),
                    net.display(),
                    program.display()
                ),
            )?;
            fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).context("making a wrapper executable")?;
        }
        Ok(())
    }
}

/// One program at a time uses a lab: a second one under the same name waits until the first has ended.
fn lock(state: &State, progress: &Progress) -> Result<Arc<Flock<File>>> {
    // In the cache: the lab's own folder goes with the lab.
    let root = cache()?.join("locks");
    fs::create_dir_all(&root).with_context(|| format!("making {}", root.display()))?;
    let path = root.join(state.name());
    let file = File::create(&path).with_context(|| format!("creating {}", path.display()))?;
    let locked = Flock::lock(file, FlockArg::LockExclusiveNonblock).or_else(|(file, _)| {
        progress.say(&format!("another program uses lab {}: waiting for its end", state.name()));
        Flock::lock(file, FlockArg::LockExclusive)
    });
    Ok(Arc::new(locked.map_err(|(_, errno)| errno).context("locking the lab")?))
}

/// Removes the cgroups of a lab's nodes.
pub(crate) fn remove_cgroups(lab: &str) -> Result<()> {
    for tree in init::cgroup_trees()? {
        let Ok(entries) = fs::read_dir(&tree) else { continue };
        for entry in entries.flatten() {
            if entry.file_name().to_string_lossy().starts_with(&crate::net::namespace::prefix(lab)) {
                init::remove_below(&entry.path());
                // One with a process that is still on its way out stays for the next attempt.
                let _ = fs::remove_dir(entry.path());
            }
        }
    }
    Ok(())
}
