//! Where nodes stand.

use crate::middlebox::{Behaviour, Filtering, Mapping};

/// The surroundings of one node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Site {
    /// A public address and nothing in the way.
    Open,
    /// A public address behind a stateful firewall.
    Firewalled,
    /// A private address behind a NAT of its own.
    Home(Mapping, Filtering),
    /// Like a home, behind the provider's second NAT (endpoint-independent, port-restricted).
    Cgnat(Mapping, Filtering),
    /// A private address behind a Linux box that masquerades and drops no strays.
    Poisonable,
    /// A network that lets no UDP out.
    UdpBlocked,
}

impl Site {
    /// Home routers of the common sort.
    pub const EASY_HOME: Self = Self::Home(Mapping::EndpointIndependent, Filtering::AddressAndPortDependent);
    /// A symmetric NAT.
    pub const SYMMETRIC: Self = Self::Home(Mapping::AddressAndPortDependent, Filtering::AddressAndPortDependent);

    /// The box that decides what peers see.
    #[must_use]
    pub fn behaviour(self) -> Option<Behaviour> {
        match self {
            Self::Open => None,
            Self::Firewalled => Some(Behaviour::firewall()),
            Self::Home(mapping, filtering) | Self::Cgnat(mapping, filtering) => {
                Some(Behaviour::nat(mapping, filtering))
            }
            Self::Poisonable => Some(Behaviour::masquerade()),
            Self::UdpBlocked => Some(Behaviour { block: crate::middlebox::Block::Udp, ..Behaviour::firewall() }),
        }
    }
}
