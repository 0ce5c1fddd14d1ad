//! Watches every packet on the internet and remembers each that shows inner traffic in clear.
//!
//! It runs as a process in the internet's namespace for as long as the lab does. [`Sniffer::verdict`] sends a marker packet
//! and waits until the process has seen it: so a verdict covers everything sent before, and proves that the watch is
//! alive. A watch that had to drop packets gives no verdict.

pub mod filter;
pub mod inspect;

use std::collections::BTreeMap;
use std::fs;
use std::net::IpAddr;
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use ipnet::IpNet;
use nix::sys::socket::{
    AddressFamily, LinkAddr, SockFlag, SockProtocol, SockType, recvfrom, setsockopt, socket, sockopt,
};
use serde::{Deserialize, Serialize};

use crate::command::run;
use crate::net::{shaper, topology};
use crate::process::Process;
use crate::scenario::{API_PORT, HTTPS_PORT, OUTSIDE, RELAY_QUIC_PORT, RELAY_TLS_PORT, Scenario};
use crate::state::{State, write};
use crate::wait;
use inspect::{Rules, inspect};

/// Everything private to the mesh by default: `Mesh.spec.addresses.ipv4`. IPv6 mesh addresses are unique local.
const MESH: &str = "10.118.0.0/16";
/// Unique local addresses never belong on the internet, whoever chose them.
const UNIQUE_LOCAL: &str = "fc00::/7";
/// Socket buffer: 64 MiB hold a second of a busy lab while this process waits for a core.
const BUFFER: usize = 64 << 20;
/// Bytes looked at per packet: an inner header behind every encapsulation we know of begins earlier.
const SNAP: usize = 512;
/// Findings kept; one is enough to fail a run.
const FINDINGS_MAX: usize = 50;
/// What a marker packet begins with.
const MARK: &[u8] = b"warren-lab-mark:";
/// Port of marker packets; nothing listens there.
const MARK_PORT: u16 = 9;
/// A marker must come through by then even on a machine that builds at the same time.
const MARK_SEEN: Duration = Duration::from_secs(30);

/// What the watching process reports.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Report {
    /// The last marker it saw.
    pub mark: String,
    /// Packets looked at: all but WireGuard's data between outer addresses.
    pub packets: u64,
    /// Packets that the kernel could not hand over.
    pub dropped: u64,
    /// Distinct findings with the number of packets of each.
    pub findings: BTreeMap<String, u64>,
}

/// The watch of one lab.
#[derive(Clone, Debug)]
pub struct Sniffer {
    state: State,
    scenario: Scenario,
    exe: PathBuf,
}

impl Sniffer {
    /// The watch of this lab; `exe` is the `warren-lab` program.
    #[must_use]
    pub fn of(state: &State, scenario: &Scenario, exe: &Path) -> Self {
        Self { state: state.clone(), scenario: scenario.clone(), exe: exe.into() }
    }

    /// Starts watching pod, Service and mesh addresses.
    pub fn start(&self) -> Result<()> {
        self.write_rules(false)?;
        let exe = self.exe.to_string_lossy();
        let dir = self.state.dir().to_string_lossy();
        let namespace = format!("--net={}", topology::internet(&self.scenario.name).path().display());
        let args = ["nsenter", &namespace, "--", &exe, "internal", "sniff", &dir];
        Process::start(&self.state, "sniffer", &mut crate::command::command("setsid", args))?;
        self.mark().map(drop)
    }

    /// From now on node addresses that Warren carries must not be seen in clear either, except for what is of the underlay.
    pub fn watch_carried(&self) -> Result<()> {
        self.write_rules(true)?;
        self.mark().map(drop)
    }

    /// Everything found so far; an error when the watch is dead or blind.
    pub fn report(&self) -> Result<Report> {
        let report = self.mark()?;
        if report.dropped > 0 {
            bail!(
                "the plaintext watch missed {} of {} packets: it cannot say that nothing leaked",
                report.dropped,
                report.packets
            );
        }
        Ok(report)
    }

    /// An error that lists the findings when anything was seen in clear.
    pub fn verdict(&self) -> Result<Report> {
        let report = self.report()?;
        if !report.findings.is_empty() {
            let lines = report.findings.iter().map(|(finding, count)| format!("\n  {count} x {finding}"));
            bail!("inner packets were seen in clear on the internet:{}", lines.collect::<String>());
        }
        Ok(report)
    }

    /// Forgets what was found: after a planted leak.
    pub fn forget(&self) -> Result<()> {
        self.send_mark("forget").map(drop)
    }

    fn mark(&self) -> Result<Report> {
        self.send_mark("mark")
    }

    fn send_mark(&self, verb: &str) -> Result<Report> {
        let nonce = format!("{verb}-{}", std::time::UNIX_EPOCH.elapsed().unwrap_or_default().as_nanos());
        let payload = format!("{}{nonce}", String::from_utf8_lossy(MARK));
        let target = format!("{}:{MARK_PORT}", std::net::Ipv4Addr::from(u32::from(OUTSIDE.addr()) + 1));
        let exe = self.exe.to_string_lossy();
        let out = topology::outside(&self.scenario.name);
        wait::until("the plaintext watch to see a marker packet", MARK_SEEN, || {
            if Process::recorded(&self.state, "sniffer").is_none() {
                return Err("its process is dead; see sniffer.log".into());
            }
            run(&mut out.command(&exe, &["internal", "send", &target, &payload]))
                .map_err(|error| format!("{error:#}"))?;
            let report = read_report(self.state.dir()).map_err(|error| format!("{error:#}"))?;
            if report.mark == nonce { Ok(report) } else { Err(format!("marker {:?}", report.mark)) }
        })
    }

    fn write_rules(&self, carried: bool) -> Result<()> {
        let mut inner = self.scenario.pod_cidrs();
        inner.extend(self.scenario.service_cidrs());
        inner.extend([MESH, UNIQUE_LOCAL].map(|net| net.parse::<IpNet>().expect("the constants are networks")));
        let cluster: Vec<IpAddr> = self.scenario.nodes.iter().map(|node| IpAddr::V4(node.outer_v4())).collect();
        let carried = if carried { self.scenario.carried_addresses() } else { Vec::new() };
        let rules = Rules {
            inner,
            carried,
            cluster,
            underlay_ports: vec![API_PORT, RELAY_TLS_PORT, HTTPS_PORT],
            underlay_udp_ports: vec![RELAY_QUIC_PORT],
        };
        write(&self.state.dir().join("sniffer-rules.json"), serde_json::to_string(&rules)?)
    }
}

/// The watching process: runs in the internet's namespace until it is killed.
pub fn run_forever(dir: &Path) -> Result<()> {
    // One socket without an interface sees all of them; a datagram socket begins at the IP header on every kind of link.
    let socket = socket(AddressFamily::Packet, SockType::Datagram, SockFlag::SOCK_CLOEXEC, SockProtocol::EthAll)
        .context("opening a packet socket")?;
    setsockopt(&socket, sockopt::RcvBufForce, &BUFFER).context("enlarging the packet buffer")?;
    let socket = socket2::Socket::from(socket);
    let mut rules = read_rules(dir)?;
    let echoes: Vec<u32> = nix::net::if_::if_nametoindex(shaper::DEVICE).into_iter().collect();
    socket.attach_filter(&filter::program(&rules, &echoes)).context("attaching the packet filter")?;
    let mut report = Report::default();
    let mut buffer = [0; SNAP];
    loop {
        let (length, from) = recvfrom::<LinkAddr>(socket.as_raw_fd(), &mut buffer).context("reading packets")?;
        let packet = buffer.get(..length.min(SNAP)).unwrap_or_default();
        report.packets += 1;
        if let Some(finding) = inspect(packet, &rules) {
            let device = from.map(|from| interface(from.ifindex())).unwrap_or_default();
            let finding = format!("{finding} on {device}");
            if report.findings.len() < FINDINGS_MAX || report.findings.contains_key(&finding) {
                *report.findings.entry(finding).or_default() += 1;
            }
        }
        if let Some(mark) = marker(packet).filter(|mark| *mark != report.mark) {
            report.mark = mark;
            report.dropped += drops::since_last_asked(socket.as_raw_fd())?;
            if report.mark.starts_with("forget") {
                report.findings.clear();
            }
            rules = read_rules(dir)?;
            let next = dir.join("sniffer.json.next");
            write(&next, serde_json::to_string(&report)?)?;
            fs::rename(&next, dir.join("sniffer.json")).context("publishing the report")?;
        }
    }
}

fn marker(packet: &[u8]) -> Option<String> {
    let payload = inspect::udp_payload(packet, MARK_PORT)?;
    let nonce = payload.strip_prefix(MARK)?;
    Some(String::from_utf8_lossy(nonce).into_owned())
}

fn interface(index: usize) -> String {
    let index = u32::try_from(index).unwrap_or(0);
    nix::net::if_::if_indextoname(index)
        .map_or_else(|_| format!("interface {index}"), |name| name.to_string_lossy().into_owned())
}

fn read_rules(dir: &Path) -> Result<Rules> {
    let text = fs::read_to_string(dir.join("sniffer-rules.json")).context("reading the watch's rules")?;
    serde_json::from_str(&text).context("reading the watch's rules")
}

fn read_report(dir: &Path) -> Result<Report> {
    let text = fs::read_to_string(dir.join("sniffer.json")).context("no report yet")?;
    serde_json::from_str(&text).context("reading the watch's report")
}

mod drops {
    #![allow(unsafe_code)]

    use super::{Context, Result};
    use std::os::fd::RawFd;

    /// Packets lost for want of buffer since the last call: the kernel resets its counter on every read.
    pub fn since_last_asked(socket: RawFd) -> Result<u64> {
        let mut stats = nix::libc::tpacket_stats { tp_packets: 0, tp_drops: 0 };
        let mut length = size_of::<nix::libc::tpacket_stats>() as nix::libc::socklen_t;
        // SAFETY: the descriptor is open; the kernel writes at most `length` bytes into `stats`, and both outlive the call.
        let result = unsafe {
            nix::libc::getsockopt(
                socket,
                nix::libc::SOL_PACKET,
                nix::libc::PACKET_STATISTICS,
                (&raw mut stats).cast(),
                &raw mut length,
            )
        };
        nix::errno::Errno::result(result).context("reading the packet counters")?;
        Ok(u64::from(stats.tp_drops))
    }
}
