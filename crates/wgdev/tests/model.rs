//! Any sequence of deltas ends in the same state on the fake and on the real devices.

#![allow(clippy::unwrap_used)]

#[macro_use]
mod lab;

use std::{collections::BTreeSet, net::SocketAddr, time::Duration};

use ipnet::IpNet;
use proptest::{prelude::*, test_runner::TestRunner};
use wgdev::{Delta, Device as _, DeviceError, Fake, PeerStatus, PeerUpdate};
use wire::key::PublicKey;

on_both_devices!(any_deltas_end_in_the_same_state_as_on_the_fake);

/// Few keys and prefixes, so that they meet: the device's own and an invalid one are among them.
fn keys() -> Vec<PublicKey> {
    let valid = (1..=5).map(|seed| lab::private_key(seed).public_key());
    valid.chain([PublicKey::from_bytes([0; 32])]).collect()
}

fn key() -> impl Strategy<Value = PublicKey> {
    prop::sample::select(keys())
}

fn net() -> impl Strategy<Value = IpNet> {
    let nets = [
        "10.0.0.0/8",
        "10.1.0.0/16",
        "10.1.2.0/24",
        "10.1.2.3/32",
        "10.1.2.4/32",
        "fd00::/64",
        "fd00::1/128",
        "10.1.2.99/24",
    ];
    prop::sample::select(nets.map(|n| n.parse().unwrap()).to_vec())
}

fn endpoint() -> impl Strategy<Value = SocketAddr> {
    let endpoints = ["127.0.0.1:9", "127.0.0.2:9", "[::1]:9"];
    prop::sample::select(endpoints.map(|e| e.parse().unwrap()).to_vec())
}

fn update() -> impl Strategy<Value = PeerUpdate> {
    let keepalive = prop::option::of(0u64..100_000).prop_map(|ms| ms.map(Duration::from_millis));
    (
        key(),
        prop::option::of(endpoint()),
        prop::option::of(prop::collection::vec(net(), 0..5)),
        prop::option::of(keepalive),
    )
        .prop_map(|(public_key, endpoint, allowed_ips, keepalive)| PeerUpdate {
            public_key,
            endpoint,
            allowed_ips,
            keepalive,
        })
}

fn delta() -> impl Strategy<Value = Delta> {
    let upsert = prop::collection::vec(update(), 0..4);
    let remove = prop::collection::vec(key(), 0..3);
    (upsert, remove).prop_map(|(upsert, remove)| Delta { upsert, remove })
}

/// What of a status is configuration.
fn configured(peers: Vec<PeerStatus>) -> Vec<PeerStatus> {
    let only = |status: PeerStatus| PeerStatus { rx_bytes: 0, tx_bytes: 0, last_handshake: None, ..status };
    peers.into_iter().map(only).collect()
}

fn refused(result: Result<(), DeviceError>) -> Vec<wgdev::Refusal> {
    match result {
        Ok(()) => Vec::new(),
        Err(DeviceError::Refused(refused)) => refused,
        Err(error) => panic!("{error}"),
    }
}

fn any_deltas_end_in_the_same_state_as_on_the_fake<D: lab::Open>() {
    let namespace = lab::Namespace::new("wd-model");
    let node = lab::Node::<D>::of(&namespace, lab::config(1));
    let mut runner = TestRunner::new(ProptestConfig::with_cases(200));
    let deltas = prop::collection::vec(delta(), 1..12);
    let result = runner.run(&deltas, |deltas| {
        let fake = Fake::new(lab::config(1));
        let clear = Delta { upsert: vec![], remove: keys() };
        lab::block_on(node.device.apply(&clear)).unwrap();
        for delta in &deltas {
            let on_fake = refused(lab::block_on(fake.apply(delta)));
            let on_real = refused(lab::block_on(node.device.apply(delta)));
            prop_assert_eq!(on_fake, on_real);
            let fake = configured(lab::block_on(fake.peers()).unwrap());
            let real = configured(lab::block_on(node.device.peers()).unwrap());
            prop_assert_eq!(&fake, &real);
            check(&real);
        }
        Ok(())
    });
    result.unwrap();
}

/// What holds of any device at any time.
fn check(peers: &[PeerStatus]) {
    let keys: Vec<_> = peers.iter().map(|p| p.public_key).collect();
    assert!(keys.is_sorted_by(|a, b| a < b), "ordered, each once");
    let nets: Vec<_> = peers.iter().flat_map(|p| &p.allowed_ips).collect();
    let distinct: BTreeSet<_> = nets.iter().collect();
    assert_eq!(nets.len(), distinct.len(), "a prefix has one owner");
}
