//! Stray packets: what shows a node how its NAT takes to strangers.

use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};

use wire::stun::{TransactionId, encode_success};

/// Sends one STUN success response from a socket that was never used before, and says where from. What counts is that the node has
/// never sent there; a second address of this host would show more, but few hosts have one.
///
/// # Errors
/// When there is no way there, or no descriptor.
pub(super) fn send(to: SocketAddr, tx: TransactionId) -> io::Result<SocketAddr> {
    let any: SocketAddr = match to {
        SocketAddr::V4(_) => (Ipv4Addr::UNSPECIFIED, 0).into(),
        SocketAddr::V6(_) => (Ipv6Addr::UNSPECIFIED, 0).into(),
    };
    let socket = UdpSocket::bind(any)?;
    socket.set_nonblocking(true)?;
    // Connected, so that the kernel says which of this host's addresses it leaves from.
    socket.connect(to)?;
    socket.send(&encode_success(tx, to))?;
    socket.local_addr()
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn it_is_a_stun_response_from_where_it_says() {
        let tx = TransactionId([7; 12]);
        let node = UdpSocket::bind("127.0.0.1:0").unwrap();
        node.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
        let to = node.local_addr().unwrap();
        for _ in 0..2 {
            let from = send(to, tx).unwrap();
            let mut buffer = [0; 100];
            let (length, source) = node.recv_from(&mut buffer).unwrap();
            assert_eq!(source, from);
            let message = wire::stun::decode(&buffer[..length]).unwrap();
            assert_eq!((message.tx, message.mapped), (tx, Some(to)));
        }
    }
}
