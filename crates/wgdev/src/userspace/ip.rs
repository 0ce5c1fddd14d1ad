//! The little that WireGuard needs to know of IP.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// Addresses and length of a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct IpPacket {
    pub(super) source: IpAddr,
    pub(super) destination: IpAddr,
    /// Bytes without WireGuard's padding.
    pub(super) length: usize,
}

impl IpPacket {
    /// Reads the header; `None` if it is none, or the packet is shorter than it says.
    pub(super) fn parse(packet: &[u8]) -> Option<Self> {
        let parsed = match packet.first()? >> 4 {
            4 => Self::v4(packet.first_chunk()?),
            6 => Self::v6(packet.first_chunk()?),
            _ => return None,
        };
        parsed.filter(|ip| ip.length <= packet.len())
    }

    /// The destination alone, of a packet whose length fields don't count because offloads are on.
    pub(super) fn destination(packet: &[u8]) -> Option<IpAddr> {
        match packet.first()? >> 4 {
            4 => Some(v4(packet.get(16..20)?)),
            6 => v6(packet.get(24..40)?),
            _ => None,
        }
    }

    fn v4(header: &[u8; 20]) -> Option<Self> {
        let header_len = usize::from(header[0] & 0xf) * 4;
        let length = usize::from(u16::from_be_bytes([header[2], header[3]]));
        let sane = header_len >= 20 && length >= header_len;
        sane.then(|| Self { source: v4(&header[12..16]), destination: v4(&header[16..20]), length })
    }

    fn v6(header: &[u8; 40]) -> Option<Self> {
        let payload = usize::from(u16::from_be_bytes([header[4], header[5]]));
        Some(Self { source: v6(&header[8..24])?, destination: v6(&header[24..40])?, length: 40 + payload })
    }
}

fn v4(octets: &[u8]) -> IpAddr {
    Ipv4Addr::new(octets[0], octets[1], octets[2], octets[3]).into()
}

fn v6(octets: &[u8]) -> Option<IpAddr> {
    let octets: [u8; 16] = octets.try_into().ok()?;
    Some(Ipv6Addr::from(octets).into())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn v4_packet(length: usize) -> Vec<u8> {
        let mut packet = vec![0; length];
        packet[0] = 0x45;
        packet[2..4].copy_from_slice(&(length as u16).to_be_bytes());
        packet[12..16].copy_from_slice(&[10, 0, 0, 1]);
        packet[16..20].copy_from_slice(&[10, 0, 0, 2]);
        packet
    }

    #[test]
    fn padding_is_not_part_of_the_packet() {
        let mut packet = v4_packet(33);
        packet.extend([0; 15]);
        let ip = IpPacket::parse(&packet).unwrap();
        assert_eq!(ip.length, 33);
        assert_eq!(ip.source, IpAddr::from([10, 0, 0, 1]));
        assert_eq!(Some(ip.destination), IpPacket::destination(&packet));
    }

    #[test]
    fn headers_that_lie_are_refused() {
        let mut cut = v4_packet(40);
        cut.pop();
        assert_eq!(IpPacket::parse(&cut), None);
        let mut short_header = v4_packet(40);
        short_header[0] = 0x44;
        assert_eq!(IpPacket::parse(&short_header), None);
        let mut length_inside_header = v4_packet(40);
        length_inside_header[3] = 19;
        assert_eq!(IpPacket::parse(&length_inside_header), None);
        assert_eq!(IpPacket::parse(&[0x60; 39]), None);
        assert_eq!(IpPacket::parse(&[]), None);
    }

    proptest! {
        #[test]
        fn nothing_panics(bytes in prop::collection::vec(any::<u8>(), 0..80)) {
            let _ = (IpPacket::parse(&bytes), IpPacket::destination(&bytes));
        }
    }
}
