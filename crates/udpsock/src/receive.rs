//! Many datagrams with one system call.
#![allow(unsafe_code)]

use std::{
    io, mem,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV4, SocketAddrV6},
    os::fd::RawFd,
};

use bytes::BytesMut;

/// Messages of one call; each may hold 64 KiB of merged datagrams, so a few are enough.
pub const SLOTS: usize = 8;
const SLOT: usize = 65_536;

/// Room for a merged size and a local address.
const CONTROL_WORDS: usize = 16;

/// One message: a datagram, or several of equal size from one sender.
pub struct Received {
    /// What it carries.
    pub data: BytesMut,
    /// Size of each datagram but the last; never 0.
    pub segment: usize,
    /// The sender.
    pub from: SocketAddr,
    /// The address it was sent to.
    pub local: Option<IpAddr>,
    /// Index of the interface it came in by.
    pub interface: u32,
}

/// Buffers for receiving.
pub struct Receiver {
    slots: [BytesMut; SLOTS],
    names: [libc::sockaddr_storage; SLOTS],
    control: [[u64; CONTROL_WORDS]; SLOTS],
}

impl Default for Receiver {
    fn default() -> Self {
        Self::new()
    }
}

impl Receiver {
    /// Empty ones; 64 KiB each are allocated by the first call.
    #[must_use]
    pub fn new() -> Self {
        Self {
            slots: std::array::from_fn(|_| BytesMut::new()),
            // SAFETY: `sockaddr_storage` is plain data for which zeros are valid.
            names: unsafe { mem::zeroed() },
            control: [[0; CONTROL_WORDS]; SLOTS],
        }
    }

    /// Receives what is there, at most [`SLOTS`] messages; `WouldBlock` when nothing is.
    ///
    /// # Errors
    /// Those of recvmmsg(2).
    pub fn receive(&mut self, socket: RawFd, into: &mut Vec<Received>) -> io::Result<()> {
        // SAFETY: `iovec` and `mmsghdr` are plain data for which zeros (null, none) are valid.
        let (mut vectors, mut messages): ([libc::iovec; SLOTS], [libc::mmsghdr; SLOTS]) =
            unsafe { (mem::zeroed(), mem::zeroed()) };
        for i in 0..SLOTS {
            if !self.slots[i].try_reclaim(SLOT) {
                self.slots[i] = BytesMut::with_capacity(SLOT);
            }
            vectors[i].iov_base = self.slots[i].spare_capacity_mut().as_mut_ptr().cast();
            vectors[i].iov_len = SLOT;
            let header = &mut messages[i].msg_hdr;
            header.msg_name = (&raw mut self.names[i]).cast();
            header.msg_namelen = mem::size_of::<libc::sockaddr_storage>() as libc::socklen_t;
            header.msg_iov = &raw mut vectors[i];
            header.msg_iovlen = 1;
            header.msg_control = self.control[i].as_mut_ptr().cast();
            header.msg_controllen = mem::size_of_val(&self.control[i]) as _;
        }
        // SAFETY: every message points at a name, a vector and control words that live until after
        // this call; each vector covers `SLOT` bytes of spare capacity.
        let count = unsafe {
            libc::recvmmsg(
                socket,
                messages.as_mut_ptr(),
                SLOTS as libc::c_uint,
                libc::MSG_DONTWAIT,
                std::ptr::null_mut(),
            )
        };
        let count = usize::try_from(count).map_err(|_| io::Error::last_os_error())?;
        for (i, message) in messages.iter().enumerate().take(count) {
            let length = message.msg_len as usize;
            // SAFETY: the kernel has written `msg_len` bytes, at most `iov_len`, which is `SLOT`.
            unsafe { self.slots[i].set_len(length.min(SLOT)) };
            let data = self.slots[i].split();
            let truncated = message.msg_hdr.msg_flags & libc::MSG_TRUNC != 0;
            let from = address(&self.names[i]).filter(|_| !truncated && !data.is_empty());
            if let Some(from) = from {
                let (segment, local, interface) = ancillary(&message.msg_hdr);
                into.push(Received { segment: segment.unwrap_or(data.len()), data, from, local, interface });
            }
        }
        Ok(())
    }
}

/// Merged size, local address and interface of a message.
fn ancillary(header: &libc::msghdr) -> (Option<usize>, Option<IpAddr>, u32) {
    let (mut segment, mut local, mut interface) = (None, None, 0);
    // SAFETY: the kernel has filled control data and its length; the macros stay within it, and each
    // kind of data is read unaligned in the size that the kernel documents for it.
    unsafe {
        let mut message = libc::CMSG_FIRSTHDR(header);
        while !message.is_null() {
            let data = libc::CMSG_DATA(message);
            match ((*message).cmsg_level, (*message).cmsg_type) {
                (libc::SOL_UDP, libc::UDP_GRO) => {
                    let size = data.cast::<libc::c_int>().read_unaligned();
                    segment = usize::try_from(size).ok().filter(|&size| size > 0);
                }
                (libc::IPPROTO_IPV6, libc::IPV6_PKTINFO) => {
                    let info = data.cast::<libc::in6_pktinfo>().read_unaligned();
                    local = Some(Ipv6Addr::from(info.ipi6_addr.s6_addr).to_canonical());
                    interface = info.ipi6_ifindex as u32;
                }
                (libc::IPPROTO_IP, libc::IP_PKTINFO) => {
                    let info = data.cast::<libc::in_pktinfo>().read_unaligned();
                    let octets = info.ipi_addr.s_addr.to_ne_bytes();
                    local = Some(Ipv4Addr::from(octets).into());
                    interface = info.ipi_ifindex as u32;
                }
                _ => {}
            }
            message = libc::CMSG_NXTHDR(header, message);
        }
    }
    (segment, local, interface)
}

/// The sender; IPv4 as IPv4, also on a socket of IPv6.
fn address(name: &libc::sockaddr_storage) -> Option<SocketAddr> {
    let family = libc::c_int::from(name.ss_family);
    let name = std::ptr::from_ref(name);
    match family {
        libc::AF_INET => {
            // SAFETY: the family says what the storage holds, and it is large and aligned enough.
            let v4 = unsafe { &*name.cast::<libc::sockaddr_in>() };
            let ip = Ipv4Addr::from(v4.sin_addr.s_addr.to_ne_bytes());
            Some(SocketAddrV4::new(ip, u16::from_be(v4.sin_port)).into())
        }
        libc::AF_INET6 => {
            // SAFETY: as above.
            let v6 = unsafe { &*name.cast::<libc::sockaddr_in6>() };
            let (ip, port) = (Ipv6Addr::from(v6.sin6_addr.s6_addr), u16::from_be(v6.sin6_port));
            Some(match ip.to_canonical() {
                IpAddr::V4(v4) => SocketAddrV4::new(v4, port).into(),
                IpAddr::V6(v6_ip) => SocketAddrV6::new(v6_ip, port, 0, v6.sin6_scope_id).into(),
            })
        }
        _ => None,
    }
}
