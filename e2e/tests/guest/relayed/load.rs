//! A relay that ends under load.

use std::time::Instant;

use anyhow::{Context, Result, bail, ensure};
use e2e::lab::Lab;
use e2e::net::topology;
use e2e::{command, wait, warren};
use serde_json::Value;

use super::scene::{RELAYS, behind_hard_nats, end_server, pod_program, serve, wait_channels, wait_relayed, wait_warm};
use crate::A;
use crate::faults::{SOON, row, sh};
use crate::pings::Addresses;
use crate::restarts::identity;

/// Where the guest that answers listens.
const PORT: u16 = 9100;
/// The first offer, in packets of 1,000 bytes a second each way; each next one is so much more.
const FIRST: f64 = 200.0;
const MORE: f64 = 1.4;
/// What is offered at most: more than two emulated machines on two cores ever carried.
const MOST: f64 = 50_000.0;
/// Seconds of an offer, and of the load under which the relay ends.
const OFFER: u64 = 3;
const LOAD: u64 = 15;
/// Of what the path carries without loss.
const SHARE: f64 = 0.8;
/// The load is there when so many packets, as a part of a second's, have left the guest.
const BEGUN: f64 = 2.0;
/// The machine does other work too: a loss counts only if the same load loses nothing when nothing happens. It is tried so often.
const TRIES: u32 = 4;

/// SIGTERM for the relay in use, by four fifths of what the path carries between these two machines: what they emulate, and not the relay, is
/// what bounds it.
pub fn drained(lab: &Lab) -> Result<()> {
    behind_hard_nats(lab)?;
    let before = identity(lab, A)?;
    let to = format!("{}:{PORT}", Addresses::read(lab)?.b);
    serve(lab, &to)?;
    sh(lab, A, "sysctl -qw net.core.rmem_max=8388608")?;
    for _ in 0..TRIES {
        let capacity = capacity(lab, &to)?;
        let rate = capacity * SHARE;
        let calm = Offer::run(lab, &to, LOAD, rate)?;
        eprintln!("           {capacity:.0} packets/s each way pass; at {rate:.0}, and nothing happens: {calm}");
        if calm.lost() > 0 {
            continue;
        }
        let relay = wait_relayed(lab)?;
        wait_warm(lab)?;
        let began = Instant::now();
        let under = drain_under(lab, &to, rate, &relay)?;
        let after = wait_relayed(lab)?;
        let what = format!("SIGTERM for the relay, {rate:.0} packets/s each way");
        row("50", &what, "none lost", format!("{under}, by {after} instead of {relay}"), began.elapsed());
        wait_channels(lab, RELAYS.len())?;
        ensure!(before == identity(lab, A)?, "interface, port or key changed");
        if under.lost() == 0 {
            return end_server(lab);
        }
        let calm = Offer::run(lab, &to, LOAD, rate)?;
        eprintln!("           the same again, and nothing happens: {calm}");
        ensure!(calm.lost() > 0, "{under} when the relay ended, and nothing when it did not");
    }
    bail!("in {TRIES} tries this machine never carried the same load twice")
}

/// Has the relay's pod deleted while the load runs.
fn drain_under(lab: &Lab, to: &str, rate: f64, relay: &str) -> Result<Offer> {
    let begun = sent(lab)? + (rate * BEGUN) as u64;
    std::thread::scope(|scope| {
        let load = scope.spawn(|| Offer::run(lab, to, LOAD, rate));
        // Nothing is asked of the guests meanwhile: a process more there is load that counts.
        let drain = || {
            wait::until("the load", SOON, || match sent(lab) {
                Ok(now) if now >= begun => Ok(()),
                other => Err(format!("{other:?}, and {begun} shall leave")),
            })?;
            warren::delete_pods(lab, "relay", &format!("spec.nodeName={relay}"))?;
            ensure!(!load.is_finished(), "the load was over before the relay was");
            Ok(())
        };
        let drained = drain();
        let offer = load.join().map_err(|_| anyhow::anyhow!("the load panicked"))?;
        drained.and(offer)
    })
}

/// Packets that the loaded guest has sent, as its router counts them.
fn sent(lab: &Lab) -> Result<u64> {
    let router = topology::router(&lab.scenario().name, A);
    let text = command::run(&mut router.command("ip", &["-s", "-j", "link", "show", "lan"]))?;
    let links: Value = serde_json::from_str(&text).with_context(|| format!("reading {text:?}"))?;
    links[0]["stats64"]["rx"]["packets"].as_u64().with_context(|| format!("no count in {text:?}"))
}

/// The highest rate that loses nothing, in packets a second.
fn capacity(lab: &Lab, to: &str) -> Result<f64> {
    let (mut rate, mut passed) = (FIRST, None);
    while rate <= MOST {
        let offer = Offer::run(lab, to, OFFER, rate)?;
        // A sender that is not let run tells nothing of the path either.
        if offer.lost() > 0 || offer.sent < (rate * OFFER as f64 * 0.95) as u64 {
            eprintln!("           {rate:.0} packets/s each way: {offer}");
            break;
        }
        passed = Some(rate);
        rate *= MORE;
    }
    passed.with_context(|| format!("not even {FIRST} packets/s pass without loss"))
}

/// What became of a load.
#[derive(Clone, Copy, Debug, PartialEq, serde::Deserialize)]
struct Offer {
    sent: u64,
    received: u64,
    overtaken: u64,
    silence_ms: f64,
}

impl Offer {
    /// Offers so many packets a second for some seconds.
    fn run(lab: &Lab, to: &str, seconds: u64, rate: f64) -> Result<Self> {
        let (program, seconds, rate) = (pod_program(), seconds.to_string(), rate.to_string());
        let text = lab.exec(A, &program, &["load", to, &seconds, "--rate", &rate])?;
        serde_json::from_str(&text).with_context(|| format!("reading {text:?}"))
    }

    fn lost(&self) -> u64 {
        self.sent - self.received
    }
}

impl std::fmt::Display for Offer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { sent, overtaken, silence_ms, .. } = self;
        write!(
            f,
            "{} of {sent} lost, overtaken by {overtaken} at most, longest silence {:.2} s",
            self.lost(),
            silence_ms / 1e3
        )
    }
}
