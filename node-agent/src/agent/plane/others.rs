//! What other programs do to the peers of the kernel's device: nobody announces it, so it is looked for, and undone like any
//! other difference.

use super::{Plane, applying};
use std::{
    sync::Arc,
    time::{Duration, Instant},
};
use wgdev::{Backend, DeviceError, PeerStatus};

/// Between two looks at all peers.
const LOOK: Duration = Duration::from_secs(5);
/// A peer takes microseconds to look at: the more there are, the longer the next look waits ..
const LOOK_PER_PEER: Duration = Duration::from_millis(6);
/// .. but not longer than this. By their number and not by the clock, which a busy machine makes run fast.
const LOOK_LAST: Duration = Duration::from_secs(30);

impl Plane {
    /// Whether the peers are to be looked at, which nobody but this process can change in its own device.
    pub(super) fn look_is_due(&self, now: Instant) -> bool {
        self.backend() == Backend::Kernel && self.look_at <= now
    }

    /// All peers of the device, after noting which of them are others than were applied.
    pub(super) async fn look(&mut self, now: Instant) -> Result<Vec<PeerStatus>, DeviceError> {
        let found = self.device.peers().await?;
        let peers = u32::try_from(found.len()).unwrap_or(u32::MAX);
        self.look_at = now + LOOK_PER_PEER.saturating_mul(peers).clamp(LOOK, LOOK_LAST);
        if self.revision.is_some() && self.note_differences(&found) {
            tracing::warn!("another program changed peers of the mesh device; putting them back");
            // Whoever is asked to apply the plan next finds out by itself what that takes.
            self.revision = None;
            self.news.meddled = true;
        }
        Ok(found)
    }

    /// Takes what the device has for what was applied, where it is something else. Strangers are left-over peers from now on.
    fn note_differences(&mut self, found: &[PeerStatus]) -> bool {
        let mut differs = false;
        for status in found.iter().filter(|status| !self.refused.contains(&status.public_key)) {
            let same = match self.peers.get(&status.public_key) {
                Some(peer) => peer.allowed_ips == status.allowed_ips,
                None => self.leftover.contains_key(&status.public_key),
            };
            if !same {
                let peers =
                    if self.peers.contains_key(&status.public_key) { &mut self.peers } else { &mut self.leftover };
                peers.insert(status.public_key, Arc::new(applying::plan_of(status)));
                differs = true;
            }
        }
        if found.len() < self.peers.len() + self.leftover.len() {
            let is_there = |key: &_| found.binary_search_by_key(key, |status| status.public_key).is_ok();
            let before = self.peers.len();
            self.peers.retain(|key, _| self.refused.contains(key) || is_there(key));
            differs |= self.peers.len() < before;
            self.leftover.retain(|key, _| is_there(key));
        }
        differs
    }
}
