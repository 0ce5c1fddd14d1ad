//! Traffic over a change of the mesh, from before it until after it: pings between all pods, ten a second and pair, and one long TCP
//! flow. It tells what was lost; whether that may be is the check's to say.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use anyhow::{Context, Result};
use serde::Deserialize;
use serde::de::DeserializeOwned;

use crate::lab::Lab;
use crate::wait;
use crate::workload::{PORT, Pod};

/// Starting a process in a container takes a second on a busy machine, and all start at once.
const BEGINS: Duration = Duration::from_secs(60);
/// What the last packets have to come back, in seconds.
const GRACE: &str = "3";
/// After so many seconds without a byte a flow is broken.
const STUCK: &str = "30";
/// The processes inside the containers; what starts them there has another name.
const PINGS: &str = "^/lab-pod pings";
const FLOW: &str = "^/lab-pod flow";

/// Pings of one pair, one way there and back.
#[derive(Clone, Copy, Debug, PartialEq, Deserialize)]
pub struct Pings {
    /// How many were sent.
    pub sent: u64,
    /// How many came back.
    pub received: u64,
    /// The longest time in which none did, in milliseconds.
    pub silence_ms: f64,
}

/// What the flow carried.
#[derive(Clone, Copy, Debug, PartialEq, Deserialize)]
pub struct Flow {
    /// Bytes, each of them verified.
    pub bytes: u64,
    /// The longest time in which none came, in milliseconds.
    pub pause_ms: f64,
}

/// What was seen.
#[derive(Clone, Debug, PartialEq)]
pub struct Seen {
    /// By source and target.
    pub pings: BTreeMap<String, BTreeMap<String, Pings>>,
    /// The flow.
    pub flow: Flow,
}

impl Seen {
    /// Every pair.
    pub fn pairs(&self) -> impl Iterator<Item = (&str, &str, &Pings)> {
        self.pings.iter().flat_map(|(from, row)| row.iter().map(move |(to, pings)| (&**from, &**to, pings)))
    }

    /// Pings sent and pings lost, over all pairs.
    #[must_use]
    pub fn totals(&self) -> (u64, u64) {
        let sent = self.pairs().map(|(.., pings)| pings.sent).sum::<u64>();
        (sent, sent - self.pairs().map(|(.., pings)| pings.received).sum::<u64>())
    }
}

impl fmt::Display for Seen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (sent, lost) = self.totals();
        write!(f, "{lost} of {sent} pings lost over {} pairs", self.pairs().count())?;
        if let Some((from, to, worst)) = self.pairs().max_by(|a, b| a.2.silence_ms.total_cmp(&b.2.silence_ms)) {
            write!(f, ", longest silence {:.2} s ({from} to {to})", worst.silence_ms / 1000.0)?;
        }
        let Flow { bytes, pause_ms } = self.flow;
        write!(f, "; one TCP flow carried {} MB, longest pause {:.2} s", bytes / 1_000_000, pause_ms / 1000.0)
    }
}

/// Lets the pods ping each other, and one of them download from another, while something happens. A flow that breaks is an error.
pub fn throughout<T>(
    lab: &Lab,
    pods: &[Pod],
    (client, server): (&Pod, &Pod),
    change: impl FnOnce() -> Result<T>,
) -> Result<(T, Seen)> {
    std::thread::scope(|scope| {
        let row = |from: &Pod| -> Result<(String, BTreeMap<String, Pings>)> {
            let others = pods.iter().filter(|to| to.node != from.node);
            let targets: Vec<String> = others.map(|to| format!("{}={}", to.node, to.socket())).collect();
            let mut args = vec!["pings", "--timeout", GRACE];
            args.extend(targets.iter().map(String::as_str));
            Ok((from.node.clone(), read(&from.check(lab, &args)?)?))
        };
        let rows: Vec<_> = pods.iter().map(|from| scope.spawn(move || row(from))).collect();
        let url = format!("http://{}", server.socket());
        let flow = scope.spawn(move || read(&client.check(lab, &["flow", "--timeout", STUCK, &url])?));
        let result = begin(lab, pods, client).and_then(|()| change());
        end(lab, pods);
        // The change first: what it did to the traffic explains nothing when it failed itself.
        let result = result?;
        let joined = |thread: std::thread::ScopedJoinHandle<'_, Result<_>>| {
            thread.join().map_err(|_| anyhow::anyhow!("the traffic panicked"))?
        };
        let flow = flow.join().map_err(|_| anyhow::anyhow!("the flow panicked"))?.context("the TCP flow")?;
        let pings = rows.into_iter().map(joined).collect::<Result<_>>().context("the pings")?;
        Ok((result, Seen { pings, flow }))
    })
}

/// Waits until everything flows: what starts late would miss the change.
fn begin(lab: &Lab, pods: &[Pod], client: &Pod) -> Result<()> {
    let runs = |pod: &Pod, what: &str| {
        wait::until(&format!("{what} on {}", pod.node), BEGINS, || {
            lab.exec(&pod.node, "pgrep", &["-f", what]).map_err(|error| format!("{error:#}"))
        })
    };
    pods.iter().try_for_each(|pod| runs(pod, PINGS).map(drop))?;
    runs(client, FLOW)?;
    // It opens its connection after its start, and nobody but it holds one to a pod from a pod.
    let port = format!(":{PORT}");
    wait::until("the flow's connection", BEGINS, || {
        let pid = lab.exec(&client.node, "pgrep", &["-f", FLOW]).map_err(|error| format!("{error:#}"))?;
        let inside = ["-t", pid.trim(), "-n", "ss", "-Htn", "state", "established", "dport", "=", &port];
        match lab.exec(&client.node, "nsenter", &inside) {
            Ok(text) if !text.trim().is_empty() => Ok(()),
            other => Err(format!("{other:?}")),
        }
    })
}

fn end(lab: &Lab, pods: &[Pod]) {
    for pod in pods {
        for what in [PINGS, FLOW] {
            // Only one pod has a flow, and what broke has ended already: its own error tells more.
            let _ = lab.exec(&pod.node, "pkill", &["-TERM", "-f", what]);
        }
    }
}

fn read<T: DeserializeOwned>(text: &str) -> Result<T> {
    serde_json::from_str(text).with_context(|| format!("reading {text:?}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_lost_is_told_with_the_worst_pair() {
        let row: BTreeMap<String, Pings> = read(
            r#"{"b": {"sent": 10, "received": 10, "silence_ms": 101.0}, "c": {"sent": 10, "received": 7, "silence_ms": 402.0}}"#,
        )
        .unwrap();
        let flow = read(r#"{"bytes": 5000000, "pause_ms": 250.0}"#).unwrap();
        let seen = Seen { pings: [("a".to_owned(), row)].into(), flow };
        assert_eq!(seen.totals(), (20, 3));
        assert_eq!(
            seen.to_string(),
            "3 of 20 pings lost over 2 pairs, longest silence 0.40 s (a to c); one TCP flow carried 5 MB, longest pause 0.25 s"
        );
    }
}
