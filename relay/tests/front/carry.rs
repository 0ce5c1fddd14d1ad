//! Pairs whose legs are channels.

use std::time::Instant;

use relay::udp::Snapshot;
use wire::relay::AllocationId;

use super::*;
use relay::server::plane::Outcome;

/// A WireGuard message of this type and length that says its number.
pub(super) fn packet(kind: u8, length: usize, number: u32) -> Vec<u8> {
    let mut packet = vec![0; length];
    packet[0] = kind;
    packet[16..20].copy_from_slice(&number.to_be_bytes());
    packet
}

impl Node {
    /// What comes next that is neither presence nor a leg that is told again.
    async fn next(&mut self) -> ToNode {
        loop {
            match self.hear().await.expect("an open channel") {
                ToNode::Present { .. } | ToNode::Allocated { .. } => {}
                other => return other,
            }
        }
    }

    async fn allocation(&mut self, with: u8) -> AllocationId {
        loop {
            match self.hear().await.expect("an open channel") {
                ToNode::Allocated { partner, leg } if partner == key(with) => return leg.allocation,
                ToNode::Present { .. } => {}
                other => panic!("{other:?}"),
            }
        }
    }

    async fn is_ready(&mut self, with: u8) {
        let heard = self.next().await;
        assert!(matches!(heard, ToNode::Ready(partner) if partner == key(with)), "{heard:?}");
    }

    pub(super) async fn gets(&mut self, allocation: AllocationId, packet: &[u8]) {
        let heard = self.next().await;
        let is_it =
            matches!(&heard, ToNode::Data { allocation: of, packet: got } if *of == allocation && got == packet);
        assert!(is_it, "{heard:?}");
    }

    pub(super) async fn send(&self, allocation: AllocationId, packet: &[u8]) {
        self.say(ToRelay::Data { allocation, packet: packet.to_vec() }).await;
    }
}

/// Both legs of the pair are channels from now on.
pub(super) async fn attach(one: (u8, &mut Node), other: (u8, &mut Node)) -> AllocationId {
    let ((first, one), (second, other)) = (one, other);
    one.say(ToRelay::Meet(key(second))).await;
    other.say(ToRelay::Meet(key(first))).await;
    one.say(ToRelay::Allocate { partner: key(second), hint: None }).await;
    let allocation = one.allocation(second).await;
    // Known to who has asked about its partner; who asks again is told again.
    other.say(ToRelay::Allocate { partner: key(first), hint: None }).await;
    assert_eq!(other.allocation(first).await, allocation);
    one.say(ToRelay::Attach { partner: key(second) }).await;
    other.say(ToRelay::Attach { partner: key(first) }).await;
    one.is_ready(second).await;
    other.is_ready(first).await;
    allocation
}

impl Relay {
    fn snapshot(&self) -> Snapshot {
        self.forwarder.snapshot()
    }

    async fn eventually(&self, what: &str, holds: impl Fn(&Snapshot) -> bool) {
        let deadline = Instant::now() + PATIENCE;
        while !holds(&self.snapshot()) {
            assert!(Instant::now() < deadline, "never: {what}: {:?}", self.snapshot());
            tokio::task::yield_now().await;
        }
    }
}

const BOTH: [Transport; 2] = [Transport::Quic, Transport::Tls];

#[tokio::test]
async fn two_nodes_without_udp_exchange_packets_over_whichever_transport() {
    for (first, second) in BOTH.into_iter().flat_map(|first| BOTH.map(|second| (first, second))) {
        let relay = Relay::start();
        let [mut one, mut other] = [relay.welcome(1, first).await, relay.welcome(2, second).await];
        let allocation = attach((1, &mut one), (2, &mut other)).await;
        for number in 0..300 {
            let (there, back) = (packet(4, 1452, number), packet(4, 32, number));
            one.send(allocation, &there).await;
            other.gets(allocation, &there).await;
            other.send(allocation, &back).await;
            one.gets(allocation, &back).await;
        }
        let longest = packet(4, wire::relay::MAX_FORWARDED_LEN, 7);
        one.send(allocation, &longest).await;
        other.gets(allocation, &longest).await;
        relay.eventually("all of it is counted", |seen| seen.plane.datagrams(Outcome::Forwarded) == 601).await;
        assert_eq!(relay.snapshot().plane.attached_legs, 2);
    }
}

#[tokio::test]
async fn what_is_no_wireguard_message_and_what_is_anothers_goes_nowhere() {
    let relay = Relay::start();
    let [mut one, mut other] = [relay.welcome(1, Transport::Tls).await, relay.welcome(2, Transport::Tls).await];
    let mut third = relay.welcome(3, Transport::Tls).await;
    let allocation = attach((1, &mut one), (2, &mut other)).await;
    let own = attach((1, &mut one), (3, &mut third)).await;
    third.send(allocation, &packet(4, 64, 1)).await;
    third.send(AllocationId(allocation.0 ^ 1 << 40), &packet(4, 64, 2)).await;
    third.send(own, &packet(4, 64, 3)).await;
    one.gets(own, &packet(4, 64, 3)).await;
    one.send(allocation, b"GET / HTTP/1.1").await;
    one.send(allocation, &packet(9, 64, 4)).await;
    one.send(allocation, &packet(1, 148, 5)).await;
    other.gets(allocation, &packet(1, 148, 5)).await;
    relay
        .eventually("each is counted as what it is", |seen| {
            let outcomes = [Outcome::NotAttached, Outcome::UnknownAllocation, Outcome::Unfit];
            outcomes.map(|outcome| seen.plane.datagrams(outcome)) == [1, 1, 2]
        })
        .await;
}

#[tokio::test]
async fn packets_before_hello_end_the_channel() {
    let relay = Relay::start();
    for transport in BOTH {
        let mut target = relay.target().await;
        match transport {
            Transport::Quic => target.tls.clear(),
            Transport::Tls => target.quic.clear(),
        }
        let channel: Channel = channel::connect(&identity(1), &target, Options::default()).await.unwrap();
        let (sender, receiver) = channel.split();
        let mut node = Node { sender, receiver };
        node.send(AllocationId(1), &packet(4, 64, 1)).await;
        assert_eq!(node.is_denied().await, DeniedReason::Protocol);
    }
}

#[tokio::test]
async fn an_initiation_waits_for_the_partners_channel() {
    let relay = Relay::start();
    let [mut one, mut other] = [relay.welcome(1, Transport::Tls).await, relay.welcome(2, Transport::Quic).await];
    one.say(ToRelay::Meet(key(2))).await;
    other.say(ToRelay::Meet(key(1))).await;
    one.say(ToRelay::Allocate { partner: key(2), hint: None }).await;
    let allocation = one.allocation(2).await;
    one.say(ToRelay::Attach { partner: key(2) }).await;
    relay.eventually("the first leg is its channel", |seen| seen.plane.attached_legs == 1).await;
    one.send(allocation, &packet(1, 148, 7)).await;
    relay.eventually("it is kept", |seen| seen.plane.datagrams(Outcome::Kept) == 1).await;
    other.say(ToRelay::Attach { partner: key(1) }).await;
    // Packets and news are two queues.
    let heard = [other.next().await, other.next().await];
    let is_kept = |heard: &ToNode| matches!(heard, ToNode::Data { packet: got, .. } if *got == packet(1, 148, 7));
    assert!(heard.iter().any(is_kept), "{heard:?}");
}

#[tokio::test]
async fn a_node_that_does_not_read_loses_packets_and_delays_nobody() {
    for transport in BOTH {
        let relay = Relay::start();
        let [mut one, mut slow] = [relay.welcome(1, Transport::Tls).await, relay.welcome(2, transport).await];
        let mut quick = relay.welcome(3, Transport::Tls).await;
        let to_slow = attach((1, &mut one), (2, &mut slow)).await;
        let to_quick = attach((1, &mut one), (3, &mut quick)).await;
        // Until the kernels of both ends are full, and then some: the lane has dropped as much as it holds ten times over.
        let mut number = 0;
        while relay.snapshot().slow < 640 {
            assert!(number < 100_000, "nobody reads, and nothing is dropped");
            for _ in 0..32 {
                number += 1;
                one.send(to_slow, &packet(4, 1452, number)).await;
            }
            one.send(to_quick, &packet(4, 1452, number)).await;
            quick.gets(to_quick, &packet(4, 1452, number)).await;
        }
        // It is still there, and hears what it must: after what the kernel has of the past, the newest.
        one.say(ToRelay::Signal { to: key(2), bytes: vec![7; 100] }).await;
        let (mut last, mut has_signal) = (0, false);
        while !has_signal || last < number {
            match slow.next().await {
                ToNode::Data { packet, .. } => last = u32::from_be_bytes(packet[16..20].try_into().unwrap()),
                ToNode::Signal { .. } => has_signal = true,
                other => panic!("{other:?}"),
            }
        }
    }
}

#[tokio::test]
async fn a_channel_that_ends_is_no_leg_and_the_next_one_is_again() {
    let relay = Relay::start();
    let [mut one, mut other] = [relay.welcome(1, Transport::Tls).await, relay.welcome(2, Transport::Tls).await];
    let allocation = attach((1, &mut one), (2, &mut other)).await;
    drop(one);
    relay.eventually("the leg is gone", |seen| seen.plane.attached_legs == 1).await;
    other.send(allocation, &packet(4, 64, 1)).await;
    relay.eventually("there is nobody to take it", |seen| seen.plane.datagrams(Outcome::HalfBound) == 1).await;
    let mut one = relay.welcome(1, Transport::Quic).await;
    one.say(ToRelay::Allocate { partner: key(2), hint: None }).await;
    assert_eq!(one.allocation(2).await, allocation, "the pair is the same");
    one.say(ToRelay::Attach { partner: key(2) }).await;
    one.is_ready(2).await;
    other.is_ready(1).await;
    other.send(allocation, &packet(4, 64, 2)).await;
    one.gets(allocation, &packet(4, 64, 2)).await;
}

#[tokio::test]
async fn a_front_end_that_starts_anew_finds_pairs_without_channels() {
    let mut relay = Relay::start();
    let [mut one, mut other] = [relay.welcome(1, Transport::Tls).await, relay.welcome(2, Transport::Tls).await];
    let allocation = attach((1, &mut one), (2, &mut other)).await;
    drop(relay.front_end.take());
    let doors = relay.board.doors.send_replace(relay::control::Doors::default());
    (relay.front.quic, relay.front.tls) = (loopback(doors.quic.unwrap()), loopback(doors.tls.unwrap()));
    relay.front_end = Some(relay.front.clone().start().unwrap());
    relay.eventually("no leg is a channel", |seen| seen.plane.attached_legs == 0).await;
    assert_eq!(relay.snapshot().plane.allocations, 1);
    let [mut one, mut other] = [relay.welcome(1, Transport::Tls).await, relay.welcome(2, Transport::Tls).await];
    one.send(allocation, &packet(4, 64, 1)).await;
    relay.eventually("numbers are not used again", |seen| seen.plane.datagrams(Outcome::NotAttached) == 1).await;
    assert_eq!(attach((1, &mut one), (2, &mut other)).await, allocation);
    one.send(allocation, &packet(4, 64, 2)).await;
    other.gets(allocation, &packet(4, 64, 2)).await;
}
