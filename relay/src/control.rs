//! The shell of the [control channel's logic](crate::server::control): the *front end*, which nodes talk to.
//!
//! It is a thread of its own with a runtime of its own. If it fails, also by a panic, it is started again, with the members that it
//! knew; nodes come back by themselves, and what the data plane forwards goes on all the while. What outlives it is here: the
//! [`Directory`] of members, which is fed from elsewhere, and the [`Board`] on which it shows how it is doing.

use std::net::{Ipv6Addr, SocketAddr};
use std::sync::Arc;

use channel::Identity;
use tokio::sync::watch;

use crate::server::control::Stats;
use crate::udp;

mod directory;
mod front;
mod stray;
mod supervise;
mod watch_nodes;

pub use directory::{Directory, Update};
pub use supervise::Supervisor;
pub use watch_nodes::watch_nodes;

/// What a front end needs.
#[derive(Debug, Clone)]
pub struct Front {
    /// Who this relay is.
    pub identity: Identity,
    /// Where it speaks QUIC.
    pub quic: SocketAddr,
    /// Where it speaks TLS.
    pub tls: SocketAddr,
    /// The number of this life of the data plane.
    pub boot: u64,
    /// Who the members are.
    pub directory: Arc<Directory>,
    /// Speaks to the data plane.
    pub plane: udp::Control,
    /// Where it shows how it is doing.
    pub board: Arc<Board>,
}

/// What others see of the front end and tell it.
#[derive(Debug)]
pub struct Board {
    /// The doors that are open.
    pub doors: watch::Sender<Doors>,
    /// Counters, as of the last turn. Those of a front end that has failed start anew.
    pub stats: watch::Sender<Stats>,
    /// In how many seconds this relay ends, if it does.
    pub drain: watch::Sender<Option<u16>>,
}

/// Ports of the doors that are open.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Doors {
    /// UDP port of QUIC.
    pub quic: Option<u16>,
    /// TCP port of TLS.
    pub tls: Option<u16>,
}

impl Default for Board {
    fn default() -> Self {
        Self {
            doors: watch::Sender::new(Doors::default()),
            stats: watch::Sender::new(Stats::default()),
            drain: watch::Sender::new(None),
        }
    }
}

impl Front {
    /// Starts it, and starts it again whenever it fails.
    ///
    /// # Errors
    /// When the system is out of threads.
    pub fn start(self) -> std::io::Result<Supervisor> {
        Supervisor::start("relay-control", move || front::run(self.clone()))
    }
}

/// All addresses of this host, at a port.
#[must_use]
pub const fn anywhere(port: u16) -> SocketAddr {
    SocketAddr::new(std::net::IpAddr::V6(Ipv6Addr::UNSPECIFIED), port)
}
