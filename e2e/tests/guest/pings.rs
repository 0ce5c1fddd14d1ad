//! Steady pings through the mesh while something happens.
//!
//! Each stream has an identifier of its own, with which one ping is answered before the stream begins. A kernel that tracks connections
//! knows pings by their identifier, and of two that come in one batch before it knows them it drops the second (`insert_failed` and
//! `drop` in `/proc/net/stat/nf_conntrack`): a virtual machine that was not given its processor for a tenth of a second gets
//! such batches.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use e2e::guest::SHELL;
use e2e::lab::Lab;

use crate::tracking::ThrownAway;
use crate::{A, B, PUB};

/// Ten a second.
const INTERVAL: &str = "0.1";
const A_SECOND: u64 = 10;

/// What became of the pings of all streams.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Pings {
    /// Sent.
    pub sent: u64,
    /// Sent, and nothing came back.
    pub lost: u64,
}

impl fmt::Display for Pings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} of {} pings lost", self.lost, self.sent)
    }
}

/// The mesh addresses of all that take part. The operator assigned them for good.
#[derive(Clone, Debug)]
pub struct Addresses {
    pub a: String,
    pub b: String,
    pub public: String,
}

impl Addresses {
    /// Asks the API server, once: agents and API server may be gone later.
    pub fn read(lab: &Lab) -> Result<Self> {
        let nodes = lab.kubectl_json(&["get", "meshnodes"])?;
        let items = nodes["items"].as_array().context("a list of MeshNodes")?;
        let of = |name: &str| -> Result<String> {
            let node = items.iter().find(|node| node["metadata"]["name"] == name);
            let first = node.and_then(|node| node["spec"]["meshIPs"][0].as_str());
            let first = first.with_context(|| format!("{name} has no mesh address"))?;
            Ok(first.split('/').next().unwrap_or(first).to_owned())
        };
        Ok(Self { a: of(A)?, b: of(B)?, public: of(PUB)? })
    }

    /// That of this node.
    pub fn of(&self, node: &str) -> &str {
        match node {
            A => &self.a,
            B => &self.b,
            _ => &self.public,
        }
    }
}

/// One direction between two nodes.
struct Stream<'a> {
    from: &'a str,
    to: &'a str,
    /// What the pings carry, so that they are one connection to those who track connections.
    identifier: u16,
}

/// Pings between the guests, both ways, and from each to an ordinary node, while `happens` runs.
pub fn during(lab: &Lab, to: &Addresses, time: Duration, happens: impl FnOnce() -> Result<()>) -> Result<Pings> {
    let pairs = [(A, &to.b), (B, &to.a), (A, &to.public), (B, &to.public)];
    let streams: Vec<_> = (1..).zip(pairs).map(|(identifier, (from, to))| Stream { from, to, identifier }).collect();
    for stream in &streams {
        stream.begin(lab)?;
    }
    std::thread::scope(|scope| {
        let running: Vec<_> = streams.iter().map(|stream| scope.spawn(|| stream.run(lab, time))).collect();
        let happened = happens();
        let mut all = Pings::default();
        for thread in running {
            let one = thread.join().expect("a stream does not panic")?;
            all = Pings { sent: all.sent + one.sent, lost: all.lost + one.lost };
        }
        happened.map(|()| all)
    })
}

/// The same, and none may be lost.
pub fn none_lost(lab: &Lab, time: Duration, what: &str, happens: impl FnOnce() -> Result<()>) -> Result<()> {
    let before = ThrownAway::read(lab)?;
    let pings = during(lab, &Addresses::read(lab)?, time, happens)?;
    eprintln!("           {what}: {pings}");
    if pings.lost > 0 {
        let thrown_away = ThrownAway::read(lab)?.since(&before);
        eprintln!("           thrown away by connection tracking meanwhile: {thrown_away:?}");
    }
    ensure!(pings.sent >= 4 * A_SECOND * time.as_secs(), "{what}: only {} pings were sent", pings.sent);
    ensure!(pings.lost == 0, "{what}: {pings}");
    Ok(())
}

impl Stream<'_> {
    /// One ping that is answered, so that everybody on the way knows the stream.
    fn begin(&self, lab: &Lab) -> Result<()> {
        let identifier = self.identifier.to_string();
        // With a deadline it asks again each second until there is an answer.
        let args = ["-n", "-q", "-c", "1", "-w", "10", "-e", &identifier, self.to];
        lab.exec(self.from, "ping", &args)
            .with_context(|| format!("{} to {}: the first ping", self.from, self.to))
            .map(drop)
    }

    /// All of them; returns what became of each.
    fn run(&self, lab: &Lab, time: Duration) -> Result<Pings> {
        let Self { from, to, identifier } = self;
        let count = time.as_secs() * A_SECOND;
        // Exit status 1 is what ping says of an answer that did not come; the numbers say more.
        let script = format!("ping -n -D -e {identifier} -i {INTERVAL} -W 5 -c {count} {to}; [ $? -le 1 ]");
        let said = lab.exec(from, SHELL, &["-c", &script])?;
        let sent = said.split_once(" packets transmitted");
        let sent = sent.and_then(|(start, _)| start.rsplit('\n').next()?.parse().ok());
        let sent: u64 = sent.with_context(|| format!("reading {said:?}"))?;
        let answered: BTreeMap<u64, &str> = said.lines().filter_map(answer).collect();
        let missing: Vec<u64> = (1..=sent).filter(|sequence| !answered.contains_key(sequence)).collect();
        for sequence in &missing {
            let before = answered.range(..sequence).next_back().map_or("never", |(_, at)| at);
            eprintln!(
                "           {from} to {to}: ping {sequence} of {sent} was lost; the last answer before it came at {before}"
            );
        }
        Ok(Pings { sent, lost: missing.len() as u64 })
    }
}

/// Number and time of an answer: `[1764332949.9] 64 bytes from 10.0.0.1: icmp_seq=7 ttl=64 time=1.2 ms`.
fn answer(line: &str) -> Option<(u64, &str)> {
    let (time, rest) = line.strip_prefix('[')?.split_once(']')?;
    let (_, rest) = rest.split_once("icmp_seq=")?;
    let (sequence, rest) = rest.split_once(' ')?;
    rest.contains("time=").then_some((sequence.parse().ok()?, time))
}
