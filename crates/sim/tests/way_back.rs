//! The way back from a relay to the direct path, with devices that can do no more than the kernel's: no handshake over a live session,
//! roaming with every packet, counters that are read now and then, agents that hear late.
#![allow(clippy::unwrap_used)]

mod support;

use std::time::Duration;

use sim::{Signalling, Site, Weather, World};
use support::cell;

const MS: fn(u64) -> Duration = Duration::from_millis;
const S: fn(u64) -> Duration = Duration::from_secs;
const NODES: [usize; 2] = [0, 1];
/// Two relays and two machines on one table.
const NEAR: Weather = Weather { delay: Duration::from_millis(1), jitter: Duration::from_millis(1), loss: 0 };

/// Two nodes on kernel devices that have long been direct, and whose users are silent.
fn kernels(seed: u64, site: Site) -> World {
    let mut world = World::new(seed, NEAR);
    world.signalling = Some(Signalling { delay: (MS(1), MS(10)), loss: 0, ordered: true });
    world.forwarding = true;
    world.ping_gap = S(1);
    world.agent_lag = MS(20 + seed % 5 * 40);
    world.add_relay();
    for _ in NODES {
        let node = world.add_node(site);
        world.set_kernel(node, true);
    }
    support::start(&mut world, &NODES);
    assert!(world.run_while(S(20), are_direct).is_some(), "seed {seed}");
    world.run_for(S(45));
    world
}

fn are_direct(world: &World) -> bool {
    NODES.iter().all(|node| cell(world, *node, 1 - node).is_direct())
}

/// Takes a node's link away for a while, as one does who renames an interface.
fn blink(world: &mut World, node: usize, time: Duration) {
    world.plug(node, false);
    world.run_for(time);
    world.plug(node, true);
}

/// Until both are direct, for good.
fn settles(world: &mut World, within: Duration) -> Result<(), String> {
    let began = world.now;
    world.set_pinging(0, 1, true);
    world.run_for(within);
    let shown = |world: &World| NODES.map(|node| format!("{:?}", world.nodes[node].state(&world.nodes[1 - node].key)));
    if !are_direct(world) {
        return Err(format!("{:?} after {began:?}: {}", world.now, shown(world).join(" | ")));
    }
    world.run_for(S(30));
    world.set_pinging(0, 1, false);
    if are_direct(world) { Ok(()) } else { Err(format!("later: {}", shown(world).join(" | "))) }
}

fn none(failures: &[String]) {
    assert!(failures.is_empty(), "{} failures:\n{}", failures.len(), failures.join("\n"));
}

#[test]
fn a_link_that_was_away_for_a_moment_leads_back_to_the_direct_path() {
    let mut failures = Vec::new();
    for seed in 0..60 {
        for site in [Site::EASY_HOME, Site::Poisonable] {
            let gap = [20, 100, 300, 1000, 3000, 8000][usize::try_from(seed % 6).unwrap()];
            let mut world = kernels(seed, site);
            for turn in 0..2 {
                blink(&mut world, 0, MS(gap));
                if let Err(error) = settles(&mut world, S(30)) {
                    failures.push(format!("seed {seed} {site:?} away {gap} ms, turn {turn}: {error}"));
                }
            }
        }
    }
    none(&failures);
}

#[test]
fn a_device_that_was_made_anew_leads_back_to_the_direct_path() {
    let mut failures = Vec::new();
    for seed in 0..60 {
        for site in [Site::EASY_HOME, Site::Poisonable] {
            let mut world = kernels(seed, site);
            for turn in 0..3 {
                world.restart_agent(0, true);
                if let Err(error) = settles(&mut world, S(if turn == 0 { 60 } else { 5 + seed })) {
                    failures.push(format!("seed {seed} {site:?}, turn {turn}: {error}"));
                }
            }
            blink(&mut world, 0, MS(100));
            if let Err(error) = settles(&mut world, S(30)) {
                failures.push(format!("seed {seed} {site:?}, link: {error}"));
            }
        }
    }
    none(&failures);
}

#[test]
fn a_node_that_comes_back_at_another_port_and_then_at_the_old_one_is_direct_again() {
    let mut failures = Vec::new();
    for seed in 0..60 {
        for site in [Site::EASY_HOME, Site::Poisonable] {
            let mut world = kernels(seed, site);
            for port in [21_900, 21_820] {
                world.stop_agent(0);
                world.run_for(MS(50 * (1 + seed % 7)));
                world.move_port(0, port);
                world.restart_agent(0, true);
                world.set_pinging(1, 0, true);
                world.run_for(S(2 + seed % 12));
                world.set_pinging(1, 0, false);
            }
            blink(&mut world, 0, MS(60));
            if let Err(error) = settles(&mut world, S(60)) {
                failures.push(format!("seed {seed} {site:?}: {error}"));
            }
        }
    }
    none(&failures);
}
