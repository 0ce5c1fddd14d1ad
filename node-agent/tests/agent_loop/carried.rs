//! Packets of WireGuard inside the channel to a relay, with a relay in memory and WireGuard's socket played on loopback.

use super::{relays::*, *};
use std::net::Ipv4Addr;
use wire::{
    control::{self, ToNode, ToRelay},
    relay::{AllocationId, LegKey, Side},
};

const ALLOCATION: AllocationId = AllocationId(77);

/// A datagram that WireGuard would send: data, and a number to know it by.
fn message(number: u8) -> Vec<u8> {
    [&[4, 0, 0, 0][..], &[number; 60]].concat()
}

/// A node whose channel goes over TCP and whose BINDs nobody answers, its leg with `b` attached and ready; and WireGuard's socket and the
/// address that stands for the channel.
async fn attached() -> (FakeApi, TempDir, Lab, Dialled, UdpSocket, SocketAddr) {
    let (api, dir, lab, mut relay, socket) = only_tcp().await;
    let (a, b) = (own_key(&lab).await, peer("b", 2).0);
    while relay.hears().await != Some(ToRelay::Allocate { partner: b, hint: None }) {}
    let side = if a < b { Side::Low } else { Side::High };
    let leg = control::Leg { allocation: ALLOCATION, side, port: 51900, key: LegKey::from_bytes([5; 32]), counter: 0 };
    relay.says(ToNode::Allocated { partner: b, leg });
    while relay.hears().await != Some(ToRelay::Attach { partner: b }) {}
    let device = lab.machine.device();
    assert!(device.take_applied().iter().flat_map(|d| &d.upsert).all(|u| u.endpoint.is_none()), "not yet");
    relay.says(ToNode::Ready(b));
    let pointed = async {
        loop {
            let found = device.take_applied().iter().flat_map(|d| &d.upsert).find_map(|u| u.endpoint);
            match found {
                Some(endpoint) => break endpoint,
                None => tokio::task::yield_now().await,
            }
        }
    };
    let endpoint = tokio::time::timeout(DEADLINE, pointed).await.unwrap();
    assert!(matches!(endpoint.ip(), IpAddr::V4(ip) if ip.octets()[..2] == [127, 77]), "{endpoint}");
    (api, dir, lab, relay, socket, endpoint)
}

/// A node that has met `b` at a relay, over TCP.
async fn only_tcp() -> (FakeApi, TempDir, Lab, Dialled, UdpSocket) {
    let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    socket.set_read_timeout(Some(DEADLINE)).unwrap();
    let (machine, change) = Machine::new();
    machine.only_tcp.store(true, Ordering::Relaxed);
    *machine.wireguard.lock().unwrap() = Some(socket.try_clone().unwrap());
    let (api, dir, _, lab, mut dialled) = relayed_on((machine, change)).await;
    let relay = next(&mut dialled).await;
    relay.says(ToNode::Welcome { boot: 1, observed: "192.0.2.10:4000".parse().unwrap() });
    relay.says(ToNode::Present { node: peer("b", 2).0, met: true });
    (api, dir, lab, relay, socket)
}

/// The next datagram at WireGuard's socket.
async fn arrives(socket: &UdpSocket) -> (Vec<u8>, SocketAddr) {
    let socket = socket.try_clone().unwrap();
    let receive = move || {
        let mut buffer = [0; 2000];
        let (length, from) = socket.recv_from(&mut buffer).unwrap();
        (buffer[..length].to_vec(), from)
    };
    tokio::task::spawn_blocking(receive).await.unwrap()
}

async fn hears_data(relay: &mut Dialled) -> (AllocationId, Vec<u8>) {
    loop {
        if let Some(ToRelay::Data { allocation, packet }) = relay.hears().await {
            return (allocation, packet);
        }
    }
}

#[tokio::test]
async fn wireguards_packets_go_both_ways_inside_the_channel_of_a_node_without_udp() {
    let (_api, _dir, lab, mut relay, socket, endpoint) = attached().await;
    socket.send_to(&message(1), endpoint).unwrap();
    assert_eq!(hears_data(&mut relay).await, (ALLOCATION, message(1)));
    relay.says(ToNode::Data { allocation: ALLOCATION, packet: message(2) });
    assert_eq!(arrives(&socket).await, (message(2), endpoint), "from the address that stands for the channel");
    let paths = lab.ask(Question::Paths(Some("b".into()))).await.body;
    let leg = format!(r#""legs":[{{"relay":"r","endpoint":"{endpoint}","transport":"tls","phase":"ready"}}]"#);
    assert!(paths.contains(&leg), "{paths}");
    let metrics = lab.ask(Question::Metrics).await.body;
    for line in [
        "warren_carried_legs 1",
        r#"warren_carried_packets_total{direction="to_relay"} 1"#,
        r#"warren_carried_bytes_total{direction="from_relay"} 64"#,
        r#"warren_relay_channels{state="open_tls"} 1"#,
    ] {
        assert!(metrics.contains(line), "{line}\n{metrics}");
    }
    lab.stop().await;
}

#[tokio::test]
async fn what_is_not_wireguards_is_carried_neither_way() {
    let (_api, _dir, lab, mut relay, socket, endpoint) = attached().await;
    let stranger = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    stranger.send_to(&message(1), endpoint).unwrap();
    socket.send_to(b"GET / HTTP/1.1", endpoint).unwrap();
    socket.send_to(&message(2), SocketAddr::new("127.77.9.9".parse().unwrap(), endpoint.port())).unwrap();
    socket.send_to(&message(3), SocketAddr::new(Ipv4Addr::LOCALHOST.into(), endpoint.port())).unwrap();
    socket.send_to(&message(4), endpoint).unwrap();
    assert_eq!(hears_data(&mut relay).await, (ALLOCATION, message(4)));
    // STUN and relay messages share WireGuard's port, so a relay must not be able to forge them.
    let stun = wire::stun::encode_success(wire::stun::TransactionId([7; 12]), "192.0.2.1:9".parse().unwrap());
    for (allocation, packet) in [(ALLOCATION, stun), (ALLOCATION, vec![0x84; 80]), (AllocationId(78), message(5))] {
        relay.says(ToNode::Data { allocation, packet });
    }
    relay.says(ToNode::Data { allocation: ALLOCATION, packet: message(6) });
    assert_eq!(arrives(&socket).await, (message(6), endpoint));
    let metrics = lab.ask(Question::Metrics).await.body;
    for (reason, count) in [("not_wireguard", 4), ("no_leg", 3)] {
        let line = format!(r#"warren_carried_dropped_packets_total{{reason="{reason}"}} {count}"#);
        assert!(metrics.contains(&line), "{line}\n{metrics}");
    }
    lab.stop().await;
}

#[tokio::test]
async fn the_address_stands_for_nothing_when_the_channel_is_gone() {
    let (_api, _dir, lab, relay, socket, endpoint) = attached().await;
    drop(relay);
    let gone = async {
        while !lab.ask(Question::Metrics).await.body.contains("warren_carried_legs 0") {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(DEADLINE, gone).await.unwrap();
    socket.send_to(&message(1), endpoint).unwrap();
    let dropped = r#"warren_carried_dropped_packets_total{reason="no_leg"} 1"#;
    let counted = async {
        while !lab.ask(Question::Metrics).await.body.contains(dropped) {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(DEADLINE, counted).await.unwrap();
    lab.stop().await;
}
