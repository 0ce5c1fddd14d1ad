//! A node's way to a relay: QUIC, and TLS where that does not pass.

use std::collections::VecDeque;
use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use quinn::crypto::rustls::QuicClientConfig;
use rustls::pki_types::ServerName;
use socket2::{Domain, Socket, Type};
use tokio::net::{TcpSocket, TcpStream};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until};
use tokio_rustls::TlsConnector;
use wire::control::{ALPN, ToRelay};

use crate::ahead::Ahead;
use crate::ends::{Channel, KEEPALIVE, Transport};
use crate::identity::{IDENTITY_LEN, Identity};
use crate::proxy::Proxy;
use crate::room::{ROOM_LEN, Room};
use crate::{quic, tls};

/// Head start of QUIC: a handshake takes one round trip, so this covers nearly every path on Earth.
pub const HEAD_START: Duration = Duration::from_millis(300);

/// Time between the beginnings of attempts by one transport at several addresses (RFC 8305, section 8).
pub const STAGGER: Duration = Duration::from_millis(250);

/// Addresses tried by each transport.
pub const MAX_ADDRESSES: usize = 8;

/// The relay to connect to.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Target {
    /// The key that it must prove.
    pub identity: [u8; IDENTITY_LEN],
    /// Where it speaks QUIC, best first.
    pub quic: Vec<SocketAddr>,
    /// Where it speaks TLS, best first.
    pub tls: Vec<SocketAddr>,
}

/// How to connect.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Options {
    /// The mark of the sockets (SO_MARK), which keeps them out of the tunnel; it takes CAP_NET_ADMIN.
    pub fwmark: Option<u32>,
    /// The time for all attempts together.
    pub timeout: Duration,
    /// Whether TLS begins together with QUIC, because QUIC was of no use the last time. Where it is of use again it is quicker all the same: TLS
    /// takes a round trip more.
    pub tls_at_once: bool,
    /// A proxy, and the addresses to which TLS goes through it. QUIC goes through none.
    pub proxied: Option<(Proxy, Vec<SocketAddr>)>,
}

impl Default for Options {
    fn default() -> Self {
        Self { fwmark: None, timeout: Duration::from_secs(10), tls_at_once: false, proxied: None }
    }
}

/// Why there is no channel.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// Nothing to try.
    #[error("the relay has no address to connect to")]
    NoAddress,
    /// Time ran out.
    #[error("no answer in time; failed until then: {}", list(.0))]
    Timeout(Vec<Attempt>),
    /// All attempts failed.
    #[error("no attempt succeeded: {}", list(.0))]
    Failed(Vec<Attempt>),
    /// The keys cannot be used.
    #[error("cannot set TLS up: {0}")]
    Setup(#[from] rustls::Error),
}

/// An attempt that failed.
#[derive(Debug)]
pub struct Attempt {
    /// By what.
    pub transport: Transport,
    /// Where.
    pub address: SocketAddr,
    /// How.
    pub error: io::Error,
}

/// Without addresses, which are for logs at debug only.
fn list(attempts: &[Attempt]) -> String {
    let texts: Vec<String> =
        attempts.iter().map(|attempt| format!("{:?}: {}", attempt.transport, attempt.error)).collect();
    if texts.is_empty() { "nothing".to_owned() } else { texts.join("; ") }
}

/// Opens a channel. QUIC goes first; TLS begins after [`HEAD_START`], or at once when QUIC has failed or the options say so; the first that has finished its
/// handshake wins. The relay has then proven its identity, and this node its own.
///
/// # Errors
/// When there is no address, all of them fail, or none has succeeded in time.
pub async fn connect(identity: &Identity, target: &Target, options: Options) -> Result<Channel, ConnectError> {
    let config = tls::client_config(identity, target.identity)?;
    let head_start = if options.tls_at_once { Duration::ZERO } else { HEAD_START };
    Race::new(Dial { config, fwmark: options.fwmark, proxied: options.proxied }, target, head_start)
        .run(Instant::now() + options.timeout)
        .await
}

struct Race {
    dial: Arc<Dial>,
    lanes: [Lane; 2],
    attempts: JoinSet<Result<Channel, Attempt>>,
    failed: Vec<Attempt>,
}

/// What is left to try by one transport.
struct Lane {
    transport: Transport,
    addresses: VecDeque<SocketAddr>,
    running: usize,
    next_at: Instant,
}

impl Lane {
    fn new(transport: Transport, addresses: &[SocketAddr], next_at: Instant) -> Self {
        Self { transport, addresses: addresses.iter().take(MAX_ADDRESSES).copied().collect(), running: 0, next_at }
    }

    fn is_over(&self) -> bool {
        self.addresses.is_empty() && self.running == 0
    }
}

impl Race {
    fn new(dial: Dial, target: &Target, head_start: Duration) -> Self {
        let now = Instant::now();
        let lanes =
            [Lane::new(Transport::Quic, &target.quic, now), Lane::new(Transport::Tls, &target.tls, now + head_start)];
        Self { dial: Arc::new(dial), lanes, attempts: JoinSet::new(), failed: Vec::new() }
    }

    async fn run(mut self, deadline: Instant) -> Result<Channel, ConnectError> {
        if self.lanes.iter().all(Lane::is_over) {
            return Err(ConnectError::NoAddress);
        }
        loop {
            self.begin();
            if self.lanes.iter().all(Lane::is_over) {
                return Err(ConnectError::Failed(self.failed));
            }
            let waiting = self.lanes.iter().filter(|lane| !lane.addresses.is_empty());
            let next_at = waiting.map(|lane| lane.next_at).min().unwrap_or(deadline);
            tokio::select! {
                Some(ended) = self.attempts.join_next() => match ended {
                    Ok(Ok(channel)) => return Ok(channel),
                    Ok(Err(attempt)) => self.lost(attempt),
                    // It panicked, and with it went which one it was: what is left may still succeed.
                    Err(_) => {}
                },
                () = sleep_until(next_at.min(deadline)) => {
                    if Instant::now() >= deadline {
                        return Err(ConnectError::Timeout(self.failed));
                    }
                }
            }
        }
    }

    /// Begins what is due.
    fn begin(&mut self) {
        let now = Instant::now();
        if self.lanes[0].is_over() {
            self.lanes[1].next_at = self.lanes[1].next_at.min(now);
        }
        for lane in &mut self.lanes {
            while lane.next_at <= now
                && let Some(address) = lane.addresses.pop_front()
            {
                lane.running += 1;
                lane.next_at = now + STAGGER;
                let (dial, transport) = (Arc::clone(&self.dial), lane.transport);
                self.attempts.spawn(async move {
                    dial.dial(transport, address).await.map_err(|error| Attempt { transport, address, error })
                });
            }
        }
    }

    fn lost(&mut self, attempt: Attempt) {
        for lane in &mut self.lanes {
            if lane.transport == attempt.transport {
                lane.running = lane.running.saturating_sub(1);
                lane.next_at = Instant::now();
            }
        }
        self.failed.push(attempt);
    }
}

struct Dial {
    config: rustls::ClientConfig,
    fwmark: Option<u32>,
    proxied: Option<(Proxy, Vec<SocketAddr>)>,
}

impl Dial {
    async fn dial(&self, transport: Transport, address: SocketAddr) -> io::Result<Channel> {
        match transport {
            Transport::Quic => self.quic(address).await,
            Transport::Tls => self.tls(address).await,
        }
    }

    async fn quic(&self, address: SocketAddr) -> io::Result<Channel> {
        let socket = self.socket(address, Type::DGRAM)?;
        let any: SocketAddr = match address {
            SocketAddr::V4(_) => (Ipv4Addr::UNSPECIFIED, 0).into(),
            SocketAddr::V6(_) => (Ipv6Addr::UNSPECIFIED, 0).into(),
        };
        socket.bind(&any.into())?;
        let runtime = Arc::new(quinn::TokioRuntime);
        let endpoint = quinn::Endpoint::new(quinn::EndpointConfig::default(), None, socket.into(), runtime)?;
        let crypto = QuicClientConfig::try_from(self.config.clone()).map_err(io::Error::other)?;
        let mut config = quinn::ClientConfig::new(Arc::new(crypto));
        config.transport_config(Arc::new(quic::transport(Some(KEEPALIVE))));
        // The name is not sent and not looked at: the key is what counts.
        let connecting = endpoint.connect_with(config, address, "relay").map_err(io::Error::other)?;
        let connection = connecting.await?;
        let (send, receive) = connection.open_bi().await?;
        Ok(Channel::quic(connection, send, receive, &own_room()))
    }

    async fn tls(&self, address: SocketAddr) -> io::Result<Channel> {
        let stream = match &self.proxied {
            Some((proxy, proxied)) if proxied.contains(&address) => proxy.connect(address, |at| self.tcp(at)).await?,
            _ => self.tcp(address).await?,
        };
        tls::prepare(&stream)?;
        let name = ServerName::IpAddress(address.ip().into());
        let stream = TlsConnector::from(Arc::new(self.config.clone())).connect(name, Ahead::new(stream)).await?;
        if stream.get_ref().1.alpn_protocol() != Some(ALPN) {
            return Err(io::Error::new(
                io::ErrorKind::InvalidData,
                "the other end does not speak the relay's protocol",
            ));
        }
        Ok(Channel::tls(stream.into(), address, Some(&ToRelay::Ping), &own_room()))
    }

    async fn tcp(&self, address: SocketAddr) -> io::Result<TcpStream> {
        let socket = self.socket(address, Type::STREAM)?;
        TcpSocket::from_std_stream(socket.into()).connect(address).await
    }

    fn socket(&self, address: SocketAddr, kind: Type) -> io::Result<Socket> {
        let socket = Socket::new(Domain::for_address(address), kind.nonblocking().cloexec(), None)?;
        if let Some(mark) = self.fwmark {
            socket.set_mark(mark)?;
        }
        Ok(socket)
    }
}

/// A node has few channels: each has room of its own for all that its lanes may hold.
fn own_room() -> Arc<Room> {
    Room::new(ROOM_LEN)
}
