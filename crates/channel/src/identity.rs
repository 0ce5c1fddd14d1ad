//! Ed25519 identities, and how TLS spells them.

use std::fmt;
use std::sync::Arc;

use ring::signature::{Ed25519KeyPair, KeyPair};
use rustls::pki_types::{CertificateDer, PrivatePkcs8KeyDer};
use rustls::sign::CertifiedKey;
use zeroize::Zeroizing;

/// Bytes of an Ed25519 public key, and of the seed of a private one (RFC 8032).
pub const IDENTITY_LEN: usize = 32;

/// What stands before the key in a SubjectPublicKeyInfo of Ed25519 (RFC 8410, section 4). There is no other way to write one in DER.
const SPKI_PREFIX: [u8; 12] = [0x30, 0x2a, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x03, 0x21, 0x00];

/// What stands before the seed in PKCS #8 (RFC 8410, section 7).
const PKCS8_PREFIX: [u8; 16] =
    [0x30, 0x2e, 0x02, 0x01, 0x00, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x04, 0x22, 0x04, 0x20];

/// A private key with which one end of a channel proves who it is. It wipes its seed on drop and never prints it.
#[derive(Clone)]
pub struct Identity {
    seed: Zeroizing<[u8; IDENTITY_LEN]>,
    public: [u8; IDENTITY_LEN],
}

impl Identity {
    /// A new one.
    ///
    /// # Errors
    /// When the system has no random numbers.
    pub fn generate() -> Result<Self, getrandom::Error> {
        let mut seed = Zeroizing::new([0; IDENTITY_LEN]);
        getrandom::fill(seed.as_mut_slice())?;
        Ok(Self::from_seed(*seed))
    }

    /// The one that this seed makes: 32 secret bytes from a CSPRNG.
    #[must_use]
    pub fn from_seed(seed: [u8; IDENTITY_LEN]) -> Self {
        let seed = Zeroizing::new(seed);
        let pair = Ed25519KeyPair::from_seed_unchecked(seed.as_slice()).expect("a seed of 32 bytes is always good");
        let mut public = [0; IDENTITY_LEN];
        public.copy_from_slice(pair.public_key().as_ref());
        Self { seed, public }
    }

    /// The secret bytes, for the place that keeps them.
    #[must_use]
    pub fn seed(&self) -> &[u8; IDENTITY_LEN] {
        &self.seed
    }

    /// The public half, as it is published.
    #[must_use]
    pub const fn public(&self) -> [u8; IDENTITY_LEN] {
        self.public
    }

    /// A secret for another purpose, from which the seed cannot be told.
    pub(crate) fn derived_key(&self, purpose: &[u8]) -> ring::hmac::Key {
        let seed = ring::hmac::Key::new(ring::hmac::HMAC_SHA256, self.seed.as_slice());
        ring::hmac::Key::new(ring::hmac::HMAC_SHA256, ring::hmac::sign(&seed, purpose).as_ref())
    }

    /// As rustls wants it: the private key, and the public one where a certificate would be (RFC 7250).
    pub(crate) fn certified(&self) -> Result<Arc<CertifiedKey>, rustls::Error> {
        let mut der = Zeroizing::new(Vec::with_capacity(PKCS8_PREFIX.len() + IDENTITY_LEN));
        der.extend_from_slice(&PKCS8_PREFIX);
        der.extend_from_slice(self.seed.as_slice());
        let key = rustls::crypto::ring::sign::any_eddsa_type(&PrivatePkcs8KeyDer::from(der.as_slice()))?;
        let spki = [&SPKI_PREFIX[..], &self.public].concat();
        Ok(Arc::new(CertifiedKey::new(vec![CertificateDer::from(spki)], key)))
    }
}

impl fmt::Debug for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Identity(..)")
    }
}

/// The key in a SubjectPublicKeyInfo, if it is one of Ed25519.
pub(crate) fn from_spki(spki: &[u8]) -> Option<[u8; IDENTITY_LEN]> {
    spki.strip_prefix(&SPKI_PREFIX)?.try_into().ok()
}
