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
    let paths = progress.step("every pair is direct or knows why not", || {
        crate::wait::until("every pair to be direct or to know why not", warren::CONVERGED, || {
            let paths = paths(&lab);
            match paths.values().flat_map(|row| row.values()).filter(|path| !path.is_settled()).count() {
                0 => Ok(paths),
                unsettled => Err(format!("{unsettled} do not")),
            }
        })
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
fn paths(lab: &Lab) -> picture::Paths {
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
