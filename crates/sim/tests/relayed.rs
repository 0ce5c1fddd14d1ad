//! What happens beside a relay, one sentence each. Limits count from the instant when both sides know each other.
#![allow(clippy::unwrap_used)]

mod support;

use std::time::Duration;

use path::PathState;
use sim::{Signalling, Site, World};
use support::{RTT_40, known};

const MS: fn(u64) -> Duration = Duration::from_millis;
const S: fn(u64) -> Duration = Duration::from_secs;

/// Two nodes that start together beside a relay that carries data, and whose users ping each other.
fn relayed_pair(seed: u64, a: Site, b: Site) -> World {
    let mut world = World::new(seed, RTT_40);
    world.signalling = Some(Signalling { delay: (MS(40), MS(40)), loss: 0, ordered: true });
    world.forwarding = true;
    let nodes = [world.add_node(a), world.add_node(b)];
    support::start(&mut world, &nodes);
    world.set_pinging(0, 1, true);
    world.set_pinging(1, 0, true);
    world
}

#[test]
fn two_symmetric_nats_talk_at_once_and_stay_relayed() {
    let mut world = relayed_pair(4, Site::SYMMETRIC, Site::SYMMETRIC);
    world.run_for(S(30));
    println!("{}", world.trace.lines()[..200.min(world.trace.lines().len())].join("\n"));
    for (node, peer) in [(0, 1), (1, 0)] {
        let ledger = world.nodes[node].ledger[&world.nodes[peer].key].clone();
        println!("{:?} {:?}", known(&world), ledger);
        let state = world.nodes[node].state(&world.nodes[peer].key);
        assert!(matches!(state, Some(PathState::Relayed { .. })), "{state:?}");
    }
}
