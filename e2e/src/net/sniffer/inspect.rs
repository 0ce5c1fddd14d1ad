//! Decides from one packet whether inner traffic is visible. Pure.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

const TCP: u8 = 6;
const UDP: u8 = 17;
const ICMP: u8 = 1;
const ICMP6: u8 = 58;
/// Second word of every STUN message (RFC 8489, section 5).
const STUN_COOKIE: [u8; 4] = [0x21, 0x12, 0xa4, 0x42];

/// Inside other packets only networks with a prefix this long count: a shorter one is met by chance in ciphertext.
const NARROW: u8 = 16;

/// What may not be seen.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rules {
    /// Addresses that exist only inside the mesh: pods (also those of deleted pods), Services, mesh addresses.
    pub inner: Vec<IpNet>,
    /// Node addresses that Warren carries. Their owner also uses them on the underlay, so only some packets are leaks.
    pub carried: Vec<IpAddr>,
    /// The nodes' addresses on the underlay.
    pub cluster: Vec<IpAddr>,
    /// TCP ports that are reached by the underlay on purpose, all of them with TLS: the API server's, and a relay's control channel.
    pub underlay_ports: Vec<u16>,
    /// UDP ports likewise: a relay's control channel over QUIC.
    pub underlay_udp_ports: Vec<u16>,
}

struct Header {
    source: IpAddr,
    destination: IpAddr,
    protocol: u8,
    length: usize,
}

/// What is visible in this packet, if anything.
#[must_use]
pub fn inspect(packet: &[u8], rules: &Rules) -> Option<String> {
    let header = parse(packet)?;
    let Header { source, destination, protocol, length } = header;
    let inner = |address: &IpAddr| rules.inner.iter().any(|net| net.contains(address));
    if inner(&source) || inner(&destination) {
        return Some(format!("{source} to {destination}, protocol {protocol}"));
    }
    let body = packet.get(length..).unwrap_or_default();
    if exposes_carried(&header, body, rules) {
        return Some(format!("{source} to {destination}, protocol {protocol}: a node address that the mesh carries"));
    }
    if protocol == UDP && is_wireguard(body.get(8..).unwrap_or_default()) {
        return None;
    }
    let narrow = |address: &IpAddr| rules.inner.iter().any(|net| net.prefix_len() >= NARROW && net.contains(address));
    let hidden = (0..body.len())
        .find_map(|offset| encapsulated(body.get(offset..)?).filter(|h| narrow(&h.source) || narrow(&h.destination)));
    hidden.map(|h| format!("{} to {} inside {source} to {destination}, protocol {protocol}", h.source, h.destination))
}

/// The payload of a UDP packet over IPv4 to this port.
#[must_use]
pub fn udp_payload(packet: &[u8], port: u16) -> Option<&[u8]> {
    let header = parse(packet)?;
    let datagram = packet.get(header.length..)?;
    (header.protocol == UDP && datagram.get(2..4)? == port.to_be_bytes()).then(|| datagram.get(8..))?
}

fn exposes_carried(header: &Header, body: &[u8], rules: &Rules) -> bool {
    let carried = |address: &IpAddr| rules.carried.contains(address);
    let ours = |address: &IpAddr| carried(address) || rules.cluster.contains(address);
    let (a, b) = (&header.source, &header.destination);
    if !(carried(a) && ours(b) || ours(a) && carried(b)) {
        return false;
    }
    let port = |at| body.get(at..at + 2).and_then(|bytes| bytes.try_into().ok()).map(u16::from_be_bytes);
    let known = |known: &[u16]| [port(0), port(2)].into_iter().flatten().any(|port| known.contains(&port));
    match header.protocol {
        TCP => !known(&rules.underlay_ports),
        UDP => {
            let outer = |payload| is_wireguard(payload) || is_stun(payload) || wire::relay::is_relay(payload);
            !known(&rules.underlay_udp_ports) && !body.get(8..).is_some_and(outer)
        }
        // Destination unreachable, packet too big and time exceeded are answers of the underlay about the underlay.
        ICMP => !matches!(body.first(), Some(3 | 11)),
        ICMP6 => !matches!(body.first(), Some(1..=3)),
        _ => true,
    }
}

/// The types of WireGuard's messages with their three zero bytes.
fn is_wireguard(payload: &[u8]) -> bool {
    matches!(payload, [1..=4, 0, 0, 0, ..]) && payload.len() >= 32
}

fn is_stun(payload: &[u8]) -> bool {
    payload.first().is_some_and(|byte| *byte < 0x40) && payload.get(4..8) == Some(&STUN_COOKIE)
}

/// A header in the middle of another packet counts only when it is hardly there by chance: IPv4 has a checksum, the IPv6 pod
/// networks have long prefixes.
fn encapsulated(bytes: &[u8]) -> Option<Header> {
    let header = parse(bytes)?;
    let real = match header.source {
        IpAddr::V4(_) => checksum(bytes.get(..header.length)?) == 0xffff,
        IpAddr::V6(_) => matches!(header.protocol, TCP | UDP | ICMP6),
    };
    real.then_some(header)
}

fn checksum(header: &[u8]) -> u16 {
    let words = header.chunks_exact(2).filter_map(|pair| pair.try_into().ok()).map(u16::from_be_bytes);
    let sum: u32 = words.map(u32::from).sum();
    let folded = (sum & 0xffff) + (sum >> 16);
    u16::try_from((folded & 0xffff) + (folded >> 16)).unwrap_or(0)
}

fn parse(packet: &[u8]) -> Option<Header> {
    match packet.first()? >> 4 {
        4 => {
            let length = usize::from(packet.first()? & 0xf) * 4;
            let address =
                |at: usize| Some(IpAddr::V4(Ipv4Addr::from(<[u8; 4]>::try_from(packet.get(at..at + 4)?).ok()?)));
            (length >= 20).then_some(Header {
                source: address(12)?,
                destination: address(16)?,
                protocol: *packet.get(9)?,
                length,
            })
        }
        6 => {
            let address =
                |at: usize| Some(IpAddr::V6(Ipv6Addr::from(<[u8; 16]>::try_from(packet.get(at..at + 16)?).ok()?)));
            Some(Header { source: address(8)?, destination: address(24)?, protocol: *packet.get(6)?, length: 40 })
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NODE: [u8; 4] = [10, 50, 0, 10];
    const CP: [u8; 4] = [203, 0, 113, 10];
    const HOME: [u8; 4] = [198, 51, 100, 10];
    const POD: [u8; 4] = [10, 244, 3, 7];

    fn rules() -> Rules {
        Rules {
            inner: vec![
                "10.244.0.0/16".parse().unwrap(),
                "fd00:10:244::/56".parse().unwrap(),
                "fc00::/7".parse().unwrap(),
            ],
            carried: vec![NODE.into()],
            cluster: vec![CP.into(), HOME.into()],
            underlay_ports: vec![6443],
            underlay_udp_ports: vec![51899],
        }
    }

    fn ipv4(protocol: u8, source: [u8; 4], destination: [u8; 4], body: &[u8]) -> Vec<u8> {
        let total = u16::try_from(20 + body.len()).unwrap().to_be_bytes();
        let mut packet = vec![0x45, 0, total[0], total[1], 0, 0, 0x40, 0, 64, protocol, 0, 0];
        packet.extend(source);
        packet.extend(destination);
        let sum = !checksum(&packet);
        packet[10..12].copy_from_slice(&sum.to_be_bytes());
        packet.extend(body);
        packet
    }

    fn udp(source: u16, destination: u16, payload: &[u8]) -> Vec<u8> {
        let length = u16::try_from(8 + payload.len()).unwrap();
        let mut datagram: Vec<u8> =
            [source, destination, length, 0].iter().flat_map(|word| word.to_be_bytes()).collect();
        datagram.extend(payload);
        datagram
    }

    fn tcp(source: u16, destination: u16) -> Vec<u8> {
        let mut segment: Vec<u8> = [source, destination].iter().flat_map(|word| word.to_be_bytes()).collect();
        segment.resize(20, 0);
        segment
    }

    #[test]
    fn a_pod_address_in_either_place_is_a_leak() {
        assert!(inspect(&ipv4(UDP, POD, HOME, &udp(1, 2, b"x")), &rules()).is_some());
        assert!(inspect(&ipv4(TCP, HOME, POD, &tcp(1, 2)), &rules()).is_some());
        assert_eq!(inspect(&ipv4(TCP, HOME, CP, &tcp(1, 2)), &rules()), None);
    }

    #[test]
    fn a_pod_packet_inside_any_unencrypted_wrapping_is_a_leak() {
        let inner = ipv4(TCP, POD, [10, 244, 1, 1], &tcp(1, 80));
        let vxlan = [&[8, 0, 0, 0, 0, 0, 1, 0], [0xaa; 12].as_slice(), &[8, 0], &inner].concat();
        for (protocol, body) in
            [(4, inner.clone()), (UDP, udp(4789, 4789, &vxlan)), (47, [&[0, 0, 8, 0], &inner[..]].concat())]
        {
            let finding = inspect(&ipv4(protocol, HOME, CP, &body), &rules());
            assert!(finding.as_deref().is_some_and(|text| text.contains("inside")), "protocol {protocol}: {finding:?}");
        }
    }

    #[test]
    fn an_inner_ipv6_packet_is_found_too() {
        let mut inner = vec![0x60, 0, 0, 0, 0, 0, UDP, 64];
        inner.extend("fd00:10:244::5".parse::<Ipv6Addr>().unwrap().octets());
        inner.extend("fd00:10:244:100::7".parse::<Ipv6Addr>().unwrap().octets());
        assert!(inspect(&ipv4(41, HOME, CP, &inner), &rules()).is_some());
        assert!(inspect(&inner, &rules()).is_some());
    }

    #[test]
    fn a_header_without_a_right_checksum_is_chance() {
        let mut inner = ipv4(TCP, POD, [10, 244, 1, 1], &tcp(1, 80));
        inner[10] ^= 1;
        assert_eq!(inspect(&ipv4(UDP, HOME, CP, &udp(1, 2, &inner)), &rules()), None);
    }

    #[test]
    fn what_wireguard_carries_is_not_read() {
        let mut message = vec![4, 0, 0, 0];
        message.extend([7; 12]);
        message.extend(ipv4(TCP, POD, POD, &tcp(1, 80)));
        assert_eq!(inspect(&ipv4(UDP, HOME, CP, &udp(31820, 21820, &message)), &rules()), None);
    }

    #[test]
    fn a_carried_node_address_may_show_only_what_the_underlay_is_for() {
        let seen = |protocol, body: &[u8]| inspect(&ipv4(protocol, CP, NODE, body), &rules()).is_some();
        assert!(seen(TCP, &tcp(40000, 10250)), "API server to kubelet in clear");
        assert!(!seen(TCP, &tcp(6443, 40000)), "the API connection itself");
        assert!(seen(UDP, &udp(5, 6, b"hello")));
        assert!(!seen(UDP, &udp(5, 6, &[&[1, 0, 0, 0][..], &[0; 28]].concat())), "WireGuard");
        assert!(!seen(UDP, &udp(5, 6, &[&[0, 1, 0, 0][..], &STUN_COOKIE, &[0; 12]].concat())), "STUN");
        assert!(!seen(UDP, &udp(5, 6, &[&[0x81][..], &[0; 79]].concat())), "a relay's message");
        assert!(!seen(UDP, &udp(51899, 6, b"QUIC")) && seen(TCP, &tcp(51899, 6)), "a relay's control channel");
        assert!(!seen(ICMP, &[3, 4, 0, 0]) && seen(ICMP, &[8, 0, 0, 0]));
    }

    #[test]
    fn a_carried_node_may_talk_to_the_world() {
        assert_eq!(inspect(&ipv4(TCP, NODE, [198, 18, 0, 1], &tcp(40000, 80)), &rules()), None);
    }

    #[test]
    fn a_cut_off_packet_is_not_a_panic() {
        let whole = ipv4(UDP, HOME, CP, &udp(1, 2, &ipv4(TCP, POD, POD, &tcp(1, 2))));
        for length in 0..whole.len() {
            let _ = inspect(&whole[..length], &rules());
        }
    }
}
