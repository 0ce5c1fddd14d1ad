//! The echo in the tunnel: the proof that a path carries WireGuard's packets and not only probes.

use super::Echo;
use socket2::{Domain, Protocol, Socket, Type};
use std::{
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
};
use tokio::net::UdpSocket;
use wgdev::BoxFuture;

/// UDP port of the echo on mesh addresses: the one below the mesh's listen ports.
pub const PORT: u16 = 21819;

/// First bytes of every message; anything else on the port is not ours.
const MAGIC: [u8; 4] = *b"WRNe";
/// Bytes of a message, the same both ways: an answer never is larger than its question.
pub const MESSAGE_LEN: usize = 16;

/// A question or an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Message {
    /// Answer with this token.
    Request(u64),
    /// The answer.
    Reply(u64),
}

impl Message {
    /// The bytes on the wire: magic, kind, token.
    pub fn encode(self) -> [u8; MESSAGE_LEN] {
        let (kind, token) = match self {
            Self::Request(token) => (1u32, token),
            Self::Reply(token) => (2, token),
        };
        let mut bytes = [0; MESSAGE_LEN];
        bytes[..4].copy_from_slice(&MAGIC);
        bytes[4..8].copy_from_slice(&kind.to_be_bytes());
        bytes[8..].copy_from_slice(&token.to_be_bytes());
        bytes
    }

    /// Reads a message; `None` for anything else.
    pub fn decode(bytes: &[u8]) -> Option<Self> {
        let bytes: &[u8; MESSAGE_LEN] = bytes.try_into().ok()?;
        let (magic, rest) = bytes.split_first_chunk::<4>()?;
        let (kind, token) = rest.split_first_chunk::<4>()?;
        let token = u64::from_be_bytes(token.try_into().ok()?);
        match (*magic == MAGIC, u32::from_be_bytes(*kind)) {
            (true, 1) => Some(Self::Request(token)),
            (true, 2) => Some(Self::Reply(token)),
            _ => None,
        }
    }
}

/// Sockets bound to the mesh device: what arrives by another interface never reaches them.
pub struct EchoSockets {
    v4: UdpSocket,
    /// Absent where the kernel has no IPv6.
    v6: Option<UdpSocket>,
}

impl EchoSockets {
    /// Opens them. Needs CAP_NET_RAW for the binding to the device.
    pub fn open(device: &str) -> io::Result<Self> {
        let v4 = bound(device, Domain::IPV4, IpAddr::V4(Ipv4Addr::UNSPECIFIED))?;
        let v6 = bound(device, Domain::IPV6, IpAddr::V6(Ipv6Addr::UNSPECIFIED)).ok();
        Ok(Self { v4, v6 })
    }
}

impl Echo for EchoSockets {
    fn send(&self, to: SocketAddr, payload: &[u8]) -> io::Result<()> {
        let socket = match &self.v6 {
            Some(v6) if to.is_ipv6() => v6,
            _ => &self.v4,
        };
        socket.try_send_to(payload, to).map(|_| ())
    }

    fn recv(&self) -> BoxFuture<'_, io::Result<(SocketAddr, Vec<u8>)>> {
        Box::pin(async {
            // One byte more tells a longer datagram from a message.
            let (mut first, mut second) = ([0; MESSAGE_LEN + 1], [0; MESSAGE_LEN + 1]);
            let six = async {
                match &self.v6 {
                    Some(v6) => v6.recv_from(&mut second).await,
                    None => std::future::pending().await,
                }
            };
            let (buffer, (length, from)) = tokio::select! {
                four = self.v4.recv_from(&mut first) => (None, four?),
                six = six => (Some(()), six?),
            };
            let bytes = if buffer.is_some() { &second[..length] } else { &first[..length] };
            Ok((from, bytes.to_vec()))
        })
    }
}

fn bound(device: &str, domain: Domain, address: IpAddr) -> io::Result<UdpSocket> {
    let socket = Socket::new(domain, Type::DGRAM.nonblocking().cloexec(), Some(Protocol::UDP))?;
    socket.bind_device(Some(device.as_bytes()))?;
    if domain == Domain::IPV6 {
        socket.set_only_v6(true)?;
    }
    socket.bind(&SocketAddr::new(address, PORT).into())?;
    UdpSocket::from_std(socket.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_come_back_and_anything_else_is_none() {
        for message in [Message::Request(7), Message::Reply(u64::MAX)] {
            assert_eq!(Message::decode(&message.encode()), Some(message));
        }
        let good = Message::Request(7).encode();
        let mut wrong_kind = good;
        wrong_kind[7] = 3;
        let mut wrong_magic = good;
        wrong_magic[0] ^= 1;
        for bad in [&good[..15], &[&good[..], &[0]].concat(), &wrong_kind, &wrong_magic, &[]] {
            assert_eq!(Message::decode(bad), None);
        }
    }
}
