//! Two states that talk without a network.

use std::{
    net::SocketAddr,
    time::{Duration, Instant},
};

use bytes::BytesMut;
use gotatun::packet::Packet;
use proptest::prelude::*;
use wire::key::PrivateKey;

use super::{Opened, Outbox, PeerState};
use crate::{PeerUpdate, userspace::peers::Peers};

/// One side: the state of the other as its peer.
struct Side {
    peers: Peers,
    other: wire::key::PublicKey,
    address: SocketAddr,
}

impl Side {
    fn pair() -> (Self, Self) {
        let side = |own: u8, other: u8| {
            let peers = Peers::new(&PrivateKey::from_bytes([own; 32]), 1420);
            let other = PrivateKey::from_bytes([other; 32]).public_key();
            let address = SocketAddr::from(([192, 0, 2, own], 21820));
            peers.apply(&crate::Delta { upsert: vec![PeerUpdate::new(other)], remove: vec![] }, |_| {}).unwrap();
            Self { peers, other, address }
        };
        (side(1, 2), side(2, 1))
    }

    fn act<T>(&self, act: impl FnOnce(&mut PeerState, &mut Outbox) -> T) -> (T, Vec<Packet>) {
        let peer = self.peers.by_key(&self.other).unwrap();
        let mut out = Outbox::default();
        let result = act(&mut peer.lock(), &mut out);
        self.peers.add_indexes(&peer, &mut out.indexes);
        (result, out.packets)
    }

    fn send(&self, payload: &[u8], now: Instant) -> Vec<Packet> {
        let packet = Packet::from_bytes(BytesMut::from(payload));
        self.act(|state, out| state.seal(std::iter::once(packet), now, out)).1
    }

    /// Opens what the other side sent; returns the packets and the answers.
    fn receive(&self, packets: Vec<Packet>, from: &Side, now: Instant) -> (Vec<Packet>, Vec<Packet>) {
        let mut opened = Vec::new();
        let ((), answers) = self.act(|state, out| {
            for packet in packets {
                let message = packet.try_into_wg().unwrap();
                if let Opened::Packet(packet) = state.open(message, from.address, None, now, out) {
                    opened.push(packet);
                }
            }
        });
        (opened, answers)
    }
}

fn is_initiation(packet: &Packet) -> bool {
    packet.first() == Some(&1)
}

fn first_bytes(packets: &[Packet]) -> Vec<u8> {
    packets.iter().map(|p| p[0]).collect()
}

#[test]
fn what_waited_for_a_session_is_sent_once_in_order() {
    let (a, b) = Side::pair();
    let now = Instant::now();
    let initiation = a.send(&[10; 16], now);
    assert!(a.send(&[11; 16], now).is_empty() && a.send(&[12; 16], now).is_empty());
    let (_, response) = b.receive(initiation, &a, now);
    let (_, sealed) = a.receive(response, &b, now);
    // The confirmation, and the three.
    assert_eq!(sealed.len(), 4);
    let (opened, _) = b.receive(sealed, &a, now);
    assert_eq!(first_bytes(&opened), [10, 11, 12]);
    assert_eq!(a.send(&[13; 16], now).len(), 1);
}

#[test]
fn what_waited_at_the_side_that_answers_is_sent_too() {
    let (a, b) = Side::pair();
    let now = Instant::now();
    let lost = b.send(&[20; 16], now);
    assert!(is_initiation(&lost[0]));
    assert!(b.send(&[21; 16], now).is_empty());
    let ((), initiation) = a.act(|state, out| state.initiate(now, out));
    let (_, response) = b.receive(initiation, &a, now);
    assert_eq!(response.len(), 1, "nothing under a session that isn't confirmed");
    let (_, confirmation) = a.receive(response, &b, now);
    let (_, sealed) = b.receive(confirmation, &a, now);
    let (opened, _) = a.receive(sealed, &b, now);
    assert_eq!(first_bytes(&opened), [20, 21]);
}

#[test]
fn a_handshake_counts_for_the_answering_side_when_it_is_confirmed() {
    let (a, b) = Side::pair();
    let now = Instant::now();
    let handshake_of = |side: &Side| side.act(|state, _| state.last_handshake).0;
    let ((), initiation) = a.act(|state, out| state.initiate(now, out));
    let (_, response) = b.receive(initiation, &a, now);
    assert_eq!((handshake_of(&a), handshake_of(&b)), (None, None));
    let (_, confirmation) = a.receive(response, &b, now);
    assert_eq!((handshake_of(&a), handshake_of(&b)), (Some(now), None));
    b.receive(confirmation, &a, now);
    assert_eq!(handshake_of(&b), Some(now));
}

#[test]
fn a_keepalive_says_nothing_until_there_is_an_endpoint() {
    let (a, _) = Side::pair();
    let now = Instant::now();
    let ((), sent) = a.act(|state, out| {
        state.set_keepalive(Some(25));
        state.touch(now, out);
        assert_eq!(state.next_poll(now), None);
    });
    assert!(sent.is_empty());
    let ((), sent) = a.act(|state, out| {
        state.set_endpoint(([192, 0, 2, 2], 1).into());
        state.touch(now, out);
    });
    assert!(sent.len() == 1 && is_initiation(&sent[0]));
}

#[test]
fn an_idle_session_with_a_keepalive_is_rekeyed_by_its_initiator() {
    let (a, b) = Side::pair();
    let now = Instant::now();
    let ((), initiation) = a.act(|state, out| state.initiate(now, out));
    let (_, response) = b.receive(initiation, &a, now);
    let (_, confirmation) = a.receive(response, &b, now);
    b.receive(confirmation, &a, now);
    // A packet of the other side, at an age at which the initiator rekeys when it hears something.
    let late = now + Duration::from_secs(166);
    let packet = b.send(&[9; 16], now);
    let (_, answers) = a.receive(packet, &b, late);
    assert!(answers.iter().any(is_initiation));
}

#[test]
fn a_session_is_rekeyed_by_the_clock_only_while_somebody_keeps_it() {
    let (a, b) = Side::pair();
    let made = Instant::now();
    let ((), initiation) = a.act(|state, out| state.initiate(made, out));
    let (_, response) = b.receive(initiation, &a, made);
    let (_, confirmation) = a.receive(response, &b, made);
    b.receive(confirmation, &a, made);
    let at = |seconds| made + Duration::from_secs(seconds);
    let next_poll = |now| a.act(|state, _| state.next_poll(now)).0;
    // Data, and nothing after it: what is left to do is to erase the keys.
    a.send(&[9; 16], at(20));
    assert_eq!(next_poll(at(21)), Some(at(22)), "timers of the data");
    assert_eq!(next_poll(at(40)), Some(at(541)));
    // A keepalive of the peer's.
    let ((), keepalive) = b.act(|state, out| {
        state.set_endpoint(a.address);
        state.set_keepalive(Some(25));
        state.touch(at(95), out);
    });
    assert_eq!(keepalive.len(), 1);
    a.receive(keepalive, &b, at(95));
    assert_eq!(next_poll(at(95)), Some(at(120)));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    /// Whatever happened, the next poll is in the future, so the timer thread never spins.
    #[test]
    fn the_next_poll_is_never_now(steps in prop::collection::vec((0u8..6, 0u64..200_000), 0..40)) {
        let (a, b) = Side::pair();
        let mut now = Instant::now();
        for (step, millis) in steps {
            now += Duration::from_millis(millis);
            match step {
                0 => drop(a.send(&[1; 16], now)),
                1 => {
                    let ((), initiation) = b.act(|state, out| state.initiate(now, out));
                    let (_, response) = a.receive(initiation, &b, now);
                    let (_, confirmation) = b.receive(response, &a, now);
                    a.receive(confirmation, &b, now);
                }
                2 => drop(a.act(|state, out| state.initiate(now, out))),
                3 => drop(a.act(|state, out| state.poll(now, out))),
                4 => drop(a.act(|state, _| state.set_keepalive(Some(1 + (millis % 30) as u16)))),
                _ => drop(a.act(|state, _| state.set_endpoint(b.address))),
            }
            let (next, _) = a.act(|state, out| {
                state.poll(now, out);
                state.next_poll(now)
            });
            prop_assert!(next.is_none_or(|next| next > now));
        }
    }
}
