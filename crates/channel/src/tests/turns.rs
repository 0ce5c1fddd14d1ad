//! Packets that are taken in turns: what belongs together comes together, and nothing else changes by that.

use wire::relay::AllocationId;

use super::*;

const ALLOCATION: AllocationId = AllocationId(5);

/// A full packet of WireGuard's that says its number.
fn packet(number: u32) -> Vec<u8> {
    let mut packet = vec![0; 1452];
    packet[0] = 4;
    packet[16..20].copy_from_slice(&number.to_be_bytes());
    packet
}

fn data(number: u32) -> Vec<u8> {
    let mut bytes = Vec::new();
    ToRelay::Data { allocation: ALLOCATION, packet: packet(number) }.append(&mut bytes);
    bytes
}

/// A relay's end of a channel, and the node that says what it likes over it.
async fn raw(relay: &mut Relay) -> (TlsStream<TcpStream>, RelayChannel) {
    let node = raw_tls(relay, raw_config(relay)).await.expect("a handshake");
    (node, relay.accept().await.channel)
}

/// Says it while others read, each piece a record of its own.
fn say(mut node: TlsStream<TcpStream>, pieces: Vec<Vec<u8>>) -> tokio::task::JoinHandle<TlsStream<TcpStream>> {
    tokio::spawn(async move {
        for piece in pieces {
            node.write_all(&piece).await.expect("an open channel");
            node.flush().await.expect("an open channel");
        }
        node
    })
}

#[tokio::test]
async fn packets_of_many_records_come_in_few_turns_none_of_which_is_too_large() {
    let mut relay = Relay::open();
    let (node, mut channel) = raw(&mut relay).await;
    // As much as is here before anybody reads, in 40 records.
    let _node = say(node, (0..40).map(data).collect()).await.expect("no panic");
    let (mut got, mut turns) = (Vec::new(), 0);
    while got.len() < 40 {
        let mut packets = Packets::default();
        let heard = channel.receiver_mut().hear(&mut packets).await.expect("an open channel");
        assert_eq!(heard, Some(Heard::Packets));
        let cost = packets.bytes().len() + packets.len() * PACKET_COST;
        assert!(cost < PACKETS_COST + packet(0).len() + PACKET_COST, "{cost}");
        got.extend(packets.iter().map(|(of, packet)| (of, packet.to_vec())));
        turns += 1;
    }
    assert_eq!(got, (0..40).map(|number| (ALLOCATION, packet(number))).collect::<Vec<_>>());
    assert!(turns <= 3, "{turns}");
}

#[tokio::test]
async fn what_is_cut_anywhere_arrives_whole_and_in_order_and_the_end_comes_last() {
    for cut in [13, 500, 1463, 4000, 16_000] {
        let mut relay = Relay::open();
        let (node, mut channel) = raw(&mut relay).await;
        let mut bytes = [data(0), data(1)].concat();
        hello().append(&mut bytes);
        bytes.extend((2..50).flat_map(data));
        // The last is cut off.
        bytes.extend_from_slice(&data(50)[..700]);
        let saying = say(node, bytes.chunks(cut).map(<[u8]>::to_vec).collect());
        tokio::spawn(async move { saying.await.expect("no panic").shutdown().await });
        let (mut numbers, mut hellos_behind) = (Vec::new(), Vec::new());
        let end = loop {
            let mut packets = Packets::default();
            match channel.receiver_mut().hear(&mut packets).await {
                Ok(Some(Heard::Packets)) => {
                    let number = |packet: &[u8]| u32::from_be_bytes(packet[16..20].try_into().expect("four bytes"));
                    numbers.extend(packets.iter().map(|(_, packet)| number(packet)));
                }
                Ok(Some(Heard::Message(message))) => {
                    assert_eq!(message, hello());
                    hellos_behind.push(numbers.len());
                }
                end => break end,
            }
        };
        assert_eq!(numbers, (0..50).collect::<Vec<_>>(), "cut every {cut}");
        assert_eq!(hellos_behind, [2]);
        assert!(matches!(end, Err(RecvError::Truncated)), "{end:?}");
        let over = channel.receiver_mut().hear(&mut Packets::default()).await;
        assert!(matches!(over, Ok(None)), "{over:?}");
    }
}

#[tokio::test]
async fn packets_before_nonsense_are_still_handed_over() {
    let mut relay = Relay::open();
    let (node, mut channel) = raw(&mut relay).await;
    let _saying = say(node, vec![[data(0), vec![0xff, 0xff]].concat()]);
    let mut packets = Packets::default();
    assert_eq!(channel.receiver_mut().hear(&mut packets).await.expect("packets"), Some(Heard::Packets));
    assert_eq!(packets.len(), 1);
    let end = channel.receiver_mut().hear(&mut Packets::default()).await;
    assert!(matches!(end, Err(RecvError::TooLong { found: 0xffff })), "{end:?}");
}
