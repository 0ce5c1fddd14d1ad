//! One TCP stream through a pair of userspace WireGuards, each kind in turn, several rounds of turns.

use std::collections::BTreeMap;

use anyhow::Result;

use crate::bench::pair::{self, Pair};
use crate::bench::program::Kind;
use crate::bench::stream::{Shape, carry};
use crate::bench::{Goal, Row, Spread};
use crate::progress::Progress;

/// What the userspace device is to be against wireguard-go, and at what share of its CPU.
const FASTER: Goal = Goal::Least(1.5);

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
pub fn measure(rounds: usize, seconds: u8, progress: &Progress) -> Result<Vec<Row>> {
    let programs = pair::build(&Kind::ALL, progress)?;
    let mut turns: BTreeMap<Kind, Vec<Turn>> = BTreeMap::new();
    pair::with_cable(|ends| {
        for round in 1..=rounds {
            for (kind, program) in &programs {
                let name = format!("round {round} of {rounds}: {}", kind.name());
                let turn = progress.step(&name, || Pair::with(ends, (*kind, program), 1, |pair| turn(pair, seconds)));
                turns.entry(*kind).or_default().push(turn?);
            }
        }
        Ok(())
    })?;
    Ok(compare(&turns))
}

fn turn(pair: &Pair<'_>, seconds: u8) -> Result<Turn> {
    let carried = carry(pair, Shape::One, seconds)?;
    Ok(Turn {
        gbit_per_second: carried.gbit_per_second,
        cpu_per_gbit: carried.cpu_per_gbit,
        rss_mib: pair.usage()?.rss_mib,
        idle_ping: pair.idle_ping,
        loaded_ping: carried.ping,
    })
}

/// Ratios are taken round by round: what else the machine does in that minute is in both numbers.
fn compare(turns: &BTreeMap<Kind, Vec<Turn>>) -> Vec<Row> {
    let ours = &turns[&Kind::Warren];
    let mut rows = Vec::new();
    for (kind, theirs) in turns.iter().filter(|(kind, _)| **kind != Kind::Warren) {
        let ratio = |of: fn(&Turn) -> f64| Spread::of(ours.iter().zip(theirs).map(|(our, their)| of(our) / of(their)));
        let name = kind.name();
        let faster = Row::new(format!("throughput, Warren / {name}"), "ratio", ratio(|turn| turn.gbit_per_second));
        rows.push(if *kind == Kind::WireguardGo { faster.goal(FASTER) } else { faster });
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
