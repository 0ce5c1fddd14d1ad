//! Configuring the kernel's WireGuard: many peers, and a process that ends in the midst of it.

#![allow(clippy::unwrap_used)]

mod lab;

use std::{
    collections::BTreeMap,
    io::{BufRead, BufReader},
    thread,
    time::{Duration, Instant},
};

use ipnet::IpNet;
use lab::{Namespace, Node, block_on, config, other};
use proptest::{
    prelude::Rng,
    test_runner::{RngAlgorithm, TestRng},
};
use wgdev::{Delta, Device as _, Kernel, MAX_ALLOWED_IPS, PeerUpdate};
use wire::key::PublicKey;

/// A key that nobody has the private one of: made without multiplying points, which takes longer than all the rest.
fn key(n: u32) -> PublicKey {
    let mut bytes = [7; 32];
    bytes[..4].copy_from_slice(&n.to_be_bytes());
    PublicKey::from_bytes(bytes)
}

/// A peer in one of two versions, which share no allowed IP.
fn versioned(n: u32, version: u8) -> PeerUpdate {
    let [_, _, high, low] = n.to_be_bytes();
    let nets = [
        format!("10.{}.{high}.{low}/32", 10 + version),
        format!("fd0{version}::{n:x}/128"),
        format!("fd1{version}:{n:x}::/64"),
    ];
    PeerUpdate {
        endpoint: Some(format!("192.0.2.{version}:{}", 1000 + n).parse().unwrap()),
        allowed_ips: Some(nets.map(|net| net.parse().unwrap()).to_vec()),
        ..PeerUpdate::new(key(n))
    }
}

/// Peers of the interrupted configuration: several messages of them.
const PEERS: u32 = 300;

fn everybody(version: u8) -> Delta {
    Delta { upsert: (0..PEERS).map(|n| versioned(n, version)).collect(), remove: vec![] }
}

const UNTIL_KILLED: &str = "WGDEV_APPLY_UNTIL_KILLED";

/// What it says when it begins.
const APPLIES: &str = "applies";

/// Not a test of its own: the process that the next one kills.
#[test]
fn applies_until_killed() {
    if std::env::var_os(UNTIL_KILLED).is_none() {
        return;
    }
    // Before it says that it applies: keys take longer than messages.
    let versions = [everybody(1), everybody(2)];
    let thirds = [0, 1, 2].map(|third| {
        let remove = versions[0].upsert.iter().map(|u| u.public_key).skip(third).step_by(3).collect();
        Delta { upsert: vec![], remove }
    });
    let device = Kernel::open(config(1)).unwrap();
    println!("{APPLIES}");
    for round in 0usize.. {
        block_on(device.apply(&versions[round % 2])).unwrap();
        block_on(device.apply(&thirds[round % 3])).unwrap();
    }
}

/// How often it is killed.
const KILLS: u32 = 60;

#[test]
fn killed_anywhere_every_peer_is_whole_and_the_next_start_converges() {
    if !lab::kernel_available() {
        return;
    }
    let namespace = Namespace::new("wd-a");
    let mut random = TestRng::from_seed(RngAlgorithm::ChaCha, &[7; 32]);
    let first = everybody(1);
    let versions = [first.clone(), everybody(2)]
        .map(|v| v.upsert.into_iter().map(|u| (u.public_key, sorted(u))).collect::<BTreeMap<_, _>>());
    let whole = |peers: &BTreeMap<PublicKey, Vec<IpNet>>| {
        for (key, nets) in peers {
            assert!(versions.iter().any(|v| v[key].allowed_ips.as_ref() == Some(nets)), "{key:?} {nets:?}");
        }
    };
    let (mut index, mut partial) = (None, 0);
    for _ in 0..KILLS {
        let mut child = namespace.again("applies_until_killed", UNTIL_KILLED);
        let said = BufReader::new(child.stdout.take().unwrap());
        assert!(said.lines().any(|line| line.unwrap().ends_with(APPLIES)));
        // While it does, and after its end.
        whole(&other::dump(&namespace));
        thread::sleep(Duration::from_millis((random.next_u32() % 200).into()));
        child.kill().unwrap();
        child.wait().unwrap();
        let left = other::dump(&namespace);
        whole(&left);
        let of_first = left.iter().filter(|(key, nets)| versions[0][key].allowed_ips.as_ref() == Some(nets)).count();
        partial += u32::from(!left.len().is_multiple_of(100) || !(of_first == 0 || of_first == left.len()));
        let node: Node<Kernel> = Node::of(&namespace, config(1));
        assert_eq!(*index.get_or_insert(node.device.if_index()), node.device.if_index());
        assert_eq!(other::dump(&namespace), left, "a start alone changes no peer");
        block_on(node.device.apply(&first)).unwrap();
        let told = versions[0].iter().map(|(key, update)| (*key, update.allowed_ips.clone().unwrap()));
        assert_eq!(other::dump(&namespace), told.collect());
        for status in block_on(node.device.peers()).unwrap() {
            let told = &versions[0][&status.public_key];
            assert_eq!((status.endpoint, Some(status.allowed_ips)), (told.endpoint, told.allowed_ips.clone()));
        }
    }
    println!("{partial} of {KILLS} were interrupted in the midst");
    assert!(partial > 5, "only {partial} of {KILLS} were interrupted in the midst");
}

fn sorted(mut update: PeerUpdate) -> PeerUpdate {
    if let Some(nets) = &mut update.allowed_ips {
        nets.sort_unstable();
    }
    update
}

/// Many peers take many messages, and a large one goes on in the next.
#[test]
fn a_thousand_peers_and_the_largest_read_back_as_they_were_told() {
    if !lab::kernel_available() {
        return;
    }
    let namespace = Namespace::new("wd-a");
    let node: Node<Kernel> = Node::of(&namespace, config(1));
    let mut upsert: Vec<_> = (0..1000).map(|n| versioned(n, 1)).collect();
    for n in [3, 500] {
        let net = |i: usize| format!("fdff:{n:x}::{i:x}/128").parse().unwrap();
        upsert[n].allowed_ips = Some((0..MAX_ALLOWED_IPS).map(net).collect());
    }
    let delta = Delta { upsert, remove: vec![] };
    let move_one = || {
        let moved = PeerUpdate { endpoint: delta.upsert[7].endpoint, ..PeerUpdate::new(key(7)) };
        let (began, rounds) = (Instant::now(), 50);
        (0..rounds).for_each(|_| node.upsert(moved.clone()));
        began.elapsed() / rounds
    };
    node.upsert(delta.upsert[7].clone());
    let among_one = move_one();
    let began = Instant::now();
    block_on(node.device.apply(&delta)).unwrap();
    let applied = began.elapsed();
    let peers = block_on(node.device.peers()).unwrap();
    let read = began.elapsed() - applied;
    println!("1,000 peers: applied in {applied:?}, read in {read:?}");
    println!("one of them moved in {:?}, the only one in {among_one:?}", move_one());
    let expected: BTreeMap<_, _> = delta.upsert.into_iter().map(|u| (u.public_key, sorted(u))).collect();
    assert_eq!(peers.len(), expected.len());
    for status in peers {
        let told = &expected[&status.public_key];
        assert_eq!((status.endpoint, Some(status.allowed_ips)), (told.endpoint, told.allowed_ips.clone()));
        assert_eq!((status.last_handshake, status.keepalive), (None, None));
    }
}
