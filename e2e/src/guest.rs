//! Nodes that are virtual machines with a kernel of their own.
//!
//! # Model
//! A guest is a [`Node`] of the scenario whose name is among its `guests`. It stands behind the same kind of router as every
//! other site, in the lab's internet, under the watch for plaintext; only where the link of a node ends in its namespace, that of
//! a guest is a TAP device, and what runs behind it is QEMU with Debian's kernel, which has WireGuard and netem. The machine has
//! no kubelet: a test registers the Node as a kubelet would and starts the agent as a service manager would ([`member`]).
//!
//! The initramfs comes from `e2e/kernel/run.sh`: busybox, a few programs, the static agent, and this crate's program, which answers
//! the lab ([`runner`]) over a serial port of its own ([`channel`]), so that the lab commands a guest whatever happens to its network.
//!
//! # Life cycle
//! [`create`] lays out the disk and boots. A power cut kills the emulator; [`boot`] starts it again from the same disk: what is below
//! [`DISK`] stays, all else is gone. The emulator lives in the network namespace of the router, so it ends with the lab.

pub mod channel;
pub mod member;
pub mod runner;

use std::fs;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result};

use crate::command::{command, run};
use crate::images::{binary, workspace};
use crate::lab::Lab;
use crate::net::topology;
use crate::process::Process;
use crate::scenario::{Node, gateway4};
use channel::{Channel, Request};

pub use channel::Channels;

/// Where a guest mounts its disk.
pub const DISK: &str = "/disk";
/// A guest's shell: that of busybox prefers its own programs to those that came along.
pub const SHELL: &str = "dash";
/// Programs that every guest has, each at the path it has on this machine.
const PROGRAMS: [&str; 2] = ["warren-agent", "lab-pod"];
/// A guest boots within 4 s when nothing else runs; two of them and a cluster share two cores.
const BOOTS: Duration = Duration::from_secs(120);
/// The longest that a program in a guest may take: a ping over the long form of an outage.
const ANSWERS: Duration = Duration::from_secs(1_800);
/// A crash ends the emulator; so do two minutes in which a processor of the guest gets nowhere, instead of a test that waits for it.
const KERNEL_OPTIONS: &str =
    "console=ttyS0 panic=-1 oops=panic softlockup_panic=1 sysctl.kernel.watchdog_thresh=60 mitigations=off quiet";
/// Memory of a guest in MiB: the unpacked initramfs is 60.
const MEMORY: &str = "512";

/// Makes the guest's link and disk and boots it.
pub fn create(lab: &Lab, node: &Node) -> Result<()> {
    topology::attach_guest(lab.scenario(), node)?;
    let dir = lab.state().node(&node.name);
    fs::create_dir_all(&dir).with_context(|| format!("making {}", dir.display()))?;
    let disk = dir.join("disk.img");
    run(command("mkfs.ext4", ["-q", "-F"]).arg(&disk).arg("64M"))?;
    boot(lab, node)
}

/// Boots it from its disk, and waits until its network is up.
pub fn boot(lab: &Lab, node: &Node) -> Result<()> {
    let image = image(lab)?;
    let dir = lab.state().node(&node.name);
    let file = |name: &str| dir.join(name).display().to_string();
    let socket = file("channel");
    let _ = fs::remove_file(&socket);
    let net = format!("--net={}", topology::router(&lab.scenario().name, &node.name).path().display());
    let mut qemu = command("setsid", ["nsenter", &net, "--", "qemu-system-x86_64"]);
    // TCG emulates: KVM inside of containers and other machines hangs or is missing. By one thread, because with one a processor QEMU 7.2
    // now and then goes on with code that Linux has patched meanwhile, and both processors hang at the breakpoint that was there.
    qemu.args(["-M", "q35", "-accel", "tcg,thread=single", "-cpu", "max", "-smp", "2", "-m", MEMORY]);
    qemu.args(["-nodefaults", "-no-user-config", "-display", "none", "-no-reboot"]);
    // The ports that the initramfs expects: console, output, and how it ended.
    for port in ["console", "output", "status"] {
        qemu.args(["-serial", &format!("file:{}", file(port))]);
    }
    qemu.args(["-device", "virtio-serial-pci", "-device", "virtserialport,chardev=channel,name=warren"]);
    qemu.args(["-chardev", &format!("socket,id=channel,path={socket},server=on,wait=off")]);
    qemu.args(["-netdev", "tap,id=net,ifname=lan,script=no,downscript=no", "-device", "virtio-net-pci,netdev=net"]);
    // The emulator may be killed, this machine is not: what was written is in its page cache, and a busy disk holds nobody up.
    qemu.args(["-drive", &format!("file={},format=raw,if=virtio,cache=unsafe", file("disk.img"))]);
    qemu.args(["-append", KERNEL_OPTIONS]);
    qemu.arg("-kernel").arg(image.join("vmlinuz")).arg("-initrd").arg(image.join("initramfs"));
    Process::start(lab.state(), &record(node), &mut qemu)?;
    let script = format!(
        "set -e; mkdir -p {DISK} /run/warren; mount -t ext4 /dev/vda {DISK}; hostname {}; sysctl -qw net.ipv4.ip_forward=1; \
         ip link set eth0 mtu {} up; ip addr add {} dev eth0; ip route add default via {}",
        node.name,
        node.mtu,
        node.v4,
        gateway4(node.v4).addr()
    );
    let channel = lab.channels().of(&node.name, &socket.into(), BOOTS)?;
    let console = || format!("guest {} did not boot; see {}", node.name, file("console"));
    let request = Request::new(SHELL, &["-c", &script], "");
    channel.ask(request, BOOTS).with_context(console)?.into_result("its first setup").map(drop)
}

/// Cuts the power: all is gone but the disk.
pub fn power_cut(lab: &Lab, node: &Node) -> Result<()> {
    lab.channels().forget(&node.name);
    match Process::recorded(lab.state(), &record(node)) {
        Some(machine) => machine.end(),
        None => Ok(()),
    }
}

/// Runs a program inside and returns what it printed.
pub fn exec(lab: &Lab, node: &Node, program: &str, args: &[&str]) -> Result<String> {
    exec_with_input(lab, node, program, args, "")
}

/// Like [`exec`], with `input` on standard input.
pub fn exec_with_input(lab: &Lab, node: &Node, program: &str, args: &[&str], input: &str) -> Result<String> {
    let off = || format!("guest {} is not running", node.name);
    Process::recorded(lab.state(), &record(node)).with_context(off)?;
    let socket = lab.state().node(&node.name).join("channel");
    let channel = lab.channels().of(&node.name, &socket, BOOTS)?;
    let line = || format!("`{program} {}` in guest {}", args.join(" "), node.name);
    channel.ask(Request::new(program, args, input), ANSWERS).with_context(line)?.into_result(&line())
}

/// The guests of the lab.
pub fn all(lab: &Lab) -> Result<Vec<&Node>> {
    lab.scenario().guests.iter().map(|name| lab.node(name)).collect()
}

/// Under this name the emulator is recorded: under the node's own it would count as a node of Kubernetes' that is powered on.
fn record(node: &Node) -> String {
    format!("{}-machine", node.name)
}

/// The folder with kernel and initramfs, made once per lab. Guests may boot at the same time.
fn image(lab: &Lab) -> Result<PathBuf> {
    static PACKING: Mutex<()> = Mutex::new(());
    let _one = PACKING.lock().unwrap_or_else(PoisonError::into_inner);
    let folder = lab.state().dir().join("guest-image");
    if folder.exists() {
        return Ok(folder);
    }
    let partial = lab.state().dir().join("guest-image.partial");
    fs::create_dir_all(&partial).with_context(|| format!("making {}", partial.display()))?;
    let programs: Vec<String> = PROGRAMS.iter().map(|name| binary(name).display().to_string()).collect();
    let mut pack = command("bash", [workspace().join("e2e/kernel/run.sh")]);
    pack.arg(lab.exe()).args(["internal", "guest"]);
    pack.env("WARREN_GUEST_PACK", &partial).env("WARREN_GUEST_FILES", programs.join(" "));
    run(&mut pack).context("packing the guests' kernel and initramfs")?;
    fs::rename(&partial, &folder).context("finishing the guests' kernel and initramfs")?;
    Ok(folder)
}

/// A channel that several threads use.
type Shared = Arc<Channel>;
