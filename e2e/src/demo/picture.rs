//! Draws a lab, its ping matrix and its paths as text. Pure.

use std::collections::BTreeMap;

use crate::scenario::{Connection, Node, Scenario, Site};
use crate::workload::Matrix;

/// Longest reason printed in a cell's footnote.
const REASON: usize = 160;

/// The internet in the middle, a line per site.
#[must_use]
pub fn topology(scenario: &Scenario) -> String {
    let mut lines = vec!["                 THE INTERNET".to_owned(), "                      │".to_owned()];
    for (index, node) in scenario.nodes.iter().enumerate() {
        let last = index + 1 == scenario.nodes.len();
        let role = if index == 0 { "control plane and node" } else { "node" };
        lines.push(format!("                      {}── {}", if last { "└" } else { "├" }, site(node)));
        let stem = if last { " " } else { "│" };
        lines.push(format!("                      {stem}        └─ [{}]  {}  {role}", node.name, node.v4));
        lines.push(format!("                      {stem}"));
    }
    lines.pop();
    let delay = match scenario.delay_ms {
        0 => String::new(),
        delay => format!("\n   every packet between two sites takes {delay} ms more, each way"),
    };
    lines.join("\n") + &delay + "\n"
}

fn site(node: &Node) -> String {
    match &node.site {
        Site::Public => format!("{}  a public address", node.v4.addr()),
        Site::Home { wan, shift, .. } => {
            format!("{}  home router: NAT, WireGuard's port moves by {shift}, nothing unasked comes in", wan.addr())
        }
        Site::Hard { wan, .. } => {
            format!("{}  NAT that draws a port for each destination, nothing unasked comes in", wan.addr())
        }
        Site::Plain { wan, .. } => format!("{}  Linux box that masquerades and drops nothing", wan.addr()),
        Site::OnlyTls { wan, .. } => format!("{}  NAT that lets TCP to port 443 out and nothing else", wan.addr()),
        Site::Firewall { wan, .. } => format!("{}  stateful firewall, no NAT, nothing unasked comes in", wan.addr()),
        Site::OneToOne { wan, .. } => format!("{}  1:1 NAT", wan.addr()),
    }
}

/// Rows reach columns.
#[must_use]
pub fn matrix(scenario: &Scenario, matrix: &Matrix) -> String {
    table(scenario, matrix, |cell| match cell {
        Ok(ms) => (format!("{ms:.1}"), None),
        Err(reason) => ("FAIL".to_owned(), Some(reason.chars().take(REASON).collect())),
    })
}

/// How nodes reach each other, by row and column.
pub type Paths = BTreeMap<String, BTreeMap<String, Path>>;

/// How a node reaches another.
#[derive(Debug)]
pub struct Path {
    /// `direct`, `relayed`, `connecting` or `down`.
    pub state: String,
    /// The relay that carries it, or nothing.
    pub relay: String,
    /// How packets get to that relay: `udp`, or `tls` or `quic` inside the channel.
    pub transport: String,
    /// Why it is not direct, or nothing.
    pub reason: String,
}

impl Path {
    /// Whether it goes inside a channel to a relay, because UDP does not get there.
    fn is_carried(&self) -> bool {
        self.state == "relayed" && !["", "udp"].contains(&self.transport.as_str())
    }

    fn is_over_tls(&self) -> bool {
        self.is_carried() && self.transport == "tls"
    }

    /// Whether it is as good as it can be between those two and, if that is not direct, everything was tried and it says why.
    #[must_use]
    pub fn is_at_its_best(&self, wanted: Connection) -> bool {
        let is_relayed = self.state == "relayed" && !["", "NotTriedYet"].contains(&self.reason.as_str());
        match wanted {
            Connection::Direct => self.state == "direct",
            // To a relay on the node itself by QUIC, and to others by UDP.
            Connection::Relayed => is_relayed && !self.is_over_tls(),
            Connection::Tls => is_relayed && self.is_over_tls(),
        }
    }
}

/// What of the paths is direct and what is not, and why.
#[must_use]
pub fn paths(scenario: &Scenario, paths: &Paths) -> String {
    table(scenario, paths, |path| {
        let over = if path.is_carried() { format!(" over {}", path.transport) } else { String::new() };
        let by = if path.relay.is_empty() { String::new() } else { format!("by the relay on {}{over}, ", path.relay) };
        let why = (path.state != "direct").then(|| format!("{by}because of {}", path.reason));
        (if path.is_over_tls() { "TLS".to_owned() } else { path.state.clone() }, why)
    })
}

/// A table of cells, each with its text and perhaps a footnote.
fn table<T>(
    scenario: &Scenario,
    cells: &BTreeMap<String, BTreeMap<String, T>>,
    show: impl Fn(&T) -> (String, Option<String>),
) -> String {
    let names: Vec<&str> =
        scenario.nodes.iter().map(|node| node.name.as_str()).filter(|name| cells.contains_key(*name)).collect();
    let width = names.iter().map(|name| name.len()).max().unwrap_or(0).max(7) + 2;
    let mut text = format!("{:width$}", "");
    for name in &names {
        text += &format!("{name:>width$}");
    }
    let mut notes = String::new();
    for from in &names {
        text += &format!("\n{from:<width$}");
        for to in &names {
            let shown = cells.get(*from).and_then(|row| row.get(*to)).map(&show);
            let (cell, note) = shown.unwrap_or_else(|| ("-".to_owned(), None));
            text += &format!("{cell:>width$}");
            if let Some(note) = note {
                notes += &format!("\n  {from} to {to}: {note}");
            }
        }
    }
    text + &notes + "\n"
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_node_is_in_the_picture() {
        let scenario = Scenario::demo("t");
        let picture = topology(&scenario);
        assert!(scenario.nodes.iter().all(|node| picture.contains(&format!("[{}]", node.name))), "{picture}");
    }

    #[test]
    fn a_relayed_pair_says_by_whom_and_why() {
        let path = |state: &str, relay: &str, reason: &str| Path {
            state: state.into(),
            relay: relay.into(),
            transport: if reason == "UDPBlocked" { "tls" } else { "udp" }.into(),
            reason: reason.into(),
        };
        let mut cells = Paths::new();
        cells.entry("cp".into()).or_default().insert("hard".into(), path("direct", "", ""));
        cells.entry("hard".into()).or_default().insert("home-a".into(), path("relayed", "cp", "HardNAT"));
        cells.entry("home-a".into()).or_default().insert("hard".into(), path("down", "", "NoAnswer"));
        cells.entry("tls".into()).or_default().insert("cp".into(), path("relayed", "pub", "UDPBlocked"));
        let text = paths(&Scenario::demo("t"), &cells);
        assert!(text.contains("tls to cp: by the relay on pub over tls, because of UDPBlocked"), "{text}");
        assert!(text.contains("TLS"), "{text}");
        assert!(text.contains("hard to home-a: by the relay on cp, because of HardNAT\n"), "{text}");
        assert!(text.contains("home-a to hard: because of NoAnswer"), "{text}");
        assert!(!text.contains("cp to hard:"), "{text}");
    }

    #[test]
    fn a_failed_cell_has_a_footnote() {
        let mut cells = Matrix::new();
        cells.entry("cp".into()).or_default().insert("fw".into(), Err("timed out".into()));
        cells.entry("fw".into()).or_default().insert("cp".into(), Ok(10.34));
        let text = matrix(&Scenario::demo("t"), &cells);
        assert!(text.contains("FAIL") && text.contains("10.3") && text.contains("cp to fw: timed out"), "{text}");
    }
}
