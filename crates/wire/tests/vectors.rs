//! Committed vectors: what other versions and implementations must agree with, byte for byte.

#![allow(clippy::unwrap_used)]

mod table;

use std::net::SocketAddr;

use table::{Row, rows};
use wire::control::{self, Leg, ToNode, ToRelay};
use wire::key::{PrivateKey, PublicKey};
use wire::pair::{KeyId, PairKeys};
use wire::probe::signal::{self, Signal, Step};
use wire::probe::{self, Probe};
use wire::proof;
use wire::relay::{self, AllocationId, Body, Frame, Header, LegKey, Side, Token};
use wire::stun::{self, Class, TransactionId};

#[test]
fn stun_messages() {
    for row in rows(include_str!("../vectors/stun.txt")) {
        let datagram = row.bytes("datagram");
        assert!(stun::is_stun(&datagram), "{row:?}");
        let message = stun::decode(&datagram).expect("a vector decodes");
        let class = match row.text("class") {
            "request" => Class::Request,
            "success" => Class::Success,
            other => panic!("no such class {other}"),
        };
        let tx = TransactionId(row.array("tx"));
        let mapped: Option<SocketAddr> = row.optional("mapped").map(|text| text.parse().unwrap());
        let unknown = row.optional("unknown_required").map(|hex| u16::from_str_radix(hex, 16).unwrap());
        assert_eq!((message.class, message.tx, message.mapped), (class, tx, mapped), "{row:?}");
        assert_eq!(message.unknown_required, unknown, "{row:?}");

        if row.text("source") == "ours" {
            let encoded = match mapped {
                Some(mapped) => stun::encode_success(tx, mapped),
                None => stun::encode_request(tx, datagram.len()),
            };
            assert_eq!(encoded, datagram, "{row:?}");
        }
    }
}

#[test]
fn pair_keys() {
    for row in rows(include_str!("../vectors/pair.txt")) {
        let own = PrivateKey::from_bytes(row.array("own_private"));
        let peer = PrivateKey::from_bytes(row.array("peer_private"));
        assert_eq!(own.public_key().as_bytes(), &row.array("own_public"), "{row:?}");
        assert_eq!(peer.public_key().as_bytes(), &row.array("peer_public"), "{row:?}");

        let (ours, theirs) = both_ends(&row);
        let (send, receive) = (KeyId(row.array("send_id")), KeyId(row.array("receive_id")));
        assert_eq!((ours.send_id(), ours.receive_id()), (send, receive), "{row:?}");
        assert_eq!((theirs.send_id(), theirs.receive_id()), (receive, send), "{row:?}");
    }
}

#[test]
fn probes() {
    let pairs = rows(include_str!("../vectors/pair.txt"));
    for row in rows(include_str!("../vectors/probe.txt")) {
        let pair = pairs.iter().find(|pair| pair.text("case") == row.text("pair")).unwrap();
        let (ours, theirs) = both_ends(pair);
        let tx = TransactionId(row.array("tx"));
        let datagram = row.bytes("datagram");
        let expected = expected_probe(&row);

        assert_eq!(datagram.len(), probe::PROBE_LEN, "{row:?}");
        assert_eq!(probe::seal(&ours, tx, &expected), datagram, "{row:?}");
        assert_eq!(probe::key_id(&datagram), Some(theirs.receive_id()), "{row:?}");
        assert_eq!(probe::open(&theirs, &datagram), Ok((tx, expected)), "{row:?}");
    }
}

#[test]
fn relay_messages() {
    for row in rows(include_str!("../vectors/relay.txt")) {
        let key = LegKey::from_bytes(row.array("key"));
        let header = Header {
            allocation: AllocationId(u64::from_be_bytes(row.array("allocation"))),
            side: if row.text("side") == "low" { Side::Low } else { Side::High },
            counter: row.text("counter").parse().unwrap(),
        };
        let token = || Token(row.array("token"));
        let body = match row.text("kind") {
            "bind" => Body::Bind,
            "challenge" => Body::Challenge(token()),
            "answer" => Body::Answer(token()),
            "bound" => Body::Bound { observed: row.text("observed").parse().unwrap() },
            other => panic!("no such kind {other}"),
        };
        let datagram = row.bytes("datagram");
        assert_eq!(relay::seal(&key, &header, &body).to_vec(), datagram, "{row:?}");
        let frame = Frame::parse(&datagram).unwrap();
        assert_eq!((frame.header(), frame.open(&key)), (header, Ok(body)), "{row:?}");
        assert_eq!(frame.is_from_node(), matches!(body, Body::Bind | Body::Answer(_)), "{row:?}");
    }
}

#[test]
fn control_messages() {
    for row in rows(include_str!("../vectors/control.txt")) {
        let framed = row.bytes("message");
        let (length, message) = framed.split_first_chunk().unwrap();
        assert_eq!(usize::from(u16::from_be_bytes(*length)), message.len(), "{row:?}");
        let mut again = Vec::new();
        if let Some(expected) = expected_to_relay(&row) {
            assert_eq!(control::decode_to_relay(message).as_ref(), Ok(&expected), "{row:?}");
            expected.encode(&mut again);
        } else {
            let expected = expected_to_node(&row);
            // Keys of legs are neither compared nor shown; that they come back is seen in the bytes.
            let decoded = control::decode_to_node(message).unwrap();
            assert_eq!(format!("{decoded:?}"), format!("{expected:?}"), "{row:?}");
            let mut from_decoded = Vec::new();
            decoded.encode(&mut from_decoded);
            assert_eq!(from_decoded, framed, "{row:?}");
            expected.encode(&mut again);
        }
        assert_eq!(again, framed, "{row:?}");
    }
}

#[test]
fn signals() {
    let pairs = rows(include_str!("../vectors/pair.txt"));
    for row in rows(include_str!("../vectors/signal.txt")) {
        let pair = pairs.iter().find(|pair| pair.text("case") == row.text("pair")).unwrap();
        let (ours, theirs) = both_ends(pair);
        let id = TransactionId(row.array("tx"));
        let message = row.bytes("message");
        let expected = expected_signal(&row);

        assert_eq!(message.len(), signal::SIGNAL_LEN, "{row:?}");
        assert_eq!(signal::seal(&ours, id, &expected), message, "{row:?}");
        assert_eq!(signal::key_id(&message), Some(theirs.receive_id()), "{row:?}");
        assert_eq!(signal::open(&theirs, &message), Ok((id, expected)), "{row:?}");
    }
}

#[test]
fn key_proofs() {
    for row in rows(include_str!("../vectors/proof.txt")) {
        let node = PrivateKey::from_bytes(row.array("node_private"));
        let operator = PrivateKey::from_bytes(row.array("operator_private"));
        let challenge = row.optional("challenge").map(table::hex).unwrap_or_default();
        let (uid, public) = (row.text("node_uid"), node.public_key());

        let at_node = node.diffie_hellman(&operator.public_key()).unwrap();
        let made = proof::key_proof(&at_node, &challenge, uid, &public);
        assert_eq!(made.as_bytes(), &row.array("proof"), "{row:?}");

        let at_operator = operator.diffie_hellman(&public).unwrap();
        let read = made.to_string().parse().unwrap();
        assert!(proof::verify_key_proof(&at_operator, &challenge, uid, &public, &read));
    }
}

#[test]
fn identity_seeds() {
    for row in rows(include_str!("../vectors/identity.txt")) {
        let private = PrivateKey::from_bytes(row.array("private"));
        assert_eq!(*private.identity_seed(), row.array("seed"), "{row:?}");
    }
}

fn both_ends(row: &Row) -> (PairKeys, PairKeys) {
    let mesh_id = row.text("mesh_id");
    let psk: Option<[u8; 32]> = row.optional("psk").map(|_| row.array("psk"));
    let derive = |own: &str, peer: &str| {
        let own = PrivateKey::from_bytes(row.array(own));
        let peer = PublicKey::from_bytes(row.array(peer));
        PairKeys::derive(&own, &peer, mesh_id, psk.as_ref()).unwrap()
    };
    (derive("own_private", "peer_public"), derive("peer_private", "own_public"))
}

fn expected_probe(row: &Row) -> Probe {
    let epoch = row.text("epoch").parse().unwrap();
    match row.text("kind") {
        "ping" => Probe::Ping,
        "pong" => Probe::Pong { observed: row.text("observed").parse().unwrap() },
        "nominate" => Probe::Nominate { epoch },
        "nominate-ack" => Probe::NominateAck { epoch },
        other => panic!("no such kind {other}"),
    }
}

fn expected_to_relay(row: &Row) -> Option<ToRelay> {
    let key = || PublicKey::from_bytes(row.array("key"));
    let bytes = || row.optional("bytes").map(table::hex).unwrap_or_default();
    Some(match row.text("kind") {
        "hello" => ToRelay::Hello { version: row.text("version").parse().unwrap(), node: key() },
        "meet" => ToRelay::Meet(key()),
        "part" => ToRelay::Part(key()),
        "allocate" => {
            ToRelay::Allocate { partner: key(), hint: row.optional("hint").map(|port| port.parse().unwrap()) }
        }
        "release" => ToRelay::Release(key()),
        "signal" => ToRelay::Signal { to: key(), bytes: bytes() },
        "stray" => ToRelay::Stray { to: row.text("address").parse().unwrap(), tx: TransactionId(row.array("tx")) },
        "ping" => ToRelay::Ping,
        "data" => ToRelay::Data { allocation: allocation(row), packet: bytes() },
        "attach" => ToRelay::Attach { partner: key() },
        _ => return None,
    })
}

fn expected_to_node(row: &Row) -> ToNode {
    let key = || PublicKey::from_bytes(row.array("key"));
    let bytes = || row.optional("bytes").map(table::hex).unwrap_or_default();
    let address = || row.text("address").parse().unwrap();
    let reason = || row.text("reason").parse::<usize>().unwrap();
    match row.text("kind") {
        "welcome" => ToNode::Welcome { boot: row.text("boot").parse().unwrap(), observed: address() },
        "denied" => {
            use wire::control::DeniedReason::{Full, NotAdmitted, Protocol, Replaced, Version};
            ToNode::Denied([NotAdmitted, Replaced, Version, Full, Protocol][reason()])
        }
        "present" => ToNode::Present { node: key(), met: row.text("met") == "true" },
        "allocated" => ToNode::Allocated {
            partner: key(),
            leg: Leg {
                allocation: allocation(row),
                side: if row.text("side") == "low" { Side::Low } else { Side::High },
                port: row.text("port").parse().unwrap(),
                key: LegKey::from_bytes(row.array("leg_key")),
                counter: row.text("counter").parse().unwrap(),
            },
        },
        "refused" => {
            use wire::control::RefusedReason::{Full, NotAdmitted, PortsExhausted, TooMany};
            ToNode::Refused { partner: key(), reason: [NotAdmitted, PortsExhausted, Full, TooMany][reason()] }
        }
        "ready" => ToNode::Ready(key()),
        "unbound" => ToNode::Unbound(key()),
        "released" => {
            use wire::control::ReleasedReason::{Asked, Idle, NotBound, Removed, Unwanted};
            ToNode::Released { partner: key(), reason: [Asked, NotBound, Idle, Removed, Unwanted][reason()] }
        }
        "signal-from" => ToNode::Signal { from: key(), bytes: bytes() },
        "stray-sent" => ToNode::StraySent { tx: TransactionId(row.array("tx")), from: address() },
        "drain" => ToNode::Drain { seconds: row.text("seconds").parse().unwrap() },
        "pong" => ToNode::Pong,
        "data-from" => ToNode::Data { allocation: allocation(row), packet: bytes() },
        other => panic!("no such kind {other}"),
    }
}

fn allocation(row: &Row) -> AllocationId {
    AllocationId(u64::from_be_bytes(row.array("allocation")))
}

fn expected_signal(row: &Row) -> Signal {
    let answers = TransactionId(row.array("answers"));
    let step = match row.text("kind") {
        "call" => Step::Call,
        "ready" => Step::Ready { answers },
        "go" => Step::Go { answers },
        other => panic!("no such kind {other}"),
    };
    let candidate = |text: &str| {
        let (kind, addr) = text.split_once('/').unwrap();
        (kind.parse().unwrap(), addr.parse().unwrap())
    };
    Signal {
        step,
        poisonable: row.text("poisonable") == "true",
        class: row.text("class").parse().unwrap(),
        candidates: row.optional("candidates").map_or(Vec::new(), |text| text.split(' ').map(candidate).collect()),
    }
}
