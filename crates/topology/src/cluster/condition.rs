//! Conditions and events: closed lists, with texts for people.

use crate::spec::AdmissionReason;

/// A condition of the operator on a `MeshNode`. `Admitted` is always there; the others are there, with status `True`,
/// only while there is something to say.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum ConditionType {
    /// Peers are told the key that the node shows now.
    Admitted,
    /// A mesh address or listen port was taken from the node because an older node holds it, or it lies outside the range.
    AddressReassigned,
    /// No mesh address is left.
    AddressPoolExhausted,
    /// A pod range is not carried.
    PodCIDRConflict,
    /// A node address is not carried because another node holds it.
    NodeIPConflict,
    /// A changed node address waits for an admin.
    NodeIPPending,
    /// A route is not carried.
    RouteConflict,
    /// Some advertised candidates are not passed on.
    CandidatesDropped,
    /// A cluster node and an external machine have the same name.
    NameConflict,
}

impl ConditionType {
    /// The condition's `type`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Admitted => "Admitted",
            Self::AddressReassigned => "AddressReassigned",
            Self::AddressPoolExhausted => "AddressPoolExhausted",
            Self::PodCIDRConflict => "PodCIDRConflict",
            Self::NodeIPConflict => "NodeIPConflict",
            Self::NodeIPPending => "NodeIPPending",
            Self::RouteConflict => "RouteConflict",
            Self::CandidatesDropped => "CandidatesDropped",
            Self::NameConflict => "NameConflict",
        }
    }

    /// The type of that name, for callers that read conditions back.
    pub fn parse(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.as_str() == name)
    }

    /// Every type.
    pub const ALL: [Self; 9] = [
        Self::Admitted,
        Self::AddressReassigned,
        Self::AddressPoolExhausted,
        Self::PodCIDRConflict,
        Self::NodeIPConflict,
        Self::NodeIPPending,
        Self::RouteConflict,
        Self::CandidatesDropped,
        Self::NameConflict,
    ];
}

/// Why: the condition's `reason`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Reason {
    /// The verdict on a key.
    Key(AdmissionReason),
    /// Another node holds it.
    HeldByOther,
    /// It lies outside the range that the mesh allows.
    OutOfRange,
    /// It overlaps a range of the mesh or of Services.
    OverlapsReserved,
    /// It is no range a tunnel may carry (loopback, link-local, multicast ..).
    NotCarriable,
    /// The range is used up.
    Exhausted,
    /// The node's addresses changed after they were taken.
    AddressChanged,
    /// Filtered out, for the reasons in the message.
    Filtered,
}

impl Reason {
    /// The reason of that name, for callers that read conditions back.
    pub fn parse(name: &str) -> Option<Self> {
        let others = [
            Self::HeldByOther,
            Self::OutOfRange,
            Self::OverlapsReserved,
            Self::NotCarriable,
            Self::Exhausted,
            Self::AddressChanged,
            Self::Filtered,
        ];
        AdmissionReason::parse(name)
            .map(Self::Key)
            .or_else(|| others.into_iter().find(|reason| reason.as_str() == name))
    }

    /// The name in objects.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Key(reason) => reason.as_str(),
            Self::HeldByOther => "HeldByOther",
            Self::OutOfRange => "OutOfRange",
            Self::OverlapsReserved => "OverlapsReserved",
            Self::NotCarriable => "NotCarriable",
            Self::Exhausted => "Exhausted",
            Self::AddressChanged => "AddressChanged",
            Self::Filtered => "Filtered",
        }
    }
}

/// One condition.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Condition {
    /// Its type.
    pub kind: ConditionType,
    /// `True` or `False`.
    pub status: bool,
    /// Why.
    pub reason: Reason,
    /// What was expected, what was found, what to do.
    pub message: String,
}

impl Condition {
    pub(crate) fn raised(kind: ConditionType, reason: Reason, message: String) -> Self {
        Self { kind, status: true, reason, message }
    }
}

/// A condition on `Mesh/default`, there (with status `True`) only while it holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MeshCondition {
    /// Its type.
    pub kind: MeshConditionType,
    /// What was expected, what was found, what to do.
    pub message: String,
}

/// The type of a condition on `Mesh/default`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum MeshConditionType {
    /// No new key is admitted, because any node could write any other node's status.
    NodeWritesUnprotected,
    /// The mesh ranges overlap each other or the Service ranges.
    RangesOverlap,
    /// The list of Nodes is empty although there are `MeshNode`s; nothing is retired.
    NodeListEmpty,
    /// More nodes than addresses.
    AddressPoolExhausted,
    /// The plan breaks an invariant: only revocations are written.
    PlanRefused,
}

impl MeshConditionType {
    /// The condition's `type`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::NodeWritesUnprotected => "NodeWritesUnprotected",
            Self::RangesOverlap => "RangesOverlap",
            Self::NodeListEmpty => "NodeListEmpty",
            Self::AddressPoolExhausted => "AddressPoolExhausted",
            Self::PlanRefused => "PlanRefused",
        }
    }
}

/// Something that happened to a node with this plan. Planning again after the plan was written yields no event.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Event {
    /// The node it is about.
    pub node: String,
    /// The event's `reason`.
    pub reason: EventReason,
    /// For people.
    pub message: String,
}

/// What happened.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum EventReason {
    /// The first key of a node was admitted.
    KeyAccepted,
    /// Another key took the place of the admitted one.
    KeyReplaced,
    /// An address or port was replaced.
    AddressReassigned,
    /// The node left the slices.
    PeerRemoved,
    /// A condition that needs attention appeared; its type begins the message.
    Conflict,
}

impl EventReason {
    /// The name in objects and metrics.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::KeyAccepted => "KeyAccepted",
            Self::KeyReplaced => "KeyReplaced",
            Self::AddressReassigned => "AddressReassigned",
            Self::PeerRemoved => "PeerRemoved",
            Self::Conflict => "Conflict",
        }
    }

    /// Whether somebody should look.
    pub fn is_warning(self) -> bool {
        matches!(self, Self::KeyReplaced | Self::AddressReassigned | Self::Conflict)
    }
}
