//! Packets that came together, in one piece of memory.

use std::ops::Range;

use wire::relay::AllocationId;

/// What a packet costs beside its bytes when packets are counted out.
pub const PACKET_COST: usize = 256;

/// Cost of packets that are taken together: a turn of one channel, after which others have theirs.
pub const PACKETS_COST: usize = 64 * 1024;

/// Packets of one channel, in the order in which they came.
#[derive(Debug, Default)]
pub struct Packets {
    bytes: Vec<u8>,
    /// Whose each is, and where it ends.
    ends: Vec<(AllocationId, usize)>,
}

impl Packets {
    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.ends.is_empty()
    }

    /// How many there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.ends.len()
    }

    /// All of them in one piece, one after the other as [`Self::iter`] has them.
    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// Whose each is, and where it lies in [`Self::bytes`].
    pub fn ranges(&self) -> impl Iterator<Item = (AllocationId, Range<usize>)> {
        let starts = std::iter::once(0).chain(self.ends.iter().map(|(_, end)| *end));
        self.ends.iter().zip(starts).map(|((allocation, end), start)| (*allocation, start..*end))
    }

    /// All of them.
    pub fn iter(&self) -> impl Iterator<Item = (AllocationId, &[u8])> {
        self.ranges().map(|(allocation, range)| (allocation, &self.bytes[range]))
    }

    /// Adds one behind the others.
    pub fn push(&mut self, allocation: AllocationId, packet: &[u8]) {
        self.bytes.extend_from_slice(packet);
        self.ends.push((allocation, self.bytes.len()));
    }

    pub(crate) fn is_full(&self) -> bool {
        self.bytes.len() + self.ends.len() * PACKET_COST >= PACKETS_COST
    }
}
