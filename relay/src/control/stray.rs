//! Stray packets: what shows a node how its NAT takes to strangers, and the sockets that then say what its packets look like.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::net::UdpSocket;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::timeout;
use wire::stun::{TransactionId, encode_success};

use crate::server::{Server, Verdict};

/// How long a socket answers: above the 2 s in which a node asks it.
const LIFETIME: Duration = Duration::from_secs(5);

/// Answers of one socket: a node asks each three times, and packets may be duplicated.
const ANSWERS: usize = 16;

/// Sockets at a time.
const MAX_SOCKETS: usize = 256;

/// Bytes received of a request: above what members send.
const BUFFER_LEN: usize = 512;

/// All sockets that strays were sent from and that are still open.
#[derive(Debug)]
pub(super) struct Strays(Arc<Semaphore>);

impl Default for Strays {
    fn default() -> Self {
        Self(Arc::new(Semaphore::new(MAX_SOCKETS)))
    }
}

impl Strays {
    /// Sends one STUN success response from a socket that was never used before, and says where from. What counts is that the node
    /// has never sent there; a second address of this host would show no more, since NATs tell flows apart by ports too. The socket
    /// answers Binding requests of that host, of nobody else, and of those only what is no longer than they are.
    ///
    /// # Errors
    /// When there is no way there, no descriptor, or there are as many sockets as there may be.
    pub(super) async fn send(&self, to: SocketAddr, tx: TransactionId) -> io::Result<SocketAddr> {
        let full = || io::Error::new(io::ErrorKind::WouldBlock, "too many stray packets at a time");
        let permit = Arc::clone(&self.0).try_acquire_owned().map_err(|_| full())?;
        let socket = UdpSocket::bind((way_to(to)?, 0)).await?;
        let from = socket.local_addr()?;
        socket.send_to(&encode_success(tx, to), to).await?;
        tokio::spawn(answer(socket, to.ip(), permit));
        Ok(from)
    }
}

/// The address of this host from which packets go there. Connecting a socket sends nothing; the kernel looks the way up.
fn way_to(to: SocketAddr) -> io::Result<IpAddr> {
    let any: IpAddr = match to {
        SocketAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
        SocketAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
    };
    let socket = std::net::UdpSocket::bind((any, 0))?;
    socket.connect(to)?;
    Ok(socket.local_addr()?.ip())
}

async fn answer(socket: UdpSocket, host: IpAddr, _permit: OwnedSemaphorePermit) {
    let answering = async {
        let mut buffer = [0; BUFFER_LEN];
        let mut server = Server::new(Instant::now());
        let mut left = ANSWERS;
        while left > 0 {
            // An error is that of one packet: nobody listens any more at the node's end.
            let Ok((length, source)) = socket.recv_from(&mut buffer).await else {
                left -= 1;
                continue;
            };
            if source.ip() != host {
                continue;
            }
            let (verdict, reply) = server.handle_datagram(&buffer[..length], source, Instant::now());
            if let (Verdict::AnsweredPadded, Some(reply)) = (verdict, reply) {
                left -= 1;
                let _ = socket.send_to(&reply, source).await;
            }
        }
    };
    // Time is up, or enough was said.
    let _ = timeout(LIFETIME, answering).await;
}

#[cfg(test)]
mod tests {
    use wire::stun::{MEMBER_REQUEST_LEN, decode, encode_request};

    use super::*;

    const TX: TransactionId = TransactionId([7; 12]);

    async fn hear(socket: &UdpSocket) -> (SocketAddr, TransactionId, Option<SocketAddr>) {
        let mut buffer = [0; 100];
        let (length, source) = socket.recv_from(&mut buffer).await.unwrap();
        let message = decode(&buffer[..length]).unwrap();
        (source, message.tx, message.mapped)
    }

    #[tokio::test]
    async fn the_stray_leaves_from_where_it_says_and_its_socket_tells_the_same_host_what_it_sees() {
        let strays = Strays::default();
        let node = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        let to = node.local_addr().unwrap();
        let from = strays.send(to, TX).await.unwrap();
        assert_eq!(hear(&node).await, (from, TX, Some(to)));

        // From another port, as behind a NAT that was poisoned; from another host; and too short to be answered.
        let moved = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        let stranger = UdpSocket::bind("127.0.0.2:0").await.unwrap();
        let ask = |number| encode_request(TransactionId([number; 12]), MEMBER_REQUEST_LEN);
        stranger.send_to(&ask(1), from).await.unwrap();
        moved.send_to(&encode_request(TransactionId([2; 12]), 20), from).await.unwrap();
        moved.send_to(&ask(3), from).await.unwrap();
        let seen = hear(&moved).await;
        assert_eq!(
            seen,
            (from, TransactionId([3; 12]), Some(moved.local_addr().unwrap())),
            "and the short one was not"
        );
        assert!(stranger.try_recv(&mut [0; 100]).is_err(), "nor was the stranger");
        assert_ne!(strays.send(to, TX).await.unwrap(), from, "each has a socket of its own");
    }

    #[tokio::test]
    async fn sockets_are_few_and_are_given_back() {
        let strays = Strays::default();
        let node = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        let to = node.local_addr().unwrap();
        for _ in 0..MAX_SOCKETS {
            strays.send(to, TX).await.unwrap();
        }
        assert!(strays.send(to, TX).await.is_err());
        tokio::time::pause();
        tokio::time::sleep(LIFETIME + Duration::from_millis(1)).await;
        strays.send(to, TX).await.unwrap();
    }
}
