//! Who can read a signal, and what is refused.

#![allow(clippy::unwrap_used)]

use wire::key::PrivateKey;
use wire::pair::PairKeys;
use wire::probe::OpenError;
use wire::probe::signal::{self, MAX_CANDIDATES, SIGNAL_LEN, Signal, Step};
use wire::stun::TransactionId;

const ID: TransactionId = TransactionId([0x5a; 12]);

fn derive(own: u8, peer: u8) -> PairKeys {
    let peer = PrivateKey::from_bytes([peer; 32]).public_key();
    PairKeys::derive(&PrivateKey::from_bytes([own; 32]), &peer, "mesh", None).unwrap()
}

fn call(candidates: usize) -> Signal {
    let candidate = |n: usize| (1, format!("192.0.2.1:{}", 1 + n).parse().unwrap());
    Signal { step: Step::Call, poisonable: true, class: 2, candidates: (0..candidates).map(candidate).collect() }
}

#[test]
fn only_the_peer_can_open() {
    let sealed = signal::seal(&derive(1, 2), ID, &call(2));
    assert_eq!(signal::open(&derive(2, 1), &sealed), Ok((ID, call(2))));
    for (name, keys) in [("the sender", derive(1, 2)), ("another node, such as the relay", derive(3, 1))] {
        assert_eq!(signal::open(&keys, &sealed), Err(OpenError::UnknownKey), "{name}");
    }
}

#[test]
fn every_bit_is_protected() {
    let theirs = derive(2, 1);
    let sealed = signal::seal(&derive(1, 2), ID, &call(2));
    for bit in 0..sealed.len() * 8 {
        let mut altered = sealed.clone();
        altered[bit / 8] ^= 1 << (bit % 8);
        assert!(signal::open(&theirs, &altered).is_err(), "bit {bit}");
    }
}

#[test]
fn every_signal_has_the_same_size_and_nothing_else_is_one() {
    let (ours, theirs) = (derive(1, 2), derive(2, 1));
    for candidates in [0, 1, MAX_CANDIDATES] {
        assert_eq!(signal::seal(&ours, ID, &call(candidates)).len(), SIGNAL_LEN);
    }
    let sealed = signal::seal(&ours, ID, &call(1));
    for len in 0..sealed.len() {
        assert_eq!(signal::open(&theirs, &sealed[..len]), Err(OpenError::NotSignal), "{len} bytes");
    }
    assert_eq!(signal::open(&theirs, &[&sealed[..], &[0]].concat()), Err(OpenError::NotSignal));
}

#[test]
fn candidates_beyond_the_limit_are_not_sent() {
    let sealed = signal::seal(&derive(1, 2), ID, &call(MAX_CANDIDATES + 3));
    assert_eq!(signal::open(&derive(2, 1), &sealed).unwrap().1, call(MAX_CANDIDATES));
}
