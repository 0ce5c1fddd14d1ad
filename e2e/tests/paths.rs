//! What breaks around pairs and their relays: one pair that is never direct, one that can be, and two relays that both pairs reach.

use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use e2e::agent::{both_ways, path};
use e2e::cluster::control_plane::{self, Component};
use e2e::cluster::node;
use e2e::images::Set;
use e2e::lab::Lab;
use e2e::net::namespace::Namespace;
use e2e::net::topology;
use e2e::outage::{SOON, during, on, reach};
use e2e::scenario::Scenario;
use e2e::secrets::key_file;
use e2e::workload;
use e2e::{checks, command, harness, wait};
use serde_json::Value;

/// Seconds of traffic around what breaks and heals within them.
const STREAM: u64 = 20;
/// The same where nothing heals.
const BREAK: u64 = 15;
/// The same when a pair is woken: most are direct in the second second.
const WAKES: u64 = 8;
/// How long nothing may happen.
const ASLEEP: Duration = Duration::from_secs(75);
/// The nodes that have a relay.
const RELAYS: [&str; 2] = ["cp", "pub"];
/// The pair that is never direct.
const HARD: (&str, &str) = ("hard-a", "hard-b");
/// The pair whose NATs can be opened.
const EASY: (&str, &str) = ("home-a", "home-b");

fn main() -> ExitCode {
    harness::main(
        Scenario::paths("t-paths"),
        Set::All,
        &[
            ("helm_install_returns_and_every_node_is_ready", checks::install),
            ("every_pod_reaches_every_pod", checks::pod_to_pod),
            ("idle_pairs_sleep_and_lose_no_first_packet", idle_pairs_sleep),
            ("what_separates_two_nodes_leaves_them_their_relay", two_nodes_are_separated),
            ("all_relays_are_killed_and_direct_pairs_hold", all_relays_are_killed),
            ("no_relay_is_reached_and_new_pairs_meet_by_the_api", no_relay_is_reached),
            ("a_nat_is_renumbered_while_the_api_server_is_gone", a_nat_is_renumbered_without_the_api),
            ("a_node_with_a_relay_dies", a_node_with_a_relay_dies),
        ],
    )
}

fn is(state: &str) -> impl Fn(&Value) -> bool {
    move |path| path["state"] == state
}

/// Waits until each pair is what it is at rest.
fn wait_rest(lab: &Lab) -> Result<()> {
    wait::until("both pairs to be at rest", SOON, || {
        both_ways(lab, HARD, is("relayed"))?;
        both_ways(lab, EASY, is("direct")).map(drop)
    })
}

/// Waits until packets that flow have given the pair so many legs that are ready, as both see it.
fn wait_legs(lab: &Lab, pair: (&str, &str), count: usize) -> Result<()> {
    wait::until(&format!("{pair:?} to have {count} legs ready"), SOON, || {
        let ready = |path: &Value| {
            path["legs"].as_array().map_or(0, |legs| legs.iter().filter(|leg| leg["phase"] == "ready").count())
        };
        both_ways(lab, pair, |path| ready(path) >= count).map(drop)
    })
}

/// A stream between the pods of a pair while something happens.
fn stream(lab: &Lab, pair: (&str, &str), seconds: u64, fault: impl FnOnce() -> Result<()>) -> Result<Value> {
    let pods = workload::pods(lab)?;
    during(lab, on(&pods, pair.0)?, on(&pods, pair.1)?, seconds, fault)
}

/// Pairs that nobody uses are let go, cost nothing, and are there again with the first packet, from either side.
fn idle_pairs_sleep(lab: &Lab) -> Result<()> {
    let set = |paths: &str| {
        let patch = format!(r#"{{"spec":{{"paths":{paths}}}}}"#);
        lab.kubectl(&["patch", "mesh", "default", "--type=merge", "-p", &patch]).map(drop)
    };
    let asleep = || {
        wait::until("both pairs to be idle", SOON, || {
            let is_idle = |path: &Value| path["state"] == "idle" && path["legs"].as_array().is_some_and(Vec::is_empty);
            let bytes = |path: &Value| (path["rxBytes"].clone(), path["txBytes"].clone());
            let pairs = [both_ways(lab, HARD, is_idle)?, both_ways(lab, EASY, is_idle)?];
            Ok(pairs.map(|sides| sides.map(|side| bytes(&side))))
        })
    };
    wait_rest(lab)?;
    set(r#"{"mode":"OnDemand","idleSeconds":10}"#)?;
    let before = asleep()?;
    let watched = watch_easy(lab)?;
    // Time that passes is what is measured here: two keepalives, and a check, of a pair that is kept.
    std::thread::sleep(ASLEEP);
    let (after, packets) = (asleep()?, watched.packets()?);
    ensure!(before == after, "a device sent or received something: {before:?}, then {after:?}");
    ensure!(packets == 0, "{packets} packets passed between the homes");
    let pods = workload::pods(lab)?;
    // Falling asleep takes most of the time, so both pairs are woken at once: first from one side, then from the other.
    for both in [[HARD, EASY], [(HARD.1, HARD.0), (EASY.1, EASY.0)]] {
        asleep()?;
        let wake = |(from, to)| during(lab, on(&pods, from)?, on(&pods, to)?, WAKES, || Ok(()));
        let results = std::thread::scope(|scope| {
            both.map(|pair| scope.spawn(move || wake(pair))).map(|stream| stream.join().expect("it does not panic"))
        });
        for ((from, to), result) in both.into_iter().zip(results) {
            let result = result?;
            eprintln!("           {from} wakes {to}: {result}");
            ensure!(result["sent"] == result["received"], "packets were lost: {result}");
        }
    }
    ensure!(watched.packets()? > 0, "the counter sees nothing of a pair in use");
    watched.end()?;
    set("null")?;
    wait_rest(lab)?;
    reach(lab, "after pairs slept")
}

/// Counts what passes between the two homes, whatever it is.
fn watch_easy(lab: &Lab) -> Result<Watch> {
    let inet = topology::internet(&lab.scenario().name);
    let [a, b] = [lab.node(EASY.0)?.outer_v4(), lab.node(EASY.1)?.outer_v4()];
    inet.nft(&format!(
        "table ip wlidle {{
           counter pair {{ }}
           chain forward {{
             type filter hook forward priority 0; policy accept;
             ip saddr {a} ip daddr {b} counter name \"pair\"
             ip saddr {b} ip daddr {a} counter name \"pair\"
           }}
         }}"
    ))?;
    Ok(Watch(inet))
}

struct Watch(Namespace);

impl Watch {
    fn packets(&self) -> Result<u64> {
        let said = command::run(&mut self.0.command("nft", &["list", "counter", "ip", "wlidle", "pair"]))?;
        let words = said.split_whitespace().skip_while(|word| *word != "packets");
        words.skip(1).find_map(|word| word.parse().ok()).with_context(|| format!("no count in {said:?}"))
    }

    fn end(&self) -> Result<()> {
        self.0.nft("delete table ip wlidle")
    }
}

/// The internet carries nothing between two homes, and both go on reaching the relays.
fn two_nodes_are_separated(lab: &Lab) -> Result<()> {
    wait_rest(lab)?;
    let inet = topology::internet(&lab.scenario().name);
    let [a, b] = [lab.node(EASY.0)?.outer_v4(), lab.node(EASY.1)?.outer_v4()];
    let cut = format!(
        "table ip wlcut {{
           chain forward {{
             type filter hook forward priority 0; policy accept;
             ip saddr {a} ip daddr {b} drop
             ip saddr {b} ip daddr {a} drop
           }}
         }}"
    );
    let result = stream(lab, EASY, STREAM, || {
        wait_legs(lab, EASY, 1)?;
        inet.nft(&cut)?;
        wait::until("the pair to be relayed", SOON, || both_ways(lab, EASY, is("relayed")).map(drop))
    })?;
    eprintln!("           separated: {result}");
    ensure!(result["received"].as_u64() > Some(0), "nothing came back: {result}");
    let result = stream(lab, EASY, STREAM, || {
        inet.nft("delete table ip wlcut")?;
        wait::until("the pair to be direct", SOON, || both_ways(lab, EASY, is("direct")).map(drop))
    })?;
    eprintln!("           joined again: {result}");
    ensure!(result["received"].as_u64() > Some(0), "nothing came back: {result}");
    reach(lab, "after two nodes were separated")
}

/// Both relays at once, without a word, and kubelet starts none again before it is let.
fn all_relays_are_killed(lab: &Lab) -> Result<()> {
    wait_rest(lab)?;
    let kubelets =
        |signal: &str| RELAYS.iter().try_for_each(|node| lab.exec(node, "pkill", &[signal, "-x", "kubelet"]).map(drop));
    kubelets("-STOP")?;
    let result = stream(lab, EASY, BREAK, || {
        for node in RELAYS {
            lab.exec(node, "pkill", &["-9", "-x", "warren-relay"])?;
        }
        wait::until("the relayed pair to say that nothing carries it", SOON, || {
            let down = |path: &Value| path["state"] == "down" && path["reason"] != "" && path["relay"].is_null();
            both_ways(lab, HARD, down).map(|[seen, _]| eprintln!("           without a relay: {seen}"))
        })
    });
    let named = wait::until("the node's condition to name its peer", SOON, || {
        let object = lab.kubectl_json(&["get", "meshnode", HARD.0]).map_err(|error| format!("{error:#}"))?;
        let conditions = object["status"]["conditions"].as_array().cloned().unwrap_or_default();
        let paths = conditions.iter().find(|one| one["type"] == "PathsHealthy").cloned().unwrap_or_default();
        let names = paths["message"].as_str().is_some_and(|text| text.contains(HARD.1));
        if paths["status"] == "False" && names { Ok(paths["message"].clone()) } else { Err(paths.to_string()) }
    });
    kubelets("-CONT")?;
    let (result, named) = (result?, named?);
    eprintln!("           all relays killed: {result}; {named}");
    ensure!(result["sent"] == result["received"], "a direct pair lost packets: {result}");
    wait_rest(lab)?;
    reach(lab, "after all relays were killed")
}

/// Relays answer STUN and nothing else. A node that is new to the others meets them by what the API says.
fn no_relay_is_reached(lab: &Lab) -> Result<()> {
    const CLOSED: &str = r#"
table inet wlclosed {
  chain input {
    type filter hook input priority -1; policy accept;
    iifname "lo" accept
    udp dport 51899-51963 drop
    tcp dport 8443 drop
  }
}
"#;
    wait_rest(lab)?;
    let spaces: Vec<_> =
        RELAYS.iter().map(|name| lab.node(name).map(|spec| node::namespace(lab, spec))).collect::<Result<_>>()?;
    let result = stream(lab, EASY, BREAK, || spaces.iter().try_for_each(|space| space.nft(CLOSED)));
    let met = result.and_then(|result| renew_key(lab, EASY.1).map(|()| result));
    spaces.iter().try_for_each(|space| space.nft("delete table inet wlclosed"))?;
    let result = met?;
    eprintln!("           no relay reached: {result}");
    ensure!(result["sent"] == result["received"], "a direct pair lost packets: {result}");
    wait_rest(lab)?;
    reach(lab, "after relays were reached again")
}

/// The node is another one for its peers from now on: waits until the two homes are direct, while nothing carries them.
fn renew_key(lab: &Lab, name: &str) -> Result<()> {
    let key = |from, to| path(lab, from, to).map(|seen| seen["key"].clone());
    let old = key(EASY.0, name).map_err(anyhow::Error::msg)?;
    let file = key_file(lab, name);
    std::fs::remove_file(&file).with_context(|| format!("removing {}", file.display()))?;
    lab.exec(name, "pkill", &["-9", "-x", "warren-agent"])?;
    wait::until("the peer to have another key", SOON, || match key(EASY.0, name)? {
        now if now != old => Ok(()),
        now => Err(now.to_string()),
    })?;
    wait::until("the new pair to be direct without a relay", SOON, || {
        both_ways(lab, EASY, |path| path["state"] == "direct" && path["legs"].as_array().is_none_or(Vec::is_empty))
            .map(drop)
    })
}

/// The new address stands in no object before the API server answers again: the relay's signals alone can tell it.
fn a_nat_is_renumbered_without_the_api(lab: &Lab) -> Result<()> {
    let wan = "198.51.100.12/28".parse().context("an address")?;
    wait_rest(lab)?;
    // Asked of the API server, so before it is gone.
    let pods = workload::pods(lab)?;
    let (from, to) = (on(&pods, EASY.0)?, on(&pods, EASY.1)?);
    control_plane::freeze(lab, Component::ApiServer)?;
    let moved = during(lab, from, to, STREAM, || {
        wait_legs(lab, EASY, 1)?;
        topology::change_home(lab.scenario(), EASY.0, wan, 9_000)?;
        let seen = wait::until("the pair to be direct at the new address", SOON, || {
            both_ways(lab, EASY, is("direct"))?;
            match path(lab, EASY.1, EASY.0)? {
                path if path["endpoint"].as_str().is_some_and(|at| at.starts_with("198.51.100.12:")) => Ok(path),
                path => Err(path.to_string()),
            }
        })?;
        eprintln!("           at the new address: {}", seen["endpoint"]);
        Ok(())
    });
    control_plane::thaw(lab, Component::ApiServer)?;
    control_plane::wait_ready(lab)?;
    let moved = moved?;
    eprintln!("           renumbered without the API server: {moved}");
    ensure!(moved["received"].as_u64() > Some(0), "nothing came back: {moved}");
    reach(lab, "after the API server came back")
}

/// Power and plug: nothing answers at its address any more, nobody says a word.
fn a_node_with_a_relay_dies(lab: &Lab) -> Result<()> {
    const DIES: &str = "pub";
    wait_rest(lab)?;
    for _ in 0..3 {
        let relay =
            path(lab, HARD.0, HARD.1).map_err(anyhow::Error::msg)?["relay"].as_str().context("a relay")?.to_owned();
        if relay == DIES {
            break;
        }
        stream(lab, HARD, BREAK, || {
            wait_legs(lab, HARD, 2)?;
            lab.exec(&relay, "pkill", &["-9", "-x", "warren-relay"]).map(drop)
        })?;
        wait_rest(lab)?;
    }
    let uses = |relay: &'static str| move |path: &Value| path["state"] == "relayed" && path["relay"] == relay;
    if let Err(seen) = both_ways(lab, HARD, uses(DIES)) {
        bail!("the pair does not go by the relay on {DIES}: {seen}");
    }
    let spec = lab.node(DIES)?;
    let result = stream(lab, HARD, STREAM, || {
        wait_legs(lab, HARD, 2)?;
        node::power_cut(lab, spec)?;
        topology::detach(lab.scenario(), spec)?;
        wait::until("the pair to go by the other relay", SOON, || both_ways(lab, HARD, uses("cp")).map(drop))
    })?;
    eprintln!("           the relay's node died: {result}");
    ensure!(result["received"].as_u64() > Some(0), "nothing came back: {result}");
    topology::attach(lab.scenario(), spec)?;
    node::boot(lab, spec)?;
    reach(lab, "after the relay's node came back")?;
    wait_rest(lab)
}
