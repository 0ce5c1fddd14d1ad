//! What the data plane has to say to nodes.

use wire::PublicKey;
use wire::control::{Leg, ToNode};

use super::{Refusal, Sessions};
use crate::server::plane::{Event, News};

impl Sessions {
    /// Passes news on to who is here and has asked about the partner, or for the pair. Others hear nothing: an offer of a node that
    /// nobody asked about is no reason to wake anybody.
    pub(super) fn news(&mut self, event: Event) {
        let [to, partner] = [event.to, event.partner].map(|id| PublicKey::from_bytes(id.0));
        let Some(&id) = self.by_node.get(&to) else { return };
        let Some(session) = self.sessions.get_mut(&id) else { return };
        let is_known = session.meets.contains(&partner) || session.wants.contains(&partner);
        if matches!(event.news, News::Refused(_) | News::Released(_)) {
            session.wants.remove(&partner);
        }
        if !is_known {
            return self.stats.refused(Refusal::Offer);
        }
        let message = match event.news {
            News::Allocated { allocation, side, port, key, counter } => {
                ToNode::Allocated { partner, leg: Leg { allocation, side, port, key, counter } }
            }
            News::Refused(reason) => ToNode::Refused { partner, reason },
            // BOUND has told the node itself, by the way that counts.
            News::Bound { .. } => return,
            News::Ready => ToNode::Ready(partner),
            News::Unbound => ToNode::Unbound(partner),
            News::Released(reason) => ToNode::Released { partner, reason },
        };
        self.say(id, message);
    }
}
