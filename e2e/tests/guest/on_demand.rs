//! Paths on demand with agents and kernels of their own: what nobody uses is let go, and the first ping of either side finds its way. The
//! kernel begins no second handshake within 5 s of one, so the one that went to nobody has to be handed on.

use std::time::Duration;

use anyhow::{Result, ensure};
use e2e::guest::member;
use e2e::lab::Lab;
use e2e::outage::SOON;
use e2e::wait;
use serde_json::Value;

use crate::faults::sh;
use crate::pings::Addresses;
use crate::relayed::scene::{behind_hard_nats, endpoint, of_peer, path};
use crate::{A, B, PUB};

/// How long nothing may happen: more than a keepalive takes.
const ASLEEP: Duration = Duration::from_secs(30);
/// Pings after the first, ten a second.
const PINGS: u32 = 50;
/// What they carry, so that whoever tracks connections knows all of them after the first.
const IDENTIFIER: &str = "77";

/// A pair that is direct while it is used.
pub fn direct(lab: &Lab) -> Result<()> {
    sleeps_and_wakes(lab)?;
    for (from, to) in [(A, B), (B, A), (A, PUB), (B, PUB)] {
        member::wait_direct(lab, from, to)?;
    }
    Ok(())
}

/// A pair that only a relay can carry.
pub fn relayed(lab: &Lab) -> Result<()> {
    behind_hard_nats(lab)?;
    sleeps_and_wakes(lab)?;
    behind_hard_nats(lab).map(drop)
}

/// Pairs are as they always are afterwards, whatever came of it.
fn sleeps_and_wakes(lab: &Lab) -> Result<()> {
    let addresses = Addresses::read(lab)?;
    let set = |paths: &str| {
        let patch = format!(r#"{{"spec":{{"paths":{paths}}}}}"#);
        lab.kubectl(&["patch", "mesh", "default", "--type=merge", "-p", &patch]).map(drop)
    };
    set(r#"{"mode":"OnDemand","idleSeconds":10}"#)?;
    let woken = [(A, B), (B, A)].into_iter().try_for_each(|(from, to)| wakes(lab, from, to, addresses.of(to)));
    set("null")?;
    woken
}

fn wakes(lab: &Lab, from: &str, to: &str, address: &str) -> Result<()> {
    let before = asleep(lab)?;
    // Time that passes is what is measured here.
    std::thread::sleep(ASLEEP);
    let after = asleep(lab)?;
    ensure!(before == after, "a kernel sent or received something: {before:?}, then {after:?}");
    for (one, other) in [(A, B), (B, A)] {
        let at = endpoint(lab, one, other)?;
        ensure!(at.starts_with("127.77."), "the kernel of {one} sends packets for {other} to {at}");
    }
    // WireGuard would try once more by itself after 5 s.
    let first = sh(lab, from, &format!("ping -n -c 1 -W 4 -e {IDENTIFIER} {address}; [ $? -le 1 ]"))?;
    let answered = first.lines().find(|line| line.contains("icmp_seq=1 "));
    ensure!(answered.is_some(), "{from} wakes {to}: the first ping had no answer: {first}");
    let rest = sh(lab, from, &format!("ping -n -q -c {PINGS} -i 0.1 -W 4 -e {IDENTIFIER} {address}; [ $? -le 1 ]"))?;
    let all = format!("{PINGS} packets transmitted, {PINGS} received");
    ensure!(rest.contains(&all), "{from} wakes {to}: pings were lost: {rest}");
    eprintln!("           {from} wakes {to}: {}, then {all}", answered.unwrap_or_default());
    Ok(())
}

/// Waits until the pair sleeps at both ends; returns what each kernel has received and sent.
fn asleep(lab: &Lab) -> Result<[String; 2]> {
    wait::until("both guests to let go of each other", SOON, || {
        for (from, to) in [(A, B), (B, A)] {
            let is_idle = |path: &Value| path["state"] == "idle" && path["legs"].as_array().is_some_and(Vec::is_empty);
            match path(lab, from, to)? {
                path if is_idle(&path) => {}
                path => return Err(path.to_string()),
            }
        }
        Ok(())
    })?;
    Ok([of_peer(lab, A, B, "transfer")?, of_peer(lab, B, A, "transfer")?])
}
