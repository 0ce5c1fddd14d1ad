//! A UDP socket that knows which of the host's addresses was asked, and answers from it.

use std::io::{self, IoSlice, IoSliceMut};
use std::net::{SocketAddr, SocketAddrV4, SocketAddrV6};
use std::os::fd::AsRawFd;
use std::task::{Context, Poll};

use nix::libc::{in_addr, in_pktinfo, in6_pktinfo};
use nix::sys::socket::{
    ControlMessage, ControlMessageOwned, MsgFlags, SockaddrStorage, recvmsg, sendmsg, setsockopt, sockopt,
};
use socket2::{Domain, Socket, Type};
use tokio::io::Interest;

/// The address of this host that a datagram came to.
#[derive(Debug, Clone, Copy)]
pub enum Local {
    /// As IP_PKTINFO has it.
    V4(in_pktinfo),
    /// As IPV6_PKTINFO has it.
    V6(in6_pktinfo),
}

/// What arrived: how much of the buffer, from where, to which address.
#[derive(Debug, Clone, Copy)]
pub struct Arrival {
    /// Bytes of the datagram, at most the buffer's.
    pub len: usize,
    /// The sender.
    pub source: SocketAddr,
    /// The address it was sent to; unknown only if the kernel did not say.
    pub local: Option<Local>,
}

/// A bound, non-blocking socket of one address family.
#[derive(Debug)]
pub struct StunSocket(tokio::net::UdpSocket);

impl StunSocket {
    /// Binds. An IPv6 socket takes IPv6 only, so that both families can have the same port.
    ///
    /// # Errors
    /// When the host has no such family or address, or the port is taken.
    pub fn bind(address: SocketAddr) -> io::Result<Self> {
        let socket = Socket::new(Domain::for_address(address), Type::DGRAM, None)?;
        if address.is_ipv4() {
            setsockopt(&socket, sockopt::Ipv4PacketInfo, &true)?;
        } else {
            socket.set_only_v6(true)?;
            setsockopt(&socket, sockopt::Ipv6RecvPacketInfo, &true)?;
        }
        socket.set_nonblocking(true)?;
        socket.bind(&address.into())?;
        tokio::net::UdpSocket::from_std(socket.into()).map(Self)
    }

    /// Where it listens.
    ///
    /// # Errors
    /// Those of getsockname(2).
    pub fn local_addr(&self) -> io::Result<SocketAddr> {
        self.0.local_addr()
    }

    /// Whether there is something to receive; registers the task otherwise.
    pub fn poll_readable(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.0.poll_recv_ready(cx)
    }

    /// Receives one datagram, cut off at the buffer's end.
    ///
    /// # Errors
    /// `WouldBlock` when there is none, otherwise those of recvmsg(2).
    pub fn try_receive(&self, buffer: &mut [u8]) -> io::Result<Arrival> {
        self.0.try_io(Interest::READABLE, || receive(&self.0, buffer))
    }

    /// Sends one datagram from `local`. A full send queue drops it, as a full network would.
    ///
    /// # Errors
    /// Those of sendmsg(2).
    pub fn try_send(&self, payload: &[u8], destination: SocketAddr, local: Option<Local>) -> io::Result<()> {
        self.0.try_io(Interest::WRITABLE, || send(&self.0, payload, destination, local))
    }
}

fn receive(socket: &impl AsRawFd, buffer: &mut [u8]) -> io::Result<Arrival> {
    let mut control = nix::cmsg_space!(in6_pktinfo);
    let mut iov = [IoSliceMut::new(buffer)];
    let message = recvmsg::<SockaddrStorage>(socket.as_raw_fd(), &mut iov, Some(&mut control), MsgFlags::MSG_DONTWAIT)?;
    let source = message
        .address
        .as_ref()
        .and_then(socket_addr)
        .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "a datagram without an IP source address"))?;
    let local = message.cmsgs()?.find_map(|control| match control {
        ControlMessageOwned::Ipv4PacketInfo(info) => Some(Local::V4(info)),
        ControlMessageOwned::Ipv6PacketInfo(info) => Some(Local::V6(info)),
        _ => None,
    });
    Ok(Arrival { len: message.bytes, source, local })
}

fn send(socket: &impl AsRawFd, payload: &[u8], destination: SocketAddr, local: Option<Local>) -> io::Result<()> {
    // The interface is left to routing: the way back may differ from the way in. Link-local destinations carry their scope.
    let (v4, v6);
    let control = match local {
        Some(Local::V4(info)) => {
            v4 = in_pktinfo { ipi_ifindex: 0, ipi_spec_dst: info.ipi_spec_dst, ipi_addr: in_addr { s_addr: 0 } };
            Some(ControlMessage::Ipv4PacketInfo(&v4))
        }
        Some(Local::V6(info)) => {
            v6 = in6_pktinfo { ipi6_addr: info.ipi6_addr, ipi6_ifindex: 0 };
            Some(ControlMessage::Ipv6PacketInfo(&v6))
        }
        None => None,
    };
    let destination = SockaddrStorage::from(destination);
    sendmsg(
        socket.as_raw_fd(),
        &[IoSlice::new(payload)],
        control.as_slice(),
        MsgFlags::MSG_DONTWAIT,
        Some(&destination),
    )?;
    Ok(())
}

fn socket_addr(address: &SockaddrStorage) -> Option<SocketAddr> {
    let v4 = || address.as_sockaddr_in().map(|&address| SocketAddr::V4(SocketAddrV4::from(address)));
    let v6 = || address.as_sockaddr_in6().map(|&address| SocketAddr::V6(SocketAddrV6::from(address)));
    v4().or_else(v6)
}
