//! The server side: HTTP, UDP echo, and the admission webhook on request.

use std::io::{BufReader, Read, Write};
use std::net::{Ipv6Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::time::Duration;

use anyhow::{Context, Result};
use nix::sys::signal::{SigSet, Signal};

use crate::{check, http, webhook};

/// A client that says nothing for so long is gone.
const IDLE: Duration = Duration::from_secs(60);
/// Largest UDP packet echoed.
const DATAGRAM: usize = 65_535;

/// Who serves.
#[derive(Clone, Debug)]
pub struct Identity {
    /// The pod.
    pub pod: String,
    /// The node it runs on.
    pub node: String,
}

/// Serves until SIGTERM: process 1 of a container would not notice it otherwise.
pub fn run(port: u16, webhook_port: u16, identity: Identity, tls: Option<(String, String)>) -> Result<String> {
    let mut signals = SigSet::empty();
    signals.add(Signal::SIGTERM);
    signals.add(Signal::SIGINT);
    signals.thread_block().context("blocking signals")?;
    let any = |port| SocketAddr::from((Ipv6Addr::UNSPECIFIED, port));
    let listener = TcpListener::bind(any(port)).with_context(|| format!("listening on port {port}"))?;
    let socket = UdpSocket::bind(any(port)).with_context(|| format!("opening UDP port {port}"))?;
    if let Some((cert, key)) = tls {
        let listener =
            TcpListener::bind(any(webhook_port)).with_context(|| format!("listening on port {webhook_port}"))?;
        webhook::serve(listener, &cert, &key, identity.node.clone())?;
    }
    let observer = UdpSocket::bind(any(port + 1)).with_context(|| format!("opening UDP port {}", port + 1))?;
    std::thread::spawn(move || echo(&socket));
    std::thread::spawn(move || observe(&observer));
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let identity = identity.clone();
            std::thread::spawn(move || answer(&stream, &identity));
        }
    });
    let signal = signals.wait().context("waiting for a signal")?;
    Ok(format!("ended by {signal}"))
}

fn echo(socket: &UdpSocket) {
    let mut buffer = [0; DATAGRAM];
    // An error here is an ICMP answer to an earlier echo.
    loop {
        if let Ok((length, from)) = socket.recv_from(&mut buffer) {
            let _ = socket.send_to(buffer.get(..length).unwrap_or_default(), from);
        }
    }
}

/// Tells everybody the address they are seen with: what STUN does, for those who test STUN.
fn observe(socket: &UdpSocket) {
    let mut buffer = [0; 64];
    loop {
        if let Ok((_, from)) = socket.recv_from(&mut buffer) {
            let seen = SocketAddr::new(from.ip().to_canonical(), from.port());
            let _ = socket.send_to(seen.to_string().as_bytes(), from);
        }
    }
}

/// A broken connection is the client's business: it reports what it saw.
fn answer(stream: &TcpStream, identity: &Identity) {
    let _ = try_answer(stream, identity);
}

fn try_answer(stream: &TcpStream, identity: &Identity) -> Result<()> {
    stream.set_read_timeout(Some(IDLE))?;
    stream.set_write_timeout(Some(IDLE))?;
    let peer = stream.peer_addr()?;
    let mut reader = BufReader::new(stream);
    let Some(head) = http::read_head(&mut reader)? else { return Ok(()) };
    let path = head.first.get(1).map_or("/", String::as_str);
    let mut stream = stream;
    if let Some(bytes) = path.strip_prefix("/bytes/").and_then(|bytes| bytes.parse().ok()) {
        write!(stream, "HTTP/1.1 200 OK\r\nContent-Length: {bytes}\r\nConnection: close\r\n\r\n")?;
        return check::write_pattern(&mut stream, bytes);
    }
    let text = match path {
        "/sink" => format!("took {} bytes\n", check::read_pattern(&mut reader.take(head.length), head.length)?),
        _ => format!("pod={} node={} client={}\n", identity.pod, identity.node, peer.ip().to_canonical()),
    };
    write!(stream, "HTTP/1.1 200 OK\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{text}", text.len())
        .context("answering")
}
