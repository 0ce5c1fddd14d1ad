//! As much of TURN (RFC 8656) as a client needs that sends to one peer: an allocation, and a channel in it.

use std::net::{IpAddr, SocketAddr};

use anyhow::{Context, Result, ensure};
use socket2::Socket;

use super::load::{receive, send};

const COOKIE: [u8; 4] = [0x21, 0x12, 0xa4, 0x42];
const ALLOCATE: u16 = 0x0003;
const CHANNEL_BIND: u16 = 0x0009;
const SUCCESS: u16 = 0x0100;
const CHANNEL_NUMBER: u16 = 0x000c;
const XOR_PEER_ADDRESS: u16 = 0x0012;
const REQUESTED_TRANSPORT: u16 = 0x0019;
/// The first channel; every client has its own.
const CHANNEL: u16 = 0x4000;
const UDP: u8 = 17;

/// Allocates, and binds a channel to the peer.
pub fn allocate(socket: &Socket, server: SocketAddr, peer: SocketAddr) -> Result<()> {
    request(socket, server, ALLOCATE, &[(REQUESTED_TRANSPORT, vec![UDP, 0, 0, 0])])?;
    let channel = [CHANNEL.to_be_bytes(), [0, 0]].concat();
    request(socket, server, CHANNEL_BIND, &[(CHANNEL_NUMBER, channel), (XOR_PEER_ADDRESS, xored(peer)?)])
}

/// What stands before a datagram of `length` bytes.
pub fn channel_header(length: usize) -> Vec<u8> {
    let length = u16::try_from(length).expect("a datagram's length fits in 16 bits");
    [CHANNEL.to_be_bytes(), length.to_be_bytes()].concat()
}

fn request(socket: &Socket, server: SocketAddr, method: u16, attributes: &[(u16, Vec<u8>)]) -> Result<()> {
    let mut body = Vec::new();
    for (kind, value) in attributes {
        body.extend(kind.to_be_bytes());
        body.extend(u16::try_from(value.len()).context("an attribute's length")?.to_be_bytes());
        body.extend(value);
    }
    let mut message = method.to_be_bytes().to_vec();
    message.extend(u16::try_from(body.len()).context("a message's length")?.to_be_bytes());
    message.extend(COOKIE);
    message.extend([7; 12]);
    message.extend(body);
    send(socket, server, &message)?;
    let reply = receive(socket).context("coturn does not answer")?;
    let kind = reply.first_chunk().map(|kind| u16::from_be_bytes(*kind));
    ensure!(kind == Some(method | SUCCESS), "coturn refuses method {method:#x}: {reply:02x?}");
    Ok(())
}

fn xored(peer: SocketAddr) -> Result<Vec<u8>> {
    let IpAddr::V4(ip) = peer.ip() else { anyhow::bail!("only IPv4 is measured") };
    let port = peer.port() ^ u16::from_be_bytes([COOKIE[0], COOKIE[1]]);
    let mut value = vec![0, 1];
    value.extend(port.to_be_bytes());
    value.extend(ip.octets().iter().zip(COOKIE).map(|(byte, cookie)| byte ^ cookie));
    Ok(value)
}
