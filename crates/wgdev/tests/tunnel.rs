//! Packets through two devices.

#![allow(clippy::unwrap_used)]

#[macro_use]
mod lab;

use std::{
    io::{Read, Write},
    net::{TcpListener, TcpStream},
    thread,
    time::Duration,
};

use lab::{AT_A, AT_B, Echo, Node, Open, Pair, block_on, eventually, peer};
use wgdev::{Delta, Device as _, Kernel, PeerUpdate, Userspace};

on_both_devices!(
    the_underlay_may_be_ipv6,
    streams_arrive_whole,
    an_underlay_with_a_smaller_mtu_loses_nothing,
    moving_an_endpoint_under_traffic_loses_nothing,
    a_peer_that_moves_is_followed,
    a_removed_peer_is_not_heard_and_not_sent_to,
    a_peer_may_change_its_key,
    a_source_that_is_not_the_peers_is_dropped,
    a_handshake_needs_a_known_peer_with_an_endpoint,
    a_keepalive_alone_makes_the_session,
);

#[test]
fn packets_of_all_sizes_pass_between_userspace_and_userspace() {
    if lab::available() {
        packets_of_all_sizes_pass::<Userspace, Userspace>();
    }
}

#[test]
fn packets_of_all_sizes_pass_between_kernel_and_kernel() {
    if lab::kernel_available() {
        packets_of_all_sizes_pass::<Kernel, Kernel>();
    }
}

#[test]
fn packets_of_all_sizes_pass_between_kernel_and_userspace() {
    if lab::kernel_available() {
        packets_of_all_sizes_pass::<Kernel, Userspace>();
        packets_of_all_sizes_pass::<Userspace, Kernel>();
    }
}

fn packets_of_all_sizes_pass<X: Open, Y: Open>() {
    let pair = Pair::<X, Y>::new();
    let mut v4 = pair.echo();
    let mut v6 = Echo::new(&pair.cable, "[fd99::1]:0", "[fd99::2]:7");
    // Up to the full MTU of the device, and past it, in fragments.
    for size in [8, 9, 100, 1000, 1391, 1392, 1393, 1400, 4000, 20_000] {
        v4.ping(size);
        v6.ping(size);
    }
    let (at_a, at_b) = (pair.a.status(&pair.b.key), pair.b.status(&pair.a.key));
    assert!(at_a.last_handshake.is_some() && at_b.last_handshake.is_some());
    assert!(at_a.rx_bytes > 50_000 && at_a.tx_bytes > 50_000);
    assert!(at_b.rx_bytes > 50_000 && at_b.tx_bytes > 50_000);
    assert_eq!(at_b.endpoint, Some(AT_A.parse().unwrap()));
    let ping = pair.cable.a.command("ping", "-c 3 -i 0.2 -W 5 10.99.0.2");
    assert!(ping.contains(" 0% packet loss"), "{ping}");
}

fn the_underlay_may_be_ipv6<D: Open>() {
    let pair = Pair::<D>::over("[2001:db8::2]:21820");
    let mut echo = pair.echo();
    echo.ping(1392);
    let endpoint = pair.b.status(&pair.a.key).endpoint;
    assert_eq!(endpoint, Some("[2001:db8::1]:21820".parse().unwrap()));
}

/// Sends this many bytes from `a` to `service` at `b` and back, and compares.
fn stream<D: Open>(pair: &Pair<D>, service: &'static str, bytes: u32) {
    let listener = pair.cable.b.run(move || TcpListener::bind(service).unwrap());
    let echo = thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        let mut reader = stream.try_clone().unwrap();
        std::io::copy(&mut reader, &mut stream).unwrap()
    });
    let stream = pair.cable.a.run(move || TcpStream::connect(service).unwrap());
    stream.set_read_timeout(Some(lab::PATIENCE)).unwrap();
    let mut writer = stream.try_clone().unwrap();
    let sent: Vec<u8> = (0..bytes).map(|i| (i.wrapping_mul(2_654_435_761) >> 13) as u8).collect();
    let expected = sent.clone();
    let write = thread::spawn(move || {
        // Odd sizes, so that segments end anywhere.
        for chunk in sent.chunks(70_001) {
            writer.write_all(chunk).unwrap();
        }
        writer.shutdown(std::net::Shutdown::Write).unwrap();
    });
    let mut back = Vec::new();
    (&stream).read_to_end(&mut back).unwrap();
    write.join().unwrap();
    echo.join().unwrap();
    assert!(back == expected, "the stream changed");
}

/// TCP fills super packets in both directions: split, segmented sends, merged receives, coalescing.
fn streams_arrive_whole<D: Open>() {
    let pair = Pair::<D>::new();
    for service in ["10.99.0.2:5001", "[fd99::2]:5001"] {
        stream(&pair, service, 6_000_000);
    }
    assert_eq!(pair.a.device.stats().send_errors, 0);
    assert_eq!(pair.a.device.stats().interface_errors, 0);
    assert_eq!(pair.b.device.stats().interface_errors, 0);
}

/// Segments larger than the link takes can't be sent as segments; as fragments they arrive.
fn an_underlay_with_a_smaller_mtu_loses_nothing<D: Open>() {
    let pair = Pair::<D>::new();
    for namespace in [&pair.cable.a, &pair.cable.b] {
        namespace.ip("link set wd-eth mtu 1300");
    }
    pair.echo().ping(1392);
    stream(&pair, "10.99.0.2:5001", 500_000);
    assert_eq!(pair.a.device.stats().send_errors, 0);
}

fn moving_an_endpoint_under_traffic_loses_nothing<D: Open>() {
    let pair = Pair::<D>::new();
    let mut echo = pair.echo();
    echo.ping(100);
    let before = pair.a.status(&pair.b.key);
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
    let after = pair.a.status(&pair.b.key);
    assert!(after.last_handshake >= before.last_handshake, "no new handshake");
}

fn a_peer_that_moves_is_followed<D: Open>() {
    let pair = Pair::<D>::new();
    let mut echo = pair.echo();
    echo.ping(100);
    // From now on packets of `a` come from elsewhere, and its old address is gone.
    pair.cable.a.ip("addr flush dev wd-eth");
    pair.cable.a.ip("addr add 198.51.100.9/24 dev wd-eth");
    echo.ping(100);
    let endpoint = pair.b.status(&pair.a.key).endpoint;
    assert_eq!(endpoint, Some("198.51.100.9:21820".parse().unwrap()));
}

fn a_removed_peer_is_not_heard_and_not_sent_to<D: Open>() {
    let pair = Pair::<D>::new();
    let mut echo = pair.echo();
    echo.ping(100);
    let remove = Delta { upsert: vec![], remove: vec![pair.b.key] };
    block_on(pair.a.device.apply(&remove)).unwrap();
    assert!(block_on(pair.a.device.peers()).unwrap().is_empty());
    let before = pair.a.device.stats();
    assert!(!echo.try_ping(100, Duration::from_millis(300)));
    assert!(!D::COUNTS || pair.a.device.stats().no_peer > before.no_peer);
    let from_b = pair.cable.b.bind("10.99.0.2:0");
    from_b.send_to(b"hello", "10.99.0.1:9").unwrap();
    if D::COUNTS {
        eventually("b's packet is dropped", || pair.a.device.stats().invalid_messages > before.invalid_messages);
    }
    // Added again it works again: nothing of the old one is in the way.
    pair.a.upsert(peer(pair.b.key, 2, Some(AT_B)));
    echo.ping(100);
}

fn a_peer_may_change_its_key<D: Open>() {
    let Pair { cable, a, b } = Pair::<D>::new();
    let mut echo = Echo::new(&cable, "10.99.0.1:0", "10.99.0.2:7");
    echo.ping(100);
    let old = b.key;
    drop(b);
    let b = Node::<D>::open(&cable.b, 3);
    b.upsert(peer(a.key, 1, None));
    let change = Delta { upsert: vec![peer(b.key, 2, Some(AT_B))], remove: vec![old] };
    block_on(a.device.apply(&change)).unwrap();
    echo.ping(100);
    assert_eq!(block_on(a.device.peers()).unwrap().len(), 1);
}

fn a_source_that_is_not_the_peers_is_dropped<D: Open>() {
    let pair = Pair::<D>::new();
    pair.echo().ping(100);
    pair.cable.b.ip("addr add 10.99.0.77/24 dev wd-tun");
    let service = pair.cable.a.bind("10.99.0.1:9");
    let liar = pair.cable.b.bind("10.99.0.77:0");
    let honest = pair.cable.b.bind("10.99.0.2:0");
    liar.send_to(b"lie", "10.99.0.1:9").unwrap();
    honest.send_to(b"truth", "10.99.0.1:9").unwrap();
    let mut buffer = [0; 16];
    let length = service.recv(&mut buffer).unwrap();
    assert_eq!(&buffer[..length], b"truth");
    assert_eq!(pair.a.device.stats().wrong_source, u64::from(D::COUNTS));
}

/// The kernel can't; what it does instead is in `kernel.rs`.
#[test]
fn a_handshake_starts_when_asked_even_over_a_session() {
    if !lab::available() {
        return;
    }
    let pair = Pair::<Userspace>::new();
    let start = || block_on(pair.a.device.start_handshake(&pair.b.key));
    start().unwrap();
    eventually("the first handshake completes", || pair.a.status(&pair.b.key).last_handshake.is_some());
    // An idle session says nothing on its own, so what is counted now is a handshake.
    for _ in 0..3 {
        let before = pair.b.status(&pair.a.key).rx_bytes;
        start().unwrap();
        eventually("initiation and confirmation arrive", || pair.b.status(&pair.a.key).rx_bytes >= before + 148 + 32);
    }
    pair.echo().ping(100);
}

fn a_handshake_needs_a_known_peer_with_an_endpoint<D: Open>() {
    let pair = Pair::<D>::new();
    let unknown = lab::private_key(50).public_key();
    let error = block_on(pair.a.device.start_handshake(&unknown)).unwrap_err();
    assert!(matches!(error, wgdev::DeviceError::UnknownPeer(_)), "{error}");
    let error = block_on(pair.b.device.start_handshake(&pair.a.key)).unwrap_err();
    assert!(matches!(error, wgdev::DeviceError::NoEndpoint(_)), "{error}");
    pair.echo().ping(100);
    // Nobody has told `b` where `a` is; the packet has.
    block_on(pair.b.device.start_handshake(&pair.a.key)).unwrap();
}

fn a_keepalive_alone_makes_the_session<D: Open>() {
    let pair = Pair::<D>::new();
    pair.a.upsert(PeerUpdate { keepalive: Some(Some(Duration::from_secs(1))), ..PeerUpdate::new(pair.b.key) });
    eventually("b hears of a", || pair.b.status(&pair.a.key).last_handshake.is_some());
    let before = pair.b.status(&pair.a.key).rx_bytes;
    eventually("two more keepalives arrive", || pair.b.status(&pair.a.key).rx_bytes >= before + 64);
    let status = pair.a.status(&pair.b.key);
    assert_eq!(status.keepalive, Some(Duration::from_secs(1)));
}
