//! What goes by the relays' control channels.

use wire::control::ToRelay;

use crate::relay::RelayId;

/// A message for a relay. The shell hands it on as it is, or drops it when there is no channel.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Control {
    /// To which.
    pub relay: RelayId,
    /// What to say.
    pub message: ToRelay,
}
