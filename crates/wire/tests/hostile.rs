//! Properties over arbitrary bytes, and over valid bytes with damage.

#![allow(clippy::unwrap_used)]

use std::net::{IpAddr, SocketAddr};
use std::sync::LazyLock;

use proptest::prelude::*;
use wire::key::{PrivateKey, PublicKey};
use wire::pair::PairKeys;
use wire::probe::signal::{self, MAX_CANDIDATES, SIGNAL_LEN, Signal, Step};
use wire::probe::{self, PROBE_LEN, Probe};
use wire::proof::KeyProof;
use wire::stun::{self, Class, TransactionId};

/// Longest datagram tried: above every message of ours, below the cost of a slow test.
const LONGEST: usize = 300;

/// Both ends of one pair.
static PAIR: LazyLock<(PairKeys, PairKeys)> = LazyLock::new(|| {
    let keys = [1, 2].map(|byte| PrivateKey::from_bytes([byte; 32]));
    let publics = [keys[0].public_key(), keys[1].public_key()];
    let derive = |own: usize, peer: usize| PairKeys::derive(&keys[own], &publics[peer], "mesh", None).unwrap();
    (derive(0, 1), derive(1, 0))
});

fn any_address() -> impl Strategy<Value = SocketAddr> {
    (any::<IpAddr>(), any::<u16>()).prop_map(|(ip, port)| SocketAddr::new(ip.to_canonical(), port))
}

fn any_probe() -> impl Strategy<Value = Probe> {
    prop_oneof![
        Just(Probe::Ping),
        any_address().prop_map(|observed| Probe::Pong { observed }),
        any::<u64>().prop_map(|epoch| Probe::Nominate { epoch }),
        any::<u64>().prop_map(|epoch| Probe::NominateAck { epoch }),
    ]
}

fn any_signal() -> impl Strategy<Value = Signal> {
    let answers = || any::<[u8; 12]>().prop_map(TransactionId);
    let step = prop_oneof![
        Just(Step::Call),
        answers().prop_map(|answers| Step::Ready { answers }),
        answers().prop_map(|answers| Step::Go { answers }),
    ];
    let candidates = prop::collection::vec((any::<u8>(), any_address()), 0..=MAX_CANDIDATES);
    (step, any::<bool>(), any::<u8>(), candidates).prop_map(|(step, poisonable, class, candidates)| Signal {
        step,
        poisonable,
        class,
        candidates,
    })
}

/// A well-formed message of any type with any attributes, lengths included, so that decoding gets past the framing.
fn any_stun() -> impl Strategy<Value = Vec<u8>> {
    let interesting =
        prop_oneof![any::<u16>(), (0u16..0x30), prop::sample::select(vec![0x0001, 0x0009, 0x0020, 0xda57, 0xda58])];
    let attribute = (interesting, prop::collection::vec(any::<u8>(), 0..24), -2i32..3);
    let kind = prop_oneof![prop::sample::select(vec![0x0001u16, 0x0011, 0x0101, 0x0111]), any::<u16>()];
    (kind, any::<[u8; 12]>(), prop::collection::vec(attribute, 0..40)).prop_map(|(kind, tx, attributes)| {
        let mut body = Vec::new();
        for (attribute_type, value, lie) in attributes {
            let claimed = u16::try_from((i32::try_from(value.len()).unwrap() + lie).max(0)).unwrap();
            body.extend(attribute_type.to_be_bytes());
            body.extend(claimed.to_be_bytes());
            body.extend(&value);
            body.resize(body.len().next_multiple_of(4), 0);
        }
        let mut message = kind.to_be_bytes().to_vec();
        message.extend(u16::try_from(body.len()).unwrap().to_be_bytes());
        message.extend([0x21, 0x12, 0xa4, 0x42]);
        message.extend(tx);
        message.extend(body);
        message
    })
}

/// Bytes of every kind that can reach the port.
fn any_datagram() -> impl Strategy<Value = Vec<u8>> {
    let noise = prop::collection::vec(any::<u8>(), 0..LONGEST);
    let wireguard = (1u8..5, prop::collection::vec(any::<u8>(), 0..LONGEST))
        .prop_map(|(kind, rest)| [vec![kind, 0, 0, 0], rest].concat());
    let cookie = (any::<[u8; 4]>(), prop::collection::vec(any::<u8>(), 0..LONGEST))
        .prop_map(|(start, rest)| [&start[..], &[0x21, 0x12, 0xa4, 0x42], &rest].concat());
    prop_oneof![noise, wireguard, cookie, any_stun()]
}

/// Valid messages with a few bytes changed, cut off or appended.
fn damaged() -> impl Strategy<Value = Vec<u8>> {
    let valid = prop_oneof![
        (any_probe(), any::<[u8; 12]>()).prop_map(|(probe, tx)| probe::seal(&PAIR.0, TransactionId(tx), &probe)),
        (any_address(), any::<[u8; 12]>()).prop_map(|(mapped, tx)| stun::encode_success(TransactionId(tx), mapped)),
        (0usize..LONGEST, any::<[u8; 12]>()).prop_map(|(size, tx)| stun::encode_request(TransactionId(tx), size)),
        any_stun(),
    ];
    let damage = prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..4);
    (valid, damage, any::<prop::sample::Index>(), prop::collection::vec(any::<u8>(), 0..8), 0u8..3).prop_map(
        |(mut bytes, damage, cut, tail, how)| {
            for (at, byte) in damage {
                let at = at.index(bytes.len());
                bytes[at] = byte;
            }
            match how {
                0 => bytes.truncate(cut.index(bytes.len())),
                1 => bytes.extend(tail),
                _ => {}
            }
            bytes
        },
    )
}

fn decode_everything(bytes: &[u8]) {
    let (_, keys) = &*PAIR;
    if let Ok(message) = stun::decode(bytes) {
        assert!(stun::is_stun(bytes));
        assert!(message.error_code.is_none_or(|code| (300..700).contains(&code)));
        assert!(message.probe.is_none_or(|value| value.len() < bytes.len()));
    }
    if probe::key_id(bytes).is_none() {
        assert!(probe::open(keys, bytes).is_err());
    }
    if probe::open(keys, bytes).is_ok() {
        assert_eq!(bytes.len(), PROBE_LEN);
    }
    let text = String::from_utf8_lossy(bytes);
    let _ = (text.parse::<PublicKey>(), text.parse::<KeyProof>(), PrivateKey::from_base64(&text));
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(512) })]

    #[test]
    fn a_signal_arrives_as_it_was_sent_and_damage_is_noticed(
        id: [u8; 12],
        signal in any_signal(),
        at in 0..SIGNAL_LEN,
        damage in 1u8..,
    ) {
        let (ours, theirs) = &*PAIR;
        let mut sealed = signal::seal(ours, TransactionId(id), &signal);
        prop_assert_eq!(signal::open(theirs, &sealed), Ok((TransactionId(id), signal)));
        sealed[at] ^= damage;
        prop_assert!(signal::open(theirs, &sealed).is_err());
    }

    #[test]
    fn no_bytes_make_a_signal(bytes in prop::collection::vec(any::<u8>(), SIGNAL_LEN - 2..SIGNAL_LEN + 2)) {
        prop_assert!(signal::open(&PAIR.1, &bytes).is_err());
    }

    #[test]
    fn no_bytes_panic(bytes in any_datagram()) {
        decode_everything(&bytes);
    }

    #[test]
    fn no_damage_panics(bytes in damaged()) {
        decode_everything(&bytes);
    }

    #[test]
    fn a_datagram_has_one_owner(bytes in prop_oneof![any_datagram(), damaged()]) {
        prop_assert!(!(stun::is_stun(&bytes) && stun::is_wireguard(&bytes)));
    }

    #[test]
    fn a_wireguard_message_with_the_cookie_stays_wireguard(
        kind in 1u8..5,
        rest in prop::collection::vec(any::<u8>(), 24..LONGEST),
    ) {
        let message = [&[kind, 0, 0, 0, 0x21, 0x12, 0xa4, 0x42], &rest[..]].concat();
        prop_assert!(stun::is_wireguard(&message) && !stun::is_stun(&message));
        prop_assert!(stun::decode(&message).is_err());
    }

    #[test]
    fn what_we_send_is_stun(tx in any::<[u8; 12]>(), size in 0usize..2000, mapped in any_address(), probe in any_probe()) {
        let tx = TransactionId(tx);
        for message in [stun::encode_request(tx, size), stun::encode_success(tx, mapped), probe::seal(&PAIR.0, tx, &probe)] {
            prop_assert!(stun::is_stun(&message) && !stun::is_wireguard(&message));
        }
    }

    #[test]
    fn requests_come_back(tx in any::<[u8; 12]>(), size in 0usize..2000) {
        let request = stun::encode_request(TransactionId(tx), size);
        prop_assert!(request.len() >= size.min(stun::MAX_REQUEST_LEN));
        prop_assert!(request.len() <= stun::MAX_REQUEST_LEN);
        let message = stun::decode(&request).unwrap();
        prop_assert_eq!((message.class, message.tx), (Class::Request, TransactionId(tx)));
        prop_assert_eq!(message.unknown_required, None);
    }

    #[test]
    fn addresses_come_back(tx in any::<[u8; 12]>(), mapped in any_address()) {
        let success = stun::encode_success(TransactionId(tx), mapped);
        prop_assert!(success.len() <= stun::MAX_SUCCESS_LEN);
        let message = stun::decode(&success).unwrap();
        prop_assert_eq!((message.class, message.tx, message.mapped), (Class::Success, TransactionId(tx), Some(mapped)));
    }

    #[test]
    fn probes_come_back(tx in any::<[u8; 12]>(), probe in any_probe()) {
        let (ours, theirs) = &*PAIR;
        let sealed = probe::seal(ours, TransactionId(tx), &probe);
        prop_assert_eq!(sealed.len(), PROBE_LEN);
        prop_assert_eq!(probe::open(theirs, &sealed), Ok((TransactionId(tx), probe)));
    }
}

proptest! {
    // Each case multiplies points several times, which is slow without optimisation.
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(32) })]

    #[test]
    fn both_ends_agree(one in any::<[u8; 32]>(), two in any::<[u8; 32]>(), mesh_id in ".{0,64}", psk in any::<Option<[u8; 32]>>()) {
        let (one, two) = (PrivateKey::from_bytes(one), PrivateKey::from_bytes(two));
        prop_assume!(one.public_key() != two.public_key());
        let at_one = PairKeys::derive(&one, &two.public_key(), &mesh_id, psk.as_ref()).unwrap();
        let at_two = PairKeys::derive(&two, &one.public_key(), &mesh_id, psk.as_ref()).unwrap();
        prop_assert_eq!((at_one.send_id(), at_one.receive_id()), (at_two.receive_id(), at_two.send_id()));
        prop_assert_ne!(at_one.send_id(), at_one.receive_id());
    }

    #[test]
    fn keys_come_back(bytes in any::<[u8; 32]>()) {
        let public = PublicKey::from_bytes(bytes);
        prop_assert_eq!(public.to_string().parse(), Ok(public));
        let private = PrivateKey::from_bytes(bytes);
        prop_assert_eq!(private.public_key().validate(), Ok(()));
        let again = PrivateKey::from_base64(&private.to_base64()).unwrap();
        prop_assert_eq!(again.expose_bytes(), private.expose_bytes());
    }
}
