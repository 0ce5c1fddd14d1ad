//! The relays that this node knows, and the channels to them.

use std::collections::BTreeMap;
use std::fmt;
use std::net::IpAddr;
use std::time::Instant;

use blake2::{Blake2s256, Digest};
use wire::PublicKey;
use wire::control::{DeniedReason, ToNode, ToRelay};

/// Relays known at a time: three in use by a mesh, their successors during an upgrade, and external ones.
pub(crate) const MAX_RELAYS: usize = 8;
/// Addresses kept of one relay: two families, each with a private and a public one, twice.
const MAX_ADDRESSES: usize = 8;
/// Longest name of a failure domain in bytes: that of a label's value in Kubernetes.
pub const MAX_DOMAIN: usize = 63;
/// Separates this use of the hash from every other.
const PREFERENCE_LABEL: &[u8] = b"warren relay preference v1";

/// A relay, by the Ed25519 key with which it proves itself.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RelayId(pub [u8; 32]);

impl fmt::Display for RelayId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0[..4].iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for RelayId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// What the shell tells of the control channel to a relay.
#[derive(Debug, Clone)]
pub enum RelayNews {
    /// The channel is being made. What would be said over it waits, for a short while.
    Connecting {
        /// Where the relay's UDP ports are, best first: a session that the device kept is recognised as relayed by them.
        addresses: Vec<IpAddr>,
    },
    /// It carries messages. The engine speaks first, with Hello.
    Open {
        /// Where the relay's UDP ports are, best first.
        addresses: Vec<IpAddr>,
    },
    /// Said after [`RelayNews::Connecting`]: what it fails together with, such as a zone. Without a word of it a relay fails alone.
    Within {
        /// Its name, the same for all relays in it; at most [`MAX_DOMAIN`] bytes.
        domain: Option<String>,
    },
    /// Said after [`RelayNews::Open`] of a channel over TCP: one over UDP was tried as well, and did not come about in time.
    OverTcp {
        /// So it was with the channel before this one.
        again: bool,
    },
    /// It is gone, and not being made. What was not said over it yet is void.
    Closed,
    /// It is no relay of this mesh any more, and another may stand at its address.
    Removed,
    /// The relay has said this.
    Said(ToNode),
}

/// The state of a control channel.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub(crate) enum ControlChannel {
    /// There is nobody to talk to. Peers are probed without a word.
    #[default]
    Absent,
    /// It is being made.
    Connecting,
    /// It carries messages.
    Open,
}

#[derive(Debug, Default)]
pub(crate) struct Relay {
    pub(crate) channel: ControlChannel,
    pub(crate) addresses: Vec<IpAddr>,
    /// What it fails together with; itself, if that is not known.
    pub(crate) domain: Option<String>,
    /// Its channel is one over TCP.
    pub(crate) over_tcp: bool,
    /// And so was the one before it: UDP is not waited for.
    pub(crate) over_tcp_again: bool,
    /// When its channel was last to be made anew, although it seemed to be there.
    pub(crate) renewed: Option<Instant>,
    /// When it was last pinged.
    pub(crate) pinged: Option<Instant>,
    /// When it was asked for a sign of life, if it has not given one since.
    pub(crate) asked: Option<Instant>,
    /// Names the relay's process.
    pub(crate) boot: Option<u64>,
    /// It knows no such node and has never known one: this node is newer than the relay's list, and is let in within a moment. Whoever probes
    /// meanwhile without order spoils the ports of both for half a minute.
    pub(crate) is_early: bool,
    /// It is about to end.
    pub(crate) drains: bool,
    /// Whom to meet, or to meet no longer, as soon as the queue has room: after a start that is everybody.
    unsaid: BTreeMap<PublicKey, bool>,
}

impl Relay {
    fn is_open(&self) -> bool {
        self.channel == ControlChannel::Open
    }
}

#[derive(Debug, Default)]
pub(crate) struct Relays {
    known: BTreeMap<RelayId, Relay>,
    /// Whether there may be others that nobody has named yet.
    pub(crate) unknown: bool,
}

impl Relays {
    pub(crate) fn get(&self, id: &RelayId) -> Option<&Relay> {
        self.known.get(id)
    }

    /// A relay to change, made known if there is room: one without a channel gives its place up.
    pub(crate) fn entry(&mut self, id: RelayId) -> Option<&mut Relay> {
        if !self.known.contains_key(&id) && self.known.len() >= MAX_RELAYS {
            let idle = self.known.iter().find(|(_, relay)| relay.channel == ControlChannel::Absent);
            let idle = idle.map(|(id, _)| *id)?;
            self.known.remove(&idle);
        }
        Some(self.known.entry(id).or_default())
    }

    /// A relay that is none any more.
    pub(crate) fn remove(&mut self, id: &RelayId) {
        self.known.remove(id);
    }

    /// Whether a relay is to be left: it is about to end, or is none any more.
    pub(crate) fn is_ending(&self, id: &RelayId) -> bool {
        self.known.get(id).is_none_or(|relay| relay.drains)
    }

    /// The best that any of them offers.
    pub(crate) fn channel(&self) -> ControlChannel {
        let least = if self.unknown { ControlChannel::Connecting } else { ControlChannel::Absent };
        self.known.values().map(|relay| relay.channel).max().unwrap_or_default().max(least)
    }

    /// The relay that has this address.
    pub(crate) fn at(&self, ip: IpAddr) -> Option<RelayId> {
        self.known.iter().find(|(_, relay)| relay.addresses.contains(&ip)).map(|(id, _)| *id)
    }

    /// Whether they can't be expected to fail together.
    pub(crate) fn are_apart(&self, one: &RelayId, other: &RelayId) -> bool {
        let domain = |id| self.known.get(id).and_then(|relay| relay.domain.as_ref());
        one != other && (domain(one).is_none() || domain(one) != domain(other))
    }

    pub(crate) fn is_open(&self, id: &RelayId) -> bool {
        self.known.get(id).is_some_and(Relay::is_open)
    }

    /// Those that can be talked to.
    pub(crate) fn open(&self) -> impl Iterator<Item = RelayId> {
        self.known.iter().filter(|(_, relay)| relay.is_open()).map(|(id, _)| *id)
    }

    /// Tells every relay that this node wants to meet the peer, or does no longer.
    pub(crate) fn meet(&mut self, peer: PublicKey, wanted: bool) {
        for relay in self.known.values_mut().filter(|relay| relay.is_open()) {
            relay.unsaid.insert(peer, wanted);
        }
    }

    pub(crate) fn has_unsaid(&self) -> bool {
        self.known.values().any(|relay| !relay.unsaid.is_empty())
    }

    /// The next of what waits for room.
    pub(crate) fn next_unsaid(&mut self) -> Option<(RelayId, ToRelay)> {
        self.known.iter_mut().find_map(|(id, relay)| {
            let (peer, wanted) = relay.unsaid.pop_first()?;
            Some((*id, if wanted { ToRelay::Meet(peer) } else { ToRelay::Part(peer) }))
        })
    }
}

/// The order in which a pair of nodes prefers relays, higher first: both nodes agree on it, and pairs spread over relays.
pub(crate) fn preference(relay: &RelayId, one: &PublicKey, other: &PublicKey) -> [u8; 32] {
    let mut hash = Blake2s256::new();
    hash.update(PREFERENCE_LABEL);
    hash.update(relay.0);
    hash.update(one.min(other).as_bytes());
    hash.update(one.max(other).as_bytes());
    hash.finalize().into()
}

impl Relay {
    /// Its channel is there: everybody is to be met over it.
    pub(crate) fn opened(&mut self, addresses: Vec<IpAddr>, peers: impl Iterator<Item = PublicKey>) {
        self.channel = ControlChannel::Open;
        self.stands_at(addresses);
        self.over_tcp = false;
        self.over_tcp_again = false;
        self.drains = false;
        self.asked = None;
        self.unsaid = peers.map(|peer| (peer, true)).collect();
    }

    /// It lets this node in. Returns the process that did so before.
    pub(crate) fn welcomed(&mut self, boot: u64) -> Option<u64> {
        self.is_early = false;
        self.boot.replace(boot)
    }

    /// It does not.
    pub(crate) fn denied(&mut self, reason: DeniedReason) {
        self.is_early = reason == DeniedReason::NotAdmitted && self.boot.is_none();
    }

    /// Where its UDP ports are.
    pub(crate) fn stands_at(&mut self, mut addresses: Vec<IpAddr>) {
        addresses.truncate(MAX_ADDRESSES);
        self.addresses = addresses.into_iter().map(|ip| ip.to_canonical()).collect();
    }

    /// Its channel is not there.
    pub(crate) fn lost(&mut self, channel: ControlChannel) {
        self.channel = channel;
        self.unsaid.clear();
    }
}
