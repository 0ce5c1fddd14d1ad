//! Networks joined by boxes. A packet walks from the realm it is sent in outwards through gateways and inwards through
//! whichever box owns its destination.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::time::Duration;

use crate::middlebox::{Behaviour, Mapping, Middlebox};
use crate::packet::Packet;
use crate::random::Random;

/// A network in which addresses are unique.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct RealmId(usize);

/// A NAT or firewall.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct BoxId(usize);

/// The realm that all others hang on.
pub const CORE: RealmId = RealmId(0);

/// Boxes that a packet may pass: two on either side and a loop's worth.
const MAX_HOPS: usize = 8;

/// Routers between two homes unless said otherwise: traceroutes seldom show fewer.
const ROUTERS: u8 = 8;

/// How the core treats packets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Weather {
    /// One way through the core.
    pub delay: Duration,
    /// Added at random.
    pub jitter: Duration,
    /// Lost, of 100.
    pub loss: u8,
}

/// Who owns an address.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Owner {
    Node(usize),
    Box(BoxId),
    Stun,
    Relay(usize),
}

#[derive(Debug, Default)]
struct Realm {
    gateway: Option<BoxId>,
    owners: BTreeMap<IpAddr, Owner>,
}

#[derive(Debug)]
struct Gateway {
    outer: RealmId,
    inner: RealmId,
    state: Middlebox,
    hairpin: bool,
}

/// Where a packet got.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Arrival {
    /// At a node.
    Node(usize, Packet),
    /// At a STUN server.
    Stun(Packet),
    /// At a relay.
    Relay(usize, Packet),
}

/// A packet on its way.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hop {
    realm: RealmId,
    packet: Packet,
    crossed: bool,
    left: Option<BoxId>,
}

impl Hop {
    /// A packet that is sent in a realm.
    #[must_use]
    pub fn new(realm: RealmId, packet: Packet) -> Self {
        Self { realm, packet, crossed: false, left: None }
    }
}

/// What became of a packet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    /// It goes on after this time.
    Later(Duration, Hop),
    /// It is there.
    Arrived(Arrival),
}

/// All networks.
#[derive(Debug)]
pub struct Internet {
    /// How the core treats packets now.
    pub weather: Weather,
    /// Routers of the core that a packet passes.
    pub routers: u8,
    realms: Vec<Realm>,
    boxes: Vec<Gateway>,
    /// Pairs of outside addresses that cannot reach each other.
    cuts: BTreeSet<(IpAddr, IpAddr)>,
}

impl Internet {
    /// A core and nothing else.
    #[must_use]
    pub fn new(weather: Weather) -> Self {
        Self { weather, routers: ROUTERS, realms: vec![Realm::default()], boxes: Vec::new(), cuts: BTreeSet::new() }
    }

    /// A network behind a box that stands in `outer`. A translating box owns `outside` there, a firewall what is attached
    /// behind it.
    pub fn add_realm(
        &mut self,
        outer: RealmId,
        behaviour: Behaviour,
        outside: IpAddr,
        hairpin: bool,
    ) -> (RealmId, BoxId) {
        let inner = RealmId(self.realms.len());
        let id = BoxId(self.boxes.len());
        self.realms.push(Realm { gateway: Some(id), owners: BTreeMap::new() });
        self.boxes.push(Gateway { outer, inner, state: Middlebox::new(behaviour, Some(outside)), hairpin });
        if behaviour.mapping != Mapping::None {
            self.realms[outer.0].owners.insert(outside, Owner::Box(id));
        }
        (inner, id)
    }

    /// Gives a node an address in a realm, and in the realms outside as far as it is not translated.
    pub fn attach_node(&mut self, realm: RealmId, address: IpAddr, node: usize) {
        self.realms[realm.0].owners.insert(address, Owner::Node(node));
        if let Some(gateway) = self.realms[realm.0].gateway
            && self.boxes[gateway.0].state.behaviour.mapping == Mapping::None
        {
            let outer = self.boxes[gateway.0].outer;
            self.realms[outer.0].owners.insert(address, Owner::Box(gateway));
        }
    }

    /// Takes an address away.
    pub fn detach(&mut self, realm: RealmId, address: IpAddr) {
        self.realms[realm.0].owners.remove(&address);
    }

    /// Puts a STUN server into the core.
    pub fn attach_stun(&mut self, address: IpAddr) {
        self.realms[CORE.0].owners.insert(address, Owner::Stun);
    }

    /// Puts a relay into the core, or takes it away.
    pub fn attach_relay(&mut self, address: IpAddr, relay: Option<usize>) {
        match relay {
            Some(relay) => self.realms[CORE.0].owners.insert(address, Owner::Relay(relay)),
            None => self.realms[CORE.0].owners.remove(&address),
        };
    }

    /// The realm that a box stands in.
    #[must_use]
    pub fn outside_of(&self, id: BoxId) -> RealmId {
        self.boxes[id.0].outer
    }

    /// A box's state, to disturb it.
    pub fn middlebox(&mut self, id: BoxId) -> &mut Middlebox {
        &mut self.boxes[id.0].state
    }

    /// Gives a translating box another outside address.
    pub fn renumber(&mut self, id: BoxId, old: IpAddr, new: IpAddr) {
        let outer = self.boxes[id.0].outer;
        self.realms[outer.0].owners.remove(&old);
        self.realms[outer.0].owners.insert(new, Owner::Box(id));
        self.boxes[id.0].state.renumber(new);
    }

    /// Cuts or heals the core between two outside addresses.
    pub fn cut(&mut self, a: IpAddr, b: IpAddr, cut: bool) {
        for pair in [(a, b), (b, a)] {
            if cut {
                self.cuts.insert(pair);
            } else {
                self.cuts.remove(&pair);
            }
        }
    }

    /// Moves a packet on until it arrives, is dropped, or has to cross the core: then it goes on at that later time, so
    /// that boxes on the far side are asked about it when it gets there.
    pub fn advance(&mut self, mut hop: Hop, random: &mut Random, now: Duration) -> Option<Step> {
        for _ in 0..MAX_HOPS {
            let owner = self.realms[hop.realm.0].owners.get(&hop.packet.dst.ip());
            let Some(owner) = owner.copied() else {
                let id = self.realms[hop.realm.0].gateway?;
                let gateway = &mut self.boxes[id.0];
                // What dies at the box leaves no mapping behind.
                let packet = hop.packet.forwarded(1)?;
                hop.packet = gateway.state.outbound(packet, random, now)?;
                hop.realm = gateway.outer;
                hop.left = Some(id);
                continue;
            };
            if hop.realm == CORE && !hop.crossed {
                let delay = self.cross_core(&hop.packet, random)?;
                hop.packet = hop.packet.forwarded(self.routers)?;
                hop.crossed = true;
                return Some(Step::Later(delay, hop));
            }
            match owner {
                Owner::Node(node) => return Some(Step::Arrived(Arrival::Node(node, hop.packet))),
                Owner::Stun => return Some(Step::Arrived(Arrival::Stun(hop.packet))),
                Owner::Relay(relay) => return Some(Step::Arrived(Arrival::Relay(relay, hop.packet))),
                Owner::Box(id) => {
                    let gateway = &mut self.boxes[id.0];
                    if hop.left == Some(id) && !gateway.hairpin {
                        return None;
                    }
                    // A stray is for the box itself, so it needs no hop more.
                    hop.packet = gateway.state.inbound(hop.packet, now)?.forwarded(1)?;
                    hop.realm = gateway.inner;
                }
            }
        }
        None
    }

    fn cross_core(&self, packet: &Packet, random: &mut Random) -> Option<Duration> {
        let Weather { delay, jitter, loss } = self.weather;
        let lost = loss > 0 && random.percent(loss);
        if lost || self.cuts.contains(&(packet.src.ip(), packet.dst.ip())) {
            return None;
        }
        let micros = u64::try_from(jitter.as_micros()).unwrap_or(u64::MAX);
        let extra = if micros == 0 { 0 } else { random.below(micros) };
        Some(delay + Duration::from_micros(extra))
    }
}
