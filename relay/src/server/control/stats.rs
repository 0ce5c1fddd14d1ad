//! What happened on the control channel.

use wire::control::DeniedReason;

/// What a member asked for and did not get. The label of a metric, so the list is closed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Refusal {
    /// To hear of itself, or of more nodes than there may be.
    Meet,
    /// A signal to a node that it has not met.
    NotMet,
    /// More signals than it may send.
    SignalRate,
    /// A stray packet to an address that is not its own, or that none goes to.
    StrayAddress,
    /// More stray packets than it may have.
    StrayRate,
    /// News of a pair for a node that has not asked about the partner.
    Offer,
    /// A packet that was not handed to the data plane.
    Data,
}

impl Refusal {
    /// Every refusal.
    pub const ALL: [Self; 7] =
        [Self::Meet, Self::NotMet, Self::SignalRate, Self::StrayAddress, Self::StrayRate, Self::Offer, Self::Data];

    /// The value of the metric's label.
    #[must_use]
    pub const fn label(self) -> &'static str {
        match self {
            Self::Meet => "meet",
            Self::NotMet => "not_met",
            Self::SignalRate => "signal_rate",
            Self::StrayAddress => "stray_address",
            Self::StrayRate => "stray_rate",
            Self::Offer => "offer",
            Self::Data => "data",
        }
    }
}

/// Reasons for ending a session, as labels of a metric.
const DENIED: [(DeniedReason, &str); 5] = [
    (DeniedReason::NotAdmitted, "not_admitted"),
    (DeniedReason::Replaced, "replaced"),
    (DeniedReason::Version, "version"),
    (DeniedReason::Full, "full"),
    (DeniedReason::Protocol, "protocol"),
];

/// Counters since the start, and sizes now.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Stats {
    /// Sessions of members now.
    pub sessions: usize,
    /// Channels now that have not said Hello.
    pub newcomers: usize,
    /// Members now.
    pub members: usize,
    /// Sessions that were welcomed.
    pub welcomed: u64,
    /// Signals that were handed on.
    pub signals: u64,
    /// Stray packets that were sent.
    pub strays: u64,
    refused: [u64; Refusal::ALL.len()],
    denied: [u64; DENIED.len()],
}

impl Stats {
    /// How often this was refused.
    #[must_use]
    pub const fn refusals(&self, refusal: Refusal) -> u64 {
        self.refused[refusal as usize]
    }

    /// How often sessions were ended by this side, by reason.
    pub fn denials(&self) -> impl Iterator<Item = (&'static str, u64)> + use<'_> {
        DENIED.iter().zip(self.denied).map(|(&(_, label), count)| (label, count))
    }

    pub(super) fn refused(&mut self, refusal: Refusal) {
        self.refused[refusal as usize] += 1;
    }

    pub(super) fn denied(&mut self, reason: DeniedReason) {
        if let Some(at) = DENIED.iter().position(|(known, _)| *known == reason) {
            self.denied[at] += 1;
        }
    }
}
