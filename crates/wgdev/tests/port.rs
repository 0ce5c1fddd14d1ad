//! Sharing WireGuard's port, its mark, and what strangers may send to it.

#![allow(clippy::unwrap_used)]

mod lab;

use std::{net::UdpSocket, sync::Arc, time::Duration};

use gotatun::{
    noise::{Tunn, index_table::IndexTable, rate_limiter::RateLimiter},
    packet::Packet,
    x25519,
};
use lab::{Pair, block_on, eventually, ip, peer, private_key};
use proptest::{
    prelude::Rng,
    test_runner::{RngAlgorithm, TestRng},
};
use wgdev::{Datagram, Device, DeviceConfig, Userspace};

const A: &str = "198.51.100.1:21820";

fn stun_like(n: u8) -> Vec<u8> {
    let mut datagram = vec![n; 48];
    datagram[..8].copy_from_slice(&[0, 1, 0, 28, 0x21, 0x12, 0xa4, 0x42]);
    datagram
}

/// A message that has the shape of a handshake initiation or data, and nothing else.
fn wireguard_like(kind: u8, length: usize) -> Vec<u8> {
    let mut datagram = vec![0xa5; length];
    datagram[..4].copy_from_slice(&[kind, 0, 0, 0]);
    datagram
}

fn receive(socket: &UdpSocket) -> (Vec<u8>, std::net::SocketAddr) {
    let mut buffer = [0; 2048];
    let (length, from) = socket.recv_from(&mut buffer).unwrap();
    (buffer[..length].to_vec(), from)
}

#[test]
fn what_is_not_wireguards_goes_both_ways_on_the_same_port() {
    if !lab::available() {
        return;
    }
    let pair = Pair::new();
    pair.cable.a.ip("addr add 198.51.100.11/24 dev wd-eth");
    let cases = [
        ("198.51.100.2:3478", A, "198.51.100.1"),
        ("198.51.100.2:3478", "198.51.100.11:21820", "198.51.100.11"),
        ("[2001:db8::2]:3478", "[2001:db8::1]:21820", "2001:db8::1"),
    ];
    for (server, at_a, local) in cases {
        let stun = pair.cable.b.bind(server);
        stun.send_to(&stun_like(1), at_a).unwrap();
        let got = lab::recv(&pair.a.device).unwrap();
        let expected = Datagram { remote: server.parse().unwrap(), local: Some(ip(local)), payload: stun_like(1) };
        assert_eq!(got, expected);
        let answer = Datagram { payload: stun_like(2), ..got };
        block_on(pair.a.device.send(answer)).unwrap();
        // From the port and the address that was asked.
        assert_eq!(receive(&stun), (stun_like(2), at_a.parse().unwrap()));
    }
    pair.echo().ping(100);
}

#[test]
fn merged_datagrams_are_told_apart_one_by_one() {
    if !lab::available() {
        return;
    }
    let pair = Pair::new();
    let sender = pair.cable.b.bind("198.51.100.2:3478");
    // One segmented send stays one message until the receiving socket.
    let parts = [stun_like(1), wireguard_like(4, 48), stun_like(2), wireguard_like(1, 48), stun_like(3)];
    lab::send_merged(&sender, A, &parts);
    for n in 1..=3 {
        assert_eq!(lab::recv(&pair.a.device).unwrap().payload, stun_like(n));
    }
    eventually("both WireGuard-shaped ones are refused", || pair.a.device.stats().invalid_messages == 2);
}

#[test]
fn a_full_queue_drops_the_newest_and_spares_the_tunnel() {
    if !lab::available() {
        return;
    }
    let pair = Pair::new();
    let mut echo = pair.echo();
    echo.ping(100);
    let sender = pair.cable.b.bind("198.51.100.2:3478");
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

/// A firewall that lets only marked packets out of WireGuard's port.
const ONLY_MARKED: &str = "
table inet wd {
    chain out {
        type filter hook output priority 0;
        udp sport 21820 meta mark != 0x10 counter drop
        udp sport 21820 meta mark 0x10 counter accept
    }
}";

#[test]
fn every_outer_packet_carries_the_mark() {
    if !lab::available() {
        return;
    }
    let rules = std::env::temp_dir().join(format!("wd-mark-{}.nft", std::process::id()));
    std::fs::write(&rules, ONLY_MARKED).unwrap();
    let load = format!("-f {}", rules.display());
    let pair = Pair::over("[2001:db8::2]:21820");
    pair.cable.a.command("nft", &load);
    pair.cable.b.command("nft", &load);
    std::fs::remove_file(&rules).unwrap();
    pair.echo().ping(1392);
    let stun = pair.cable.b.bind("198.51.100.2:3478");
    let probe = |device: &Userspace| {
        block_on(device.send(Datagram {
            remote: "198.51.100.2:3478".parse().unwrap(),
            local: None,
            payload: stun_like(1),
        }))
    };
    probe(&pair.a.device).unwrap();
    receive(&stun);
    for namespace in [&pair.cable.a, &pair.cable.b] {
        let counted = namespace.command("nft", "list table inet wd");
        assert!(counted.contains("packets 0 bytes 0 drop"), "{counted}");
        assert!(!counted.contains("packets 0 bytes 0 accept"), "{counted}");
    }
    // The firewall does tell: without a mark nothing leaves.
    let Pair { cable, a, .. } = pair;
    drop(a);
    let unmarked = cable.a.run(|| {
        let config = DeviceConfig { fwmark: 0, ..lab::config(1) };
        Userspace::open(config).unwrap()
    });
    assert!(probe(&unmarked).is_err());
}

#[test]
fn junk_harms_nobody() {
    if !lab::available() {
        return;
    }
    let pair = Pair::new();
    let mut echo = pair.echo();
    echo.ping(100);
    let before = pair.a.status(&pair.b.key);
    let stranger = pair.cable.b.bind("198.51.100.3:9999");
    let mut random = TestRng::from_seed(RngAlgorithm::ChaCha, &[7; 32]);
    for round in 0..20_000u32 {
        let mut junk = vec![0; random.next_u32() as usize % 1400];
        random.fill_bytes(&mut junk);
        if let [kind, reserved @ ..] = &mut junk[..]
            && reserved.len() >= 3
            && round % 2 == 0
        {
            *kind = (round / 2 % 4) as u8 + 1;
            reserved[..3].fill(0);
        }
        // Messages that are exactly as long as handshakes and cookies get further than others.
        junk.truncate(match round % 8 {
            0 => 148,
            2 => 92,
            4 => 64,
            _ => 1400,
        });
        stranger.send_to(&junk, A).unwrap();
        if round % 1000 == 0 {
            echo.ping(1392);
        }
    }
    echo.ping(1392);
    let after = pair.a.status(&pair.b.key);
    assert_eq!(after.endpoint, before.endpoint);
    assert!(after.last_handshake >= before.last_handshake);
    assert!(pair.a.device.stats().invalid_messages > 0);
}

#[test]
fn a_recorded_packet_moves_no_endpoint() {
    if !lab::available() {
        return;
    }
    // `b` is a plain socket in the middle: it forwards between `a` and the real peer, and records.
    let cable = lab::Cable::new();
    let (a, b) = (lab::Node::open(&cable.a, 1), lab::Node::open(&cable.b, 2));
    lab::Node::address(&cable.a, 1);
    lab::Node::address(&cable.b, 2);
    b.upsert(peer(a.key, 1, None));
    a.upsert(peer(b.key, 2, Some("198.51.100.2:7000")));
    let relay = cable.b.bind("198.51.100.2:7000");
    let towards_b = cable.b.bind("198.51.100.2:7001");
    block_on(a.device.start_handshake(&b.key)).unwrap();
    let (initiation, _) = receive(&relay);
    towards_b.send_to(&initiation, "198.51.100.2:21820").unwrap();
    let (response, _) = receive(&towards_b);
    relay.send_to(&response, A).unwrap();
    let (confirmation, _) = receive(&relay);
    towards_b.send_to(&confirmation, "198.51.100.2:21820").unwrap();
    eventually("the session stands", || b.status(&a.key).last_handshake.is_some());
    let known = b.status(&a.key);
    assert_eq!(known.endpoint, Some("198.51.100.2:7001".parse().unwrap()));
    let replayer = cable.b.bind("198.51.100.3:7002");
    let invalid = b.device.stats().invalid_messages;
    for recorded in [&initiation, &confirmation] {
        replayer.send_to(recorded, "198.51.100.2:21820").unwrap();
    }
    eventually("both are refused", || b.device.stats().invalid_messages == invalid + 2);
    assert_eq!(b.status(&a.key).endpoint, known.endpoint);
    assert_eq!(b.status(&a.key).rx_bytes, known.rx_bytes);
}

/// Initiations of strangers with a valid first MAC: whoever sends too many must prove its address, and
/// nobody else notices.
#[test]
fn a_flood_of_handshakes_is_answered_with_cookies() {
    if !lab::available() {
        return;
    }
    let pair = Pair::new();
    let secret = x25519::StaticSecret::from([77; 32]);
    let public = x25519::PublicKey::from(&secret);
    let mut stranger = Tunn::new(
        secret,
        x25519::PublicKey::from(*pair.a.key.as_bytes()),
        None,
        None,
        IndexTable::from_os_rng(),
        Arc::new(RateLimiter::new(&public, 100)),
    );
    let initiations: Vec<Packet> =
        (0..200).map(|_| stranger.format_handshake_initiation(true).unwrap().into()).collect();
    let flooder = pair.cable.b.bind("198.51.100.3:9999");
    // Within one second more than one source may have: again until a second was hit. Not without a pause, or a slow
    // machine works off what has queued long after the test.
    flooder.set_read_timeout(Some(Duration::from_millis(500))).unwrap();
    let mut answer = [0; 256];
    let mut answered = None;
    eventually("a cookie comes back", || {
        for initiation in &initiations {
            flooder.send_to(initiation, A).unwrap();
        }
        answered = flooder.recv(&mut answer).ok();
        answered.is_some()
    });
    assert_eq!(answered, Some(64));
    assert_eq!(answer[..4], [3, 0, 0, 0]);
    pair.echo().ping(100);
}

#[test]
fn the_private_key_is_in_no_text() {
    let secret = private_key(1).to_base64();
    assert!(!format!("{:?}", lab::config(1)).contains(&secret[..8]));
}
