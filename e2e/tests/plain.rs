//! Plain Linux boxes as NATs: a stranger's packet that arrives first takes the port that a node's packets would have left by. Whom ordinary
//! probing connects by luck, the ordered punch connects.

use std::process::ExitCode;
use std::time::Instant;

use anyhow::Result;
use e2e::agent::both_ways;
use e2e::images::Set;
use e2e::lab::Lab;
use e2e::net::topology;
use e2e::outage::{SOON, reach};
use e2e::scenario::Scenario;
use e2e::{checks, command, harness, wait, warren};

/// Both boxes, in either role, and each with a home router.
const PAIRS: [(&str, &str); 3] = [("plain-a", "plain-b"), ("plain-a", "home-a"), ("plain-b", "home-a")];

/// The lab's internet is three hops long, and no real one is: what has fewer than these left would not arrive there.
const LONG: &str = "table ip wllong {
  chain forward {
    type filter hook forward priority 0; policy accept;
    ip ttl < 10 drop
  }
}";

fn main() -> ExitCode {
    harness::main(
        Scenario::plain("t-plain"),
        Set::All,
        &[
            ("helm_install_returns_and_every_node_is_ready", install),
            ("plain_boxes_are_connected_directly", connected),
            ("every_pod_reaches_every_pod", checks::pod_to_pod),
            ("agents_and_boxes_that_know_nothing_are_connected_directly", anew),
        ],
    )
}

fn install(lab: &Lab) -> Result<()> {
    topology::internet(&lab.scenario().name).nft(LONG)?;
    checks::install(lab)
}

/// Relays are there from the beginning, which they are not when everything is installed at once.
fn anew(lab: &Lab) -> Result<()> {
    for node in ["plain-a", "plain-b", "home-a"] {
        warren::delete_pods(lab, "agent", &format!("spec.nodeName={node}"))?;
        let router = topology::router(&lab.scenario().name, node);
        command::run(&mut router.command("conntrack", &["-F"]))?;
    }
    connected(lab)?;
    reach(lab, "when all are direct")
}

fn connected(lab: &Lab) -> Result<()> {
    let began = Instant::now();
    for pair in PAIRS {
        wait::until(&format!("{pair:?} to be direct"), SOON, || {
            both_ways(lab, pair, |path| path["state"] == "direct").map(drop)
        })?;
        eprintln!("           {pair:?}: direct after {:.1} s", began.elapsed().as_secs_f32());
    }
    Ok(())
}
