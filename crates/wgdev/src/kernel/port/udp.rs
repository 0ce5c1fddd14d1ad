//! UDP by hand: raw sockets carry the header too.

use std::net::Ipv4Addr;

use crate::checksum;

/// Bytes of a UDP header.
pub(super) const HEADER_LEN: usize = 8;

/// Offset of the checksum in it.
pub(super) const CHECKSUM_AT: usize = 6;

const UDP: u8 = 17;

/// Largest payload that the length field can say.
const MAX_PAYLOAD: usize = 65_507;

/// A datagram with its header, without a checksum; `None` when it is too long.
pub(super) fn encode(from: u16, to: u16, payload: &[u8]) -> Option<Vec<u8>> {
    if payload.len() > MAX_PAYLOAD {
        return None;
    }
    let length = (HEADER_LEN + payload.len()) as u16;
    let mut datagram = Vec::with_capacity(length.into());
    for field in [from, to, length, 0] {
        datagram.extend(field.to_be_bytes());
    }
    datagram.extend(payload);
    Some(datagram)
}

/// Fills in the checksum of a datagram over IPv4. Zero (none) would be legal, but some middleboxes drop it.
pub(super) fn fill_checksum(datagram: &mut [u8], source: Ipv4Addr, destination: Ipv4Addr) {
    let length = (datagram.len() as u16).to_be_bytes();
    let pseudo_header = checksum::sum(&source.octets())
        + checksum::sum(&destination.octets())
        + checksum::sum(&[0, UDP])
        + checksum::sum(&length);
    let checksum = checksum::transport(pseudo_header + checksum::sum(datagram));
    datagram[CHECKSUM_AT..HEADER_LEN].copy_from_slice(&checksum);
}

/// Source port, destination port and payload; `None` for what contradicts itself.
pub(super) fn decode(packet: &[u8]) -> Option<(u16, u16, &[u8])> {
    let field = |at: usize| packet.get(at..at + 2).map(|b| u16::from_be_bytes([b[0], b[1]]));
    let payload = packet.get(HEADER_LEN..usize::from(field(4)?))?;
    Some((field(0)?, field(2)?, payload))
}

/// The UDP packet inside an IPv4 packet.
pub(super) fn inside_ipv4(packet: &[u8]) -> Option<&[u8]> {
    let words = packet.first()? & 0xf;
    packet.get(usize::from(words) * 4..)
}

/// The datagrams in what arrived as one: a local sender's segmented send, or a receiver's merging, reaches a raw
/// socket whole and without its segment size. The length in the first STUN header tells it, because all segments but
/// the last are equally long.
pub(super) fn segments(payload: &[u8]) -> impl Iterator<Item = &[u8]> {
    const STUN_HEADER: usize = 20;
    let first = payload.get(2..4).map_or(0, |b| usize::from(u16::from_be_bytes([b[0], b[1]])));
    let segment = STUN_HEADER + first;
    payload.chunks(segment.max(1))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A datagram of 192.0.2.1:21820 to 198.51.100.7:3478, its checksum worked out by hand from RFC 768.
    #[test]
    fn a_known_checksum() {
        let mut datagram = encode(21820, 3478, b"abc").unwrap();
        fill_checksum(&mut datagram, Ipv4Addr::new(192, 0, 2, 1), Ipv4Addr::new(198, 51, 100, 7));
        let words = [0xc000u32, 0x0201, 0xc633, 0x6407, 17, 11, 21820, 3478, 11, 0x6162, 0x6300];
        let mut sum: u32 = words.iter().sum();
        sum = (sum & 0xffff) + (sum >> 16);
        sum = (sum & 0xffff) + (sum >> 16);
        assert_eq!(datagram[6..8], (!(sum as u16)).to_be_bytes());
    }

    #[test]
    fn what_is_encoded_decodes() {
        let datagram = encode(1, 65535, b"payload").unwrap();
        assert_eq!(decode(&datagram), Some((1, 65535, &b"payload"[..])));
        assert!(encode(1, 2, &[0; MAX_PAYLOAD + 1]).is_none());
    }

    #[test]
    fn lengths_that_lie_are_refused_and_padding_is_cut() {
        let mut datagram = encode(1, 2, b"payload").unwrap();
        datagram.push(0);
        assert_eq!(decode(&datagram).map(|d| d.2), Some(&b"payload"[..]));
        for length in [0, 7, 17, 65535u16] {
            datagram[4..6].copy_from_slice(&length.to_be_bytes());
            assert_eq!(decode(&datagram), None, "{length}");
        }
        assert_eq!(decode(&datagram[..5]), None);
        assert_eq!(inside_ipv4(&[0x4f, 0, 0]), None);
        assert_eq!(inside_ipv4(&[]), None);
    }

    #[test]
    fn merged_datagrams_are_cut_where_the_first_one_ends() {
        let mut merged = vec![0, 1, 0, 4];
        merged.extend([7; 20]);
        merged.extend([8; 24]);
        merged.extend([9; 10]);
        let lengths: Vec<_> = segments(&merged).map(<[u8]>::len).collect();
        assert_eq!(lengths, [24, 24, 10]);
        assert_eq!(segments(&merged[..24]).count(), 1);
        assert_eq!(segments(&[]).count(), 0);
    }
}
