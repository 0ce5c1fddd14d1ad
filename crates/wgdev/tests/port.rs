//! Sharing WireGuard's port, and its mark.

#![allow(clippy::unwrap_used)]

#[macro_use]
mod lab;

use std::net::SocketAddr;

use lab::{
    AT_A, Node, Open, Pair, block_on, config, eventually, ip, private_key, receive, relay_like, stun_like, wake,
};
use socket2::{Domain, Protocol, Socket, Type};
use wgdev::{Datagram, DeviceConfig};

on_both_devices!(
    stun_goes_both_ways_on_the_port_while_the_tunnel_works,
    an_opener_lives_for_the_hops_that_it_was_given_and_nothing_else_does,
    messages_of_a_relay_go_both_ways_on_the_port,
    merged_datagrams_are_told_apart_one_by_one,
    a_full_queue_drops_the_newest_and_spares_the_tunnel,
    every_outer_packet_carries_the_mark_and_a_checksum,
    what_comes_out_of_the_tunnel_is_not_handed_out,
    a_damaged_datagram_is_not_handed_out,
);

/// A message that has the shape of WireGuard's data, and the magic cookie of STUN.
fn wireguard_like() -> Vec<u8> {
    let mut datagram = stun_like(9);
    datagram[..4].copy_from_slice(&[4, 0, 0, 0]);
    datagram
}

fn stun_goes_both_ways_on_the_port_while_the_tunnel_works<D: Open>() {
    let pair = Pair::<D>::new();
    pair.cable.a.ip("addr add 198.51.100.11/24 dev wd-eth");
    let mut echo = pair.echo();
    echo.ping(100);
    let cases = [
        ("198.51.100.2:3478", AT_A, "198.51.100.1"),
        ("198.51.100.2:3478", "198.51.100.11:21820", "198.51.100.11"),
        ("[2001:db8::2]:3478", "[2001:db8::1]:21820", "2001:db8::1"),
    ];
    wake(&pair.a);
    for (server, at_a, local) in cases {
        let stun = pair.cable.b.bind(server);
        stun.send_to(&stun_like(1), at_a).unwrap();
        let got = lab::recv(&pair.a.device).unwrap();
        let expected = Datagram { remote: server.parse().unwrap(), local: Some(ip(local)), payload: stun_like(1) };
        assert_eq!(got, expected);
        echo.ping(1392);
        // From the port and the address that was asked; or from where routing would.
        for (local, from) in [(got.local, at_a), (None, if local.contains(':') { at_a } else { AT_A })] {
            let answer = Datagram { payload: stun_like(2), local, ..got.clone() };
            block_on(pair.a.device.send(answer)).unwrap();
            assert_eq!(receive(&stun), (stun_like(2), from.parse().unwrap()));
        }
    }
    echo.ping(1392);
}

/// A firewall that lets in only what has three hops left.
const ONLY_OPENERS: &str = "
table inet wd {
    chain in {
        type filter hook input priority 0;
        udp dport 3478 ip ttl != 3 drop
        udp dport 3478 ip6 hoplimit != 3 drop
    }
}";

fn an_opener_lives_for_the_hops_that_it_was_given_and_nothing_else_does<D: Open>() {
    let rules = std::env::temp_dir().join(format!("wd-ttl-{}.nft", std::process::id()));
    std::fs::write(&rules, ONLY_OPENERS).unwrap();
    let pair = Pair::<D>::new();
    pair.cable.b.command("nft", &format!("-f {}", rules.display()));
    std::fs::remove_file(&rules).unwrap();
    for server in ["198.51.100.2:3478", "[2001:db8::2]:3478"] {
        let socket = pair.cable.b.bind(server);
        let datagram = |n| Datagram { remote: server.parse().unwrap(), local: None, payload: stun_like(n) };
        block_on(pair.a.device.send(datagram(1))).unwrap();
        block_on(pair.a.device.send_with_ttl(datagram(2), 3)).unwrap();
        assert_eq!(receive(&socket).0, stun_like(2), "{server}");
        block_on(pair.a.device.send(datagram(3))).unwrap();
        block_on(pair.a.device.send_with_ttl(datagram(4), 3)).unwrap();
        assert_eq!(receive(&socket).0, stun_like(4), "{server}: only that one");
    }
}

fn messages_of_a_relay_go_both_ways_on_the_port<D: Open>() {
    let pair = Pair::<D>::new();
    let mut echo = pair.echo();
    wake(&pair.a);
    for (relay, at_a, local) in
        [("198.51.100.2:51900", AT_A, "198.51.100.1"), ("[2001:db8::2]:51900", "[2001:db8::1]:21820", "2001:db8::1")]
    {
        let socket = pair.cable.b.bind(relay);
        let to_relay = Datagram { remote: relay.parse().unwrap(), local: None, payload: relay_like(1) };
        block_on(pair.a.device.send(to_relay)).unwrap();
        assert_eq!(receive(&socket), (relay_like(1), at_a.parse().unwrap()));
        socket.send_to(&relay_like(3), at_a).unwrap();
        lab::send_merged(&socket, at_a, &[relay_like(4), relay_like(5)]);
        for n in 3..=5 {
            let expected = Datagram { remote: relay.parse().unwrap(), local: Some(ip(local)), payload: relay_like(n) };
            assert_eq!(lab::recv(&pair.a.device).unwrap(), expected, "from {relay}");
        }
        echo.ping(1392);
    }
}

/// One segmented send stays one packet as far as the receiving socket.
fn merged_datagrams_are_told_apart_one_by_one<D: Open>() {
    let pair = Pair::<D>::new();
    wake(&pair.a);
    let sender = pair.cable.b.bind("198.51.100.2:3478");
    let parts = [stun_like(1), wireguard_like(), stun_like(2), wireguard_like(), stun_like(3)];
    lab::send_merged(&sender, AT_A, &parts);
    for n in 1..=3 {
        assert_eq!(lab::recv(&pair.a.device).unwrap().payload, stun_like(n));
    }
    if D::COUNTS {
        eventually("both WireGuard-shaped ones are refused", || pair.a.device.stats().invalid_messages == 2);
    }
}

fn a_full_queue_drops_the_newest_and_spares_the_tunnel<D: Open>() {
    let pair = Pair::<D>::new();
    let mut echo = pair.echo();
    echo.ping(100);
    wake(&pair.a);
    let sender = pair.cable.b.bind("198.51.100.2:3478");
    let mut sent = 0;
    eventually("the queue is full", || {
        sender.send_to(&stun_like(sent), AT_A).unwrap();
        sent = sent.wrapping_add(1);
        pair.a.device.stats().shared_dropped > 0
    });
    echo.ping(1392);
    for n in 0..4 {
        assert_eq!(lab::recv(&pair.a.device).unwrap().payload, stun_like(n));
    }
}

/// A firewall that lets only marked packets with a checksum out of WireGuard's port.
const ONLY_MARKED: &str = "
table inet wd {
    chain out {
        type filter hook output priority 0;
        udp sport 21820 meta mark != 0x10 counter drop
        udp sport 21820 udp checksum 0 counter drop
        udp sport 21820 meta mark 0x10 counter accept
    }
}";

fn every_outer_packet_carries_the_mark_and_a_checksum<D: Open>() {
    let backend = std::any::type_name::<D>().rsplit(':').next().unwrap();
    let rules = std::env::temp_dir().join(format!("wd-mark-{backend}-{}.nft", std::process::id()));
    std::fs::write(&rules, ONLY_MARKED).unwrap();
    let probe = |device: &D, to: &str| {
        let datagram = Datagram { remote: to.parse().unwrap(), local: None, payload: stun_like(1) };
        block_on(device.send(datagram))
    };
    let mut last = None;
    for endpoint in [lab::AT_B, "[2001:db8::2]:21820"] {
        let pair = Pair::<D>::over(endpoint);
        for namespace in [&pair.cable.a, &pair.cable.b] {
            namespace.command("nft", &format!("-f {}", rules.display()));
        }
        pair.echo().ping(1392);
        for server in ["198.51.100.2:3478", "[2001:db8::2]:3478"] {
            let stun = pair.cable.b.bind(server);
            probe(&pair.a.device, server).unwrap();
            receive(&stun);
        }
        for namespace in [&pair.cable.a, &pair.cable.b] {
            let counted = namespace.command("nft", "list table inet wd");
            assert_eq!(counted.matches("packets 0 bytes 0 drop").count(), 2, "{counted}");
            assert!(!counted.contains("packets 0 bytes 0 accept"), "{counted}");
        }
        last = Some(pair);
    }
    std::fs::remove_file(&rules).unwrap();
    // The firewall does tell: without a mark nothing leaves.
    let Pair { cable, a, .. } = last.unwrap();
    drop(a);
    let unmarked = Node::<D>::of(&cable.a, DeviceConfig { fwmark: 0, ..config(1) });
    assert!(probe(&unmarked.device, "198.51.100.2:3478").is_err());
}

/// A peer's packet to the port may say that it comes from anywhere.
fn what_comes_out_of_the_tunnel_is_not_handed_out<D: Open>() {
    let pair = Pair::<D>::new();
    pair.echo().ping(100);
    wake(&pair.a);
    for (inside, at_a, outside, underlay_of_a) in [
        ("10.99.0.2:3478", "10.99.0.1:21820", "198.51.100.2:3478", AT_A),
        ("[fd99::2]:3478", "[fd99::1]:21820", "[2001:db8::2]:3478", "[2001:db8::1]:21820"),
    ] {
        let before = pair.a.status(&pair.b.key).rx_bytes;
        pair.cable.b.bind(inside).send_to(&stun_like(1), at_a).unwrap();
        eventually("it has come out of the tunnel", || pair.a.status(&pair.b.key).rx_bytes > before);
        pair.cable.b.bind(outside).send_to(&stun_like(2), underlay_of_a).unwrap();
        assert_eq!(lab::recv(&pair.a.device).unwrap().payload, stun_like(2));
    }
}

/// Sockets of UDP don't get those either.
fn a_damaged_datagram_is_not_handed_out<D: Open>() {
    let pair = Pair::<D>::new();
    wake(&pair.a);
    for (source, to) in [("198.51.100.2", AT_A), ("2001:db8::2", "[2001:db8::1]:21820")] {
        let to: SocketAddr = to.parse().unwrap();
        let raw =
            pair.cable.b.run(move || Socket::new(Domain::for_address(to), Type::RAW, Some(Protocol::UDP)).unwrap());
        let send = |n: u8, damage: u8| {
            let mut datagram = lab::udp(ip(source), to, &stun_like(n));
            *datagram.last_mut().unwrap() ^= damage;
            raw.send_to(&datagram, &SocketAddr::new(to.ip(), 0).into()).unwrap();
        };
        send(1, 0);
        send(2, 1);
        send(3, 0);
        for n in [1, 3] {
            assert_eq!(lab::recv(&pair.a.device).unwrap().payload, stun_like(n));
        }
    }
}

#[test]
fn the_private_key_is_in_no_text() {
    let secret = private_key(1).to_base64();
    assert!(!format!("{:?}", config(1)).contains(&secret[..8]));
}
