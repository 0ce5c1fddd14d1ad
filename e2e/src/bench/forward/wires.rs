//! Three namespaces in a row.

use std::net::{Ipv4Addr, SocketAddr};

use anyhow::{Context, Result};
use nix::sys::socket::{setsockopt, sockopt};
use socket2::{Domain, Protocol, Socket, Type};
use udpsock::control;

use crate::bench::LAB;
use crate::net::namespace::Namespace;
use crate::teardown;

/// Outside and inside address of each cable: from the sender's to the one in the middle, and on to the receiver's.
pub const SENDER: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 2);
pub const NEAR: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 1);
pub const FAR: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 1);
pub const RECEIVER: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 2);
/// The first source port of either end.
pub const FIRST_PORT: u16 = 10_000;
/// Room in each socket of the ends.
const ROOM: usize = 4 << 20;

/// The namespaces, until they are dropped.
pub struct Wires {
    pub sender: Namespace,
    pub middle: Namespace,
    pub receiver: Namespace,
}

impl Wires {
    pub fn new() -> Result<Self> {
        teardown::down(LAB)?;
        let [sender, middle, receiver] = ["fw-a", "fw-m", "fw-b"].map(|part| Namespace::of(LAB, part));
        let wires = Self { sender, middle, receiver };
        for namespace in [&wires.sender, &wires.middle, &wires.receiver] {
            namespace.create()?;
        }
        for (end, address, name, inside) in
            [(&wires.sender, SENDER, "near", NEAR), (&wires.receiver, RECEIVER, "far", FAR)]
        {
            end.ip(&[&format!("link add eth0 type veth peer name {name} netns {}", wires.middle.name())])?;
            end.ip(&[&format!("addr add {address}/24 dev eth0"), "link set eth0 up"])?;
            wires.middle.ip(&[&format!("addr add {inside}/24 dev {name}"), &format!("link set {name} up")])?;
        }
        Ok(wires)
    }

    /// The sender's sockets, or the receiver's, one for each pair.
    pub fn sockets(&self, end: End, count: usize) -> Result<Vec<Socket>> {
        let (namespace, ip) = match end {
            End::Sender => (&self.sender, SENDER),
            End::Receiver => (&self.receiver, RECEIVER),
        };
        namespace.enter(move || (0..count).map(|index| open(SocketAddr::from((ip, port(index))))).collect())
    }
}

impl Drop for Wires {
    fn drop(&mut self) {
        // The next run takes down what is left.
        let _ = teardown::down(LAB);
    }
}

/// One of the two that talk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    Sender,
    Receiver,
}

/// The port of a pair's socket at either end.
pub fn port(index: usize) -> u16 {
    FIRST_PORT + u16::try_from(index).expect("far fewer pairs than ports")
}

fn open(address: SocketAddr) -> Result<Socket> {
    let socket =
        Socket::new(Domain::IPV4, Type::DGRAM.nonblocking(), Some(Protocol::UDP)).context("opening a socket")?;
    setsockopt(&socket, sockopt::RcvBufForce, &ROOM).context("making room in a socket")?;
    control::receive_merged(&socket).context("asking for merged datagrams")?;
    socket.bind(&address.into()).with_context(|| format!("binding {address}"))?;
    Ok(socket)
}
