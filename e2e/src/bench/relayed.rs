//! Pairs that a relay carries, in the lab: how fast, how soon after a start, what is noticed when a relay ends, and what when a pair
//! changes between relay and direct path.
//!
//! Two nodes stand behind NATs that draw their ports and are never direct; two stand behind home routers and are direct unless the internet
//! between them drops their packets. A packet through a relay crosses the internet twice, so its round trip is 80 ms.

mod deaths;
mod direct;
mod first;
mod speed;
mod tls;

use std::cell::Cell;
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use clap::ValueEnum;

use crate::bench::cluster::{self, mesh_address, path};
use crate::bench::echo::Stream;
use crate::bench::restart::{Identity, REPLACED, Start, renew_pod, restart, whole_stream};
use crate::bench::{Goal, LAB, Row, Spread, table};
use crate::lab::Lab;
use crate::progress::Progress;
use crate::scenario::Scenario;
use crate::wait;

/// The pair that is never direct.
const HARD: [&str; 2] = ["hard-a", "hard-b"];
/// A pair that is not at rest by then stays so.
const AT_REST: Duration = Duration::from_secs(60);
/// First ping of a relayed pair, in seconds: with its identity, and with a new one.
const GOALS: [f64; 2] = [0.4, 1.0];
/// What the last table is about.
const TLS_ALONE: &str = "By a relay where only TCP to port 443 gets out";
/// 50 Hz: silences are told to 20 ms.
const OFTEN: Duration = Duration::from_millis(20);

/// What can be measured alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Piece {
    /// From end to end through the relay, without delay.
    Speed,
    /// A relay that is gone without a word, another there.
    Gone,
    /// A relay that is told to end, another there.
    ToldToEnd,
    /// A relay that is killed, another there.
    Killed,
    /// An agent that is killed and has its identity.
    IdentityKept,
    /// An agent that is killed and has a new one.
    NewIdentity,
    /// From a pair without a path to its first byte.
    FirstByte,
    /// A direct path that opens, dies without a word and heals.
    Direct,
    /// The only relay, killed and started in its place.
    OnlyKilled,
    /// The only relay, whose pod is replaced.
    OnlyReplaced,
    /// Where only TCP to port 443 gets out.
    Tls,
}

/// How much is measured.
#[derive(Clone, Copy, Debug)]
pub struct Effort<'a> {
    /// How often each figure.
    pub runs: usize,
    /// How long each TCP stream, in seconds.
    pub seconds: u8,
    /// These pieces alone; all of them if none is named.
    pub only: &'a [Piece],
}

impl Effort<'_> {
    fn wants(self, piece: Piece) -> bool {
        self.only.is_empty() || self.only.contains(&piece)
    }
}

/// Measures all of it, or what is wanted; each table is shown when it is ready.
pub fn measure(effort: Effort<'_>, progress: &Progress, mut show: impl FnMut(&str)) -> Result<()> {
    let Effort { runs, seconds, .. } = effort;
    let mut show_rows = |heading: &str, rows: &[Row]| {
        if !rows.is_empty() {
            show(&table(heading, rows));
        }
    };
    with_hard_pair(progress, |hard| {
        if effort.wants(Piece::Speed) {
            show_rows("From end to end through the relay, without delay", &speed::measure(hard, runs, seconds)?);
        }
        show_rows("When a relay ends", &ends(hard, effort)?);
        show_rows("Restarts of a relayed pair's agent", &restarts(hard, effort)?);
        if effort.wants(Piece::FirstByte) {
            show_rows("From a pair without a path to its first byte", &first::measure(hard, runs)?);
        }
        if effort.wants(Piece::Direct) {
            show_rows("Between relay and direct path", &direct::measure(hard.lab, runs, progress)?);
        }
        show_rows("When the only relay ends", &deaths::measure_only(hard, effort)?);
        if effort.wants(Piece::Tls) {
            show_rows(TLS_ALONE, &tls::measure(hard, runs, seconds)?);
        }
        Ok(())
    })
}

fn ends(hard: &Hard<'_>, effort: Effort<'_>) -> Result<Vec<Row>> {
    let mut rows = deaths::measure(hard, effort)?;
    if !rows.is_empty() {
        let count = |what, cell: &Cell<u32>| {
            Row::new(what, "times", Spread::of([f64::from(cell.get())])).goal(Goal::Limit(0.0))
        };
        rows.push(count("the pair never came to rest afterwards", &hard.stuck));
        let agreed = Spread::of([hard.agreed.get().as_secs_f64()]);
        rows.push(Row::new("at rest, until the ends name the same relay, at most", "s", agreed));
    }
    Ok(rows)
}

/// The last table alone.
pub fn measure_tls(runs: usize, seconds: u8, progress: &Progress) -> Result<String> {
    with_hard_pair(progress, |hard| Ok(table(TLS_ALONE, &tls::measure(hard, runs, seconds)?)))
}

fn with_hard_pair<T>(progress: &Progress, measure: impl FnOnce(&Hard<'_>) -> Result<T>) -> Result<T> {
    cluster::with(Scenario::paths(LAB), progress, |lab| {
        let hard = Hard { lab, progress, stuck: Cell::new(0), agreed: Cell::new(Duration::ZERO) };
        progress.step("the hard pair is relayed", || hard.stream())?;
        measure(&hard)
    })
}

/// The pair that is never direct.
struct Hard<'a> {
    lab: &'a Lab,
    progress: &'a Progress,
    /// How often it had to be brought to rest from outside.
    stuck: Cell<u32>,
    /// How long it was at rest at most before its ends named the same relay.
    agreed: Cell<Duration>,
}

impl Hard<'_> {
    /// The relay that the pair's packets go through, once both ends send there, have channels to all relays, and pings pass. A pair
    /// that does not get there by itself is counted and gets new agents.
    fn stream(&self) -> Result<(String, Stream)> {
        let open = || {
            wait::until("the hard pair to be relayed", AT_REST, || self.at_rest())?;
            let rests = Instant::now();
            let relay = wait::until("both ends to name the relay", AT_REST, || self.at_rest_and_named())?;
            self.agreed.set(self.agreed.get().max(rests.elapsed()));
            anyhow::Ok((relay, self.pings()?))
        };
        let error = match open() {
            Ok(all) => return Ok(all),
            Err(error) => error,
        };
        self.progress.say(&format!("stuck: {error:#}"));
        self.stuck.set(self.stuck.get() + 1);
        renew_pod(self.lab, HARD[0], HARD[1], "relayed")?;
        renew_pod(self.lab, HARD[1], HARD[0], "relayed")?;
        open()
    }

    /// The same while this relay is the only one, and both ends have found that out.
    fn stream_through(&self, only: &str) -> Result<Stream> {
        wait::until(&format!("{only} alone to carry the hard pair"), REPLACED, || {
            let both = self.seen()?;
            let carrier = self.carrier(&both, false)?;
            if carrier == only && both.iter().all(|path| !has_ready_leg_elsewhere(path, only)) {
                Ok(())
            } else {
                Err(format!("{carrier} does, {both:?}"))
            }
        })?;
        self.pings()
    }

    fn pings(&self) -> Result<Stream> {
        whole_stream(self.lab, HARD[0], mesh_address(self.lab, HARD[1])?, OFTEN)
    }

    fn seen(&self) -> Result<[serde_json::Value; 2], String> {
        let seen = |from, to| path(self.lab, from, to).ok_or_else(|| format!("{from} does not know {to}"));
        Ok([seen(HARD[0], HARD[1])?, seen(HARD[1], HARD[0])?])
    }

    fn at_rest_and_named(&self) -> Result<String, String> {
        let both = self.seen()?;
        let relay = self.carrier(&both, true)?;
        let named = both.each_ref().map(|path| path["relay"].as_str());
        if named == [Some(relay.as_str()); 2] {
            Ok(relay)
        } else {
            Err(format!("packets go through {relay}, and the ends name {named:?}"))
        }
    }

    fn at_rest(&self) -> Result<String, String> {
        self.carrier(&self.seen()?, true)
    }

    /// What an agent says of its relay is one thing; where WireGuard sends is where the packets go.
    fn carrier(&self, both: &[serde_json::Value; 2], with_all_channels: bool) -> Result<String, String> {
        let is_relayed = both.iter().all(|path| path["state"] == "relayed");
        let through = both.each_ref().map(|path| self.relay_at(path["endpoint"].as_str()));
        match through {
            [Some(one), Some(other)]
                if is_relayed
                    && one == other
                    && (!with_all_channels || HARD.iter().all(|node| has_channels(self.lab, node))) =>
            {
                Ok(one.to_owned())
            }
            _ => Err(format!("{both:?}")),
        }
    }

    fn relay_at(&self, endpoint: Option<&str>) -> Option<&str> {
        let at: SocketAddr = endpoint?.parse().ok()?;
        let mut nodes = self.lab.scenario().nodes.iter();
        nodes.find(|node| IpAddr::V4(node.outer_v4()) == at.ip()).map(|node| node.name.as_str())
    }
}

fn has_ready_leg_elsewhere(path: &serde_json::Value, relay: &str) -> bool {
    let legs = path["legs"].as_array().map(Vec::as_slice).unwrap_or_default();
    legs.iter().any(|leg| leg["phase"] == "ready" && leg["relay"] != relay)
}

fn has_channels(lab: &Lab, node: &str) -> bool {
    let status = crate::agent::ask(lab, node, "/v1/status").unwrap_or_default();
    let relays = status["relays"].as_array().map(Vec::as_slice).unwrap_or_default();
    !relays.is_empty() && relays.iter().all(|relay| relay["state"] == "open")
}

/// The nodes on which a relay runs, but for this one.
fn other_relays(lab: &Lab, relay: &str) -> Result<Vec<String>> {
    let list = lab.kubectl_json(&["get", "meshrelays"])?;
    let items = list["items"].as_array().context("a list of relays")?;
    Ok(items
        .iter()
        .filter_map(|item| item["metadata"]["name"].as_str())
        .filter(|name| *name != relay)
        .map(String::from)
        .collect())
}

fn restarts(hard: &Hard<'_>, effort: Effort<'_>) -> Result<Vec<Row>> {
    let (mut rows, runs) = (Vec::new(), effort.runs);
    let both = [(Identity::Kept, Piece::IdentityKept), (Identity::New, Piece::NewIdentity)];
    for (identity, _) in both.into_iter().filter(|(_, piece)| effort.wants(*piece)) {
        let starts: Vec<Start> = hard.progress.step(&format!("relayed pair, {} x {runs}", identity.name()), || {
            (0..runs).map(|_| restart(hard.lab, HARD[0], HARD[1], "relayed", identity)).collect::<Result<_>>()
        })?;
        let each = |of: fn(&Start) -> f64| Spread::of(starts.iter().map(of));
        let what = |what: &str| format!("{}: {what}", identity.name());
        let goal = Goal::Most(GOALS[identity as usize]);
        rows.push(Row::new(what("start to first ping"), "s", each(|start| start.first_ping)).goal(goal));
        rows.push(Row::new(what("start to relayed"), "s", each(|start| start.settled)));
        if identity == Identity::Kept {
            rows.push(Row::new(what("outage of a killed agent"), "s", each(|start| start.outage)));
        }
    }
    Ok(rows)
}
