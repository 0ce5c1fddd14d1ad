//! What raw sockets need and `socket2` doesn't have.
#![allow(unsafe_code)]

use std::{
    io, mem,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    os::fd::AsRawFd,
};

use libc::sock_filter;
use socket2::{SockAddr, Socket};
use tokio::io::{Interest, unix::AsyncFd};

/// Room for one local address.
const CONTROL_WORDS: usize = 8;

/// A packet as a raw socket hands it over.
pub(super) struct Arrived {
    /// Bytes of the buffer it fills.
    pub(super) length: usize,
    /// The sender; without a port.
    pub(super) from: SockAddr,
    /// Where it was sent to.
    pub(super) to: Option<IpAddr>,
    /// Index of the interface it came in by.
    pub(super) interface: u32,
}

/// Replaces the filter of a socket.
pub(in crate::kernel) fn attach_filter(socket: &Socket, program: &[sock_filter]) -> io::Result<()> {
    let len = u16::try_from(program.len()).map_err(io::Error::other)?;
    let program = libc::sock_fprog { len, filter: program.as_ptr().cast_mut() };
    // SAFETY: the option reads one `sock_fprog`, whose pointer and length are those of `program`; the kernel copies
    // the instructions and writes none.
    let result = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_ATTACH_FILTER,
            (&raw const program).cast(),
            mem::size_of_val(&program) as libc::socklen_t,
        )
    };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Lets the kernel fill in, and verify, the checksum at this offset of what an IPv6 raw socket carries.
pub(super) fn compute_checksum(socket: &Socket, offset: libc::c_int) -> io::Result<()> {
    // SAFETY: the option is an int; the pointer and the length are those of `offset`.
    let result = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::IPPROTO_IPV6,
            libc::IPV6_CHECKSUM,
            (&raw const offset).cast(),
            mem::size_of_val(&offset) as libc::socklen_t,
        )
    };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// The address that disconnects a socket: of no family.
pub(super) fn no_address() -> SockAddr {
    // SAFETY: all-zero storage is `AF_UNSPEC`, and a `sockaddr` of it is as long as the family says.
    let ((), address) = unsafe {
        SockAddr::try_init(|storage, length| {
            storage.cast::<libc::sockaddr>().write(mem::zeroed());
            *length = mem::size_of::<libc::sockaddr>() as libc::socklen_t;
            Ok(())
        })
    }
    .expect("the closure does not fail");
    address
}

/// Tells when a socket has something to receive, within a runtime.
pub(super) fn watch(socket: Socket) -> io::Result<AsyncFd<Socket>> {
    // SAFETY: a `Socket` owns its descriptor and never changes it.
    unsafe { AsyncFd::register_with_interest(socket, Interest::READABLE) }.map_err(Into::into)
}

/// Receives one packet; `WouldBlock` when there is none.
pub(super) fn receive(socket: &Socket, buffer: &mut [u8]) -> io::Result<Arrived> {
    let mut control = [0u64; CONTROL_WORDS];
    let mut vector = libc::iovec { iov_base: buffer.as_mut_ptr().cast(), iov_len: buffer.len() };
    // SAFETY: `msghdr` is plain data for which zeros (null, none) are valid.
    let mut header: libc::msghdr = unsafe { mem::zeroed() };
    header.msg_iov = &raw mut vector;
    header.msg_iovlen = 1;
    header.msg_control = control.as_mut_ptr().cast();
    header.msg_controllen = mem::size_of_val(&control) as _;
    // SAFETY: `try_init` hands over storage of the length it names; vector, buffer and control words outlive the call,
    // and the name's length is written back before the storage is read.
    let (length, from) = unsafe {
        SockAddr::try_init(|name, name_len| {
            header.msg_name = name.cast();
            header.msg_namelen = *name_len;
            let length = libc::recvmsg(socket.as_raw_fd(), &raw mut header, libc::MSG_DONTWAIT);
            *name_len = header.msg_namelen;
            usize::try_from(length).map_err(|_| io::Error::last_os_error())
        })?
    };
    let (to, interface) = destination(&header);
    Ok(Arrived { length: length.min(buffer.len()), from, to, interface })
}

/// Where a packet was sent to, and the interface it came in by.
fn destination(header: &libc::msghdr) -> (Option<IpAddr>, u32) {
    // SAFETY: the kernel has filled control data and its length; the macros stay within it, and each kind of data is
    // read unaligned in the size that the kernel documents for it.
    unsafe {
        let mut message = libc::CMSG_FIRSTHDR(header);
        while !message.is_null() {
            let data = libc::CMSG_DATA(message);
            match ((*message).cmsg_level, (*message).cmsg_type) {
                (libc::IPPROTO_IP, libc::IP_PKTINFO) => {
                    let info = data.cast::<libc::in_pktinfo>().read_unaligned();
                    let address = Ipv4Addr::from(info.ipi_addr.s_addr.to_ne_bytes());
                    return (Some(address.into()), info.ipi_ifindex as u32);
                }
                (libc::IPPROTO_IPV6, libc::IPV6_PKTINFO) => {
                    let info = data.cast::<libc::in6_pktinfo>().read_unaligned();
                    let address = Ipv6Addr::from(info.ipi6_addr.s6_addr);
                    return (Some(address.into()), info.ipi6_ifindex as u32);
                }
                _ => {}
            }
            message = libc::CMSG_NXTHDR(header, message);
        }
    }
    (None, 0)
}
