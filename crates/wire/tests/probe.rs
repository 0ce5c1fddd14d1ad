//! What a probe proves, and to whom.

#![allow(clippy::unwrap_used)]

use std::net::SocketAddr;

use wire::key::{KeyError, PrivateKey};
use wire::pair::PairKeys;
use wire::probe::{self, OpenError, PROBE_LEN, Probe};
use wire::proof;
use wire::stun::{self, TransactionId};

const TX: TransactionId = TransactionId([0x5a; 12]);

fn derive(own: u8, peer: u8, mesh_id: &str, psk: Option<u8>) -> PairKeys {
    let peer = PrivateKey::from_bytes([peer; 32]).public_key();
    let psk = psk.map(|byte| [byte; 32]);
    PairKeys::derive(&PrivateKey::from_bytes([own; 32]), &peer, mesh_id, psk.as_ref()).unwrap()
}

fn pong(observed: &str) -> Probe {
    Probe::Pong { observed: observed.parse().unwrap() }
}

#[test]
fn only_the_peer_can_open() {
    let ping = probe::seal(&derive(1, 2, "mesh", None), TX, &Probe::Ping);
    assert_eq!(probe::open(&derive(2, 1, "mesh", None), &ping), Ok((TX, Probe::Ping)));
    let strangers = [
        ("the sender itself, to whom it was reflected", derive(1, 2, "mesh", None)),
        ("another node", derive(3, 1, "mesh", None)),
        ("the same keys in another mesh", derive(2, 1, "mesh2", None)),
        ("the same keys in a mesh with a PSK", derive(2, 1, "mesh", Some(0))),
    ];
    for (name, keys) in strangers {
        assert_eq!(probe::open(&keys, &ping), Err(OpenError::UnknownKey), "{name}");
    }
    assert_ne!(derive(1, 2, "mesh", Some(0)).send_id(), derive(1, 2, "mesh", Some(1)).send_id());
}

#[test]
fn a_known_key_id_is_not_enough() {
    let (ours, theirs) = (derive(1, 2, "mesh", None), derive(2, 1, "mesh", None));
    let other = derive(3, 2, "mesh", None);
    let mut forged = probe::seal(&other, TX, &Probe::Ping);
    forged[24..32].copy_from_slice(&ours.send_id().0);
    assert_eq!(probe::open(&theirs, &forged), Err(OpenError::Forged));
}

#[test]
fn every_bit_is_protected() {
    let (ours, theirs) = (derive(1, 2, "mesh", None), derive(2, 1, "mesh", None));
    let sealed = probe::seal(&ours, TX, &pong("192.0.2.1:1"));
    for bit in 0..sealed.len() * 8 {
        let mut altered = sealed.clone();
        altered[bit / 8] ^= 1 << (bit % 8);
        assert!(probe::open(&theirs, &altered).is_err(), "bit {bit}");
    }
}

#[test]
fn a_request_cannot_be_passed_off_as_its_answer() {
    let (ours, theirs) = (derive(1, 2, "mesh", None), derive(2, 1, "mesh", None));
    let mut ping = probe::seal(&ours, TX, &Probe::Ping);
    ping[..2].copy_from_slice(&[0x01, 0x01]);
    assert_eq!(probe::open(&theirs, &ping), Err(OpenError::Forged));
}

#[test]
fn all_probes_have_one_size() {
    let keys = derive(1, 2, "mesh", None);
    let probes = [
        Probe::Ping,
        pong("192.0.2.1:1"),
        pong("[2001:db8::1]:65535"),
        Probe::Nominate { epoch: 1 },
        Probe::NominateAck { epoch: 1 },
    ];
    for probe in probes {
        assert_eq!(probe::seal(&keys, TX, &probe).len(), PROBE_LEN, "{probe:?}");
    }
    assert!(stun::encode_success(TX, SocketAddr::from(([0u16; 8], 1))).len() <= PROBE_LEN);
}

/// Somebody replays one PING from two addresses and sees both PONGs, which share the transaction id and so the nonce.
#[test]
fn two_answers_to_one_ping_do_not_share_a_keystream() {
    let keys = derive(1, 2, "mesh", None);
    let one = probe::seal(&keys, TX, &pong("192.0.2.1:1"));
    let two = probe::seal(&keys, TX, &pong("192.0.2.2:1"));
    // The first ten bytes of plaintext (kind, flags, epoch) are equal; under one keystream so would be the ciphertext.
    assert_ne!(one[40..50], two[40..50]);
    assert_eq!(one, probe::seal(&keys, TX, &pong("192.0.2.1:1")));
}

#[test]
fn an_ipv4_source_is_ipv4_to_the_peer() {
    let (ours, theirs) = (derive(1, 2, "mesh", None), derive(2, 1, "mesh", None));
    let sealed = probe::seal(&ours, TX, &pong("[::ffff:192.0.2.1]:9"));
    assert_eq!(probe::open(&theirs, &sealed), Ok((TX, pong("192.0.2.1:9"))));
}

#[test]
fn a_node_has_no_pair_with_itself() {
    let own = PrivateKey::from_bytes([1; 32]);
    let refused = PairKeys::derive(&own, &own.public_key(), "mesh", None);
    assert_eq!(refused.err(), Some(KeyError::OwnKey));
}

#[test]
fn a_proof_is_for_one_node_one_challenge_and_one_key() {
    let (node, operator) = (PrivateKey::from_bytes([1; 32]), PrivateKey::from_bytes([2; 32]));
    let (public, other) = (node.public_key(), PrivateKey::from_bytes([3; 32]).public_key());
    let shared = operator.diffie_hellman(&public).unwrap();
    let made = proof::key_proof(&node.diffie_hellman(&operator.public_key()).unwrap(), b"challenge", "uid", &public);

    assert!(proof::verify_key_proof(&shared, b"challenge", "uid", &public, &made));
    assert!(!proof::verify_key_proof(&shared, b"challeng", "euid", &public, &made), "a byte moved over");
    assert!(!proof::verify_key_proof(&shared, b"challenge", "uid2", &public, &made));
    assert!(!proof::verify_key_proof(&shared, b"older", "uid", &public, &made));
    assert!(!proof::verify_key_proof(&shared, b"challenge", "uid", &other, &made));

    // Whoever copies the public key from a status cannot compute the secret that the operator will use.
    let thief = PrivateKey::from_bytes([3; 32]);
    let stolen = proof::key_proof(&thief.diffie_hellman(&operator.public_key()).unwrap(), b"challenge", "uid", &public);
    assert!(!proof::verify_key_proof(&shared, b"challenge", "uid", &public, &stolen));
}
