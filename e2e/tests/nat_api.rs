//! A control plane behind 1:1 NAT that advertises its private address. Nobody labels a node for a relay: the operator finds the one that
//! the others reach.

use std::process::ExitCode;
use std::time::Duration;

use anyhow::Result;
use e2e::images::Set;
use e2e::lab::Lab;
use e2e::scenario::Scenario;
use e2e::{checks, harness, wait, warren};
use serde_json::Value;

/// A pod starts, agents connect and report within seconds.
const SOON: Duration = Duration::from_secs(120);

fn main() -> ExitCode {
    harness::main(
        Scenario::nat_api("t-natapi"),
        Set::All,
        &[
            ("helm_install_returns_and_every_node_is_ready_without_a_label", install),
            ("a_relay_comes_to_stand_where_others_reach_it", a_relay_comes_to_stand_where_others_reach_it),
            ("every_pod_reaches_every_pod", checks::pod_to_pod),
            ("pods_and_hosts_reach_a_service", checks::service),
            ("logs_and_exec_where_the_address_is_unique", checks::logs_and_exec),
            ("the_api_server_is_reached_by_the_underlay", checks::api_by_the_underlay),
            ("helm_test_passes", checks::helm_test),
            ("a_node_that_shall_never_have_a_relay_loses_it", a_node_that_shall_never_have_a_relay_loses_it),
        ],
    )
}

fn install(lab: &Lab) -> Result<()> {
    warren::install_unlabelled(lab)?;
    warren::wait_ready(lab)
}

/// The nodes that are labelled, and whether the operator says that it did it.
fn labelled(lab: &Lab) -> Result<Vec<(String, bool)>, String> {
    let list = lab.kubectl_json(&["get", "nodes"]).map_err(|error| format!("{error:#}"))?;
    let items = list["items"].as_array().cloned().unwrap_or_default();
    let has_label = |node: &&Value| node["metadata"]["labels"]["warren.dev/relay"] == "true";
    let ours = |node: &Value| node["metadata"]["annotations"]["warren.dev/relay-placement"].as_str().is_some();
    let name = |node: &Value| node["metadata"]["name"].as_str().unwrap_or_default().to_owned();
    Ok(items.iter().filter(has_label).map(|node| (name(node), ours(node))).collect())
}

/// One of three has a public address; the two others say that they reach its relay.
fn a_relay_comes_to_stand_where_others_reach_it(lab: &Lab) -> Result<()> {
    wait::until("the relay", SOON, || match labelled(lab)? {
        nodes if nodes == [("pub".to_owned(), true)] => Ok(()),
        nodes => Err(format!("labelled are {nodes:?}")),
    })?;
    warren::wait_condition_of(lab, "meshrelay", "pub", "Reachable")?;
    eprintln!("{}", lab.kubectl(&["get", "meshrelays", "-o", "wide"])?);
    // By 443 too, which nothing on that node listens on.
    wait::until("the relay to say that 443 leads to it", SOON, || {
        let relay = lab.kubectl_json(&["get", "meshrelay", "pub"]).map_err(|error| format!("{error:#}"))?;
        let ports = &relay["status"]["tlsPorts"];
        if *ports == serde_json::json!([443, 8443]) { Ok(()) } else { Err(format!("it says {ports}")) }
    })
}

fn a_node_that_shall_never_have_a_relay_loses_it(lab: &Lab) -> Result<()> {
    let wish = |wish: &str| {
        let patch = format!(r#"{{"spec":{{"relay":"{wish}"}}}}"#);
        lab.kubectl(&["patch", "meshnode", "pub", "--type=merge", "-p", &patch]).map(drop)
    };
    wish("Never")?;
    wait::until("no relay to be left", SOON, || {
        let relays = lab.kubectl_json(&["get", "meshrelays"]).map_err(|error| format!("{error:#}"))?;
        let left = relays["items"].as_array().map(Vec::len).unwrap_or_default();
        match labelled(lab)? {
            nodes if nodes.is_empty() && left == 0 => Ok(()),
            nodes => Err(format!("labelled are {nodes:?}, and there are {left} relays")),
        }
    })?;
    wish("Auto")?;
    a_relay_comes_to_stand_where_others_reach_it(lab)
}
