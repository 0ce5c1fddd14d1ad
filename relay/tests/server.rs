//! What the responder answers, and what it never does.

#![allow(clippy::unwrap_used)]

use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use proptest::prelude::*;
use relay::server::{Budget, PLAIN_ANSWERS_PER_SECOND, Server, Verdict};
use wire::stun::{self, Class, MEMBER_REQUEST_LEN, TransactionId};

const TX: TransactionId = TransactionId([0x5a; 12]);
const SOURCE: &str = "192.0.2.1:4321";

fn judge(datagram: &[u8], source: &str) -> (Verdict, Option<Vec<u8>>) {
    let now = Instant::now();
    Server::new(now).handle_datagram(datagram, source.parse().unwrap(), now)
}

/// A request with one attribute of this type and length.
fn request_with(attribute: u16, value_len: u16) -> Vec<u8> {
    let mut message = stun::encode_request(TX, 0);
    message[2..4].copy_from_slice(&(4 + value_len).to_be_bytes());
    message.extend(attribute.to_be_bytes());
    message.extend(value_len.to_be_bytes());
    message.resize(message.len() + usize::from(value_len), 0);
    message
}

fn with_type(message_type: u16) -> Vec<u8> {
    let mut message = stun::encode_request(TX, MEMBER_REQUEST_LEN);
    message[..2].copy_from_slice(&message_type.to_be_bytes());
    message
}

#[test]
fn each_kind_of_datagram_has_its_verdict() {
    let wireguard = |kind: u8, len: usize| {
        let mut message = vec![0; len];
        message[0] = kind;
        message
    };
    let mut wrong_length = stun::encode_request(TX, MEMBER_REQUEST_LEN);
    wrong_length.pop();
    let mut wrong_cookie = stun::encode_request(TX, MEMBER_REQUEST_LEN);
    wrong_cookie[4] ^= 1;
    let mut overrun = request_with(0x8022, 24);
    overrun[23] = 25;
    let table = [
        ("a member's request", stun::encode_request(TX, MEMBER_REQUEST_LEN), Verdict::AnsweredPadded),
        ("a plain request", stun::encode_request(TX, 0), Verdict::AnsweredPlain),
        ("a small SOFTWARE attribute", request_with(0x8022, 4), Verdict::AnsweredPlain),
        ("a large SOFTWARE attribute", request_with(0x8022, 32), Verdict::AnsweredPadded),
        ("a username nobody asked for", request_with(0x0006, 32), Verdict::AnsweredPadded),
        ("CHANGE-REQUEST of RFC 5780", request_with(0x0003, 4), Verdict::UnknownAttribute),
        ("PADDING of RFC 5780", request_with(0x0026, 64), Verdict::UnknownAttribute),
        ("our own answer", stun::encode_success(TX, SOURCE.parse().unwrap()), Verdict::NotRequest),
        ("an indication", with_type(0x0011), Verdict::NotRequest),
        ("an error", with_type(0x0111), Verdict::NotRequest),
        ("TURN Allocate", with_type(0x0003), Verdict::Malformed),
        ("an attribute beyond the end", overrun, Verdict::Malformed),
        ("a length that is not the datagram's", wrong_length, Verdict::NotStun),
        ("no magic cookie", wrong_cookie, Verdict::NotStun),
        ("nothing", Vec::new(), Verdict::NotStun),
        ("WireGuard's initiation", wireguard(1, 148), Verdict::NotStun),
        ("WireGuard's keepalive", wireguard(4, 32), Verdict::NotStun),
        (
            "a DNS query",
            b"\x12\x34\x01\x00\x00\x01\x00\x00\x00\x00\x00\x00\x03www\x00\x00\x01\x00\x01".to_vec(),
            Verdict::NotStun,
        ),
    ];
    for (name, datagram, expected) in table {
        let (verdict, reply) = judge(&datagram, SOURCE);
        assert_eq!(verdict, expected, "{name}");
        let answered = matches!(expected, Verdict::AnsweredPadded | Verdict::AnsweredPlain);
        assert_eq!(reply.is_some(), answered, "{name}");
    }
}

#[test]
fn the_answer_names_the_source() {
    for source in [SOURCE, "[2001:db8::7]:65535", "127.0.0.1:1", "[fe80::1]:9"] {
        let (_, reply) = judge(&stun::encode_request(TX, MEMBER_REQUEST_LEN), source);
        let reply = reply.unwrap();
        let message = stun::decode(&reply).unwrap();
        assert_eq!((message.class, message.tx, message.mapped), (Class::Success, TX, Some(source.parse().unwrap())));
    }
    let (_, reply) = judge(&stun::encode_request(TX, MEMBER_REQUEST_LEN), "[::ffff:192.0.2.1]:4321");
    assert_eq!(stun::decode(&reply.unwrap()).unwrap().mapped, Some(SOURCE.parse().unwrap()));
}

#[test]
fn some_sources_are_never_answered() {
    let sources = [
        "0.0.0.0:1",
        "255.255.255.255:1",
        "224.0.0.1:1",
        "239.255.255.250:1900",
        "192.0.2.1:0",
        "[::]:1",
        "[ff02::1]:1",
        "[ff0e::1]:1",
        "[2001:db8::1]:0",
        "[::ffff:224.0.0.1]:1",
        "[::ffff:0.0.0.0]:1",
        "[::ffff:255.255.255.255]:1",
    ];
    for source in sources {
        for size in [0, MEMBER_REQUEST_LEN, 1000] {
            assert_eq!(judge(&stun::encode_request(TX, size), source), (Verdict::BadSource, None), "{source}");
        }
    }
}

#[test]
fn plain_requests_share_a_budget_and_members_do_not() {
    let start = Instant::now();
    let mut server = Server::new(start);
    let mut ask = |size: usize, source: u16, now: Instant| {
        let source = SocketAddr::from(([192, 0, 2, 1], source));
        server.handle_datagram(&stun::encode_request(TX, size), source, now).0
    };
    for source in 1..=50 {
        assert_eq!(ask(0, source, start), Verdict::AnsweredPlain);
    }
    assert_eq!(ask(0, 99, start), Verdict::OverBudget);
    assert_eq!(ask(24, 99, start), Verdict::OverBudget, "smaller than its answer, so not padded");
    for source in 1..=500 {
        assert_eq!(ask(MEMBER_REQUEST_LEN, source, start), Verdict::AnsweredPadded);
    }

    let soon = start + Duration::from_millis(20);
    assert_eq!(ask(0, 1, soon), Verdict::AnsweredPlain, "one fiftieth of a second earns one answer");
    assert_eq!(ask(0, 1, soon), Verdict::OverBudget);

    let later = start + Duration::from_secs(3600);
    let answered = (0..200).filter(|_| ask(0, 1, later) == Verdict::AnsweredPlain).count();
    assert_eq!(answered, 50, "an hour of rest saves up one second's worth");
    assert_eq!(ask(0, 1, start), Verdict::OverBudget, "a clock that steps back earns nothing");
}

#[test]
fn verdicts_have_labels_of_their_own() {
    let labels: std::collections::BTreeSet<_> = Verdict::ALL.iter().map(|verdict| verdict.label()).collect();
    assert_eq!(labels.len(), Verdict::ALL.len());
}

fn any_source() -> impl Strategy<Value = SocketAddr> {
    (any::<IpAddr>(), any::<u16>()).prop_map(|(ip, port)| SocketAddr::new(ip, port))
}

/// Noise, requests of every size, and requests with damage.
fn any_datagram() -> impl Strategy<Value = Vec<u8>> {
    let request = (0usize..200).prop_map(|size| stun::encode_request(TX, size));
    let damaged = (0usize..200, any::<prop::sample::Index>(), any::<u8>()).prop_map(|(size, at, byte)| {
        let mut message = stun::encode_request(TX, size);
        let at = at.index(message.len());
        message[at] = byte;
        message
    });
    let optional = (0x8000u16.., 0u16..60).prop_map(|(attribute, words)| request_with(attribute, words * 4));
    prop_oneof![prop::collection::vec(any::<u8>(), 0..200), request, damaged, optional]
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(64) })]

    #[test]
    fn outside_the_budget_nothing_is_amplified(
        arrivals in prop::collection::vec((any_datagram(), any_source(), 0u64..4), 1..200),
    ) {
        let start = Instant::now();
        let mut server = Server::new(start);
        let mut now = start;
        let (mut received, mut sent, mut plain) = (0, 0, 0u32);
        for (datagram, source, wait) in arrivals {
            now += Duration::from_millis(wait);
            let (verdict, reply) = server.handle_datagram(&datagram, source, now);
            let Some(reply) = reply else {
                prop_assert!(!matches!(verdict, Verdict::AnsweredPadded | Verdict::AnsweredPlain));
                continue;
            };
            let request = stun::decode(&datagram).unwrap();
            let answer = stun::decode(&reply).unwrap();
            prop_assert_eq!((request.class, answer.class, answer.tx), (Class::Request, Class::Success, request.tx));
            match verdict {
                Verdict::AnsweredPadded => {
                    received += datagram.len();
                    sent += reply.len();
                }
                Verdict::AnsweredPlain => plain += 1,
                other => prop_assert!(false, "a reply with {other:?}"),
            }
        }
        prop_assert!(sent <= received);
        let earned = (now - start).as_millis() as u32 / 20;
        prop_assert!(plain <= PLAIN_ANSWERS_PER_SECOND + earned, "{plain} plain answers, {earned} earned");
    }

    #[test]
    fn a_budget_gives_its_rate_and_no_more(steps in prop::collection::vec(0u64..1000, 1..300), burst in 1u32..20) {
        let period = Duration::from_millis(100);
        let start = Instant::now();
        let mut budget = Budget::new(period, burst, start);
        let mut now = start;
        let mut taken = 0u128;
        for step in steps {
            now += Duration::from_millis(step);
            let had_full_period = step >= 100;
            let given = budget.take(now);
            prop_assert!(given || !had_full_period, "a period has passed since the last try");
            taken += u128::from(given);
            let earned = (now - start).as_millis() / period.as_millis();
            prop_assert!(taken <= u128::from(burst) + earned);
        }
    }
}
