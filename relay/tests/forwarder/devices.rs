//! WireGuard through the relay: both nodes behind NATs that no ordinary probing connects.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream, UdpSocket};
use std::thread;
use std::time::Duration;

use relay::server::plane::{Input, News, Outcome, ReleasedReason};

use crate::lab::{self, PATIENCE, recv_from};
use crate::node::{Relay, Relayed, block_on, relay_port};
use crate::support::node;

/// A client at `a` and an echo service at `b`, in the mesh.
struct Echo(UdpSocket);

impl Echo {
    fn new(relayed: &Relayed) -> Self {
        let service = relayed.lab.b.socket("10.99.0.2:7");
        thread::spawn(move || {
            let mut buffer = [0; 65_536];
            // Ends with the patience of a test that is over.
            while let Ok((length, from)) = recv_from(&service, &mut buffer) {
                let _ = service.send_to(&buffer[..length], from);
            }
        });
        Self(relayed.lab.a.socket("10.99.0.1:0"))
    }

    fn ping(&self, size: usize) {
        let sent: Vec<u8> = (0..size).map(|at| at as u8).collect();
        self.0.send_to(&sent, "10.99.0.2:7").unwrap();
        let mut buffer = [0; 65_536];
        let (length, _) =
            recv_from(&self.0, &mut buffer).unwrap_or_else(|error| panic!("no echo of {size} bytes: {error}"));
        assert!(buffer[..length] == sent, "the payload changed");
    }

    fn is_deaf(&self) -> bool {
        self.0.send_to(b"anybody?", "10.99.0.2:7").unwrap();
        self.0.set_read_timeout(Some(Duration::from_millis(300))).unwrap();
        let heard = recv_from(&self.0, &mut [0; 64]);
        self.0.set_read_timeout(Some(PATIENCE)).unwrap();
        heard.is_err()
    }
}

/// Sends this many bytes from `a` to `b` and back by TCP, and compares.
fn stream(relayed: &Relayed, bytes: u32) {
    let listener = relayed.lab.b.run(|| TcpListener::bind("10.99.0.2:5001").unwrap());
    let echo = thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        let mut reader = stream.try_clone().unwrap();
        std::io::copy(&mut reader, &mut stream).unwrap()
    });
    let stream = relayed.lab.a.run(|| TcpStream::connect("10.99.0.2:5001").unwrap());
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    let sent: Vec<u8> = (0..bytes).map(|at| (at.wrapping_mul(2_654_435_761) >> 13) as u8).collect();
    let (mut writer, expected) = (stream.try_clone().unwrap(), sent.clone());
    let write = thread::spawn(move || {
        writer.write_all(&sent).unwrap();
        writer.shutdown(std::net::Shutdown::Write).unwrap();
    });
    let mut back = Vec::new();
    (&stream).read_to_end(&mut back).unwrap();
    write.join().unwrap();
    echo.join().unwrap();
    assert!(back == expected, "the stream changed");
}

#[test]
fn two_devices_behind_symmetric_nats_talk_through_the_relay() {
    if !lab::available() {
        return;
    }
    let relayed = Relayed::new();
    let echo = Echo::new(&relayed);
    // Up to the full MTU of the device, which leaves no room for a header of a relay's, and past it.
    for size in [8, 100, 1000, 1392, 4000, 20_000] {
        echo.ping(size);
    }
    let (at_a, at_b) = (relayed.a.status(), relayed.b.status());
    assert_eq!(at_a.endpoint, Some(relay_port(&relayed.legs[0])), "the endpoint is the relay's port, and stays");
    assert_eq!(at_b.endpoint, Some(relay_port(&relayed.legs[1])));
    assert!(at_a.last_handshake.is_some() && at_b.last_handshake.is_some());
    relayed.settle();
    let snapshot = relayed.relay.snapshot();
    for outcome in [Outcome::UnknownSource, Outcome::HalfBound, Outcome::Unfit] {
        assert_eq!(snapshot.plane.datagrams(outcome), 0, "{outcome:?}");
    }
    assert_eq!((snapshot.full, snapshot.send_errors, snapshot.receive_errors), (0, 0, 0));
}

/// TCP fills merged batches in both directions.
#[test]
fn streams_through_the_relay_arrive_whole() {
    if !lab::available() {
        return;
    }
    let relayed = Relayed::new();
    stream(&relayed, 6_000_000);
    assert_eq!(relayed.relay.snapshot().send_errors, 0);
}

#[test]
fn a_relay_that_starts_anew_carries_the_same_session() {
    if !lab::available() {
        return;
    }
    let Relayed { lab, relay, a, b, legs } = Relayed::new();
    let port = relay_port(&legs[0]).port();
    let relayed = Relayed { lab, relay, a, b, legs };
    let echo = Echo::new(&relayed);
    echo.ping(100);
    let before = relayed.a.status().rx_bytes;

    let Relayed { lab, relay, a, b, .. } = relayed;
    drop(relay);
    let mut relay = Relay::start(&lab, 2);
    let mut legs = relay.allocate(Some(port));
    assert_eq!(relay_port(&legs[0]).port(), port);
    a.bind(&mut legs[0]);
    b.bind(&mut legs[1]);
    let relayed = Relayed { lab, relay, a, b, legs };
    echo.ping(100);
    // A session made anew would have cost an initiation and a response: 148 and 92 bytes. Data of 100 bytes is 160 bytes.
    let forwarded = || relayed.relay.snapshot().plane.datagrams(Outcome::Forwarded);
    lab::eventually("the answer is counted", || forwarded() >= 2);
    assert_eq!(forwarded(), 2, "a question and its answer, and no handshake");
    assert_eq!(relayed.a.status().rx_bytes - before, 160);
}

#[test]
fn a_released_pair_is_silent() {
    if !lab::available() {
        return;
    }
    let mut relayed = Relayed::new();
    let echo = Echo::new(&relayed);
    echo.ping(100);
    relayed.settle();
    relayed.relay.send(Input::Release { by: node(2), partner: node(1) });
    for _ in 0..2 {
        let news = relayed.relay.event().news;
        assert!(matches!(news, News::Released(ReleasedReason::Asked)), "{news:?}");
    }
    let forwarded = relayed.relay.snapshot().plane.forwarded_bytes;
    assert!(echo.is_deaf());
    assert_eq!(relayed.relay.snapshot().plane.forwarded_bytes, forwarded);
}

/// Whoever speaks to the data plane may crash: it forwards on, and tells the next one what it missed.
#[test]
fn forwarding_survives_its_front_end() {
    if !lab::available() {
        return;
    }
    let relayed = Relayed::new();
    let echo = Echo::new(&relayed);
    echo.ping(100);
    let Relayed { lab, relay, a, b, mut legs } = relayed;
    let Relay { forwarder, control, .. } = relay;
    // The events' receiver is gone with the front end.
    drop(control);
    echo.ping(100);
    a.bind(&mut legs[0]);
    let control = forwarder.control();
    let mut events = block_on(control.subscribe()).unwrap();
    block_on(control.send(Input::Allocate { by: node(1), partner: node(2), hint: None })).unwrap();
    let event = block_on(events.recv()).unwrap();
    assert!(matches!(event.news, News::Allocated { allocation, .. } if allocation == legs[0].allocation), "{event:?}");
    assert!(!forwarder.has_ended());
    echo.ping(100);
    drop((lab, b));
}
