//! The ioctls behind a TUN interface (`linux/if_tun.h`, `linux/sockios.h`, `linux/ethtool.h`).
#![allow(unsafe_code)]

use std::{
    io, mem,
    os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd},
};

/// A layer 3 interface without the 4-byte prefix, with several queues and virtio headers. Multi-queue
/// from the first day, because that flag must match when attaching again.
const FLAGS: libc::c_int = libc::IFF_TUN | libc::IFF_NO_PI | libc::IFF_MULTI_QUEUE | libc::IFF_VNET_HDR;

/// Checksums, TCP over IPv4 and IPv6: every kernel that has `IFF_MULTI_QUEUE`.
const OFFLOADS: libc::c_uint = libc::TUN_F_CSUM | libc::TUN_F_TSO4 | libc::TUN_F_TSO6;
/// UDP datagrams too: kernels since 6.2.
const UDP_OFFLOADS: libc::c_uint = libc::TUN_F_USO4 | libc::TUN_F_USO6;

pub(super) fn set_interface(fd: RawFd, name: &str) -> io::Result<()> {
    let mut request = request(name);
    request.ifr_ifru.ifru_flags = FLAGS as libc::c_short;
    // SAFETY: TUNSETIFF reads and writes one `ifreq`, which `request` is.
    check(unsafe { libc::ioctl(fd, libc::TUNSETIFF as _, &raw mut request) })
}

pub(super) fn set_persistent(fd: RawFd) -> io::Result<()> {
    // SAFETY: TUNSETPERSIST takes its argument by value.
    check(unsafe { libc::ioctl(fd, libc::TUNSETPERSIST as _, 1 as libc::c_ulong) })
}

pub(super) fn set_header_len(fd: RawFd, len: usize) -> io::Result<()> {
    let len = len as libc::c_int;
    // SAFETY: TUNSETVNETHDRSZ reads one int.
    check(unsafe { libc::ioctl(fd, libc::TUNSETVNETHDRSZ as _, &raw const len) })
}

/// Switches on all offloads the kernel has; true when UDP is among them.
pub(super) fn set_offloads(fd: RawFd) -> io::Result<bool> {
    let set = |flags: libc::c_uint| {
        // SAFETY: TUNSETOFFLOAD takes its argument by value.
        check(unsafe { libc::ioctl(fd, libc::TUNSETOFFLOAD as _, libc::c_ulong::from(flags)) })
    };
    if set(OFFLOADS | UDP_OFFLOADS).is_ok() {
        return Ok(true);
    }
    set(OFFLOADS).map(|()| false)
}

/// An interface as the socket ioctls see it.
pub(super) struct Link {
    socket: OwnedFd,
    request: libc::ifreq,
}

/// Driver of an interface; for TUN and TAP the bus tells which.
pub(super) struct Driver {
    pub(super) name: String,
    pub(super) bus: String,
}

/// `struct ethtool_drvinfo`.
#[repr(C)]
struct DriverInfo {
    command: u32,
    driver: [u8; 32],
    version: [u8; 32],
    firmware: [u8; 32],
    bus: [u8; 32],
    rest: [u8; 64],
}

const ETHTOOL_GDRVINFO: u32 = 3;

impl Link {
    pub(super) fn new(name: &str) -> io::Result<Self> {
        // SAFETY: no pointers are passed; the result is checked before it is owned.
        let raw = unsafe { libc::socket(libc::AF_INET, libc::SOCK_DGRAM | libc::SOCK_CLOEXEC, 0) };
        check(raw)?;
        Ok(Self {
            // SAFETY: `raw` was opened above and belongs to nobody else.
            socket: unsafe { OwnedFd::from_raw_fd(raw) },
            request: request(name),
        })
    }

    pub(super) fn index(&self) -> io::Result<u32> {
        let mut request = self.request;
        self.ioctl(libc::SIOCGIFINDEX, &mut request)?;
        // SAFETY: SIOCGIFINDEX has filled this field of the union.
        let index = unsafe { request.ifr_ifru.ifru_ifindex };
        u32::try_from(index).map_err(io::Error::other)
    }

    pub(super) fn set_mtu(&self, mtu: u16) -> io::Result<()> {
        let mut request = self.request;
        request.ifr_ifru.ifru_mtu = mtu.into();
        self.ioctl(libc::SIOCSIFMTU, &mut request)
    }

    pub(super) fn set_up(&self) -> io::Result<()> {
        let mut request = self.request;
        self.ioctl(libc::SIOCGIFFLAGS, &mut request)?;
        // SAFETY: SIOCGIFFLAGS has filled this field of the union.
        let flags = unsafe { request.ifr_ifru.ifru_flags };
        request.ifr_ifru.ifru_flags = flags | libc::IFF_UP as libc::c_short;
        self.ioctl(libc::SIOCSIFFLAGS, &mut request)
    }

    pub(super) fn driver(&self) -> io::Result<Driver> {
        let mut info = DriverInfo {
            command: ETHTOOL_GDRVINFO,
            driver: [0; 32],
            version: [0; 32],
            firmware: [0; 32],
            bus: [0; 32],
            rest: [0; 64],
        };
        let mut request = self.request;
        request.ifr_ifru.ifru_data = (&raw mut info).cast();
        self.ioctl(libc::SIOCETHTOOL, &mut request)?;
        let text = |bytes: &[u8]| {
            let end = bytes.iter().position(|&b| b == 0).unwrap_or(bytes.len());
            String::from_utf8_lossy(&bytes[..end]).into_owned()
        };
        Ok(Driver { name: text(&info.driver), bus: text(&info.bus) })
    }

    fn ioctl(&self, number: libc::c_ulong, request: &mut libc::ifreq) -> io::Result<()> {
        // SAFETY: every request used here reads and writes one `ifreq`; SIOCETHTOOL also follows its
        // data pointer, which the caller keeps alive and large enough.
        check(unsafe { libc::ioctl(self.socket.as_raw_fd(), number as _, std::ptr::from_mut(request)) })
    }
}

/// A request for this interface; the caller has checked that the name fits.
fn request(name: &str) -> libc::ifreq {
    // SAFETY: an `ifreq` of zeros is valid: an empty name and a zero union.
    let mut request: libc::ifreq = unsafe { mem::zeroed() };
    let room = request.ifr_name.len() - 1;
    for (to, from) in request.ifr_name.iter_mut().zip(name.bytes().take(room)) {
        *to = from as libc::c_char;
    }
    request
}

fn check(result: libc::c_int) -> io::Result<()> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}
