//! The kernel's WireGuard under two agents against the kernel's WireGuard alone, in one machine and in turns.
//!
//! Nodes `a` and `b` are run by agents: raw sockets, nftables table, routing rules. Nodes `c` and `d` on the same bridge have an
//! interface of the same MTU, their peer and nothing else; no process serves them. `e` and `f` are the same with the kernel's
//! connection tracking, which the agent's table needs and every node with kube-proxy has. TCP goes through one pair after the
//! other, who is first changes, and ratios are taken within a round. How far two rounds of the bare pair differ from each other
//! says what the last digits are worth.
//!
//! `kernel_throughput [--rounds N] [--seconds N]`, as root on a kernel with WireGuard; `e2e/kernel/bench.sh` brings one.
//! Prints a Markdown table.

#![allow(clippy::unwrap_used, reason = "a benchmark may fail by panicking")]

mod figures;
#[path = "../tests/support/mod.rs"]
mod support;

use std::{
    io::{Read, Write},
    net::{Ipv4Addr, TcpListener, TcpStream},
    thread,
    time::{Duration, Instant},
};

use figures::{Spread, option};
use support::{
    netns::{Namespaces, inside},
    pair::Lab,
};
use wgdev::{Delta, Device, DeviceConfig, Kernel, PeerUpdate};
use wire::key::PrivateKey;

/// The nodes without an agent.
const NODES: [[&str; 2]; 2] = [["c", "d"], ["e", "f"]];
/// Somebody's firewall with a single rule that asks for the state of a connection.
const TRACKING: [&str; 3] = [
    "add table inet other",
    "add chain inet other input { type filter hook input priority 0; }",
    "add rule inet other input ct state invalid drop",
];
const PORT: u16 = 5201;
/// One write: what TCP hands to the interface at once.
const BLOCK: usize = 65_536;

fn main() {
    let (rounds, seconds) = (option("rounds", 9), option("seconds", 4));
    if let Err(error) = wgdev::kernel::available() {
        panic!("{error}; e2e/kernel/bench.sh has a kernel with WireGuard");
    }
    let mut lab = Lab::new().expect("the lab needs root and /dev/net/tun");
    for node in ["a", "b"] {
        lab.start(node);
    }
    lab.reach("a", "10.118.0.2");
    for node in ["a", "b"] {
        lab.wait_direct(node);
        assert_eq!(lab.status(node)["backend"], "kernel");
    }
    let bare = bare_pair(&lab, 0);
    let tracked = bare_pair(&lab, 1);
    for node in NODES[1] {
        for line in TRACKING {
            tracked.exec(node, "nft", &[line]).unwrap();
        }
    }
    let pairs = [(&lab.spaces, ["a", "b"], 118), (&bare, NODES[0], 119), (&tracked, NODES[1], 120)];
    let mut rates: [Vec<f64>; 3] = Default::default();
    // The first round opens windows and fills caches.
    for round in 0..=rounds as usize {
        for at in 0..pairs.len() {
            let at = (at + round) % pairs.len();
            let (spaces, [from, to], net) = pairs[at];
            let rate = rate(&spaces.full(from), &spaces.full(to), Ipv4Addr::new(10, net, 0, 2), seconds);
            eprintln!("round {round}: {rate:.1} Mbit/s from {from} to {to}");
            if round > 0 {
                rates[at].push(rate);
            }
        }
    }
    print(&rates, &what_is_loaded(&lab));
}

fn print([agents, alone, tracked]: &[Vec<f64>; 3], loaded: &str) {
    println!("### One TCP stream through the kernel's WireGuard, {} rounds\n", alone.len());
    println!("With agents, a node has {loaded}.\n");
    println!("| Figure | Median (range) |\n|---|---:|");
    let ratio = |ours: &[f64], theirs: &[f64]| Spread::of(ours.iter().zip(theirs).map(|(a, b)| a / b)).cell(3);
    println!("| with agents / alone | {} |", ratio(agents, alone));
    println!("| with agents / alone with connection tracking | {} |", ratio(agents, tracked));
    println!("| alone with connection tracking / alone | {} |", ratio(tracked, alone));
    println!("| alone / alone a round before | {} |", ratio(alone.get(1..).unwrap_or_default(), alone));
    for (what, rates) in [("with agents", agents), ("alone", alone), ("alone with connection tracking", tracked)] {
        println!("| {what}: Mbit/s here | {} |", Spread::of(rates.iter().copied()).cell(1));
    }
}

/// Raw sockets and nftables rules of node `a`, which must be there for the figure to mean anything.
fn what_is_loaded(lab: &Lab) -> String {
    let read = |program, args: &[&str]| lab.spaces.exec("a", program, args).unwrap();
    let sockets: usize =
        ["/proc/net/raw", "/proc/net/raw6"].iter().map(|file| read("cat", &[file]).lines().count() - 1).sum();
    let table = read("nft", &["list", "table", "inet", "warren"]);
    let rules = table.split("\tchain ").skip(1).flat_map(str::lines);
    let rules = rules.filter(|line| line.starts_with("\t\t") && !line.starts_with("\t\ttype ")).count();
    assert!(sockets > 0, "the raw sockets are closed");
    assert!(rules > 0, "no rules in {table}");
    format!("{sockets} raw sockets and {rules} nftables rules")
}

/// Two nodes on the lab's bridge with WireGuard and nothing else.
fn bare_pair(lab: &Lab, pair: usize) -> Namespaces {
    let nodes = NODES[pair];
    let spaces = Namespaces::new(&format!("bare{pair}-"), &nodes).unwrap();
    let shown = lab.spaces.ip("a", "-o link show warren0").unwrap();
    let mtu = shown.split_whitespace().skip_while(|word| *word != "mtu").nth(1).unwrap().parse().unwrap();
    let key = |index: usize| PrivateKey::from_bytes([[1, 2][index]; 32]);
    let address = |index: usize| 13 + 2 * pair + index;
    for (index, node) in nodes.into_iter().enumerate() {
        let number = address(index);
        let full = spaces.full(node);
        lab.spaces.ip("r", &format!("link add p{node} type veth peer name eth0 netns {full}")).unwrap();
        lab.spaces.ip("r", &format!("link set p{node} master br0 up")).unwrap();
        spaces.ip(node, &format!("addr add 10.77.0.{number}/24 dev eth0")).unwrap();
        spaces.ip(node, "link set eth0 up").unwrap();
        let config = DeviceConfig { name: "wg0".into(), private_key: key(index), listen_port: 21820, fwmark: 0, mtu };
        let peer = PeerUpdate {
            public_key: key(1 - index).public_key(),
            endpoint: Some(format!("10.77.0.{}:21820", address(1 - index)).parse().unwrap()),
            allowed_ips: Some(vec![format!("10.{}.0.{}/32", 119 + pair, 2 - index).parse().unwrap()]),
            keepalive: Some(None),
        };
        inside(&full, move || {
            let device = Kernel::open(config).unwrap();
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(device.apply(&Delta { upsert: vec![peer], remove: vec![] })).unwrap();
        });
        spaces.ip(node, &format!("addr add 10.{}.0.{}/24 dev wg0", 119 + pair, index + 1)).unwrap();
    }
    spaces
}

/// Mbit/s that arrive of one TCP stream.
fn rate(from: &str, to: &str, address: Ipv4Addr, seconds: u64) -> f64 {
    let listener = inside(to, move || TcpListener::bind((address, PORT)).unwrap());
    let receiver = thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        let mut buffer = vec![0; BLOCK];
        let (mut bytes, began) = (0u64, Instant::now());
        loop {
            match stream.read(&mut buffer).unwrap() {
                0 => return bytes as f64 * 8.0 / began.elapsed().as_secs_f64() / 1e6,
                length => bytes += length as u64,
            }
        }
    });
    let mut stream = inside(from, move || TcpStream::connect((address, PORT)).unwrap());
    let (block, end) = (vec![0; BLOCK], Instant::now() + Duration::from_secs(seconds));
    while Instant::now() < end {
        stream.write_all(&block).unwrap();
    }
    drop(stream);
    receiver.join().unwrap()
}
