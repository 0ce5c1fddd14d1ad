//! What the sockets do, without WireGuard behind them.

use std::net::{SocketAddr, UdpSocket};
use std::time::Duration;

use relay::server::plane::{Config, Outcome};
use udpsock::{Outgoing, Sender};

use crate::lab::{self, Lab, Namespace, eventually, recv_from};
use crate::node::{Relay, block_on};
use crate::support::{Leg, wireguard};

/// Two sockets with legs, of which the first at least is bound, on a cable to the relay each.
struct Bound {
    relay: Relay,
    sockets: [UdpSocket; 2],
    to: [SocketAddr; 2],
    legs: [Leg; 2],
    _lab: Lab,
}

fn bind(socket: &UdpSocket, relay: SocketAddr, leg: &mut Leg) {
    let mut buffer = [0; 100];
    let mut hear = || {
        let (length, from) = recv_from(socket, &mut buffer).unwrap();
        assert_eq!(from, relay, "the relay answers from where it was asked");
        buffer[..length].to_vec()
    };
    socket.send_to(&leg.bind(), relay).unwrap();
    let answer = leg.hear(&hear()).expect("a CHALLENGE");
    socket.send_to(&answer, relay).unwrap();
    leg.hear(&hear());
    assert_eq!(leg.observed.map(|observed| observed.ip()), socket.local_addr().ok().map(|local| local.ip()));
}

impl Bound {
    /// Both legs.
    fn new() -> Self {
        let mut bound = Self::half();
        bound.bind_second();
        bound
    }

    /// Node 1 by IPv4 and node 2 by IPv6, each at an address of the relay that its routes would not choose to answer from.
    fn half() -> Self {
        let lab = Lab::new();
        let near = |namespace: &Namespace, name, relay_name, number| {
            let (here, there) = (format!("192.0.2.{number}2/29"), format!("192.0.2.{number}1/29"));
            namespace.cable(name, &here, &lab.relay, relay_name, &there);
            namespace.add_v6(&format!("2001:db8:{number}::2"), 64, name);
            lab.relay.add_v6(&format!("2001:db8:{number}::1"), 64, relay_name);
        };
        near(&lab.a, "near", "near_a", 1);
        near(&lab.b, "near", "near_b", 2);
        lab.relay.ip(&["addr add 192.0.2.99/32 dev lo"]);
        lab.relay.add_v6("2001:db8:99::1", 128, "lo");
        lab.a.ip(&["route add 192.0.2.99 via 192.0.2.11"]);
        lab.b.ip(&["route add 2001:db8:99::1 via 2001:db8:2::1"]);
        let mut relay = Relay::start(&lab, 1);
        let mut legs = relay.allocate(None);
        let port = Config::default().first_port + legs[0].port;
        let to = ["192.0.2.99", "2001:db8:99::1"].map(|ip| SocketAddr::new(ip.parse().unwrap(), port));
        let sockets = [lab.a.socket("192.0.2.12:21820"), lab.b.socket("[2001:db8:2::2]:21820")];
        bind(&sockets[0], to[0], &mut legs[0]);
        Self { relay, sockets, to, legs, _lab: lab }
    }

    fn bind_second(&mut self) {
        bind(&self.sockets[1], self.to[1], &mut self.legs[1]);
    }
}

#[test]
fn families_mix_and_answers_leave_from_the_address_that_was_asked() {
    if !lab::available() {
        return;
    }
    let bound = Bound::new();
    let Bound { sockets, to, .. } = &bound;
    for (from, other) in [(0, 1), (1, 0)] {
        let data = wireguard(4, 1200);
        sockets[from].send_to(&data, to[from]).unwrap();
        let mut buffer = [0; 2000];
        let (length, source) = recv_from(&sockets[other], &mut buffer).unwrap();
        assert_eq!((&buffer[..length], source), (&data[..], to[other]));
    }
}

#[test]
fn an_initiation_waits_for_the_leg_that_is_bound_last() {
    if !lab::available() {
        return;
    }
    let mut bound = Bound::half();
    let initiation = wireguard(1, 148);
    bound.sockets[0].send_to(&initiation, bound.to[0]).unwrap();
    eventually("it is kept", || bound.relay.snapshot().plane.datagrams(Outcome::Kept) == 1);
    // Hears BOUND, and nothing before that.
    bound.bind_second();
    let mut buffer = [0; 2000];
    let (length, source) = recv_from(&bound.sockets[1], &mut buffer).unwrap();
    assert_eq!((&buffer[..length], source), (&initiation[..], bound.to[1]));
}

#[test]
fn each_segment_of_a_merged_batch_is_judged() {
    if !lab::available() {
        return;
    }
    let bound = Bound::new();
    let Bound { relay, sockets, to, .. } = &bound;
    let mut batch: Vec<Vec<u8>> = (0..40u8)
        .map(|number| {
            let mut datagram = wireguard(4, 1000);
            datagram[999] = number;
            datagram
        })
        .collect();
    batch[7][1] = 1;
    batch[20][0] = 0x81;
    let socket = socket2::Socket::from(sockets[0].try_clone().unwrap());
    let data = batch.concat();
    let sent = Sender::new(false).send(&socket, &[Outgoing { to: to[0], local: None, data: &data, segment: 1000 }]);
    assert_eq!(sent.sent, 40);
    let mut buffer = [0; 2000];
    for number in (0..40).filter(|number| ![7, 20].contains(number)) {
        assert_eq!(recv_from(&sockets[1], &mut buffer).unwrap().0, 1000);
        assert_eq!(buffer[999], number, "in order");
    }
    eventually("two were dropped", || relay.snapshot().plane.datagrams(Outcome::Unfit) == 2);
}

#[test]
fn strangers_hear_nothing() {
    if !lab::available() {
        return;
    }
    let Bound { relay, sockets, to, mut legs, _lab: lab } = Bound::new();
    let stranger = lab.a.socket("192.0.2.12:0");
    let recorded = legs[0].bind();
    let mut sent = 0;
    for port in 51_900..51_964 {
        let to = SocketAddr::new(to[0].ip(), port);
        for datagram in [&wireguard(1, 148)[..], &wireguard(4, 32), &[0x81; 80], b"\0", &[0xff; 1400], &recorded[..79]]
        {
            stranger.send_to(datagram, to).unwrap();
            sent += 1;
        }
    }
    let junk = [Outcome::UnknownSource, Outcome::Unfit];
    eventually("all of it was judged", || {
        let plane = relay.snapshot().plane;
        junk.into_iter().map(|outcome| plane.datagrams(outcome)).sum::<u64>() == sent
    });
    stranger.set_read_timeout(Some(Duration::from_millis(1))).unwrap();
    assert!(recv_from(&stranger, &mut [0; 2000]).is_err());
    sockets[1].set_read_timeout(Some(Duration::from_millis(1))).unwrap();
    assert!(recv_from(&sockets[1], &mut [0; 2000]).is_err(), "nor does the partner");
}

#[test]
fn an_ended_data_plane_says_so_and_frees_its_ports() {
    if !lab::available() {
        return;
    }
    let lab = Lab::new();
    let relay = Relay::start(&lab, 1);
    let control = relay.control.clone();
    drop(relay);
    assert!(block_on(control.subscribe()).is_err());
    let again = Relay::start(&lab, 2);
    let taken = lab.relay.run(|| relay::udp::Forwarder::start(Config::default(), [3; 32]).map(drop));
    assert!(taken.unwrap_err().to_string().contains("51900"), "the error names the port");
    drop(again);
    let beyond = Config { first_port: 65_530, ..Config::default() };
    assert!(lab.relay.run(move || relay::udp::Forwarder::start(beyond, [3; 32])).is_err());
}
