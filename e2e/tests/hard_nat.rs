//! Two workers behind NATs that draw their ports, and one from which only TCP to port 443 leaves: nothing connects them directly, and a relay
//! carries them, by UDP or inside its channel.

use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use e2e::agent::path;
use e2e::cluster::node;
use e2e::images::{Set, binary};
use e2e::lab::Lab;
use e2e::net::topology;
use e2e::outage::{SOON, during, on, reach};
use e2e::process::Process;
use e2e::scenario::{HTTPS_PORT, OUTSIDE, Scenario, Site};
use e2e::{agent, checks, harness, wait, warren, workload};
use serde_json::Value;

/// Seconds of traffic around what is done to a relay or an agent: a pod of a DaemonSet is made anew within a few.
const RESTART: u64 = 20;
/// The same around what is done to UDP: it is tried every half a minute.
const BACK: u64 = 45;
/// The node from which only TCP to port 443 leaves.
const TLS: &str = "tls";
/// The pair that is never direct, both ways.
const HARD: [(&str, &str); 2] = [("hard-a", "hard-b"), ("hard-b", "hard-a")];

fn main() -> ExitCode {
    harness::main(
        Scenario::relayed("t-hard"),
        Set::All,
        &[
            ("helm_install_returns_and_every_node_is_ready", checks::install),
            ("every_pod_reaches_every_pod", checks::pod_to_pod),
            ("hard_nats_are_relayed_and_say_why_and_the_others_are_direct", hard_nats_are_relayed_and_say_why),
            ("who_has_tls_alone_is_carried_inside_the_channel_and_says_why", who_has_tls_alone_is_carried),
            ("who_gets_out_by_a_proxy_alone_is_carried_through_it", who_has_a_proxy_alone_is_carried),
            ("full_size_packets_fit", checks::full_size_packets),
            ("long_transfers_are_whole", checks::transfers),
            ("what_relays_carry_stays_on_the_underlay", what_relays_carry_stays_on_the_underlay),
            ("relayed_nodes_are_counted_and_told_of_once", relayed_nodes_are_told_of),
            ("udp_takes_a_path_back_as_soon_as_it_gets_out", udp_takes_a_path_back),
            ("a_relay_that_starts_anew_goes_on_carrying", a_relay_starts_anew),
            ("a_relay_that_is_killed_costs_moments", a_relay_is_killed),
            ("an_agent_that_starts_anew_finds_its_relayed_pairs", an_agent_starts_anew),
            ("a_removed_node_is_no_members_partner_any_more", a_node_is_removed),
            // The last one: it leaves relays with too few ports.
            ("who_finds_no_port_on_any_relay_says_so", relays_have_one_port),
        ],
    )
}

/// Waits until the hard pair is relayed as both see it, and returns the view of the first.
fn wait_relayed(lab: &Lab) -> Result<Value> {
    wait::until("the hard pair to be relayed", SOON, || {
        let mut seen = Vec::new();
        for (from, to) in HARD {
            let path = path(lab, from, to)?;
            if path["state"] != "relayed" {
                return Err(format!("{from} to {to}: {path}"));
            }
            seen.push(path);
        }
        Ok(seen.swap_remove(0))
    })
}

fn hard_nats_are_relayed_and_say_why(lab: &Lab) -> Result<()> {
    wait_relayed(lab)?;
    for (from, to) in HARD {
        // Until all candidates were tried it is relayed because nothing better was found yet.
        let path = wait::until("the reason to be known", SOON, || match path(lab, from, to)? {
            path if path["reason"] == "HardNAT" => Ok(path),
            path => Err(path.to_string()),
        })?;
        let relay = path["relay"].as_str().context("a relay")?;
        ensure!(["cp", "pub"].contains(&relay), "{path}");
        ensure!(path["rttMs"].as_f64().is_some_and(|ms| ms > 0.0), "{path}");
        // As a person on that node asks; the agent's own program, wherever its image lies.
        let ask = format!("exec /proc/$(pgrep -x warren-agent)/exe paths {to}");
        let text = lab.exec(from, "sh", &["-c", &ask])?;
        eprintln!("{text}");
        ensure!(text.contains("relayed") && text.contains("HardNAT") && text.contains(relay), "{text}");
    }
    for (from, to) in [("hard-a", "cp"), ("hard-a", "pub"), ("hard-b", "cp"), ("hard-b", "pub"), ("cp", "pub")] {
        wait::until("the other pairs to be direct", SOON, || match path(lab, from, to)? {
            path if path["state"] == "direct" => Ok(()),
            path => Err(format!("{from} to {to}: {path}")),
        })?;
    }
    Ok(())
}

/// An Event takes most of a minute, so this is asked when other things have been.
fn relayed_nodes_are_told_of(lab: &Lab) -> Result<()> {
    wait::until("an Event that says so", SOON, || {
        let list = lab.kubectl_json(&["get", "events", "-A", "--field-selector=reason=PathRelayed"]);
        let items = list.map_err(|error| format!("{error:#}"))?["items"].as_array().cloned().unwrap_or_default();
        let told = |event: &&Value| event["involvedObject"]["name"] == "hard-a";
        let count = items.iter().filter(told).count();
        if count == 1 { Ok(()) } else { Err(format!("{count} of {}", items.len())) }
    })?;
    wait::until("the counts of the hard nodes to be written", SOON, || {
        let object = lab.kubectl_json(&["get", "meshnode", "hard-a"]).map_err(|error| format!("{error:#}"))?;
        let paths = &object["status"]["paths"];
        if paths["summary"] == "2d/2r/0x" { Ok(()) } else { Err(paths.to_string()) }
    })
}

/// Waits until the node that has TLS alone reaches every other one as `is_it` says.
fn wait_tls_paths(lab: &Lab, what: &str, is_it: impl Fn(&str, &Value) -> bool) -> Result<()> {
    let others: Vec<&str> = lab.running().iter().map(|node| node.name.as_str()).filter(|name| *name != TLS).collect();
    wait::until(what, SOON, || {
        for to in &others {
            match path(lab, TLS, to)? {
                path if is_it(to, &path) => {}
                path => return Err(format!("{TLS} to {to}: {path}")),
            }
        }
        Ok(())
    })
}

fn is_over_tls(_: &str, path: &Value) -> bool {
    path["state"] == "relayed" && path["transport"] == "tls" && path["relay"] == "pub" && path["reason"] == "UDPBlocked"
}

fn who_has_tls_alone_is_carried(lab: &Lab) -> Result<()> {
    wait_tls_paths(lab, "every path of the node that has TLS alone to go inside its channel", is_over_tls)?;
    // The other side's leg is a UDP one, and it knows as well why there is no more.
    wait::until("the other side to know why", SOON, || match path(lab, "hard-a", TLS)? {
        path if path["transport"] == "udp" && path["reason"] == "UDPBlocked" => Ok(()),
        path => Err(path.to_string()),
    })?;
    let text = lab.exec(TLS, "sh", &["-c", "exec /proc/$(pgrep -x warren-agent)/exe paths"])?;
    eprintln!("{text}");
    ensure!(text.contains("pub over tls") && text.contains("UDPBlocked"), "{text}");
    let status = agent::ask(lab, TLS, "/v1/status")?;
    let relays = status["relays"].as_array().context("relays")?;
    let open = |relay: &&Value| relay["name"] == "pub" && relay["transport"] == "tls";
    ensure!(relays.iter().any(|relay| open(&relay)), "{}", status["relays"]);
    Ok(())
}

/// The site lets TCP out to the API server and to a proxy outside, and to no relay. Afterwards everything is as before.
fn who_has_a_proxy_alone_is_carried(lab: &Lab) -> Result<()> {
    let outside = topology::outside(&lab.scenario().name);
    let program = binary("lab-pod").to_string_lossy().into_owned();
    let mut proxy = outside.command(&program, &["proxy", "--port", &HTTPS_PORT.to_string()]);
    let proxy = Process::start(lab.state(), "proxy", &mut proxy)?;
    let result = carried_by_a_proxy(lab);
    proxy.end()?;
    warren::upgrade(lab, &["--set-string", "agent.relayProxy.url="])?;
    warren::wait_rolled_out(lab)?;
    result?;
    wait_tls_paths(lab, "every path to go inside the channel without the proxy", is_over_tls)?;
    reach(lab, "without the proxy")
}

fn carried_by_a_proxy(lab: &Lab) -> Result<()> {
    let router = topology::router(&lab.scenario().name, TLS);
    let relay = lab.node("pub")?.outer_v4();
    let url = format!("agent.relayProxy.url=http://{}:{HTTPS_PORT}", OUTSIDE.addr());
    router.nft(&format!(
        "table inet wlproxy {{
           chain forward {{
             type filter hook forward priority -2; policy accept;
             ip daddr {relay} drop
             ip saddr {relay} drop
           }}
         }}"
    ))?;
    let carried = warren::upgrade(lab, &["--set-string", &url]).and_then(|_| {
        warren::wait_rolled_out(lab)?;
        // By whichever relay: the proxy reaches both.
        let over_tls = |_: &str, path: &Value| path["state"] == "relayed" && path["transport"] == "tls";
        wait_tls_paths(lab, "every path to go through the proxy", over_tls)?;
        reach(lab, "through the proxy")
    });
    router.nft("delete table inet wlproxy")?;
    carried?;
    let said = lab.state().logs().join("proxy.log");
    let said = std::fs::read_to_string(&said).with_context(|| format!("reading {}", said.display()))?;
    let site = lab.node(TLS)?.outer_v4().to_string();
    let opened: Vec<&str> = said.lines().filter(|line| line.contains(&site) && line.contains(" opens ")).collect();
    eprintln!("           the proxy says: {opened:?}");
    ensure!(!opened.is_empty(), "the proxy opened nothing for {site}: {said}");
    Ok(())
}

fn udp_takes_a_path_back(lab: &Lab) -> Result<()> {
    let Site::OnlyTls { wan, wan6 } = lab.node(TLS)?.site.clone() else { bail!("{TLS} is elsewhere") };
    let pid = || lab.exec(TLS, "pgrep", &["-x", "warren-agent"]);
    let (before, pods) = (pid()?, workload::pods(lab)?);
    let (from, to) = (on(&pods, TLS)?, on(&pods, "hard-a")?);
    let change = |site: &Site| topology::change_site(lab.scenario(), TLS, site);
    let open = || change(&Site::Hard { wan, wan6 });
    let result = during(lab, from, to, BACK, open)?;
    eprintln!("           UDP let out under a stream: {result}");
    let (sent, received) = (result["sent"].as_u64().unwrap_or(0), result["received"].as_u64().unwrap_or(0));
    ensure!(sent > 0 && received * 20 >= sent * 19, "more than one in twenty was lost: {result}");
    wait_tls_paths(lab, "UDP to carry every path", |to, path| match to {
        "cp" | "pub" => path["state"] == "direct",
        _ => path["state"] == "relayed" && path["transport"] == "udp",
    })?;
    let result = during(lab, from, to, BACK, || change(&Site::OnlyTls { wan, wan6 }))?;
    eprintln!("           UDP kept in under a stream: {result}");
    wait_tls_paths(lab, "every path to go inside the channel again", is_over_tls)?;
    reach(lab, "after UDP was kept in again")?;
    ensure!(pid()? == before, "the agent started anew meanwhile");
    Ok(())
}

/// The relay's packets to nodes leave by its own interface and never by the mesh, in which its port and theirs mean nothing.
fn what_relays_carry_stays_on_the_underlay(lab: &Lab) -> Result<()> {
    const WATCH: &str = r#"
table inet wlrelay {
  counter mesh { }
  counter underlay { }
  chain out {
    type filter hook postrouting priority 300; policy accept;
    udp sport 51899-51963 oifname "warren0" counter name "mesh"
    tcp sport 8443 oifname "warren0" counter name "mesh"
    udp sport 51899-51963 oifname != { "warren0", "lo" } counter name "underlay"
  }
}
"#;
    let relay = wait_relayed(lab)?["relay"].as_str().context("a relay")?.to_owned();
    node::namespace(lab, lab.node(&relay)?).nft(WATCH)?;
    let pods = workload::pods(lab)?;
    on(&pods, "hard-a")?.check(lab, &["transfer", &format!("http://{}", on(&pods, "hard-b")?.socket()), "1000000"])?;
    let counted = lab.exec(&relay, "nft", &["list", "table", "inet", "wlrelay"])?;
    let counters: Vec<&str> = counted.lines().filter(|line| line.contains("packets")).map(str::trim).collect();
    let [mesh, underlay, ..] = counters[..] else { bail!("reading {counted:?}") };
    ensure!(mesh.starts_with("packets 0 "), "the relay on {relay} sent into the mesh: {counted}");
    ensure!(!underlay.starts_with("packets 0 "), "the relay on {relay} carried nothing: {counted}");
    Ok(())
}

fn a_relay_starts_anew(lab: &Lab) -> Result<()> {
    let relay = wait_relayed(lab)?["relay"].as_str().context("a relay")?.to_owned();
    let pods = workload::pods(lab)?;
    let (from, to) = (on(&pods, "hard-a")?, on(&pods, "hard-b")?);
    let delete = || warren::delete_pods(lab, "relay", &format!("spec.nodeName={relay}"));
    let result = during(lab, from, to, RESTART, delete)?;
    eprintln!("           the relay's pod on {relay} deleted: {result}");
    ensure!(result["received"].as_u64() > Some(0), "nothing came back: {result}");
    reach(lab, "after the relay's restart")?;
    wait_relayed(lab).map(drop)
}

/// Without a word of farewell: the pair goes on at its warm leg on the other relay, time and again.
fn a_relay_is_killed(lab: &Lab) -> Result<()> {
    for _ in 0..kills()? {
        let relay = wait_relayed(lab)?["relay"].as_str().context("a relay")?.to_owned();
        let pods = workload::pods(lab)?;
        let (from, to) = (on(&pods, "hard-a")?, on(&pods, "hard-b")?);
        let kill = || {
            wait_warm(lab)?;
            lab.exec(&relay, "pkill", &["-9", "-x", "warren-relay"]).map(drop)
        };
        let result = during(lab, from, to, RESTART, kill)?;
        let after = wait_relayed(lab)?;
        eprintln!("           the relay on {relay} killed, then by {}: {result}", after["relay"]);
        ensure!(result["received"].as_u64() > Some(0), "nothing came back: {result}");
        reach(lab, "after the relay was killed")?;
    }
    Ok(())
}

/// How often the relay in use is killed: once, unless RELAY_KILLS says otherwise.
fn kills() -> Result<u32> {
    std::env::var("RELAY_KILLS").map_or(Ok(1), |text| text.parse().context("reading RELAY_KILLS"))
}

/// Waits until packets that flow have given the hard pair a leg on the other relay too, as both see it.
fn wait_warm(lab: &Lab) -> Result<()> {
    wait::until("the hard pair to have two legs ready", SOON, || {
        for (from, to) in HARD {
            let path = path(lab, from, to)?;
            let legs = path["legs"].as_array().map(Vec::as_slice).unwrap_or_default();
            if legs.iter().filter(|leg| leg["phase"] == "ready").count() < 2 {
                return Err(format!("{from} to {to}: {path}"));
            }
        }
        Ok(())
    })
}

fn an_agent_starts_anew(lab: &Lab) -> Result<()> {
    let before = wait_relayed(lab)?;
    let pods = workload::pods(lab)?;
    let (from, to) = (on(&pods, "hard-a")?, on(&pods, "hard-b")?);
    let kill = || lab.exec("hard-a", "pkill", &["-9", "-x", "warren-agent"]).map(drop);
    let result = during(lab, from, to, RESTART, kill)?;
    eprintln!("           the agent of hard-a killed: {result}");
    ensure!(result["received"].as_u64() > Some(0), "nothing came back: {result}");
    reach(lab, "after an agent's restart")?;
    let after = wait_relayed(lab)?;
    eprintln!("           relayed by {} before, by {} after", before["relay"], after["relay"]);
    Ok(())
}

/// The other side has no leg with it any more, and its own channels are refused.
fn a_node_is_removed(lab: &Lab) -> Result<()> {
    wait_relayed(lab)?;
    lab.kubectl(&["patch", "meshnode", "hard-b", "--type=merge", "-p", r#"{"spec":{"suspended":true}}"#])?;
    wait::until("relays to refuse hard-b", SOON, || {
        let status = agent::ask(lab, "hard-b", "/v1/status").map_err(|error| format!("{error:#}"))?;
        let relays = status["relays"].as_array().cloned().unwrap_or_default();
        let refused = |relay: &Value| relay["error"].as_str().is_some_and(|why| why.contains("no admitted node"));
        if !relays.is_empty() && relays.iter().all(refused) { Ok(()) } else { Err(status["relays"].to_string()) }
    })?;
    wait::until("hard-a to have no leg with hard-b", Duration::from_secs(60), || {
        match path(lab, "hard-a", "hard-b") {
            Err(gone) if gone.contains("has no peer") => Ok(()),
            Err(error) => Err(error),
            Ok(path) if path["legs"].as_array().is_none_or(Vec::is_empty) && path["state"] != "relayed" => Ok(()),
            Ok(path) => Err(path.to_string()),
        }
    })?;
    lab.kubectl(&["patch", "meshnode", "hard-b", "--type=merge", "-p", r#"{"spec":{"suspended":false}}"#])?;
    warren::wait_ready(lab)?;
    reach(lab, "after hard-b is a member again")?;
    wait_relayed(lab).map(drop)
}

/// A relay needs a port for each pair of a node. With one each, the nodes that only relays can connect get no further than their first pairs.
fn relays_have_one_port(lab: &Lab) -> Result<()> {
    const REASON: &str = "RelayPortsExhausted";
    let relayed = |name: &Value| name == TLS || HARD.iter().any(|(node, _)| name == node);
    warren::upgrade(lab, &["--set", "relay.relayPorts=1"])?;
    let event = wait::until("an Event of a node with peers that no relay has a port for", SOON, || {
        let list = lab.kubectl_json(&["get", "events", "-A", &format!("--field-selector=reason={REASON}")]);
        let items = list.map_err(|error| format!("{error:#}"))?["items"].as_array().cloned().unwrap_or_default();
        let told = |event: &&Value| relayed(&event["involvedObject"]["name"]);
        items.iter().find(told).cloned().ok_or_else(|| format!("{items:?}"))
    })?;
    let name = event["involvedObject"]["name"].as_str().context("a name")?.to_owned();
    eprintln!("           {name}: {}", event["message"]);
    ensure!(event["type"] == "Warning" && event["involvedObject"]["kind"] == "MeshNode", "{event}");
    let object = lab.kubectl_json(&["get", "meshnode", &name])?;
    let conditions = object["status"]["conditions"].as_array().map(Vec::as_slice).unwrap_or_default();
    let is_said = conditions.iter().any(|one| one["type"] == REASON && one["status"] == "True");
    ensure!(is_said, "{name} has no such condition: {}", object["status"]["conditions"]);
    let report = agent::ask(lab, &name, "/v1/paths")?;
    let peers = report["peers"].as_array().map(Vec::as_slice).unwrap_or_default();
    let portless = |path: &&Value| path["state"] == "down" && path["reason"] == REASON && relayed(&path["name"]);
    ensure!(peers.iter().any(|path| portless(&path)), "{name} reaches everybody, or says something else: {report}");
    Ok(())
}
