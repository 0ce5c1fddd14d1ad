//! The kernel's WireGuard: what it has and userspace hasn't. Where the kernel has none, `e2e/kernel/wgdev.sh` runs these in a
//! machine that has.

#![allow(clippy::unwrap_used)]

mod lab;

use std::time::{Duration, Instant};

use lab::{
    AT_A, AT_B, DEVICE, Echo, Namespace, Node, Pair, block_on, config, eventually, peer, private_key, stun_like,
};
use wgdev::{Datagram, Delta, Device as _, DeviceConfig, DeviceError, Kernel, PeerUpdate};

fn open_error(namespace: &Namespace, config: DeviceConfig) -> DeviceError {
    lab::open_error::<Kernel>(namespace, config)
}

fn is_stopped(device: &Kernel) -> bool {
    matches!(block_on(device.peers()), Err(DeviceError::Stopped))
}

/// An interface that is there and down has no port.
#[test]
fn a_port_that_was_taken_meanwhile_is_an_error_of_its_own() {
    if !lab::kernel_available() {
        return;
    }
    let namespace = Namespace::new("wd-a");
    let _owner = namespace.bind("0.0.0.0:21820");
    namespace.ip("link add wd-tun type wireguard");
    let error = open_error(&namespace, config(1));
    assert!(matches!(error, DeviceError::PortTaken { port: 21820 }), "{error}");
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
    let Pair { cable, a, b } = Pair::<Kernel>::new();
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
fn the_port_that_stands_is_told_to_whom_has_the_key() {
    if !lab::kernel_available() {
        return;
    }
    let namespace = Namespace::new("wd-a");
    let standing =
        |seed| namespace.run(move || wgdev::kernel::standing_port(DEVICE, private_key(seed).public_key()).unwrap());
    assert_eq!(standing(1), None, "no interface");
    drop(Node::<Kernel>::of(&namespace, DeviceConfig { listen_port: 21821, ..config(1) }));
    assert_eq!(standing(1), Some(21821));
    assert_eq!(standing(2), None, "another key");
    namespace.ip("link set wd-tun down");
    assert_eq!(standing(1), None, "nobody hears anything there");
    namespace.ip("link del wd-tun");
    namespace.ip("link add wd-tun type bridge");
    assert_eq!(standing(1), None, "no WireGuard");
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
    let Pair { cable, a, b } = Pair::<Kernel>::new();
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
        let datagram = Datagram { remote: AT_A.parse().unwrap(), local: None, payload: stun_like(0) };
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
    let moved = PeerUpdate { endpoint: Some(AT_A.parse().unwrap()), ..PeerUpdate::new(key) };
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
    let pair = Pair::<Kernel>::new();
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
