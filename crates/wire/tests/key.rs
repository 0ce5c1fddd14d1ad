//! Which keys are accepted, and what keys refuse to show.

#![allow(clippy::unwrap_used)]

use wire::key::{KeyError, PrivateKey, PublicKey};

/// 2^255 - 19, little-endian.
const PRIME: [u8; 32] = {
    let mut prime = [0xff; 32];
    prime[0] = 0xed;
    prime[31] = 0x7f;
    prime
};

fn low_byte(byte: u8) -> [u8; 32] {
    let mut bytes = [0; 32];
    bytes[0] = byte;
    bytes
}

fn prime_plus(offset: i16) -> [u8; 32] {
    let mut bytes = PRIME;
    bytes[0] = u8::try_from(i16::from(bytes[0]) + offset).unwrap();
    bytes
}

fn with_top_bit(mut bytes: [u8; 32]) -> [u8; 32] {
    bytes[31] |= 0x80;
    bytes
}

/// The two points of order 8, as every list of bad Curve25519 keys has them.
const ORDER_8: [&str; 2] =
    ["4Ot6fDtBuK4WVuP68Z/EatoJjeucMrH9hmIFFl9JuAA=", "X5yVvKNQjCSx0LFVnIPvWwREXMRYHI6G2CJO3dCfEVc="];

#[test]
fn bad_points_are_refused_by_name() {
    let order_8 = ORDER_8.map(|text| *text.parse::<PublicKey>().unwrap().as_bytes());
    let table = [
        ("zero", [0; 32], KeyError::Zero),
        ("one", low_byte(1), KeyError::SmallOrder),
        ("p - 1", prime_plus(-1), KeyError::SmallOrder),
        ("order 8, first", order_8[0], KeyError::SmallOrder),
        ("order 8, second", order_8[1], KeyError::SmallOrder),
        ("p, which is zero", prime_plus(0), KeyError::NonCanonical),
        ("p + 1, which is one", prime_plus(1), KeyError::NonCanonical),
        ("p + 9, which is the base point", prime_plus(9), KeyError::NonCanonical),
        ("2^255 - 1", prime_plus(18), KeyError::NonCanonical),
        ("zero with the ignored bit", with_top_bit([0; 32]), KeyError::NonCanonical),
        ("one with the ignored bit", with_top_bit(low_byte(1)), KeyError::NonCanonical),
        ("base point with the ignored bit", with_top_bit(low_byte(9)), KeyError::NonCanonical),
        ("order 8 with the ignored bit", with_top_bit(order_8[0]), KeyError::NonCanonical),
        ("all ones", [0xff; 32], KeyError::NonCanonical),
    ];
    for (name, bytes, expected) in table {
        assert_eq!(PublicKey::from_bytes(bytes).validate(), Err(expected), "{name}");
    }
}

#[test]
fn good_points_are_accepted() {
    for bytes in [low_byte(9), low_byte(2), prime_plus(-2)] {
        assert_eq!(PublicKey::from_bytes(bytes).validate(), Ok(()), "{bytes:02x?}");
    }
    for seed in 1..=64 {
        assert_eq!(PrivateKey::from_bytes([seed; 32]).public_key().validate(), Ok(()), "{seed}");
    }
}

#[test]
fn small_order_points_make_no_secret() {
    let own = PrivateKey::from_bytes([7; 32]);
    let order_8 = ORDER_8.map(|text| *text.parse::<PublicKey>().unwrap().as_bytes());
    for bytes in [[0; 32], low_byte(1), prime_plus(-1), prime_plus(0), prime_plus(1), order_8[0], order_8[1]] {
        for bytes in [bytes, with_top_bit(bytes)] {
            let refused = own.diffie_hellman(&PublicKey::from_bytes(bytes));
            assert_eq!(refused.err(), Some(KeyError::NonContributory), "{bytes:02x?}");
        }
    }
}

#[test]
fn base64_is_the_form_of_wg() {
    // RFC 7748, section 6.1: Alice's key pair.
    let private = "dwdtCnMYpX08FsFyUbJmRd9ML4frwJkqsXf7pR25LCo=";
    let public = "hSDwCYkwp1R0i33ctD73Wg2/Og0mOBr066SpjqqbTmo=";
    let key = PrivateKey::from_base64(private).unwrap();
    assert_eq!(key.public_key().to_string(), public);
    assert_eq!(public.parse(), Ok(key.public_key()));
    // `wg` prints keys clamped; Alice's raw bytes are not.
    assert_eq!(key.to_base64().as_str(), "cAdtCnMYpX08FsFyUbJmRd9ML4frwJkqsXf7pR25LGo=");
    assert_eq!(format!("{:?} {}", key.public_key(), key.public_key().short()), "hSDwCYkw hSDwCYkw");
}

#[test]
fn other_text_is_refused() {
    let table = [
        ("", KeyError::Length { found: 0 }),
        ("hSDwCYkwp1R0i33ctD73Wg2/Og0mOBr066SpjqqbTmo", KeyError::Length { found: 43 }),
        ("hSDwCYkwp1R0i33ctD73Wg2/Og0mOBr066SpjqqbTmo=\n", KeyError::Length { found: 45 }),
        // 33 bytes, 31 bytes, stray bits after the last byte, the URL alphabet, something else.
        ("hSDwCYkwp1R0i33ctD73Wg2/Og0mOBr066SpjqqbTmoA", KeyError::Encoding),
        ("hSDwCYkwp1R0i33ctD73Wg2/Og0mOBr066SpjqqbTg==", KeyError::Encoding),
        ("hSDwCYkwp1R0i33ctD73Wg2/Og0mOBr066SpjqqbTmp=", KeyError::Encoding),
        ("hSDwCYkwp1R0i33ctD73Wg2_Og0mOBr066SpjqqbTmo=", KeyError::Encoding),
        ("hSDwCYkwp1R0i33ctD73Wg2/Og0mOBr066SpjqqbT\u{e9}=", KeyError::Encoding),
    ];
    for (text, expected) in table {
        assert_eq!(text.parse::<PublicKey>(), Err(expected), "{text:?}");
        assert_eq!(PrivateKey::from_base64(text).err(), Some(expected), "{text:?}");
    }
}

#[test]
fn secrets_do_not_print() {
    let own = PrivateKey::from_bytes([7; 32]);
    let shared = own.diffie_hellman(&PublicKey::from_bytes(low_byte(9))).unwrap();
    assert_eq!(format!("{own:?} {shared:?}"), "PrivateKey(..) SharedSecret(..)");
    let peer = PrivateKey::from_bytes([8; 32]).public_key();
    let pair = wire::pair::PairKeys::derive(&own, &peer, "mesh", None).unwrap();
    assert_eq!(format!("{pair:?}"), "PairKeys(..)");
}
