//! A relay in the lab, and nodes that bind legs from WireGuard's own port.

use std::net::{IpAddr, SocketAddr};

use relay::server::plane::{Config, Event, Input, News, NodeId};
use relay::udp::{Control, Forwarder, Snapshot};
use tokio::sync::mpsc;
use wgdev::{Datagram, Delta, Device, DeviceConfig, PeerStatus, PeerUpdate, Userspace};
use wire::key::{PrivateKey, PublicKey};

use crate::lab::{Lab, Namespace, PATIENCE, eventually, no_child};
use crate::support::{Leg, node};

pub fn block_on<T>(future: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
    let patiently = async { tokio::time::timeout(PATIENCE, future).await };
    runtime.block_on(patiently).expect("what is waited for happens")
}

/// A running data plane and the one that speaks to it.
pub struct Relay {
    pub forwarder: Forwarder,
    pub control: Control,
    events: mpsc::Receiver<Event>,
}

impl Relay {
    /// Admits the nodes 1 and 2.
    pub fn start(lab: &Lab, seed: u8) -> Self {
        let start = move || {
            let _guard = no_child();
            Forwarder::start(Config::default(), [seed; 32])
        };
        let forwarder = lab.relay.run(start).unwrap();
        let control = forwarder.control();
        let events = block_on(control.subscribe()).unwrap();
        let relay = Self { forwarder, control, events };
        [1, 2].into_iter().for_each(|number| relay.send(Input::Admit(node(number))));
        relay
    }

    pub fn send(&self, input: Input) {
        block_on(self.control.send(input)).unwrap();
    }

    /// The legs of nodes 1 and 2.
    pub fn allocate(&mut self, hint: Option<u16>) -> [Leg; 2] {
        self.send(Input::Allocate { by: node(1), partner: node(2), hint });
        let events = [self.event(), self.event()];
        [1, 2].map(|number| Leg::of(number, &events))
    }

    pub fn event(&mut self) -> Event {
        block_on(self.events.recv()).expect("the data plane lives")
    }

    /// What was told until both nodes know their legs of the pair.
    pub fn events_until_allocated(&mut self, one: u8, other: u8) -> Vec<Event> {
        let mut events = Vec::new();
        let told = |events: &[Event], to: u8| {
            events.iter().any(|event| event.to == node(to) && matches!(event.news, News::Allocated { .. }))
        };
        while !told(&events, one) || !told(&events, other) {
            events.push(self.event());
        }
        events
    }

    pub fn expect_bound(&mut self, to: NodeId) -> SocketAddr {
        let event = self.event();
        match event.news {
            News::Bound { observed } if event.to == to => observed,
            other => panic!("{to:?} is bound, not {other:?}"),
        }
    }

    pub fn snapshot(&self) -> Snapshot {
        self.forwarder.snapshot()
    }
}

/// The relay's address for both nodes: the nearer one of `a`, so that answers to `b` must not leave from the other.
pub const RELAY: &str = "198.51.100.1";

pub fn relay_port(leg: &Leg) -> SocketAddr {
    SocketAddr::new(RELAY.parse().unwrap(), Config::default().first_port + leg.port)
}

/// A node with a WireGuard device and the mesh address 10.99.0.N.
pub struct Node {
    pub device: Userspace,
    peer: PublicKey,
}

const DEVICE: &str = "wd-tun";

fn private_key(number: u8) -> PrivateKey {
    PrivateKey::from_bytes([number; 32])
}

impl Node {
    pub fn open(namespace: &Namespace, number: u8, partner: u8) -> Self {
        let config = DeviceConfig {
            name: DEVICE.into(),
            private_key: private_key(number),
            listen_port: 21820,
            fwmark: 0,
            mtu: 1420,
        };
        let device = namespace.run(move || Userspace::open(config).unwrap());
        namespace.ip(&[&format!("addr add 10.99.0.{number}/24 dev {DEVICE}")]);
        let peer = private_key(partner).public_key();
        let this = Self { device, peer };
        let allowed = format!("10.99.0.{partner}/32").parse().unwrap();
        this.update(PeerUpdate { allowed_ips: Some(vec![allowed]), ..PeerUpdate::new(peer) });
        this
    }

    pub fn update(&self, update: PeerUpdate) {
        block_on(self.device.apply(&Delta { upsert: vec![update], remove: vec![] })).unwrap();
    }

    pub fn set_endpoint(&self, endpoint: SocketAddr) {
        self.update(PeerUpdate { endpoint: Some(endpoint), ..PeerUpdate::new(self.peer) });
    }

    pub fn status(&self) -> PeerStatus {
        block_on(self.device.peers()).unwrap().remove(0)
    }

    /// Binds the leg from WireGuard's port.
    pub fn bind(&self, leg: &mut Leg) {
        let relay = relay_port(leg);
        self.say(relay, &leg.bind());
        let challenge = self.hear(relay);
        let answer = leg.hear(&challenge).expect("a CHALLENGE");
        self.say(relay, &answer);
        let bound = self.hear(relay);
        assert_eq!(leg.hear(&bound), None);
        assert!(leg.observed.is_some(), "a BOUND");
    }

    fn say(&self, remote: SocketAddr, payload: &[u8]) {
        block_on(self.device.send(Datagram { remote, local: None, payload: payload.to_vec() })).unwrap();
    }

    fn hear(&self, from: SocketAddr) -> Vec<u8> {
        let datagram = block_on(self.device.recv()).unwrap();
        assert_eq!(datagram.remote, from, "the relay answers from where it was asked");
        datagram.payload
    }
}

/// The lab with a relay and two nodes whose legs are bound and whose endpoints are the relay.
pub struct Relayed {
    pub lab: Lab,
    pub relay: Relay,
    pub a: Node,
    pub b: Node,
    pub legs: [Leg; 2],
}

impl Relayed {
    pub fn new() -> Self {
        let lab = Lab::new();
        let mut relay = Relay::start(&lab, 1);
        let (a, b) = (Node::open(&lab.a, 1, 2), Node::open(&lab.b, 2, 1));
        let mut legs = relay.allocate(None);
        a.bind(&mut legs[0]);
        b.bind(&mut legs[1]);
        let outside: [IpAddr; 2] = ["198.51.100.2", "203.0.113.2"].map(|ip| ip.parse().unwrap());
        for (number, outside) in [1, 2].into_iter().zip(outside) {
            assert_eq!(relay.expect_bound(node(number)).ip(), outside, "what the relay sees is the NAT");
        }
        for number in [1, 2] {
            let event = relay.event();
            assert!(event.to == node(number) && matches!(event.news, News::Ready), "{event:?}");
        }
        // The follower first: two initiations at once would stall WireGuard for seconds.
        b.set_endpoint(relay_port(&legs[1]));
        a.set_endpoint(relay_port(&legs[0]));
        Self { lab, relay, a, b, legs }
    }

    /// Datagrams of both directions that the relay has forwarded, once it has forwarded all that the devices have sent.
    pub fn settle(&self) {
        let sent = || self.a.status().tx_bytes + self.b.status().tx_bytes;
        eventually("every byte that one device has sent was forwarded", || {
            self.relay.snapshot().plane.forwarded_bytes == sent()
        });
    }
}
