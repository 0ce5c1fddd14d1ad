//! What an uninstall and a cleanup leave on a node: the whole of its network, taken before and after and compared.
//!
//! A [`Snapshot`] is text of the kernel's and the file system's, cut into blocks (an interface, a table's chain, a list of
//! routes) whose order does not count; the order of lines within a block does. Left out is what nobody configures: packet counters,
//! lifetimes and the number of connections.

use std::collections::BTreeMap;
use std::fmt::Write;

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::images::{TAG, workspace};
use crate::lab::Lab;
use crate::warren::NAMESPACE;

/// What the manifest in the documentation waits for when it is applied.
const CLEANUP: &str = "daemonset/warren-cleanup";
/// A start of two containers on each node of a busy machine.
const CLEAN: &str = "--timeout=180s";
/// Listed one block a line or a command: title, program, arguments.
const LISTS: [(&str, &str, &[&str]); 8] = [
    ("interface", "ip", &["-d", "-o", "link"]),
    ("address", "ip", &["-o", "address"]),
    ("IPv4 rules", "ip", &["-4", "rule"]),
    ("IPv6 rules", "ip", &["-6", "rule"]),
    ("IPv4 routes", "ip", &["-4", "route", "show", "table", "all"]),
    ("IPv6 routes", "ip", &["-6", "route", "show", "table", "all"]),
    ("sysctl", "sysctl", &["-a", "-e", "-r", "^net\\."]),
    // Folders without content are nobody's; containerd's own record of its containers is not the network's.
    (
        "file",
        "find",
        &["/etc/cni", "/run", "/var/lib/cni", "-path", "/run/containerd", "-prune", "-o", "!", "-type", "d", "-print"],
    ),
];
/// Settings that the kernel moves by itself.
const MOVING: [&str; 2] = ["net.netfilter.nf_conntrack_count", "net.ipv6.conf.all.stable_secret"];

/// A node's network at one moment.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Snapshot(BTreeMap<String, Vec<String>>);

impl Snapshot {
    /// Takes it.
    pub fn take(lab: &Lab, node: &str) -> Result<Self> {
        let mut blocks = BTreeMap::new();
        for (title, program, args) in LISTS {
            let text = lab.exec(node, program, args)?;
            let lines = text.lines().map(tidy).filter(|line| !MOVING.iter().any(|name| line.starts_with(name)));
            let mut lines: Vec<String> = lines.collect();
            // Rules are tried in their order, which their numbers give; of everything else the order says nothing.
            lines.sort();
            blocks.insert(title.to_owned(), lines);
        }
        blocks.extend(ruleset(&lab.exec(node, "nft", &["-s", "list", "ruleset"])?));
        Ok(Self(blocks))
    }

    /// How many lines it has.
    #[must_use]
    pub fn len(&self) -> usize {
        self.0.values().map(Vec::len).sum()
    }

    /// Whether it is of nothing.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// What is in `later` and not here, and the other way round: one line each, `+` and `-`. Empty when they are alike.
    #[must_use]
    pub fn changes(&self, later: &Self) -> Vec<String> {
        let none = Vec::new();
        let mut changes = Vec::new();
        for title in self.0.keys().chain(later.0.keys().filter(|title| !self.0.contains_key(*title))) {
            let (before, after) = (self.0.get(title).unwrap_or(&none), later.0.get(title).unwrap_or(&none));
            let (gone, came) = (missing(before, after), missing(after, before));
            if gone.is_empty() && came.is_empty() && before != after {
                changes.push(format!("! {title}: another order"));
            }
            changes.extend(gone.iter().map(|line| format!("- {title}: {line}")));
            changes.extend(came.iter().map(|line| format!("+ {title}: {line}")));
        }
        changes
    }
}

/// The snapshots of all running nodes.
pub fn take_all(lab: &Lab) -> Result<BTreeMap<String, Snapshot>> {
    lab.running().iter().map(|node| Ok((node.name.clone(), Snapshot::take(lab, &node.name)?))).collect()
}

/// Keeps them for a later check of the same lab.
pub fn keep(lab: &Lab, name: &str, all: &BTreeMap<String, Snapshot>) -> Result<()> {
    crate::state::write(&lab.state().dir().join(name), serde_json::to_string(all)?)
}

/// What [`keep`] kept.
pub fn kept(lab: &Lab, name: &str) -> Result<BTreeMap<String, Snapshot>> {
    let path = lab.state().dir().join(name);
    let text = std::fs::read_to_string(&path).with_context(|| format!("reading {}", path.display()))?;
    serde_json::from_str(&text).with_context(|| format!("reading {}", path.display()))
}

/// The changes of every node, by its name; empty when all are as they were.
#[must_use]
pub fn changes(before: &BTreeMap<String, Snapshot>, after: &BTreeMap<String, Snapshot>) -> String {
    let mut text = String::new();
    for (node, snapshot) in before {
        for line in after.get(node).map(|later| snapshot.changes(later)).unwrap_or_default() {
            let _ = writeln!(text, "{node}: {line}");
        }
    }
    text
}

/// Runs `warren-agent cleanup` on every node, by the manifest of the documentation; returns what it said, sorted by node.
pub fn clean(lab: &Lab, dry_run: bool) -> Result<Vec<String>> {
    let path = workspace().join("docs/install.md");
    let text = std::fs::read_to_string(&path).with_context(|| format!("reading {}", path.display()))?;
    lab.apply(&manifest(&text, dry_run).context("no manifest in docs/install.md")?)?;
    lab.kubectl(&["rollout", "status", "-n", NAMESPACE, CLEANUP, CLEAN])?;
    let mut said = Vec::new();
    let pods = lab.kubectl_json(&["get", "pods", "-n", NAMESPACE, "-l", "app=warren-cleanup"])?;
    // Not by `kubectl logs`: the API server reaches only nodes with an address of their own, and no mesh carries it any more.
    for pod in pods["items"].as_array().map(Vec::as_slice).unwrap_or_default() {
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let [name, uid, node] = [&pod["metadata"]["name"], &pod["metadata"]["uid"], &pod["spec"]["nodeName"]].map(text);
        let log = format!("/var/log/pods/{NAMESPACE}_{name}_{uid}/cleanup/0.log");
        // Time, stream and a mark stand before what was said.
        let words = |line: &str| line.splitn(4, ' ').nth(3).unwrap_or(line).to_owned();
        said.extend(lab.exec(&node, "cat", &[&log])?.lines().map(|line| format!("{node}: {}", words(line))));
    }
    said.sort();
    lab.kubectl(&["delete", "-n", NAMESPACE, CLEANUP, "--cascade=foreground", CLEAN])?;
    Ok(said)
}

/// The manifest, with the lab's images.
fn manifest(document: &str, dry_run: bool) -> Option<String> {
    let block = document.split("```yaml\n").nth(1)?.split("```").next()?;
    let version = format!("agent:{}", env!("CARGO_PKG_VERSION"));
    let cleanup = if dry_run { "[cleanup, --dry-run, " } else { "[cleanup, " };
    let manifest = block
        .replace("REGISTRY/PATH", "warren.dev")
        .replace(&version, &format!("agent:{TAG}"))
        .replace("[cleanup, ", cleanup);
    manifest.contains("kind: DaemonSet").then_some(manifest)
}

/// Lifetimes run, and one blank is as good as two.
fn tidy(line: &str) -> String {
    let mut words = line.split_whitespace();
    let mut kept = Vec::new();
    while let Some(word) = words.next() {
        match word {
            "valid_lft" | "preferred_lft" | "expires" => drop(words.next()),
            // A bridge's.
            timer if timer.ends_with("_timer") => drop(words.next()),
            _ => kept.push(word),
        }
    }
    kept.join(" ")
}

/// A ruleset as blocks: what stands in each chain, set and map, under its name and its table's.
fn ruleset(text: &str) -> BTreeMap<String, Vec<String>> {
    let mut blocks: BTreeMap<String, Vec<String>> = BTreeMap::new();
    let (mut table, mut block) = (String::new(), String::new());
    for line in text.lines().filter(|line| !line.trim().is_empty()) {
        let depth = line.chars().take_while(|c| *c == '\t').count();
        let words = tidy(line);
        match depth {
            0 if words.ends_with('{') => {
                table = words.trim_end_matches(" {").to_owned();
                blocks.entry(table.clone()).or_default();
            }
            1 if words.ends_with('{') => {
                block = format!("{table} {}", words.trim_end_matches(" {"));
                blocks.entry(block.clone()).or_default();
            }
            0 | 1 => {}
            _ => blocks.entry(block.clone()).or_default().push(words),
        }
    }
    blocks
}

/// Lines of `from` that `other` lacks, counting how often each is there.
fn missing<'a>(from: &'a [String], other: &[String]) -> Vec<&'a str> {
    let mut rest: BTreeMap<&str, usize> = BTreeMap::new();
    for line in other {
        *rest.entry(line).or_default() += 1;
    }
    let lacks = |line: &&String| match rest.get_mut(line.as_str()) {
        Some(count) if *count > 0 => {
            *count -= 1;
            false
        }
        _ => true,
    };
    from.iter().filter(lacks).map(String::as_str).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn snapshot(title: &str, lines: &[&str]) -> Snapshot {
        Snapshot([(title.to_owned(), lines.iter().map(|line| (*line).to_owned()).collect())].into())
    }

    #[test]
    fn what_came_what_went_and_a_new_order_are_changes() {
        let before = snapshot("chain", &["a", "b", "b"]);
        assert!(before.changes(&before).is_empty());
        assert_eq!(before.changes(&snapshot("chain", &["a", "b", "c"])), ["- chain: b", "+ chain: c"]);
        assert_eq!(before.changes(&snapshot("chain", &["b", "a", "b"])), ["! chain: another order"]);
        assert_eq!(Snapshot::default().changes(&before).len(), 3);
    }

    #[test]
    fn a_ruleset_is_cut_into_its_chains_and_sets() {
        let blocks = ruleset(
            "table inet warren {\n\tset s {\n\t\telements = { 1,\n\t\t\t     2 }\n\t}\n\n\tchain c {\n\t\taccept\n\t}\n}\ntable ip t {\n}\n",
        );
        assert_eq!(blocks["table inet warren set s"], ["elements = { 1,", "2 }"]);
        assert_eq!(blocks["table inet warren chain c"], ["accept"]);
        assert!(blocks["table ip t"].is_empty());
    }

    #[test]
    fn lifetimes_are_no_configuration() {
        assert_eq!(tidy("default  via fe80::1 expires 1798sec pref medium"), "default via fe80::1 pref medium");
    }

    #[test]
    fn the_documentations_manifest_is_found_and_runs_the_labs_image() {
        let text = std::fs::read_to_string(workspace().join("docs/install.md")).unwrap();
        let manifest = manifest(&text, true).unwrap();
        assert!(
            manifest.contains("image: warren.dev/agent:test") && manifest.contains("cleanup, --dry-run,"),
            "{manifest}"
        );
        assert!(!manifest.contains("REGISTRY") && !manifest.contains("agent:0.1.0"), "{manifest}");
    }
}
