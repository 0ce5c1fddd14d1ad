//! How fast a relayed pair is.

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use super::{HARD, Hard};
use crate::bench::cluster::{self, mesh_address};
use crate::bench::stream::{self, Server};
use crate::bench::{Goal, LAB, Row, Spread, usage};
use crate::command::run;
use crate::net::{shaper, topology};

/// In Gbit/s.
const BY_UDP: Goal = Goal::Least(1.5);
/// Streams at once.
const STREAMS: [usize; 2] = [1, 4];

/// One turn.
struct Carried {
    gbit_per_second: f64,
    /// Of both agents, in seconds a Gbit.
    agents: f64,
    relay: f64,
}

/// The shaper hands over every packet alone and by a process, which is slower than what is measured here: it is out of the way
/// meanwhile.
pub fn measure(hard: &Hard<'_>, runs: usize, seconds: u8) -> Result<Vec<Row>> {
    stream::check_machine()?;
    let internet = topology::internet(LAB);
    let mut sites: Vec<String> = hard.lab.scenario().nodes.iter().map(|node| topology::uplink(&node.name)).collect();
    sites.push(topology::UPLINK_OUTSIDE.into());
    shaper::set_in_the_way(&internet, &sites, false)?;
    let rows = rows(hard, runs, seconds);
    shaper::set_in_the_way(&internet, &sites, true)?;
    rows
}

fn rows(hard: &Hard<'_>, runs: usize, seconds: u8) -> Result<Vec<Row>> {
    let mut rows = Vec::new();
    for streams in STREAMS {
        let turns: Vec<Carried> =
            hard.progress.step(&format!("relayed by UDP, streams: {streams}, x {runs}"), || {
                (0..runs).map(|_| carry(hard, streams, seconds)).collect::<Result<_>>()
            })?;
        let each = |of: fn(&Carried) -> f64| Spread::of(turns.iter().map(of));
        let what = |what: &str| format!("legs by UDP, TCP streams: {streams}: {what}");
        rows.push(Row::new(what("throughput"), "Gbit/s", each(|turn| turn.gbit_per_second)).goal(BY_UDP));
        rows.push(Row::new(what("CPU of both agents"), "s/Gbit", each(|turn| turn.agents)));
        rows.push(Row::new(what("CPU of the relay"), "s/Gbit", each(|turn| turn.relay)));
    }
    Ok(rows)
}

fn carry(hard: &Hard<'_>, streams: usize, seconds: u8) -> Result<Carried> {
    let (lab, by) = (hard.lab, hard.stream()?.0);
    let agents = HARD.map(|node| cluster::agent(lab, node));
    let relay = usage::running("warren-relay", &topology::node(LAB, &by)).into_iter().max();
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
