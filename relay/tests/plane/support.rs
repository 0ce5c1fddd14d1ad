//! A data plane in virtual time, and agents that speak to it.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use relay::server::plane::{
    Arrival, Carried, ChannelId, Config, End, Event, Input, News, NodeId, Onward, Outcome, Plane,
};
use wire::relay::{self as message, AllocationId, Body, Frame, Header, LegKey, MESSAGE_LEN, Side, Token};

pub const SEED: [u8; 32] = [7; 32];

pub fn node(number: u8) -> NodeId {
    NodeId([number; 32])
}

pub fn address(text: &str) -> SocketAddr {
    text.parse().unwrap()
}

/// The address of node `number`, which no two nodes share.
pub fn home(number: u8) -> SocketAddr {
    SocketAddr::from(([198, 51, 100, number], 21820))
}

/// A WireGuard message of this type and length.
pub fn wireguard(kind: u8, length: usize) -> Vec<u8> {
    let mut message = vec![0x5a; length];
    message[..4].copy_from_slice(&[kind, 0, 0, 0]);
    message
}

/// What left the relay.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Packet {
    pub port: u16,
    pub to: SocketAddr,
    pub payload: Vec<u8>,
}

pub struct World {
    pub plane: Plane,
    pub now: Instant,
    /// What left by channels and was not looked at yet.
    by_channel: Vec<(ChannelId, AllocationId, Vec<u8>)>,
}

impl World {
    pub fn new(config: Config) -> Self {
        let now = Instant::now();
        Self { plane: Plane::new(config, SEED, now), now, by_channel: Vec::new() }
    }

    /// With nodes 1 to `count` admitted.
    pub fn of(count: u8, config: Config) -> Self {
        let mut world = Self::new(config);
        (1..=count).for_each(|number| world.input(Input::Admit(node(number))));
        world
    }

    pub fn input(&mut self, input: Input) {
        self.plane.handle_input(input, self.now);
    }

    pub fn allocate(&mut self, by: u8, partner: u8) -> Vec<Event> {
        self.input(Input::Allocate { by: node(by), partner: node(partner), hint: None });
        self.events()
    }

    pub fn events(&mut self) -> Vec<Event> {
        std::iter::from_fn(|| self.plane.poll_event()).collect()
    }

    /// A datagram arrives at the port with this index.
    pub fn arrive(&mut self, port: u16, source: SocketAddr, datagram: &[u8]) -> Vec<Packet> {
        self.arrive_merged(port, source, datagram, datagram.len())
    }

    pub fn arrive_merged(&mut self, port: u16, source: SocketAddr, data: &[u8], segment: usize) -> Vec<Packet> {
        let mut forwards = Vec::new();
        let arrival = Arrival { port, source, local: None, data, segment };
        self.plane.handle_arrival(&arrival, self.now, &mut forwards);
        let mut packets = Vec::new();
        for forward in forwards {
            for payload in data[forward.range].chunks(forward.segment) {
                let payload = payload.to_vec();
                match forward.to {
                    End::Address(to) => packets.push(Packet { port, to: to.remote, payload }),
                    End::Channel(channel) => self.by_channel.push((channel, forward.allocation, payload)),
                }
            }
        }
        packets.extend(std::iter::from_fn(|| self.plane.poll_transmit()).map(|transmit| Packet {
            port: transmit.port,
            to: transmit.to.remote,
            payload: transmit.message.to_vec(),
        }));
        packets
    }

    pub fn pass(&mut self, time: Duration) {
        self.now += time;
        self.plane.handle_timeout(self.now);
    }

    pub fn count(&self, outcome: Outcome) -> u64 {
        self.plane.stats().datagrams(outcome)
    }

    /// The token that the next BIND of a leg gets.
    pub fn challenge(&mut self, leg: &mut Leg, from: SocketAddr) -> Token {
        let challenge = self.arrive(leg.port, from, &leg.bind());
        leg.token(&challenge)
    }

    /// Binds a leg from an address; panics unless each of the four messages does what it should.
    pub fn bind(&mut self, leg: &mut Leg, from: SocketAddr) {
        let challenge = self.arrive(leg.port, from, &leg.bind());
        assert_eq!(challenge.len(), 1, "a CHALLENGE");
        assert_eq!(challenge[0].to, from);
        let answer = leg.hear(&challenge[0].payload).expect("an ANSWER");
        let bound = self.arrive(leg.port, from, &answer);
        assert_eq!(bound.len(), 1, "a BOUND");
        assert_eq!(leg.hear(&bound[0].payload), None);
        assert_eq!(leg.observed, Some(from));
    }

    /// A pair with both legs bound at their homes.
    pub fn connect(&mut self, one: u8, other: u8) -> [Leg; 2] {
        let events = self.allocate(one, other);
        let mut legs = [one, other].map(|number| Leg::of(number, &events));
        self.bind(&mut legs[0], home(one));
        self.bind(&mut legs[1], home(other));
        self.events();
        legs
    }

    /// Node `by` says that its leg of the pair is this channel.
    pub fn attach(&mut self, by: u8, partner: u8, channel: u64) -> Vec<Event> {
        self.input(Input::Attach { by: node(by), partner: node(partner), channel: ChannelId(channel) });
        self.events()
    }

    /// A packet comes by a channel.
    pub fn carry(&mut self, channel: u64, allocation: AllocationId, packet: &[u8]) -> Option<Onward> {
        self.plane.handle_carried(&Carried { channel: ChannelId(channel), allocation, packet }, self.now)
    }

    /// What left by channels since it was asked last.
    pub fn take_by_channel(&mut self) -> Vec<(ChannelId, AllocationId, Vec<u8>)> {
        std::mem::take(&mut self.by_channel)
    }

    /// Whether data passes from one address to another over a port.
    pub fn carries(&mut self, port: u16, from: SocketAddr, to: SocketAddr) -> bool {
        let data = wireguard(4, 128);
        self.arrive(port, from, &data) == [Packet { port, to, payload: data }]
    }
}

/// An agent's end of a leg.
#[derive(Debug, Clone)]
pub struct Leg {
    pub allocation: AllocationId,
    pub side: Side,
    /// Index of the port.
    pub port: u16,
    pub key: LegKey,
    pub counter: u64,
    pub observed: Option<SocketAddr>,
}

impl Leg {
    /// From what the node was told last.
    pub fn of(number: u8, events: &[Event]) -> Self {
        let told = events.iter().rev().find_map(|event| Self::from_event(node(number), event));
        told.unwrap_or_else(|| panic!("node {number} was told of an allocation: {events:?}"))
    }

    pub fn from_event(to: NodeId, event: &Event) -> Option<Self> {
        match &event.news {
            News::Allocated { allocation, side, port, key, counter } if event.to == to => Some(Self {
                allocation: *allocation,
                side: *side,
                port: port - Config::default().first_port,
                key: key.clone(),
                counter: *counter,
                observed: None,
            }),
            _ => None,
        }
    }

    pub fn header(&self) -> Header {
        Header { allocation: self.allocation, side: self.side, counter: self.counter }
    }

    pub fn seal(&self, body: &Body) -> [u8; MESSAGE_LEN] {
        message::seal(&self.key, &self.header(), body)
    }

    /// The next BIND.
    pub fn bind(&mut self) -> [u8; MESSAGE_LEN] {
        self.counter += 1;
        self.seal(&Body::Bind)
    }

    pub fn answer(&self, token: Token) -> [u8; MESSAGE_LEN] {
        self.seal(&Body::Answer(token))
    }

    /// Takes a message of the relay; the answer to a challenge of the last BIND.
    pub fn hear(&mut self, datagram: &[u8]) -> Option<[u8; MESSAGE_LEN]> {
        let frame = Frame::parse(datagram)?;
        if frame.is_from_node() || frame.header() != self.header() {
            return None;
        }
        match frame.open(&self.key).ok()? {
            Body::Challenge(token) => Some(self.answer(token)),
            Body::Bound { observed } => {
                self.observed = Some(observed);
                None
            }
            _ => None,
        }
    }

    /// The token of a challenge.
    pub fn token(&self, packets: &[Packet]) -> Token {
        match Frame::parse(&packets[0].payload).unwrap().open(&self.key).unwrap() {
            Body::Challenge(token) => token,
            other => panic!("a challenge, not {other:?}"),
        }
    }
}
