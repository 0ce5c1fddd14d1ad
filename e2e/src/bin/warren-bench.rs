//! `warren-bench`: measures what was built and prints Markdown tables; `make bench` runs all of it.

use std::fs::{self, File};
use std::process::ExitCode;

use anyhow::{Context, Result, bail};
use clap::{Parser, ValueEnum};
use e2e::bench::{self, LAB, connect, forward, idle, machine, profile, relayed, scale, stream, throughput, userspace};
use e2e::images::binary;
use e2e::parts::{self, Parts};
use e2e::progress::Progress;
use e2e::{interrupt, state};
use nix::fcntl::{Flock, FlockArg};

/// Measures Warren on this machine and prints Markdown tables with the goals beside the figures.
#[derive(Debug, Parser)]
#[command(name = "warren-bench", version)]
struct Args {
    /// What to measure; parts that need the lab share one.
    #[arg(required = true)]
    parts: Vec<Part>,
    /// How often each figure that varies is measured.
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u8).range(1..=20))]
    rounds: u8,
    /// How long each TCP stream is, in seconds.
    #[arg(long, default_value_t = 6, value_parser = clap::value_parser!(u8).range(1..=60))]
    seconds: u8,
    /// How often each figure of `relayed` and `relayed-tls` is measured.
    #[arg(long, default_value_t = 20, value_parser = clap::value_parser!(u8).range(1..=100))]
    runs: u8,
    /// Of `relayed`, measure these alone.
    #[arg(long, value_delimiter = ',')]
    only: Vec<relayed::Piece>,
    /// How many peers each end has in `userspace`; all but one are idle.
    #[arg(long, value_delimiter = ',', default_value = "1,100,1000", value_parser = clap::value_parser!(u16).range(1..))]
    peers: Vec<u16>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Part {
    /// Everything but `userspace`, `relay`, `tls`, `latency`, `relayed`, `relayed-tls` and `profile`.
    All,
    /// One TCP stream through Warren's device, a bare gotatun and wireguard-go.
    Throughput,
    /// One agent with 100, 1,000 and 5,000 peers.
    Scale,
    /// Warren's device against wireguard-go: TCP and UDP, each way and both, few peers and many. Takes a quarter of an hour.
    Userspace,
    /// What the relay forwards, beside the kernel's NAT and coturn, and from channel to channel beside plain TLS. Takes some minutes.
    Relay,
    /// The last of these alone.
    Tls,
    /// The way of single datagrams through the relay, the kernel and coturn alone.
    Latency,
    /// Pairs that a relay carries, in a lab of their own: speed, starts, relays that end, changes between relay and direct path.
    Relayed,
    /// The last of these alone: such pairs where only TCP to port 443 gets out.
    RelayedTls,
    /// Where the time of a userspace device goes, by samples that perf takes.
    Profile,
    /// Restarted agents and a stopped control plane, in the lab.
    Connect,
    /// Memory, CPU, packets and API writes of an idle mesh, in the lab.
    Idle,
}

impl Part {
    /// Only measured when it is asked for by name.
    fn is_apart(self) -> bool {
        matches!(
            self,
            Self::Userspace
                | Self::Relay
                | Self::Tls
                | Self::Latency
                | Self::Relayed
                | Self::RelayedTls
                | Self::Profile
        )
    }
}

fn main() -> ExitCode {
    match run(Args::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("warren-bench: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(args: Args) -> Result<()> {
    let Args { parts: named, rounds, seconds, runs, only, peers } = args;
    let rounds = usize::from(rounds);
    let _lock = lock()?;
    interrupt::take_down_on_interrupt(LAB, &binary("warren-lab"))?;
    let progress = Progress::new();
    let wanted = |one: Part| named.contains(&one) || (!one.is_apart() && named.contains(&Part::All));
    println!("{}\n", machine::sentence(machine::load()?)?);
    if wanted(Part::Throughput) {
        stream::check_machine()?;
        let rows = throughput::measure(rounds, seconds, &progress)?;
        println!("{}", bench::table("One TCP stream through a pair on one machine", &rows));
    }
    if wanted(Part::Scale) {
        parts::prepare(&progress)?;
        let parts = Parts::build(&progress)?;
        println!("{}", bench::table("One agent and many peers", &scale::measure(&parts, rounds, &progress)?));
    }
    if wanted(Part::Userspace) {
        stream::check_machine()?;
        let peers: Vec<usize> = peers.into_iter().map(usize::from).collect();
        for table in userspace::measure(&peers, rounds, seconds, &progress)? {
            println!("{table}");
        }
    }
    if wanted(Part::Relay) {
        for table in forward::measure(rounds, seconds, &progress)? {
            println!("{table}");
        }
    }
    if wanted(Part::Tls) {
        for table in forward::measure_tls(rounds, seconds, &progress)? {
            println!("{table}");
        }
    }
    if wanted(Part::Latency) {
        println!("{}", forward::measure_latency(rounds, &progress)?);
    }
    if wanted(Part::Relayed) {
        let effort = relayed::Effort { runs: runs.into(), seconds, only: &only };
        relayed::measure(effort, &progress, |table| println!("{table}"))?;
    }
    if wanted(Part::RelayedTls) {
        println!("{}", relayed::measure_tls(runs.into(), seconds, &progress)?);
    }
    if wanted(Part::Profile) {
        stream::check_machine()?;
        println!("{}", profile::measure(seconds, &progress)?);
    }
    let (connect, idle) = (wanted(Part::Connect), wanted(Part::Idle));
    if !connect && !idle {
        return Ok(());
    }
    bench::cluster::with_lab(&progress, |lab| {
        // Idle first: later every agent has been restarted, and the API server was away.
        if idle {
            println!("{}", bench::table("An idle mesh of five nodes", &idle::measure(lab, &progress)?));
        }
        if connect {
            let rows = connect::measure(lab, rounds, &progress)?;
            println!("{}", bench::table("Restarts, with 40 ms of round trip", &rows));
        }
        Ok(())
    })
}

/// Two at once would measure each other.
fn lock() -> Result<Flock<File>> {
    let root = state::cache()?.join("locks");
    fs::create_dir_all(&root).with_context(|| format!("making {}", root.display()))?;
    let file = File::create(root.join("warren-bench")).context("creating the lock")?;
    match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
        Ok(lock) => Ok(lock),
        Err(_) => bail!("another warren-bench runs on this machine: wait for its end"),
    }
}
