//! The front end on loopback: real channels, the real data plane, no cluster.

#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::net::{SocketAddr, UdpSocket};
use std::sync::Arc;
use std::time::Duration;

use channel::{Channel, Identity, Options, Receiver, Sender, Target, Transport};
use relay::control::{Board, Directory, Front, Supervisor};
use relay::server::control::Member;
use relay::server::plane::Config;
use relay::udp::Forwarder;
use wire::PublicKey;
use wire::control::{DeniedReason, RefusedReason, ReleasedReason, ToNode, ToRelay, VERSION};
use wire::stun::TransactionId;

#[path = "front/carry.rs"]
mod carry;
#[path = "front/crowd.rs"]
mod crowd;

const BOOT: u64 = 42;
/// What is not heard by then is not said.
const PATIENCE: Duration = Duration::from_secs(20);

fn key(number: u8) -> PublicKey {
    PublicKey::from_bytes([number; 32])
}

fn identity(number: u8) -> Identity {
    Identity::from_seed([number; 32])
}

fn member(number: u8) -> Member {
    Member { node: key(number), identity: Some(identity(number).public()) }
}

fn loopback(port: u16) -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], port))
}

/// A relay whose members are 1 to 3.
struct Relay {
    directory: Arc<Directory>,
    board: Arc<Board>,
    front_end: Option<Supervisor>,
    front: Front,
    /// Ends with this.
    forwarder: Forwarder,
}

impl Relay {
    fn start() -> Self {
        let relay = Self::without_list();
        relay.list();
        relay
    }

    /// Says who the members are.
    fn list(&self) {
        self.directory.replace((1..=3).map(|number| (format!("node-{number}"), member(number))).collect());
    }

    fn without_list() -> Self {
        let forwarder = forwarder();
        let directory = Arc::new(Directory::default());
        let board = Arc::new(Board::default());
        let front = Front {
            identity: identity(100),
            quic: loopback(0),
            tls: loopback(0),
            boot: BOOT,
            directory: Arc::clone(&directory),
            plane: forwarder.control(),
            board: Arc::clone(&board),
        };
        let front_end = Some(front.clone().start().unwrap());
        Self { directory, board, front_end, front, forwarder }
    }

    async fn target(&self) -> Target {
        let mut doors = self.board.doors.subscribe();
        let doors = *doors.wait_for(|doors| doors.quic.is_some() && doors.tls.is_some()).await.unwrap();
        let at = |port: Option<u16>| vec![loopback(port.unwrap())];
        Target { identity: identity(100).public(), quic: at(doors.quic), tls: at(doors.tls) }
    }

    /// Connects with the identity of one node and claims the name of another.
    async fn connect(&self, proven: u8, claimed: u8, transport: Transport) -> Node {
        let mut target = self.target().await;
        match transport {
            Transport::Quic => target.tls.clear(),
            Transport::Tls => target.quic.clear(),
        }
        let channel: Channel = channel::connect(&identity(proven), &target, Options::default()).await.unwrap();
        let (sender, receiver) = channel.split();
        let node = Node { sender, receiver };
        node.say(ToRelay::Hello { version: VERSION, node: key(claimed) }).await;
        node
    }

    async fn welcome(&self, number: u8, transport: Transport) -> Node {
        let mut node = self.connect(number, number, transport).await;
        let heard = node.hear().await;
        assert!(
            matches!(heard, Some(ToNode::Welcome { boot: BOOT, observed }) if observed.ip() == loopback(0).ip()),
            "{heard:?}"
        );
        node
    }
}

/// A data plane on ports that are free: in a row, so they are tried until some are.
fn forwarder() -> Forwarder {
    for _ in 0..100 {
        let probe = UdpSocket::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let config = Config { first_port: probe.min(65_000), ports: 4, ..Config::default() };
        if let Ok(forwarder) = Forwarder::start(config, [9; 32]) {
            return forwarder;
        }
    }
    panic!("no four free ports in a row");
}

struct Node {
    sender: Sender,
    receiver: Receiver,
}

impl Node {
    async fn say(&self, message: ToRelay) {
        self.sender.send(&message).await.unwrap();
    }

    async fn hear(&mut self) -> Option<ToNode> {
        let heard = tokio::time::timeout(PATIENCE, self.receiver.recv()).await;
        heard.expect("nothing was heard for as long as that").unwrap()
    }

    /// Ended with this reason.
    async fn is_denied(&mut self) -> DeniedReason {
        let Some(ToNode::Denied(reason)) = self.hear().await else { panic!("not denied") };
        assert!(self.hear().await.is_none(), "and nothing follows");
        reason
    }
}

/// Node 1 by QUIC and node 2 by TLS, who have met.
async fn met(relay: &Relay) -> [Node; 2] {
    let [mut one, mut other] = [relay.welcome(1, Transport::Quic).await, relay.welcome(2, Transport::Tls).await];
    one.say(ToRelay::Meet(key(2))).await;
    assert!(matches!(one.hear().await, Some(ToNode::Present { met: false, .. })));
    other.say(ToRelay::Meet(key(1))).await;
    for node in [&mut one, &mut other] {
        assert!(matches!(node.hear().await, Some(ToNode::Present { met: true, .. })));
    }
    [one, other]
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_comes_before_the_first_list_waits_for_it_and_not_for_ever() {
    let relay = Relay::without_list();
    let mut early = Vec::new();
    for transport in [Transport::Quic, Transport::Tls] {
        early.push(relay.connect(1, 1, transport).await);
    }
    relay.list();
    let answers = [early[0].hear().await, early[1].hear().await];
    let welcome = |answer: &Option<ToNode>| matches!(answer, Some(ToNode::Welcome { .. }));
    assert!(answers.iter().any(welcome), "one of the two, for a node has one channel: {answers:?}");

    let listless = Relay::without_list();
    let mut node = listless.connect(1, 1, Transport::Tls).await;
    assert_eq!(node.is_denied().await, DeniedReason::NotAdmitted);
}

#[tokio::test]
async fn two_nodes_meet_across_transports_talk_and_get_their_legs() {
    let relay = Relay::start();
    let [mut one, mut other] = met(&relay).await;
    one.say(ToRelay::Signal { to: key(2), bytes: vec![5; 356] }).await;
    let signal = other.hear().await;
    assert!(
        matches!(&signal, Some(ToNode::Signal { from, bytes }) if *from == key(1) && bytes.len() == 356),
        "{signal:?}"
    );

    other.say(ToRelay::Allocate { partner: key(1), hint: None }).await;
    let mut legs = Vec::new();
    for (node, partner) in [(&mut one, 2), (&mut other, 1)] {
        match node.hear().await {
            Some(ToNode::Allocated { partner: with, leg }) if with == key(partner) => legs.push(leg),
            heard => panic!("{heard:?}"),
        }
    }
    assert_eq!((legs[0].allocation, legs[0].port), (legs[1].allocation, legs[1].port));
    assert_ne!(legs[0].side, legs[1].side);
    assert_ne!(legs[0].key.expose_bytes(), legs[1].key.expose_bytes());
    one.say(ToRelay::Release(key(2))).await;
    for node in [&mut one, &mut other] {
        let heard = node.hear().await;
        assert!(matches!(heard, Some(ToNode::Released { reason: ReleasedReason::Asked, .. })), "{heard:?}");
    }
    one.say(ToRelay::Allocate { partner: key(77), hint: None }).await;
    let heard = one.hear().await;
    assert!(matches!(heard, Some(ToNode::Refused { reason: RefusedReason::NotAdmitted, .. })), "{heard:?}");
}

#[tokio::test]
async fn strangers_thieves_and_pretenders_are_sent_away() {
    let relay = Relay::start();
    for transport in [Transport::Quic, Transport::Tls] {
        for (proven, claimed) in [(50, 1), (50, 50), (1, 2), (2, 50)] {
            let mut node = relay.connect(proven, claimed, transport).await;
            assert_eq!(node.is_denied().await, DeniedReason::NotAdmitted, "{proven} as {claimed}");
        }
    }
    assert_eq!(relay.board.stats.borrow().sessions, 0);
}

#[tokio::test]
async fn a_removed_member_loses_its_session_and_its_leg_at_once() {
    let relay = Relay::start();
    let [mut one, mut other] = met(&relay).await;
    one.say(ToRelay::Allocate { partner: key(2), hint: None }).await;
    for node in [&mut one, &mut other] {
        assert!(matches!(node.hear().await, Some(ToNode::Allocated { .. })));
    }
    relay.directory.set("node-1".into(), None);
    assert_eq!(one.is_denied().await, DeniedReason::NotAdmitted);
    let heard = [other.hear().await, other.hear().await];
    let is_parted = |heard: &Option<ToNode>| matches!(heard, Some(ToNode::Present { met: false, .. }));
    let is_released =
        |heard: &Option<ToNode>| matches!(heard, Some(ToNode::Released { reason: ReleasedReason::Removed, .. }));
    assert!(heard.iter().any(is_parted) && heard.iter().any(is_released), "{heard:?}");
}

#[tokio::test]
async fn a_node_that_comes_again_takes_its_own_place() {
    let relay = Relay::start();
    let mut before = relay.welcome(1, Transport::Quic).await;
    let mut now = relay.welcome(1, Transport::Tls).await;
    assert_eq!(before.is_denied().await, DeniedReason::Replaced);
    now.say(ToRelay::Meet(key(2))).await;
    assert!(matches!(now.hear().await, Some(ToNode::Present { met: false, .. })));
}

#[tokio::test]
async fn no_stray_packet_goes_to_this_host() {
    let relay = Relay::start();
    let mut node = relay.welcome(1, Transport::Quic).await;
    let target = UdpSocket::bind("127.0.0.1:0").unwrap();
    target.set_nonblocking(true).unwrap();
    let to = target.local_addr().unwrap();
    node.say(ToRelay::Stray { to, tx: TransactionId([1; 12]) }).await;
    // What is said next is answered next, so the order before it was refused.
    node.say(ToRelay::Meet(key(2))).await;
    assert!(matches!(node.hear().await, Some(ToNode::Present { .. })));
    assert!(target.recv(&mut [0; 100]).is_err());
}

#[tokio::test]
async fn a_relay_that_ends_says_so() {
    let relay = Relay::start();
    let mut node = relay.welcome(1, Transport::Tls).await;
    relay.board.drain.send_replace(Some(3));
    assert!(matches!(node.hear().await, Some(ToNode::Drain { seconds: 3 })));
}

/// The plane is what it was: the same allocation is told again, and who was removed meanwhile is gone from it.
#[tokio::test]
async fn a_front_end_that_starts_anew_finds_the_data_plane_as_it_was() {
    let mut relay = Relay::start();
    let [mut one, mut other] = met(&relay).await;
    one.say(ToRelay::Allocate { partner: key(2), hint: None }).await;
    let Some(ToNode::Allocated { leg: before, .. }) = one.hear().await else { panic!("no leg") };
    assert!(matches!(other.hear().await, Some(ToNode::Allocated { .. })));
    drop(relay.front_end.take());
    let doors = relay.board.doors.send_replace(relay::control::Doors::default());
    (relay.front.quic, relay.front.tls) = (loopback(doors.quic.unwrap()), loopback(doors.tls.unwrap()));
    relay.directory.replace(BTreeMap::from([1, 2].map(|number| (format!("node-{number}"), member(number)))));
    relay.front_end = Some(relay.front.clone().start().unwrap());
    relay.target().await;
    // The connections of the life before are reset when they are used.
    for node in [&mut one, &mut other] {
        let _ = node.sender.send(&ToRelay::Meet(key(3))).await;
        while matches!(node.receiver.recv().await, Ok(Some(_))) {}
    }
    let [mut one, _other] = met(&relay).await;
    one.say(ToRelay::Allocate { partner: key(2), hint: None }).await;
    let Some(ToNode::Allocated { leg: after, .. }) = one.hear().await else { panic!("no leg") };
    assert_eq!((before.allocation, before.port), (after.allocation, after.port));
    assert_eq!(before.key.expose_bytes(), after.key.expose_bytes());
    one.say(ToRelay::Allocate { partner: key(3), hint: None }).await;
    assert!(matches!(one.hear().await, Some(ToNode::Refused { reason: RefusedReason::NotAdmitted, .. })));
}

#[tokio::test]
async fn where_one_door_is_taken_the_other_opens() {
    let mut relay = Relay::start();
    drop(relay.front_end.take());
    let taken = std::net::TcpListener::bind(loopback(0)).unwrap();
    relay.board.doors.send_replace(relay::control::Doors::default());
    let front = Front { tls: taken.local_addr().unwrap(), ..relay.front.clone() };
    relay.front_end = Some(front.start().unwrap());
    let mut doors = relay.board.doors.subscribe();
    let doors = *doors.wait_for(|doors| doors.quic.is_some()).await.unwrap();
    assert_eq!(doors.tls, None);
}
