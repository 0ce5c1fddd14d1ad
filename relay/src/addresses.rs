//! Where others can reach this relay.
//!
//! Unless told by `--advertise`, the relay takes the addresses of the interfaces that have a default route: those of the mesh,
//! of pods and of container bridges have none. Before them goes what its MeshRelay says, which knows of a NAT outside. Everything is read from `/proc/net`, which needs no privilege.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};

use anyhow::Context;
use crds::address::is_public;

use crate::args::Advertised;

mod proc;

/// Most addresses that are published: what the schema of MeshRelay admits.
pub const MAX_PUBLISHED: usize = 8;

/// The addresses this host has on interfaces with a default route.
///
/// # Errors
/// When the kernel's tables cannot be read.
pub fn of_host() -> anyhow::Result<Vec<IpAddr>> {
    let read = |path: &str| std::fs::read_to_string(path);
    // Without IPv6 its two files do not exist.
    let devices_v4 = proc::default_devices_v4(&read("/proc/net/route").context("cannot read /proc/net/route")?);
    let devices_v6 = proc::default_devices_v6(&read("/proc/net/ipv6_route").unwrap_or_default());
    let mut found: BTreeSet<IpAddr> = addresses_v4(&devices_v4)?;
    found.extend(proc::addresses_v6(&read("/proc/net/if_inet6").unwrap_or_default(), &devices_v6));
    Ok(found.into_iter().collect())
}

/// Every address this host has, on whichever interface: what no packet of the relay should go to.
///
/// # Errors
/// When the kernel cannot list its interfaces.
pub fn all_of_host() -> anyhow::Result<Vec<IpAddr>> {
    let interfaces = nix::ifaddrs::getifaddrs().context("cannot list the addresses of this host")?;
    let of = |interface: nix::ifaddrs::InterfaceAddress| {
        let address = interface.address?;
        let v4 = address.as_sockaddr_in().map(|address| IpAddr::V4(address.ip()));
        v4.or_else(|| address.as_sockaddr_in6().map(|address| IpAddr::V6(address.ip())))
    };
    let all: BTreeSet<IpAddr> = interfaces.filter_map(of).collect();
    Ok(all.into_iter().collect())
}

/// What to publish: what was given, else what the host has, for each address listened on; public ones first.
#[must_use]
pub fn to_publish(given: &[Advertised], of_host: &[IpAddr], listening: &[SocketAddr]) -> Vec<SocketAddr> {
    let mut addresses: Vec<SocketAddr> = if given.is_empty() {
        listening.iter().flat_map(|&listen| reachable_at(listen, of_host)).collect()
    } else {
        given.iter().filter_map(|given| with_port(*given, listening)).collect()
    };
    addresses.sort_by_key(|address| (!is_public(address.ip()), address.is_ipv6(), *address));
    addresses.dedup();
    addresses.truncate(MAX_PUBLISHED);
    addresses
}

/// The addresses that a MeshRelay gives, in its order, and then the relay's own. What nobody could send to is left out. One of
/// its own is always there: it tells the agent on the same node which port the relay listens on.
#[must_use]
pub fn with_given(given: &[String], own: &[SocketAddr]) -> Vec<SocketAddr> {
    let mut addresses = Vec::with_capacity(MAX_PUBLISHED);
    let room = MAX_PUBLISHED - own.len().min(1);
    let usable = given.iter().filter_map(|text| usable(text)).take(room);
    for address in usable.chain(own.iter().copied()) {
        if addresses.len() < MAX_PUBLISHED && !addresses.contains(&address) {
            addresses.push(address);
        }
    }
    addresses
}

/// A given address, if others could send to it.
#[must_use]
pub fn usable(text: &str) -> Option<SocketAddr> {
    let address: SocketAddr = text.parse().ok()?;
    let ip = address.ip();
    let nobodys = ip.is_unspecified() || ip.is_multicast() || ip.is_loopback() || address.port() == 0;
    (!nobodys).then_some(address)
}

fn reachable_at(listen: SocketAddr, of_host: &[IpAddr]) -> Vec<SocketAddr> {
    if listen.ip().is_unspecified() {
        let same_family = of_host.iter().filter(|ip| ip.is_ipv4() == listen.is_ipv4());
        same_family.map(|&ip| SocketAddr::new(ip, listen.port())).collect()
    } else if listen.ip().is_loopback() {
        Vec::new()
    } else {
        vec![listen]
    }
}

/// The given port, else the one listened on in the same family, else the one of the other.
fn with_port(given: Advertised, listening: &[SocketAddr]) -> Option<SocketAddr> {
    let same_family = listening.iter().find(|listen| listen.is_ipv4() == given.ip.is_ipv4());
    let port = given.port.or(same_family.or(listening.first()).map(SocketAddr::port))?;
    Some(SocketAddr::new(given.ip, port))
}

fn addresses_v4(devices: &BTreeSet<String>) -> anyhow::Result<BTreeSet<IpAddr>> {
    let interfaces = nix::ifaddrs::getifaddrs().context("cannot list the addresses of this host")?;
    Ok(interfaces
        .filter(|interface| devices.contains(&interface.interface_name))
        .filter_map(|interface| interface.address?.as_sockaddr_in().map(|address| address.ip()))
        .filter(|ip| !ip.is_loopback() && !ip.is_link_local())
        .map(IpAddr::V4)
        .collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    const BOTH: [&str; 2] = ["0.0.0.0:3478", "[::]:3478"];

    fn publish(given: &[&str], of_host: &[&str], listening: &[&str]) -> Vec<String> {
        let given: Vec<Advertised> = given
            .iter()
            .map(|text| match text.parse::<SocketAddr>() {
                Ok(address) => Advertised { ip: address.ip(), port: Some(address.port()) },
                Err(_) => Advertised { ip: text.parse().unwrap(), port: None },
            })
            .collect();
        let of_host: Vec<IpAddr> = of_host.iter().map(|text| text.parse().unwrap()).collect();
        let listening: Vec<SocketAddr> = listening.iter().map(|text| text.parse().unwrap()).collect();
        to_publish(&given, &of_host, &listening).iter().map(ToString::to_string).collect()
    }

    #[test]
    fn public_addresses_come_first() {
        let host = ["10.0.0.7", "2001:db8::7", "fd00::7", "203.0.113.7"];
        let expected = ["203.0.113.7:3478", "[2001:db8::7]:3478", "10.0.0.7:3478", "[fd00::7]:3478"];
        assert_eq!(publish(&[], &host, &BOTH), expected);
    }

    #[test]
    fn what_is_given_replaces_what_is_found() {
        let host = ["10.0.0.7", "fd00::7"];
        assert_eq!(publish(&["203.0.113.7"], &host, &BOTH), ["203.0.113.7:3478"]);
        assert_eq!(publish(&["203.0.113.7:443"], &host, &BOTH), ["203.0.113.7:443"]);
        assert_eq!(publish(&["2001:db8::7"], &host, &["0.0.0.0:99"]), ["[2001:db8::7]:99"]);
    }

    #[test]
    fn only_families_and_addresses_that_are_served() {
        let host = ["10.0.0.7", "10.0.0.8", "2001:db8::7"];
        assert_eq!(publish(&[], &host, &["0.0.0.0:1"]), ["10.0.0.7:1", "10.0.0.8:1"]);
        assert_eq!(publish(&[], &host, &["10.0.0.8:1"]), ["10.0.0.8:1"]);
        assert!(publish(&[], &host, &["127.0.0.1:1", "[::1]:1"]).is_empty());
    }

    #[test]
    fn what_the_object_gives_comes_first_and_once() {
        let own: Vec<SocketAddr> = ["10.0.0.7:3478", "203.0.113.7:3478"].map(|text| text.parse().unwrap()).to_vec();
        let merged = |given: &[&str]| {
            let given: Vec<String> = given.iter().map(ToString::to_string).collect();
            with_given(&given, &own).iter().map(ToString::to_string).collect::<Vec<_>>()
        };
        assert_eq!(merged(&[]), ["10.0.0.7:3478", "203.0.113.7:3478"]);
        assert_eq!(
            merged(&["198.51.100.7:443", "203.0.113.7:3478"]),
            ["198.51.100.7:443", "203.0.113.7:3478", "10.0.0.7:3478"]
        );
        let useless = ["0.0.0.0:1", "[ff02::1]:1", "127.0.0.1:1", "203.0.113.9:0", "203.0.113.999:1", "home:1", ""];
        assert_eq!(merged(&useless), merged(&[]));
        let many: Vec<String> = (1..40).map(|last| format!("198.51.100.{last}:1")).collect();
        let published = with_given(&many, &own);
        assert_eq!((published.len(), published.last()), (MAX_PUBLISHED, own.first()));
    }

    #[test]
    fn the_list_is_capped_at_what_the_schema_admits() {
        let host: Vec<String> = (1..40).map(|last| format!("10.0.0.{last}")).collect();
        let host: Vec<&str> = host.iter().map(String::as_str).collect();
        assert_eq!(publish(&[], &host, &BOTH).len(), MAX_PUBLISHED);
    }
}
