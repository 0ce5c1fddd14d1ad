//! Warren's userspace device against wireguard-go under every load, with few and with many peers.

use std::collections::BTreeMap;
use std::path::PathBuf;

use anyhow::{Context, Result};

use crate::bench::Goal;
use crate::bench::datagrams::{self, Delivered};
use crate::bench::pair::{self, Pair};
use crate::bench::program::{End, Kind};
use crate::bench::stream::{Carried, Shape, carry};
use crate::bench::versus::{self, Versus};
use crate::progress::Progress;

const KINDS: [Kind; 2] = [Kind::Warren, Kind::WireguardGo];
/// What Warren's device is to be, and what its packets may cost.
const FASTER: Goal = Goal::Least(1.5);
const CHEAPER: Goal = Goal::Most(0.67);

/// What one turn measured.
#[derive(Clone, Debug)]
struct Turn {
    /// In the order of [`Shape::ALL`].
    carried: Vec<Carried>,
    delivered: Delivered,
    idle_ping: f64,
    rss_mib: f64,
}

/// Measures with each number of peers and returns a table for each.
pub fn measure(peers: &[usize], rounds: usize, seconds: u8, progress: &Progress) -> Result<Vec<String>> {
    let programs = pair::build(&KINDS, progress)?;
    let programs: [(Kind, PathBuf); 2] = programs.try_into().ok().context("both programs are needed")?;
    let mut turns: BTreeMap<usize, Vec<(Turn, Turn)>> = BTreeMap::new();
    pair::with_cable(|ends| {
        for round in 1..=rounds {
            for count in peers {
                let both = both(ends, &programs, *count, round, seconds, progress)?;
                turns.entry(*count).or_default().push(both);
            }
        }
        Ok(())
    })?;
    let table = |(peers, rounds): (&usize, &Vec<(Turn, Turn)>)| {
        let heading = format!("Userspace, {peers} peer{} at each end", if *peers == 1 { "" } else { "s" });
        versus::table(&heading, KINDS.map(Kind::name), &compare(rounds))
    };
    Ok(turns.iter().map(table).collect())
}

/// A turn of each; who is first alternates.
fn both(
    ends: &[End; 2],
    programs: &[(Kind, PathBuf); 2],
    peers: usize,
    round: usize,
    seconds: u8,
    progress: &Progress,
) -> Result<(Turn, Turn)> {
    let one = |(kind, program): &(Kind, PathBuf)| {
        let name = format!("round {round}, {peers} peers: {}", kind.name());
        progress.step(&name, || Pair::with(ends, (*kind, program), peers, |pair| turn(pair, seconds)))
    };
    if round % 2 == 1 {
        let ours = one(&programs[0])?;
        Ok((ours, one(&programs[1])?))
    } else {
        let theirs = one(&programs[1])?;
        Ok((one(&programs[0])?, theirs))
    }
}

fn turn(pair: &Pair<'_>, seconds: u8) -> Result<Turn> {
    let carried = Shape::ALL.iter().map(|shape| carry(pair, *shape, seconds)).collect::<Result<_>>()?;
    let delivered = datagrams::highest(pair)?;
    Ok(Turn { carried, delivered, idle_ping: pair.idle_ping, rss_mib: pair.usage()?.rss_mib })
}

fn compare(rounds: &[(Turn, Turn)]) -> Vec<Versus> {
    let pairs = |of: &dyn Fn(&Turn) -> f64| -> Vec<(f64, f64)> {
        rounds.iter().map(|(ours, theirs)| (of(ours), of(theirs))).collect()
    };
    let row = |what: &str, unit, goal, of: &dyn Fn(&Turn) -> f64| Versus::new(what, unit, &pairs(of), goal);
    let mut rows = Vec::new();
    for (at, shape) in Shape::ALL.iter().enumerate() {
        rows.push(row(shape.name(), "Gbit/s", FASTER, &|turn| turn.carried[at].gbit_per_second));
        let cpu = format!("{}: CPU of both ends", shape.name());
        rows.push(row(&cpu, "s/Gbit", CHEAPER, &|turn| turn.carried[at].cpu_per_gbit));
    }
    let datagrams = format!("UDP datagrams of {} bytes, highest rate delivered", datagrams::BYTES);
    rows.push(row(&datagrams, "1,000/s", FASTER, &|turn| turn.delivered.thousands_per_second));
    rows.push(Versus::beside("lost at that rate", "%", &pairs(&|turn| turn.delivered.lost_percent)));
    rows.push(row("ping, idle", "ms", Goal::None, &|turn| turn.idle_ping));
    for (at, shape) in Shape::ALL.iter().enumerate() {
        let ping = format!("ping, {}", shape.name());
        rows.push(row(&ping, "ms", Goal::None, &|turn| turn.carried[at].ping));
    }
    rows.push(row("memory after load", "MiB", Goal::None, &|turn| turn.rss_mib));
    rows
}
