//! The whole relay: two nodes behind NATs that no ordinary probing connects ask for a pair, one by QUIC and one by TLS.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::{Arc, mpsc};
use std::thread;

use channel::{Channel, Identity, Options, Target, Transport};
use relay::control::{Board, Directory, Front};
use relay::server::control::Member;
use relay::server::plane::Config;
use relay::udp::Forwarder;
use wire::PublicKey;
use wire::control::{Leg, ToNode, ToRelay, VERSION};
use wire::stun::{self, MEMBER_REQUEST_LEN, TransactionId};

use crate::lab::{self, Lab, Namespace, PATIENCE, no_child, recv_from};
use crate::node::{Node, RELAY, relay_port};
use crate::support;

const QUIC: u16 = 51899;
const TLS: u16 = 8443;

fn key(number: u8) -> PublicKey {
    PublicKey::from_bytes([number; 32])
}

fn identity(number: u8) -> Identity {
    Identity::from_seed([number; 32])
}

/// The data plane and its front end, whose members are nodes 1 and 2.
fn start(lab: &Lab) -> (Forwarder, relay::control::Supervisor) {
    lab.relay.run(|| {
        let _guard = no_child();
        let forwarder = Forwarder::start(Config::default(), [5; 32]).unwrap();
        let directory = Arc::new(Directory::default());
        let member = |number| Member { node: key(number), identity: Some(identity(number).public()) };
        directory.replace(BTreeMap::from([1, 2].map(|number| (number.to_string(), member(number)))));
        let board = Arc::new(Board::default());
        let front = Front {
            identity: identity(100),
            quic: relay::control::anywhere(QUIC),
            tls: relay::control::anywhere(TLS),
            boot: 1,
            directory,
            plane: forwarder.control(),
            board: Arc::clone(&board),
        };
        let front_end = front.start().unwrap();
        lab::eventually("both doors are open", || {
            let doors = *board.doors.borrow();
            doors.quic.is_some() && doors.tls.is_some()
        });
        (forwarder, front_end)
    })
}

/// A channel on a thread of its own, in the namespace of its node.
struct Talk {
    says: tokio::sync::mpsc::UnboundedSender<ToRelay>,
    heard: mpsc::Receiver<ToNode>,
}

impl Talk {
    fn open(namespace: &Namespace, number: u8, transport: Transport) -> Self {
        let (says, mut said) = tokio::sync::mpsc::unbounded_channel();
        let (hears, heard) = mpsc::channel();
        namespace.run(move || {
            thread::spawn(move || {
                let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
                runtime.block_on(async {
                    let at = |of: Transport, port| {
                        let address = SocketAddr::new(RELAY.parse().unwrap(), port);
                        if transport == of { vec![address] } else { Vec::new() }
                    };
                    let identity_of_relay = identity(100).public();
                    let (quic, tls) = (at(Transport::Quic, QUIC), at(Transport::Tls, TLS));
                    let target = Target { identity: identity_of_relay, quic, tls };
                    let channel: Channel =
                        channel::connect(&identity(number), &target, Options::default()).await.unwrap();
                    let (sender, mut receiver) = channel.split();
                    sender.send(&ToRelay::Hello { version: VERSION, node: key(number) }).await.unwrap();
                    loop {
                        tokio::select! {
                            message = said.recv() => match message {
                                Some(message) => sender.send(&message).await.unwrap(),
                                None => return,
                            },
                            Ok(Some(message)) = receiver.recv() => drop(hears.send(message)),
                        }
                    }
                });
            });
        });
        let this = Self { says, heard };
        let welcome = this.hear();
        assert!(matches!(welcome, ToNode::Welcome { boot: 1, .. }), "{welcome:?}");
        this
    }

    fn say(&self, message: ToRelay) {
        self.says.send(message).unwrap();
    }

    fn hear(&self) -> ToNode {
        self.heard.recv_timeout(PATIENCE).expect("the relay speaks")
    }

    fn leg(&self) -> support::Leg {
        match self.hear() {
            ToNode::Allocated { leg: Leg { allocation, side, port, key, counter }, .. } => {
                let port = port - Config::default().first_port;
                support::Leg { allocation, side, port, key, counter, observed: None }
            }
            other => panic!("a leg, not {other:?}"),
        }
    }
}

#[test]
fn two_nodes_behind_symmetric_nats_get_a_pair_by_quic_and_by_tls() {
    if !lab::available() {
        return;
    }
    let lab = Lab::new();
    let (forwarder, _front_end) = start(&lab);
    let (a, b) = (Node::open(&lab.a, 1, 2), Node::open(&lab.b, 2, 1));
    let talks = [Talk::open(&lab.a, 1, Transport::Quic), Talk::open(&lab.b, 2, Transport::Tls)];
    talks[0].say(ToRelay::Meet(key(2)));
    assert!(matches!(talks[0].hear(), ToNode::Present { met: false, .. }));
    talks[1].say(ToRelay::Meet(key(1)));
    for talk in &talks {
        assert!(matches!(talk.hear(), ToNode::Present { met: true, .. }));
    }
    talks[0].say(ToRelay::Allocate { partner: key(2), hint: None });
    let mut legs = [talks[0].leg(), talks[1].leg()];
    a.bind(&mut legs[0]);
    b.bind(&mut legs[1]);
    for (talk, partner) in talks.iter().zip([2, 1]) {
        let ready = talk.hear();
        assert!(matches!(ready, ToNode::Ready(with) if with == key(partner)), "{ready:?}");
    }
    b.set_endpoint(relay_port(&legs[1]));
    a.set_endpoint(relay_port(&legs[0]));
    let [service, client] = [lab.b.socket("10.99.0.2:7"), lab.a.socket("10.99.0.1:0")];
    client.send_to(b"through the relay", "10.99.0.2:7").unwrap();
    let mut buffer = [0; 64];
    let (length, from) = recv_from(&service, &mut buffer).unwrap();
    assert_eq!((&buffer[..length], from.ip()), (&b"through the relay"[..], "10.99.0.1".parse().unwrap()));
    assert!(forwarder.snapshot().plane.forwarded_bytes > 0);
}

/// What the test for poisonable NATs needs: a packet from a stranger, and a stranger that then says what it sees.
#[test]
fn a_stray_packet_leaves_from_a_socket_that_answers_the_node_behind_its_nat() {
    if !lab::available() {
        return;
    }
    let lab = Lab::new();
    let (_forwarder, _front_end) = start(&lab);
    let talk = Talk::open(&lab.a, 1, Transport::Quic);
    let socket = lab.a.socket("0.0.0.0:21820");
    let tx = TransactionId([7; 12]);
    let outside = |port| SocketAddr::from(([198, 51, 100, 2], port));
    talk.say(ToRelay::Stray { to: outside(21820), tx });
    let from = match talk.hear() {
        ToNode::StraySent { tx: said, from } if said == tx => from,
        other => panic!("{other:?}"),
    };
    let ask = stun::encode_request(TransactionId([8; 12]), MEMBER_REQUEST_LEN);
    socket.send_to(&ask, from).unwrap();
    let mut buffer = [0; 100];
    let (length, source) = recv_from(&socket, &mut buffer).unwrap();
    assert_eq!(source, from);
    let seen = stun::decode(&buffer[..length]).unwrap().mapped.unwrap();
    assert_eq!(seen.ip(), outside(1).ip(), "the NAT's address");
}

/// A raw end of a leg: binds it, and sends and receives whatever it likes.
struct Raw {
    socket: std::net::UdpSocket,
    relay: SocketAddr,
}

impl Raw {
    fn bind(namespace: &Namespace, leg: &mut support::Leg) -> Self {
        let this = Self { socket: namespace.socket("0.0.0.0:21820"), relay: relay_port(leg) };
        this.send(&leg.bind());
        let answer = leg.hear(&this.receive()).expect("a CHALLENGE");
        this.send(&answer);
        assert_eq!(leg.hear(&this.receive()), None);
        assert!(leg.observed.is_some(), "a BOUND");
        this
    }

    fn send(&self, datagram: &[u8]) {
        self.socket.send_to(datagram, self.relay).unwrap();
    }

    fn receive(&self) -> Vec<u8> {
        let mut buffer = [0; 2048];
        let (length, from) = recv_from(&self.socket, &mut buffer).unwrap();
        assert_eq!(from, self.relay, "from where its NAT expects it");
        buffer[..length].to_vec()
    }
}

fn wireguard(number: u8, length: usize) -> Vec<u8> {
    let mut packet = vec![number; length];
    packet[..4].copy_from_slice(&[4, 0, 0, 0]);
    packet
}

/// Node 1 has TCP alone, until UDP passes after all; node 2 never knows.
#[test]
fn a_node_without_udp_talks_to_one_behind_a_symmetric_nat_and_goes_back_to_udp() {
    if !lab::available() {
        return;
    }
    let lab = Lab::new();
    let (forwarder, _front_end) = start(&lab);
    for rule in [
        "add table ip t",
        "add chain ip t o { type filter hook output priority 0 ; }",
        "add rule ip t o meta l4proto udp drop",
    ] {
        lab.a.command("nft", rule);
    }
    let talks = [Talk::open(&lab.a, 1, Transport::Tls), Talk::open(&lab.b, 2, Transport::Quic)];
    talks[1].say(ToRelay::Meet(key(1)));
    assert!(matches!(talks[1].hear(), ToNode::Present { met: false, .. }));
    talks[0].say(ToRelay::Allocate { partner: key(2), hint: None });
    let mut legs = [talks[0].leg(), talks[1].leg()];
    let allocation = legs[0].allocation;
    let is_ready = |at: usize, partner| {
        let heard = talks[at].hear();
        assert!(matches!(heard, ToNode::Ready(with) if with == key(partner)), "{heard:?}");
    };
    talks[0].say(ToRelay::Attach { partner: key(2) });
    let b = Raw::bind(&lab.b, &mut legs[1]);
    is_ready(0, 2);
    is_ready(1, 1);
    let by_channel = |packet: &[u8]| {
        let heard = talks[0].hear();
        assert!(matches!(&heard, ToNode::Data { allocation: of, packet: got } if *of == allocation && got == packet));
    };
    for number in 0..100 {
        let (there, back) = (wireguard(number, 1452), wireguard(number, 32));
        talks[0].say(ToRelay::Data { allocation, packet: there.clone() });
        assert_eq!(b.receive(), there);
        b.send(&back);
        by_channel(&back);
    }
    lab.a.command("nft", "flush chain ip t o");
    let a = Raw::bind(&lab.a, &mut legs[0]);
    a.send(&wireguard(1, 100));
    assert_eq!(b.receive(), wireguard(1, 100));
    b.send(&wireguard(2, 100));
    assert_eq!(a.receive(), wireguard(2, 100), "packets follow the leg");
    talks[0].say(ToRelay::Attach { partner: key(2) });
    is_ready(0, 2);
    b.send(&wireguard(3, 100));
    by_channel(&wireguard(3, 100));
    assert_eq!(forwarder.snapshot().slow, 0);
}
