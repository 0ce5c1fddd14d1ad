//! Channels to relays, with relays in memory.

use super::*;
use channel::{Heard, Packets};
use node_agent::{
    carry::Outlet,
    relays::{Incoming, Outgoing, Relays, Transport},
};
use path::RelayNews;
use wire::{
    control::{self, DeniedReason, ToNode, ToRelay},
    relay::{AllocationId, Body, Frame, Header, LegKey, Side, Token, seal},
};

/// Where the pair's port on the relay is.
pub const AT: &str = "198.51.100.7:51900";

/// The relay's end of a channel that the agent has opened.
pub struct Dialled {
    relay: Relay,
    /// The key that the agent would have proven.
    identity: [u8; 32],
    said: mpsc::UnboundedReceiver<ToRelay>,
    say: mpsc::UnboundedSender<ToNode>,
}

struct Out(mpsc::UnboundedSender<ToRelay>);
struct In(mpsc::UnboundedReceiver<ToNode>);

impl Outgoing for Out {
    fn send<'a>(&'a mut self, message: &'a ToRelay) -> BoxFuture<'a, anyhow::Result<()>> {
        Box::pin(std::future::ready(self.0.send(message.clone()).map_err(Into::into)))
    }
}

impl Incoming for In {
    fn hear<'a>(&'a mut self, packets: &'a mut Packets) -> BoxFuture<'a, anyhow::Result<Option<Heard<ToNode>>>> {
        Box::pin(async {
            Ok(self.0.recv().await.map(|said| match said {
                ToNode::Data { allocation, packet } => {
                    packets.push(allocation, &packet);
                    Heard::Packets
                }
                message => Heard::Message(message),
            }))
        })
    }
}

impl Outlet for Out {
    fn offer(&self, allocation: AllocationId, packets: &mut dyn Iterator<Item = &[u8]>) -> Option<usize> {
        for packet in packets {
            self.0.send(ToRelay::Data { allocation, packet: packet.to_vec() }).ok()?;
        }
        Some(0)
    }
}

pub fn dial(machine: &Machine, credentials: &Credentials, relay: &Relay) -> anyhow::Result<Link> {
    let relays = machine.relays.lock().unwrap();
    let Some(relays) = &*relays else { anyhow::bail!("nobody plays relays here") };
    let ((out, said), (say, incoming)) = (mpsc::unbounded_channel(), mpsc::unbounded_channel());
    relays.send(Dialled { relay: relay.clone(), identity: credentials.identity.public(), said, say })?;
    let transport = if machine.only_tcp.load(Ordering::Relaxed) { Transport::Tls } else { Transport::Quic };
    Ok(Link {
        transport,
        again: false,
        outgoing: Box::new(Out(out.clone())),
        outlet: Box::new(Out(out)),
        incoming: Box::new(In(incoming)),
    })
}

impl Dialled {
    pub fn says(&self, message: ToNode) {
        self.say.send(message).unwrap();
    }

    pub async fn hears(&mut self) -> Option<ToRelay> {
        tokio::time::timeout(DEADLINE, self.said.recv()).await.unwrap()
    }

    /// The next message that is none about keeping the channel alive.
    async fn expect(&mut self, wanted: ToRelay) {
        assert_eq!(self.hears().await, Some(wanted));
    }

    async fn hears_the_end(mut self) {
        while self.hears().await.is_some() {}
    }
}

const RELAY_KEY: [u8; 32] = [7; 32];

fn put_relay(api: &FakeApi, name: &str, node: &str, key: [u8; 32], addresses: &[&str]) {
    let key = PublicKey::from_bytes(key).to_string();
    api.put(
        "meshrelays",
        json!({
            "metadata": {"name": name}, "spec": {"nodeName": node},
            "status": {"stun": [], "identityKey": key, "addresses": addresses, "quicPort": 51899, "tlsPort": 8443, "conditions": []},
        }),
    );
}

/// A cluster with node `a`, its peer `b` and a relay on node `r`, and whoever plays the relays.
async fn relayed() -> (FakeApi, TempDir, SocketAddr, Lab, mpsc::UnboundedReceiver<Dialled>) {
    relayed_on(Machine::new()).await
}

/// The same on a machine of the test's own.
pub async fn relayed_on(
    machine: (Arc<Machine>, mpsc::Sender<Changed>),
) -> (FakeApi, TempDir, SocketAddr, Lab, mpsc::UnboundedReceiver<Dialled>) {
    relayed_with(json!({}), machine).await
}

/// The same in a mesh with these settings.
pub async fn relayed_with(
    mesh: Value,
    (machine, change): (Arc<Machine>, mpsc::Sender<Changed>),
) -> (FakeApi, TempDir, SocketAddr, Lab, mpsc::UnboundedReceiver<Dialled>) {
    let (api, address, dir) = cluster().await;
    operator::create_mesh(&api, mesh);
    operator::create_node(&api, "a", 1);
    put_slice(&api, "peers-0", &[peer("b", 2).1]);
    put_relay(&api, "r", "r", RELAY_KEY, &["198.51.100.7", "10.118.0.7", "192.0.2.10", "2001:db8::7"]);
    let (dial, dialled) = mpsc::unbounded_channel();
    *machine.relays.lock().unwrap() = Some(dial);
    let lab = Lab::start(&dir.0, &api, address, (machine, change)).await;
    (api, dir, address, lab, dialled)
}

pub async fn next(dialled: &mut mpsc::UnboundedReceiver<Dialled>) -> Dialled {
    tokio::time::timeout(DEADLINE, dialled.recv()).await.unwrap().unwrap()
}

pub async fn own_key(lab: &Lab) -> PublicKey {
    let node = lab.node_where(|n| n["status"]["publicKey"].is_string()).await;
    node["status"]["publicKey"].as_str().unwrap().parse().unwrap()
}

#[tokio::test]
async fn a_relay_is_told_who_this_node_is_and_whom_it_wants_to_meet() {
    let (_api, _dir, _, lab, mut dialled) = relayed().await;
    let mut relay = next(&mut dialled).await;
    let node = lab.node_where(|n| n["status"]["identityKey"].is_string()).await;
    let published: PublicKey = node["status"]["identityKey"].as_str().unwrap().parse().unwrap();
    assert_eq!(*published.as_bytes(), relay.identity, "what is published is what is proven");
    // Not inside the mesh, and none of this node's own.
    let sockets = |ports: &[u16]| -> Vec<SocketAddr> {
        let addresses = ["198.51.100.7", "2001:db8::7"].map(|ip| ip.parse::<IpAddr>().unwrap());
        addresses.iter().flat_map(|ip| ports.iter().map(|port| SocketAddr::new(*ip, *port))).collect()
    };
    assert_eq!((&relay.relay.quic, &relay.relay.tls), (&sockets(&[51899]), &sockets(&[8443])));
    relay.expect(ToRelay::Hello { version: control::VERSION, node: own_key(&lab).await }).await;
    relay.expect(ToRelay::Meet(peer("b", 2).0)).await;
    lab.status_with(r#""relays":[{"name":"r","state":"open","transport":"quic""#).await;
    let metrics = lab.ask(Question::Metrics).await.body;
    assert!(metrics.contains(r#"warren_relay_channels{state="open_quic"} 1"#), "{metrics}");
    lab.stop().await;
}

#[tokio::test]
async fn a_channel_that_was_lost_is_made_anew_and_everything_is_said_again() {
    let (_api, _dir, _, lab, mut dialled) = relayed().await;
    for _ in 0..3 {
        let mut relay = next(&mut dialled).await;
        relay.expect(ToRelay::Hello { version: control::VERSION, node: own_key(&lab).await }).await;
        relay.expect(ToRelay::Meet(peer("b", 2).0)).await;
    }
    lab.stop().await;
}

#[tokio::test]
async fn a_relay_that_went_is_left_and_one_that_moved_is_sought_where_it_is() {
    let (api, _dir, _, lab, mut dialled) = relayed().await;
    let first = next(&mut dialled).await;
    put_relay(&api, "r", "r", RELAY_KEY, &["198.51.100.8"]);
    first.hears_the_end().await;
    let second = next(&mut dialled).await;
    assert_eq!(second.relay.udp, ["198.51.100.8".parse::<IpAddr>().unwrap()]);
    put_relay(&api, "other", "other", [8; 32], &["198.51.100.9"]);
    let third = next(&mut dialled).await;
    assert_eq!(third.relay.name, "other");
    api.delete("meshrelays", "r");
    second.hears_the_end().await;
    assert!(!third.say.is_closed(), "the other one stays");
    lab.stop().await;
}

#[tokio::test]
async fn a_relay_with_another_key_is_asked_for_the_legs_that_the_one_before_had() {
    let (api, _dir, _, lab, mut dialled) = relayed().await;
    let (a, b) = (own_key(&lab).await, peer("b", 2).0);
    let mut relay = next(&mut dialled).await;
    relay.says(ToNode::Present { node: b, met: true });
    while relay.hears().await != Some(ToRelay::Allocate { partner: b, hint: None }) {}
    let (key, _) = name_leg(&relay, [a, b]);
    bound_for(&lab.machine.device(), AT.parse().unwrap(), &key).await;
    put_relay(&api, "r", "r", [9; 32], &["198.51.100.7"]);
    relay.hears_the_end().await;
    let mut relay = next(&mut dialled).await;
    relay.says(ToNode::Present { node: b, met: true });
    while relay.hears().await != Some(ToRelay::Allocate { partner: b, hint: None }) {}
    lab.stop().await;
}

#[tokio::test]
async fn relays_are_known_from_disk_while_the_api_is_away() {
    let (api, dir, address, lab, mut dialled) = relayed().await;
    let mut relay = next(&mut dialled).await;
    while relay.hears().await != Some(ToRelay::Meet(peer("b", 2).0)) {}
    let machine = lab.stop().await;
    api.set_up(false);
    let (change, changed) = mpsc::channel(4);
    *machine.changed.lock().await = changed;
    let lab = Lab::start(&dir.0, &api, address, (machine, change)).await;
    let mut relay = next(&mut dialled).await;
    assert_eq!(relay.relay.name, "r");
    assert!(matches!(relay.hears().await, Some(ToRelay::Hello { .. })));
    relay.expect(ToRelay::Meet(peer("b", 2).0)).await;
    lab.stop().await;
}

#[tokio::test]
async fn a_denied_channel_says_why() {
    let (_api, _dir, _, lab, mut dialled) = relayed().await;
    let relay = next(&mut dialled).await;
    relay.say.send(ToNode::Denied(control::DeniedReason::Version)).unwrap();
    lab.status_with("another version of the protocol").await;
    let text = lab.ask(Question::Metrics).await.body;
    assert!(text.contains(r#"warren_relay_channels{state="closed"} 1"#), "{text}");
    lab.stop().await;
}

/// What of the device's datagrams goes to the pair's port on the relay, opened.
async fn bound_for(device: &Fake, to: SocketAddr, key: &LegKey) -> (Header, Body) {
    let sent = async {
        loop {
            let mut sent = device.take_sent().into_iter().filter(|datagram| datagram.remote == to);
            if let Some(datagram) = sent.next() {
                let frame = Frame::parse(&datagram.payload).unwrap();
                break (frame.header(), frame.open(key).unwrap());
            }
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(DEADLINE, sent).await.unwrap()
}

/// The relay names the leg of the first node with the second. Returns its key and side.
fn name_leg(relay: &Dialled, [own, partner]: [PublicKey; 2]) -> (LegKey, Side) {
    let (key, side) = (LegKey::from_bytes([5; 32]), if own < partner { Side::Low } else { Side::High });
    let leg = control::Leg { allocation: AllocationId(77), side, port: 51900, key: key.clone(), counter: 0 };
    relay.says(ToNode::Allocated { partner, leg });
    (key, side)
}

/// The same, and the agent binds it.
pub async fn bind(relay: &Dialled, device: &Fake, nodes: [PublicKey; 2]) {
    let (key, side) = name_leg(relay, nodes);
    let at = AT.parse().unwrap();
    let (header, body) = bound_for(device, at, &key).await;
    assert_eq!((header.allocation, header.side, body), (AllocationId(77), side, Body::Bind));
    let answer = |body: Body| {
        let payload = seal(&key, &header, &body).to_vec();
        assert!(device.deliver(Datagram { remote: at, local: Some("192.0.2.10".parse().unwrap()), payload }));
    };
    answer(Body::Challenge(Token([9; 16])));
    while bound_for(device, at, &key).await.1 != Body::Answer(Token([9; 16])) {}
    answer(Body::Bound { observed: "192.0.2.10:21820".parse().unwrap() });
}

#[tokio::test]
async fn a_leg_is_bound_from_wireguards_port_and_then_wireguard_is_pointed_there() {
    let (_api, _dir, _, lab, mut dialled) = relayed().await;
    let mut relay = next(&mut dialled).await;
    let (a, b) = (own_key(&lab).await, peer("b", 2).0);
    relay.expect(ToRelay::Hello { version: control::VERSION, node: a }).await;
    relay.expect(ToRelay::Meet(b)).await;
    relay.say.send(ToNode::Welcome { boot: 1, observed: "192.0.2.10:4000".parse().unwrap() }).unwrap();
    relay.say.send(ToNode::Present { node: b, met: true }).unwrap();
    while relay.hears().await != Some(ToRelay::Allocate { partner: b, hint: None }) {}
    let (device, at) = (lab.machine.device(), AT.parse().unwrap());
    bind(&relay, &device, [a, b]).await;
    let pointed = || device.take_applied().iter().flat_map(|d| &d.upsert).any(|u| u.endpoint == Some(at));
    assert!(!pointed(), "not before both legs are bound");
    relay.say.send(ToNode::Ready(b)).unwrap();
    let moved = async {
        while !pointed() {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(DEADLINE, moved).await.unwrap();
    let paths = lab.ask(Question::Paths(Some("b".into()))).await.body;
    assert!(
        paths.contains(r#""legs":[{"relay":"r","endpoint":"198.51.100.7:51900","transport":"udp","phase":"ready"}]"#),
        "{paths}"
    );
    lab.stop().await;
}

/// A relay that is known by its address.
pub fn one() -> Relay {
    Relay {
        id: path::RelayId(RELAY_KEY),
        name: "r".into(),
        domain: None,
        quic: vec![AT.parse().unwrap()],
        tls: Vec::new(),
        udp: Vec::new(),
    }
}

/// Channels to one relay, and whoever plays it.
fn alone() -> (Relays, mpsc::UnboundedReceiver<Dialled>) {
    let (machine, _change) = Machine::new();
    let (dial, dialled) = mpsc::unbounded_channel();
    *machine.relays.lock().unwrap() = Some(dial);
    let credentials = Credentials { identity: channel::Identity::generate().unwrap(), fwmark: 0 };
    let mut relays = Relays::new(machine, credentials, None);
    relays.set(&[one()], std::time::Instant::now());
    (relays, dialled)
}

#[tokio::test(start_paused = true)]
async fn a_node_that_is_admitted_asks_its_relays_again_at_once() {
    let (relays, mut dialled) = alone();
    for _ in 0..8 {
        let relay = dialled.recv().await.unwrap();
        relay.says(ToNode::Denied(DeniedReason::NotAdmitted));
        relay.hears_the_end().await;
    }
    // By now it would be twelve seconds or so.
    let denied = tokio::time::Instant::now();
    relays.set_admitted(true);
    dialled.recv().await.unwrap();
    assert_eq!(denied.elapsed(), Duration::ZERO);
}

/// A relay ends a channel that begins with anything but Hello, and is not asked again for long.
#[tokio::test(start_paused = true)]
async fn what_was_meant_for_a_channel_is_not_said_over_the_next_one() {
    let (mut relays, mut dialled) = alone();
    let (id, now) = (path::RelayId(RELAY_KEY), std::time::Instant::now());
    let meet = |relays: &mut Relays| relays.send(id, ToRelay::Meet(PublicKey::from_bytes([1; 32])), now);
    let opening = relays.next().await;
    assert!(matches!(relays.accept(opening, now)[..], [(_, RelayNews::Open { .. })]));
    drop(dialled.recv().await.unwrap());
    let mut second = dialled.recv().await.unwrap();
    // A loop that is busy has neither heard of the end of the first one ..
    meet(&mut relays);
    tokio::task::yield_now().await;
    let closing = relays.next().await;
    assert!(matches!(relays.accept(closing, now)[..], [(_, RelayNews::Closed)]));
    // .. nor, then, of the second one.
    meet(&mut relays);
    tokio::task::yield_now().await;
    let opening = relays.next().await;
    assert!(matches!(relays.accept(opening, now)[..], [(_, RelayNews::Open { .. })]));
    let hello = ToRelay::Hello { version: control::VERSION, node: PublicKey::from_bytes([2; 32]) };
    relays.send(id, hello.clone(), now);
    second.expect(hello).await;
}

#[tokio::test]
async fn relays_are_asked_again_when_the_api_tells_that_this_node_is_admitted() {
    let (api, _dir, _, lab, mut dialled) = relayed().await;
    let relay = next(&mut dialled).await;
    lab.node_where(|n| n["status"]["publicKey"].is_string()).await;
    // Whoever is told this waits for fifteen seconds at least.
    relay.says(ToNode::Denied(DeniedReason::Version));
    relay.hears_the_end().await;
    assert!(operator::admit(&api, "a"));
    tokio::time::timeout(Duration::from_secs(14), dialled.recv()).await.unwrap().unwrap();
    lab.stop().await;
}
