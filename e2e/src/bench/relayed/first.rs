//! From a pair without a path to its first byte: what a round trip is, and how many of them it takes.
//!
//! The first node of the hard pair has a new identity each time, so that there is neither session nor leg, and paths are made on demand: both
//! nodes know each other and are at the relays, and wait. Then one datagram goes into the tunnel. It takes an allocation, two legs that
//! are bound, a handshake and its own way: two and a half round trips by the relay, of which one is left when the legs are bound, if the
//! sender begins the handshake with its ANSWER; half a round trip more if the other one does.

use std::net::{Ipv4Addr, UdpSocket};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use base64::Engine;
use serde_json::Value;

use super::{HARD, Hard, OFTEN, has_channels};
use crate::agent::{ask, both_ways};
use crate::bench::cluster::mesh_address;
use crate::bench::restart::{DEADLINE, Identity, REPLACED, kill_agent, replace_pod, whole_stream};
use crate::bench::{Goal, LAB, Row, Spread};
use crate::lab::Lab;
use crate::net::topology;
use crate::wait;

/// In round trips.
const KNOWN: Goal = Goal::Most(3.0);
const BOUND: Goal = Goal::Most(1.5);
/// Where the datagram goes.
const PORT: u16 = 7654;
/// What nobody outside can see has happened by then: that relays have told each node of the other.
const MET: Duration = Duration::from_secs(1);
/// Between two looks at the legs: a hundredth of a round trip.
const LOOK: Duration = Duration::from_micros(500);
/// Echoes of which the round trip is taken.
const ECHOES: Duration = Duration::from_secs(2);

/// One first byte, in seconds.
struct First {
    /// Since it was sent, by a node that knew its peer and no more.
    known: f64,
    /// Since the last look at which the sender's agent did not have both legs bound yet: a moment too early, never too late.
    bound: f64,
    /// The round trip of the pair afterwards.
    round_trip: f64,
    /// Whether the sender is the one that begins handshakes: who answers one may send half a round trip later.
    begins: bool,
}

pub fn measure(hard: &Hard<'_>, runs: usize) -> Result<Vec<Row>> {
    let paths = |paths: &str| {
        let patch = format!(r#"{{"spec":{{"paths":{paths}}}}}"#);
        hard.lab.kubectl(&["patch", "mesh", "default", "--type=merge", "-p", &patch]).map(drop)
    };
    paths(r#"{"mode":"OnDemand"}"#)?;
    let all: Result<Vec<First>> = (1..=runs)
        .map(|number| hard.progress.step(&format!("the first byte, {number} of {runs}"), || first(hard)))
        .collect();
    paths("null")?;
    let all = all?;
    // Each packet crosses the lab's internet twice on its way, and so does its answer.
    let round_trip = Duration::from_millis(4 * hard.lab.scenario().delay_ms).as_secs_f64();
    let row = |what: &str, these: &[&First], of: fn(&First) -> f64| {
        Row::new(what, "RTTs", Spread::of(these.iter().map(|one| of(one) / round_trip)))
    };
    let mut rows = Vec::new();
    for (begins, who) in [(true, "the sender begins handshakes"), (false, "the sender follows")] {
        // Which of the two it is its new key decides.
        let these: Vec<&First> = all.iter().filter(|one| one.begins == begins).collect();
        if !these.is_empty() {
            let times = these.len();
            rows.push(row(&format!("{who} ({times} times): peer just known"), &these, |one| one.known).goal(KNOWN));
            rows.push(row(&format!("{who}: legs bound"), &these, |one| one.bound).goal(BOUND));
        }
    }
    rows.push(row("round trip of the pair afterwards", &all.iter().collect::<Vec<_>>(), |one| one.round_trip));
    Ok(rows)
}

fn first(hard: &Hard<'_>) -> Result<First> {
    let lab = hard.lab;
    renew(lab)?;
    let to = mesh_address(lab, HARD[1])?;
    let [from_space, to_space] = HARD.map(|node| topology::node(LAB, node));
    let receiver = to_space.enter(move || UdpSocket::bind((to, PORT)).context("binding the receiver"))?;
    let sender = from_space.enter(|| UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).context("binding the sender"))?;
    receiver.set_read_timeout(Some(DEADLINE)).context("setting a deadline")?;
    let (sent, bound, came) = std::thread::scope(|scope| {
        let coming = scope.spawn(|| receiver.recv(&mut [0; 16]).ok().map(|_| Instant::now()));
        let sent = Instant::now();
        sender.send_to(b"the first", (to, PORT)).context("sending")?;
        let mut bound = sent;
        while !coming.is_finished() {
            let asked = Instant::now();
            if is_ready(lab) {
                break;
            }
            bound = asked;
            std::thread::sleep(LOOK);
        }
        anyhow::Ok((sent, bound, coming.join().expect("it does not panic")))
    })?;
    let since = |instant: Instant| came.map_or(f64::INFINITY, |came| (came - instant).as_secs_f64());
    // The node with the smaller key is the one that starts handshakes.
    let [own, other] = HARD.map(|node| key(lab, node));
    let begins = bytes(&own?)? < bytes(&other?)?;
    let first = First { known: since(sent), bound: since(bound), round_trip: round_trip(lab, to)?, begins };
    let ms = |seconds: f64| seconds * 1000.0;
    let (known, bound) = (ms(first.known), ms(first.bound));
    let role = if begins { "begins handshakes" } else { "follows" };
    hard.progress.say(&format!("{known:.0} ms, {bound:.0} from both legs on; the sender {role}"));
    Ok(first)
}

/// Another node takes the place of the first one, and it and the second one know each other.
fn renew(lab: &Lab) -> Result<()> {
    replace_pod(lab, HARD[0])?;
    let old = key(lab, HARD[0])?;
    kill_agent(lab, HARD[0], Identity::New)?;
    wait::until("both nodes to know each other and to be at the relays", REPLACED, || {
        let new = key(lab, HARD[0]).map_err(|error| format!("{error:#}"))?;
        let [_, seen] = both_ways(lab, (HARD[0], HARD[1]), |path| path["state"] == "idle")?;
        let is_known = new != old && seen["key"].as_str().is_some_and(|begin| new.starts_with(begin));
        match (is_known, HARD.iter().all(|node| has_channels(lab, node))) {
            (true, true) => Ok(()),
            other => Err(format!("{other:?}: {new}, and {seen}")),
        }
    })?;
    std::thread::sleep(MET);
    Ok(())
}

/// The public key of a node, once its agent says so.
fn key(lab: &Lab, node: &str) -> Result<String> {
    let status = wait::until("the agent to have a key", REPLACED, || {
        let status = ask(lab, node, "/v1/status").map_err(|error| format!("{error:#}"))?;
        if status["publicKey"].is_string() { Ok(status) } else { Err(status.to_string()) }
    })?;
    Ok(status["publicKey"].as_str().unwrap_or_default().to_owned())
}

fn bytes(key: &str) -> Result<Vec<u8>> {
    base64::engine::general_purpose::STANDARD.decode(key).with_context(|| format!("reading the key {key:?}"))
}

/// Whether the first node's agent knows that both legs of the pair are bound, on whichever relay.
fn is_ready(lab: &Lab) -> bool {
    let report = ask(lab, HARD[0], &format!("/v1/paths/{}", HARD[1])).unwrap_or_default();
    let ready = |leg: &Value| leg["phase"] == "ready";
    report["peers"][0]["legs"].as_array().is_some_and(|legs| legs.iter().any(ready))
}

/// The median of some pings, in seconds.
fn round_trip(lab: &Lab, to: Ipv4Addr) -> Result<f64> {
    let pings = whole_stream(lab, HARD[0], to, OFTEN)?;
    std::thread::sleep(ECHOES);
    Ok(Spread::of(pings.stop().round_trips).median() / 1000.0)
}
