//! A TLS stream from end to end, which the kernel in the middle routes.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use anyhow::{Context, Result};
use rustls::pki_types::{PrivateKeyDer, ServerName};
use rustls::version::TLS13;
use rustls::{ClientConfig, ClientConnection, RootCertStore, ServerConfig, ServerConnection, StreamOwned};

use super::super::wires::{RECEIVER, Wires};
use super::{Carried, FRAME_HEAD, Gauge, count, packet};

const PORT: u16 = 8444;
const NAME: &str = "bench.invalid";
/// Bytes written at once, as a channel does.
const WRITE_LEN: usize = 64 * 1024;
/// How long a read or write may take before it is asked whether to stop.
const PATIENCE: Duration = Duration::from_secs(5);

pub(super) fn carry(wires: &Wires, size: usize, seconds: u8) -> Result<Carried> {
    let (client, server) = configs()?;
    let listener = wires.receiver.enter(|| TcpListener::bind((RECEIVER, PORT)).context("listening"))?;
    let gauge = Arc::new(Gauge::default());
    let (sending, receiving) = (Arc::clone(&gauge), Arc::clone(&gauge));
    let from = wires.sender.clone();
    let send = move || from.enter(move || send(client, size, &sending));
    let receive = move || receive(&listener, server, size, &receiving);
    count(&gauge, size, seconds, [Box::new(send), Box::new(receive)])
}

fn configs() -> Result<(ClientConfig, ServerConfig)> {
    let made = rcgen::generate_simple_self_signed([NAME.to_owned()]).context("making a certificate")?;
    let mut roots = RootCertStore::empty();
    roots.add(made.cert.der().clone())?;
    let provider = || Arc::new(rustls::crypto::ring::default_provider());
    let client = ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&TLS13])?
        .with_root_certificates(roots)
        .with_no_client_auth();
    let key = PrivateKeyDer::Pkcs8(made.signing_key.serialize_der().into());
    let server = ServerConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&TLS13])?
        .with_no_client_auth()
        .with_single_cert(vec![made.cert.der().clone()], key)?;
    Ok((client, server))
}

fn send(config: ClientConfig, size: usize, gauge: &Gauge) -> Result<()> {
    let socket = TcpStream::connect(SocketAddr::from((RECEIVER, PORT))).context("connecting")?;
    socket.set_nodelay(true)?;
    socket.set_write_timeout(Some(PATIENCE))?;
    let connection = ClientConnection::new(Arc::new(config), ServerName::try_from(NAME)?)?;
    let mut stream = StreamOwned::new(connection, socket);
    let frame = [vec![0; FRAME_HEAD], packet(size)].concat();
    let frames = frame.repeat(WRITE_LEN / frame.len());
    while !gauge.stop.load(Ordering::Relaxed) {
        if let Err(error) = stream.write_all(&frames) {
            // The other end has stopped first.
            return if gauge.stop.load(Ordering::Relaxed) { Ok(()) } else { Err(error.into()) };
        }
    }
    Ok(())
}

fn receive(listener: &TcpListener, config: ServerConfig, size: usize, gauge: &Gauge) -> Result<()> {
    let (socket, _) = listener.accept().context("accepting")?;
    socket.set_read_timeout(Some(PATIENCE))?;
    let connection = ServerConnection::new(Arc::new(config))?;
    let mut stream = StreamOwned::new(connection, socket);
    let (mut buffer, mut bytes) = (vec![0; WRITE_LEN], 0);
    while !gauge.stop.load(Ordering::Relaxed) {
        match stream.read(&mut buffer) {
            Ok(0) => break,
            Ok(length) => bytes += length,
            // What is cut off at the end is no failure.
            Err(_) if gauge.stop.load(Ordering::Relaxed) => break,
            Err(error) => return Err(error.into()),
        }
        gauge.packets.store((bytes / (FRAME_HEAD + size)) as u64, Ordering::Relaxed);
    }
    Ok(())
}
