//! The sockets of the relay ports.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use socket2::{Domain, Protocol, Socket, Type};
use udpsock::{Sender, control};

use crate::server::plane::{Config, MAX_PORTS};

/// Room in each socket: a few milliseconds at some Gbit/s. This is the queue of a port, and with all ports the most memory that
/// the kernel lends. Without a capability the limits are `net.core.rmem_max` and `wmem_max`.
const BUFFER: usize = 2 << 20;

/// One relay port.
#[derive(Debug)]
pub struct PortSocket {
    pub(super) socket: Socket,
    pub(super) sender: Sender,
}

/// Opens the ports of a configuration on all addresses of both families, or of IPv4 where the host has no IPv6.
///
/// # Errors
/// When there is a port that is not free, or beyond 65,535.
pub fn bind(config: &Config) -> io::Result<Vec<PortSocket>> {
    let open = |index| {
        let port = config.first_port.checked_add(index);
        let port = port.ok_or_else(|| io::Error::new(io::ErrorKind::InvalidInput, "relay ports beyond 65535"))?;
        bind_one(port).map_err(|error| io::Error::new(error.kind(), format!("cannot open relay port {port}: {error}")))
    };
    (0..config.ports.min(MAX_PORTS)).map(open).collect()
}

fn bind_one(port: u16) -> io::Result<PortSocket> {
    let open = |domain| Socket::new(domain, Type::DGRAM.nonblocking(), Some(Protocol::UDP));
    let (socket, v6) = match open(Domain::IPV6) {
        Ok(socket) => (socket, true),
        Err(error) if error.raw_os_error() == Some(nix::libc::EAFNOSUPPORT) => (open(Domain::IPV4)?, false),
        Err(error) => return Err(error),
    };
    if v6 {
        socket.set_only_v6(false)?;
    }
    control::set_buffers(&socket, BUFFER);
    control::receive_local_address(&socket, v6)?;
    // As WireGuard itself: a smaller MTU behind the relay costs speed, not packets.
    control::allow_fragments(&socket)?;
    // Older kernels lack it; then every message is one datagram.
    let _ = control::receive_merged(&socket);
    let any: IpAddr = if v6 { Ipv6Addr::UNSPECIFIED.into() } else { Ipv4Addr::UNSPECIFIED.into() };
    socket.bind(&SocketAddr::new(any, port).into())?;
    Ok(PortSocket { socket, sender: Sender::new(v6) })
}
