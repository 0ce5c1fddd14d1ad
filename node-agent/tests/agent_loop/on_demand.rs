//! A peer that sleeps and what WireGuard sends to it, with a relay in memory and WireGuard's socket played on loopback.

use super::{relays::*, *};
use std::net::Ipv4Addr;
use wire::control::{ToNode, ToRelay};

/// A message of WireGuard's of this type, and a number to know it by.
fn message(kind: u8, number: u8, length: usize) -> Vec<u8> {
    let mut message = vec![number; length];
    message[..4].copy_from_slice(&[kind, 0, 0, 0]);
    message
}

/// A node on the kernel's device that has met `b` at a relay and lets idle pairs go; WireGuard's socket.
async fn idle() -> (FakeApi, TempDir, Lab, Dialled, UdpSocket) {
    let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let (machine, change) = Machine::new();
    machine.has_kernel.store(true, Ordering::Relaxed);
    *machine.wireguard.lock().unwrap() = Some(socket.try_clone().unwrap());
    let paths = json!({"paths": {"mode": "OnDemand", "idleSeconds": 3600}});
    let (api, dir, _, lab, mut dialled) = relayed_with(paths, (machine, change)).await;
    let relay = next(&mut dialled).await;
    relay.says(ToNode::Welcome { boot: 1, observed: "192.0.2.10:4000".parse().unwrap() });
    relay.says(ToNode::Present { node: peer("b", 2).0, met: true });
    (api, dir, lab, relay, socket)
}

/// The next endpoint that the device is told.
async fn endpoint(device: &Fake) -> SocketAddr {
    let told = async {
        loop {
            let found = device.take_applied().iter().flat_map(|d| &d.upsert).find_map(|u| u.endpoint);
            match found {
                Some(endpoint) => break endpoint,
                None => tokio::task::yield_now().await,
            }
        }
    };
    tokio::time::timeout(DEADLINE, told).await.unwrap()
}

/// What the device sends to the pair's port on the relay, until it has sent all of these.
async fn sends(device: &Fake, messages: &[Vec<u8>]) {
    let mut missing = messages.to_vec();
    let sent = async {
        while !missing.is_empty() {
            for datagram in device.take_sent().into_iter().filter(|datagram| datagram.remote == AT.parse().unwrap()) {
                missing.retain(|message| *message != datagram.payload);
            }
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(DEADLINE, sent).await.unwrap_or_else(|_| panic!("never sent: {missing:?}"));
}

#[tokio::test]
async fn the_first_packet_to_an_idle_peer_makes_a_path_and_goes_by_it() {
    let (_api, _dir, lab, mut relay, socket) = idle().await;
    let (device, a, b) = (lab.machine.device(), own_key(&lab).await, peer("b", 2).0);
    let bell = endpoint(&device).await;
    assert!(matches!(bell.ip(), IpAddr::V4(ip) if ip.octets()[..2] == [127, 77]), "{bell}");
    lab.status_with(r#""peers":[0,0,0,0,1]"#).await;
    let paths = lab.ask(Question::Paths(Some("b".into()))).await.body;
    assert!(paths.contains(r#""state":"idle","reason":"""#) && paths.contains(r#""endpoint":null"#), "{paths}");

    // A session that is still alive, and one that has to be made.
    let (initiation, data) = (message(1, 5, 148), message(4, 6, 96));
    socket.send_to(&initiation, bell).unwrap();
    socket.send_to(&data, bell).unwrap();
    while relay.hears().await != Some(ToRelay::Allocate { partner: b, hint: None }) {}
    bind(&relay, &device, [a, b]).await;
    relay.says(ToNode::Ready(b));
    sends(&device, &[data, initiation]).await;
    let paths = lab.ask(Question::Paths(Some("b".into()))).await.body;
    assert!(!paths.contains(r#""state":"idle""#), "{paths}");
    lab.stop().await;
}

#[tokio::test]
async fn nobody_but_wireguard_wakes_a_peer() {
    let (_api, _dir, lab, mut relay, socket) = idle().await;
    let bell = endpoint(&lab.machine.device()).await;
    let stranger = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    stranger.send_to(&message(1, 5, 148), bell).unwrap();
    socket.send_to(b"GET / HTTP/1.1", bell).unwrap();
    socket.send_to(&message(1, 5, 148), SocketAddr::new("127.77.9.9".parse().unwrap(), bell.port())).unwrap();
    for (reason, count) in [("not_wireguard", 2), ("no_leg", 1)] {
        let line = format!(r#"warren_carried_dropped_packets_total{{reason="{reason}"}} {count}"#);
        let counted = async {
            while !lab.ask(Question::Metrics).await.body.contains(&line) {
                tokio::task::yield_now().await;
            }
        };
        tokio::time::timeout(DEADLINE, counted).await.unwrap();
    }
    lab.status_with(r#""peers":[0,0,0,0,1]"#).await;
    // Nothing was asked for before the real one came.
    socket.send_to(&message(1, 5, 148), bell).unwrap();
    let mut said = Vec::new();
    while !matches!(said.last(), Some(ToRelay::Allocate { .. })) {
        said.extend(relay.hears().await);
    }
    assert_eq!(said.iter().filter(|said| matches!(said, ToRelay::Signal { .. } | ToRelay::Allocate { .. })).count(), 1);
    lab.stop().await;
}

#[tokio::test]
async fn pairs_that_are_to_stay_are_woken_without_a_packet() {
    let (api, _dir, lab, mut relay, _socket) = idle().await;
    lab.status_with(r#""peers":[0,0,0,0,1]"#).await;
    operator::create_mesh(&api, json!({"paths": {"mode": "Eager"}}));
    while relay.hears().await != Some(ToRelay::Allocate { partner: peer("b", 2).0, hint: None }) {}
    lab.stop().await;
}
