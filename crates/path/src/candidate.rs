//! Candidates: addresses at which a node may be reached, and how they rank.

use std::net::{IpAddr, SocketAddr};

use ipnet::IpNet;

/// How an address became known (RFC 8445, section 5.1.1, plus mapped and configured ones). Sorted by trust in its use.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum CandidateKind {
    /// Configured by an administrator.
    Static,
    /// An address of one of the node's own interfaces.
    Host,
    /// Opened on a gateway with PCP, NAT-PMP or UPnP.
    PortMapped,
    /// What a STUN server saw.
    ServerReflexive,
    /// Where an authenticated probe of the peer came from. Never published.
    PeerReflexive,
}

impl CandidateKind {
    /// The number that signals carry, of those that are told.
    pub(crate) fn code(self) -> Option<u8> {
        match self {
            Self::Static => Some(0),
            Self::Host => Some(1),
            Self::PortMapped => Some(2),
            Self::ServerReflexive => Some(3),
            Self::PeerReflexive => None,
        }
    }

    /// The kind of a number; `None` for one that a later version invents.
    pub(crate) fn from_code(code: u8) -> Option<Self> {
        match code {
            0 => Some(Self::Static),
            1 => Some(Self::Host),
            2 => Some(Self::PortMapped),
            3 => Some(Self::ServerReflexive),
            _ => None,
        }
    }

    /// The short name that status output and metrics use.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Static => "static",
            Self::Host => "host",
            Self::PortMapped => "mapped",
            Self::ServerReflexive => "srflx",
            Self::PeerReflexive => "prflx",
        }
    }
}

/// One address at which a node may be reached.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Candidate {
    /// How the address became known.
    pub kind: CandidateKind,
    /// The address, IPv4 never written inside IPv6.
    pub addr: SocketAddr,
}

impl Candidate {
    /// A candidate with its address in canonical form.
    #[must_use]
    pub fn new(kind: CandidateKind, addr: SocketAddr) -> Self {
        Self { kind, addr: canonical(addr) }
    }
}

/// The classes of path, best first. A better one wins at once; round-trip times decide inside one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Tier {
    /// The peer's address is in a subnet that this node is attached to.
    Lan,
    /// IPv6, whose paths have no address translation to expire.
    Ipv6,
    /// IPv4, direct or through NATs.
    Ipv4,
}

impl Tier {
    /// The tier of a remote address for a node with the given interface addresses.
    #[must_use]
    pub fn of(remote: IpAddr, hosts: &[IpNet]) -> Self {
        if hosts.iter().any(|host| host.contains(&remote)) {
            Self::Lan
        } else if remote.is_ipv6() {
            Self::Ipv6
        } else {
            Self::Ipv4
        }
    }

    /// The short name that status output and metrics use.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Lan => "lan",
            Self::Ipv6 => "ipv6",
            Self::Ipv4 => "ipv4",
        }
    }
}

/// Writes an IPv4 address inside IPv6 as IPv4, so that one address has one name in every table and filter.
pub(crate) fn canonical(addr: SocketAddr) -> SocketAddr {
    SocketAddr::new(addr.ip().to_canonical(), addr.port())
}
