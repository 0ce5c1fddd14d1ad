//! One open channel.

use std::collections::{BTreeSet, VecDeque};
use std::net::SocketAddr;
use std::time::Instant;

use wire::PublicKey;
use wire::stun::TransactionId;

use super::Identity;
use super::limits::{SIGNAL_BURST, SIGNAL_PERIOD};
use crate::server::Budget;

/// One that has not said Hello.
#[derive(Debug)]
pub(super) struct Newcomer {
    pub(super) identity: Identity,
    pub(super) hello_by: Instant,
}

/// One of a member.
#[derive(Debug)]
pub(super) struct Session {
    pub(super) node: PublicKey,
    pub(super) identity: Identity,
    /// Whom it asks about.
    pub(super) meets: BTreeSet<PublicKey>,
    /// With whom it wants a leg. The data plane answers each wish and refuses those beyond its ports, so this stays as small as those.
    pub(super) wants: BTreeSet<PublicKey>,
    /// Whether legs may be this channel.
    pub(super) has_attached: bool,
    pub(super) signals: Budget,
    /// Stray packets that wait, and when the next may leave.
    pub(super) strays: VecDeque<(SocketAddr, TransactionId)>,
    pub(super) next_stray_at: Instant,
}

impl Session {
    pub(super) fn new(node: PublicKey, identity: Identity, now: Instant) -> Self {
        Self {
            node,
            identity,
            meets: BTreeSet::new(),
            wants: BTreeSet::new(),
            has_attached: false,
            signals: Budget::new(SIGNAL_PERIOD, SIGNAL_BURST, now),
            strays: VecDeque::new(),
            next_stray_at: now,
        }
    }
}
