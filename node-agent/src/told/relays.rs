//! From a `MeshRelay` to what a channel to it takes. What does not parse is left out.

use crate::{
    net::PortRange,
    relays::{MAX_ADDRESSES, Relay},
};
use crds::MeshRelay;
use kube::ResourceExt;
use path::RelayId;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use wire::key::PublicKey;

/// Where the channel of a relay answers over QUIC that doesn't say: one below its first relay port.
pub const QUIC_PORT: u16 = 51899;
/// The same over TLS.
pub const TLS_PORT: u16 = 8443;

/// Ports of one relay that are tried over TLS.
const MAX_TLS_PORTS: usize = 4;

/// Where its UDP ports are, unless it was started with others: then what it relays to this cluster's own node addresses is kept out
/// of the mesh by the mark of the connection alone.
pub const RELAY_PORTS: PortRange = PortRange { first: 51900, last: 51963 };

/// The relay as the node of this name reaches it. `None` without a key to recognise it by, or without an address.
pub fn relay(relay: &MeshRelay, own_name: &str) -> Option<Relay> {
    let status = relay.status.as_ref();
    // What an admin wrote comes before what a relay says of itself.
    let key = relay.spec.identity_key.as_deref().or(status.and_then(|s| s.identity_key.as_deref()))?;
    let own = relay.spec.node_name.as_deref() == Some(own_name);
    let udp = if own { Vec::new() } else { addresses(relay) };
    // Its own addresses are forbidden as endpoints, and a cloud's public one may not even be its own.
    let channel = if own { vec![IpAddr::V4(Ipv4Addr::LOCALHOST)] } else { udp.clone() };
    if channel.is_empty() {
        return None;
    }
    let at = |port: u16| channel.iter().map(move |ip| SocketAddr::new(*ip, port));
    // Nothing keeps UDP from getting to this very node. TLS would only be what happens to be quicker while the machine is busy, and then
    // all that this node says to others by its own relay would go by TCP for as long as the channel lasts.
    let tls = if own { Vec::new() } else { tls_ports(relay) };
    Some(Relay {
        id: RelayId(key_bytes(key)?),
        name: relay.name_any(),
        domain: relay.spec.failure_domain.clone(),
        quic: at(quic_port(relay)).take(MAX_ADDRESSES).collect(),
        tls: tls.into_iter().flat_map(at).take(MAX_ADDRESSES).collect(),
        udp,
    })
}

/// The port of its channel over QUIC.
pub fn quic_port(relay: &MeshRelay) -> u16 {
    relay.spec.quic_port.or_else(|| relay.status.as_ref()?.quic_port).unwrap_or(QUIC_PORT)
}

/// Where its channel is reached over TLS, best first.
fn tls_ports(relay: &MeshRelay) -> Vec<u16> {
    if let Some(port) = relay.spec.tls_port {
        return vec![port];
    }
    let told = relay.status.iter().flat_map(|s| &s.tls_ports).take(MAX_TLS_PORTS).copied().collect::<Vec<_>>();
    if told.is_empty() { vec![tls_port(relay)] } else { told }
}

/// The port that it listens on for its channel over TLS.
pub fn tls_port(relay: &MeshRelay) -> u16 {
    relay.spec.tls_port.or_else(|| relay.status.as_ref()?.tls_port).unwrap_or(TLS_PORT)
}

/// Where it answers STUN: what it says; of one outside the cluster that says nothing, what an admin wrote.
pub fn stun(relay: &MeshRelay) -> &[String] {
    let told = relay.status.as_ref().map(|s| &s.stun[..]).filter(|told| !told.is_empty());
    told.unwrap_or(if relay.spec.node_name.is_none() { &relay.spec.addresses } else { &[] })
}

/// What the relay says, best first; of one outside the cluster, which says nothing, what an admin wrote.
fn addresses(relay: &MeshRelay) -> Vec<IpAddr> {
    let told = relay.status.iter().flat_map(|s| &s.addresses).filter_map(|a| a.parse::<IpAddr>().ok());
    let written = relay.spec.addresses.iter().filter_map(|a| a.parse::<SocketAddr>().ok()).map(|a| a.ip());
    let mut addresses: Vec<IpAddr> = Vec::new();
    for address in told.chain(written).map(|a| a.to_canonical()) {
        if !addresses.contains(&address) && addresses.len() < MAX_ADDRESSES {
            addresses.push(address);
        }
    }
    addresses
}

/// Ed25519 keys have the length of WireGuard's, and are written like them.
fn key_bytes(text: &str) -> Option<[u8; 32]> {
    text.parse::<PublicKey>().ok().map(|key| *key.as_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crds::{MeshRelaySpec, MeshRelayStatus};

    fn key(n: u8) -> String {
        PublicKey::from_bytes([n; 32]).to_string()
    }

    fn of_node(name: &str) -> MeshRelay {
        let mut relay = MeshRelay::new(name, MeshRelaySpec { node_name: Some(name.into()), ..Default::default() });
        relay.status = Some(MeshRelayStatus {
            identity_key: Some(key(7)),
            addresses: vec!["192.0.2.7".into(), "nonsense".into(), "::ffff:192.0.2.7".into(), "2001:db8::7".into()],
            quic_port: Some(4000),
            ..Default::default()
        });
        relay
    }

    fn sockets(texts: &[&str]) -> Vec<SocketAddr> {
        texts.iter().map(|t| t.parse().unwrap()).collect()
    }

    #[test]
    fn a_relay_of_the_cluster_is_what_it_says() {
        let read = relay(&of_node("pub"), "home").unwrap();
        assert_eq!((read.id, &*read.name), (RelayId([7; 32]), "pub"));
        assert_eq!(read.quic, sockets(&["192.0.2.7:4000", "[2001:db8::7]:4000"]));
        assert_eq!(read.tls, sockets(&["192.0.2.7:8443", "[2001:db8::7]:8443"]));
        assert_eq!(read.udp, read.quic.iter().map(SocketAddr::ip).collect::<Vec<_>>());
    }

    #[test]
    fn the_port_that_networks_let_out_is_tried_first_at_every_address() {
        let mut read = of_node("pub");
        read.status.as_mut().unwrap().tls_ports = vec![443, 8443];
        let expected = ["192.0.2.7:443", "[2001:db8::7]:443", "192.0.2.7:8443", "[2001:db8::7]:8443"];
        assert_eq!(relay(&read, "home").unwrap().tls, sockets(&expected));
        assert_eq!(relay(&read, "pub").unwrap().tls, [], "by QUIC alone on the relay's own node");
    }

    #[test]
    fn the_relay_on_this_node_is_asked_here_and_relays_nothing_for_it() {
        let read = relay(&of_node("pub"), "pub").unwrap();
        assert_eq!(read.quic, sockets(&["127.0.0.1:4000"]));
        assert!(read.udp.is_empty());
    }

    #[test]
    fn a_relay_outside_the_cluster_is_what_an_admin_wrote() {
        let spec = MeshRelaySpec {
            identity_key: Some(key(9)),
            addresses: vec!["198.51.100.9:3478".into()],
            ..Default::default()
        };
        let mut outside = MeshRelay::new("outside", spec);
        let read = relay(&outside, "home").unwrap();
        assert_eq!((read.id, read.quic), (RelayId([9; 32]), sockets(&["198.51.100.9:51899"])));
        assert_eq!(stun(&outside), ["198.51.100.9:3478"]);
        (outside.spec.quic_port, outside.spec.tls_port) = (Some(4433), Some(443));
        let elsewhere = relay(&outside, "home").unwrap();
        assert_eq!((elsewhere.quic, elsewhere.tls), (sockets(&["198.51.100.9:4433"]), sockets(&["198.51.100.9:443"])));
        outside.spec.identity_key = None;
        assert_eq!(relay(&outside, "home"), None, "nothing to recognise it by");
    }

    #[test]
    fn what_an_admin_wrote_comes_before_what_a_relay_says() {
        let mut both = of_node("pub");
        both.spec.identity_key = Some(key(9));
        assert_eq!(relay(&both, "home").unwrap().id, RelayId([9; 32]));
        both.spec.identity_key = Some("no key".into());
        assert_eq!(relay(&both, "home"), None);
    }
}
