//! One TCP stream through a pair of userspace WireGuards, each kind in turn, several rounds of turns.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result};
use serde_json::Value;

use crate::bench::echo::{INTERVAL, Stream};
use crate::bench::program::{End, Kind, PORT, Running, control};
use crate::bench::usage::{self, Usage};
use crate::bench::{LAB, Row, Spread};
use crate::command::{command, run};
use crate::net::namespace::Namespace;
use crate::progress::Progress;
use crate::{teardown, wait};

/// As Warren's device has it on Ethernet.
const MTU: u16 = 1420;
/// The stream's length: long against the slow start, short enough for nine turns on a machine that has other work.
const SECONDS: &str = "6";
/// Pings on the idle pair.
const IDLE_PINGS: usize = 20;
const MESH: [Ipv4Addr; 2] = [Ipv4Addr::new(10, 99, 0, 1), Ipv4Addr::new(10, 99, 0, 2)];
const UNDERLAY: [Ipv4Addr; 2] = [Ipv4Addr::new(192, 0, 2, 1), Ipv4Addr::new(192, 0, 2, 2)];
/// A handshake takes a round trip; the rest is the machine's.
const CONNECTED: Duration = Duration::from_secs(30);

/// What one turn measured.
#[derive(Clone, Copy, Debug)]
struct Turn {
    gbit_per_second: f64,
    cpu_per_gbit: f64,
    rss_mib: f64,
    idle_ping: f64,
    loaded_ping: f64,
}

/// Measures every kind that can be built here and compares them.
pub fn measure(rounds: usize, progress: &Progress) -> Result<Vec<Row>> {
    let mut programs: Vec<(Kind, PathBuf)> = Vec::new();
    for kind in Kind::ALL {
        match progress.step(&format!("build {}", kind.name()), || kind.build()) {
            Ok(program) => programs.push((kind, program)),
            Err(error) if kind == Kind::Warren => return Err(error),
            Err(error) => progress.say(&format!("without {}: {error:#}", kind.name())),
        }
    }
    teardown::down(LAB)?;
    let result = cable().and_then(|ends| all_turns(&ends, &programs, rounds, progress));
    teardown::down(LAB)?;
    result.map(|turns| compare(&turns))
}

fn all_turns(
    ends: &[End; 2],
    programs: &[(Kind, PathBuf)],
    rounds: usize,
    progress: &Progress,
) -> Result<BTreeMap<Kind, Vec<Turn>>> {
    let mut turns: BTreeMap<Kind, Vec<Turn>> = BTreeMap::new();
    for round in 1..=rounds {
        for (kind, program) in programs {
            let name = format!("round {round} of {rounds}: {}", kind.name());
            turns.entry(*kind).or_default().push(progress.step(&name, || turn(ends, *kind, program))?);
        }
    }
    Ok(turns)
}

/// Two namespaces and the cable between them.
fn cable() -> Result<[End; 2]> {
    let [a, b] = ["pair-a", "pair-b"].map(|part| Namespace::of(LAB, part));
    a.create()?;
    b.create()?;
    a.ip(&[&format!("link add eth0 type veth peer name eth0 netns {}", b.name())])?;
    for (namespace, address) in [(&a, UNDERLAY[0]), (&b, UNDERLAY[1])] {
        namespace.ip(&[&format!("addr add {address}/24 dev eth0"), "link set eth0 up"])?;
    }
    let end = |index: usize, namespace| End {
        index,
        namespace,
        device: format!("wb-{}", ["a", "b"][index]),
        allowed: format!("{}/32", MESH[1 - index]),
        endpoint: format!("{}:{PORT}", UNDERLAY[1 - index]),
    };
    Ok([end(0, a), end(1, b)])
}

fn turn(ends: &[End; 2], kind: Kind, program: &std::path::Path) -> Result<Turn> {
    let result = connected_turn(ends, kind, program);
    for end in ends {
        // Warren's interface outlives its process on purpose.
        let _ = end.namespace.ip(&[&format!("link del {}", end.device)]);
        let _ = std::fs::remove_file(control(&end.device));
    }
    result
}

fn connected_turn(ends: &[End; 2], kind: Kind, program: &std::path::Path) -> Result<Turn> {
    let processes = ends.iter().map(|end| Running::start(kind, program, end)).collect::<Result<Vec<_>>>()?;
    for (end, address) in ends.iter().zip(MESH) {
        let link = format!("link set {} mtu {MTU} up", end.device);
        end.namespace.ip(&[&link, &format!("addr add {address}/24 dev {}", end.device)])?;
    }
    let pings = Stream::start(&ends[0].namespace, MESH[1], INTERVAL)?;
    wait::until("the first echo through the pair", CONNECTED, || match pings.echoes_of_last(IDLE_PINGS) {
        echoes if echoes == IDLE_PINGS => Ok(()),
        echoes => Err(format!("{echoes} of the last {IDLE_PINGS} pings had an echo")),
    })?;
    drop(pings);
    let pings = Stream::start(&ends[0].namespace, MESH[1], INTERVAL)?;
    wait::until("pings on the idle pair", CONNECTED, || match pings.echoes_of_last(IDLE_PINGS) {
        echoes if echoes == IDLE_PINGS => Ok(()),
        echoes => Err(format!("{echoes} echoes")),
    })?;
    let idle_ping = Spread::of(pings.stop().round_trips).median();
    loaded(ends, &processes, idle_ping)
}

fn loaded(ends: &[End; 2], processes: &[Running], idle_ping: f64) -> Result<Turn> {
    let usage = || processes.iter().map(|process| usage::of(process.pid())).collect::<Result<Vec<Usage>>>();
    let target = MESH[1].to_string();
    let mut server = ends[1].namespace.command("iperf3", &["--server", "--one-off", "--bind", &target]);
    let mut server = server
        .stdout(std::process::Stdio::null())
        .spawn()
        .context("starting iperf3: install the Debian package iperf3")?;
    let listening = wait::until("iperf3 to listen", CONNECTED, || {
        let sockets = run(&mut ends[1].namespace.command("ss", &["-ltn"])).map_err(|error| format!("{error:#}"))?;
        if sockets.contains(":5201") { Ok(()) } else { Err(sockets) }
    });
    let before = usage()?;
    let pings = Stream::start(&ends[0].namespace, MESH[1], INTERVAL)?;
    let client = listening.and_then(|()| {
        run(&mut ends[0].namespace.command("iperf3", &["--client", &target, "--time", SECONDS, "--json"]))
    });
    let loaded_ping = Spread::of(pings.stop().round_trips).median();
    let after = usage()?;
    let _ = server.kill();
    let _ = server.wait();
    let said: Value = serde_json::from_str(&client?).context("reading what iperf3 said")?;
    let received = |field: &str| said["end"]["sum_received"][field].as_f64().context("iperf3's sum_received");
    let gbit = received("bytes")? * 8.0 / 1e9;
    let cpu: f64 = after.iter().zip(&before).map(|(after, before)| after.cpu - before.cpu).sum();
    Ok(Turn {
        gbit_per_second: received("bits_per_second")? / 1e9,
        cpu_per_gbit: cpu / gbit,
        rss_mib: after.iter().map(|usage| usage.rss_mib).fold(0.0, f64::max),
        idle_ping,
        loaded_ping,
    })
}

/// Ratios are taken round by round: what else the machine does in that minute is in both numbers.
fn compare(turns: &BTreeMap<Kind, Vec<Turn>>) -> Vec<Row> {
    let ours = &turns[&Kind::Warren];
    let mut rows = Vec::new();
    for (kind, theirs) in turns.iter().filter(|(kind, _)| **kind != Kind::Warren) {
        let ratio = |of: fn(&Turn) -> f64| Spread::of(ours.iter().zip(theirs).map(|(our, their)| of(our) / of(their)));
        let name = kind.name();
        rows.push(Row::new(format!("throughput, Warren / {name}"), "ratio", ratio(|turn| turn.gbit_per_second)));
        rows.push(Row::new(format!("CPU per Gbit, Warren / {name}"), "ratio", ratio(|turn| turn.cpu_per_gbit)));
    }
    for (kind, turns) in turns {
        let name = kind.name();
        let each = |of: fn(&Turn) -> f64| Spread::of(turns.iter().map(of));
        rows.push(Row::new(format!("{name}: throughput here"), "Gbit/s", each(|turn| turn.gbit_per_second)));
        rows.push(Row::new(format!("{name}: CPU of both ends"), "s/Gbit", each(|turn| turn.cpu_per_gbit)));
        rows.push(Row::new(format!("{name}: memory after load"), "MiB", each(|turn| turn.rss_mib)));
        rows.push(Row::new(format!("{name}: ping, idle"), "ms", each(|turn| turn.idle_ping)));
        rows.push(Row::new(format!("{name}: ping, loaded"), "ms", each(|turn| turn.loaded_ping)));
    }
    rows
}

/// Whether the programs that this part needs are here.
pub fn check_machine() -> Result<()> {
    run(&mut command("iperf3", ["--version"])).context("install the Debian package iperf3").map(drop)
}
