//! The hard pair while nothing but TCP to port 443 leaves one of its sites, or both: its packets go inside channels to a relay.

use anyhow::Result;

use super::{GOALS, HARD, Hard, speed};
use crate::bench::cluster::path;
use crate::bench::restart::{Identity, REPLACED, Start, is_whole, restart};
use crate::bench::{Goal, Row, Spread};
use crate::lab::Lab;
use crate::net::{router, topology};
use crate::scenario::{API_PORT, Site};
use crate::wait;

pub fn measure(hard: &Hard<'_>, runs: usize, seconds: u8) -> Result<Vec<Row>> {
    let lab = hard.lab;
    topology::node(&lab.scenario().name, &lab.scenario().control_plane().name).nft(&router::api_front())?;
    let mut rows = Vec::new();
    for (ends, what) in [(1, "one end has TCP 443 alone"), (2, "both ends have TCP 443 alone")] {
        let pings = hard.pings()?;
        let _closed = HARD[..ends].iter().map(|node| Closed::new(lab, node)).collect::<Result<Vec<_>>>()?;
        let settled = || wait::until(&format!("{what}, and a relay carries"), REPLACED, || carried(lab, ends));
        let silence = hard.progress.step(what, || {
            settled()?;
            wait::until("the pings to be whole", REPLACED, || is_whole(&pings))?;
            anyhow::Ok(pings.stop().outage)
        })?;
        rows.push(Row::new(format!("{what}: longest silence when all else is shut"), "s", Spread::of([silence])));
        rows.extend(speed::measure_tls(hard, what, (runs, seconds), settled)?);
        let starts: Vec<Start> = hard.progress.step(&format!("{what}: restarts, x {runs}"), || {
            let kept = Identity::Kept;
            (0..runs).map(|_| restart(lab, HARD[0], HARD[1], "relayed", kept)).collect::<Result<_>>()
        })?;
        let first = Spread::of(starts.iter().map(|start| start.first_ping));
        let goal = Goal::Most(GOALS[Identity::Kept as usize]);
        rows.push(Row::new(format!("{what}, identity kept: start to first ping"), "s", first).goal(goal));
    }
    Ok(rows)
}

/// The relay that carries the pair, once those ends that have nothing but TLS say that it does so over TLS.
fn carried(lab: &Lab, ends: usize) -> Result<String, String> {
    let seen = |from, to| path(lab, from, to).ok_or_else(|| format!("{from} does not know {to}"));
    let both = [seen(HARD[0], HARD[1])?, seen(HARD[1], HARD[0])?];
    let [one, other] = both.each_ref().map(|path| path["relay"].as_str().filter(|_| path["state"] == "relayed"));
    let over_tls = both.iter().take(ends).all(|path| path["transport"] == "tls");
    match one {
        Some(relay) if one == other && over_tls => Ok(relay.to_owned()),
        _ => Err(format!("{both:?}")),
    }
}

/// A site that lets nothing but TCP to port 443 out, until this is dropped.
struct Closed<'a> {
    lab: &'a Lab,
    node: &'a str,
}

impl<'a> Closed<'a> {
    fn new(lab: &'a Lab, node: &'a str) -> Result<Self> {
        let closed = Self { lab, node };
        let (wan, wan6) = lab.node(node)?.uplink();
        topology::change_site(lab.scenario(), node, &Site::OnlyTls { wan, wan6 })?;
        // Connections to the API server from before have its own port. Nobody waits for their end.
        topology::router(&lab.scenario().name, node).nft(&format!(
            "table inet bench-reset {{
               chain forward {{
                 type filter hook forward priority -2;
                 iifname lan tcp dport {API_PORT} reject with tcp reset
               }}
             }}"
        ))?;
        Ok(closed)
    }
}

impl Drop for Closed<'_> {
    fn drop(&mut self) {
        // What fails here shows in whatever is measured next.
        let _ =
            self.lab.node(self.node).and_then(|node| topology::change_site(self.lab.scenario(), self.node, &node.site));
    }
}
