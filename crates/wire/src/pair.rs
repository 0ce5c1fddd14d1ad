//! Keys that exactly two nodes can compute, without a message between them.
//!
//! ```text
//! ss   = X25519(own static private, peer static public)          all-zero refused in constant time
//! PRK  = HKDF-BLAKE2s-Extract(LABEL || mesh id || BLAKE2s(mesh PSK, if any), ss)
//! K_lh, K_hl, id_lh, id_hl = HKDF-Expand(PRK, "v1" || pk_low || pk_high || label)
//! ```
//!
//! "Low" is the public key that sorts first by bytes; `lh` is the direction from low to high. Each direction has its own
//! key, so a packet reflected to its sender opens for nobody.

use std::fmt;

use blake2::{Blake2s256, Digest};
use hkdf::SimpleHkdf;
use zeroize::Zeroizing;

use crate::key::{KeyError, PrivateKey, PublicKey};

/// Names protocol, version and primitives, so that no other use of the same static keys can yield the same secret.
const LABEL: &[u8] = b"warren probe v1 25519 ChaChaPoly BLAKE2s";

/// The version that stands first in every expansion.
const VERSION: &[u8] = b"v1";

/// Bytes of a key id: 2^64 values make a chance collision between the peers of one node a non-event.
pub const KEY_ID_LEN: usize = 8;

/// Names the keys of one direction of one pair, in clear. It reveals no public key to those who do not hold the pair's secret.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct KeyId(pub [u8; KEY_ID_LEN]);

impl fmt::Debug for KeyId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", u64::from_be_bytes(self.0))
    }
}

/// The keys of one pair, seen from one of its ends.
pub struct PairKeys {
    send: Direction,
    receive: Direction,
}

impl PairKeys {
    /// Derives the pair's keys. Both ends get the same ones with sending and receiving swapped.
    ///
    /// `mesh_id` separates meshes that share a key pair; `psk` is the mesh-wide secret of installations that have one.
    ///
    /// # Errors
    /// When the peer's key is the own one, or contributes nothing.
    pub fn derive(own: &PrivateKey, peer: &PublicKey, mesh_id: &str, psk: Option<&[u8; 32]>) -> Result<Self, KeyError> {
        let own_public = own.public_key();
        if own_public == *peer {
            return Err(KeyError::OwnKey);
        }
        let shared = own.diffie_hellman(peer)?;

        let mut salt = Zeroizing::new(Vec::with_capacity(LABEL.len() + mesh_id.len() + 32));
        salt.extend_from_slice(LABEL);
        salt.extend_from_slice(mesh_id.as_bytes());
        if let Some(psk) = psk {
            salt.extend_from_slice(&Blake2s256::digest(psk));
        }
        let prk = SimpleHkdf::<Blake2s256>::new(Some(&salt), shared.as_bytes());

        let own_is_low = own_public < *peer;
        let (low, high) = if own_is_low { (&own_public, peer) } else { (peer, &own_public) };
        let low_to_high = Direction::expand(&prk, low, high, b"key lh", b"id lh");
        let high_to_low = Direction::expand(&prk, low, high, b"key hl", b"id hl");
        Ok(if own_is_low {
            Self { send: low_to_high, receive: high_to_low }
        } else {
            Self { send: high_to_low, receive: low_to_high }
        })
    }

    /// The id on packets from the peer: what a receiver keeps in its lookup table.
    #[must_use]
    pub fn receive_id(&self) -> KeyId {
        self.receive.id
    }

    /// The id on packets to the peer.
    #[must_use]
    pub fn send_id(&self) -> KeyId {
        self.send.id
    }

    pub(crate) fn send(&self) -> &Direction {
        &self.send
    }

    pub(crate) fn receive(&self) -> &Direction {
        &self.receive
    }
}

impl fmt::Debug for PairKeys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("PairKeys(..)")
    }
}

/// The secret and the name of one direction.
pub(crate) struct Direction {
    key: Zeroizing<[u8; 32]>,
    id: KeyId,
}

impl Direction {
    fn expand(
        prk: &SimpleHkdf<Blake2s256>,
        low: &PublicKey,
        high: &PublicKey,
        key_label: &[u8],
        id_label: &[u8],
    ) -> Self {
        let mut direction = Self { key: Zeroizing::new([0; 32]), id: KeyId([0; KEY_ID_LEN]) };
        let info = |label| [VERSION, low.as_bytes(), high.as_bytes(), label];
        expand(prk, &info(key_label), direction.key.as_mut_slice());
        expand(prk, &info(id_label), &mut direction.id.0);
        direction
    }

    pub(crate) fn id(&self) -> KeyId {
        self.id
    }

    /// Expands the direction's key once more, for one message.
    pub(crate) fn expand_message(&self, info: &[&[u8]], out: &mut [u8]) {
        let prk = SimpleHkdf::<Blake2s256>::from_prk(self.key.as_slice())
            .expect("a direction's key has the 32 bytes that a BLAKE2s PRK needs");
        expand(&prk, info, out);
    }
}

fn expand(prk: &SimpleHkdf<Blake2s256>, info: &[&[u8]], out: &mut [u8]) {
    prk.expand_multi_info(info, out).expect("at most 32 bytes are asked for, far below the limit of 255 blocks");
}
