//! What goes by the relay's control channel.

use std::net::SocketAddr;

use wire::PublicKey;
use wire::stun::TransactionId;

/// The control channel to a relay, over which nodes without a path between them are heard.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub enum ControlChannel {
    /// There is no relay to talk to. Peers are probed without a word.
    #[default]
    Absent,
    /// It is being made. What would be said over it waits, for a short while.
    Connecting,
    /// It carries messages.
    Open,
}

/// A message for the relay.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Control {
    /// Hand these sealed bytes to the peer.
    Signal {
        /// To whom.
        to: PublicKey,
        /// At most [`SIGNAL_LEN`](wire::probe::signal::SIGNAL_LEN) bytes.
        bytes: Vec<u8>,
    },
    /// Send a STUN success response of this transaction from a socket that has never been sent to, answers Binding requests
    /// and has another address than the STUN servers, then say from which: [`Input::StraySent`](crate::Input::StraySent).
    Stray {
        /// Where to: the outside of this node's NAT.
        to: SocketAddr,
        /// Its transaction id.
        tx: TransactionId,
    },
}
