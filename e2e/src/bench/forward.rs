//! What the relay forwards, beside the kernel's own NAT, which is the limit, and coturn as a TURN relay, which others use for this.
//!
//! The same datagrams go from one namespace through a second into a third, one direction, in turns within each round. As many are under way
//! at a time as a window allows, so that each program sets its own pace and none loses anything by being flooded. Sender, receiver and
//! what is measured share the machine.

mod leg;
mod load;
mod memory;
mod tls;
mod turn;
mod way;
mod wires;

use anyhow::Result;

use crate::bench::versus::{self, Versus};
use crate::bench::{Goal, Row, Spread, table};
use crate::progress::Progress;
use load::{Carried, Shape};
use way::Way;
use wires::Wires;

/// Pairs of nodes that talk at a time.
const PAIRS: [usize; 3] = [1, 10, 1000];
/// As `relay.md` of the design has them: of coturn, of the kernel, and in bytes.
const TIMES_COTURN: Goal = Goal::Least(3.0);
const OF_THE_LIMIT: Goal = Goal::Least(0.5);
const BYTES_AN_ALLOCATION: Goal = Goal::Most(4096.0);
/// Allocations for their memory.
const ALLOCATIONS: usize = 10_000;

/// Measures the TLS path alone; every table is in Markdown.
pub fn measure_tls(rounds: usize, seconds: u8, progress: &Progress) -> Result<Vec<String>> {
    tls::measure(&Wires::new()?, rounds, seconds, progress)
}

/// Measures the way of single datagrams alone.
pub fn measure_latency(rounds: usize, progress: &Progress) -> Result<String> {
    Ok(table("What it adds", &latencies(&Wires::new()?, rounds, progress)?))
}

fn latencies(wires: &Wires, rounds: usize, progress: &Progress) -> Result<Vec<Row>> {
    let mut turns: [Vec<f64>; 3] = Default::default();
    for round in 1..=rounds {
        for (way, turns) in Way::ALL.into_iter().zip(&mut turns) {
            let what = format!("round {round} of {rounds}: {}, latency", way.name());
            turns.push(progress.step(&what, || load::latency(&way.open(wires, 1)?))?);
        }
    }
    let [relay, ..] = &turns;
    let what = "time of a datagram of 128 bytes on its way";
    let times = Way::ALL
        .iter()
        .zip(&turns)
        .map(|(way, turns)| Row::new(format!("{what}, {}", way.name()), "us", Spread::of(turns.iter().copied())));
    let ratios = [(Way::Kernel, &turns[1]), (Way::Coturn, &turns[2])].map(|(other, theirs)| {
        let ratio = Spread::of(relay.iter().zip(theirs).map(|(ours, theirs)| ours / theirs));
        Row::new(format!("{what}, relay / {}", other.name()), "ratio", ratio)
    });
    Ok(times.chain(ratios).collect())
}

/// Measures all of it; every table is in Markdown.
pub fn measure(rounds: usize, seconds: u8, progress: &Progress) -> Result<Vec<String>> {
    let wires = Wires::new()?;
    let mut tables = Vec::new();
    let (mut limit, mut coturn, mut per_core, mut latency) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    for pairs in PAIRS {
        for shape in Shape::ALL {
            let mut all: [Vec<Carried>; 3] = Default::default();
            for round in 1..=rounds {
                for (way, turns) in Way::ALL.into_iter().zip(&mut all) {
                    let what = format!("round {round} of {rounds}: {}, {}", way.name(), shape.name(pairs));
                    turns.push(progress.step(&what, || {
                        let carrier = way.open(&wires, pairs)?;
                        load::carry(&carrier, shape, seconds)
                    })?);
                }
            }
            let [relay, kernel, turn] = &all;
            let beside = |other: &[Carried], of: fn(&Carried) -> f64| -> Vec<(f64, f64)> {
                relay.iter().zip(other).map(|(ours, theirs)| (of(ours), of(theirs))).collect()
            };
            let (name, unit) = (shape.name(pairs), shape.unit());
            limit.push(Versus::new(&name, unit, &beside(kernel, |c| c.rate), OF_THE_LIMIT));
            coturn.push(Versus::new(&name, unit, &beside(turn, |c| c.rate), TIMES_COTURN));
            let cpu = |c: &Carried| c.rate_per_core.unwrap_or(f64::NAN);
            per_core.push(Versus::new(&name, unit, &beside(turn, cpu), TIMES_COTURN));
        }
    }
    latency.extend(latencies(&wires, rounds, progress)?);
    let bytes = progress.step("memory of idle allocations", || memory::per_allocation(&wires, ALLOCATIONS))?;
    latency.push(
        Row::new(format!("memory of an idle allocation, of {ALLOCATIONS}"), "bytes", Spread::of([bytes]))
            .goal(BYTES_AN_ALLOCATION),
    );
    tables.push(versus::table("What the relay forwards, beside the kernel's NAT", ["relay", "kernel"], &limit));
    tables.push(versus::table("What the relay forwards, beside coturn", ["relay", "coturn"], &coturn));
    tables.push(versus::table("The same for each core that the program itself uses", ["relay", "coturn"], &per_core));
    tables.push(table("What it adds", &latency));
    tables.extend(tls::measure(&wires, rounds, seconds, progress)?);
    Ok(tables)
}
