//! One named network namespace.

use std::fs::{self, File};
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::process::Command;
use std::thread;

use anyhow::{Context, Result, anyhow};
use nix::sched::{CloneFlags, setns};

use crate::command::{command, run, run_with_input};

/// Where iproute2 keeps named namespaces.
const NETNS: &str = "/run/netns";

/// A network namespace of a lab.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Namespace {
    name: String,
}

impl Namespace {
    /// The namespace `part` of the lab, whether it exists or not.
    #[must_use]
    pub fn of(lab: &str, part: &str) -> Self {
        Self { name: format!("{}{part}", prefix(lab)) }
    }

    /// Every existing namespace of the lab.
    pub fn all(lab: &str) -> Result<Vec<Self>> {
        let Ok(entries) = fs::read_dir(NETNS) else { return Ok(Vec::new()) };
        let mut all = Vec::new();
        for entry in entries {
            let name = entry.context("listing network namespaces")?.file_name().to_string_lossy().into_owned();
            if name.starts_with(&prefix(lab)) {
                all.push(Self { name });
            }
        }
        Ok(all)
    }

    /// Makes it, its loopback up.
    pub fn create(&self) -> Result<()> {
        run(&mut command("ip", ["netns", "add", &self.name]))?;
        self.ip(&["link set lo up"])
    }

    /// Removes its name; the namespace itself ends with its last process.
    pub fn delete(&self) -> Result<()> {
        run(&mut command("ip", ["netns", "del", &self.name])).map(drop)
    }

    /// Its name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The file that holds it.
    #[must_use]
    pub fn path(&self) -> PathBuf {
        PathBuf::from(NETNS).join(&self.name)
    }

    /// What the kernel calls it: equal to the inode of `/proc/PID/ns/net` of every process inside.
    pub fn inode(&self) -> Result<u64> {
        Ok(fs::metadata(self.path()).with_context(|| format!("looking at namespace {}", self.name))?.ino())
    }

    /// A program inside. `nsenter`, because `ip netns exec` mounts a new `/sys` without the cgroups.
    #[must_use]
    pub fn command(&self, program: &str, args: &[&str]) -> Command {
        let net = format!("--net={}", self.path().display());
        let mut inside = command("nsenter", [net.as_str(), "--", program]);
        inside.args(args);
        inside
    }

    /// Runs `job` inside, in a thread of its own: what it opens belongs there, and the caller stays where it is.
    pub fn enter<T: Send + 'static>(&self, job: impl FnOnce() -> Result<T> + Send + 'static) -> Result<T> {
        let path = self.path();
        let file = File::open(&path).with_context(|| format!("opening {}", path.display()))?;
        let inside = move || {
            setns(&file, CloneFlags::CLONE_NEWNET).context("entering the namespace")?;
            job()
        };
        thread::spawn(inside).join().map_err(|_| anyhow!("the thread in the namespace panicked"))?
    }

    /// Runs `ip` commands inside, in order, in one process.
    pub fn ip(&self, lines: &[&str]) -> Result<()> {
        let batch = lines.join("\n") + "\n";
        run_with_input(&mut command("ip", ["-netns", &self.name, "-batch", "-"]), &batch)
            .with_context(|| format!("configuring {}:\n{batch}", self.name))
            .map(drop)
    }

    /// Loads an nftables ruleset inside.
    pub fn nft(&self, ruleset: &str) -> Result<()> {
        run_with_input(&mut self.command("nft", &["-f", "-"]), ruleset)
            .with_context(|| format!("loading rules into {}:\n{ruleset}", self.name))
            .map(drop)
    }

    /// Sets sysctls (`key=value`) of the namespace.
    pub fn sysctl(&self, settings: &[&str]) -> Result<()> {
        let mut args = vec!["-q", "-w"];
        args.extend(settings);
        run(&mut self.command("sysctl", &args)).map(drop)
    }
}

/// What the names of everything of a lab begin with. The double dash ends the lab's name: `a` and `a-b` are two labs.
#[must_use]
pub fn prefix(lab: &str) -> String {
    format!("wl-{lab}--")
}
