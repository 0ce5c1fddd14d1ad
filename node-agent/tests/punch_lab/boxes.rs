//! Two nodes, a box before each, and an internet with delay between them and a relay.
//!
//! ```text
//!   a eth0 ── lan [router] wan ── to-a [inet] to-relay ── eth0 [relay, API server]
//!   b eth0 ── lan [router] wan ── to-b [inet]
//! ```

use super::services::Services;
use anyhow::{Context, Result};
use e2e::{
    command::run,
    net::{
        namespace::Namespace,
        shaper::{self, Detour},
        topology,
    },
    scenario::{Node, PORT_SHIFT, Scenario, Site},
};
use std::{
    net::{Ipv4Addr, Ipv6Addr},
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    thread,
    time::Duration,
};

/// Where the relay and the API server are ..
pub const RELAY: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 10);
/// .. and the relay once more: by two observers a node tells what sort of NAT it has.
pub const RELAY_TOO: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 11);
/// The nodes.
pub const NODES: [&str; 2] = ["a", "b"];

/// The ways of packets from nodes, and of those from the relay.
const FROM_NODES: Detour = Detour { device: "packets", table: "100" };
const FROM_RELAY: Detour = Detour { device: "signals", table: "101" };

/// This internet is three hops long, and no real one is: what has fewer than these left would not arrive there.
const LONG: &str = "table ip long {
  chain forward {
    type filter hook forward priority 0; policy accept;
    ip ttl < 10 drop
  }
}";

/// What stands before a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Nat {
    /// Linux that masquerades and has no other rule.
    Poisonable,
    /// A home router, which moves the port and lets nothing unasked in.
    PortRestricted,
}

/// All of it, used for one run after the other.
pub struct Boxes {
    pub scenario: Scenario,
    pub services: Services,
    /// Files of agents and relay.
    pub dir: PathBuf,
    packets: Arc<AtomicU64>,
    signals: Arc<AtomicU64>,
}

impl Boxes {
    /// Makes it, or says why that can't be.
    pub fn new(number: usize) -> Result<Self> {
        e2e::parts::check_machine()?;
        let scenario = scenario(&format!("punch{}-{number}", std::process::id()));
        let dir = std::env::temp_dir().join(format!("warren-{}", scenario.name));
        std::fs::create_dir_all(&dir).context("making a folder")?;
        topology::create(&scenario)?;
        for node in &scenario.nodes {
            topology::attach(&scenario, node)?;
        }
        topology::internet(&scenario.name).nft(LONG)?;
        let relay = topology::node(&scenario.name, "relay");
        relay.ip(&[&format!("addr add {RELAY_TOO}/28 dev eth0")])?;
        let services = Services::start(&relay, &dir)?;
        let (packets, signals) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicU64::new(0)));
        detour(&scenario, FROM_NODES, &NODES, &packets);
        detour(&scenario, FROM_RELAY, &["relay"], &signals);
        Ok(Self { scenario, services, dir, packets, signals })
    }

    /// Other boxes, which know of nothing, before nodes that have never run, and other delays: of packets between boxes, and of those
    /// from one node by the relay to the other.
    pub fn renew(&self, boxes: [Nat; 2], packets: Duration, signals: Duration) -> Result<()> {
        let store = |to: &AtomicU64, delay: Duration| to.store(delay.as_micros() as u64, Ordering::Relaxed);
        store(&self.packets, packets);
        store(&self.signals, signals.saturating_sub(packets));
        for (name, sort) in NODES.into_iter().zip(boxes) {
            let node = self.scenario.node(name)?;
            topology::detach(&self.scenario, node)?;
            topology::attach(&self.scenario, node)?;
            let ((wan, wan6), shift) = (node.uplink(), PORT_SHIFT);
            let site = match sort {
                Nat::Poisonable => Site::Plain { wan, wan6 },
                Nat::PortRestricted => Site::Home { wan, wan6, shift },
            };
            topology::change_site(&self.scenario, name, &site)?;
            run(&mut topology::router(&self.scenario.name, name).command("conntrack", &["-F"]))?;
        }
        Ok(())
    }

    pub fn space(&self, node: &str) -> Namespace {
        topology::node(&self.scenario.name, node)
    }
}

impl Drop for Boxes {
    fn drop(&mut self) {
        for namespace in Namespace::all(&self.scenario.name).into_iter().flatten() {
            let _ = namespace.delete();
        }
        let _ = std::fs::remove_dir_all(&self.dir);
    }
}

/// Sends everything that enters the internet from these sites round by a device, for as long as this process runs.
fn detour(scenario: &Scenario, detour: Detour, sites: &[&str], delay: &Arc<AtomicU64>) {
    let (internet, delay) = (topology::internet(&scenario.name), Arc::clone(delay));
    let sites: Vec<String> = sites.iter().map(|site| topology::uplink(site)).collect();
    let delay = move || Duration::from_micros(delay.load(Ordering::Relaxed));
    thread::spawn(move || internet.enter(move || shaper::run_forever(detour, &sites, delay)));
}

fn scenario(name: &str) -> Scenario {
    let v6 = |site: u16| Ipv6Addr::new(0x2001, 0xdb8, site, 0, 0, 0, 0, 10);
    let net6 = |site| ipnet::Ipv6Net::new_assert(v6(site), 64);
    let net4 = |address: Ipv4Addr, prefix| ipnet::Ipv4Net::new_assert(address, prefix);
    let node = |name: &str, v4, number: u16, site| Node { name: name.into(), v4, v6: net6(number), site, mtu: 1500 };
    let behind = |wan: Ipv4Addr, number: u16| Site::Plain { wan: net4(wan, 28), wan6: net6(number + 8) };
    // Alike to the last address, so that nothing but the boxes' addresses leads from one to the other.
    let inner = net4(Ipv4Addr::new(192, 168, 1, 10), 24);
    let nodes = vec![
        node("relay", net4(RELAY, 28), 1, Site::Public),
        node(NODES[0], inner, 2, behind(Ipv4Addr::new(198, 51, 100, 10), 2)),
        node(NODES[1], inner, 3, behind(Ipv4Addr::new(198, 51, 100, 20), 3)),
    ];
    Scenario {
        name: name.into(),
        nodes,
        dual_stack: false,
        delay_ms: 0,
        proxy_mode: String::new(),
        later: Vec::new(),
        guests: Vec::new(),
    }
}
