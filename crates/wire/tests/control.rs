//! Control messages come back as they went, and nothing else is one.

use std::net::SocketAddr;

use proptest::prelude::*;
use wire::PublicKey;
use wire::control::{
    DeniedReason, LENGTH_LEN, Leg, MAX_MESSAGE_LEN, RefusedReason, ReleasedReason, ToNode, ToRelay, VERSION,
    decode_to_node, decode_to_relay,
};
use wire::relay::{AllocationId, LegKey, MAX_FORWARDED_LEN, Side};
use wire::stun::TransactionId;

const NODE: PublicKey = PublicKey::from_bytes([7; 32]);
const TX: TransactionId = TransactionId([9; 12]);

fn addresses() -> [SocketAddr; 2] {
    ["192.0.2.1:51820", "[2001:db8::1]:1"].map(|text| text.parse().expect("an address"))
}

fn to_relay() -> Vec<ToRelay> {
    let mut all = vec![
        ToRelay::Hello { version: VERSION, node: NODE },
        ToRelay::Meet(NODE),
        ToRelay::Part(NODE),
        ToRelay::Allocate { partner: NODE, hint: None },
        ToRelay::Allocate { partner: NODE, hint: Some(51900) },
        ToRelay::Release(NODE),
        ToRelay::Signal { to: NODE, bytes: vec![3; 356] },
        ToRelay::Ping,
        ToRelay::Data { allocation: AllocationId(u64::MAX), packet: vec![4; MAX_FORWARDED_LEN] },
        ToRelay::Attach { partner: NODE },
    ];
    all.extend(addresses().map(|to| ToRelay::Stray { to, tx: TX }));
    all
}

fn to_node() -> Vec<ToNode> {
    let leg = |side| Leg {
        allocation: AllocationId(5),
        side,
        port: 51963,
        key: LegKey::from_bytes([8; 32]),
        counter: 1 << 40,
    };
    let mut all = vec![
        ToNode::Ready(NODE),
        ToNode::Unbound(NODE),
        ToNode::Signal { from: NODE, bytes: vec![3; 356] },
        ToNode::Drain { seconds: 30 },
        ToNode::Pong,
        ToNode::Data { allocation: AllocationId(1), packet: vec![4; 32] },
    ];
    all.extend(addresses().map(|observed| ToNode::Welcome { boot: 77, observed }));
    all.extend(addresses().map(|from| ToNode::StraySent { tx: TX, from }));
    all.extend([false, true].map(|met| ToNode::Present { node: NODE, met }));
    all.extend(Side::BOTH.map(|side| ToNode::Allocated { partner: NODE, leg: leg(side) }));
    let denied = [
        DeniedReason::NotAdmitted,
        DeniedReason::Replaced,
        DeniedReason::Version,
        DeniedReason::Full,
        DeniedReason::Protocol,
    ];
    all.extend(denied.map(ToNode::Denied));
    let refused =
        [RefusedReason::NotAdmitted, RefusedReason::PortsExhausted, RefusedReason::Full, RefusedReason::TooMany];
    all.extend(refused.map(|reason| ToNode::Refused { partner: NODE, reason }));
    let released = [
        ReleasedReason::Asked,
        ReleasedReason::NotBound,
        ReleasedReason::Idle,
        ReleasedReason::Removed,
        ReleasedReason::Unwanted,
    ];
    all.extend(released.map(|reason| ToNode::Released { partner: NODE, reason }));
    all
}

fn encoded<T>(message: &T, encode: impl Fn(&T, &mut Vec<u8>)) -> Vec<u8> {
    let mut bytes = vec![0xee];
    encode(message, &mut bytes);
    bytes.remove(0);
    let length = usize::from(u16::from_be_bytes([bytes[0], bytes[1]]));
    assert_eq!(length, bytes.len() - LENGTH_LEN, "the length is that of the rest");
    assert!(length <= MAX_MESSAGE_LEN);
    bytes.split_off(LENGTH_LEN)
}

#[test]
fn what_a_node_says_comes_back_as_it_went() {
    for message in to_relay() {
        assert_eq!(decode_to_relay(&encoded(&message, ToRelay::encode)), Ok(message));
    }
}

#[test]
fn what_a_relay_says_comes_back_as_it_went() {
    for message in to_node() {
        let bytes = encoded(&message, ToNode::encode);
        let decoded = decode_to_node(&bytes).unwrap();
        assert_eq!((encoded(&decoded, ToNode::encode), format!("{decoded:?}")), (bytes, format!("{message:?}")));
    }
}

#[test]
fn a_cut_or_lengthened_message_is_none() {
    let is_open = |bytes: &[u8]| matches!(bytes.first(), Some(0x06 | 0x09 | 0x89 | 0x8d));
    let mut all: Vec<_> = to_relay().iter().map(|message| encoded(message, ToRelay::encode)).collect();
    all.extend(to_node().iter().map(|message| encoded(message, ToNode::encode)));
    for bytes in all {
        for end in 0..bytes.len().min(100) {
            let is_message = decode_to_relay(&bytes[..end]).is_ok() || decode_to_node(&bytes[..end]).is_ok();
            assert!(!is_message || is_open(&bytes), "{:02x?} cut to {end}", &bytes[..end]);
        }
        let longer = [bytes.as_slice(), &[0; MAX_MESSAGE_LEN]].concat();
        assert!(decode_to_relay(&longer).is_err() && decode_to_node(&longer).is_err());
    }
}

#[test]
fn a_leg_key_is_not_printed() {
    let leg =
        Leg { allocation: AllocationId(5), side: Side::Low, port: 1, key: LegKey::from_bytes([0xab; 32]), counter: 0 };
    let shown = format!("{leg:?}");
    assert!(!shown.contains("171") && !shown.contains("abab"), "{shown}");
}

#[test]
fn data_is_read_and_written_without_owning_the_packet() {
    let (allocation, packet) = (AllocationId(0x0102_0304_0506_0708), vec![4; 1432]);
    let to_relay = encoded(&ToRelay::Data { allocation, packet: packet.clone() }, ToRelay::encode);
    let to_node = encoded(&ToNode::Data { allocation, packet: packet.clone() }, ToNode::encode);
    assert_eq!(encoded(&(), |(), out| ToRelay::encode_data(allocation, &packet, out)), to_relay);
    assert_eq!(encoded(&(), |(), out| ToNode::encode_data(allocation, &packet, out)), to_node);
    let expected = Some((allocation, packet.as_slice()));
    assert_eq!((ToRelay::as_data(&to_relay), ToNode::as_data(&to_node)), (expected, expected));
    assert_eq!((ToRelay::as_data(&to_node), ToNode::as_data(&to_relay)), (None, None), "each from its own side");
    let longest = [to_relay.as_slice(), &[0; MAX_FORWARDED_LEN]].concat();
    assert!(ToRelay::as_data(&longest).is_none() && ToRelay::as_data(&to_relay[..8]).is_none());
}

proptest! {
    #[test]
    fn any_bytes_are_a_message_or_refused(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
        if let Ok(message) = decode_to_relay(&bytes) {
            prop_assert_eq!(encoded(&message, ToRelay::encode).len(), bytes.len());
            prop_assert_eq!(ToRelay::as_data(&bytes).is_some(), matches!(message, ToRelay::Data { .. }));
        }
        if let Ok(message) = decode_to_node(&bytes) {
            prop_assert_eq!(encoded(&message, ToNode::encode).len(), bytes.len());
            prop_assert_eq!(ToNode::as_data(&bytes).is_some(), matches!(message, ToNode::Data { .. }));
        }
    }
}
