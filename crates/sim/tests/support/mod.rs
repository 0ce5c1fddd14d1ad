//! What the scenarios share.
#![allow(dead_code)]

use std::time::Duration;

use path::PathState;
use sim::{Signalling, Site, Weather, World};

/// The weather of the goals: a round trip of 40 ms and nothing lost.
pub const RTT_40: Weather = Weather { delay: Duration::from_millis(20), jitter: Duration::ZERO, loss: 0 };

/// Two nodes that start together and whose users ping each other from the first instant.
pub fn pair(seed: u64, a: Site, b: Site) -> World {
    let mut world = quiet_pair(seed, a, b);
    world.set_pinging(0, 1, true);
    world.set_pinging(1, 0, true);
    world
}

/// Two nodes that start together and have nothing to say.
pub fn quiet_pair(seed: u64, a: Site, b: Site) -> World {
    let mut world = World::new(seed, RTT_40);
    let nodes = [world.add_node(a), world.add_node(b)];
    start(&mut world, &nodes);
    world
}

/// The same with packets that arrive out of step, by up to 3 ms.
pub const UNEVEN_40: Weather = Weather { jitter: Duration::from_millis(3), ..RTT_40 };

/// Beside so many relays that carry data. Nobody is there yet.
pub fn beside(seed: u64, weather: Weather, relays: usize) -> World {
    let mut world = World::new(seed, weather);
    let delay = Duration::from_millis(40);
    world.signalling = Some(Signalling { delay: (delay, delay), loss: 0, ordered: true });
    world.forwarding = true;
    for _ in 1..relays {
        world.add_relay();
    }
    world
}

/// Starts agents at once.
pub fn start(world: &mut World, nodes: &[usize]) {
    for node in nodes {
        world.start_after(*node, Duration::ZERO);
    }
}

/// When both of two nodes knew each other.
pub fn known(world: &World) -> Duration {
    let known = |node: usize, peer: usize| {
        let ledger = &world.nodes[node].ledger[&world.nodes[peer].key];
        ledger.known.expect("the node knows its peer")
    };
    known(0, 1).max(known(1, 0))
}

/// Whether the first two nodes both show a direct path to each other.
pub fn are_direct(world: &World) -> bool {
    cell(world, 0, 1).is_direct() && cell(world, 1, 0).is_direct()
}

/// One node's view of another.
pub struct Cell(Option<PathState>);

impl Cell {
    pub fn is_direct(&self) -> bool {
        matches!(self.0, Some(PathState::Direct { .. }))
    }
}

pub fn cell(world: &World, node: usize, peer: usize) -> Cell {
    Cell(world.nodes[node].state(&world.nodes[peer].key))
}
