//! The kernel's WireGuard through a relay: the guests stand behind NATs that draw their ports, so nothing connects them directly. What
//! happens to their relay, or to an agent, happens to no session, and where it can be helped to no packet.

mod load;
pub mod scene;
mod tls;

pub use load::drained;
pub use tls::{with_udp_again, without_udp};

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use e2e::guest::member;
use e2e::lab::Lab;
use e2e::outage::SOON;
use e2e::wait;
use scene::{
    RELAYS, behind_hard_nats, label, relay_address, session, wait_channels, wait_only, wait_path, wait_relayed,
    wait_warm, wait_young_session,
};
use serde_json::Value;

use crate::faults::{reach, row};
use crate::pings::{self, Addresses};
use crate::restarts::identity;
use crate::{A, B, PUB};

/// Four streams of this many seconds at 10 Hz, two of them between the guests: 300 pings of theirs.
const STREAM: Duration = Duration::from_secs(15);

/// Nothing but a relay connects the guests, and they say so. What they reach directly, they still do.
pub fn hard_nats(lab: &Lab) -> Result<()> {
    behind_hard_nats(lab)?;
    for (from, to) in [(A, B), (B, A)] {
        // One that was direct before says for long that nothing answers there any more.
        let is_known = |path: &Value| path["reason"] == "HardNAT" || path["reason"] == "PeerDown";
        let path = wait_path(lab, from, to, "the reason", is_known)?;
        eprintln!("           {from} to {to}: by {} at {}, {}", path["relay"], path["endpoint"], path["reason"]);
        member::wait_direct(lab, from, PUB)?;
    }
    Ok(())
}

/// The node of the relay in use is to have none any more, so the relay drains, and the other one carries the pair on.
pub fn moved(lab: &Lab) -> Result<()> {
    let relay = behind_hard_nats(lab)?;
    let before = identity(lab, A)?;
    let mut after = String::new();
    pings::none_lost(lab, STREAM, "moved to another relay", || {
        wait_warm(lab)?;
        label(lab, &relay, false)?;
        after = wait_only(lab, &relay)?;
        Ok(())
    })?;
    ensure!(before == identity(lab, A)?, "interface, port or key changed");
    eprintln!("           by {relay} before, by {after} after");
    label(lab, &relay, true)?;
    wait_channels(lab, RELAYS.len())
}

/// The only relay is killed, and kubelet starts it again in its place. The pair asks for the port that it had, but while packets flow pairs
/// that are direct ask for a port as well, and may be given that one first.
pub fn killed_in_place(lab: &Lab) -> Result<()> {
    let spare = behind_hard_nats(lab)?;
    label(lab, &spare, false)?;
    let relay = wait_only(lab, &spare)?;
    let addresses = Addresses::read(lab)?;
    wait_young_session(lab, &addresses)?;
    let before = (session(lab)?, relay_address(lab)?);
    let mut took = Duration::ZERO;
    let pings = pings::during(lab, &addresses, STREAM, || {
        // The streams have begun when as much as this has passed.
        reach(lab, A, &addresses.b)?;
        reach(lab, B, &addresses.a)?;
        let process = lab.exec(&relay, "pgrep", &["-x", "warren-relay"])?;
        let began = Instant::now();
        lab.exec(&relay, "pkill", &["-9", "-x", "warren-relay"])?;
        wait::until("kubelet to start the relay again", SOON, || {
            let now = lab.exec(&relay, "pgrep", &["-x", "warren-relay"]).map_err(|error| format!("{error:#}"))?;
            if now == process { Err(format!("process {now}")) } else { Ok(()) }
        })?;
        reach(lab, A, &addresses.b)?;
        took = began.elapsed();
        Ok(())
    })?;
    reach(lab, B, &addresses.a)?;
    let after = (session(lab)?, relay_address(lab)?);
    row("47", "the only relay killed", "back in its place, the same session", format!("{pings}, {after:?}"), took);
    ensure!(before == after, "latest handshakes and the relay's addresses were {before:?}, and are {after:?}");
    label(lab, &spare, true)?;
    wait_channels(lab, RELAYS.len())
}

/// Agents of relayed nodes end and start again: the kernel goes on with the leg that is bound.
pub fn agents_restarted(lab: &Lab) -> Result<()> {
    behind_hard_nats(lab)?;
    let before = [identity(lab, A)?, identity(lab, B)?];
    for (guest, signal) in [(A, "-9"), (B, "-TERM")] {
        pings::none_lost(lab, STREAM, &format!("relayed, the agent of {guest} ended by {signal}"), || {
            member::end_agent(lab, lab.node(guest)?, signal)?;
            member::start_agent(lab, lab.node(guest)?, None)?;
            wait_relayed(lab).map(drop)
        })?;
    }
    ensure!(before == [identity(lab, A)?, identity(lab, B)?], "interface, port or key changed");
    Ok(())
}
