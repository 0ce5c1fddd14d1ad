//! What the engine tells the shell.

use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use wire::PublicKey;
use wire::relay::AllocationId;

use crate::candidate::{Candidate, CandidateKind, Tier};
use crate::nat::NatReport;
use crate::relay::RelayId;

/// A datagram to be sent from the WireGuard port.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Transmit {
    /// Where to.
    pub remote: SocketAddr,
    /// The local address to send from; `None` leaves it to the routing table.
    pub local: Option<IpAddr>,
    /// The hops that it may live, if not the system's default.
    pub ttl: Option<u8>,
    /// The bytes.
    pub payload: Vec<u8>,
}

/// Something for the shell to do or to know. Carry out in order, before sending what [`Transmit`]s are queued: the
/// handshake must be on its way before the nomination that makes the peer ready to send.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// What this node should publish. Comes once, and again only when its meaning changed.
    LocalCandidates(Vec<Candidate>, NatReport),
    /// Whether a stranger's packet moves this node's port towards him. `None` while that is not known, or no longer.
    Poisonable(Option<bool>),
    /// Point the peer's WireGuard endpoint there, changing nothing else.
    SetEndpoint {
        /// Whose.
        peer: PublicKey,
        /// Where to.
        endpoint: SocketAddr,
        /// The persistent keepalive that goes with it.
        keepalive: Option<Duration>,
    },
    /// Take the endpoint away, so that the device starts no handshake: there is no session to lose, and either the peer
    /// is the one to start, or WireGuard roamed to a forbidden address. A device that cannot forget an endpoint adds the
    /// peer anew without one, or points at an address where nobody is.
    ClearEndpoint {
        /// Whose.
        peer: PublicKey,
    },
    /// Start a handshake at once, even if the session is young.
    StartHandshake {
        /// With whom.
        peer: PublicKey,
    },
    /// From now on hand what WireGuard sends to this address of the machine's own to the relay, as messages of that allocation, and
    /// WireGuard what the relay says for it, from that address. Comes before the address is WireGuard's endpoint.
    Carry {
        /// The address, with the port of [`Input::Carrier`](crate::Input::Carrier).
        endpoint: SocketAddr,
        /// Whose channel.
        relay: RelayId,
        /// Whose messages.
        allocation: AllocationId,
    },
    /// The peer sleeps: WireGuard will be pointed at this address of the machine's own, and what it sends there is a user's wish to talk
    /// to the peer. Say [`Input::Called`](crate::Input::Called) of it, and keep the first messages: they go to where the peer's
    /// endpoint is set next. Said once; the address stands for the peer, whether it sleeps or not, until [`Event::CarryNoMore`].
    Await {
        /// Who sleeps.
        peer: PublicKey,
        /// The address, with the port of [`OnDemand`](crate::OnDemand).
        endpoint: SocketAddr,
    },
    /// The address stands for nothing any more.
    CarryNoMore {
        /// The address.
        endpoint: SocketAddr,
    },
    /// Make the channel to this relay anew, whatever it seems to be: what should answer over it does not.
    RenewChannel {
        /// Which relay.
        relay: RelayId,
    },
    /// Send an echo request through the tunnel to the peer's mesh address.
    SendEcho {
        /// To whom.
        peer: PublicKey,
        /// What the reply must repeat.
        token: u64,
    },
    /// The state that this node shows for the peer changed.
    PathChanged {
        /// Whose.
        peer: PublicKey,
        /// What it is now.
        state: PathState,
    },
}

/// How a peer is reached.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PathState {
    /// Packets go to the peer and back without a third machine, proven through WireGuard.
    Direct {
        /// The path.
        pair: Selected,
        /// Smoothed round-trip time of its probes.
        rtt: Duration,
        /// Since when the pair is direct, over whichever path.
        since: Instant,
    },
    /// Packets go by a relay, end to end encrypted as ever, proven through WireGuard. Attempts at a direct path go on.
    Relayed {
        /// Which relay.
        relay: RelayId,
        /// WireGuard's endpoint: the relay's address and the pair's port on it, or the loopback address of a leg that is the relay's
        /// channel.
        endpoint: SocketAddr,
        /// Smoothed round-trip time of echoes through the tunnel, once there was one.
        rtt: Option<Duration>,
        /// Since when the pair is relayed, over whichever relay.
        since: Instant,
        /// Why the pair is not direct, or not yet.
        reason: Reason,
    },
    /// No path, because nobody needs one: no packet goes to the peer, and the first one of a user makes a path.
    Idle,
    /// No path yet; the first attempts are under way.
    Connecting,
    /// No path; attempts go on at longer intervals.
    Down {
        /// Why.
        reason: Reason,
    },
}

impl PathState {
    /// Whether packets go by a relay's channel, because UDP does not get to the relay.
    #[must_use]
    pub fn is_carried(&self) -> bool {
        matches!(self, Self::Relayed { endpoint, .. } if endpoint.ip().is_loopback())
    }

    /// Whether two states are the same news: round-trip times move all the time.
    #[must_use]
    pub fn same_news(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Direct { pair: a, .. }, Self::Direct { pair: b, .. }) => a == b,
            (
                Self::Relayed { relay: a, endpoint: at, reason: why, .. },
                Self::Relayed { relay: b, endpoint, reason, .. },
            ) => (a, at, why) == (b, endpoint, reason),
            (a, b) => a == b,
        }
    }
}

/// The path in use.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Selected {
    /// The peer's address on it.
    pub remote: SocketAddr,
    /// How that address became known.
    pub kind: CandidateKind,
    /// Its class.
    pub tier: Tier,
}

/// Why a pair is not direct. The name is shown in status and is a metric label.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Reason {
    /// Nothing was sent yet, or the first attempts are under way.
    NotTriedYet,
    /// The peer offers no address that may be dialled.
    NoCandidates,
    /// No STUN server answers this node, or none answers the peer: a network lets no UDP out.
    UdpBlocked,
    /// Probes pass and WireGuard's packets do not.
    DataBlocked,
    /// The peer's probes arrive and none of this node's is answered: something drops what it sends, or what comes back.
    HostFirewall,
    /// This node's NAT gives every destination another port, or the peer says that of its own, so one side cannot know which one to open.
    HardNat,
    /// The pair was direct and now nothing answers.
    PeerDown,
    /// Every candidate was tried and nothing ever came back.
    NoAnswer,
    /// Packets were withheld: too many were to go to the same address.
    Budget,
    /// There is no direct path, and no relay where both nodes are has a port left for the pair.
    RelayPortsExhausted,
}

impl Reason {
    /// Every value, for metrics that start at zero.
    pub const ALL: [Self; 10] = [
        Self::NotTriedYet,
        Self::NoCandidates,
        Self::UdpBlocked,
        Self::DataBlocked,
        Self::HostFirewall,
        Self::HardNat,
        Self::PeerDown,
        Self::NoAnswer,
        Self::Budget,
        Self::RelayPortsExhausted,
    ];

    /// The name that users see.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::NotTriedYet => "NotTriedYet",
            Self::NoCandidates => "NoCandidates",
            Self::UdpBlocked => "UDPBlocked",
            Self::DataBlocked => "DataBlocked",
            Self::HostFirewall => "HostFirewall",
            Self::HardNat => "HardNAT",
            Self::PeerDown => "PeerDown",
            Self::NoAnswer => "NoAnswer",
            Self::Budget => "Budget",
            Self::RelayPortsExhausted => "RelayPortsExhausted",
        }
    }
}
