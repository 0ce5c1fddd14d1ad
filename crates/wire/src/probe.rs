//! Probes: STUN messages that only the two nodes of a pair can make and read.
//!
//! ```text
//! STUN header   Binding request (PING, NOMINATE) or success (PONG, NOMINATE-ACK), cookie, transaction id      20
//! attribute     type, length                                                                                   4
//!   key id      names direction and pair; unknown: dropped before any cryptography                             8
//!   salt        PRF of transaction id and plaintext under the direction's key                                  8
//!   sealed      ChaCha20-Poly1305 { kind 1, flags 1, epoch 8, body 18 }                                    28 + 16
//! ```
//!
//! The nonce is the transaction id, the associated data is everything before the ciphertext, the key is
//! HKDF-Expand(direction's key, salt).
//!
//! The salt is there because a reply must carry its request's transaction id. Whoever replays one PING from two
//! addresses gets two different PONGs under one nonce; under one key as well, their tags would give away the
//! authenticator's one-time key. With the salt, two messages share a key only if they are the same message.
//!
//! Every probe has the same size, so no reply is larger than its request.

use std::net::SocketAddr;

use crate::pair::{KeyId, PairKeys};
use crate::stun::{self, Class, TransactionId};

mod body;
mod seal;
pub mod signal;

/// Bytes of every probe.
pub const PROBE_LEN: usize = stun::HEADER_LEN + 4 + seal::VALUE_LEN;

/// What the two nodes of a pair say to each other on a path.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Probe {
    /// Are you there? Makes its source a candidate, nothing more.
    Ping,
    /// The answer, with the source address that the PING had on arrival. Proves the path to whoever sent that PING.
    Pong {
        /// Where the PING came from.
        observed: SocketAddr,
    },
    /// Use this path from now on.
    Nominate {
        /// Grows with each nomination of this pair; an older one than the last seen is stale.
        epoch: u64,
    },
    /// The nomination was taken up.
    NominateAck {
        /// The epoch of the nomination.
        epoch: u64,
    },
}

impl Probe {
    /// Whether this goes out as a Binding request: under a transaction id of its own, expecting an answer.
    #[must_use]
    pub fn is_request(&self) -> bool {
        match self {
            Self::Ping | Self::Nominate { .. } => true,
            Self::Pong { .. } | Self::NominateAck { .. } => false,
        }
    }
}

/// Why bytes are not a probe, or a signal, of this pair.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum OpenError {
    /// Not a STUN message with exactly one attribute, ours, of the right size.
    #[error("not a probe: expected a Binding message of {PROBE_LEN} bytes with one sealed attribute")]
    NotProbe,
    /// Not of the size of a signal.
    #[error("not a signal: expected {} bytes", signal::SIGNAL_LEN)]
    NotSignal,
    /// The key id is not the one that this pair receives with.
    #[error("the probe's key id belongs to another pair or direction")]
    UnknownKey,
    /// The tag does not fit.
    #[error("the probe does not authenticate: it was altered, or sealed by somebody else")]
    Forged,
    /// It was sealed by the peer, and says something this version does not know.
    #[error("the probe is authentic and malformed: the peer may run a newer version")]
    Malformed,
}

/// Seals a probe for the peer.
///
/// A request needs a transaction id fresh from a CSPRNG; a reply carries that of its request.
#[must_use]
pub fn seal(keys: &PairKeys, tx: TransactionId, probe: &Probe) -> Vec<u8> {
    seal::seal(keys.send(), tx, probe.is_request(), &body::encode(probe))
}

/// The key id of a probe, for a lookup before any cryptography. `None` for anything that is not framed as a probe.
#[must_use]
pub fn key_id(datagram: &[u8]) -> Option<KeyId> {
    seal::Frame::parse(datagram).map(|frame| frame.key_id)
}

/// Opens a probe from the peer.
///
/// # Errors
/// For whatever is not a probe that the peer sealed for this node. It costs cryptography only when the key id fits.
pub fn open(keys: &PairKeys, datagram: &[u8]) -> Result<(TransactionId, Probe), OpenError> {
    let frame = seal::Frame::parse(datagram).ok_or(OpenError::NotProbe)?;
    if frame.key_id != keys.receive_id() {
        return Err(OpenError::UnknownKey);
    }
    let plaintext = frame.open(keys.receive()).ok_or(OpenError::Forged)?;
    let probe = body::decode(&plaintext).ok_or(OpenError::Malformed)?;
    if probe.is_request() != (frame.class == Class::Request) {
        return Err(OpenError::Malformed);
    }
    Ok((frame.tx, probe))
}
