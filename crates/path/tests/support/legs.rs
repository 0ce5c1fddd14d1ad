//! A node beside a relay, from the first meeting to a path that is proven.

use std::time::Duration;

use path::{Event, Input, PathState, Transmit};
use wire::control::{Leg, ToNode};
use wire::probe::Probe;
use wire::relay::{self, AllocationId, Body, Header, LegKey, Side, Token};
use wire::stun::TransactionId;

use super::{Bench, addr};

pub const PEER: &str = "203.0.113.7:21820";
/// The address of the bench's relay, with the pair's port.
pub const SOCKET: &str = "192.0.2.9:51907";
pub const TOKEN: Token = Token([9; 16]);

/// A node that has met its peer at the relay.
pub fn met(nominates: bool) -> Bench {
    met_by(Bench::new(nominates))
}

pub fn met_by(mut bench: Bench) -> Bench {
    bench.open_relay();
    bench.add_peer(&[PEER]);
    bench.meet();
    bench
}

pub fn key() -> LegKey {
    LegKey::from_bytes([5; 32])
}

pub fn leg(counter: u64) -> Leg {
    Leg { allocation: AllocationId(7), side: Side::Low, port: 51_907, key: key(), counter }
}

pub fn allocate(bench: &mut Bench, counter: u64) {
    let partner = bench.peer;
    bench.hear(ToNode::Allocated { partner, leg: leg(counter) });
}

/// A node whose leg is bound, with nothing left to send.
pub fn bound(nominates: bool) -> Bench {
    bound_by(Bench::new(nominates))
}

pub fn bound_by(bench: Bench) -> Bench {
    let mut bench = met_by(bench);
    allocate(&mut bench, 0);
    bench.transmits();
    answer(&mut bench, 1, &Body::Challenge(TOKEN));
    answer(&mut bench, 1, &Body::Bound { observed: addr("198.51.100.1:21820") });
    bench.transmits();
    bench.asked();
    bench.events();
    bench
}

/// A relay message arrives.
pub fn answer(bench: &mut Bench, counter: u64, body: &Body) {
    let header = Header { allocation: AllocationId(7), side: Side::Low, counter };
    bench.receive(SOCKET, relay::seal(&key(), &header, body).to_vec());
}

pub fn ready(bench: &mut Bench) -> Vec<Event> {
    let peer = bench.peer;
    bench.hear(ToNode::Ready(peer));
    bench.events()
}

/// A node whose packets go by the relay.
pub fn relayed(nominates: bool) -> Bench {
    let mut bench = bound(nominates);
    let peer = bench.peer;
    let mut events = ready(&mut bench);
    if !nominates {
        bench.input(Input::EchoRequest { peer });
        events = bench.events();
    }
    let token = token(&events).unwrap();
    bench.input(Input::EchoReply { peer, token });
    assert!(matches!(state(&bench), PathState::Relayed { .. }));
    // One more, for the round-trip time.
    if let Some(token) = self::token(&bench.events()) {
        bench.input(Input::EchoReply { peer, token });
    }
    bench.events();
    bench.transmits();
    bench.asked();
    bench
}

pub fn token(events: &[Event]) -> Option<u64> {
    events.iter().find_map(|event| if let Event::SendEcho { token, .. } = event { Some(*token) } else { None })
}

pub fn state(bench: &Bench) -> PathState {
    bench.engine.snapshot().peers[&bench.peer].state
}

pub fn nomination(bench: &Bench, sent: &[Transmit]) -> Option<(TransactionId, u64)> {
    sent.iter().find_map(|sent| match bench.open(sent) {
        Some((tx, Probe::Nominate { epoch })) if sent.remote == addr(PEER) => Some((tx, epoch)),
        _ => None,
    })
}

/// The peer takes a nomination up. What the engine does then.
pub fn acknowledge(bench: &mut Bench, (tx, epoch): (TransactionId, u64)) -> Vec<Event> {
    let ack = bench.seal(tx, &Probe::NominateAck { epoch });
    bench.receive(PEER, ack);
    bench.events()
}

/// A pair that was relayed and is direct, with its leg still there.
pub fn direct(nominates: bool) -> Bench {
    let mut bench = relayed(nominates);
    let peer = bench.peer;
    // Answered at once, so that it is a near peer.
    let sent = std::iter::repeat_with(|| bench.keep_alive(Duration::from_millis(10)))
        .take(100)
        .find(|sent| sent.iter().any(|sent| sent.remote == addr(PEER)))
        .expect("a probe");
    bench.answer(&sent, PEER);
    let events = if nominates {
        let sent = bench.transmits();
        let nomination = nomination(&bench, &sent).expect("a nomination");
        acknowledge(&mut bench, nomination)
    } else {
        bench.say(PEER, &Probe::Nominate { epoch: 1 });
        bench.events()
    };
    bench.input(Input::EchoReply { peer, token: token(&events).unwrap() });
    assert!(bench.is_direct());
    bench.collect(Duration::from_secs(12));
    bench.input(Input::EchoRequest { peer });
    bench
}
