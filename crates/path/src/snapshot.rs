//! The whole state in plain values, for `status`, `why` and tests.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use wire::PublicKey;

use crate::candidate::{CandidateKind, Tier};
use crate::event::PathState;
use crate::nat::{NatClass, NatReport};
use crate::relay::RelayId;

/// Everything there is to show.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Snapshot {
    /// What this node's NATs are.
    pub nat: NatReport,
    /// Whether a stranger's packet moves this node's port towards him, if that was found out.
    pub poisonable: Option<bool>,
    /// Every peer.
    pub peers: BTreeMap<PublicKey, PeerReport>,
}

/// How one peer is reached, and what was tried.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PeerReport {
    /// The state, with the reason if it is not direct.
    pub state: PathState,
    /// Since when it is shown.
    pub since: Option<Instant>,
    /// Whether this node chooses the path of the pair.
    pub nominates: bool,
    /// Whether this node wants a path.
    pub wanted: bool,
    /// Where WireGuard was pointed.
    pub endpoint: Option<SocketAddr>,
    /// When the path in use last became another one.
    pub last_switch: Option<Instant>,
    /// What the peer last said about its NAT, if it ever signalled.
    pub nat: Option<PeerNat>,
    /// The pairs, by address.
    pub pairs: Vec<PairReport>,
    /// The relays where this node and the peer have met.
    pub met: Vec<RelayId>,
    /// The legs on relays, the older first.
    pub legs: Vec<LegReport>,
}

/// This node's end of the pair on one relay.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LegReport {
    /// Which relay.
    pub relay: RelayId,
    /// Where WireGuard is pointed to use it, once that was told: the relay's address and the pair's port on it, or for a leg that is the
    /// relay's channel its loopback address.
    pub endpoint: Option<SocketAddr>,
    /// Whether it is the relay's channel, because nothing answers by UDP.
    pub carried: bool,
    /// How far it is.
    pub phase: LegPhase,
}

/// How far a leg is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum LegPhase {
    /// The relay was asked, or will be.
    Wanted,
    /// The relay named a port, which is not bound.
    Binding,
    /// This node's leg is bound, the peer's not yet.
    Bound,
    /// Packets pass.
    Ready,
}

impl LegPhase {
    /// The name that users see.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Wanted => "wanted",
            Self::Binding => "binding",
            Self::Bound => "bound",
            Self::Ready => "ready",
        }
    }
}

/// A peer's NAT in its own words.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PeerNat {
    /// Its class for IPv4.
    pub class: NatClass,
    /// Whether a stranger's packet may move its port.
    pub poisonable: bool,
}

/// What became of one pair.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PairReport {
    /// The peer's address.
    pub remote: SocketAddr,
    /// How it became known.
    pub kind: CandidateKind,
    /// The class of the path.
    pub tier: Tier,
    /// PINGs sent there.
    pub sent: u32,
    /// PONGs received from there.
    pub answered: u32,
    /// The peer's PINGs that came from there.
    pub heard: u32,
    /// Smoothed round-trip time.
    pub rtt: Option<Duration>,
    /// The result so far.
    pub outcome: PairOutcome,
}

/// The result of probing a pair.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum PairOutcome {
    /// The path in use.
    Selected,
    /// Works, and something better is in use.
    Proven,
    /// Carries probes and not WireGuard.
    DataBlocked,
    /// Nothing came back.
    NoAnswer,
    /// Nothing was sent.
    NotTried,
}

impl PairOutcome {
    /// The name that users see.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Selected => "selected",
            Self::Proven => "proven",
            Self::DataBlocked => "data blocked",
            Self::NoAnswer => "no answer",
            Self::NotTried => "not tried",
        }
    }
}
