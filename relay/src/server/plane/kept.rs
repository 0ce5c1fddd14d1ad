//! What a leg says before its partner is there to hear it.
//!
//! Who begins handshakes begins one with the ANSWER that binds its leg, and does not wait to be told that the partner's is bound too: that
//! would be half a round trip of the pair's. Of all data this alone is kept, the last initiation of each leg, and sent on when the partner
//! has consented.

use wire::relay::{INITIATION_LEN, Side, is_initiation};

use super::limits::MAX_TRANSMITS;
use super::table::LegRef;
use super::{Kept, Outcome, Plane};

impl Plane {
    /// Takes a datagram that may be forwarded from a leg whose partner's is not bound.
    pub(super) fn keep(&mut self, from: LegRef, datagram: &[u8]) -> Outcome {
        let initiation = datagram.try_into().ok().filter(|_| is_initiation(datagram));
        match (initiation, self.allocations.get_mut(from.slot)) {
            (Some(initiation), Some(allocation)) => {
                allocation.leg_mut(from.side).kept = Some(Box::new(initiation));
                Outcome::Kept
            }
            _ => Outcome::HalfBound,
        }
    }

    /// Both legs are bound: what they have said before goes on, as far as rates allow.
    pub(super) fn pass_kept(&mut self, slot: u32) {
        for side in Side::BOTH {
            let Some(allocation) = self.allocations.get_mut(slot) else { return };
            let kept = allocation.leg_mut(side).kept.take();
            let (Some(message), Some(to)) = (kept, allocation.leg(side.other()).bound) else { continue };
            let kept = Kept { to, port: allocation.port, allocation: allocation.id, message };
            let admitted = self.pace(LegRef { slot, side }, 1, INITIATION_LEN, INITIATION_LEN, self.now);
            if admitted == 0 {
                self.stats.count(Outcome::OverRate, 1);
            } else if self.kept.len() >= MAX_TRANSMITS {
                self.stats.lost_transmits += 1;
            } else {
                self.stats.count(Outcome::Forwarded, 1);
                self.stats.forwarded_bytes += INITIATION_LEN as u64;
                self.kept.push_back(kept);
            }
        }
    }
}
