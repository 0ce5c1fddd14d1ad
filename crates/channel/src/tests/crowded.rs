//! Many nodes that do not read, and one that does.

use wire::relay::AllocationId;

use super::*;
use crate::room::Room;

const LENGTH: usize = 2 * 1024 * 1024;
const SLOW: usize = 32;

/// A node's end whose kernel takes next to nothing, and which is not read.
async fn deaf(relay: &Relay) -> TlsStream<TcpStream> {
    let socket = TcpSocket::new_v4().expect("a socket");
    socket.set_recv_buffer_size(4096).expect("a size");
    let stream = socket.connect(relay.at(Transport::Tls)).await.expect("a port");
    let name = ServerName::try_from("relay").expect("a name");
    TlsConnector::from(Arc::new(raw_config(relay))).connect(name, stream).await.expect("a handshake")
}

/// Packets of these numbers, each of another pair.
fn burst(numbers: std::ops::Range<u32>) -> Vec<(AllocationId, Vec<u8>)> {
    let packet = |number: u32| {
        let mut packet = vec![0; 1452];
        packet[0] = 4;
        packet[16..20].copy_from_slice(&number.to_be_bytes());
        packet
    };
    numbers.map(|number| (AllocationId(u64::from(number % 12)), packet(number))).collect()
}

fn offer(channel: &RelayChannel, packets: &[(AllocationId, Vec<u8>)]) -> usize {
    let packets = packets.iter().map(|(allocation, packet)| (*allocation, &packet[..]));
    channel.sender().outlet().offer(packets).expect("an open channel")
}

#[tokio::test]
async fn nodes_that_do_not_read_have_one_room_together_and_whoever_reads_gets_every_packet() {
    let identity = Identity::from_seed([1; 32]);
    let room = Room::new(LENGTH);
    let mut listener = Listener::new(&identity).expect("a good key").with_room(&room);
    listener.open(Transport::Tls, LOOPBACK.parse().expect("an address")).expect("loopback has room");
    let mut relay = Relay { identity, listener };
    let mut slow = Vec::new();
    for _ in 0..SLOW {
        let stream = deaf(&relay).await;
        slow.push((stream, relay.accept().await.channel));
    }
    let (mut quick, incoming) = open(&mut relay, Transport::Tls).await;
    let (mut number, mut dropped, mut most) = (0, 0, 0);
    // All that their lanes would hold, twice over.
    while dropped < 2 * SLOW * LANES_LEN / 1452 {
        assert!(number < 8 * 10_000, "nobody reads, and nothing is dropped");
        let packets = burst(number..number + 8);
        for (_, channel) in &slow {
            dropped += offer(channel, &packets);
            most = most.max(room.packets.taken());
        }
        offer(&incoming.channel, &packets);
        let mut got = Vec::new();
        while got.len() < packets.len() {
            match quick.receiver_mut().recv().await.expect("an open channel") {
                Some(ToNode::Data { allocation, packet }) => got.push((allocation, packet)),
                other => panic!("{other:?}"),
            }
        }
        got.sort_by_key(|(_, packet)| packet[16..20].to_vec());
        assert_eq!(got, packets);
        number += 8;
    }
    assert!((LENGTH / 2..=LENGTH).contains(&most), "{most}");
    drop((slow, quick, incoming));
}

#[tokio::test]
async fn nodes_that_do_not_read_their_messages_have_one_room_together_and_whoever_reads_goes_on() {
    let identity = Identity::from_seed([1; 32]);
    let room = Room::of(LENGTH, LENGTH);
    let mut listener = Listener::new(&identity).expect("a good key").with_room(&room);
    listener.open(Transport::Tls, LOOPBACK.parse().expect("an address")).expect("loopback has room");
    let mut relay = Relay { identity, listener };
    let mut slow = Vec::new();
    for _ in 0..SLOW {
        let stream = deaf(&relay).await;
        slow.push((stream, relay.accept().await.channel));
    }
    let (mut quick, incoming) = open(&mut relay, Transport::Tls).await;
    let signal = |number: u64| ToNode::Signal { from: NODE, bytes: number.to_be_bytes().repeat(128) };
    let (mut number, mut most, mut ended) = (0, 0, 0);
    while ended < SLOW / 4 {
        assert!(number < 100_000, "nobody reads, and hardly a channel ends");
        slow.retain(|(_, channel)| match channel.sender().try_send(&signal(number)) {
            Ok(()) => true,
            Err(error) => {
                assert_eq!(error, SendError::Closed, "the queue of one is no limit here");
                ended += 1;
                false
            }
        });
        most = most.max(room.messages.taken());
        incoming.channel.sender().try_send(&signal(number)).expect("who reads has room");
        match quick.receiver_mut().recv().await.expect("an open channel") {
            Some(ToNode::Signal { bytes, .. }) => assert_eq!(bytes[..8], number.to_be_bytes()),
            other => panic!("{other:?}"),
        }
        number += 1;
    }
    assert!((LENGTH / 2..=LENGTH).contains(&most), "{most}");
    drop((slow, quick, incoming));
}
