//! The network around a guest.

use anyhow::{Context, Result, ensure};
use e2e::guest::member;
use e2e::lab::Lab;
use e2e::scenario::gateway4;

use super::{STREAM, reach_all, row, sh};
use crate::pings::Addresses;
use crate::{A, B, pings};

/// Row 31: the underlay's interface gets another name, and the default route goes with it.
pub fn underlay_renamed(lab: &Lab) -> Result<()> {
    let addresses = Addresses::read(lab)?;
    let gateway = gateway4(lab.node(A)?.v4).addr();
    let rename = |from: &str, to: &str| {
        sh(
            lab,
            A,
            &format!(
                "ip link set {from} down && ip link set {from} name {to} && ip link set {to} up && ip route add default via {gateway}"
            ),
        )
    };
    rename("eth0", "uplink")?;
    let took = reach_all(lab, A, &addresses)?;
    member::wait_direct(lab, A, B)?;
    row("31", "interface renamed, default route made anew", "reached within 5 s", "everybody reached, direct", took);
    rename("uplink", "eth0")?;
    reach_all(lab, A, &addresses).map(drop)
}

/// Rows 32 and 34: delay, a tenth lost, a quarter reordered, on everything that a guest sends.
pub fn lossy_link(lab: &Lab) -> Result<()> {
    let before = member::wait_direct(lab, A, B)?;
    sh(lab, A, "tc qdisc add dev eth0 root netem delay 50ms 10ms loss 10% reorder 25%")?;
    let pings = pings::during(lab, &Addresses::read(lab)?, STREAM, || Ok(()));
    sh(lab, A, "tc qdisc del dev eth0 root")?;
    let (pings, after) = (pings?, member::wait_direct(lab, A, B)?);
    let since = after["sinceSeconds"].as_u64().context("an age of the path")?;
    let seen = format!("{pings}, direct for {since} s at {}", after["endpoint"]);
    row("32", "50 ms, 10 % loss, 25 % reordered", "the path stays", seen, STREAM);
    ensure!(before["endpoint"] == after["endpoint"] && since >= STREAM.as_secs(), "the path changed: {before} {after}");
    ensure!(pings.lost > 0, "netem lost nothing: the link was not lossy");
    Ok(())
}
