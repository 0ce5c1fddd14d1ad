//! The three ways through the namespace in the middle.

use std::net::SocketAddr;
use std::process::{Child, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use relay::server::plane::Config;
use relay::udp::Forwarder;
use socket2::Socket;

use super::leg::{self, Relay};
use super::turn;
use super::wires::{End, FAR, FIRST_PORT, NEAR, RECEIVER, Wires};
use crate::bench::usage;
use crate::net::namespace::Namespace;
use crate::wait;

/// coturn's port.
const TURN_PORT: u16 = 3478;
/// coturn opens its sockets.
const STARTED: Duration = Duration::from_secs(20);

/// One of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    Relay,
    Kernel,
    Coturn,
}

impl Way {
    pub const ALL: [Self; 3] = [Self::Relay, Self::Kernel, Self::Coturn];

    pub fn name(self) -> &'static str {
        match self {
            Self::Relay => "relay",
            Self::Kernel => "kernel",
            Self::Coturn => "coturn",
        }
    }

    /// Makes it ready for so many pairs.
    pub fn open(self, wires: &Wires, pairs: usize) -> Result<Carrier> {
        let from = wires.sockets(End::Sender, pairs)?;
        let to = wires.sockets(End::Receiver, pairs)?;
        let (flows, engine) = match self {
            Self::Relay => by_relay(wires, &from, &to)?,
            Self::Kernel => by_kernel(wires, pairs)?,
            Self::Coturn => by_coturn(wires, &from, pairs)?,
        };
        Ok(Carrier { from, to, flows, engine })
    }
}

/// How a pair's datagrams begin their way.
#[derive(Clone, Debug)]
pub struct Flow {
    /// Where its sender sends.
    pub to: SocketAddr,
    /// What stands before each datagram.
    pub header: fn(usize) -> Vec<u8>,
}

/// A way that is ready.
pub struct Carrier {
    pub from: Vec<Socket>,
    pub to: Vec<Socket>,
    pub flows: Vec<Flow>,
    engine: Engine,
}

enum Engine {
    Relay(Forwarder),
    Kernel(Namespace),
    Coturn(Child),
}

impl Carrier {
    /// CPU seconds that the program itself has used; the kernel's NAT is none.
    pub fn cpu(&self) -> Result<Option<f64>> {
        match &self.engine {
            Engine::Relay(forwarder) => {
                ensure!(!forwarder.has_ended(), "the data plane has ended");
                usage::of_threads(std::process::id().cast_signed(), "relay-udp").map(Some)
            }
            Engine::Kernel(_) => Ok(None),
            Engine::Coturn(child) => Ok(Some(usage::of(child.id().cast_signed())?.cpu)),
        }
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        match self {
            Self::Relay(_) => {}
            // What fails here shows when the next way is opened.
            Self::Kernel(middle) => drop(middle.nft("flush ruleset")),
            Self::Coturn(child) => {
                let _ = child.kill();
                let _ = child.wait();
            }
        }
    }
}

fn no_header(_: usize) -> Vec<u8> {
    Vec::new()
}

fn by_relay(wires: &Wires, from: &[Socket], to: &[Socket]) -> Result<(Vec<Flow>, Engine)> {
    let mut relay = Relay::start(wires, Config::default())?;
    let mut flows = Vec::new();
    for (index, (from, to)) in from.iter().zip(to).enumerate() {
        let [low, high] = relay.allocate([2 * index, 2 * index + 1])?;
        let entry = SocketAddr::from((NEAR, low.port));
        leg::bind(from, entry, low)?;
        leg::bind(to, SocketAddr::from((FAR, high.port)), high)?;
        flows.push(Flow { to: entry, header: no_header });
    }
    Ok((flows, Engine::Relay(relay.forwarder)))
}

/// Destination and source are changed, the ports stay.
fn by_kernel(wires: &Wires, pairs: usize) -> Result<(Vec<Flow>, Engine)> {
    wires.middle.sysctl(&["net.ipv4.ip_forward=1"])?;
    wires.middle.nft(&format!(
        "flush ruleset\ntable ip nat {{\n\
         chain in {{ type nat hook prerouting priority dstnat; ip daddr {NEAR} udp dport >= {FIRST_PORT} dnat to {RECEIVER}; }}\n\
         chain out {{ type nat hook postrouting priority srcnat; oifname far masquerade; }}\n}}\n"
    ))?;
    let flow = |index| Flow { to: SocketAddr::from((NEAR, super::wires::port(index))), header: no_header };
    Ok(((0..pairs).map(flow).collect(), Engine::Kernel(wires.middle.clone())))
}

fn by_coturn(wires: &Wires, from: &[Socket], pairs: usize) -> Result<(Vec<Flow>, Engine)> {
    let (near, far) = (NEAR.to_string(), FAR.to_string());
    let port = TURN_PORT.to_string();
    let args = [
        "-n",
        "--no-auth",
        "--no-tls",
        "--no-dtls",
        "--no-cli",
        "--no-rfc5780",
        "--relay-threads",
        "1",
        "--log-file",
        "/dev/null",
        "--pidfile",
        "/dev/null",
        "-p",
        &port,
        "-L",
        &near,
        "-E",
        &far,
        "--realm",
        "bench",
    ];
    let child = wires.middle.command("turnserver", &args).stdout(Stdio::null()).stderr(Stdio::null()).spawn();
    let engine = Engine::Coturn(child.context("starting coturn: is the Debian package coturn installed?")?);
    let server = SocketAddr::from((NEAR, TURN_PORT));
    let listens = wires.middle.clone();
    wait::until("coturn", STARTED, || {
        let table = listens.enter(|| std::fs::read_to_string("/proc/thread-self/net/udp").context("the sockets"));
        let open = format!(":{TURN_PORT:04X} ");
        table.is_ok_and(|table| table.contains(&open)).then_some(()).ok_or_else(|| "no socket yet".to_owned())
    })?;
    for (index, socket) in from.iter().enumerate() {
        turn::allocate(socket, server, SocketAddr::from((RECEIVER, super::wires::port(index))))
            .with_context(|| format!("allocation {index} of coturn"))?;
    }
    Ok((vec![Flow { to: server, header: turn::channel_header }; pairs], engine))
}
