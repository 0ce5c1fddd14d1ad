//! Starts what carries packets: the data plane and, apart from it, the front end that nodes talk to.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;

use anyhow::Context;
use zeroize::Zeroizing;

use crate::control::{self, Board, Directory, Front};
use crate::monitor::Metrics;
use crate::publish::Service;
use crate::server::plane::Config;
use crate::udp::Forwarder;
use crate::{addresses, identity};

/// What the command line says of it.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Where the identity key is kept.
    pub directory: PathBuf,
    /// The relay ports.
    pub ports: Config,
    /// Where to speak QUIC.
    pub quic: SocketAddr,
    /// Where to speak TLS.
    pub tls: SocketAddr,
}

/// Starts all of it, within a runtime; it runs until the process ends. What it returns is to be published.
///
/// # Errors
/// When there is no identity key and none can be made, or a relay port is taken.
pub fn start(
    settings: Settings,
    client: kube::Client,
    board: Arc<Board>,
    metrics: &Metrics,
) -> anyhow::Result<Service> {
    let Settings { directory, mut ports, quic, tls } = settings;
    let identity = identity::load_or_create(&directory)?;
    let public = identity.public();
    ports.own = addresses::all_of_host()?;
    let mut seed = Zeroizing::new([0; 32]);
    getrandom::fill(seed.as_mut_slice()).context("the system has no random numbers")?;
    let boot = getrandom::u64().context("the system has no random numbers")?;
    let (first, last) = (ports.first_port, ports.first_port.saturating_add(ports.ports - 1));
    let forwarder = Forwarder::start(ports, *seed).context(
        "cannot carry packets; free the relay ports on this host, or choose others by --relay-port and --relay-ports",
    )?;
    tracing::info!(first, last, "carrying packets");
    let members = Arc::new(Directory::default());
    let front = Front {
        identity,
        quic,
        tls,
        boot,
        directory: Arc::clone(&members),
        plane: forwarder.control(),
        board: Arc::clone(&board),
    };
    let supervisor = front.start().context("cannot start the thread that nodes talk to")?;
    tokio::spawn(control::watch_nodes(client, members));
    metrics.observe(forwarder, supervisor, Arc::clone(&board));
    Ok(Service { identity: public, board })
}
