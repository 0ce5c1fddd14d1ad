//! Signals: what the two nodes of a pair tell each other by way of a relay, before there is a path between them.
//!
//! ```text
//! key id   names direction and pair                                                                      8
//! id       the signal's own, fresh random bytes: nonce, and what the answer repeats                     12
//! sealed   ChaCha20-Poly1305 { kind 1, flags 1, class 1, count 1, answers 12, 16 x candidate 19 }  320 + 16
//! candidate                  { kind 1, port 2, address 16 }
//! ```
//!
//! The key is HKDF-Expand(direction's key, "signal" || id), the associated data everything before the ciphertext. The relay
//! sees who talks to whom and how often; every signal has the same size, so it does not see what is said.

use std::net::{Ipv6Addr, SocketAddr};

use chacha20poly1305::aead::AeadInOut;
use chacha20poly1305::aead::inout::InOutBuf;
use chacha20poly1305::{ChaCha20Poly1305, Key, KeyInit, Nonce, Tag};
use zeroize::Zeroizing;

use super::OpenError;
use super::body::mapped;
use crate::pair::{Direction, KEY_ID_LEN, KeyId, PairKeys};
use crate::stun::TransactionId;

/// Candidates of one signal: as many as a node publishes.
pub const MAX_CANDIDATES: usize = 16;

const ID_LEN: usize = 12;
const CANDIDATE_LEN: usize = 1 + 2 + 16;
const PLAINTEXT_LEN: usize = 4 + ID_LEN + MAX_CANDIDATES * CANDIDATE_LEN;
const TAG_LEN: usize = 16;
const PREFIX_LEN: usize = KEY_ID_LEN + ID_LEN;

/// Bytes of every signal.
pub const SIGNAL_LEN: usize = PREFIX_LEN + PLAINTEXT_LEN + TAG_LEN;

/// The bit of `flags` that says [`Signal::poisonable`].
const POISONABLE: u8 = 1;

/// Kinds on the wire, above those of probes.
mod kind {
    pub(super) const CALL: u8 = 16;
    pub(super) const READY: u8 = 17;
    pub(super) const GO: u8 = 18;
}

/// What a signal asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// Open your NAT towards me, or call me if I am the one who has to.
    Call,
    /// My NAT is open towards you: send.
    Ready {
        /// The CALL.
        answers: TransactionId,
    },
    /// My packets are on their way, so my NAT is open as well: send.
    Go {
        /// The READY.
        answers: TransactionId,
    },
}

/// One signal, and how its sender can be reached now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Signal {
    /// What it asks for.
    pub step: Step,
    /// Whether a packet of a stranger may change the sender's mapping towards him. A sender that does not know says yes.
    pub poisonable: bool,
    /// The sender's NAT class for IPv4, as a number of the path engine's; unknown ones say nothing.
    pub class: u8,
    /// The sender's addresses, each with the number of its kind. What is beyond [`MAX_CANDIDATES`] is not sent.
    pub candidates: Vec<(u8, SocketAddr)>,
}

/// Seals a signal for the peer. `id` has to be fresh from a CSPRNG.
#[must_use]
pub fn seal(keys: &PairKeys, id: TransactionId, signal: &Signal) -> Vec<u8> {
    let direction = keys.send();
    let mut message = Vec::with_capacity(SIGNAL_LEN);
    message.extend_from_slice(&direction.id().0);
    message.extend_from_slice(&id.0);
    let mut sealed = encode(signal);
    let tag = cipher(direction, id)
        .encrypt_inout_detached(&Nonce::from(id.0), &message, InOutBuf::from(sealed.as_mut_slice()))
        .expect("320 bytes are far below ChaCha20's limit of 256 GiB");
    message.extend_from_slice(&sealed);
    message.extend_from_slice(&tag);
    message
}

/// The key id of a signal, for a lookup before any cryptography. `None` for what has another size.
#[must_use]
pub fn key_id(message: &[u8]) -> Option<KeyId> {
    let message: &[u8; SIGNAL_LEN] = message.try_into().ok()?;
    message.first_chunk().map(|id| KeyId(*id))
}

/// Opens a signal from the peer.
///
/// # Errors
/// For whatever is not a signal that the peer sealed for this node. It costs cryptography only when the key id fits.
pub fn open(keys: &PairKeys, message: &[u8]) -> Result<(TransactionId, Signal), OpenError> {
    let key_id = key_id(message).ok_or(OpenError::NotSignal)?;
    if key_id != keys.receive_id() {
        return Err(OpenError::UnknownKey);
    }
    let (prefix, sealed) = message.split_first_chunk::<PREFIX_LEN>().ok_or(OpenError::NotSignal)?;
    let (sealed, tag) = sealed.split_first_chunk::<PLAINTEXT_LEN>().ok_or(OpenError::NotSignal)?;
    let tag: [u8; TAG_LEN] = tag.try_into().map_err(|_| OpenError::NotSignal)?;
    let id = TransactionId(*prefix.last_chunk().ok_or(OpenError::NotSignal)?);
    let mut plaintext = *sealed;
    cipher(keys.receive(), id)
        .decrypt_inout_detached(&Nonce::from(id.0), prefix, InOutBuf::from(plaintext.as_mut_slice()), &Tag::from(tag))
        .map_err(|_| OpenError::Forged)?;
    decode(&plaintext).map(|signal| (id, signal)).ok_or(OpenError::Malformed)
}

fn cipher(direction: &Direction, id: TransactionId) -> ChaCha20Poly1305 {
    let mut key = Zeroizing::new([0; 32]);
    direction.expand_message(&[b"signal", &id.0], key.as_mut_slice());
    ChaCha20Poly1305::new(<&Key>::from(&*key))
}

fn encode(signal: &Signal) -> [u8; PLAINTEXT_LEN] {
    let (kind, answers) = match signal.step {
        Step::Call => (kind::CALL, [0; ID_LEN]),
        Step::Ready { answers } => (kind::READY, answers.0),
        Step::Go { answers } => (kind::GO, answers.0),
    };
    let candidates = &signal.candidates[..signal.candidates.len().min(MAX_CANDIDATES)];
    let mut plaintext = [0; PLAINTEXT_LEN];
    plaintext[0] = kind;
    plaintext[1] = if signal.poisonable { POISONABLE } else { 0 };
    plaintext[2] = signal.class;
    plaintext[3] = u8::try_from(candidates.len()).expect("at most 16 candidates");
    plaintext[4..4 + ID_LEN].copy_from_slice(&answers);
    for (slot, (kind, addr)) in plaintext[4 + ID_LEN..].chunks_exact_mut(CANDIDATE_LEN).zip(candidates) {
        slot[0] = *kind;
        slot[1..3].copy_from_slice(&addr.port().to_be_bytes());
        slot[3..].copy_from_slice(&mapped(addr.ip()).octets());
    }
    plaintext
}

/// `None` for an unknown kind or more candidates than there is room for. Unknown flags are ignored.
fn decode(plaintext: &[u8; PLAINTEXT_LEN]) -> Option<Signal> {
    let (&[kind, flags, class, count], rest) = plaintext.split_first_chunk::<4>()?;
    let (&answers, rest) = rest.split_first_chunk::<ID_LEN>()?;
    let answers = TransactionId(answers);
    let step = match kind {
        kind::CALL => Step::Call,
        kind::READY => Step::Ready { answers },
        kind::GO => Step::Go { answers },
        _ => return None,
    };
    let count = usize::from(count);
    if count > MAX_CANDIDATES {
        return None;
    }
    let candidates = rest.chunks_exact(CANDIDATE_LEN).take(count).map(candidate).collect::<Option<_>>()?;
    Some(Signal { step, poisonable: flags & POISONABLE != 0, class, candidates })
}

fn candidate(slot: &[u8]) -> Option<(u8, SocketAddr)> {
    let (&[kind, high, low], ip) = slot.split_first_chunk::<3>()?;
    let ip: [u8; 16] = ip.try_into().ok()?;
    let ip = Ipv6Addr::from(ip).to_canonical();
    Some((kind, SocketAddr::new(ip, u16::from_be_bytes([high, low]))))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whatever_a_peer_seals_is_a_signal_or_refused() {
        for kind in 0..=u8::MAX {
            for count in 0..=u8::MAX {
                let mut plaintext = [0xff; PLAINTEXT_LEN];
                (plaintext[0], plaintext[3]) = (kind, count);
                let known = (kind::CALL..=kind::GO).contains(&kind) && usize::from(count) <= MAX_CANDIDATES;
                let candidates = decode(&plaintext).map(|signal| signal.candidates.len());
                assert_eq!(candidates, known.then_some(count.into()), "kind {kind}, {count} candidates");
            }
        }
    }
}
