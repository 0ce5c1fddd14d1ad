//! The relay's data plane under orders made of bytes: members and strangers, in any order.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use ::relay::server::plane::{
    Arrival, Carried, ChannelId, Config, End, Event, Forward, Input, Kept, News, NodeId, Onward, Outcome, Plane,
};
use wire::relay::{
    self, AllocationId, Body, Frame, Header, INITIATION_LEN, LegKey, MESSAGE_LEN, Side, is_forwardable, is_initiation,
};

const NODES: u8 = 5;
const PORTS: u16 = 3;
const ALLOCATIONS: usize = 6;

/// Runs the orders in `bytes`.
///
/// # Panics
/// When the data plane breaks one of its promises.
pub fn plane(bytes: &[u8]) {
    let mut run = Run::new();
    let mut rest = bytes;
    while run.order(&mut rest).is_some() {
        run.check();
    }
}

/// A leg as its node knows it.
struct Leg {
    header: Header,
    key: LegKey,
    port: u16,
}

struct Run {
    plane: Plane,
    now: Instant,
    legs: BTreeMap<(NodeId, NodeId), Leg>,
    /// What nodes have sent and the relay has answered, to be replayed.
    recorded: Vec<(u16, Vec<u8>)>,
    /// Addresses that have answered a challenge, ever.
    answered: BTreeSet<SocketAddr>,
    /// Initiations that were kept and sent on.
    passed: u64,
    /// Open channels, and what each node has attached to.
    channels: BTreeSet<ChannelId>,
}

impl Run {
    fn new() -> Self {
        let now = Instant::now();
        let config = Config { ports: PORTS, max_allocations: ALLOCATIONS, ..Config::default() };
        Self {
            plane: Plane::new(config, [1; 32], now),
            now,
            legs: BTreeMap::new(),
            recorded: Vec::new(),
            answered: BTreeSet::new(),
            passed: 0,
            channels: BTreeSet::new(),
        }
    }

    /// Takes one order from the bytes and follows it. `None` is their end.
    fn order(&mut self, rest: &mut &[u8]) -> Option<()> {
        let [kind, one, two] = take::<3>(rest)?;
        let (by, partner) = (node(one), node(two));
        match kind {
            0xe0..0xf0 => {
                self.turn_channel(by, partner, kind);
                return Some(());
            }
            0xf0.. => {
                self.carry(by, partner, two, usize::from(one));
                return Some(());
            }
            _ => {}
        }
        match kind % 9 {
            0 => self.input(Input::Admit(by)),
            1 => self.input(Input::Remove(by)),
            2 => self.input(Input::Allocate { by, partner, hint: Some(51_900 + u16::from(kind / 9)) }),
            3 => self.input(Input::Release { by, partner }),
            4 => {
                self.now += Duration::from_millis(u64::from(one) * u64::from(two) * 10);
                self.plane.handle_timeout(self.now);
                self.hear();
            }
            // A whole exchange, or a BIND alone.
            5 => self.bind(by, partner, source(kind / 9), kind & 0x80 != 0),
            6 => {
                let at = usize::from(one) % self.recorded.len().max(1);
                if let Some((port, datagram)) = self.recorded.get(at).cloned() {
                    self.arrive(port, source(two), &datagram, datagram.len());
                }
            }
            7 => {
                let message = |kind, length| [kind, 0, 0, 0].into_iter().chain([one; INITIATION_LEN]).take(length);
                let (kind, length, times) = if one < 0x80 { (4, 64, kind / 9) } else { (1, INITIATION_LEN, 1) };
                let data = message(kind, length).collect::<Vec<u8>>().repeat(usize::from(times));
                self.arrive(u16::from(two), source(one), &data, length);
            }
            _ => {
                let length = usize::from(two).min(rest.len());
                let (noise, after) = rest.split_at(length);
                *rest = after;
                self.arrive(u16::from(one) % PORTS, source(one / 16), noise, usize::from(kind / 9) * 8 + 1);
            }
        }
        Some(())
    }

    fn input(&mut self, input: Input) {
        self.plane.handle_input(input, self.now);
        self.hear();
    }

    fn hear(&mut self) {
        while let Some(Event { to, partner, news }) = self.plane.poll_event() {
            match news {
                News::Allocated { allocation, side, port, key, counter } => {
                    let header = Header { allocation, side, counter };
                    self.legs.insert((to, partner), Leg { header, key, port: port - 51_900 });
                }
                News::Released(_) => drop(self.legs.remove(&(to, partner))),
                News::Bound { observed } => drop(self.answered.insert(observed)),
                News::Refused(_) | News::Unbound | News::Ready => {}
            }
        }
        self.hear_kept();
    }

    /// What was kept goes on, and only to who has consented.
    fn hear_kept(&mut self) {
        while let Some(Kept { to, port, message, .. }) = self.plane.poll_kept() {
            self.passed += 1;
            assert!(is_initiation(&message[..]));
            match to {
                End::Address(to) => assert!(self.answered.contains(&to.remote) && port < PORTS),
                End::Channel(to) => self.is_for_channel(to, &message[..]),
            }
        }
    }

    /// A channel of the node becomes its leg, or ends.
    fn turn_channel(&mut self, by: NodeId, partner: NodeId, how: u8) {
        match how % 8 {
            0 => {
                self.channels.clear();
                self.input(Input::DetachAll);
            }
            1 | 2 => {
                self.channels.remove(&channel(by, how));
                self.input(Input::Detach { by, channel: channel(by, how) });
            }
            _ => {
                self.channels.insert(channel(by, how));
                self.input(Input::Attach { by, partner, channel: channel(by, how) });
            }
        }
    }

    /// A packet comes by a channel that is the node's, or is not, for a pair that is its, or is not.
    fn carry(&mut self, by: NodeId, partner: NodeId, which: u8, length: usize) {
        let leg = self.legs.get(&(by, partner)).map(|leg| leg.header.allocation);
        let allocation = leg.unwrap_or(AllocationId(u64::from(which)));
        let mut packet = vec![which; length];
        if let Some(kind) = packet.first_chunk_mut() {
            *kind = [4, 0, 0, 0];
        }
        let owner = if which < 0x80 { by } else { partner };
        let carried = Carried { channel: channel(owner, which), allocation, packet: &packet };
        match self.plane.handle_carried(&carried, self.now) {
            Some(Onward { to: End::Channel(to), .. }) => self.is_for_channel(to, &packet),
            Some(Onward { to: End::Address(to), port }) => {
                assert!(self.answered.contains(&to.remote) && port < PORTS && is_forwardable(&packet));
            }
            None => return,
        }
        assert!(self.channels.contains(&carried.channel), "only open channels carry");
        assert!(self.legs.iter().any(|((owner, _), leg)| {
            leg.header.allocation == allocation && carried.channel.0 >> 8 == u64::from(owner.0[0])
        }));
    }

    fn is_for_channel(&self, to: ChannelId, packet: &[u8]) {
        assert!(self.channels.contains(&to), "packets go to open channels only");
        assert!(is_forwardable(packet));
    }

    fn bind(&mut self, by: NodeId, partner: NodeId, from: SocketAddr, whole: bool) {
        let Some(leg) = self.legs.get_mut(&(by, partner)) else { return };
        leg.header.counter = leg.header.counter.saturating_add(1);
        let (header, key, port) = (leg.header, leg.key.clone(), leg.port);
        let bind = relay::seal(&key, &header, &Body::Bind);
        self.record(port, &bind);
        let challenge = self.arrive(port, from, &bind, bind.len());
        for message in challenge.iter().filter(|_| whole) {
            let frame = Frame::parse(message).expect("the relay speaks well");
            assert_eq!(frame.header(), header);
            if let Ok(Body::Challenge(token)) = frame.open(&key) {
                let answer = relay::seal(&key, &header, &Body::Answer(token));
                self.record(port, &answer);
                let bound = self.arrive(port, from, &answer, answer.len());
                assert!(bound.len() <= 1);
                self.hear();
            }
        }
    }

    fn record(&mut self, port: u16, message: &[u8]) {
        if self.recorded.len() < 256 {
            self.recorded.push((port, message.to_vec()));
        }
    }

    /// Returns the relay messages that came of it.
    fn arrive(&mut self, port: u16, source: SocketAddr, data: &[u8], segment: usize) -> Vec<[u8; MESSAGE_LEN]> {
        let mut forwards: Vec<Forward> = Vec::new();
        let arrival = Arrival { port, source, local: None, data, segment };
        self.plane.handle_arrival(&arrival, self.now, &mut forwards);
        let mut bytes_out = 0;
        for Forward { to, range, segment, .. } in forwards {
            match to {
                End::Address(to) => {
                    assert!(self.answered.contains(&to.remote), "data goes only where a challenge was answered");
                }
                End::Channel(to) => self.is_for_channel(to, &data[range.clone()][..segment]),
            }
            for datagram in data[range].chunks(segment) {
                assert!(is_forwardable(datagram));
                bytes_out += datagram.len();
            }
        }
        let mut messages = Vec::new();
        while let Some(transmit) = self.plane.poll_transmit() {
            assert_eq!((transmit.port, transmit.to.remote), (port, source), "answers go back where they came from");
            bytes_out += transmit.message.len();
            messages.push(transmit.message);
        }
        assert!(bytes_out <= data.len(), "nothing is amplified");
        self.hear();
        messages
    }

    fn check(&self) {
        let stats = self.plane.stats();
        assert!(self.passed <= stats.datagrams(Outcome::Kept), "what was kept goes on once at most");
        assert!(stats.allocations <= ALLOCATIONS && stats.bound_legs <= 2 * stats.allocations);
        assert!(stats.attached_legs <= stats.bound_legs && (stats.attached_legs == 0 || !self.channels.is_empty()));
        assert_eq!(stats.allocations * 2, self.legs.len(), "both nodes of a pair know of it, or neither");
        let mut ports = BTreeSet::new();
        let mut ids: BTreeMap<AllocationId, BTreeSet<Side>> = BTreeMap::new();
        for ((owner, _), leg) in &self.legs {
            assert!(leg.port < PORTS && ports.insert((*owner, leg.port)), "a node has one pair on a port");
            ids.entry(leg.header.allocation).or_default().insert(leg.header.side);
        }
        assert!(ids.values().all(|sides| sides.len() == 2));
        if let Some((at, _)) = self.plane.poll_timeout() {
            assert!(at >= self.now, "a timer in the past would spin");
        } else {
            assert_eq!(stats.allocations, 0, "every allocation has an end");
        }
    }
}

fn node(byte: u8) -> NodeId {
    NodeId([byte % NODES; 32])
}

/// Two for each node.
fn channel(of: NodeId, which: u8) -> ChannelId {
    ChannelId(u64::from(of.0[0]) << 8 | u64::from(which >> 3 & 1))
}

/// Few, so that they collide.
fn source(byte: u8) -> SocketAddr {
    SocketAddr::from(([192, 0, 2, byte % 8], 9))
}

fn take<const N: usize>(rest: &mut &[u8]) -> Option<[u8; N]> {
    let (taken, after) = rest.split_first_chunk::<N>()?;
    *rest = after;
    Some(*taken)
}
