//! How fast a relayed pair is.

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use super::{HARD, Hard};
use crate::bench::cluster::{self, mesh_address};
use crate::bench::stream::{self, Server};
use crate::bench::{Goal, LAB, Row, Spread, usage};
use crate::command::run;
use crate::lab::Lab;
use crate::net::{shaper, topology};

/// In Gbit/s.
const BY_UDP: Goal = Goal::Least(1.5);
const BY_TLS: Goal = Goal::Least(0.6);
/// Streams at once.
const STREAMS: [usize; 2] = [1, 4];

/// One turn.
struct Carried {
    gbit_per_second: f64,
    /// Of both agents, in seconds a Gbit.
    agents: f64,
    relay: f64,
}

/// With both legs by UDP.
pub fn measure(hard: &Hard<'_>, runs: usize, seconds: u8) -> Result<Vec<Row>> {
    rows(hard, "legs by UDP", BY_UDP, (runs, seconds), || Ok(hard.stream()?.0))
}

/// With legs inside channels: `settled` waits until they are, and names the relay.
pub fn measure_tls(
    hard: &Hard<'_>,
    what: &str,
    effort: (usize, u8),
    settled: impl Fn() -> Result<String>,
) -> Result<Vec<Row>> {
    rows(hard, what, BY_TLS, effort, settled)
}

/// The shaper hands over every packet alone and by a process, which is slower than what is measured here: it is out of the way
/// meanwhile.
fn rows(
    hard: &Hard<'_>,
    legs: &str,
    goal: Goal,
    effort: (usize, u8),
    settled: impl Fn() -> Result<String>,
) -> Result<Vec<Row>> {
    stream::check_machine()?;
    let internet = topology::internet(LAB);
    let mut sites: Vec<String> = hard.lab.scenario().nodes.iter().map(|node| topology::uplink(&node.name)).collect();
    sites.push(topology::UPLINK_OUTSIDE.into());
    shaper::set_in_the_way(&internet, &sites, false)?;
    let rows = undelayed(hard, legs, goal, effort, settled);
    shaper::set_in_the_way(&internet, &sites, true)?;
    rows
}

fn undelayed(
    hard: &Hard<'_>,
    legs: &str,
    goal: Goal,
    (runs, seconds): (usize, u8),
    settled: impl Fn() -> Result<String>,
) -> Result<Vec<Row>> {
    let mut rows = Vec::new();
    for streams in STREAMS {
        let turns: Vec<Carried> =
            hard.progress.step(&format!("relayed, {legs}, streams: {streams}, x {runs}"), || {
                (0..runs).map(|_| carry(hard.lab, &settled()?, streams, seconds)).collect::<Result<_>>()
            })?;
        let each = |of: fn(&Carried) -> f64| Spread::of(turns.iter().map(of));
        let what = |what: &str| format!("{legs}, TCP streams: {streams}: {what}");
        rows.push(Row::new(what("throughput"), "Gbit/s", each(|turn| turn.gbit_per_second)).goal(goal));
        rows.push(Row::new(what("CPU of both agents"), "s/Gbit", each(|turn| turn.agents)));
        rows.push(Row::new(what("CPU of the relay"), "s/Gbit", each(|turn| turn.relay)));
    }
    Ok(rows)
}

fn carry(lab: &Lab, by: &str, streams: usize, seconds: u8) -> Result<Carried> {
    let agents = HARD.map(|node| cluster::agent(lab, node));
    let relay = usage::running("warren-relay", &topology::node(LAB, by)).into_iter().max();
    let (agents, relay) = (agents.map(|pid| pid.context("no agent runs")), relay.context("no relay runs")?);
    let [one, other] = agents;
    let (one, other) = (one?, other?);
    let cpu = |pids: &[i32]| -> Result<f64> { pids.iter().map(|pid| Ok(usage::of(*pid)?.cpu)).sum() };
    let address = mesh_address(lab, HARD[1])?;
    let server = Server::start(&topology::node(LAB, HARD[1]), address)?;
    let before = (cpu(&[one, other])?, cpu(&[relay])?);
    let (target, time, parallel) = (address.to_string(), seconds.to_string(), streams.to_string());
    let args = ["--client", &target, "--time", &time, "--parallel", &parallel, "--json"];
    let said = run(&mut topology::node(LAB, HARD[0]).command("iperf3", &args));
    let after = (cpu(&[one, other])?, cpu(&[relay])?);
    drop(server);
    let said: Value = serde_json::from_str(&said?).context("reading what iperf3 said")?;
    let received = |field: &str| said["end"]["sum_received"][field].as_f64().context("what iperf3 received");
    let gbit = received("bytes")? * 8.0 / 1e9;
    ensure!(gbit > 0.0, "iperf3 received nothing");
    Ok(Carried {
        gbit_per_second: received("bits_per_second")? / 1e9,
        agents: (after.0 - before.0) / gbit,
        relay: (after.1 - before.1) / gbit,
    })
}
