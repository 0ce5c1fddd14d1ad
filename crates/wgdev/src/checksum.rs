//! The Internet checksum (RFC 1071), summed in native byte order: the order matters only when the
//! result is stored, and it is stored natively too.

/// Sum of the bytes as 16-bit words, not yet folded.
pub(crate) fn sum(bytes: &[u8]) -> u64 {
    let (blocks, rest) = bytes.as_chunks::<32>();
    let mut lanes = [0u64; 8];
    for block in blocks {
        // Plain indexing: this is the hottest loop outside the ciphers, and it becomes four vector additions.
        let mut lane = 0;
        while lane < 8 {
            let at = lane * 4;
            let word = [block[at], block[at + 1], block[at + 2], block[at + 3]];
            lanes[lane] += u32::from_ne_bytes(word) as u64;
            lane += 1;
        }
    }
    let mut total = lanes.iter().sum();
    let (words, last) = rest.as_chunks::<2>();
    for word in words {
        total += u64::from(u16::from_ne_bytes(*word));
    }
    if let [last] = last {
        total += u64::from(u16::from_ne_bytes([*last, 0]));
    }
    total
}

/// Folds a sum into 16 bits.
pub(crate) fn fold(mut sum: u64) -> u16 {
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    // The loop ends with at most 16 bits set.
    sum as u16
}

/// Sum of the pseudo header of TCP or UDP in this IP packet.
pub(crate) fn pseudo_header(packet: &[u8], v6: bool, protocol: u8, length: usize) -> u64 {
    let addresses = if v6 { &packet[8..40] } else { &packet[12..20] };
    let length = u32::try_from(length).unwrap_or(u32::MAX).to_be_bytes();
    sum(addresses) + sum(&[0, protocol]) + sum(&length)
}

/// Stores the header checksum of an IPv4 header.
pub(crate) fn fill_ipv4(header: &mut [u8]) {
    header[10..12].fill(0);
    let checksum = !fold(sum(header));
    header[10..12].copy_from_slice(&checksum.to_ne_bytes());
}

/// The checksum of TCP or UDP for this sum; zero means "none" in UDP, so it becomes its equal.
pub(crate) fn transport(sum: u64) -> [u8; 2] {
    match !fold(sum) {
        0 => [0xff; 2],
        checksum => checksum.to_ne_bytes(),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// The example of RFC 1071, section 3.
    #[test]
    fn rfc_1071_example() {
        let folded = fold(sum(&[0x00, 0x01, 0xf2, 0x03, 0xf4, 0xf5, 0xf6, 0xf7]));
        assert_eq!(folded.to_ne_bytes(), [0xdd, 0xf2]);
    }

    proptest! {
        #[test]
        fn agrees_with_word_by_word(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
            let mut plain = 0u64;
            for word in bytes.chunks(2) {
                let low = word.get(1).copied().unwrap_or(0);
                plain += u64::from(u16::from_be_bytes([word[0], low]));
            }
            prop_assert_eq!(fold(sum(&bytes)).to_ne_bytes(), fold(plain).to_be_bytes());
        }
    }
}
