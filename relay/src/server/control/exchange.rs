//! What goes in and what comes out.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};

use wire::PublicKey;
use wire::control::{ToNode, ToRelay};
use wire::stun::TransactionId;

use crate::server::plane;

/// An Ed25519 key that a channel has proven.
pub type Identity = [u8; 32];

/// Names an open channel; the shell counts them and never uses a number twice, also when it starts anew: the data plane remembers them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SessionId(pub u64);

impl From<SessionId> for plane::ChannelId {
    fn from(session: SessionId) -> Self {
        Self(session.0)
    }
}

/// A node of the mesh, as the API has it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Member {
    /// The WireGuard key that was admitted.
    pub node: PublicKey,
    /// The identity key that its agent has published; without it there is nothing to prove.
    pub identity: Option<Identity>,
}

/// A fact or a wish.
#[derive(Debug, Clone)]
pub enum Input {
    /// A channel is open, and its other end has proven this key.
    Opened {
        /// Which.
        session: SessionId,
        /// Whose.
        identity: Identity,
    },
    /// Its other end has said something.
    Heard {
        /// Which.
        session: SessionId,
        /// What.
        message: ToRelay,
        /// Where the channel comes from at this moment.
        remote: SocketAddr,
    },
    /// Its other end has said what is no message.
    Nonsense(SessionId),
    /// It has ended.
    Gone(SessionId),
    /// All members there are, by the names of their objects.
    Members(BTreeMap<String, Member>),
    /// One of them has changed, or is none any more.
    Member {
        /// Name of the object.
        name: String,
        /// What it says now.
        member: Option<Member>,
    },
    /// The data plane has news for a node.
    Plane(plane::Event),
    /// A stray packet was sent.
    StraySent {
        /// Who asked for it.
        session: SessionId,
        /// Its transaction.
        tx: TransactionId,
        /// The socket that it left from.
        from: SocketAddr,
    },
    /// The addresses of this host, when they have changed.
    Own(Vec<IpAddr>),
    /// This relay ends in so many seconds.
    Drain {
        /// How many.
        seconds: u16,
    },
}

/// What the shell is to do.
#[derive(Debug, Clone)]
pub enum Output {
    /// Say this. If the channel has no room for it, close it.
    Say {
        /// To whom.
        session: SessionId,
        /// What.
        message: ToNode,
    },
    /// Close the channel, after what was said before. Nothing more is said to it.
    Close(SessionId),
    /// Hand this to the data plane.
    Plane(plane::Input),
    /// Send a STUN success response from a socket that was never used, say where from, and answer what that host asks the socket for
    /// some seconds.
    Stray {
        /// Who asked for it.
        session: SessionId,
        /// Where to.
        to: SocketAddr,
        /// Its transaction.
        tx: TransactionId,
    },
}
