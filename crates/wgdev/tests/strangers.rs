//! What strangers may send to WireGuard's port.

#![allow(clippy::unwrap_used)]

#[macro_use]
mod lab;

use std::{sync::Arc, time::Duration};

use gotatun::{
    noise::{Tunn, index_table::IndexTable, rate_limiter::RateLimiter},
    packet::Packet,
    x25519,
};
use lab::{AT_A, AT_B, Cable, Node, Open, Pair, block_on, eventually, peer, receive};
use proptest::{
    prelude::Rng,
    test_runner::{RngAlgorithm, TestRng},
};
use wgdev::{Device, Userspace};

on_both_devices!(junk_harms_nobody);

fn junk_harms_nobody<D: Open>() {
    let pair = Pair::<D>::new();
    let mut echo = pair.echo();
    echo.ping(100);
    let before = pair.a.status(&pair.b.key);
    let stranger = pair.cable.b.bind("198.51.100.3:9999");
    let mut random = TestRng::from_seed(RngAlgorithm::ChaCha, &[7; 32]);
    for round in 0..5_000u32 {
        let mut junk = vec![0; random.next_u32() as usize % 1400];
        random.fill_bytes(&mut junk);
        if let [kind, reserved @ ..] = &mut junk[..]
            && reserved.len() >= 3
            && round % 2 == 0
        {
            *kind = (round / 2 % 4) as u8 + 1;
            reserved[..3].fill(0);
        }
        // Messages that are exactly as long as handshakes and cookies get further than others.
        junk.truncate(match round % 8 {
            0 => 148,
            2 => 92,
            4 => 64,
            _ => 1400,
        });
        stranger.send_to(&junk, AT_A).unwrap();
        if round % 500 == 0 {
            echo.ping(1392);
        }
    }
    echo.ping(1392);
    let after = pair.a.status(&pair.b.key);
    assert_eq!(after.endpoint, before.endpoint);
    assert!(after.last_handshake >= before.last_handshake);
    assert!(!D::COUNTS || pair.a.device.stats().invalid_messages > 0);
}

#[test]
fn a_recorded_packet_moves_no_endpoint() {
    if !lab::available() {
        return;
    }
    // `b` is a plain socket in the middle: it forwards between `a` and the real peer, and records.
    let cable = Cable::new();
    let (a, b) = (Node::<Userspace>::open(&cable.a, 1), Node::<Userspace>::open(&cable.b, 2));
    lab::address(&cable.a, 1);
    lab::address(&cable.b, 2);
    b.upsert(peer(a.key, 1, None));
    a.upsert(peer(b.key, 2, Some("198.51.100.2:7000")));
    let relay = cable.b.bind("198.51.100.2:7000");
    let towards_b = cable.b.bind("198.51.100.2:7001");
    block_on(a.device.start_handshake(&b.key)).unwrap();
    let (initiation, _) = receive(&relay);
    towards_b.send_to(&initiation, AT_B).unwrap();
    let (response, _) = receive(&towards_b);
    relay.send_to(&response, AT_A).unwrap();
    let (confirmation, _) = receive(&relay);
    towards_b.send_to(&confirmation, AT_B).unwrap();
    eventually("the session stands", || b.status(&a.key).last_handshake.is_some());
    let known = b.status(&a.key);
    assert_eq!(known.endpoint, Some("198.51.100.2:7001".parse().unwrap()));
    let replayer = cable.b.bind("198.51.100.3:7002");
    let invalid = b.device.stats().invalid_messages;
    for recorded in [&initiation, &confirmation] {
        replayer.send_to(recorded, AT_B).unwrap();
    }
    eventually("both are refused", || b.device.stats().invalid_messages == invalid + 2);
    assert_eq!(b.status(&a.key).endpoint, known.endpoint);
    assert_eq!(b.status(&a.key).rx_bytes, known.rx_bytes);
}

/// Initiations of strangers with a valid first MAC: whoever sends too many must prove its address, and
/// nobody else notices.
#[test]
fn a_flood_of_handshakes_is_answered_with_cookies() {
    if !lab::available() {
        return;
    }
    let pair = Pair::<Userspace>::new();
    let secret = x25519::StaticSecret::from([77; 32]);
    let public = x25519::PublicKey::from(&secret);
    let mut stranger = Tunn::new(
        secret,
        x25519::PublicKey::from(*pair.a.key.as_bytes()),
        None,
        None,
        IndexTable::from_os_rng(),
        Arc::new(RateLimiter::new(&public, 100)),
    );
    let initiations: Vec<Packet> =
        (0..200).map(|_| stranger.format_handshake_initiation(true).unwrap().into()).collect();
    let flooder = pair.cable.b.bind("198.51.100.3:9999");
    // Within one second more than one source may have: again until a second was hit. Not without a pause, or a slow
    // machine works off what has queued long after the test.
    flooder.set_read_timeout(Some(Duration::from_millis(500))).unwrap();
    let mut answer = [0; 256];
    let mut answered = None;
    eventually("a cookie comes back", || {
        for initiation in &initiations {
            flooder.send_to(initiation, AT_A).unwrap();
        }
        answered = flooder.recv(&mut answer).ok();
        answered.is_some()
    });
    assert_eq!(answered, Some(64));
    assert_eq!(answer[..4], [3, 0, 0, 0]);
    pair.echo().ping(100);
}
