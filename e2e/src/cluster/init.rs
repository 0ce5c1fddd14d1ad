//! Process 1 of a node: makes the namespaces that it was started in into a machine, then keeps its services running.
//!
//! The machine's own root file system is below everything, read but never written: `/etc`, `/opt` and `/var` are overlays
//! whose upper layers are in the node's folder, and what other programs must find on a real file system (containerd's
//! snapshots, kubelet's volumes) is bound over them from the node's `disk` folder. So a node needs no directory on the
//! machine, leaves none, and every path and port of Kubernetes keeps its default.

use std::collections::BTreeMap;
use std::fs::{self, OpenOptions};
use std::os::unix::fs::{DirBuilderExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sys::wait::{WaitStatus, wait};

use crate::cluster::node::Boot;
use crate::command::{command, run, succeeds};
use crate::wait as waiting;

/// Copy-on-write directories.
const OVERLAYS: [&str; 3] = ["etc", "opt", "var"];
/// Directories on the node's own disk: every hostPath of the chart, and what overlays cannot hold.
const DISK: [&str; 8] = [
    "var/lib/kubelet",
    "var/lib/containerd",
    "var/lib/cni",
    "var/lib/warren",
    "var/log/pods",
    "var/log/containers",
    "etc/cni/net.d",
    "opt/cni/bin",
];
/// containerd answers within 1 s; the rest is for a machine that builds at the same time.
const CONTAINERD_UP: Duration = Duration::from_secs(60);
/// Time before a service that ended is started again, as service managers leave it.
const RESTART: Duration = Duration::from_secs(1);
const NO_DATA: Option<&str> = None;

/// Runs until the power is cut.
pub fn run_forever(boot: &Path) -> Result<()> {
    let text = fs::read_to_string(boot).with_context(|| format!("reading {}", boot.display()))?;
    let boot: Boot = serde_json::from_str(&text).with_context(|| format!("reading {}", boot.display()))?;
    nix::unistd::sethostname(&boot.hostname).context("setting the host name")?;
    mounts(&boot)?;
    cgroups(&boot.cgroup)?;
    let mut running = BTreeMap::new();
    for (name, ..) in &boot.services {
        running.insert(start(&boot, name)?, name.as_str());
        if name == "containerd" {
            wait_containerd()?;
            import_images(&boot)?;
        }
    }
    loop {
        // Orphans of containers end here too: they are reaped and forgotten.
        let (pid, how) = match wait().context("waiting for a child")? {
            WaitStatus::Exited(pid, code) => (pid.as_raw(), format!("exit status {code}")),
            WaitStatus::Signaled(pid, signal, _) => (pid.as_raw(), signal.to_string()),
            _ => continue,
        };
        if let Some(name) = running.remove(&pid.cast_unsigned()) {
            println!("{name} ended with {how}; starting it again");
            std::thread::sleep(RESTART);
            running.insert(start(&boot, name)?, name);
        }
    }
}

fn mounts(boot: &Boot) -> Result<()> {
    // Copies of the named namespaces in this mount namespace would keep another node's network alive after its end.
    let _ = umount2("/run/netns", MntFlags::MNT_DETACH);
    fresh("proc", "/proc", "")?;
    // A new sysfs shows this network's interfaces; the cgroup trees move over from the old one.
    let keep = boot.dir.join("cgroup");
    make(&keep)?;
    bind(Path::new("/sys/fs/cgroup"), &keep, MsFlags::MS_BIND | MsFlags::MS_REC)?;
    fresh("sysfs", "/sys", "")?;
    mount(Some(&keep), "/sys/fs/cgroup", NO_DATA, MsFlags::MS_MOVE, NO_DATA).context("moving the cgroup trees")?;
    for name in OVERLAYS {
        overlay(boot, name)?;
    }
    fresh("tmpfs", "/run", "mode=755")?;
    for dir in ["/run/netns", "/run/lock", "/run/warren"] {
        make(Path::new(dir))?;
    }
    for name in DISK {
        let (own, here) = (boot.dir.join("disk").join(name), Path::new("/").join(name));
        make(&own)?;
        make(&here)?;
        bind(&own, &here, MsFlags::MS_BIND)?;
    }
    for name in ["hosts", "resolv.conf"] {
        replace_etc(boot, name)?;
    }
    // kubelet and Bidirectional mounts need shared propagation, but only inside this node.
    mount(NO_DATA, "/", NO_DATA, MsFlags::MS_SHARED | MsFlags::MS_REC, NO_DATA)
        .context("sharing mounts inside the node")
}

fn overlay(boot: &Boot, name: &str) -> Result<()> {
    let (upper, work) = (boot.dir.join("upper").join(name), boot.dir.join("work").join(name));
    make(&upper)?;
    make(&work)?;
    // index=off: after a power cut the old mount may still be on its way out.
    let options = format!("lowerdir=/{name},upperdir={},workdir={},index=off", upper.display(), work.display());
    mount(Some("overlay"), &PathBuf::from("/").join(name), Some("overlay"), MsFlags::empty(), Some(options.as_str()))
        .with_context(|| format!("mounting an overlay on /{name}; the lab's state folder must be on a real file system, not on an overlay: set XDG_STATE_HOME"))
}

/// `/etc/hosts` and `/etc/resolv.conf` may be symbolic links into `/run`, which is empty here.
fn replace_etc(boot: &Boot, name: &str) -> Result<()> {
    let path = Path::new("/etc").join(name);
    let _ = fs::remove_file(&path);
    symlink(boot.dir.join("etc").join(name), &path).with_context(|| format!("replacing {}", path.display()))
}

fn fresh(kind: &str, target: &str, options: &str) -> Result<()> {
    mount(Some(kind), target, Some(kind), MsFlags::empty(), Some(options))
        .with_context(|| format!("mounting {kind} on {target}"))
}

fn bind(from: &Path, to: &Path, flags: MsFlags) -> Result<()> {
    mount(Some(from), to, NO_DATA, flags, NO_DATA)
        .with_context(|| format!("binding {} to {}", from.display(), to.display()))
}

fn make(dir: &Path) -> Result<()> {
    fs::DirBuilder::new().recursive(true).mode(0o755).create(dir).with_context(|| format!("making {}", dir.display()))
}

/// The node's root in every hierarchy: all of a v1 or hybrid machine, or the single one of v2. What a power cut left below goes
/// first: kubelet spends seconds on each stale cgroup before the node is Ready.
fn cgroups(name: &str) -> Result<()> {
    for tree in cgroup_trees()? {
        let root = tree.join(name);
        remove_below(&root);
        make(&root)?;
        // A new cpuset of version 1 is empty and refuses every process.
        for file in ["cpuset.cpus", "cpuset.mems"] {
            if tree.ends_with("cpuset") {
                let value = fs::read_to_string(tree.join(file)).with_context(|| format!("reading {file}"))?;
                fs::write(root.join(file), value).with_context(|| format!("writing {file}"))?;
            }
        }
    }
    Ok(())
}

/// Every cgroup hierarchy of the machine.
pub fn cgroup_trees() -> Result<Vec<PathBuf>> {
    let base = Path::new("/sys/fs/cgroup");
    if base.join("cgroup.controllers").exists() {
        return Ok(vec![base.into()]);
    }
    let mut trees = Vec::new();
    for entry in fs::read_dir(base).context("listing the cgroup hierarchies")? {
        let entry = entry.context("listing the cgroup hierarchies")?;
        // `cpu` may be a link to `cpu,cpuacct`: one hierarchy, visited once. A folder in which none is mounted is just a folder.
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) && entry.path().join("cgroup.procs").exists() {
            trees.push(entry.path());
        }
    }
    Ok(trees)
}

/// Removes the cgroups below this one, deepest first. One that still has a process stays.
pub fn remove_below(root: &Path) {
    let Ok(entries) = fs::read_dir(root) else { return };
    for entry in entries.flatten().filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir())) {
        remove_below(&entry.path());
        let _ = fs::remove_dir(entry.path());
    }
}

fn start(boot: &Boot, name: &str) -> Result<u32> {
    let Some((_, program, args)) = boot.services.iter().find(|(service, ..)| service == name) else {
        bail!("there is no service {name}");
    };
    let path = boot.dir.join(format!("{name}.log"));
    let log = OpenOptions::new()
        .create(true)
        .append(true)
        .open(&path)
        .with_context(|| format!("opening {}", path.display()))?;
    let child = command(program, args)
        .stdin(Stdio::null())
        .stdout(log.try_clone().context("sharing the log")?)
        .stderr(log)
        .spawn()
        .with_context(|| format!("starting {name}"))?;
    Ok(child.id())
}

fn wait_containerd() -> Result<()> {
    waiting::until("containerd to answer", CONTAINERD_UP, || {
        if succeeds(&mut command("ctr", ["version"])) { Ok(()) } else { Err("`ctr version` fails".into()) }
    })
}

/// Imports the archive unless this disk has it already: a reboot is quicker than a first boot.
pub fn import_images(boot: &Boot) -> Result<()> {
    let stamp = boot.dir.join("images-imported");
    let meta = fs::metadata(&boot.images).with_context(|| format!("looking at {}", boot.images.display()))?;
    let version = format!("{:?} {}", meta.modified().context("its age")?, meta.len());
    if fs::read_to_string(&stamp).is_ok_and(|done| done == version) {
        return Ok(());
    }
    run(command("ctr", ["-n", "k8s.io", "images", "import"]).arg(&boot.images)).context("importing the images")?;
    fs::write(&stamp, version).context("remembering the import")
}
