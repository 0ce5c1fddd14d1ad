//! The frame around a probe, and its seal.

use chacha20poly1305::aead::AeadInOut;
use chacha20poly1305::aead::inout::InOutBuf;
use chacha20poly1305::{ChaCha20Poly1305, Key, KeyInit, Nonce, Tag};
use zeroize::Zeroizing;

use super::PROBE_LEN;
use super::body::PLAINTEXT_LEN;
use crate::pair::{Direction, KEY_ID_LEN, KeyId};
use crate::stun::{self, Class, TransactionId};

/// Bytes of the salt: with replies limited to 10 a second, two different messages meet in 2^64 values never.
const SALT_LEN: usize = 8;

/// Bytes of a Poly1305 tag.
const TAG_LEN: usize = 16;

/// Bytes of the attribute's value.
pub(super) const VALUE_LEN: usize = KEY_ID_LEN + SALT_LEN + PLAINTEXT_LEN + TAG_LEN;

/// Bytes before the ciphertext: the associated data.
const PREFIX_LEN: usize = PROBE_LEN - PLAINTEXT_LEN - TAG_LEN;

/// Frames and encrypts.
pub(super) fn seal(
    direction: &Direction,
    tx: TransactionId,
    request: bool,
    plaintext: &[u8; PLAINTEXT_LEN],
) -> Vec<u8> {
    let mut salt = [0; SALT_LEN];
    direction.expand_message(&[b"salt", &tx.0, plaintext], &mut salt);

    let mut message = stun::encode_probe(tx, request, VALUE_LEN);
    message.extend_from_slice(&direction.id().0);
    message.extend_from_slice(&salt);

    let mut sealed = *plaintext;
    let tag = cipher(direction, &salt)
        .encrypt_inout_detached(&Nonce::from(tx.0), &message, InOutBuf::from(sealed.as_mut_slice()))
        .expect("28 bytes are far below ChaCha20's limit of 256 GiB");
    message.extend_from_slice(&sealed);
    message.extend_from_slice(&tag);
    message
}

/// A datagram cut into the parts of a probe.
pub(super) struct Frame<'a> {
    pub(super) class: Class,
    pub(super) tx: TransactionId,
    pub(super) key_id: KeyId,
    salt: [u8; SALT_LEN],
    prefix: &'a [u8; PREFIX_LEN],
    sealed: &'a [u8; PLAINTEXT_LEN],
    tag: &'a [u8; TAG_LEN],
}

impl<'a> Frame<'a> {
    /// `None` unless the datagram is a Binding request or success with our attribute and nothing else.
    pub(super) fn parse(datagram: &'a [u8]) -> Option<Self> {
        let datagram: &[u8; PROBE_LEN] = datagram.try_into().ok()?;
        let message = stun::decode(datagram).ok()?;
        if !matches!(message.class, Class::Request | Class::Success) {
            return None;
        }
        // A value of this size leaves no room for a second attribute, which nothing would authenticate.
        let value: &[u8; VALUE_LEN] = message.probe?.try_into().ok()?;
        let (&key_id, rest) = value.split_first_chunk::<KEY_ID_LEN>()?;
        let (&salt, rest) = rest.split_first_chunk::<SALT_LEN>()?;
        let (sealed, tag) = rest.split_first_chunk::<PLAINTEXT_LEN>()?;
        Some(Self {
            class: message.class,
            tx: message.tx,
            key_id: KeyId(key_id),
            salt,
            prefix: datagram.first_chunk()?,
            sealed,
            tag: tag.try_into().ok()?,
        })
    }

    /// `None` when the tag does not fit.
    pub(super) fn open(&self, direction: &Direction) -> Option<[u8; PLAINTEXT_LEN]> {
        let mut plaintext = *self.sealed;
        cipher(direction, &self.salt)
            .decrypt_inout_detached(
                &Nonce::from(self.tx.0),
                self.prefix,
                InOutBuf::from(plaintext.as_mut_slice()),
                &Tag::from(*self.tag),
            )
            .ok()?;
        Some(plaintext)
    }
}

fn cipher(direction: &Direction, salt: &[u8; SALT_LEN]) -> ChaCha20Poly1305 {
    let mut key = Zeroizing::new([0; 32]);
    direction.expand_message(&[b"message", salt], key.as_mut_slice());
    ChaCha20Poly1305::new(<&Key>::from(&*key))
}
