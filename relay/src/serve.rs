//! Drives the responder: sockets in, verdicts counted, replies out.

use std::convert::Infallible;
use std::future::poll_fn;
use std::io;
use std::net::SocketAddr;
use std::task::Poll;
use std::time::Instant;

use anyhow::Context;

use crate::monitor::Metrics;
use crate::server::Server;
use crate::socket::{Arrival, StunSocket};

/// Bytes received of a datagram: above any STUN request of use. Longer ones are cut off, and so no longer well-formed.
const BUFFER_LEN: usize = 2048;

/// Datagrams taken from one socket before the next has its turn, and before metrics and publishing have theirs.
const BATCH: usize = 64;

/// Opens the sockets. An address family that the host does not have is left out as long as another is there.
///
/// # Errors
/// When an address cannot be bound for any other reason, or none is left.
pub fn bind(addresses: &[SocketAddr]) -> anyhow::Result<Vec<StunSocket>> {
    let mut sockets = Vec::with_capacity(addresses.len());
    for &address in addresses {
        match StunSocket::bind(address) {
            Ok(socket) => sockets.push(socket),
            Err(error) if is_missing_family(&error) => {
                tracing::warn!(%address, "this host lacks the address family, serving without it");
            }
            Err(error) => {
                return Err(error).with_context(|| {
                    format!(
                        "cannot listen on {address} (UDP); free that port on this host, or choose another by --listen"
                    )
                });
            }
        }
    }
    anyhow::ensure!(
        !sockets.is_empty(),
        "this host has none of the address families of --listen; give an address that it has"
    );
    Ok(sockets)
}

/// Serves until the sockets fail for good.
///
/// # Errors
/// When a socket can no longer receive.
pub async fn run(sockets: &[StunSocket], metrics: &Metrics) -> anyhow::Result<Infallible> {
    let mut server = Server::new(Instant::now());
    let mut buffer = [0; BUFFER_LEN];
    let mut first = 0;
    loop {
        let ready = next_readable(sockets, first).await.context("cannot wait for datagrams")?;
        drain(&sockets[ready], &mut server, &mut buffer, metrics)?;
        first = (ready + 1) % sockets.len();
        tokio::task::yield_now().await;
    }
}

/// The first readable socket, looking at `first` before the others so that a busy one cannot starve them.
async fn next_readable(sockets: &[StunSocket], first: usize) -> io::Result<usize> {
    poll_fn(|cx| {
        for index in (first..sockets.len()).chain(0..first) {
            if let Poll::Ready(ready) = sockets[index].poll_readable(cx) {
                return Poll::Ready(ready.map(|()| index));
            }
        }
        Poll::Pending
    })
    .await
}

fn drain(socket: &StunSocket, server: &mut Server, buffer: &mut [u8], metrics: &Metrics) -> anyhow::Result<()> {
    for _ in 0..BATCH {
        match socket.try_receive(buffer) {
            Ok(arrival) => handle(socket, server, &buffer[..arrival.len], arrival, metrics),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
            Err(error) if is_passing(&error) => metrics.receive_errors.inc(),
            Err(error) => return Err(error).context("cannot receive datagrams"),
        }
    }
    Ok(())
}

fn handle(socket: &StunSocket, server: &mut Server, datagram: &[u8], arrival: Arrival, metrics: &Metrics) {
    let (verdict, reply) = server.handle_datagram(datagram, arrival.source, Instant::now());
    metrics.count(verdict, datagram.len());
    tracing::trace!(source = %arrival.source, result = verdict.label(), "datagram");
    let Some(reply) = reply else { return };
    match socket.try_send(&reply, arrival.source, arrival.local) {
        Ok(()) => metrics.sent_bytes.inc_by(reply.len() as u64),
        Err(error) => {
            tracing::debug!(destination = %arrival.source, %error, "reply not sent");
            metrics.send_errors.inc();
        }
    }
}

/// Errors of one datagram or one moment, after which the socket goes on.
fn is_passing(error: &io::Error) -> bool {
    use io::ErrorKind::{
        ConnectionRefused, HostUnreachable, Interrupted, InvalidData, NetworkDown, NetworkUnreachable, OutOfMemory,
    };
    let kinds =
        [ConnectionRefused, HostUnreachable, Interrupted, InvalidData, NetworkDown, NetworkUnreachable, OutOfMemory];
    kinds.contains(&error.kind()) || error.raw_os_error() == Some(nix::libc::ENOBUFS)
}

fn is_missing_family(error: &io::Error) -> bool {
    error.raw_os_error() == Some(nix::libc::EAFNOSUPPORT)
}
