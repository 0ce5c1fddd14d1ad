//! A crowd at the doors that never says who it is: what it may take, and who notices.

use std::io::{ErrorKind, Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use nix::sys::resource::{Resource, getrlimit, setrlimit};

use super::carry::{attach, packet};
use super::*;

/// Connections that are opened and never finish their handshake.
const CROWD: usize = 5000;
/// Sites that they come from: each has 64 places, and all together have 1,024.
const SITES: usize = 100;
/// The site of one of the crowd: the first one sends half of it.
fn site_of(number: usize) -> usize {
    if number.is_multiple_of(2) { 0 } else { 1 + number / 2 % (SITES - 1) }
}

/// What the crowd may cost, this test's own ends of its connections included: they have no more than 1,024 places.
const MEMORY: u64 = 128 << 20;
/// A handshake has 10 s.
const PATIENCE: Duration = Duration::from_secs(60);

/// One who sends a byte now and then, and never a whole message.
fn loiter(relay: SocketAddr, site: usize) -> std::io::Result<TcpStream> {
    let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None)?;
    let from = SocketAddr::from(([127, 9, 0, 1 + site as u8], 0));
    socket.bind(&from.into())?;
    socket.connect(&relay.into())?;
    let mut stream = TcpStream::from(socket);
    stream.set_nonblocking(true)?;
    // Of a TLS record. It may be closed already.
    let _ = stream.write(&[0x16]);
    Ok(stream)
}

/// Whether the relay has left it open.
fn is_open(stream: &mut TcpStream) -> bool {
    let _ = stream.write(&[3]);
    matches!(stream.read(&mut [0; 8]), Err(error) if error.kind() == ErrorKind::WouldBlock)
}

fn resident() -> u64 {
    let status = std::fs::read_to_string("/proc/self/statm").unwrap();
    status.split(' ').nth(1).unwrap().parse::<u64>().unwrap() * 4096
}

/// Descriptors for both ends of the crowd; whether there are enough.
fn descriptors() -> bool {
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
    setrlimit(Resource::RLIMIT_NOFILE, hard, hard).unwrap();
    hard >= 2 * CROWD as u64
}

#[tokio::test(flavor = "multi_thread")]
async fn five_thousand_half_open_connections_take_their_places_for_a_while_and_members_do_not_notice() {
    assert!(descriptors(), "the limit of open files is too low for this test: ulimit -Hn 10000");
    let relay = Relay::start();
    let [mut one, mut other] = [relay.welcome(1, Transport::Tls).await, relay.welcome(2, Transport::Quic).await];
    let allocation = attach((1, &mut one), (2, &mut other)).await;
    let door = relay.target().await.tls[0];
    let before = resident();
    let mut crowd: Vec<TcpStream> = Vec::with_capacity(CROWD);
    for number in 0..CROWD {
        crowd.push(loiter(door, site_of(number)).unwrap());
        if number % 50 == 0 {
            let there = packet(4, 1452, number as u32);
            one.send(allocation, &there).await;
            other.gets(allocation, &there).await;
            other.send(allocation, &there[..64]).await;
            one.gets(allocation, &there[..64]).await;
        }
    }
    let begin = Instant::now();
    let mut open: Vec<usize> = Vec::new();
    while open.is_empty() || open.len() > channel::MAX_NEWCOMERS {
        open = crowd.iter_mut().enumerate().filter_map(|(at, stream)| is_open(stream).then_some(site_of(at))).collect();
        assert!(begin.elapsed() < PATIENCE, "{} are open", open.len());
    }
    let of_site = |site| open.iter().filter(|of| **of == site).count();
    assert!((0..SITES).all(|site| of_site(site) <= channel::MAX_NEWCOMERS_OF_SOURCE));
    let cost = resident().saturating_sub(before);
    eprintln!("{CROWD} half-open: {} have a place, {} MiB more resident", open.len(), cost >> 20);
    assert!(cost < MEMORY, "{cost} bytes");
    // A byte now and then buys no time: who belongs here gets in when theirs is over, and a member is served all the while.
    let mut tries = 0;
    let third = loop {
        tries += 1;
        one.send(allocation, &packet(4, 64, tries)).await;
        other.gets(allocation, &packet(4, 64, tries)).await;
        let target = Target { quic: Vec::new(), ..relay.target().await };
        match channel::connect(&identity(3), &target, Options::default()).await {
            Ok(channel) => break channel,
            Err(_) if begin.elapsed() < PATIENCE => {
                let _ = crowd.iter_mut().filter_map(|stream| is_open(stream).then_some(())).count();
            }
            Err(error) => panic!("nobody gets in any more: {error}"),
        }
    };
    let (sender, mut receiver) = third.split();
    sender.send(&ToRelay::Hello { version: VERSION, node: key(3) }).await.unwrap();
    assert!(matches!(receiver.recv().await, Ok(Some(ToNode::Welcome { .. }))));
}
