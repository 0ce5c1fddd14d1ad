//! A guest from which only TCP to port 443 leaves: its kernel's WireGuard is carried inside the agent's channel to a relay.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use e2e::cluster::node;
use e2e::guest::member;
use e2e::lab::Lab;
use e2e::net::router;
use e2e::scenario::{Node, Site};

use super::scene::{end_server, endpoint, pod_program, serve, stand_behind, wait_path};
use crate::faults::{reach_all, row};
use crate::pings::{self, Addresses};
use crate::restarts::identity;
use crate::{A, B, PUB};

/// Pings over what stays as it is, and around a change: UDP is tried again every half a minute.
const STREAM: Duration = Duration::from_secs(10);
const BACK: Duration = Duration::from_secs(45);
/// Bytes there, and as many back.
const TRANSFER: &str = "2000000";
/// A port of TCP's where the guest serves.
const PORT: u16 = 9200;

/// Scenario 25: no UDP leaves the guest any more.
pub fn without_udp(lab: &Lab) -> Result<()> {
    let addresses = Addresses::read(lab)?;
    let (guest, other, cp) = (lab.node(A)?, lab.node(B)?, lab.scenario().control_plane());
    let (before, agent) = (identity(lab, A)?, agent(lab)?);
    // Only its own network has changed: everybody else is where he was from the beginning.
    stand_behind(lab, other, &other.site)?;
    // Its API server must be on 443 too.
    node::namespace(lab, cp).nft(&router::api_front())?;
    let began = Instant::now();
    stand_behind(lab, guest, &only_tls(guest)?)?;
    for peer in [B, PUB, &cp.name] {
        let path = wait_path(lab, A, peer, "a path inside the channel", |path| {
            path["state"] == "relayed" && path["transport"] == "tls" && path["reason"] == "UDPBlocked"
        })?;
        let at = endpoint(lab, A, peer)?;
        eprintln!("           {peer}: {} over {} at {at}, {}", path["relay"], path["transport"], path["reason"]);
        ensure!(at.starts_with("127.77."), "the kernel sends packets for {peer} to {at}");
    }
    reach_all(lab, A, &addresses)?;
    row("s25", "no UDP leaves any more", "carried over TLS", "everybody reached", began.elapsed());
    pings::none_lost(lab, STREAM, "the kernel's device, carried over TLS", || Ok(()))?;
    transfers(lab, &addresses.b)?;
    ensure!((before, agent) == (identity(lab, A)?, self::agent(lab)?), "another device, or another agent");
    Ok(())
}

/// Scenario 27: UDP leaves it again.
pub fn with_udp_again(lab: &Lab) -> Result<()> {
    let addresses = Addresses::read(lab)?;
    let (guest, before, agent) = (lab.node(A)?, identity(lab, A)?, agent(lab)?);
    let mut took = Duration::ZERO;
    let pings = pings::during(lab, &addresses, BACK, || {
        let began = Instant::now();
        stand_behind(lab, guest, &guest.site)?;
        for (from, to) in [(A, B), (A, PUB), (B, A)] {
            member::wait_direct(lab, from, to)?;
        }
        took = began.elapsed();
        Ok(())
    })?;
    row("s27", "UDP leaves again", "direct, without a restart", format!("direct, {pings}"), took);
    ensure!((before, agent) == (identity(lab, A)?, self::agent(lab)?), "another device, or another agent");
    ensure!(pings.lost * 20 <= pings.sent, "more than one in twenty was lost: {pings}");
    node::namespace(lab, lab.scenario().control_plane()).nft("delete table ip front")
}

/// Megabytes both ways between the guests, each byte looked at.
fn transfers(lab: &Lab, to: &str) -> Result<()> {
    let at = format!("{to}:{PORT}");
    serve(lab, &at)?;
    for verb in ["transfer", "upload"] {
        let url = format!("http://{at}");
        let said = lab.exec(A, &pod_program(), &["--timeout", "30", verb, &url, TRANSFER])?;
        eprintln!("           {verb} over TLS: {}", said.trim());
    }
    end_server(lab)
}

fn only_tls(guest: &Node) -> Result<Site> {
    let Site::Home { wan, wan6, .. } = guest.site else { bail!("{} is at no home", guest.name) };
    Ok(Site::OnlyTls { wan, wan6 })
}

/// The process of the guest's agent.
fn agent(lab: &Lab) -> Result<String> {
    lab.exec(A, "pgrep", &["warren-agent"]).context("the agent runs")
}
