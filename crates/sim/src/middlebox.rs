//! NATs and stateful firewalls (RFC 4787): how they map, what they let in, and when they forget.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use crate::packet::{Packet, Payload};
use crate::random::Random;

mod masquerade;

use masquerade::Connections;

/// Which destinations share a mapping.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Mapping {
    /// No translation: a firewall only.
    None,
    /// All destinations.
    EndpointIndependent,
    /// All ports of one address.
    AddressDependent,
    /// Only one socket.
    AddressAndPortDependent,
}

/// Who may send to a mapping.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Filtering {
    /// Everybody.
    EndpointIndependent,
    /// Every port of an address that was sent to.
    AddressDependent,
    /// Only a socket that was sent to.
    AddressAndPortDependent,
}

/// How outside ports are chosen.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Ports {
    /// The inside port if it is free.
    Preserved,
    /// Any.
    Random,
}

/// What becomes of packets from outside that nothing inside has asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Strays {
    /// Dropped without a trace.
    Dropped,
    /// Tracked as connections to the box itself, as Linux does unless a rule drops them: the box is poisonable.
    Tracked,
}

/// What is dropped whatever the state.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Block {
    /// Nothing.
    Nothing,
    /// All UDP.
    Udp,
    /// What looks like WireGuard: probes pass, data does not.
    WireGuard,
    /// The same, but for what goes to this address or comes from there.
    WireGuardBut(IpAddr),
}

/// The behaviour of one box.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Behaviour {
    /// Which destinations share a mapping.
    pub mapping: Mapping,
    /// Who may send to it.
    pub filtering: Filtering,
    /// How its port is chosen.
    pub ports: Ports,
    /// How long it lives without a packet.
    pub timeout: Duration,
    /// What is dropped.
    pub block: Block,
    /// What becomes of strays.
    pub strays: Strays,
}

impl Behaviour {
    /// A translating box with the timeout of a common home router.
    #[must_use]
    pub fn nat(mapping: Mapping, filtering: Filtering) -> Self {
        let hard = !matches!(mapping, Mapping::None | Mapping::EndpointIndependent);
        Self {
            mapping,
            filtering,
            ports: if hard { Ports::Random } else { Ports::Preserved },
            timeout: Duration::from_secs(60),
            block: Block::Nothing,
            strays: Strays::Dropped,
        }
    }

    /// A Linux box that masquerades and drops nothing: to those who are sent to first it has one port for all, and lets in
    /// only those.
    #[must_use]
    pub fn masquerade() -> Self {
        Self {
            strays: Strays::Tracked,
            timeout: Duration::from_secs(120),
            ..Self::nat(Mapping::EndpointIndependent, Filtering::AddressAndPortDependent)
        }
    }

    /// A stateful firewall without translation.
    #[must_use]
    pub fn firewall() -> Self {
        Self::nat(Mapping::None, Filtering::AddressAndPortDependent)
    }
}

/// One flow table.
#[derive(Debug)]
pub struct Middlebox {
    /// How it behaves. May be changed at any time.
    pub behaviour: Behaviour,
    outside: Option<IpAddr>,
    flows: BTreeMap<(SocketAddr, Scope), Flow>,
    /// The table of a box that tracks strays, which has no flows.
    connections: Connections,
    /// Grows when all mappings are lost, so that the next ones differ.
    generation: u16,
}

/// The part of a destination that a mapping depends on.
type Scope = Option<(IpAddr, u16)>;

#[derive(Debug)]
struct Flow {
    outside: SocketAddr,
    used: Duration,
    sent_to: BTreeMap<SocketAddr, Duration>,
}

impl Middlebox {
    /// A box with one outside address, if it translates.
    #[must_use]
    pub fn new(behaviour: Behaviour, outside: Option<IpAddr>) -> Self {
        Self { behaviour, outside, flows: BTreeMap::new(), connections: Connections::default(), generation: 0 }
    }

    /// Loses all state, as a reboot does; new mappings get other ports.
    pub fn flush(&mut self) {
        self.flows.clear();
        self.connections.clear();
        self.generation += 1;
    }

    /// Gets another outside address, losing all state.
    pub fn renumber(&mut self, outside: IpAddr) {
        self.outside = Some(outside);
        self.flows.clear();
        self.connections.clear();
    }

    /// A packet from inside to outside; `None` if it is dropped.
    pub fn outbound(&mut self, mut packet: Packet, random: &mut Random, now: Duration) -> Option<Packet> {
        if self.blocks(&packet) {
            return None;
        }
        self.expire(now);
        if self.behaviour.strays == Strays::Tracked {
            return Some(self.connections.outbound(packet, self.outside?, random, now));
        }
        let inside = packet.src;
        let scope = match self.behaviour.mapping {
            Mapping::None | Mapping::EndpointIndependent => None,
            Mapping::AddressDependent => Some((packet.dst.ip(), 0)),
            Mapping::AddressAndPortDependent => Some((packet.dst.ip(), packet.dst.port())),
        };
        if !self.flows.contains_key(&(inside, scope)) {
            let outside = self.allocate(inside, random);
            self.flows.insert((inside, scope), Flow { outside, used: now, sent_to: BTreeMap::new() });
        }
        let flow = self.flows.get_mut(&(inside, scope))?;
        flow.used = now;
        flow.sent_to.insert(packet.dst, now);
        packet.src = flow.outside;
        Some(packet)
    }

    /// A packet from outside to inside; `None` if it is dropped.
    pub fn inbound(&mut self, mut packet: Packet, now: Duration) -> Option<Packet> {
        if self.blocks(&packet) {
            return None;
        }
        self.expire(now);
        if self.behaviour.strays == Strays::Tracked {
            return self.connections.inbound(packet, now);
        }
        let filtering = self.behaviour.filtering;
        if self.behaviour.mapping == Mapping::None && filtering == Filtering::EndpointIndependent {
            return Some(packet);
        }
        let from = packet.src;
        let (key, flow) = self.flows.iter_mut().find(|(_, flow)| {
            flow.outside == packet.dst
                && match filtering {
                    Filtering::EndpointIndependent => true,
                    Filtering::AddressDependent => flow.sent_to.keys().any(|to| to.ip() == from.ip()),
                    Filtering::AddressAndPortDependent => flow.sent_to.contains_key(&from),
                }
        })?;
        flow.used = now;
        if let Some(used) = flow.sent_to.get_mut(&from) {
            *used = now;
        }
        packet.dst = key.0;
        Some(packet)
    }

    fn blocks(&self, packet: &Packet) -> bool {
        match self.behaviour.block {
            Block::Nothing => false,
            Block::Udp => true,
            Block::WireGuard => matches!(packet.payload, Payload::WireGuard(_)),
            Block::WireGuardBut(ip) => {
                matches!(packet.payload, Payload::WireGuard(_)) && packet.src.ip() != ip && packet.dst.ip() != ip
            }
        }
    }

    fn expire(&mut self, now: Duration) {
        let timeout = self.behaviour.timeout;
        self.connections.expire(timeout, now);
        self.flows.retain(|_, flow| {
            flow.sent_to.retain(|_, used| now - *used < timeout);
            now - flow.used < timeout
        });
    }

    fn allocate(&self, inside: SocketAddr, random: &mut Random) -> SocketAddr {
        if self.behaviour.mapping == Mapping::None {
            return inside;
        }
        let address = self.outside.expect("a translating box has an outside address");
        let mut port = match self.behaviour.ports {
            Ports::Preserved => inside.port().wrapping_add(self.generation.wrapping_mul(1000)),
            Ports::Random => 1024 + random.below(60_000) as u16,
        };
        while port < 1024 || self.flows.values().any(|flow| flow.outside.port() == port) {
            port = port.wrapping_add(1);
        }
        SocketAddr::new(address, port)
    }
}
