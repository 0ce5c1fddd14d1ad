//! MAPPED-ADDRESS and XOR-MAPPED-ADDRESS (RFC 8489, sections 14.1 and 14.2).

use std::net::{IpAddr, SocketAddr};

use super::{MAGIC_COOKIE, TransactionId};

/// Address families as the attribute writes them.
const FAMILY_IPV4: u8 = 1;
const FAMILY_IPV6: u8 = 2;

/// What the address is combined with: cookie, then transaction id; zeros for the plain attribute.
pub(super) struct Mask([u8; 16]);

impl Mask {
    pub(super) const PLAIN: Self = Self([0; 16]);

    pub(super) fn xor(tx: TransactionId) -> Self {
        let mut mask = [0; 16];
        mask[..4].copy_from_slice(&MAGIC_COOKIE);
        mask[4..].copy_from_slice(&tx.0);
        Self(mask)
    }

    fn port(&self) -> u16 {
        u16::from_be_bytes([self.0[0], self.0[1]])
    }

    fn apply<const N: usize>(&self, mut bytes: [u8; N]) -> [u8; N] {
        for (byte, mask) in bytes.iter_mut().zip(self.0) {
            *byte ^= mask;
        }
        bytes
    }
}

/// Appends the attribute's value.
pub(super) fn encode(address: SocketAddr, mask: &Mask, out: &mut Vec<u8>) {
    let family = if address.is_ipv4() { FAMILY_IPV4 } else { FAMILY_IPV6 };
    out.extend_from_slice(&[0, family]);
    out.extend_from_slice(&(address.port() ^ mask.port()).to_be_bytes());
    match address.ip() {
        IpAddr::V4(ip) => out.extend_from_slice(&mask.apply(ip.octets())),
        IpAddr::V6(ip) => out.extend_from_slice(&mask.apply(ip.octets())),
    }
}

/// Reads the attribute's value. `None` for another family or a length that is not the family's.
pub(super) fn decode(value: &[u8], mask: &Mask) -> Option<SocketAddr> {
    let (&[_, family, port_high, port_low], ip) = value.split_first_chunk::<4>()?;
    let ip = match family {
        FAMILY_IPV4 => IpAddr::from(mask.apply::<4>(ip.try_into().ok()?)),
        FAMILY_IPV6 => IpAddr::from(mask.apply::<16>(ip.try_into().ok()?)),
        _ => return None,
    };
    Some(SocketAddr::new(ip, u16::from_be_bytes([port_high, port_low]) ^ mask.port()))
}
