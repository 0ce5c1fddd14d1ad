//! The data plane of a toy relay: allocations, legs bound by the real messages, and forwarding by port and source. What the
//! real one adds (caps, rates, membership) is tested beside it.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use wire::PublicKey;
use wire::control::{self, RefusedReason, ReleasedReason, ToNode};
use wire::relay::{self, AllocationId, Body, Frame, LegKey, Side, TOKEN_LEN, Token};

use crate::packet::{Message, Packet, Payload};
use crate::random::Random;

/// The relay's first port, and how many there are.
const FIRST_PORT: u16 = 51_900;
const PORTS: u16 = 64;
/// What is not bound by both by then goes.
const BIND_DEADLINE: Duration = Duration::from_secs(30);
/// A leg that is silent for so long ends its allocation.
const IDLE_DEADLINE: Duration = Duration::from_secs(300);

/// Something to tell a node.
pub type News = (PublicKey, ToNode);

/// The data plane.
#[derive(Debug)]
pub struct Plane {
    address: IpAddr,
    /// The smaller key first.
    pairs: BTreeMap<[PublicKey; 2], Allocation>,
}

#[derive(Debug)]
struct Allocation {
    id: AllocationId,
    port: u16,
    legs: [Leg; 2],
    born: Duration,
}

#[derive(Debug)]
struct Leg {
    key: LegKey,
    seen: u64,
    committed: u64,
    bound: Option<SocketAddr>,
    active: Duration,
    /// An initiation for a partner whose leg is not bound yet.
    kept: Option<Packet>,
}

impl Plane {
    /// A relay at an address, without allocations.
    #[must_use]
    pub fn new(address: IpAddr) -> Self {
        Self { address, pairs: BTreeMap::new() }
    }

    /// How many pairs there are.
    #[must_use]
    pub fn allocations(&self) -> usize {
        self.pairs.len()
    }

    /// A node wants its leg.
    pub fn allocate(
        &mut self,
        by: PublicKey,
        partner: PublicKey,
        hint: Option<u16>,
        random: &mut Random,
        now: Duration,
    ) -> Vec<News> {
        let pair = sorted(by, partner);
        if !self.pairs.contains_key(&pair) {
            let Some(port) = self.pick(pair, hint) else {
                return vec![(by, ToNode::Refused { partner, reason: RefusedReason::PortsExhausted })];
            };
            let legs = [(); 2].map(|()| {
                let key = LegKey::from_bytes(random.bytes());
                Leg { key, seen: 0, committed: 0, bound: None, active: now, kept: None }
            });
            self.pairs.insert(pair, Allocation { id: AllocationId(random.word()), port, legs, born: now });
        }
        let Some(allocation) = self.pairs.get(&pair) else { return Vec::new() };
        let mut news = vec![allocation.tell(pair, side(by, partner)), allocation.tell(pair, side(partner, by))];
        if allocation.is_ready() {
            news.push((by, ToNode::Ready(partner)));
        }
        news
    }

    /// A node does not want its leg any more.
    pub fn release(&mut self, by: PublicKey, partner: PublicKey) -> Vec<News> {
        self.end(sorted(by, partner), ReleasedReason::Asked)
    }

    fn end(&mut self, pair: [PublicKey; 2], reason: ReleasedReason) -> Vec<News> {
        let gone = self.pairs.remove(&pair).is_some();
        let told = |to: usize| (pair[to], ToNode::Released { partner: pair[1 - to], reason });
        if gone { vec![told(0), told(1)] } else { Vec::new() }
    }

    fn pick(&self, pair: [PublicKey; 2], hint: Option<u16>) -> Option<u16> {
        let is_free = |port: &u16| {
            let taken = |(other, known): (&[PublicKey; 2], &Allocation)| {
                known.port == *port && other.iter().any(|node| pair.contains(node))
            };
            !self.pairs.iter().any(taken)
        };
        let ports = FIRST_PORT..FIRST_PORT + PORTS;
        hint.filter(|port| ports.contains(port) && is_free(port)).or_else(|| ports.clone().find(is_free))
    }

    /// A packet arrives. What is to be sent is added to `out`.
    pub fn arrive(&mut self, packet: &Packet, secret: u64, now: Duration, out: &mut Vec<Packet>) -> Vec<News> {
        match &packet.payload {
            Payload::WireGuard(_) => {
                self.forward(packet, now, out);
                Vec::new()
            }
            Payload::Plain(bytes) => Frame::parse(bytes)
                .map_or_else(Vec::new, |frame| self.bind(packet, &frame, secret, now, out).unwrap_or_default()),
        }
    }

    fn forward(&mut self, packet: &Packet, now: Duration, out: &mut Vec<Packet>) {
        for allocation in self.pairs.values_mut().filter(|allocation| allocation.port == packet.dst.port()) {
            for side in Side::BOTH {
                let to = allocation.legs[side.other().index()].bound;
                let leg = &mut allocation.legs[side.index()];
                if leg.bound != Some(packet.src) {
                    continue;
                }
                leg.active = now;
                if let Some(to) = to {
                    out.push(Packet::new(packet.dst, to, packet.payload.clone()));
                } else if matches!(packet.payload, Payload::WireGuard(Message::Initiation { .. })) {
                    leg.kept = Some(packet.clone());
                }
                return;
            }
        }
    }

    fn bind(
        &mut self,
        packet: &Packet,
        frame: &Frame<'_>,
        secret: u64,
        now: Duration,
        out: &mut Vec<Packet>,
    ) -> Option<Vec<News>> {
        let header = frame.header();
        let is_meant =
            |(_, known): &(_, &mut Allocation)| known.id == header.allocation && known.port == packet.dst.port();
        let (pair, allocation) = self.pairs.iter_mut().find(is_meant)?;
        let pair = *pair;
        let leg = &mut allocation.legs[header.side.index()];
        let token = token(secret, packet.src, header.counter);
        let answer = match frame.open(&leg.key).ok()? {
            Body::Bind if header.counter > leg.seen => {
                leg.seen = header.counter;
                Body::Challenge(token)
            }
            Body::Answer(given) if given == token && header.counter > leg.committed => {
                leg.committed = header.counter;
                leg.active = now;
                Body::Bound { observed: packet.src }
            }
            _ => return None,
        };
        let bytes = relay::seal(&leg.key, &header, &answer).to_vec();
        out.push(Packet::new(packet.dst, packet.src, Payload::Plain(bytes)));
        let Body::Bound { observed } = answer else { return None };
        let was_ready = allocation.is_ready();
        let moved = allocation.legs[header.side.index()].bound.replace(observed) != Some(observed);
        let mut news = if moved { self.evict(pair, header.side, observed) } else { Vec::new() };
        let allocation = self.pairs.get_mut(&pair)?;
        if !was_ready && allocation.is_ready() {
            out.extend(allocation.take_kept());
            news.extend([(pair[0], ToNode::Ready(pair[1])), (pair[1], ToNode::Ready(pair[0]))]);
        }
        Some(news)
    }

    /// Unbinds whoever else had this source at this port: NATs reuse them.
    fn evict(&mut self, owner: [PublicKey; 2], own: Side, source: SocketAddr) -> Vec<News> {
        let port = self.pairs.get(&owner).map(|allocation| allocation.port);
        let mut news = Vec::new();
        for (pair, allocation) in self.pairs.iter_mut().filter(|(_, allocation)| Some(allocation.port) == port) {
            for side in Side::BOTH.into_iter().filter(|side| (*pair, *side) != (owner, own)) {
                let leg = &mut allocation.legs[side.index()];
                if leg.bound.take_if(|bound| *bound == source).is_some() {
                    news.push((pair[side.index()], ToNode::Unbound(pair[side.other().index()])));
                }
            }
        }
        news
    }

    /// Ends what has run out.
    pub fn expire(&mut self, now: Duration) -> Vec<News> {
        let ended = self.pairs.iter().filter_map(|(pair, allocation)| {
            let silent = allocation.legs.iter().any(|leg| now >= leg.active + IDLE_DEADLINE);
            let unbound = !allocation.is_ready() && now >= allocation.born + BIND_DEADLINE;
            let reason = if silent { ReleasedReason::Idle } else { ReleasedReason::NotBound };
            (silent || unbound).then_some((*pair, reason))
        });
        let ended: Vec<_> = ended.collect();
        ended.into_iter().flat_map(|(pair, reason)| self.end(pair, reason)).collect()
    }

    /// Where the relay stands.
    #[must_use]
    pub fn address(&self) -> IpAddr {
        self.address
    }
}

impl Allocation {
    fn is_ready(&self) -> bool {
        self.legs.iter().all(|leg| leg.bound.is_some())
    }

    /// What was said before both legs were bound.
    fn take_kept(&mut self) -> Vec<Packet> {
        let bound = self.legs.each_ref().map(|leg| leg.bound);
        let kept = self.legs.iter_mut().zip(bound.into_iter().rev()).filter_map(|(leg, to)| leg.kept.take().zip(to));
        kept.map(|(packet, to)| Packet::new(packet.dst, to, packet.payload)).collect()
    }

    fn tell(&self, pair: [PublicKey; 2], side: Side) -> News {
        let own = &self.legs[side.index()];
        let leg = control::Leg {
            allocation: self.id,
            side,
            port: self.port,
            key: own.key.clone(),
            counter: own.seen.max(own.committed),
        };
        (pair[side.index()], ToNode::Allocated { partner: pair[side.other().index()], leg })
    }
}

fn sorted(one: PublicKey, other: PublicKey) -> [PublicKey; 2] {
    [one.min(other), one.max(other)]
}

fn side(who: PublicKey, partner: PublicKey) -> Side {
    if who < partner { Side::Low } else { Side::High }
}

/// Recomputed, not remembered. No cryptography: nobody here guesses.
fn token(secret: u64, source: SocketAddr, counter: u64) -> Token {
    let mut random = Random::new(secret ^ counter ^ u64::from(source.port()));
    let mut token = [0; TOKEN_LEN];
    token.copy_from_slice(&random.bytes()[..TOKEN_LEN]);
    Token(token)
}
