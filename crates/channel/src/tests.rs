//! Both ends on loopback, and ends that misbehave.

use std::net::SocketAddr;
use std::sync::Arc;

use quinn::crypto::rustls::QuicClientConfig;
use rustls::pki_types::ServerName;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream, UdpSocket};
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use wire::PublicKey;
use wire::control::{DeniedReason, MAX_MESSAGE_LEN, ToNode, ToRelay, VERSION};

use crate::*;

mod crowded;
mod proxied;
mod turns;

const LOOPBACK: &str = "127.0.0.1:0";
const BOTH: [Transport; 2] = [Transport::Quic, Transport::Tls];
const NODE: PublicKey = PublicKey::from_bytes([7; 32]);

/// A relay with one door of each sort.
struct Relay {
    identity: Identity,
    listener: Listener,
}

impl Relay {
    fn open() -> Self {
        let identity = Identity::from_seed([1; 32]);
        let any = [LOOPBACK.parse().expect("an address")];
        let listener = Listener::bind(&identity, &any, &any).expect("loopback has room");
        Self { identity, listener }
    }

    fn at(&self, transport: Transport) -> SocketAddr {
        let mut local = self.listener.local_addresses().iter();
        local.find(|(found, _)| *found == transport).expect("a door of each sort").1
    }

    fn target(&self, transport: Transport) -> Target {
        let target = Target { identity: self.identity.public(), ..Target::default() };
        match transport {
            Transport::Quic => Target { quic: vec![self.at(transport)], ..target },
            Transport::Tls => Target { tls: vec![self.at(transport)], ..target },
        }
    }

    async fn accept(&mut self) -> Incoming {
        self.listener.accept().await.expect("the doors are open")
    }
}

fn node() -> Identity {
    Identity::from_seed([2; 32])
}

fn hello() -> ToRelay {
    ToRelay::Hello { version: VERSION, node: NODE }
}

async fn open(relay: &mut Relay, transport: Transport) -> (Channel, Incoming) {
    let channel = connect(&node(), &relay.target(transport), Options::default()).await.expect("an open door");
    // A QUIC stream is there for the other end once something was said on it.
    channel_send(&channel, &hello()).await;
    let mut incoming = relay.accept().await;
    assert_eq!(incoming.channel.receiver_mut().recv().await.expect("a message"), Some(hello()));
    (channel, incoming)
}

async fn channel_send(channel: &Channel, message: &ToRelay) {
    channel.sender().send(message).await.expect("an open channel");
}

/// A node that says what it likes.
async fn raw_tls(relay: &Relay, config: rustls::ClientConfig) -> std::io::Result<TlsStream<TcpStream>> {
    let stream = TcpStream::connect(relay.at(Transport::Tls)).await?;
    let name = ServerName::try_from("relay").expect("a name");
    TlsConnector::from(Arc::new(config)).connect(name, stream).await
}

fn raw_config(relay: &Relay) -> rustls::ClientConfig {
    tls::client_config(&node(), relay.identity.public()).expect("a good key")
}

#[tokio::test]
async fn messages_pass_both_ways_over_both_transports() {
    for transport in BOTH {
        let mut relay = Relay::open();
        let (channel, incoming) = open(&mut relay, transport).await;
        assert_eq!(incoming.identity, node().public());
        assert_eq!((channel.transport(), incoming.channel.transport()), (transport, transport));
        let (sender, mut receiver) = incoming.channel.split();
        assert_eq!(sender.remote().ip(), SocketAddr::from(([127, 0, 0, 1], 1)).ip());
        let (to_relay, mut from_relay) = channel.split();
        for count in 0..200 {
            let signal = ToRelay::Signal { to: NODE, bytes: vec![count; 1024] };
            to_relay.send(&signal).await.expect("an open channel");
            assert_eq!(receiver.recv().await.expect("a message"), Some(signal));
            sender.send(&ToNode::Drain { seconds: u16::from(count) }).await.expect("an open channel");
            let answer = from_relay.recv().await.expect("a message");
            assert!(matches!(answer, Some(ToNode::Drain { seconds }) if seconds == u16::from(count)), "{answer:?}");
        }
    }
}

#[tokio::test]
async fn packets_behind_a_keepalive_are_packets() {
    let (allocation, packet) = (wire::relay::AllocationId(7), [4, 0, 0, 0, 9]);
    for transport in BOTH {
        let mut relay = Relay::open();
        let (channel, mut incoming) = open(&mut relay, transport).await;
        // One write: who writes has not run yet.
        channel.sender().try_send(&ToRelay::Ping).expect("room");
        assert_eq!(channel.sender().outlet().offer([(allocation, &packet[..])]), Ok(0));
        let mut packets = Packets::default();
        let heard = incoming.channel.receiver_mut().hear(&mut packets).await.expect("an open channel");
        assert_eq!(heard, Some(Heard::Packets));
        assert_eq!(packets.iter().collect::<Vec<_>>(), [(allocation, &packet[..])]);
    }
}

#[tokio::test]
async fn a_relay_with_another_key_is_refused() {
    for transport in BOTH {
        let relay = Relay::open();
        let target = Target { identity: Identity::from_seed([9; 32]).public(), ..relay.target(transport) };
        let refused = connect(&node(), &target, Options::default()).await;
        assert!(matches!(&refused, Err(ConnectError::Failed(attempts)) if attempts.len() == 1), "{refused:?}");
    }
}

#[tokio::test]
async fn what_was_said_last_arrives_before_the_end() {
    for transport in BOTH {
        let mut relay = Relay::open();
        let (channel, incoming) = open(&mut relay, transport).await;
        let (_keep_open, mut from_relay) = channel.split();
        let (sender, mut receiver) = incoming.channel.split();
        sender.try_send(&ToNode::Denied(DeniedReason::NotAdmitted)).expect("room");
        drop(sender);
        let last = from_relay.recv().await.expect("a message");
        assert!(matches!(last, Some(ToNode::Denied(DeniedReason::NotAdmitted))), "{last:?}");
        assert!(from_relay.recv().await.expect("a clean end").is_none());
        assert!(from_relay.recv().await.expect("still the end").is_none());
        drop(_keep_open);
        assert!(receiver.recv().await.expect("a clean end").is_none());
    }
}

#[tokio::test]
async fn a_reader_that_does_not_read_costs_no_more_than_the_queue() {
    for transport in BOTH {
        let mut relay = Relay::open();
        let (_channel, incoming) = open(&mut relay, transport).await;
        let (sender, mut receiver) = incoming.channel.split();
        let signal = ToNode::Signal { from: NODE, bytes: vec![1; 1024] };
        let mut said = 0;
        let refused = loop {
            match sender.try_send(&signal) {
                Ok(()) => said += 1,
                Err(error) => break error,
            }
            // The kernel takes some of it; no more than it has room for.
            tokio::task::yield_now().await;
            assert!(said < 100_000, "nobody reads, and nobody notices");
        };
        assert_eq!(refused, SendError::Full);
        drop(sender);
        assert!(receiver.recv().await.expect("closed by this end").is_none());
    }
}

#[tokio::test]
async fn tls_carries_the_channel_where_udp_is_dropped() {
    let mut relay = Relay::open();
    let black_hole = UdpSocket::bind(LOOPBACK).await.expect("a socket");
    let quic = vec![black_hole.local_addr().expect("an address")];
    let target = Target { quic, ..relay.target(Transport::Tls) };
    let channel = connect(&node(), &target, Options::default()).await.expect("by TLS");
    assert_eq!(channel.transport(), Transport::Tls);
    assert_eq!(relay.accept().await.channel.transport(), Transport::Tls);
}

#[tokio::test]
async fn tls_begins_at_once_where_that_is_asked_for() {
    let relay = Relay::open();
    let black_hole = UdpSocket::bind(LOOPBACK).await.expect("a socket");
    let quic = vec![black_hole.local_addr().expect("an address")];
    let target = Target { quic, ..relay.target(Transport::Tls) };
    // The time for all attempts ends before the head start does.
    let options = |tls_at_once| Options { timeout: HEAD_START * 2 / 3, tls_at_once, ..Options::default() };
    let late = connect(&node(), &target, options(false)).await;
    assert!(matches!(late, Err(ConnectError::Timeout(_))), "{late:?}");
    let mut at_once = connect(&node(), &target, options(true)).await;
    // A machine that is busy may need more than one try.
    for _ in 0..20 {
        if at_once.is_ok() {
            break;
        }
        at_once = connect(&node(), &target, options(true)).await;
    }
    assert_eq!(at_once.expect("by TLS").transport(), Transport::Tls);
}

#[tokio::test]
async fn quic_is_taken_where_both_would_do() {
    let mut relay = Relay::open();
    let target = Target { tls: relay.target(Transport::Tls).tls, ..relay.target(Transport::Quic) };
    let channel = connect(&node(), &target, Options::default()).await.expect("an open door");
    assert_eq!(channel.transport(), Transport::Quic);
    channel_send(&channel, &hello()).await;
    assert_eq!(relay.accept().await.channel.transport(), Transport::Quic);
}

#[tokio::test]
async fn a_relay_without_addresses_is_named_as_such() {
    let target = Target::default();
    assert!(matches!(connect(&node(), &target, Options::default()).await, Err(ConnectError::NoAddress)));
}

type Expected = fn(&RecvError) -> bool;

/// What a node says, and what the relay makes of it.
const NONSENSE: [(&[u8], Expected); 6] = [
    (&[0, 0], |error| matches!(error, RecvError::Malformed)),
    (&[0, 1, 0x7f], |error| matches!(error, RecvError::Malformed)),
    (&[0, 2, 9, 9, 9], |error| matches!(error, RecvError::Malformed)),
    (&[0xff, 0xff], |error| matches!(error, RecvError::TooLong { found: 0xffff })),
    (&[0, 34, 1, 1, 7], |error| matches!(error, RecvError::Truncated)),
    (&[0], |error| matches!(error, RecvError::Truncated)),
];

#[tokio::test]
async fn what_is_no_message_ends_the_channel_over_tls() {
    for (bytes, is_expected) in NONSENSE {
        let mut relay = Relay::open();
        let mut stream = raw_tls(&relay, raw_config(&relay)).await.expect("a handshake");
        stream.write_all(bytes).await.expect("room");
        stream.shutdown().await.expect("room");
        let (_sender, mut receiver) = relay.accept().await.channel.split();
        let error = receiver.recv().await.expect_err("no message");
        assert!(is_expected(&error), "{bytes:?}: {error:?}");
        assert!(receiver.recv().await.expect("the end").is_none(), "nothing follows");
    }
}

#[tokio::test]
async fn what_is_no_message_ends_the_channel_over_quic() {
    for (bytes, is_expected) in NONSENSE {
        let mut relay = Relay::open();
        let crypto = QuicClientConfig::try_from(raw_config(&relay)).expect("TLS 1.3");
        let config = quinn::ClientConfig::new(Arc::new(crypto));
        let endpoint = quinn::Endpoint::client(LOOPBACK.parse().expect("an address")).expect("a socket");
        let connecting = endpoint.connect_with(config, relay.at(Transport::Quic), "relay").expect("a good config");
        let connection = connecting.await.expect("a handshake");
        let (mut send, _receive) = connection.open_bi().await.expect("a stream");
        send.write_all(bytes).await.expect("room");
        send.finish().expect("open");
        let (_sender, mut receiver) = relay.accept().await.channel.split();
        let error = receiver.recv().await.expect_err("no message");
        assert!(is_expected(&error), "{bytes:?}: {error:?}");
        connection.closed().await;
    }
}

#[tokio::test]
async fn the_longest_message_passes_in_pieces() {
    let mut relay = Relay::open();
    let mut stream = raw_tls(&relay, raw_config(&relay)).await.expect("a handshake");
    let mut incoming = relay.accept().await;
    let packet = vec![4; wire::relay::MAX_FORWARDED_LEN];
    let data = ToRelay::Data { allocation: wire::relay::AllocationId(3), packet };
    let mut bytes = Vec::new();
    data.encode(&mut bytes);
    assert_eq!(bytes.len(), MAX_MESSAGE_LEN + 2);
    for piece in bytes.chunks(1000) {
        stream.write_all(piece).await.expect("room");
        stream.flush().await.expect("room");
    }
    assert_eq!(incoming.channel.receiver_mut().recv().await.expect("a message"), Some(data));
}

#[tokio::test]
async fn clients_of_other_protocols_do_not_get_in() {
    let mut relay = Relay::open();
    let without_alpn = {
        let mut config = raw_config(&relay);
        config.alpn_protocols.clear();
        config
    };
    let with_another = {
        let mut config = raw_config(&relay);
        config.alpn_protocols = vec![b"h2".to_vec()];
        config
    };
    for config in [without_alpn, with_another] {
        // In TLS 1.3 the client is done first: it hears of the refusal when it reads.
        is_sent_away(&mut relay, config).await;
    }
    let mut plain = TcpStream::connect(relay.at(Transport::Tls)).await.expect("a port");
    plain.write_all(b"GET / HTTP/1.1\r\n\r\n").await.expect("room");
    let mut heard = Vec::new();
    // An alert at most.
    let _ = plain.read_to_end(&mut heard).await;
    assert!(heard.len() <= 7, "{heard:?}");
}

#[tokio::test]
async fn a_node_must_prove_a_key() {
    let mut relay = Relay::open();
    let config = rustls::ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
        .with_protocol_versions(&[&rustls::version::TLS13])
        .expect("TLS 1.3")
        .dangerous()
        .with_custom_certificate_verifier(tls::pinned_for_tests(relay.identity.public()))
        .with_no_client_auth();
    is_sent_away(&mut relay, config).await;
}

/// The client is closed without a byte, and nobody comes in.
async fn is_sent_away(relay: &mut Relay, config: rustls::ClientConfig) {
    let mut stream = match raw_tls(relay, config).await {
        Ok(stream) => stream,
        Err(_) => return,
    };
    let mut buffer = [0; 8];
    tokio::select! {
        end = stream.read(&mut buffer) => assert!(!matches!(end, Ok(1..)), "{end:?}"),
        _ = relay.listener.accept() => panic!("it got in"),
    }
}

#[tokio::test]
async fn half_open_connections_of_one_site_keep_nobody_else_out() {
    let mut relay = Relay::open();
    let at = relay.at(Transport::Tls);
    let mut half_open = Vec::new();
    for _ in 0..MAX_NEWCOMERS_OF_SOURCE * 2 {
        let socket = TcpSocket::new_v4().expect("a socket");
        socket.bind(SocketAddr::from(([127, 0, 0, 2], 0))).expect("loopback is large");
        half_open.push(socket.connect(at).await.expect("a port"));
    }
    // Those beyond the cap are closed without a word.
    let end = half_open.last_mut().expect("some").read(&mut [0; 8]).await;
    assert!(!matches!(end, Ok(1..)), "{end:?}");
    open(&mut relay, Transport::Tls).await;
}

#[tokio::test]
async fn a_node_that_gives_no_sign_is_given_up() {
    let mut relay = Relay::open();
    let stream = raw_tls(&relay, raw_config(&relay)).await.expect("a handshake");
    let mut incoming = relay.accept().await;
    tokio::time::pause();
    let error = incoming.channel.receiver_mut().recv().await.expect_err("silence");
    assert!(matches!(error, RecvError::Idle), "{error:?}");
    drop(stream);
}

#[tokio::test]
async fn a_node_that_has_nothing_to_say_stays() {
    let mut relay = Relay::open();
    let (channel, incoming) = open(&mut relay, Transport::Tls).await;
    let (_to_relay, mut from_relay) = channel.split();
    let (sender, mut receiver) = incoming.channel.split();
    tokio::time::pause();
    tokio::select! {
        end = receiver.recv() => panic!("{end:?}"),
        end = from_relay.recv() => panic!("{end:?}"),
        () = tokio::time::sleep(IDLE * 4) => {}
    }
    drop(sender);
}
