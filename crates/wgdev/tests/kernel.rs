//! The kernel's WireGuard. Where the kernel has none, `e2e/kernel/wgdev.sh` runs these in a machine that has.

#![allow(clippy::unwrap_used)]

mod lab;

use std::{
    collections::BTreeMap,
    io::{BufRead, BufReader},
    thread,
    time::{Duration, Instant},
};

use lab::{AT_B, DEVICE, Echo, Namespace, Node, Open, Pair, block_on, config, eventually, ip, peer, private_key};
use proptest::{
    prelude::Rng,
    test_runner::{RngAlgorithm, TestRng},
};
use wgdev::{Datagram, Delta, Device, DeviceConfig, DeviceError, Kernel, MAX_ALLOWED_IPS, PeerUpdate, Userspace};
use wire::key::PublicKey;

const A: &str = "198.51.100.1:21820";

fn pair() -> Pair<Kernel, Kernel> {
    Pair::between(AT_B)
}

fn open_error(namespace: &Namespace, config: DeviceConfig) -> DeviceError {
    lab::open_error::<Kernel>(namespace, config)
}

fn is_stopped(device: &Kernel) -> bool {
    matches!(block_on(device.peers()), Err(DeviceError::Stopped))
}

/// The sockets open with the first need, and hear only what comes after.
fn open_sockets(node: &Node<Kernel>) {
    let datagram = Datagram { remote: "198.51.100.2:9".parse().unwrap(), local: None, payload: stun_like(0) };
    block_on(node.device.send(datagram)).unwrap();
}

/// A valid request, as far as its framing goes.
fn stun_like(n: u8) -> Vec<u8> {
    let mut datagram = vec![n; 48];
    datagram[..8].copy_from_slice(&[0, 1, 0, 28, 0x21, 0x12, 0xa4, 0x42]);
    datagram
}

#[test]
fn a_kernel_without_wireguard_says_so_and_nothing_is_made() {
    if !lab::available() || wgdev::kernel::available().is_ok() {
        return;
    }
    let namespace = Namespace::new("wd-a");
    let error = open_error(&namespace, config(1));
    assert!(matches!(error, DeviceError::NoKernelWireGuard { .. }), "{error}");
    let text = error.to_string();
    assert!(text.contains("modprobe wireguard") && text.contains("Userspace"), "{text}");
    assert!(!namespace.ip("link show").contains(DEVICE));
}

#[test]
fn adopting_keeps_index_peers_sessions_and_traffic() {
    if !lab::kernel_available() {
        return;
    }
    let Pair { cable, a, b } = pair();
    let mut echo = Echo::new(&cable, "10.99.0.1:0", "10.99.0.2:7");
    echo.ping(1392);
    let (index, before) = (a.device.if_index(), a.status(&b.key));
    drop(a);
    // Nobody is there, and the packets pass.
    echo.ping(1392);
    let a: Node<Kernel> = Node::of(&cable.a, config(1));
    assert_eq!(a.device.if_index(), index);
    assert_eq!(a.device.listen_port(), lab::PORT);
    let after = a.status(&b.key);
    assert_eq!(after.endpoint, before.endpoint);
    assert_eq!(after.allowed_ips, before.allowed_ips);
    assert!(after.rx_bytes > before.rx_bytes, "counters go on");
    echo.ping(1392);
    assert!(a.status(&b.key).last_handshake >= before.last_handshake, "the session is the old one");
}

#[test]
fn what_others_changed_is_set_right_at_every_open() {
    if !lab::kernel_available() {
        return;
    }
    let namespace = Namespace::new("wd-a");
    let node: Node<Kernel> = Node::of(&namespace, config(1));
    node.upsert(peer(private_key(2).public_key(), 2, Some(AT_B)));
    drop(node);
    namespace.ip("link set wd-tun mtu 1300 down");
    let other = DeviceConfig { listen_port: 7777, fwmark: 0, ..config(9) };
    drop(Node::<Kernel>::of(&namespace, other));
    namespace.ip("link set wd-tun mtu 1300 down");
    let node: Node<Kernel> = Node::of(&namespace, config(1));
    let link = namespace.ip("link show wd-tun");
    assert!(link.contains("mtu 1420") && link.contains(",UP"), "{link}");
    assert_eq!(node.device.listen_port(), lab::PORT);
    // Key, port and mark are as told, or this were an error; and the peers are still there.
    assert_eq!(block_on(node.device.peers()).unwrap().len(), 1);
}

#[test]
fn port_zero_takes_a_free_one_and_keeps_it() {
    if !lab::kernel_available() {
        return;
    }
    let namespace = Namespace::new("wd-a");
    let any = || DeviceConfig { listen_port: 0, ..config(1) };
    let first = Node::<Kernel>::of(&namespace, any()).device.listen_port();
    assert_ne!(first, 0);
    assert_eq!(Node::<Kernel>::of(&namespace, any()).device.listen_port(), first);
}

#[test]
fn a_taken_port_is_an_error_of_its_own_and_leaves_no_interface() {
    if !lab::kernel_available() {
        return;
    }
    let namespace = Namespace::new("wd-a");
    for taken in ["0.0.0.0:21820", "[::]:21820", "127.0.0.1:21820"] {
        let _owner = namespace.bind(taken);
        let error = open_error(&namespace, config(1));
        assert!(matches!(error, DeviceError::PortTaken { port: 21820 }), "{error}");
    }
    assert!(!namespace.ip("link show").contains(DEVICE));
    let _first: Node<Kernel> = Node::of(&namespace, config(1));
    let error = open_error(&namespace, DeviceConfig { name: "wd-tun2".into(), ..config(2) });
    assert!(matches!(error, DeviceError::PortTaken { .. }), "{error}");
    // An interface that is there and down has no port.
    namespace.ip("link add wd-tun3 type wireguard");
    let error = open_error(&namespace, DeviceConfig { name: "wd-tun3".into(), ..config(3) });
    assert!(matches!(error, DeviceError::PortTaken { .. }), "{error}");
}

#[test]
fn an_interface_of_another_kind_is_left_alone() {
    if !lab::kernel_available() {
        return;
    }
    let namespace = Namespace::new("wd-a");
    let cases = [
        ("link add wd-tun type veth peer name wd-other", "link del wd-tun", "veth"),
        ("tuntap add wd-tun mode tun", "link del wd-tun", "TUN"),
        ("link add wd-tun type bridge", "link del wd-tun", "bridge"),
        ("link property add dev lo altname wd-tun", "link property del dev lo altname wd-tun", "another name of lo"),
    ];
    for (make, unmake, found) in cases {
        namespace.ip(make);
        let before = namespace.ip("-d link show");
        let error = open_error(&namespace, config(1));
        assert!(matches!(error, DeviceError::NameTaken { .. }), "{error}");
        let text = error.to_string();
        assert!(text.contains(found) && text.contains("wd-tun"), "{text}");
        assert_eq!(namespace.ip("-d link show"), before);
        namespace.ip(unmake);
    }
}

#[test]
fn somebody_elses_tunnel_is_left_alone_and_ours_is_known_by_its_mark() {
    if !lab::kernel_available() {
        return;
    }
    let namespace = Namespace::new("wd-a");
    drop(Node::<Kernel>::of(&namespace, config(9)));
    let mark = format!("group {}", wgdev::kernel::LINK_GROUP);
    assert!(namespace.ip("link show wd-tun").contains(&mark));
    // A new key on an interface of ours is one thing.
    drop(Node::<Kernel>::of(&namespace, config(1)));
    namespace.ip("link set wd-tun group default");
    let before = namespace.ip("-d link show wd-tun");
    let error = open_error(&namespace, config(2));
    assert!(matches!(error, DeviceError::NameTaken { .. }), "{error}");
    assert!(error.to_string().contains("another key"), "{error}");
    assert_eq!(namespace.ip("-d link show wd-tun"), before);
    // With the key it is ours again, and shows it.
    drop(Node::<Kernel>::of(&namespace, config(1)));
    assert!(namespace.ip("link show wd-tun").contains(&mark));
}

#[test]
fn a_handshake_with_another_key_is_none() {
    if !lab::kernel_available() {
        return;
    }
    let Pair { cable, a, b } = pair();
    Echo::new(&cable, "10.99.0.1:0", "10.99.0.2:7").ping(100);
    assert!(a.status(&b.key).last_handshake.is_some());
    drop(a);
    let a: Node<Kernel> = Node::of(&cable.a, config(1));
    assert!(a.status(&b.key).last_handshake.is_some(), "the same key");
    drop(a);
    let a: Node<Kernel> = Node::of(&cable.a, config(5));
    assert_eq!(a.status(&b.key).last_handshake, None);
}

#[test]
fn a_deleted_renamed_or_taken_interface_stops_the_device() {
    if !lab::kernel_available() {
        return;
    }
    let namespace = Namespace::new("wd-a");
    for change in ["link del wd-tun", "link set wd-tun name wd-else"] {
        let node: Node<Kernel> = Node::of(&namespace, config(1));
        namespace.ip("link set wd-tun down");
        namespace.ip(change);
        let error = lab::recv(&node.device).unwrap_err();
        assert_eq!(error.kind(), std::io::ErrorKind::BrokenPipe, "{change}");
        let error = block_on(node.device.apply(&Delta::default())).unwrap_err();
        assert!(matches!(error, DeviceError::Stopped), "{error}");
        assert!(is_stopped(&node.device));
        let datagram = Datagram { remote: A.parse().unwrap(), local: None, payload: stun_like(0) };
        assert!(block_on(node.device.send(datagram)).is_err());
    }
    namespace.ip("link del wd-else");
    // Replaced by another of the same name, and never written to.
    let node: Node<Kernel> = Node::of(&namespace, config(1));
    namespace.ip("link del wd-tun");
    namespace.ip("link add wd-tun type wireguard");
    let delta = Delta { upsert: vec![peer(private_key(2).public_key(), 2, None)], remove: vec![] };
    assert!(matches!(block_on(node.device.apply(&delta)), Err(DeviceError::Stopped)));
    let node: Node<Kernel> = Node::of(&namespace, config(1));
    assert!(block_on(node.device.peers()).unwrap().is_empty());
    // Somebody else makes it his.
    let _other: Node<Kernel> = Node::of(&namespace, config(3));
    assert!(is_stopped(&node.device));
}

#[test]
fn packets_pass_between_kernel_and_kernel() {
    if lab::kernel_available() {
        packets_pass::<Kernel, Kernel>();
    }
}

#[test]
fn packets_pass_between_kernel_and_userspace() {
    if lab::kernel_available() {
        packets_pass::<Kernel, Userspace>();
        packets_pass::<Userspace, Kernel>();
    }
}

fn packets_pass<X: Open, Y: Open>() {
    for endpoint in [AT_B, "[2001:db8::2]:21820"] {
        let pair: Pair<X, Y> = Pair::between(endpoint);
        let mut v4 = pair.echo();
        let mut v6 = Echo::new(&pair.cable, "[fd99::1]:0", "[fd99::2]:7");
        for size in [8, 100, 1391, 1392, 1400, 20_000] {
            v4.ping(size);
            v6.ping(size);
        }
        let ping = pair.cable.a.command("ping", "-c 3 -i 0.2 -W 5 10.99.0.2");
        assert!(ping.contains(" 0% packet loss"), "{ping}");
        for status in [pair.a.status(&pair.b.key), pair.b.status(&pair.a.key)] {
            assert!(status.last_handshake.is_some_and(|age| age < Duration::from_secs(120)));
            assert!(status.rx_bytes > 20_000 && status.tx_bytes > 20_000, "{status:?}");
        }
    }
}

#[test]
fn an_endpoint_moves_alone_and_loses_nothing() {
    if !lab::kernel_available() {
        return;
    }
    let pair = pair();
    let mut echo = pair.echo();
    echo.ping(100);
    let before = pair.a.status(&pair.b.key);
    assert_eq!(before.allowed_ips.len(), 2);
    for round in 0..20 {
        let endpoint = ["198.51.100.3:21820", AT_B][round % 2];
        pair.a.upsert(PeerUpdate { endpoint: Some(endpoint.parse().unwrap()), ..PeerUpdate::new(pair.b.key) });
        for _ in 0..15 {
            echo.ping(200);
        }
        let status = pair.a.status(&pair.b.key);
        // The answers come from where the questions went.
        assert_eq!(status.endpoint, Some(endpoint.parse().unwrap()));
        assert_eq!(status.allowed_ips, before.allowed_ips);
    }
    assert!(pair.a.status(&pair.b.key).last_handshake >= before.last_handshake, "no new handshake");
}

#[test]
fn a_peer_that_moves_is_followed() {
    if !lab::kernel_available() {
        return;
    }
    let pair = pair();
    let mut echo = pair.echo();
    echo.ping(100);
    // From now on packets of `a` come from elsewhere, and its old address is gone.
    pair.cable.a.ip("addr flush dev wd-eth");
    pair.cable.a.ip("addr add 198.51.100.9/24 dev wd-eth");
    echo.ping(100);
    let endpoint = pair.b.status(&pair.a.key).endpoint;
    assert_eq!(endpoint, Some("198.51.100.9:21820".parse().unwrap()));
}

/// Somebody else removes a peer; a change of ours must not bring it back hollow.
#[test]
fn a_change_of_a_peer_that_is_gone_makes_no_hollow_one() {
    if !lab::kernel_available() {
        return;
    }
    let namespace = Namespace::new("wd-a");
    let node: Node<Kernel> = Node::of(&namespace, config(1));
    let key = private_key(2).public_key();
    node.upsert(peer(key, 2, Some(AT_B)));
    let stranger: Node<Kernel> = Node::of(&namespace, config(1));
    block_on(stranger.device.apply(&Delta { upsert: vec![], remove: vec![key] })).unwrap();
    let moved = PeerUpdate { endpoint: Some(A.parse().unwrap()), ..PeerUpdate::new(key) };
    node.upsert(moved);
    assert_eq!(block_on(node.device.peers()).unwrap(), []);
    // Now that it has seen so, it adds it whole.
    node.upsert(peer(key, 2, Some(AT_B)));
    assert_eq!(node.status(&key).allowed_ips.len(), 2);
}

#[test]
fn a_handshake_starts_at_once_and_leaves_the_keepalive() {
    if !lab::kernel_available() {
        return;
    }
    let pair = pair();
    let Pair { a, b, .. } = &pair;
    let began = Instant::now();
    block_on(a.device.start_handshake(&b.key)).unwrap();
    eventually("the handshake completes", || a.status(&b.key).last_handshake.is_some());
    assert!(began.elapsed() < Duration::from_secs(4), "at once, not with the retry after 5 s");
    for keepalive in [None, Some(Duration::from_secs(600))] {
        a.upsert(PeerUpdate { keepalive: Some(keepalive), ..PeerUpdate::new(b.key) });
        // Over a session it is a keepalive (32 bytes) and no initiation (148); the last one may still be on its way.
        let before = b.status(&a.key).rx_bytes;
        block_on(a.device.start_handshake(&b.key)).unwrap();
        eventually("a keepalive arrives", || b.status(&a.key).rx_bytes >= before + 32);
        assert_eq!(a.status(&b.key).keepalive, keepalive);
    }
    assert!(b.status(&a.key).rx_bytes < 2 * 148, "one handshake");
}

#[test]
fn a_handshake_needs_a_known_peer_and_learns_of_its_endpoint() {
    if !lab::kernel_available() {
        return;
    }
    let pair = pair();
    let unknown = private_key(50).public_key();
    let error = block_on(pair.a.device.start_handshake(&unknown)).unwrap_err();
    assert!(matches!(error, DeviceError::UnknownPeer(_)), "{error}");
    let error = block_on(pair.b.device.start_handshake(&pair.a.key)).unwrap_err();
    assert!(matches!(error, DeviceError::NoEndpoint(_)), "{error}");
    pair.echo().ping(100);
    // Nobody has told `b` where `a` is; the packet has.
    block_on(pair.b.device.start_handshake(&pair.a.key)).unwrap();
}

#[test]
fn stun_goes_both_ways_on_the_port_while_the_tunnel_works() {
    if !lab::kernel_available() {
        return;
    }
    let pair = pair();
    pair.cable.a.ip("addr add 198.51.100.11/24 dev wd-eth");
    let mut echo = pair.echo();
    echo.ping(100);
    let cases = [
        ("198.51.100.2:3478", A, "198.51.100.1"),
        ("198.51.100.2:3478", "198.51.100.11:21820", "198.51.100.11"),
        ("[2001:db8::2]:3478", "[2001:db8::1]:21820", "2001:db8::1"),
    ];
    open_sockets(&pair.a);
    for (server, at_a, local) in cases {
        let stun = pair.cable.b.bind(server);
        stun.send_to(&stun_like(1), at_a).unwrap();
        let got = lab::recv(&pair.a.device).unwrap();
        let expected = Datagram { remote: server.parse().unwrap(), local: Some(ip(local)), payload: stun_like(1) };
        assert_eq!(got, expected);
        echo.ping(1392);
        // From the port and the address that was asked; or from where routing would.
        for (local, from) in [(got.local, at_a), (None, if local.contains(':') { at_a } else { A })] {
            let answer = Datagram { payload: stun_like(2), local, ..got.clone() };
            block_on(pair.a.device.send(answer)).unwrap();
            let mut buffer = [0; 2048];
            let (length, sender) = stun.recv_from(&mut buffer).unwrap();
            assert_eq!((&buffer[..length], sender), (&stun_like(2)[..], from.parse().unwrap()));
        }
    }
    echo.ping(1392);
}

/// One segmented send stays one packet as far as the raw socket.
#[test]
fn merged_datagrams_are_told_apart_one_by_one() {
    if !lab::kernel_available() {
        return;
    }
    let pair = pair();
    open_sockets(&pair.a);
    let sender = pair.cable.b.bind("198.51.100.2:3478");
    let mut shaped = stun_like(9);
    shaped[..4].copy_from_slice(&[4, 0, 0, 0]);
    lab::send_merged(&sender, A, &[stun_like(1), shaped, stun_like(2), stun_like(3)]);
    for n in 1..=3 {
        assert_eq!(lab::recv(&pair.a.device).unwrap().payload, stun_like(n));
    }
}

#[test]
fn what_is_not_for_the_port_or_not_ours_is_left_alone() {
    if !lab::kernel_available() {
        return;
    }
    let pair = pair();
    pair.echo().ping(100);
    open_sockets(&pair.a);
    let sender = pair.cable.b.bind("198.51.100.2:3478");
    let sender6 = pair.cable.b.bind("[2001:db8::2]:3478");
    let inside = pair.cable.b.bind("10.99.0.2:3478");
    // Another port, with somebody behind it and without; through the tunnel; WireGuard's shape with the cookie.
    let _other = pair.cable.a.bind("198.51.100.1:3479");
    for port in [3479, 21821] {
        sender.send_to(&stun_like(1), ("198.51.100.1", port)).unwrap();
        sender6.send_to(&stun_like(1), ("2001:db8::1", port)).unwrap();
    }
    inside.send_to(&stun_like(2), "10.99.0.1:21820").unwrap();
    let mut shaped = stun_like(3);
    shaped[..4].copy_from_slice(&[4, 0, 0, 0]);
    sender.send_to(&shaped, A).unwrap();
    sender.send_to(b"neither", A).unwrap();
    // Framed as STUN, and cut short.
    sender.send_to(&stun_like(5)[..40], A).unwrap();
    sender.send_to(&stun_like(4), A).unwrap();
    assert_eq!(lab::recv(&pair.a.device).unwrap().payload, stun_like(4));
    let nothing = block_on(async { tokio::time::timeout(Duration::from_millis(300), pair.a.device.recv()).await });
    assert!(nothing.is_err(), "{nothing:?}");
}

#[test]
fn a_full_queue_drops_the_newest_and_spares_the_tunnel() {
    if !lab::kernel_available() {
        return;
    }
    let pair = pair();
    let mut echo = pair.echo();
    echo.ping(100);
    let sender = pair.cable.b.bind("198.51.100.2:3478");
    open_sockets(&pair.a);
    let mut sent = 0;
    eventually("the queue is full", || {
        sender.send_to(&stun_like(sent), A).unwrap();
        sent = sent.wrapping_add(1);
        pair.a.device.stats().shared_dropped > 0
    });
    echo.ping(1392);
    for n in 0..4 {
        assert_eq!(lab::recv(&pair.a.device).unwrap().payload, stun_like(n));
    }
}

/// A firewall that lets only marked packets with a right checksum out of WireGuard's port.
const ONLY_MARKED: &str = "
table inet wd {
    chain out {
        type filter hook output priority 0;
        udp sport 21820 meta mark != 0x10 counter drop
        udp sport 21820 udp checksum 0 counter drop
        udp sport 21820 meta mark 0x10 counter accept
    }
}";

#[test]
fn every_outer_packet_carries_the_mark_and_a_checksum() {
    if !lab::kernel_available() {
        return;
    }
    let rules = std::env::temp_dir().join(format!("wd-kmark-{}.nft", std::process::id()));
    std::fs::write(&rules, ONLY_MARKED).unwrap();
    let pair = pair();
    pair.cable.a.command("nft", &format!("-f {}", rules.display()));
    std::fs::remove_file(&rules).unwrap();
    pair.echo().ping(1392);
    let probe = |device: &Kernel, to: &str| {
        let datagram = Datagram { remote: to.parse().unwrap(), local: None, payload: stun_like(1) };
        block_on(device.send(datagram))
    };
    for server in ["198.51.100.2:3478", "[2001:db8::2]:3478"] {
        let stun = pair.cable.b.bind(server);
        probe(&pair.a.device, server).unwrap();
        stun.recv(&mut [0; 64]).unwrap();
    }
    let counted = pair.cable.a.command("nft", "list table inet wd");
    assert_eq!(counted.matches("packets 0 bytes 0 drop").count(), 2, "{counted}");
    // The firewall does tell: without a mark nothing leaves.
    let Pair { cable, a, .. } = pair;
    drop(a);
    let unmarked: Node<Kernel> = Node::of(&cable.a, DeviceConfig { fwmark: 0, ..config(1) });
    assert!(probe(&unmarked.device, "198.51.100.2:3478").is_err());
}

/// Its port answers "unreachable" then, so a server that hears of us would be told to forget us.
#[test]
fn nothing_is_sent_while_the_interface_is_down() {
    if !lab::kernel_available() {
        return;
    }
    let pair = pair();
    let stun = pair.cable.b.bind("198.51.100.2:3478");
    let send = || {
        let datagram = Datagram { remote: "198.51.100.2:3478".parse().unwrap(), local: None, payload: stun_like(1) };
        block_on(pair.a.device.send(datagram))
    };
    send().unwrap();
    pair.cable.a.ip("link set wd-tun down");
    eventually("it is refused", || send().is_err_and(|e| e.kind() == std::io::ErrorKind::NetworkDown));
    pair.cable.a.ip("link set wd-tun up");
    eventually("it is sent again", || send().is_ok());
    stun.recv(&mut [0; 64]).unwrap();
}

#[test]
fn the_sockets_close_when_nobody_needs_them_and_open_again() {
    if !lab::kernel_available() {
        return;
    }
    let pair = pair();
    let sockets = || {
        pair.cable.a.run(|| {
            let of = |file| std::fs::read_to_string(format!("/proc/thread-self/net/{file}")).unwrap();
            // Two lines of headings, and one for each socket.
            of("raw").lines().count() + of("raw6").lines().count() - 2
        })
    };
    assert_eq!(sockets(), 0, "nobody has asked yet");
    let wait = || block_on(async { tokio::time::timeout(Duration::from_millis(10), pair.a.device.recv()).await });
    assert!(wait().is_err());
    eventually("they open", || sockets() == 2);
    thread::sleep(Duration::from_secs(62));
    eventually("they close", || sockets() == 0);
    assert!(wait().is_err());
    eventually("they open again", || sockets() == 2);
}

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
    let (mut index, mut partial) = (None, 0);
    for _ in 0..50 {
        let mut child = namespace.again("applies_until_killed", UNTIL_KILLED);
        let said = BufReader::new(child.stdout.take().unwrap());
        assert!(said.lines().any(|line| line.unwrap().ends_with(APPLIES)));
        thread::sleep(Duration::from_millis((random.next_u32() % 200).into()));
        child.kill().unwrap();
        child.wait().unwrap();
        let node: Node<Kernel> = Node::of(&namespace, config(1));
        assert_eq!(*index.get_or_insert(node.device.if_index()), node.device.if_index());
        let peers = block_on(node.device.peers()).unwrap();
        for status in &peers {
            let whole =
                versions.iter().any(|v| v[&status.public_key].allowed_ips.as_ref() == Some(&status.allowed_ips));
            assert!(whole, "{status:?}");
        }
        let endpoints: Vec<_> = peers.iter().filter_map(|p| p.endpoint).map(|e| e.ip()).collect();
        partial += u32::from(peers.len() % 100 != 0 || endpoints.windows(2).any(|w| w[0] != w[1]));
        block_on(node.device.apply(&first)).unwrap();
        let peers = block_on(node.device.peers()).unwrap();
        assert_eq!(peers.len(), versions[0].len());
        for status in peers {
            let told = &versions[0][&status.public_key];
            assert_eq!((status.endpoint, Some(status.allowed_ips)), (told.endpoint, told.allowed_ips.clone()));
        }
    }
    println!("{partial} of 50 were interrupted in the midst");
    assert!(partial > 5, "only {partial} of 50 were interrupted in the midst");
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
