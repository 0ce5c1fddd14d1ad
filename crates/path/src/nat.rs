//! What kind of NAT this node is behind, told from how several observers see one port (RFC 4787, section 4.1).

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};

/// How the nearest translation maps this node's port.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub enum NatClass {
    /// Too few observers answered to tell.
    #[default]
    Unknown,
    /// Not translated. Firewalls may stand in the way all the same.
    Open,
    /// One mapping for every destination: what an observer sees is where peers get through.
    EndpointIndependent,
    /// Another mapping for every destination address.
    AddressDependent,
    /// Another mapping even for another port of the same address.
    AddressAndPortDependent,
    /// Nobody answered.
    Blocked,
}

impl NatClass {
    /// Whether peers meet another port than observers do.
    #[must_use]
    pub fn is_hard(self) -> bool {
        matches!(self, Self::AddressDependent | Self::AddressAndPortDependent)
    }

    /// The number that signals carry.
    pub(crate) fn code(self) -> u8 {
        match self {
            Self::Unknown => 0,
            Self::Open => 1,
            Self::EndpointIndependent => 2,
            Self::AddressDependent => 3,
            Self::AddressAndPortDependent => 4,
            Self::Blocked => 5,
        }
    }

    /// The class of a number; one that a later version invents says nothing.
    pub(crate) fn from_code(code: u8) -> Self {
        match code {
            1 => Self::Open,
            2 => Self::EndpointIndependent,
            3 => Self::AddressDependent,
            4 => Self::AddressAndPortDependent,
            5 => Self::Blocked,
            _ => Self::Unknown,
        }
    }

    /// The name that status shows.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Unknown => "Unknown",
            Self::Open => "Open",
            Self::EndpointIndependent => "EndpointIndependent",
            Self::AddressDependent => "AddressDependent",
            Self::AddressAndPortDependent => "AddressAndPortDependent",
            Self::Blocked => "Blocked",
        }
    }
}

/// The classes of both families.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct NatReport {
    /// IPv4.
    pub v4: NatClass,
    /// IPv6.
    pub v6: NatClass,
}

impl NatReport {
    /// The class of an address's family.
    #[must_use]
    pub fn of(&self, ip: IpAddr) -> NatClass {
        if ip.is_ipv4() { self.v4 } else { self.v6 }
    }
}

/// One observer's last word: who looked, and what it saw; `None` when it did not answer.
pub(crate) type Observation = (SocketAddr, Option<SocketAddr>);

/// The class of one family from the observations made in it.
pub(crate) fn classify(observations: &[Observation], own: &[SocketAddr]) -> NatClass {
    let seen: Vec<(SocketAddr, SocketAddr)> =
        observations.iter().filter_map(|(observer, mapped)| mapped.map(|mapped| (*observer, mapped))).collect();
    let mappings: BTreeSet<SocketAddr> = seen.iter().map(|(_, mapped)| *mapped).collect();
    match (seen.len(), mappings.len()) {
        (0, _) if observations.is_empty() => NatClass::Unknown,
        (0, _) => NatClass::Blocked,
        (_, 1) if mappings.iter().all(|mapped| own.contains(mapped)) => NatClass::Open,
        (1, _) => NatClass::Unknown,
        (_, 1) => NatClass::EndpointIndependent,
        _ if differs_by_port(&seen) => NatClass::AddressAndPortDependent,
        _ => NatClass::AddressDependent,
    }
}

/// Whether two observers on one address saw two mappings.
fn differs_by_port(seen: &[(SocketAddr, SocketAddr)]) -> bool {
    seen.iter().any(|(observer, mapped)| {
        seen.iter().any(|(other, elsewhere)| other.ip() == observer.ip() && elsewhere != mapped)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_class_follows_from_what_the_observers_saw() {
        let own = ["10.0.0.2:21820", "198.51.100.7:21820"];
        let cases: [(&[(&str, &str)], NatClass); 8] = [
            (&[], NatClass::Unknown),
            (&[("192.0.2.1:3478", ""), ("192.0.2.2:3478", "")], NatClass::Blocked),
            (&[("192.0.2.1:3478", "203.0.113.1:5")], NatClass::Unknown),
            (&[("192.0.2.1:3478", "198.51.100.7:21820")], NatClass::Open),
            (
                &[("192.0.2.1:3478", "203.0.113.1:5"), ("192.0.2.2:3478", "203.0.113.1:5")],
                NatClass::EndpointIndependent,
            ),
            (&[("192.0.2.1:3478", "203.0.113.1:5"), ("192.0.2.2:3478", "203.0.113.1:6")], NatClass::AddressDependent),
            (
                &[("192.0.2.1:3478", "203.0.113.1:5"), ("192.0.2.1:3479", "203.0.113.1:6")],
                NatClass::AddressAndPortDependent,
            ),
            (&[("192.0.2.1:3478", "203.0.113.1:5"), ("192.0.2.2:3478", "")], NatClass::Unknown),
        ];
        let own = own.map(|addr| addr.parse().unwrap());
        for (observations, class) in cases {
            let parsed: Vec<Observation> = observations
                .iter()
                .map(|(observer, mapped)| (observer.parse().unwrap(), mapped.parse().ok()))
                .collect();
            assert_eq!(classify(&parsed, &own), class, "{observations:?}");
        }
    }
}
