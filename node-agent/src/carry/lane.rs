//! The way into one relay's channel, while there is one. What the channel does not take in time it drops, the oldest of a pair first and
//! handshakes last; nothing waits here.

use std::sync::{PoisonError, RwLock};
use wire::relay::AllocationId;

/// Packets that a channel holds of one pair, which leave behind whatever else it says.
pub use channel::LANE_PACKETS;

/// Where packets of WireGuard go into an open channel.
pub trait Outlet: Send + Sync {
    /// Hands packets of one pair over. Returns how many were dropped, those or older ones; `None` when the channel has ended.
    fn offer(&self, allocation: AllocationId, packets: &mut dyn Iterator<Item = &[u8]>) -> Option<usize>;
}

impl Outlet for channel::Outlet {
    fn offer(&self, allocation: AllocationId, packets: &mut dyn Iterator<Item = &[u8]>) -> Option<usize> {
        channel::Outlet::offer(self, packets.map(|packet| (allocation, packet))).ok()
    }
}

/// The way into the channel to one relay, over all channels that there are one after the other.
#[derive(Default)]
pub struct Lane(RwLock<Option<Box<dyn Outlet>>>);

impl Lane {
    /// There is a channel.
    pub fn open(&self, outlet: Box<dyn Outlet>) {
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = Some(outlet);
    }

    /// There is none any more.
    pub fn close(&self) {
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = None;
    }

    /// As [`Outlet::offer`].
    pub(super) fn offer(&self, allocation: AllocationId, packets: &mut dyn Iterator<Item = &[u8]>) -> Option<usize> {
        self.0.read().unwrap_or_else(PoisonError::into_inner).as_ref()?.offer(allocation, packets)
    }
}
