//! Ancillary data and socket options that `socket2` doesn't have.
#![allow(unsafe_code)]

use std::{
    io, mem,
    net::{IpAddr, Ipv6Addr},
    os::fd::AsRawFd,
};

use socket2::Socket;

/// Bytes of a `cmsghdr`, and what its data is padded to.
const HEADER: usize = mem::size_of::<libc::cmsghdr>();
const ALIGN: usize = mem::size_of::<usize>();

/// Room for a local address, a segment size and a hop limit.
const ROOM: usize = 96;

/// Control messages for one send.
pub struct Control {
    bytes: [u8; ROOM],
    len: usize,
}

impl Default for Control {
    fn default() -> Self {
        Self::new()
    }
}

impl Control {
    /// None yet.
    #[must_use]
    pub fn new() -> Self {
        Self { bytes: [0; ROOM], len: 0 }
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// As sendmsg(2) takes them.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        &self.bytes[..self.len]
    }

    /// Adds a message. What doesn't fit is left out; `ROOM` is enough for all that is ever sent.
    pub fn push(&mut self, level: libc::c_int, kind: libc::c_int, data: &[u8]) {
        let end = self.len + HEADER + data.len().next_multiple_of(ALIGN);
        let Some(room) = self.bytes.get_mut(self.len..end) else {
            return;
        };
        let length = HEADER + data.len();
        let (header, body) = room.split_at_mut(HEADER);
        let (size, rest) = header.split_at_mut(ALIGN);
        size.copy_from_slice(&length.to_ne_bytes());
        rest[..4].copy_from_slice(&level.to_ne_bytes());
        rest[4..8].copy_from_slice(&kind.to_ne_bytes());
        body[..data.len()].copy_from_slice(data);
        self.len = end;
    }

    /// Sends from this local address.
    pub fn push_source(&mut self, local: IpAddr, v6_socket: bool) {
        match local {
            IpAddr::V4(v4) if !v6_socket => {
                // struct in_pktinfo: interface, address to send from, (unused) destination.
                let mut info = [0; 12];
                info[4..8].copy_from_slice(&v4.octets());
                self.push(libc::IPPROTO_IP, libc::IP_PKTINFO, &info);
            }
            local => {
                let v6: Ipv6Addr = match local {
                    IpAddr::V4(v4) => v4.to_ipv6_mapped(),
                    IpAddr::V6(v6) => v6,
                };
                // struct in6_pktinfo: address to send from, interface.
                let mut info = [0; 20];
                info[..16].copy_from_slice(&v6.octets());
                self.push(libc::IPPROTO_IPV6, libc::IPV6_PKTINFO, &info);
            }
        }
    }

    /// Lets the datagram pass so many hops.
    pub fn push_ttl(&mut self, ttl: u8, remote: IpAddr) {
        let (level, kind) = match remote.to_canonical() {
            IpAddr::V4(_) => (libc::IPPROTO_IP, libc::IP_TTL),
            IpAddr::V6(_) => (libc::IPPROTO_IPV6, libc::IPV6_HOPLIMIT),
        };
        self.push(level, kind, &libc::c_int::from(ttl).to_ne_bytes());
    }
}

/// Asks for the local address of every datagram.
///
/// # Errors
/// Those of setsockopt(2).
pub fn receive_local_address(socket: &Socket, v6: bool) -> io::Result<()> {
    if v6 {
        set(socket, libc::IPPROTO_IPV6, libc::IPV6_RECVPKTINFO, 1)
    } else {
        set(socket, libc::IPPROTO_IP, libc::IP_PKTINFO, 1)
    }
}

/// Leaves the "don't fragment" bit of IPv4 clear.
///
/// # Errors
/// Those of setsockopt(2).
pub fn allow_fragments(socket: &Socket) -> io::Result<()> {
    let (option, value) = (libc::IP_MTU_DISCOVER, libc::IP_PMTUDISC_DONT);
    set(socket, libc::IPPROTO_IP, option, value)
}

/// Takes datagrams of one sender and size merged.
///
/// # Errors
/// Where the kernel lacks it (before 5.0).
pub fn receive_merged(socket: &Socket) -> io::Result<()> {
    set(socket, libc::SOL_UDP, libc::UDP_GRO, 1)
}

/// Enlarges the buffers: past the limit of the system where the process may, else as far as it goes.
pub fn set_buffers(socket: &Socket, bytes: usize) {
    let value = bytes as libc::c_int;
    if set(socket, libc::SOL_SOCKET, libc::SO_RCVBUFFORCE, value).is_err() {
        let _ = socket.set_recv_buffer_size(bytes);
    }
    if set(socket, libc::SOL_SOCKET, libc::SO_SNDBUFFORCE, value).is_err() {
        let _ = socket.set_send_buffer_size(bytes);
    }
}

fn set(socket: &Socket, level: libc::c_int, option: libc::c_int, value: libc::c_int) -> io::Result<()> {
    // SAFETY: all options used here are ints; the pointer and the length are those of `value`.
    let result = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            level,
            option,
            (&raw const value).cast(),
            mem::size_of_val(&value) as libc::socklen_t,
        )
    };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}
