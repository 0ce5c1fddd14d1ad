//! UDP by hand: raw sockets carry the header too.

use std::net::Ipv4Addr;

use wire::relay;

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
    let addresses = checksum::sum(&source.octets()) + checksum::sum(&destination.octets());
    let sum = pseudo_header(addresses, datagram.len()) + checksum::sum(datagram);
    datagram[CHECKSUM_AT..HEADER_LEN].copy_from_slice(&checksum::transport(sum));
}

/// Sum of the pseudo header (RFC 768), given that of the addresses and the bytes of header and payload.
fn pseudo_header(addresses: u64, length: usize) -> u64 {
    addresses + checksum::sum(&[0, UDP]) + checksum::sum(&(length as u16).to_be_bytes())
}

/// Source port, destination port and payload; `None` for what contradicts itself.
pub(super) fn decode(packet: &[u8]) -> Option<(u16, u16, &[u8])> {
    let field = |at: usize| packet.get(at..at + 2).map(|b| u16::from_be_bytes([b[0], b[1]]));
    let payload = packet.get(HEADER_LEN..usize::from(field(4)?))?;
    Some((field(0)?, field(2)?, payload))
}

/// The UDP packet inside an IPv4 packet, unless its checksum is wrong: the kernel verifies that for its own sockets of UDP
/// and for raw ones of IPv6, and hands this packet over as it came in.
pub(super) fn inside_ipv4(packet: &[u8]) -> Option<&[u8]> {
    const ADDRESSES: std::ops::Range<usize> = 12..20;
    let words = packet.first()? & 0xf;
    let udp = packet.get(usize::from(words) * 4..)?;
    is_intact(checksum::sum(packet.get(ADDRESSES)?), udp).then_some(udp)
}

/// Whether the checksum is right, or one that can't be: zero says that there is none, and what a sender on this machine or
/// a receiver's merging has left for a network card to complete is the sum of the pseudo header. Of what was merged as a
/// list, the first datagram's checksum stands for all; whoever merged them had verified each.
fn is_intact(addresses: u64, udp: &[u8]) -> bool {
    let (Some((.., payload)), Some(stored)) = (decode(udp), udp.get(CHECKSUM_AT..HEADER_LEN)) else {
        return false;
    };
    let unfinished = checksum::fold(pseudo_header(addresses, HEADER_LEN + payload.len())).to_ne_bytes();
    let is_right = |payload: &[u8]| {
        let length = HEADER_LEN + payload.len();
        let header = checksum::sum(&udp[..4]) + checksum::sum(&(length as u16).to_be_bytes()) + checksum::sum(stored);
        checksum::fold(pseudo_header(addresses, length) + header + checksum::sum(payload)) == 0xffff
    };
    stored == [0; 2] || stored == unfinished || is_right(payload) || segments(payload).next().is_some_and(is_right)
}

/// The datagrams in what arrived as one: a local sender's segmented send, or a receiver's merging, reaches a raw
/// socket whole and without its segment size. The first of them tells it, by the length in its STUN header or by being a
/// relay's, because all segments but the last are equally long.
pub(super) fn segments(payload: &[u8]) -> impl Iterator<Item = &[u8]> {
    const STUN_HEADER: usize = 20;
    let segment = match payload {
        [kind, ..] if relay::KINDS.contains(kind) => relay::MESSAGE_LEN,
        [_, _, high, low, ..] => STUN_HEADER + usize::from(u16::from_be_bytes([*high, *low])),
        _ => STUN_HEADER,
    };
    payload.chunks(segment)
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
        assert_eq!(inside_ipv4(&[0x45; 20]), None);
    }

    #[test]
    fn merged_messages_of_relays_are_as_long_as_one_is() {
        let message = [0x82; relay::MESSAGE_LEN];
        let merged = message.repeat(3);
        assert!(segments(&merged).eq([&message[..]; 3]));
        assert!(segments(&merged[..100]).eq([&merged[..80], &merged[80..100]]));
        assert_eq!(segments(&[0, 1]).count(), 1);
    }

    const ADDRESSES: [u8; 8] = [192, 0, 2, 1, 198, 51, 100, 7];

    /// An IPv4 packet with this datagram in it, whose checksum is made for as much of it.
    fn ipv4(datagram: &[u8], of: usize) -> Vec<u8> {
        let mut part = encode(21820, 3478, &datagram[HEADER_LEN..of]).unwrap();
        fill_checksum(&mut part, Ipv4Addr::new(192, 0, 2, 1), Ipv4Addr::new(198, 51, 100, 7));
        let mut packet = vec![0; 12];
        packet[0] = 0x45;
        packet.extend(ADDRESSES);
        packet.extend(datagram);
        packet[20 + CHECKSUM_AT..20 + HEADER_LEN].copy_from_slice(&part[CHECKSUM_AT..HEADER_LEN]);
        packet
    }

    #[test]
    fn any_flipped_bit_is_noticed() {
        let datagram = encode(21820, 3478, b"an odd payload!").unwrap();
        let whole = ipv4(&datagram, datagram.len());
        assert_eq!(inside_ipv4(&whole).map(decode), Some(Some((21820, 3478, &b"an odd payload!"[..]))));
        // The addresses are covered too.
        for bit in 12 * 8..whole.len() * 8 {
            let mut flipped = whole.clone();
            flipped[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(inside_ipv4(&flipped), None, "bit {bit}");
        }
    }

    #[test]
    fn checksums_that_are_none_and_those_of_merged_datagrams_pass() {
        let stun = [&[0, 1, 0, 4][..], &[7; 20]].concat();
        let merged = encode(21820, 3478, &stun.repeat(3)).unwrap();
        assert_eq!(merged.len(), HEADER_LEN + 72);
        assert!(inside_ipv4(&ipv4(&merged, HEADER_LEN + 24)).is_some(), "the first one's");
        assert_eq!(inside_ipv4(&ipv4(&merged, HEADER_LEN + 48)), None);
        let mut packet = ipv4(&merged, merged.len());
        packet[26..28].fill(0);
        assert!(inside_ipv4(&packet).is_some(), "none");
        let pseudo_header: u32 = [0xc000, 0x0201, 0xc633, 0x6407, 17, 80].iter().sum();
        let folded = (pseudo_header & 0xffff) + (pseudo_header >> 16);
        packet[26..28].copy_from_slice(&(folded as u16).to_be_bytes());
        assert!(inside_ipv4(&packet).is_some(), "left for the network card");
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
