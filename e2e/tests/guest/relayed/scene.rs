//! How the guests come to be relayed, and what their agents and kernels say of it.

use std::net::{IpAddr, SocketAddr};

use anyhow::{Context, Result, bail};
use e2e::guest::{self, member};
use e2e::images::binary;
use e2e::lab::Lab;
use e2e::net::topology;
use e2e::outage::SOON;
use e2e::scenario::{Node, Site};
use e2e::{command, wait};
use serde_json::Value;

use crate::faults::{reach, sh};
use crate::pings::Addresses;
use crate::{A, B, PUB};

/// The nodes that have a relay.
pub const RELAYS: [&str; 2] = ["cp", PUB];
/// WireGuard begins another session after two minutes by itself; one that is younger than this, in seconds, outlives a check.
const YOUNG: u64 = 60;
const DEVICE: &str = "warren0";

/// Puts guests that are not there yet behind NATs that draw their ports, and waits until all is at rest. Returns the relay that carries them.
pub fn behind_hard_nats(lab: &Lab) -> Result<String> {
    for guest in guest::all(lab)? {
        let router = topology::router(&lab.scenario().name, &guest.name);
        let rules = command::run(&mut router.command("nft", &["list", "table", "ip", "nat"]))?;
        // A pair that has just met is relayed at first behind every NAT: it tells nothing.
        if !rules.contains("fully-random") {
            stand_behind(lab, guest, &hard(guest)?)?;
        }
    }
    wait_relayed(lab)?;
    wait_channels(lab, RELAYS.len())?;
    wait_relayed(lab)
}

/// A NAT that draws its ports, at the addresses of the guest's home router.
pub fn hard(guest: &Node) -> Result<Site> {
    let Site::Home { wan, wan6, .. } = guest.site else { bail!("{} is at no home", guest.name) };
    Ok(Site::Hard { wan, wan6 })
}

/// Puts another router in the place of a guest's: it knows no connection of the one before.
pub fn stand_behind(lab: &Lab, guest: &Node, site: &Site) -> Result<()> {
    topology::change_site(lab.scenario(), &guest.name, site)?;
    let router = topology::router(&lab.scenario().name, &guest.name);
    command::run(&mut router.command("conntrack", &["-F"])).map(drop)
}

/// Says that a node shall have a relay, or shall not.
pub fn label(lab: &Lab, node: &str, has_relay: bool) -> Result<()> {
    let label = if has_relay { "warren.dev/relay=true" } else { "warren.dev/relay-" };
    lab.kubectl(&["label", "node", node, "--overwrite", label]).map(drop)
}

/// Waits until the guests are relayed as both see it; returns the relay.
pub fn wait_relayed(lab: &Lab) -> Result<String> {
    wait::until("the guests to be relayed", SOON, || relay(lab))
}

/// Waits until the relay of this node is none any more and the guests are relayed by the one that is left; returns that one.
pub fn wait_only(lab: &Lab, gone: &str) -> Result<String> {
    wait_channels(lab, RELAYS.len() - 1)?;
    wait::until(&format!("the relay on {gone} to be left"), SOON, || match relay(lab)? {
        relay if relay == gone => Err("it is in use".to_owned()),
        relay => Ok(relay),
    })
}

/// Waits until each guest has an open channel to each of so many relays.
pub fn wait_channels(lab: &Lab, count: usize) -> Result<()> {
    for guest in [A, B] {
        wait::until(&format!("channels of {guest} to {count} relays"), SOON, || {
            let status = member::report(lab, guest, "status").map_err(|error| format!("{error:#}"))?;
            let relays = status["relays"].as_array().map(Vec::as_slice).unwrap_or_default();
            let all_open = relays.iter().all(|relay| relay["state"] == "open");
            if relays.len() == count && all_open { Ok(()) } else { Err(status["relays"].to_string()) }
        })?;
    }
    Ok(())
}

/// Waits until packets that flow have given the guests a leg on the other relay too, as both see it.
pub fn wait_warm(lab: &Lab) -> Result<()> {
    let ready = |path: &Value| {
        let legs = path["legs"].as_array().map(Vec::as_slice).unwrap_or_default();
        legs.iter().filter(|leg| leg["phase"] == "ready").count() >= RELAYS.len()
    };
    wait_path(lab, A, B, "a warm leg", ready)?;
    wait_path(lab, B, A, "a warm leg", ready).map(drop)
}

/// Waits until what a node says of a peer is as wanted, and returns it.
pub fn wait_path(lab: &Lab, from: &str, to: &str, what: &str, is_it: impl Fn(&Value) -> bool) -> Result<Value> {
    wait::until(&format!("{what} from {from} to {to}"), SOON, || match path(lab, from, to)? {
        path if is_it(&path) => Ok(path),
        path => Err(path.to_string()),
    })
}

/// The program that guests answer with and send by, where it lies in them.
pub fn pod_program() -> String {
    binary("lab-pod").display().to_string()
}

/// Starts a server that echoes in the other guest, and returns once it answers at that address of it.
pub fn serve(lab: &Lab, at: &str) -> Result<()> {
    let (program, port) = (pod_program(), at.rsplit(':').next().unwrap_or_default());
    // It inherits the size of its receive buffer: that it is not let run for a moment is no loss of the path's.
    let script = format!(
        "pkill lab-pod; sysctl -qw net.core.rmem_max=8388608 net.core.rmem_default=8388608; \
         setsid {program} serve --port {port} </dev/null >/tmp/serve.log 2>&1 &"
    );
    sh(lab, B, &script)?;
    wait::until("the echo server", SOON, || {
        lab.exec(A, &program, &["--timeout", "1", "udp", at, "1000"]).map_err(|error| format!("{error:#}"))
    })?;
    Ok(())
}

/// Ends it.
pub fn end_server(lab: &Lab) -> Result<()> {
    lab.exec(B, "pkill", &["lab-pod"]).map(drop)
}

/// Where the kernel sends packets for a peer.
pub fn endpoint(lab: &Lab, node: &str, peer: &str) -> Result<String> {
    of_peer(lab, node, peer, "endpoints")
}

/// The relay's address that each end's kernel sends to.
pub fn relay_address(lab: &Lab) -> Result<[IpAddr; 2]> {
    let address = |node, peer| -> Result<IpAddr> {
        let endpoint = endpoint(lab, node, peer)?;
        let socket: SocketAddr = endpoint.parse().with_context(|| format!("reading the endpoint {endpoint:?}"))?;
        Ok(socket.ip())
    };
    Ok([address(A, B)?, address(B, A)?])
}

/// When each end last shook hands with the other, in seconds since 1970: another session has another time.
pub fn session(lab: &Lab) -> Result<[String; 2]> {
    Ok([of_peer(lab, A, B, "latest-handshakes")?, of_peer(lab, B, A, "latest-handshakes")?])
}

/// Waits, with packets that flow, until the session is young enough to outlive what comes.
pub fn wait_young_session(lab: &Lab, addresses: &Addresses) -> Result<()> {
    wait::until("a young session", SOON, || {
        reach(lab, A, &addresses.b).map_err(|error| format!("{error:#}"))?;
        let path = path(lab, A, B)?;
        let is_young = path["lastHandshakeSeconds"].as_u64().is_some_and(|age| age <= YOUNG);
        if is_young { Ok(()) } else { Err(path["lastHandshakeSeconds"].to_string()) }
    })
}

/// The relay that carries the guests, if both say the same and their kernels send there by UDP.
fn relay(lab: &Lab) -> Result<String, String> {
    let (one, other) = (path(lab, A, B)?, path(lab, B, A)?);
    let is_relayed = |path: &Value| path["state"] == "relayed" && path["transport"] == "udp";
    let name = one["relay"].as_str().unwrap_or_default();
    let at = lab.node(name).map_err(|error| format!("{error:#}: {one}"))?.outer_v4();
    let goes_there = |path: &Value| path["endpoint"].as_str().is_some_and(|to| to.starts_with(&format!("{at}:")));
    let both = [&one, &other];
    let agree = one["relay"] == other["relay"] && both.iter().all(|path| is_relayed(path) && goes_there(path));
    if agree { Ok(name.to_owned()) } else { Err(format!("{one} and {other}")) }
}

/// How `from` reaches `to`, as its agent says.
pub fn path(lab: &Lab, from: &str, to: &str) -> Result<Value, String> {
    let report = member::report(lab, from, "paths").map_err(|error| format!("{error:#}"))?;
    let peers = report["peers"].as_array().cloned().unwrap_or_default();
    peers.into_iter().find(|peer| peer["name"] == to).ok_or_else(|| format!("{from} has no peer {to}"))
}

/// What the kernel of a node says of a peer.
pub fn of_peer(lab: &Lab, node: &str, peer: &str, what: &str) -> Result<String> {
    let status = member::report(lab, peer, "status")?;
    let key = status["publicKey"].as_str().context("a key")?;
    let all = lab.exec(node, "wg", &["show", DEVICE, what])?;
    let value = all.lines().find_map(|line| line.strip_prefix(key));
    value.map(|value| value.trim().to_owned()).with_context(|| format!("{node} has no {what} of {peer}: {all}"))
}
