//! What connection tracking throws away on the way between the guests, for whoever has to explain a lost ping.

use std::collections::BTreeMap;

use anyhow::{Context, Result};
use e2e::command::run;
use e2e::lab::Lab;
use e2e::net::topology;

use crate::relayed::scene::RELAYS;
use crate::{A, B};

const COUNTERS: &str = "/proc/net/stat/nf_conntrack";
/// Packets of a connection that could not be entered, because another packet had just entered it, and those dropped for that or another reason.
const THROWN_AWAY: [&str; 2] = ["insert_failed", "drop"];

/// So many packets each kernel on the way has thrown away so far: the guests', their routers' and those of the nodes with relays.
#[derive(Debug)]
pub struct ThrownAway(BTreeMap<String, u64>);

impl ThrownAway {
    /// Reads all counters.
    pub fn read(lab: &Lab) -> Result<Self> {
        let mut all = BTreeMap::new();
        for node in [A, B].iter().chain(&RELAYS) {
            let said = lab.exec(node, "cat", &[COUNTERS])?;
            all.insert((*node).to_owned(), sum(&said).with_context(|| format!("{COUNTERS} of {node}"))?);
        }
        for guest in [A, B] {
            let router = topology::router(&lab.scenario().name, guest);
            let said = run(&mut router.command("cat", &[COUNTERS]))?;
            all.insert(format!("the router of {guest}"), sum(&said).context("counters of a router")?);
        }
        Ok(Self(all))
    }

    /// Where there are more than before, and how many.
    pub fn since(&self, before: &Self) -> Vec<String> {
        let more = |(place, now): (&String, &u64)| {
            let more = now.saturating_sub(*before.0.get(place).unwrap_or(&0));
            (more > 0).then(|| format!("{more} at {place}"))
        };
        self.0.iter().filter_map(more).collect()
    }
}

/// Adds up the rows, one for each processor, of hexadecimal columns below their names.
fn sum(table: &str) -> Option<u64> {
    let mut lines = table.lines();
    let names: Vec<&str> = lines.next()?.split_whitespace().collect();
    let columns = THROWN_AWAY.map(|name| names.iter().position(|known| *known == name));
    lines.try_fold(0, |sum, line| {
        let fields: Vec<&str> = line.split_whitespace().collect();
        let of = |column: &Option<usize>| u64::from_str_radix(fields.get((*column)?)?, 16).ok();
        Some(sum + of(&columns[0])? + of(&columns[1])?)
    })
}
