//! Takes a lab down so that nothing of it is left, whatever state it was left in.
//!
//! Nothing is ended by name. What belongs to a lab is known by its network namespaces: a process inside one of them is the lab's,
//! and everything else of a node hangs on its process 1. So a run that was killed before it could write anything down is cleaned
//! as well as any other.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::lab::remove_cgroups;
use crate::net::namespace::{Namespace, prefix};
use crate::state::{self, State, write};
use crate::wait;

/// Settings of the whole machine that kubelet changes.
const MACHINE: [&str; 6] = [
    "vm/overcommit_memory",
    "vm/panic_on_oom",
    "kernel/panic",
    "kernel/panic_on_oops",
    "kernel/keys/root_maxkeys",
    "kernel/keys/root_maxbytes",
];
/// Where they are remembered, beside the labs: the last lab to go puts them back.
const REMEMBERED: &str = ".machine-sysctls";
/// Killed processes end in milliseconds; containers with much memory take longer.
const END: Duration = Duration::from_secs(30);

/// Remembers the machine's settings, unless another lab already did.
pub fn remember_machine(state: &State) -> Result<()> {
    let root = state.dir().parent().context("the folder of all labs")?;
    fs::create_dir_all(root).with_context(|| format!("making {}", root.display()))?;
    let path = root.join(REMEMBERED);
    if path.exists() {
        return Ok(());
    }
    let lines =
        MACHINE.iter().filter_map(|name| Some(format!("{name} {}", fs::read_to_string(setting(name)).ok()?.trim())));
    write(&path, lines.collect::<Vec<_>>().join("\n"))
}

/// Ends everything of the lab and removes everything it made. Safe to run again, and on a lab that never was.
pub fn down(name: &str) -> Result<()> {
    let state = State::of(name)?;
    let namespaces = Namespace::all(name)?;
    end_processes(&namespaces)?;
    for namespace in &namespaces {
        namespace.delete()?;
    }
    wait::until("the lab's cgroups to go", END, || {
        remove_cgroups(name).map_err(|error| format!("{error:#}"))?;
        let left = leftover_cgroups(name);
        if left.is_empty() { Ok(()) } else { Err(format!("{left:?}")) }
    })?;
    state.remove()?;
    restore_machine()
}

/// Names of everything of the lab that still exists: empty after `down`.
pub fn leftovers(name: &str) -> Result<Vec<String>> {
    let state = State::of(name)?;
    let mut left: Vec<String> = Namespace::all(name)?.iter().map(|namespace| namespace.name().to_owned()).collect();
    left.extend(leftover_cgroups(name).iter().map(|path| path.display().to_string()));
    if state.exists() {
        left.push(state.dir().display().to_string());
    }
    let folder = state.dir().to_string_lossy().into_owned();
    left.extend(
        fs::read_to_string("/proc/self/mounts")
            .unwrap_or_default()
            .lines()
            .filter(|line| line.contains(&folder))
            .map(String::from),
    );
    Ok(left)
}

/// Fails with what [`leftovers`] finds.
pub fn ensure_gone(name: &str) -> Result<()> {
    let left = leftovers(name)?;
    anyhow::ensure!(left.is_empty(), "left behind: {}", left.join(", "));
    Ok(())
}

/// Names of every lab that has left anything on this machine.
pub fn labs() -> Result<Vec<String>> {
    let mut names = BTreeSet::new();
    for entry in fs::read_dir(state::root()?).into_iter().flatten().flatten() {
        if entry.path().is_dir() {
            names.insert(entry.file_name().to_string_lossy().into_owned());
        }
    }
    Ok(names.into_iter().collect())
}

fn end_processes(namespaces: &[Namespace]) -> Result<()> {
    let inodes = namespaces.iter().map(Namespace::inode).collect::<Result<BTreeSet<_>>>()?;
    wait::until("the lab's processes to end", END, || {
        let inside = processes_in(&inodes);
        for pid in &inside {
            // It may end between the two looks.
            let _ = kill(*pid, Signal::SIGKILL);
        }
        if inside.is_empty() { Ok(()) } else { Err(format!("still there: {inside:?}")) }
    })
}

/// Processes whose network namespace is one of these. A process that ended meanwhile has no link to read.
fn processes_in(inodes: &BTreeSet<u64>) -> Vec<Pid> {
    let Ok(entries) = fs::read_dir("/proc") else { return Vec::new() };
    let me = std::process::id().cast_signed();
    entries
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok())
        .filter(|pid| *pid != me)
        .filter(|pid| fs::metadata(format!("/proc/{pid}/ns/net")).is_ok_and(|meta| inodes.contains(&meta.ino())))
        .map(Pid::from_raw)
        .collect()
}

fn leftover_cgroups(name: &str) -> Vec<PathBuf> {
    let trees = crate::cluster::init::cgroup_trees().unwrap_or_default();
    let below = |tree: &PathBuf| {
        fs::read_dir(tree).into_iter().flatten().flatten().map(|entry| entry.path()).collect::<Vec<_>>()
    };
    let ours = |path: &PathBuf| path.file_name().is_some_and(|file| file.to_string_lossy().starts_with(&prefix(name)));
    trees.iter().flat_map(below).filter(ours).collect()
}

fn restore_machine() -> Result<()> {
    if !labs()?.is_empty() {
        return Ok(());
    }
    let path = state::root()?.join(REMEMBERED);
    let Ok(text) = fs::read_to_string(&path) else { return Ok(()) };
    for (name, value) in text.lines().filter_map(|line| line.split_once(' ')) {
        write(&setting(name), value)?;
    }
    fs::remove_file(&path).context("forgetting the machine's settings")
}

fn setting(name: &str) -> PathBuf {
    Path::new("/proc/sys").join(name)
}
