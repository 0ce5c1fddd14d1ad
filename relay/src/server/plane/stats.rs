//! What became of every datagram.

/// What became of a datagram, or of what came by a channel. The label of a metric, so the list is closed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Outcome {
    /// Sent on to the partner.
    Forwarded,
    /// A BIND that was answered with a CHALLENGE.
    Challenged,
    /// An ANSWER that was answered with a BOUND.
    Bound,
    /// A leg that has become its node's channel.
    Attached,
    /// From a source that has no leg on this port.
    UnknownSource,
    /// From a bound leg whose partner's is not.
    HalfBound,
    /// The same, and an initiation: it is forwarded when the partner's leg is bound, unless another one comes before.
    Kept,
    /// Beyond the rate of the node or the pair.
    OverRate,
    /// Neither a WireGuard message nor a relay message from a node.
    Unfit,
    /// For an allocation that is not there, or not on this port: a relay message, or what came by a channel.
    UnknownAllocation,
    /// A relay message from a source that no leg may have.
    BadSource,
    /// A relay message that does not authenticate.
    Forged,
    /// An authentic relay message whose counter was used before.
    Replayed,
    /// An ANSWER whose token was made for another source or BIND, or is too old.
    BadToken,
    /// More relay messages of one leg than it may send.
    OverBudget,
    /// By a channel that is not the leg that the packet is for.
    NotAttached,
}

impl Outcome {
    /// Every outcome.
    pub const ALL: [Self; 16] = [
        Self::Forwarded,
        Self::Challenged,
        Self::Bound,
        Self::Attached,
        Self::UnknownSource,
        Self::HalfBound,
        Self::Kept,
        Self::OverRate,
        Self::Unfit,
        Self::UnknownAllocation,
        Self::BadSource,
        Self::Forged,
        Self::Replayed,
        Self::BadToken,
        Self::OverBudget,
        Self::NotAttached,
    ];

    /// The value of the metric's label.
    #[must_use]
    pub const fn label(self) -> &'static str {
        match self {
            Self::Forwarded => "forwarded",
            Self::Challenged => "challenged",
            Self::Bound => "bound",
            Self::Attached => "attached",
            Self::UnknownSource => "unknown_source",
            Self::HalfBound => "half_bound",
            Self::Kept => "kept",
            Self::OverRate => "over_rate",
            Self::Unfit => "unfit",
            Self::UnknownAllocation => "unknown_allocation",
            Self::BadSource => "bad_source",
            Self::Forged => "forged",
            Self::Replayed => "replayed",
            Self::BadToken => "bad_token",
            Self::OverBudget => "over_budget",
            Self::NotAttached => "not_attached",
        }
    }
}

/// Counters since the start, and sizes now.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Stats {
    datagrams: [u64; Outcome::ALL.len()],
    /// Bytes sent on to partners.
    pub forwarded_bytes: u64,
    /// Events that were dropped because the control channel did not take them.
    pub lost_events: u64,
    /// Relay messages and kept initiations that were dropped because the shell did not take them.
    pub lost_transmits: u64,
    /// Nodes that were not admitted because there are [`super::MAX_NODES`].
    pub refused_nodes: u64,
    /// Nodes now.
    pub nodes: usize,
    /// Allocations now.
    pub allocations: usize,
    /// Bound legs now.
    pub bound_legs: usize,
    /// Those of them that are channels.
    pub attached_legs: usize,
}

impl Stats {
    /// Datagrams with this outcome.
    #[must_use]
    pub const fn datagrams(&self, outcome: Outcome) -> u64 {
        self.datagrams[outcome as usize]
    }

    pub(super) fn count(&mut self, outcome: Outcome, datagrams: usize) {
        self.datagrams[outcome as usize] += datagrams as u64;
    }
}
