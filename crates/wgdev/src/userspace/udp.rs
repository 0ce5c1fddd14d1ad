//! The UDP port: one socket for both families, marked, with segmentation offloads.

use std::{
    io::{self, IoSlice},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV6},
    os::fd::{AsRawFd, RawFd},
    sync::atomic::{AtomicBool, Ordering},
    time::Duration,
};

use socket2::{Domain, MsgHdr, Protocol, SockAddr, Socket, Type};

pub(super) use udpsock::{Received, Receiver};

use crate::{
    DeviceError,
    control::{self, Control},
};

/// Room in the socket for bursts: a few milliseconds at 10 Gbit/s, as wireguard-go asks for.
const BUFFER: usize = 7 << 20;

/// A send that found no room for so long is given up; nothing may hold a thread up for good.
const SEND_TIMEOUT: Duration = Duration::from_secs(1);

/// Segments of one send; the kernel takes no more (`UDP_MAX_SEGMENTS`).
pub(super) const MAX_SEGMENTS: usize = 64;

/// Bytes of one send: an IP packet's worth, less the headers.
pub(super) const MAX_BYTES: usize = 65_500;

/// Where datagrams go, and from which local address if that matters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Destination {
    pub(super) remote: SocketAddr,
    pub(super) local: Option<IpAddr>,
}

/// What became of a number of datagrams.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Sent {
    /// Datagrams the socket refused.
    pub(super) errors: u64,
    /// The local address can't be sent from any more; the datagrams left from another.
    pub(super) local_is_gone: bool,
}

pub(super) struct Port {
    socket: Socket,
    port: u16,
    v6: bool,
    /// Off once a network driver has refused it (`EIO`: no checksum offload).
    segmentation: AtomicBool,
}

impl Port {
    /// Binds the port on all addresses of both families, or of IPv4 where the kernel has no IPv6.
    pub(super) fn bind(port: u16, fwmark: u32) -> Result<Self, DeviceError> {
        let (socket, v6) = match socket(Domain::IPV6) {
            Ok(socket) => (socket, true),
            Err(e) if e.raw_os_error() == Some(libc::EAFNOSUPPORT) => {
                let socket = socket(Domain::IPV4).map_err(DeviceError::io("open a UDP socket"))?;
                (socket, false)
            }
            Err(e) => return Err(DeviceError::io("open a UDP socket")(e)),
        };
        if fwmark != 0 {
            // Before the bind: not one packet may leave without it.
            socket.set_mark(fwmark).map_err(DeviceError::io("mark the UDP socket (needs NET_ADMIN)"))?;
        }
        configure(&socket, v6).map_err(DeviceError::io("configure the UDP socket"))?;
        let any: IpAddr = if v6 { Ipv6Addr::UNSPECIFIED.into() } else { Ipv4Addr::UNSPECIFIED.into() };
        socket.bind(&SocketAddr::new(any, port).into()).map_err(|e| match e.kind() {
            io::ErrorKind::AddrInUse => DeviceError::PortTaken { port },
            _ => DeviceError::io("bind the UDP socket")(e),
        })?;
        let bound = socket.local_addr().map_err(DeviceError::io("read the bound UDP port"))?;
        let port = bound.as_socket().map_or(port, |addr| addr.port());
        Ok(Self { socket, port, v6, segmentation: AtomicBool::new(true) })
    }

    pub(super) fn port(&self) -> u16 {
        self.port
    }

    pub(super) fn fd(&self) -> RawFd {
        self.socket.as_raw_fd()
    }

    /// Sends datagrams to one destination, in as few calls as their sizes allow. `wait` says whether to
    /// wait for room in the socket.
    pub(super) fn send_all<P: AsRef<[u8]>>(&self, to: &Destination, datagrams: &[P], wait: bool) -> Sent {
        let mut out = Outgoing {
            port: self,
            to: self.address(to.remote),
            local: to.local,
            flags: if wait { 0 } else { libc::MSG_DONTWAIT },
            sent: Sent::default(),
        };
        let mut slices = Vec::with_capacity(datagrams.len().min(MAX_SEGMENTS));
        let mut rest = datagrams;
        while !rest.is_empty() {
            let limit = if self.segmentation.load(Ordering::Relaxed) { MAX_SEGMENTS } else { 1 };
            let (run, others) = rest.split_at(run_length(rest, limit));
            slices.clear();
            slices.extend(run.iter().map(|d| IoSlice::new(d.as_ref())));
            out.send_run(&slices);
            rest = others;
        }
        out.sent
    }

    /// Sends one datagram; for what isn't WireGuard's, so without the retries.
    pub(super) fn send_one(&self, to: &Destination, payload: &[u8], ttl: Option<u8>) -> io::Result<()> {
        let remote = self.address(to.remote);
        let mut control = Control::new();
        if let Some(ttl) = ttl {
            control.push_ttl(ttl, to.remote.ip());
        }
        self.send_message(&remote, to.local, &[IoSlice::new(payload)], control, libc::MSG_DONTWAIT)
    }

    fn send_message(
        &self,
        to: &SockAddr,
        local: Option<IpAddr>,
        slices: &[IoSlice<'_>],
        mut control: Control,
        flags: libc::c_int,
    ) -> io::Result<()> {
        if let Some(local) = local {
            control.push_source(local, self.v6);
        }
        let mut message = MsgHdr::new().with_addr(to).with_buffers(slices);
        if !control.is_empty() {
            message = message.with_control(control.as_bytes());
        }
        self.socket.sendmsg(&message, flags).map(|_| ())
    }

    /// The address as this socket's family has it.
    fn address(&self, addr: SocketAddr) -> SockAddr {
        match addr {
            SocketAddr::V4(v4) if self.v6 => {
                let ip = v4.ip().to_ipv6_mapped();
                SocketAddr::V6(SocketAddrV6::new(ip, v4.port(), 0, 0)).into()
            }
            addr => addr.into(),
        }
    }
}

struct Outgoing<'a> {
    port: &'a Port,
    to: SockAddr,
    local: Option<IpAddr>,
    flags: libc::c_int,
    sent: Sent,
}

impl Outgoing<'_> {
    /// Sends datagrams of equal size (the last may be shorter) with one call, or one by one where
    /// that isn't possible.
    fn send_run(&mut self, slices: &[IoSlice<'_>]) {
        let segment = slices.first().map_or(0, |s| s.len()) as u16;
        if slices.len() > 1 {
            let Err(error) = self.send(slices, Some(segment)) else {
                return;
            };
            match error.raw_os_error() {
                // The driver can't do checksums, so it can't do segments either.
                Some(libc::EIO) => self.port.segmentation.store(false, Ordering::Relaxed),
                // A segment is larger than the path takes: fragments do it.
                Some(libc::EINVAL | libc::EMSGSIZE) => {}
                _ => {
                    self.sent.errors += slices.len() as u64;
                    return;
                }
            }
        }
        for slice in slices {
            if self.send(std::slice::from_ref(slice), None).is_err() {
                self.sent.errors += 1;
            }
        }
    }

    fn send(&mut self, slices: &[IoSlice<'_>], segment: Option<u16>) -> io::Result<()> {
        let send = |local| {
            let mut control = Control::new();
            if let Some(segment) = segment {
                control.push(libc::SOL_UDP, libc::UDP_SEGMENT, &segment.to_ne_bytes());
            }
            self.port.send_message(&self.to, local, slices, control, self.flags)
        };
        let result = send(self.local);
        let unusable = |e: &io::Error| {
            matches!(
                e.raw_os_error(),
                Some(libc::EINVAL | libc::EADDRNOTAVAIL | libc::ENETUNREACH | libc::EHOSTUNREACH)
            )
        };
        match result {
            Err(error) if self.local.is_some() && unusable(&error) => {
                let result = send(None);
                if result.is_ok() {
                    self.local = None;
                    self.sent.local_is_gone = true;
                }
                result
            }
            result => result,
        }
    }
}

/// How many datagrams can go as segments of one: equal sizes, the last may be shorter.
fn run_length<P: AsRef<[u8]>>(datagrams: &[P], limit: usize) -> usize {
    let size = |d: &P| d.as_ref().len();
    let segment = datagrams.first().map_or(0, size);
    let (mut count, mut bytes) = (0, 0);
    for datagram in datagrams.iter().take(limit) {
        let length = size(datagram);
        if length > segment || bytes + length > MAX_BYTES {
            break;
        }
        count += 1;
        bytes += length;
        if length < segment {
            break;
        }
    }
    count.max(1)
}

fn socket(domain: Domain) -> io::Result<Socket> {
    Socket::new(domain, Type::DGRAM, Some(Protocol::UDP))
}

fn configure(socket: &Socket, v6: bool) -> io::Result<()> {
    if v6 {
        socket.set_only_v6(false)?;
    }
    socket.set_write_timeout(Some(SEND_TIMEOUT))?;
    control::set_buffers(socket, BUFFER);
    control::receive_local_address(socket, v6)?;
    // As kernel WireGuard: routers may fragment, so a smaller MTU on the path costs speed, not packets.
    control::allow_fragments(socket)?;
    // Older kernels lack it; then every message is one datagram.
    let _ = control::receive_merged(socket);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_run_ends_after_the_first_shorter_and_before_the_first_longer_datagram() {
        let of = |sizes: &[usize]| {
            let datagrams: Vec<Vec<u8>> = sizes.iter().map(|&n| vec![0; n]).collect();
            run_length(&datagrams, MAX_SEGMENTS)
        };
        assert_eq!(of(&[100]), 1);
        assert_eq!(of(&[100, 100, 100]), 3);
        assert_eq!(of(&[100, 100, 40, 100]), 3);
        assert_eq!(of(&[100, 200]), 1);
        assert_eq!(of(&[1440; 100]), 45);
        assert_eq!(of(&[32; 100]), 64);
        assert_eq!(of(&[65_507]), 1);
    }
}
