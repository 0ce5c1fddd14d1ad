//! Delay on the internet without netem: every packet between two sites goes through a TUN device, waits in a queue and
//! goes on.
//!
//! `ip rule iif SITE` sends what enters from a site to the device; what we write back enters from the device itself, so
//! no rule matches and the main table forwards it. TUN has no offloads here, so segments and checksums are what real
//! links would carry. A packet crosses once per direction: the round trip grows by twice the delay.

use std::fs::{File, OpenOptions};
use std::io::{Read, Write};
use std::os::fd::AsRawFd;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

use crate::command::{command, run};
use crate::net::namespace::Namespace;

/// Name of the lab's device.
pub const DEVICE: &str = "shaper";
/// The lab's way round, through which every packet between two sites goes.
pub const DETOUR: Detour = Detour { device: DEVICE, table: "100" };
/// Packets under way at most: 40 ms of 1 Gbit/s in full packets; beyond it the link drops, as links do.
const QUEUE: usize = 4096;
/// Longest packet that a link of the lab carries.
const PACKET: usize = 2048;

/// A way round. A namespace may have several, each for other sites.
#[derive(Clone, Copy, Debug)]
pub struct Detour {
    /// Its device.
    pub device: &'static str,
    /// The routing table that leads there.
    pub table: &'static str,
}

/// Runs in the internet's namespace until it is killed, or the device is deleted, which is an error. `delay` is asked for each packet;
/// none overtakes another.
pub fn run_forever(detour: Detour, sites: &[String], delay: impl Fn() -> Duration) -> Result<()> {
    let Detour { device: name, table } = detour;
    let device = tun::open(name).context("making the shaper's TUN device (is /dev/net/tun there?)")?;
    let ip = |line: String| run(&mut command("ip", line.split(' '))).map(drop);
    ip(format!("link set {name} up"))?;
    for family in ["-4", "-6"] {
        ip(format!("{family} route add default dev {name} table {table}"))?;
        for site in sites {
            ip(format!("{family} rule add iif {site} lookup {table}"))?;
        }
    }
    let (enter, leave) = sync_channel(QUEUE);
    let out = device.try_clone().context("sharing the TUN device")?;
    std::thread::spawn(move || forward(out, &leave));
    collect(device, &enter, delay)
}

/// Takes the shaper out of the way of IPv4 between these sites, which have no delay then, or puts it back.
pub fn set_in_the_way(internet: &Namespace, sites: &[String], is: bool) -> Result<()> {
    let verb = if is { "add" } else { "del" };
    let lines: Vec<String> =
        sites.iter().map(|site| format!("rule {verb} iif {site} lookup {}", DETOUR.table)).collect();
    internet.ip(&lines.iter().map(String::as_str).collect::<Vec<_>>())
}

fn collect(mut device: File, enter: &SyncSender<(Instant, Vec<u8>)>, delay: impl Fn() -> Duration) -> Result<()> {
    let mut buffer = [0; PACKET];
    loop {
        let length = device.read(&mut buffer).context("reading from the shaper's device")?;
        if let Some(packet) = buffer.get(..length) {
            // A full queue drops the packet.
            let _ = enter.try_send((Instant::now() + delay(), packet.to_vec()));
        }
    }
}

fn forward(mut device: File, leave: &Receiver<(Instant, Vec<u8>)>) {
    while let Ok((due, packet)) = leave.recv() {
        std::thread::sleep(due.saturating_duration_since(Instant::now()));
        // A packet that the kernel refuses is lost, as on any link.
        let _ = device.write(&packet);
    }
}

mod tun {
    #![allow(unsafe_code)]

    use super::{AsRawFd, Context, File, OpenOptions, Result};

    nix::ioctl_write_ptr_bad!(
        /// Names the device behind the descriptor and sets its flags.
        tunsetiff,
        nix::libc::TUNSETIFF,
        nix::libc::ifreq
    );

    pub fn open(name: &str) -> Result<File> {
        let file = OpenOptions::new().read(true).write(true).open("/dev/net/tun").context("opening /dev/net/tun")?;
        let mut ifr_name = [0; nix::libc::IFNAMSIZ];
        for (to, from) in ifr_name.iter_mut().zip(name.bytes()) {
            *to = from.cast_signed();
        }
        let flags = (nix::libc::IFF_TUN | nix::libc::IFF_NO_PI) as i16;
        let request = nix::libc::ifreq { ifr_name, ifr_ifru: nix::libc::__c_anonymous_ifr_ifru { ifru_flags: flags } };
        // SAFETY: the descriptor is open, and the kernel reads one `ifreq` from a pointer that outlives the call.
        unsafe { tunsetiff(file.as_raw_fd(), &raw const request) }.context("TUNSETIFF")?;
        Ok(file)
    }
}
