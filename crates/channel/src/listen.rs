//! A relay's doors: who comes in has proven an identity key, and nothing else yet.

use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use quinn::crypto::rustls::QuicServerConfig;
use rustls::pki_types::CertificateDer;
use socket2::{Domain, Socket, Type};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::timeout;
use tokio_rustls::TlsAcceptor;
use wire::control::ALPN;

use crate::ahead::Ahead;
use crate::ends::{RelayChannel, Transport};
use crate::gate::{Gate, Place};
use crate::identity::{IDENTITY_LEN, Identity};
use crate::room::{ROOM_LEN, Room};
use crate::{quic, tls};

/// Time from the first packet until the handshake is done and, over QUIC, something was said: far above a lossy satellite path.
pub const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);

/// What the key is for with which a relay resets connections that it does not know (RFC 9000, section 10.3). It follows from the
/// identity, so a relay that has started anew resets those of its life before, and nodes need not wait until they have timed out.
const RESET_KEY: &[u8] = b"warren relay stateless reset";

/// Open channels that wait to be taken.
const WAITING: usize = 64;

/// Connections that the kernel keeps until they are taken.
const BACKLOG: i32 = 1024;

/// How long nothing is accepted when the system is out of descriptors or memory.
const PAUSE: Duration = Duration::from_millis(100);

/// Somebody who came in.
#[derive(Debug)]
pub struct Incoming {
    /// The identity key that was proven. Anybody can make one: look up whose it is.
    pub identity: [u8; IDENTITY_LEN],
    /// The channel.
    pub channel: RelayChannel,
    /// The place among [newcomers](crate::MAX_NEWCOMERS). Keep it until it is clear that this one belongs here.
    pub place: Place,
}

/// Open doors. Dropping it closes them, and leaves the channels alone that came in.
#[derive(Debug)]
pub struct Listener {
    config: rustls::ServerConfig,
    reset_key: ring::hmac::Key,
    hall: Hall,
    incoming: mpsc::Receiver<Incoming>,
    local: Vec<(Transport, SocketAddr)>,
    /// Aborted with this.
    doors: JoinSet<()>,
}

/// Why a listener could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum ListenError {
    /// An address cannot be bound.
    #[error("cannot listen on {address} ({protocol}): {error}")]
    Bind {
        /// Which one.
        address: SocketAddr,
        /// `UDP` or `TCP`.
        protocol: &'static str,
        /// Why.
        error: io::Error,
    },
    /// The key cannot be used.
    #[error("cannot set TLS up: {0}")]
    Setup(#[from] rustls::Error),
}

impl Listener {
    /// No door yet.
    ///
    /// # Errors
    /// When the key cannot be used.
    pub fn new(identity: &Identity) -> Result<Self, ListenError> {
        let config = tls::server_config(identity)?;
        let (opened, incoming) = mpsc::channel(WAITING);
        let hall = Hall { gate: Arc::default(), room: Room::new(ROOM_LEN), opened };
        let reset_key = identity.derived_key(RESET_KEY);
        Ok(Self { config, reset_key, hall, incoming, local: Vec::new(), doors: JoinSet::new() })
    }

    /// Opens doors for QUIC and for TLS.
    ///
    /// # Errors
    /// Those of [`Self::new`] and [`Self::open`].
    pub fn bind(identity: &Identity, quic: &[SocketAddr], tls: &[SocketAddr]) -> Result<Self, ListenError> {
        let mut listener = Self::new(identity)?;
        for &address in quic {
            listener.open(Transport::Quic, address)?;
        }
        for &address in tls {
            listener.open(Transport::Tls, address)?;
        }
        Ok(listener)
    }

    /// Opens one more door, within a tokio runtime, and says where it is. `[::]` means both families, or IPv4 where the host has no
    /// IPv6.
    ///
    /// # Errors
    /// When the address cannot be bound.
    pub fn open(&mut self, transport: Transport, address: SocketAddr) -> Result<SocketAddr, ListenError> {
        let refused = |protocol| move |error| ListenError::Bind { address, protocol, error };
        let at = match transport {
            Transport::Quic => {
                let (endpoint, at) = bind_quic(&self.config, &self.reset_key, address).map_err(refused("UDP"))?;
                self.doors.spawn(quic_door(endpoint, self.hall.clone()));
                at
            }
            Transport::Tls => {
                let (listener, at) = bind_tls(address).map_err(refused("TCP"))?;
                let acceptor = TlsAcceptor::from(Arc::new(self.config.clone()));
                self.doors.spawn(tls_door(listener, acceptor, self.hall.clone()));
                at
            }
        };
        self.local.push((transport, at));
        Ok(at)
    }

    /// The next who came in. Pending while nobody does.
    pub async fn accept(&mut self) -> Option<Incoming> {
        self.incoming.recv().await
    }

    /// Where it listens.
    #[must_use]
    pub fn local_addresses(&self) -> &[(Transport, SocketAddr)] {
        &self.local
    }
}

#[cfg(test)]
impl Listener {
    /// The same with another room, before a door is open.
    pub(crate) fn with_room(mut self, room: &Arc<Room>) -> Self {
        self.hall.room = Arc::clone(room);
        self
    }
}

/// What all doors lead to.
#[derive(Debug, Clone)]
struct Hall {
    gate: Arc<Gate>,
    /// Where packets for everybody who came in wait.
    room: Arc<Room>,
    opened: mpsc::Sender<Incoming>,
}

fn bind_quic(
    config: &rustls::ServerConfig,
    reset_key: &ring::hmac::Key,
    address: SocketAddr,
) -> io::Result<(quinn::Endpoint, SocketAddr)> {
    let crypto = QuicServerConfig::try_from(config.clone()).map_err(io::Error::other)?;
    let mut config = quinn::ServerConfig::with_crypto(Arc::new(crypto));
    config.transport_config(Arc::new(quic::transport(None)));
    // What waits before this process has looked at it: no more than may be at work.
    config.max_incoming(crate::gate::MAX_NEWCOMERS).incoming_buffer_size(16 * 1024).incoming_buffer_size_total(4 << 20);
    let socket = bind(address, Type::DGRAM)?;
    let runtime = Arc::new(quinn::TokioRuntime);
    let endpoint = quic::resetting(reset_key.clone());
    let endpoint = quinn::Endpoint::new(endpoint, Some(config), socket.into(), runtime)?;
    let at = endpoint.local_addr()?;
    Ok((endpoint, at))
}

fn bind_tls(address: SocketAddr) -> io::Result<(TcpListener, SocketAddr)> {
    let socket = bind(address, Type::STREAM)?;
    socket.listen(BACKLOG)?;
    let listener = TcpListener::from_std(socket.into())?;
    let at = listener.local_addr()?;
    Ok((listener, at))
}

fn bind(address: SocketAddr, kind: Type) -> io::Result<Socket> {
    let open = |address: SocketAddr| Socket::new(Domain::for_address(address), kind.nonblocking().cloexec(), None);
    let (socket, address) = match open(address) {
        Err(error) if is_missing_family(&error) && address.ip().is_unspecified() => {
            let v4 = SocketAddr::from((Ipv4Addr::UNSPECIFIED, address.port()));
            (open(v4)?, v4)
        }
        socket => (socket?, address),
    };
    if address.is_ipv6() {
        socket.set_only_v6(!address.ip().is_unspecified())?;
    }
    if kind == Type::STREAM {
        // A relay that starts again must not wait for connections of the one before.
        socket.set_reuse_address(true)?;
    }
    socket.bind(&address.into())?;
    Ok(socket)
}

/// EAFNOSUPPORT, by its number on Linux: the standard library has no kind for it.
fn is_missing_family(error: &io::Error) -> bool {
    error.raw_os_error() == Some(97)
}

async fn quic_door(endpoint: quinn::Endpoint, hall: Hall) {
    while let Some(incoming) = endpoint.accept().await {
        let is_validated = incoming.remote_address_validated();
        if !is_validated && hall.gate.is_busy() {
            // Fails only for those who have been asked already.
            let _ = incoming.retry();
            continue;
        }
        match hall.gate.enter(incoming.remote_address().ip()) {
            Some(place) => drop(tokio::spawn(hall.clone().welcome(place, quic_handshake(incoming, hall.room.clone())))),
            None if is_validated => incoming.refuse(),
            None => incoming.ignore(),
        }
    }
}

async fn tls_door(listener: TcpListener, acceptor: TlsAcceptor, hall: Hall) {
    loop {
        match listener.accept().await {
            Ok((stream, remote)) => {
                // Without a place it is closed at once.
                if let Some(place) = hall.gate.enter(remote.ip()) {
                    let handshake = tls_handshake(acceptor.clone(), stream, remote, hall.room.clone());
                    tokio::spawn(hall.clone().welcome(place, handshake));
                }
            }
            Err(error) => {
                tracing::debug!(%error, "cannot accept a connection");
                tokio::time::sleep(PAUSE).await;
            }
        }
    }
}

impl Hall {
    async fn welcome(
        self,
        place: Place,
        handshake: impl Future<Output = io::Result<([u8; IDENTITY_LEN], RelayChannel)>>,
    ) {
        match timeout(HANDSHAKE_TIMEOUT, handshake).await {
            Ok(Ok((identity, channel))) => drop(self.opened.send(Incoming { identity, channel, place }).await),
            Ok(Err(error)) => tracing::debug!(%error, "a handshake failed"),
            Err(_) => tracing::debug!("a handshake took too long"),
        }
    }
}

async fn quic_handshake(incoming: quinn::Incoming, room: Arc<Room>) -> io::Result<([u8; IDENTITY_LEN], RelayChannel)> {
    let connection = incoming.await?;
    let certificates = connection.peer_identity().and_then(|any| any.downcast::<Vec<CertificateDer<'static>>>().ok());
    let identity = tls::proven(certificates.as_ref().map(|certificates| certificates.as_slice())).ok_or_else(no_key)?;
    // The node opens the one stream there is.
    let (send, receive) = connection.accept_bi().await?;
    Ok((identity, RelayChannel::quic(connection, send, receive, &room)))
}

async fn tls_handshake(
    acceptor: TlsAcceptor,
    stream: TcpStream,
    remote: SocketAddr,
    room: Arc<Room>,
) -> io::Result<([u8; IDENTITY_LEN], RelayChannel)> {
    tls::prepare(&stream)?;
    let stream = acceptor.accept(Ahead::new(stream)).await?;
    let (_, session) = stream.get_ref();
    let identity = tls::proven(session.peer_certificates()).ok_or_else(no_key)?;
    // TLS lets a client leave the protocol out; this one has nothing else to say.
    if session.alpn_protocol() != Some(ALPN) {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "a client of another protocol"));
    }
    Ok((identity, RelayChannel::tls(stream.into(), remote, None, &room)))
}

fn no_key() -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, "no Ed25519 key was proven")
}
