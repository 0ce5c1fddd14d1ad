//! Sharing WireGuard's UDP port: a raw socket of each family, with a filter.
//!
//! WireGuard has the port, and drops what isn't WireGuard's. A raw socket sees the same datagrams (after the firewall,
//! so that what is heard here could be heard by WireGuard too) and may send from any port, so both together look like
//! one socket to every NAT. The cost is a run of the filter for each UDP datagram that the host receives.

mod filter;
mod raw;
mod udp;

use std::{
    io::{self, IoSlice},
    net::{IpAddr, Ipv4Addr, SocketAddr, SocketAddrV4, SocketAddrV6},
};

use parking_lot::Mutex;
use socket2::{Domain, MsgHdr, Protocol, SockAddr, Socket, Type};
use tokio::io::unix::AsyncFd;

use crate::{
    Datagram,
    control::{self, Control},
};

/// What a raw socket can hand over at once: a merged packet is up to 64 KiB.
pub(super) const BUFFER: usize = 65_536;

/// An address family of the port.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Family {
    V4,
    V6,
}

/// What the port is made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PortConfig {
    /// WireGuard's port.
    pub port: u16,
    /// WireGuard's mark.
    pub fwmark: u32,
    /// WireGuard's interface: what comes in by it is a peer's and not the world's.
    pub if_index: u32,
}

/// The raw sockets that share WireGuard's port. They belong to the network namespace of the thread that opened them.
pub struct Port {
    config: PortConfig,
    v4: Socket,
    /// `None` where the kernel has no IPv6.
    v6: Option<Socket>,
    /// Tells the source address of a route: the checksum of UDP over IPv4 covers it.
    route: Mutex<Socket>,
}

impl Port {
    /// Opens them (needs NET_RAW, and NET_ADMIN for a mark); dropping it closes them.
    pub fn open(config: PortConfig) -> io::Result<Self> {
        let v4 = raw_socket(Family::V4, config)?;
        control::allow_fragments(&v4)?;
        let v6 = match raw_socket(Family::V6, config) {
            Err(error) if error.raw_os_error() == Some(libc::EAFNOSUPPORT) => None,
            v6 => Some(v6?),
        };
        let route = Socket::new(Domain::IPV4, Type::DGRAM, Some(Protocol::UDP))?;
        set_mark(&route, config.fwmark)?;
        Ok(Self { config, v4, v6, route: Mutex::new(route) })
    }

    /// The families there are.
    pub(super) fn families(&self) -> impl Iterator<Item = Family> {
        [Some(Family::V4), self.v6.as_ref().map(|_| Family::V6)].into_iter().flatten()
    }

    /// Tells when a family has something to receive, within a runtime.
    pub(super) fn watch(&self, family: Family) -> io::Result<AsyncFd<Socket>> {
        raw::watch(self.socket(family).try_clone()?)
    }

    pub(super) fn send(&self, datagram: &Datagram, ttl: Option<u8>) -> io::Result<()> {
        let Datagram { remote, local, payload } = datagram;
        let encoded = udp::encode(self.config.port, remote.port(), payload);
        let mut packet = encoded.ok_or_else(|| io::Error::from_raw_os_error(libc::EMSGSIZE))?;
        let mut control = Control::new();
        if let Some(ttl) = ttl {
            control.push_ttl(ttl, remote.ip());
        }
        let local = local.map(|l| l.to_canonical());
        match (remote.ip().to_canonical(), local) {
            (IpAddr::V4(remote), None | Some(IpAddr::V4(_))) => {
                let source = match local {
                    Some(IpAddr::V4(source)) => source,
                    _ => self.source_towards(remote)?,
                };
                udp::fill_checksum(&mut packet, source, remote);
                control.push_source(source.into(), false);
                send(&self.v4, &SocketAddrV4::new(remote, 0).into(), &packet, &control)
            }
            (IpAddr::V6(ip), None | Some(IpAddr::V6(_))) => {
                let v6 = self.v6.as_ref().ok_or_else(|| io::Error::from_raw_os_error(libc::EAFNOSUPPORT))?;
                if let Some(source) = local {
                    control.push_source(source, true);
                }
                let scope = if let SocketAddr::V6(v6) = remote { v6.scope_id() } else { 0 };
                send(v6, &SocketAddrV6::new(ip, 0, 0, scope).into(), &packet, &control)
            }
            _ => Err(io::Error::new(io::ErrorKind::InvalidInput, "local and remote address are of two families")),
        }
    }

    /// Receives one packet and hands every datagram of ours in it to `each`; `WouldBlock` when there is none.
    pub(super) fn receive(&self, family: Family, buffer: &mut [u8], mut each: impl FnMut(Datagram)) -> io::Result<()> {
        let arrived = raw::receive(self.socket(family), buffer)?;
        let packet = &buffer[..arrived.length];
        let packet = if family == Family::V4 { udp::inside_ipv4(packet) } else { Some(packet) };
        let Some((from_port, to_port, payload)) = packet.and_then(udp::decode) else {
            return Ok(());
        };
        // The filter has said so already, unless the port was changed behind our back.
        if to_port != self.config.port || arrived.interface == self.config.if_index {
            return Ok(());
        }
        let Some(mut remote) = arrived.from.as_socket() else {
            return Ok(());
        };
        remote.set_port(from_port);
        for payload in udp::segments(payload).filter(|p| is_ours(p)) {
            each(Datagram { remote, local: arrived.to, payload: payload.to_vec() });
        }
        Ok(())
    }

    fn socket(&self, family: Family) -> &Socket {
        if let (Family::V6, Some(v6)) = (family, &self.v6) { v6 } else { &self.v4 }
    }

    /// The address that the kernel would send from.
    fn source_towards(&self, remote: Ipv4Addr) -> io::Result<Ipv4Addr> {
        let socket = self.route.lock();
        // No packet leaves, and the port that the connection takes is free again after it. Any port will do.
        socket.connect(&SocketAddrV4::new(remote, 9).into())?;
        let source = socket.local_addr();
        disconnect(&socket)?;
        let source = source?.as_socket_ipv4();
        source.map(|s| *s.ip()).ok_or_else(|| io::Error::from_raw_os_error(libc::ENETUNREACH))
    }
}

/// What the filter has said of the first of merged datagrams, said of each, and with the length.
fn is_ours(payload: &[u8]) -> bool {
    wire::stun::is_stun(payload) || wire::relay::is_relay(payload)
}

fn raw_socket(family: Family, config: PortConfig) -> io::Result<Socket> {
    let (domain, start) = match family {
        Family::V4 => (Domain::IPV4, filter::Start::Ipv4Header),
        Family::V6 => (Domain::IPV6, filter::Start::Udp),
    };
    let socket = Socket::new(domain, Type::RAW, Some(Protocol::UDP))?;
    raw::attach_filter(&socket, &filter::nothing())?;
    socket.set_nonblocking(true)?;
    set_mark(&socket, config.fwmark)?;
    control::receive_local_address(&socket, family == Family::V6)?;
    if family == Family::V6 {
        raw::compute_checksum(&socket, udp::CHECKSUM_AT as libc::c_int)?;
    }
    // What came in before the filter did isn't ours.
    let mut nowhere = [0; 1];
    while raw::receive(&socket, &mut nowhere).is_ok() {}
    raw::attach_filter(&socket, &filter::shared(config.port, start))?;
    Ok(socket)
}

fn set_mark(socket: &Socket, mark: u32) -> io::Result<()> {
    if mark == 0 { Ok(()) } else { socket.set_mark(mark) }
}

fn send(socket: &Socket, to: &SockAddr, packet: &[u8], control: &Control) -> io::Result<()> {
    let slices = [IoSlice::new(packet)];
    let mut message = MsgHdr::new().with_addr(to).with_buffers(&slices);
    if !control.is_empty() {
        message = message.with_control(control.as_bytes());
    }
    socket.sendmsg(&message, libc::MSG_DONTWAIT).map(|_| ())
}

/// Takes a datagram socket's remote address, local address and port away again.
fn disconnect(socket: &Socket) -> io::Result<()> {
    socket.connect(&raw::no_address())
}
