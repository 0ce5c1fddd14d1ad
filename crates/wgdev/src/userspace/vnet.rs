//! The header that a TUN interface with `IFF_VNET_HDR` puts before each packet (`linux/virtio_net.h`).

/// Bytes of the header; set at every attach because the kernel remembers it per interface.
pub(super) const HEADER_LEN: usize = 10;

const NEEDS_CHECKSUM: u8 = 1;
const GSO_NONE: u8 = 0;
const GSO_TCP4: u8 = 1;
const GSO_TCP6: u8 = 4;
const GSO_UDP: u8 = 5;
/// Set beside the type when the packets carry ECN; splitting handles CWR in any case.
const GSO_ECN: u8 = 0x80;

/// What is to be cut out of, or was put together into, one packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Gso {
    /// Nothing: one packet.
    None,
    /// TCP segments.
    Tcp {
        /// Over IPv6.
        v6: bool,
    },
    /// UDP datagrams.
    Udp,
}

/// The header, in host form.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct VnetHeader {
    /// Where the transport header starts, and the checksum within it, if the checksum is unfinished.
    pub(super) checksum: Option<(u16, u16)>,
    pub(super) gso: Gso,
    /// Payload bytes of each segment.
    pub(super) segment: u16,
    /// Bytes of all headers; a hint only when read.
    pub(super) headers: u16,
}

impl VnetHeader {
    /// A header that says nothing.
    pub(super) const PLAIN: [u8; HEADER_LEN] = [0; HEADER_LEN];

    /// Splits a read into header and packet.
    pub(super) fn parse(read: &mut [u8]) -> Option<(Self, &mut [u8])> {
        let (header, packet) = read.split_first_chunk_mut::<HEADER_LEN>()?;
        let field = |at: usize| u16::from_ne_bytes([header[at], header[at + 1]]);
        let gso = match header[1] & !GSO_ECN {
            GSO_NONE => Gso::None,
            GSO_TCP4 => Gso::Tcp { v6: false },
            GSO_TCP6 => Gso::Tcp { v6: true },
            GSO_UDP => Gso::Udp,
            _ => return None,
        };
        let checksum = (header[0] & NEEDS_CHECKSUM != 0).then(|| (field(6), field(8)));
        let header = Self { checksum, gso, segment: field(4), headers: field(2) };
        Some((header, packet))
    }

    pub(super) fn encode(&self) -> [u8; HEADER_LEN] {
        let (flags, start, offset) = match self.checksum {
            Some((start, offset)) => (NEEDS_CHECKSUM, start, offset),
            None => (0, 0, 0),
        };
        let gso = match self.gso {
            Gso::None => GSO_NONE,
            Gso::Tcp { v6: false } => GSO_TCP4,
            Gso::Tcp { v6: true } => GSO_TCP6,
            Gso::Udp => GSO_UDP,
        };
        let mut header = Self::PLAIN;
        header[0] = flags;
        header[1] = gso;
        for (at, value) in [(2, self.headers), (4, self.segment), (6, start), (8, offset)] {
            header[at..at + 2].copy_from_slice(&value.to_ne_bytes());
        }
        header
    }
}
