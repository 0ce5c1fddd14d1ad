//! `make demo`: the whole way from nothing to pods that reach each other, told as it happens.

pub mod picture;

use std::path::Path;
use std::time::Duration;

use anyhow::{Result, bail};
use serde_json::Value;

use crate::images::Set;
use crate::lab::Lab;
use crate::progress::Progress;
use crate::scenario::{Node, Scenario};
use crate::{agent, interrupt, warren, workload};

/// A ping across the demo takes milliseconds; a path that is still being found answers within seconds.
const PING: Duration = Duration::from_secs(5);

/// Brings the demo up and shows it.
pub fn run(scenario: Scenario, exe: &Path, progress: &Progress) -> Result<()> {
    interrupt::take_down_on_interrupt(&scenario.name, exe)?;
    let lab = Lab::up(scenario, exe, Set::All, progress)?;
    progress.step("helm install warren --wait", || warren::install(&lab))?;
    progress.step("every node and MeshNode is Ready", || warren::wait_ready(&lab))?;
    let pods = progress.step("a pod on every node", || workload::deploy(&lab))?;
    let matrix = progress.step("every pod reaches every pod", || {
        crate::wait::until("every pod to reach every other", warren::CONVERGED, || {
            let matrix = workload::matrix(&lab, &pods, PING);
            let failures = workload::failures(&matrix);
            if failures.is_empty() { Ok(matrix) } else { Err(failures.join("; ")) }
        })
    })?;
    let paths = progress.step("every pair that can be is direct, and the others know why not", || {
        crate::wait::until("every pair to have the best path there is", warren::CONVERGED, || {
            let paths = paths(&lab);
            let unsettled = unsettled(lab.scenario(), &paths);
            if unsettled.is_empty() { Ok(paths) } else { Err(unsettled.join("; ")) }
        })
    })?;
    progress.step("every MeshNode counts its paths", || {
        crate::wait::until("every MeshNode to count all its paths", warren::CONVERGED, || all_counted(&lab))
    })?;
    let report = progress.step("nothing in clear on the internet", || lab.sniffer().verdict())?;
    println!("\n{}", picture::topology(lab.scenario()));
    println!("{}", lab.kubectl(&["get", "nodes", "-o", "wide"])?);
    println!("{}", lab.kubectl(&["get", "meshnodes"])?);
    println!(
        "From pod to pod, in milliseconds to connect and be answered, two round trips (row to column):\n\n{}",
        picture::matrix(lab.scenario(), &matrix)
    );
    println!("How each node reaches each other (row to column):\n\n{}", picture::paths(lab.scenario(), &paths));
    println!("{} packets on the internet were looked at: none showed a pod or mesh address.\n", report.packets);
    println!("{}", next_steps(&lab));
    if pods.is_empty() {
        bail!("there is no pod: nothing was shown");
    }
    Ok(())
}

/// What every agent says of its peers; of one that doesn't answer, nothing.
pub fn paths(lab: &Lab) -> picture::Paths {
    let row = |node: &Node| {
        let report = agent::ask(lab, &node.name, "/v1/paths").unwrap_or_default();
        let peers = report["peers"].as_array().cloned().unwrap_or_default();
        let text = |peer: &Value, field: &str| peer[field].as_str().unwrap_or_default().to_owned();
        let cell = |peer: &Value| picture::Path {
            state: text(peer, "state"),
            relay: text(peer, "relay"),
            transport: text(peer, "transport"),
            reason: text(peer, "reason"),
        };
        (node.name.clone(), peers.iter().map(|peer| (text(peer, "name"), cell(peer))).collect())
    };
    lab.running().into_iter().map(row).collect()
}

/// The pairs that are not connected as well as they can be, or do not know why they are not better. Nodes without a row do not run.
pub fn unsettled(scenario: &Scenario, paths: &picture::Paths) -> Vec<String> {
    let names = || paths.keys();
    let pairs = names().flat_map(|from| names().filter(move |to| from != *to).map(move |to| (from, to)));
    pairs
        .filter_map(|(from, to)| {
            let wanted = scenario.connection(from, to).ok()?;
            match paths.get(from).and_then(|row| row.get(to)) {
                Some(path) if path.is_at_its_best(wanted) => None,
                Some(path) => Some(format!("{from} to {to}: {path:?}, expected {wanted:?}")),
                None => Some(format!("{from} says nothing of {to}")),
            }
        })
        .collect()
}

/// Agents write what lasts: the counts come some seconds after the paths.
fn all_counted(lab: &Lab) -> Result<(), String> {
    let list = lab.kubectl_json(&["get", "meshnodes"]).map_err(|error| format!("{error:#}"))?;
    let items = list["items"].as_array().map(Vec::as_slice).unwrap_or_default();
    let connected = |node: &Value| ["direct", "relayed"].map(|how| node["status"]["paths"][how].as_u64().unwrap_or(0));
    let counts: Vec<u64> = items.iter().map(|node| connected(node).iter().sum()).collect();
    let peers = lab.running().len() as u64 - 1;
    if counts.iter().all(|count| *count == peers) { Ok(()) } else { Err(format!("{counts:?} of {peers}")) }
}

fn next_steps(lab: &Lab) -> String {
    let make = |target: &str| match lab.scenario().name.as_str() {
        "demo" => format!("make {target}"),
        name => format!("WARREN_LAB={name} make {target}"),
    };
    format!(
        "Try next:
  eval \"$({env})\"                     kubectl and helm, in this shell
  kubectl get meshnodes -o wide
  kubectl -n warren-system exec ds/warren-agent -- /warren-agent paths
  helm test warren -n warren-system --logs
  {lab} exec home-a -- ip route show table 21820

Stop:
  {down}",
        env = make("-s demo-env"),
        down = make("demo-down"),
        lab = lab.exe().display(),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pair_settles_when_it_is_as_it_can_be_and_says_why() {
        let scenario = Scenario::demo("t");
        let path = |state: &str, transport: &str, reason: &str| picture::Path {
            state: state.into(),
            relay: String::new(),
            transport: transport.into(),
            reason: reason.into(),
        };
        let unsettled = |from: &str, to: &str, there, back| {
            let row = |to: &str, path| [(to.to_owned(), path)].into();
            unsettled(&scenario, &[(from.to_owned(), row(to, there)), (to.to_owned(), row(from, back))].into()).len()
        };
        let (direct, relayed) = (|| path("direct", "", ""), |reason| path("relayed", "udp", reason));
        assert_eq!(unsettled("plain", "home-a", direct(), direct()), 0);
        assert_eq!(unsettled("plain", "home-a", direct(), relayed("NoAnswer")), 1);
        assert_eq!(unsettled("hard", "fw", relayed("HardNAT"), relayed("NotTriedYet")), 1);
        assert_eq!(unsettled("tls", "fw", path("relayed", "tls", "UDPBlocked"), relayed("UDPBlocked")), 0);
        assert_eq!(unsettled("tls", "fw", relayed("UDPBlocked"), relayed("UDPBlocked")), 1);
        let missing = super::unsettled(&scenario, &[("cp".into(), [].into()), ("fw".into(), [].into())].into());
        assert_eq!(missing, ["cp says nothing of fw", "fw says nothing of cp"]);
    }
}
