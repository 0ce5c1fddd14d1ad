//! Memory of allocations that nobody uses.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::Result;
use relay::server::plane::Config;

use super::leg::{self, Relay};
use super::wires::{End, FAR, NEAR, Wires};
use crate::bench::usage;
use crate::wait;

/// Partners of each node: half of the ports, so that there is always one free at both.
const PARTNERS: usize = 32;
/// The data plane's next turn.
const BOUND: Duration = Duration::from_secs(5);

/// Bytes of resident memory for each of so many allocations with both legs bound.
pub fn per_allocation(wires: &Wires, count: usize) -> Result<f64> {
    // Each node of the one half is paired with the next ones of the other.
    let nodes = count.div_ceil(PARTNERS);
    let (from, to) = (wires.sockets(End::Sender, nodes)?, wires.sockets(End::Receiver, nodes)?);
    let mut relay = Relay::start(wires, Config::default())?;
    let pid = std::process::id().cast_signed();
    let before = usage::of(pid)?.rss_mib;
    for index in 0..count {
        let (low, high) = (index / PARTNERS, (index / PARTNERS + index % PARTNERS) % nodes);
        let [one, other] = relay.allocate([low, nodes + high])?;
        let (near, far) = ((NEAR, one.port), (FAR, other.port));
        leg::bind(&from[low], SocketAddr::from(near), one)?;
        leg::bind(&to[high], SocketAddr::from(far), other)?;
    }
    let after = usage::of(pid)?.rss_mib;
    // Counters are shown after the turn in which they moved.
    wait::until("every leg to be bound", BOUND, || match relay.forwarder.snapshot().plane.bound_legs {
        bound if bound == 2 * count => Ok(()),
        bound => Err(format!("{bound} of {} are", 2 * count)),
    })?;
    Ok((after - before) * f64::from(1 << 20) / count as f64)
}
