//! Proof of possession: a node shows the operator that it holds the private half of the key it publishes.
//!
//! The operator publishes an X25519 key and a challenge. The node answers with HMAC-BLAKE2s, keyed by the Diffie-Hellman
//! result of its own private key and the operator's public key, over the challenge, its own UID and its public key.
//! The operator computes the same with its private key and the published public key. A key copied from another
//! node's status cannot be proven, and a proof made for one node or challenge is none for another.

use std::fmt;
use std::str::FromStr;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use blake2::Blake2s256;
use hkdf::hmac::{KeyInit, Mac, SimpleHmac};

use crate::key::{self, KeyError, PublicKey, SharedSecret};

/// Separates this use of a shared secret from every other.
const LABEL: &[u8] = b"warren key proof v1";

/// Bytes of a proof: the full output of BLAKE2s.
pub const PROOF_LEN: usize = 32;

/// What a node publishes as `keyProof`: 44 characters of base64. Not a secret.
#[derive(Clone, Copy)]
pub struct KeyProof([u8; PROOF_LEN]);

impl KeyProof {
    /// The bytes of the proof.
    #[must_use]
    pub const fn as_bytes(&self) -> &[u8; PROOF_LEN] {
        &self.0
    }
}

impl fmt::Display for KeyProof {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&STANDARD.encode(self.0))
    }
}

impl fmt::Debug for KeyProof {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "KeyProof({self})")
    }
}

impl FromStr for KeyProof {
    type Err = KeyError;

    fn from_str(text: &str) -> Result<Self, KeyError> {
        key::decode_base64(text).map(|bytes| Self(*bytes))
    }
}

/// Makes the proof: `shared` is X25519 of the node's private key and the operator's `proofKey`.
#[must_use]
pub fn key_proof(shared: &SharedSecret, challenge: &[u8], node_uid: &str, public_key: &PublicKey) -> KeyProof {
    let tag = mac(shared, challenge, node_uid, public_key).finalize();
    KeyProof(tag.into_bytes().into())
}

/// Checks a proof in constant time: `shared` is X25519 of the operator's private key and the node's public key.
#[must_use]
pub fn verify_key_proof(
    shared: &SharedSecret,
    challenge: &[u8],
    node_uid: &str,
    public_key: &PublicKey,
    proof: &KeyProof,
) -> bool {
    mac(shared, challenge, node_uid, public_key).verify_slice(&proof.0).is_ok()
}

fn mac(shared: &SharedSecret, challenge: &[u8], node_uid: &str, public_key: &PublicKey) -> SimpleHmac<Blake2s256> {
    let mut mac =
        <SimpleHmac<Blake2s256> as KeyInit>::new_from_slice(shared.as_bytes()).expect("HMAC takes keys of any length");
    // Lengths stand before the two fields that vary, so no byte can move from one field to the next.
    for field in [LABEL, challenge, node_uid.as_bytes(), public_key.as_bytes()] {
        mac.update(&(field.len() as u64).to_be_bytes());
        mac.update(field);
    }
    mac
}
