//! Two homes whose direct path opens, dies without a word and heals, while they ping each other.

use std::time::{Duration, Instant};

use anyhow::Result;

use super::OFTEN;
use crate::bench::cluster::{is_reached, mesh_address};
use crate::bench::restart::{is_whole, renew_pod, until, whole_stream, within};
use crate::bench::{Goal, LAB, Row, Spread};
use crate::lab::Lab;
use crate::net::namespace::Namespace;
use crate::net::topology;
use crate::progress::Progress;

const HOMES: [&str; 2] = ["home-a", "home-b"];
/// In seconds: silence when the path dies, and the time until it is used again once it is whole.
const DIES: Goal = Goal::Mostly(1.0);
const RETURN: Goal = Goal::Most(2.0);
const NONE_LOST: Goal = Goal::Limit(0.0);
/// A pair that was never direct is tried ever more rarely; by then it has been.
const OPENED: Duration = Duration::from_secs(300);
/// A path that changes has changed for good by then.
const SETTLED: Duration = Duration::from_secs(60);

/// What a change did: seconds until both agents said so, pings lost meanwhile, the longest silence in seconds.
struct Change {
    took: f64,
    lost: f64,
    silence: f64,
}

pub fn measure(lab: &Lab, runs: usize, progress: &Progress) -> Result<Vec<Row>> {
    let (mut opened, mut died, mut healed) = (Vec::new(), Vec::new(), Vec::new());
    for run in 1..=runs {
        progress.step(&format!("direct path dies, heals, opens, {run} of {runs}"), || {
            renew_pod(lab, HOMES[0], HOMES[1], "direct")?;
            let mut block = None;
            died.push(change(lab, "relayed", SETTLED, || {
                block = Some(Block::new(lab)?);
                Ok(())
            })?);
            healed.push(change(lab, "direct", SETTLED, || {
                block = None;
                Ok(())
            })?);
            block = Some(Block::new(lab)?);
            // This one never knew a direct path.
            renew_pod(lab, HOMES[0], HOMES[1], "relayed")?;
            opened.push(change(lab, "direct", OPENED, || {
                block = None;
                Ok(())
            })?);
            Ok(())
        })?;
    }
    let each = |of: &[Change], what: fn(&Change) -> f64| Spread::of(of.iter().map(what));
    Ok(vec![
        Row::new("first direct path while the relay carries: pings lost", "pings", each(&opened, |c| c.lost))
            .goal(NONE_LOST),
        Row::new("the same: from open to direct, after a start in vain", "s", each(&opened, |c| c.took)),
        Row::new("direct path dies without a word: longest silence", "s", each(&died, |c| c.silence)).goal(DIES),
        Row::new("the same: until both say relayed", "s", each(&died, |c| c.took)),
        Row::new("direct path heals: until both say direct", "s", each(&healed, |c| c.took)).goal(RETURN),
        Row::new("the same: pings lost", "pings", each(&healed, |c| c.lost)).goal(NONE_LOST),
    ])
}

/// Pings while something happens, until both ends say that they reach each other in this state and the path is whole.
fn change(lab: &Lab, state: &str, deadline: Duration, happens: impl FnOnce() -> Result<()>) -> Result<Change> {
    let pings = whole_stream(lab, HOMES[0], mesh_address(lab, HOMES[1])?, OFTEN)?;
    happens()?;
    let began = Instant::now();
    let took = within(deadline, began, || are(lab, state));
    let whole = until(Instant::now(), || is_whole(&pings).is_ok());
    let summary = pings.stop();
    let if_whole = |value: f64| if whole.is_finite() { value } else { f64::INFINITY };
    Ok(Change { took, lost: if_whole(summary.lost as f64), silence: if_whole(summary.outage) })
}

fn are(lab: &Lab, state: &str) -> bool {
    is_reached(lab, HOMES[0], HOMES[1], state) && is_reached(lab, HOMES[1], HOMES[0], state)
}

/// The internet drops what the homes send each other, until this is dropped.
struct Block(Namespace);

impl Block {
    fn new(lab: &Lab) -> Result<Self> {
        let [one, other] = HOMES.map(|home| lab.node(home).map(|node| node.outer_v4()));
        let (one, other, internet) = (one?, other?, topology::internet(LAB));
        internet.nft(&format!(
            "table ip bench-block {{
               chain forward {{
                 type filter hook forward priority -10;
                 ip saddr {one} ip daddr {other} drop
                 ip saddr {other} ip daddr {one} drop
               }}
             }}"
        ))?;
        Ok(Self(internet))
    }
}

impl Drop for Block {
    fn drop(&mut self) {
        // A block that stays shows: nothing is direct any more.
        let _ = self.0.nft("delete table ip bench-block");
    }
}
