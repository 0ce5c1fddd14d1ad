//! What Warren's raw sockets, nftables table and routing rules cost each datagram of the kernel's WireGuard, measured with plain UDP.
//!
//! Pairs of namespaces, each joined by a cable, differ in what is loaded: nothing, the raw sockets that share WireGuard's port,
//! the kernel's connection tracking (which the table needs, and every node with kube-proxy has), table and rules as the agent
//! writes them, or all of it. They take turns; a turn sends WireGuard-shaped datagrams to the port as fast as one
//! thread can and tells how much CPU each took. On a cable between namespaces the sender's thread does all of the kernel's
//! work, from the sending socket to the receiving one, so both ends are in the figure. Nobody reads the receiving socket: it
//! is full all the time, and what is measured comes before it.
//!
//! `packet_cost [--rounds N] [--datagrams N]`, as root; prints a Markdown table.

#![allow(clippy::unwrap_used, reason = "a benchmark may fail by panicking")]

mod figures;
#[path = "../tests/support/netns.rs"]
#[allow(dead_code, reason = "the tests use more of it")]
mod netns;

use std::{fs, net::UdpSocket, time::Duration};

use figures::{Spread, option};
use netns::{Namespaces, inside};
use node_agent::net::{self, Mark, Masquerade, NetPlan, Originals};
use wgdev::kernel::{Port, PortConfig};

const PORT: u16 = 21820;
const DEVICE: &str = "warren0";
/// A short data message of WireGuard: type 4, a receiver index, a counter, and what is sealed.
const MESSAGE: [u8; 128] = {
    let mut message = [0xa5; 128];
    (message[0], message[1], message[2], message[3]) = (4, 0, 0, 0);
    message
};

/// What a pair of nodes has loaded.
#[derive(Clone, Copy)]
struct Loaded {
    what: &'static str,
    raw_sockets: bool,
    firewall: Firewall,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Firewall {
    None,
    /// Somebody else's, with a single rule that asks for the state of a connection.
    Tracking,
    /// The agent's.
    Warren,
}

const LOADED: [Loaded; 5] = [
    Loaded { what: "nothing", raw_sockets: false, firewall: Firewall::None },
    Loaded { what: "raw sockets", raw_sockets: true, firewall: Firewall::None },
    Loaded { what: "connection tracking", raw_sockets: false, firewall: Firewall::Tracking },
    Loaded { what: "the agent's table and rules, connection tracking", raw_sockets: false, firewall: Firewall::Warren },
    Loaded { what: "all of it", raw_sockets: true, firewall: Firewall::Warren },
];

const TRACKING: [&str; 3] = [
    "add table inet other",
    "add chain inet other input { type filter hook input priority 0; }",
    "add rule inet other input ct state invalid drop",
];

/// Two nodes and what holds their sockets.
struct Nodes {
    sender: UdpSocket,
    _receiver: UdpSocket,
    _ports: Vec<Port>,
    _spaces: Namespaces,
}

fn main() {
    let (rounds, datagrams) = (option("rounds", 21), option("datagrams", 100_000));
    let nodes: Vec<Nodes> = LOADED.iter().enumerate().map(|(number, loaded)| Nodes::new(number, *loaded)).collect();
    let mut costs: Vec<Vec<f64>> = vec![Vec::new(); LOADED.len()];
    for round in 0..=rounds {
        for at in 0..LOADED.len() {
            // Each is first as often as the others are.
            let at = (at + round as usize) % LOADED.len();
            let cost = nodes[at].cost(datagrams);
            // The first round fills caches and the connection table.
            if round > 0 {
                costs[at].push(cost);
            }
        }
    }
    println!("### What a datagram costs on its way from node to node\n");
    println!("| Loaded | CPU of a datagram, ns | More than nothing, ns | Ratio |\n|---|---:|---:|---:|");
    for (loaded, own) in LOADED.iter().zip(&costs) {
        let against =
            |of: fn(f64, f64) -> f64| Spread::of(own.iter().zip(&costs[0]).map(|(own, none)| of(*own, *none)));
        let (more, ratio) = (against(|own, none| own - none), against(|own, none| own / none));
        println!(
            "| {} | {} | {} | {} |",
            loaded.what,
            Spread::of(own.iter().copied()).cell(0),
            more.cell(0),
            ratio.cell(2)
        );
    }
}

impl Nodes {
    fn new(number: usize, loaded: Loaded) -> Self {
        let spaces = Namespaces::new(&format!("cost{number}-"), &["a", "b"]).expect("network namespaces");
        let (a, b) = (spaces.full("a"), spaces.full("b"));
        spaces.ip("a", &format!("link add eth0 type veth peer name eth0 netns {b}")).unwrap();
        spaces.ip("a", &format!("link add {DEVICE} type veth peer name {DEVICE} netns {b}")).unwrap();
        for (node, own, other) in [("a", 1, 2), ("b", 2, 1)] {
            spaces.ip(node, &format!("addr add 192.0.2.{own}/24 dev eth0")).unwrap();
            spaces.ip(node, "link set eth0 up").unwrap();
            spaces.ip(node, &format!("route add default via 192.0.2.{other}")).unwrap();
        }
        let sender = inside(&a, || {
            let socket = UdpSocket::bind(("192.0.2.1", PORT)).unwrap();
            socket.connect(("192.0.2.2", PORT)).unwrap();
            socket
        });
        let receiver = inside(&b, || UdpSocket::bind(("192.0.2.2", PORT)).unwrap());
        let mut ports = Vec::new();
        for (short, own) in [("a", 1), ("b", 2)] {
            let node = &spaces.full(short);
            if loaded.raw_sockets {
                let config = PortConfig { port: PORT, fwmark: Mark::default().value, if_index: u32::MAX };
                ports.push(inside(node, move || Port::open(config).unwrap()));
            }
            match loaded.firewall {
                Firewall::None => {}
                Firewall::Tracking => {
                    for line in TRACKING {
                        spaces.exec(short, "nft", &[line]).unwrap();
                    }
                }
                Firewall::Warren => {
                    let originals =
                        Originals::new(std::env::temp_dir().join(format!("warren-packet-cost-{}", std::process::id())));
                    let report = inside(node, move || {
                        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
                        runtime.block_on(net::apply(&plan(own), &originals)).unwrap()
                    });
                    assert_eq!(report.failures, []);
                }
            }
        }
        Self { sender, _receiver: receiver, _ports: ports, _spaces: spaces }
    }

    /// Nanoseconds of CPU that one datagram takes, on average over so many.
    fn cost(&self, datagrams: u64) -> f64 {
        let before = cpu_time();
        for _ in 0..datagrams {
            self.sender.send(&MESSAGE).unwrap();
        }
        (cpu_time() - before).as_nanos() as f64 / datagrams as f64
    }
}

/// CPU time of this thread, what the kernel did in its place included.
fn cpu_time() -> Duration {
    let text = fs::read_to_string("/proc/thread-self/schedstat").unwrap();
    Duration::from_nanos(text.split(' ').next().unwrap().parse().unwrap())
}

/// A mesh of many nodes, of which this is one.
fn plan(own: u8) -> NetPlan {
    NetPlan {
        device: DEVICE.into(),
        mtu: 1420,
        addresses: vec![format!("10.118.0.{own}").parse().unwrap()],
        routes: Vec::new(),
        claims: ["10.118.0.0/16", "10.244.0.0/16"].map(|net| net.parse().unwrap()).to_vec(),
        own_pod_cidrs: vec![format!("10.244.{own}.0/24").parse().unwrap()],
        own_node_cidrs: Vec::new(),
        service_cidrs: vec!["10.96.0.0/16".parse().unwrap()],
        mark: Mark::default(),
        listen_port: PORT,
        relay_ports: Vec::new(),
        relay_tcp_ports: Vec::new(),
        relay_redirect: None,
        api_servers: vec!["198.51.100.1:6443".parse().unwrap()],
        serves_api: None,
        masquerade: Masquerade { enabled: true, exclude: Vec::new() },
        cni: true,
    }
}
