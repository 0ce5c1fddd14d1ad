//! One pair sends as fast as it can. Other ports, and what relay and nodes have to say to each other, do not wait for it.

use std::net::UdpSocket;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use relay::server::plane::{Input, Outcome};
use udpsock::{Outgoing, Sender};

use crate::lab::{self, Lab, Namespace, recv_from};
use crate::node::{Relay, relay_port};
use crate::support::{Leg, node, wireguard};

/// Packets of the pair that sends one at a time, each way.
const ROUNDS: u32 = 200;

/// Datagrams of the flood that the kernel takes at once: small ones, so that the relay has the more to do.
const BATCH: usize = 60;

/// A leg and the socket that it was bound from.
struct End {
    socket: UdpSocket,
    leg: Leg,
}

impl End {
    fn bind(namespace: &Namespace, mut leg: Leg) -> Self {
        let socket = namespace.socket("0.0.0.0:0");
        socket.send_to(&leg.bind(), relay_port(&leg)).unwrap();
        let answer = leg.hear(&hear(&socket)).expect("a CHALLENGE");
        socket.send_to(&answer, relay_port(&leg)).unwrap();
        assert_eq!(leg.hear(&hear(&socket)), None);
        assert!(leg.observed.is_some(), "a BOUND");
        Self { socket, leg }
    }

    fn send(&self, packet: &[u8]) {
        self.socket.send_to(packet, relay_port(&self.leg)).unwrap();
    }
}

fn hear(socket: &UdpSocket) -> Vec<u8> {
    let mut buffer = [0; 2048];
    let (length, _) = recv_from(socket, &mut buffer).unwrap();
    buffer[..length].to_vec()
}

/// Both ends of a pair of node 1, on a port that no other pair of it has.
fn pair(lab: &Lab, relay: &mut Relay, partner: u8) -> [End; 2] {
    relay.send(Input::Allocate { by: node(1), partner: node(partner), hint: None });
    let events = relay.events_until_allocated(1, partner);
    let legs = [1, partner].map(|number| Leg::of(number, &events));
    let [one, other] = legs;
    [End::bind(&lab.a, one), End::bind(&lab.b, other)]
}

#[test]
fn a_flooded_port_delays_no_other_and_the_relay_goes_on_answering() {
    if !lab::available() {
        return;
    }
    let lab = Lab::new();
    let mut relay = Relay::start(&lab, 1);
    [3, 4].into_iter().for_each(|number| relay.send(Input::Admit(node(number))));
    let [flooder, sink] = pair(&lab, &mut relay, 2);
    let quiet = pair(&lab, &mut relay, 3);
    assert_ne!(flooder.leg.port, quiet[0].leg.port);
    let stop = Arc::new(AtomicBool::new(false));
    let flood = {
        let stop = Arc::clone(&stop);
        thread::spawn(move || {
            let (to, socket) = (relay_port(&flooder.leg), socket2::Socket::from(flooder.socket));
            let batch = wireguard(4, 32).repeat(BATCH);
            let mut sender = Sender::new(false);
            let mut sent = 0u64;
            while !stop.load(Ordering::Relaxed) {
                // A full queue on this side is a flood as well.
                sent += sender.send(&socket, &[Outgoing { to, local: None, data: &batch, segment: 32 }]).sent as u64;
            }
            sent
        })
    };
    lab::eventually("the flood is there", || relay.snapshot().plane.forwarded_bytes > 1 << 20);
    for number in 0..ROUNDS {
        let mut packet = wireguard(4, 128);
        packet[16..20].copy_from_slice(&number.to_be_bytes());
        for (from, to) in [(0, 1), (1, 0)] {
            quiet[from].send(&packet);
            assert_eq!(hear(&quiet[to].socket), packet, "each arrives, and before the next");
        }
    }
    // Asking for a leg and binding it as well.
    let late = pair(&lab, &mut relay, 4);
    late[0].send(&wireguard(4, 64));
    assert_eq!(hear(&late[1].socket), wireguard(4, 64));
    stop.store(true, Ordering::Relaxed);
    let sent = flood.join().unwrap();
    assert!(sent > u64::from(ROUNDS), "that was no flood: {sent}");
    assert!(!hear(&sink.socket).is_empty());
    assert_eq!(relay.snapshot().plane.datagrams(Outcome::UnknownSource), 0);
}
