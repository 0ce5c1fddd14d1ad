//! Relay messages: what authenticates, what owns a datagram, what may be forwarded.

#![allow(clippy::unwrap_used)]

use std::net::SocketAddr;

use proptest::prelude::*;
use wire::relay::{
    self, AllocationId, Body, Forged, Frame, Header, LegKey, MAX_FORWARDED_LEN, MESSAGE_LEN, Side, Token,
};
use wire::stun;

const HEADER: Header = Header { allocation: AllocationId(7), side: Side::High, counter: 3 };

fn key(seed: u8) -> LegKey {
    LegKey::from_bytes([seed; 32])
}

fn bodies() -> [Body; 5] {
    [
        Body::Bind,
        Body::Challenge(Token([9; 16])),
        Body::Answer(Token([9; 16])),
        Body::Bound { observed: "192.0.2.1:1".parse().unwrap() },
        Body::Bound { observed: "[2001:db8::1]:65535".parse().unwrap() },
    ]
}

#[test]
fn every_bit_is_protected() {
    for body in bodies() {
        let sealed = relay::seal(&key(1), &HEADER, &body);
        for bit in 0..MESSAGE_LEN * 8 {
            let mut altered = sealed;
            altered[bit / 8] ^= 1 << (bit % 8);
            let opened = Frame::parse(&altered).map(|frame| frame.open(&key(1)));
            assert!(opened.is_none_or(|opened| opened == Err(Forged)), "bit {bit} of {body:?}");
        }
    }
}

#[test]
fn another_key_opens_nothing() {
    for body in bodies() {
        let sealed = relay::seal(&key(1), &HEADER, &body);
        assert_eq!(Frame::parse(&sealed).unwrap().open(&key(2)), Err(Forged));
    }
}

#[test]
fn a_message_cannot_be_passed_off_as_another() {
    let sealed = relay::seal(&key(1), &HEADER, &Body::Challenge(Token([9; 16])));
    for kind in [0x81, 0x83, 0x84] {
        let mut turned = sealed;
        turned[0] = kind;
        assert_eq!(Frame::parse(&turned).unwrap().open(&key(1)), Err(Forged));
    }
}

/// A middlebox that rewrites addresses in payloads does not find one.
#[test]
fn the_observed_address_is_not_in_clear() {
    let sealed = relay::seal(&key(1), &HEADER, &Body::Bound { observed: "192.0.2.1:1".parse().unwrap() });
    assert!(!sealed.windows(4).any(|bytes| bytes == [192, 0, 2, 1]));
}

#[test]
fn only_the_right_size_kind_version_and_side_are_framed() {
    let sealed = relay::seal(&key(1), &HEADER, &Body::Bind);
    for len in 0..MESSAGE_LEN {
        assert!(Frame::parse(&sealed[..len]).is_none() && !relay::is_relay(&sealed[..len]), "{len} bytes");
    }
    let longer = [&sealed[..], &[0]].concat();
    assert!(Frame::parse(&longer).is_none() && !relay::is_relay(&longer));
    for (at, byte) in [(0, 0x80), (0, 0x85), (0, 1), (0, 0), (1, 0), (1, 2), (2, 2)] {
        let mut altered = sealed;
        altered[at] = byte;
        assert!(Frame::parse(&altered).is_none(), "byte {at} = {byte}");
    }
}

#[test]
fn wireguard_messages_of_their_right_size_are_forwardable() {
    let message = |kind: u8, len: usize| {
        let mut message = vec![0xa5; len];
        message[..4].copy_from_slice(&[kind, 0, 0, 0]);
        message
    };
    for (kind, len) in [(1, 148), (2, 92), (3, 64), (4, 32), (4, 33), (4, 1452), (4, MAX_FORWARDED_LEN)] {
        assert!(relay::is_forwardable(&message(kind, len)), "type {kind}, {len} bytes");
    }
    let wrong = [(0, 148), (5, 148), (1, 147), (1, 149), (2, 148), (3, 148), (4, 31), (4, MAX_FORWARDED_LEN + 1)];
    for (kind, len) in wrong {
        assert!(!relay::is_forwardable(&message(kind, len)), "type {kind}, {len} bytes");
    }
    for reserved in 1..4 {
        let mut altered = message(4, 64);
        altered[reserved] = 1;
        assert!(!relay::is_forwardable(&altered));
    }
    for len in 0..4 {
        assert!(!relay::is_forwardable(&message(4, 4)[..len]));
    }
}

#[test]
fn secrets_do_not_print() {
    assert_eq!(format!("{:?}", key(0xab)), "LegKey(..)");
}

fn any_body() -> impl Strategy<Value = Body> {
    let address = (any::<std::net::IpAddr>(), any::<u16>());
    prop_oneof![
        Just(Body::Bind),
        any::<[u8; 16]>().prop_map(|token| Body::Challenge(Token(token))),
        any::<[u8; 16]>().prop_map(|token| Body::Answer(Token(token))),
        address.prop_map(|(ip, port)| Body::Bound { observed: SocketAddr::new(ip.to_canonical(), port) }),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(512) })]

    #[test]
    fn messages_come_back(
        secret in any::<[u8; 32]>(), id in any::<u64>(), high in any::<bool>(), counter in any::<u64>(), body in any_body(),
    ) {
        let key = LegKey::from_bytes(secret);
        let header = Header { allocation: AllocationId(id), side: Side::BOTH[usize::from(high)], counter };
        let sealed = relay::seal(&key, &header, &body);
        let frame = Frame::parse(&sealed).unwrap();
        prop_assert_eq!((frame.header(), frame.open(&key)), (header, Ok(body)));
        prop_assert!(relay::is_relay(&sealed));
        prop_assert!(!stun::is_stun(&sealed) && !stun::is_wireguard(&sealed) && !relay::is_forwardable(&sealed));
    }
}
