//! TCP through a pair, by iperf3, with a ping beside it.

use std::net::Ipv4Addr;
use std::process::{Child, Stdio};

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use crate::bench::Spread;
use crate::bench::pair::{CONNECTED, MESH, Pair};
use crate::command::{command, run};
use crate::net::namespace::Namespace;
use crate::wait;

/// Which streams.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shape {
    /// One, from the first end to the second.
    One,
    /// Four at once, the same way.
    Four,
    /// One, from the second end to the first.
    Reverse,
    /// One each way at the same time.
    BothWays,
}

impl Shape {
    /// All of them, in the order in which they are measured.
    pub const ALL: [Self; 4] = [Self::One, Self::Four, Self::Reverse, Self::BothWays];

    /// How the table names it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::One => "one TCP stream",
            Self::Four => "four TCP streams",
            Self::Reverse => "one TCP stream in reverse",
            Self::BothWays => "both ways at once, sum",
        }
    }

    fn flags(self) -> &'static [&'static str] {
        match self {
            Self::One => &[],
            Self::Four => &["--parallel", "4"],
            Self::Reverse => &["--reverse"],
            Self::BothWays => &["--bidir"],
        }
    }

    /// Where iperf3 tells what was received.
    fn sums(self) -> &'static [&'static str] {
        match self {
            Self::BothWays => &["sum_received", "sum_received_bidir_reverse"],
            _ => &["sum_received"],
        }
    }
}

/// What streams did, and what it cost.
#[derive(Clone, Copy, Debug)]
pub struct Carried {
    /// What arrived, in Gbit/s.
    pub gbit_per_second: f64,
    /// CPU of both processes, in seconds a Gbit.
    pub cpu_per_gbit: f64,
    /// Median round trip meanwhile, in milliseconds.
    pub ping: f64,
}

/// Sends as fast as it goes for so many seconds.
pub fn carry(pair: &Pair<'_>, shape: Shape, seconds: u8) -> Result<Carried> {
    let server = Server::start(&pair.ends[1].namespace, MESH[1])?;
    let (target, seconds) = (MESH[1].to_string(), seconds.to_string());
    let mut args = vec!["--client", &target, "--time", &seconds, "--json"];
    args.extend(shape.flags());
    let before = pair.usage()?;
    let pings = pair.ping()?;
    let said = run(&mut pair.ends[0].namespace.command("iperf3", &args));
    let round_trips = pings.stop().round_trips;
    let after = pair.usage()?;
    drop(server);
    let said: Value = serde_json::from_str(&said?).context("reading what iperf3 said")?;
    let received = |field: &str| -> Result<f64> {
        let sums = shape.sums().iter().map(|sum| said["end"][sum][field].as_f64().context("what iperf3 received"));
        sums.sum()
    };
    let gbit = received("bytes")? * 8.0 / 1e9;
    ensure!(gbit > 0.0, "iperf3 received nothing");
    Ok(Carried {
        gbit_per_second: received("bits_per_second")? / 1e9,
        cpu_per_gbit: (after.cpu - before.cpu) / gbit,
        ping: Spread::of(round_trips).median(),
    })
}

/// Whether iperf3 is here.
pub fn check_machine() -> Result<()> {
    run(&mut command("iperf3", ["--version"])).context("install the Debian package iperf3").map(drop)
}

/// An iperf3 that waits for one client.
pub struct Server(Child);

impl Server {
    /// Starts it and waits until it listens.
    pub fn start(namespace: &Namespace, address: Ipv4Addr) -> Result<Self> {
        let mut iperf3 = namespace.command("iperf3", &["--server", "--one-off", "--bind", &address.to_string()]);
        let child = iperf3.stdout(Stdio::null()).stderr(Stdio::null()).spawn();
        let server = Self(child.context("starting iperf3: install the Debian package iperf3")?);
        wait::until("iperf3 to listen", CONNECTED, || {
            let sockets = run(&mut namespace.command("ss", &["-ltn"])).map_err(|error| format!("{error:#}"))?;
            if sockets.contains(":5201") { Ok(()) } else { Err(sockets) }
        })?;
        Ok(server)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
