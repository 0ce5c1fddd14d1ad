//! Curve25519 keys: public, private and what the two make.

use std::fmt;
use std::str::FromStr;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use blake2::Blake2s256;
use hkdf::SimpleHkdf;
use zeroize::Zeroizing;

mod points;

/// Bytes of a key, private or public (RFC 7748, section 5).
pub const KEY_LEN: usize = 32;

/// Characters of a key in base64 with padding, as `wg` and Kubernetes objects show it.
pub const KEY_BASE64_LEN: usize = 44;

/// Characters of a shortened key: enough to tell the nodes of a mesh apart, short enough for a log line.
const SHORT_LEN: usize = 8;

/// Separates identity seeds from whatever else may once be derived from a private key.
const IDENTITY_SALT: &[u8] = b"warren identity v1";
const IDENTITY_INFO: &[u8] = b"ed25519 seed";

/// Why a key was refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum KeyError {
    /// The text has the wrong length.
    #[error("a key is {KEY_BASE64_LEN} characters of base64, found {found}; copy the output of `wg pubkey` whole")]
    Length {
        /// Bytes of text found.
        found: usize,
    },
    /// The text is not canonical base64 of 32 bytes.
    #[error(
        "a key is canonical base64 of 32 bytes, found other characters or stray bits; copy the output of `wg pubkey` unchanged"
    )]
    Encoding,
    /// All 32 bytes are zero.
    #[error("the key is all zero, which is no key; generate one with `wg genkey`")]
    Zero,
    /// The point generates a small subgroup: every secret made with it is known to everybody.
    #[error("the public key is one of the small-order points, whose secrets everybody knows; generate a new key pair")]
    SmallOrder,
    /// The same point has a second, canonical encoding, so uniqueness checks by bytes would be fooled.
    #[error("the public key is not the canonical encoding of its point; generate a new key pair")]
    NonCanonical,
    /// The Diffie-Hellman result is all zero (RFC 7748, section 6.1).
    #[error("the public key contributes nothing to a shared secret; generate a new key pair")]
    NonContributory,
    /// Both keys of a pair are the same.
    #[error(
        "a pair needs two different keys, found the node's own key as its peer's; generate a new key pair on one of them"
    )]
    OwnKey,
}

/// A Curve25519 public key: the name of a WireGuard peer.
///
/// Any 32 bytes can be held, because any can arrive; [`PublicKey::validate`] tells whether they are fit for use.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PublicKey([u8; KEY_LEN]);

impl PublicKey {
    /// Takes the bytes as they are.
    #[must_use]
    pub const fn from_bytes(bytes: [u8; KEY_LEN]) -> Self {
        Self(bytes)
    }

    /// The bytes as they go on the wire.
    #[must_use]
    pub const fn as_bytes(&self) -> &[u8; KEY_LEN] {
        &self.0
    }

    /// Whether this key may be given to WireGuard and be compared with others for uniqueness.
    ///
    /// # Errors
    /// For all-zero bytes, points of small order, and encodings that are not the only one of their point.
    pub fn validate(&self) -> Result<(), KeyError> {
        if self.0 == [0; KEY_LEN] {
            Err(KeyError::Zero)
        } else if !points::is_canonical(&self.0) {
            Err(KeyError::NonCanonical)
        } else if points::is_small_order(&self.0) {
            Err(KeyError::SmallOrder)
        } else {
            Ok(())
        }
    }

    /// The first characters of the key, for logs and tables.
    #[must_use]
    pub fn short(&self) -> String {
        let mut text = self.to_string();
        text.truncate(SHORT_LEN);
        text
    }
}

impl fmt::Display for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&STANDARD.encode(self.0))
    }
}

impl fmt::Debug for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.short())
    }
}

impl FromStr for PublicKey {
    type Err = KeyError;

    fn from_str(text: &str) -> Result<Self, KeyError> {
        decode_base64(text).map(|bytes| Self(*bytes))
    }
}

/// A Curve25519 private key. It wipes itself on drop, cannot be cloned and never prints its bytes.
pub struct PrivateKey(Zeroizing<[u8; KEY_LEN]>);

impl PrivateKey {
    /// Takes 32 random bytes and clamps them (RFC 7748, section 5), so that the stored form is the one `wg` prints.
    #[must_use]
    pub fn from_bytes(bytes: [u8; KEY_LEN]) -> Self {
        let mut bytes = Zeroizing::new(bytes);
        bytes[0] &= 0xf8;
        bytes[31] &= 0x7f;
        bytes[31] |= 0x40;
        Self(bytes)
    }

    /// Reads the 44 characters that `wg genkey` prints.
    ///
    /// # Errors
    /// For text of another length or not in canonical base64. The error does not repeat the text.
    pub fn from_base64(text: &str) -> Result<Self, KeyError> {
        decode_base64(text).map(|bytes| Self::from_bytes(*bytes))
    }

    /// The 44 characters that `wg pubkey` reads, in memory that is wiped.
    #[must_use]
    pub fn to_base64(&self) -> Zeroizing<String> {
        // Allocated at full size: growing would leave copies of the secret behind.
        let mut text = Zeroizing::new(String::with_capacity(KEY_BASE64_LEN));
        STANDARD.encode_string(self.0.as_slice(), &mut text);
        text
    }

    /// The public half.
    #[must_use]
    pub fn public_key(&self) -> PublicKey {
        PublicKey(x25519_dalek::PublicKey::from(&self.secret()).to_bytes())
    }

    /// X25519 with a peer's public key.
    ///
    /// # Errors
    /// When the result is all zero, compared in constant time: the peer's key contributed nothing.
    pub fn diffie_hellman(&self, peer: &PublicKey) -> Result<SharedSecret, KeyError> {
        let shared = self.secret().diffie_hellman(&x25519_dalek::PublicKey::from(peer.0));
        if shared.was_contributory() {
            Ok(SharedSecret(Zeroizing::new(shared.to_bytes())))
        } else {
            Err(KeyError::NonContributory)
        }
    }

    /// The seed of the node's Ed25519 identity, by which relays recognise it: HKDF-BLAKE2s of this key under a label of its own, so that
    /// neither key tells anything of the other. Derived and not drawn: there is no second secret to store, to protect and to lose,
    /// and whoever replaces this key has replaced both.
    #[must_use]
    pub fn identity_seed(&self) -> Zeroizing<[u8; KEY_LEN]> {
        let mut seed = Zeroizing::new([0; KEY_LEN]);
        SimpleHkdf::<Blake2s256>::new(Some(IDENTITY_SALT), self.0.as_slice())
            .expand(IDENTITY_INFO, seed.as_mut_slice())
            .expect("HKDF-BLAKE2s gives up to 255 times 32 bytes");
        seed
    }

    /// The secret bytes, for the one place that hands them to a WireGuard device.
    #[must_use]
    pub fn expose_bytes(&self) -> &[u8; KEY_LEN] {
        &self.0
    }

    fn secret(&self) -> x25519_dalek::StaticSecret {
        x25519_dalek::StaticSecret::from(*self.0)
    }
}

impl fmt::Debug for PrivateKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("PrivateKey(..)")
    }
}

/// The result of X25519: known to the holders of the two private keys and to nobody else. Never all zero.
pub struct SharedSecret(Zeroizing<[u8; KEY_LEN]>);

impl SharedSecret {
    pub(crate) fn as_bytes(&self) -> &[u8; KEY_LEN] {
        &self.0
    }
}

impl fmt::Debug for SharedSecret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SharedSecret(..)")
    }
}

/// Decodes 44 characters of canonical base64 to 32 bytes, leaving no copy behind.
pub(crate) fn decode_base64(text: &str) -> Result<Zeroizing<[u8; KEY_LEN]>, KeyError> {
    if text.len() != KEY_BASE64_LEN {
        return Err(KeyError::Length { found: text.len() });
    }
    // 44 characters can mean 33 bytes, so the decoder wants room for them.
    let mut buffer = Zeroizing::new([0; KEY_LEN + 1]);
    let decoded = STANDARD.decode_slice(text, buffer.as_mut_slice()).map_err(|_| KeyError::Encoding)?;
    if decoded != KEY_LEN {
        return Err(KeyError::Encoding);
    }
    let mut bytes = Zeroizing::new([0; KEY_LEN]);
    bytes.copy_from_slice(&buffer[..KEY_LEN]);
    Ok(bytes)
}
