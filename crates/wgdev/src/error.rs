//! Errors that say what was expected, what was found, and what to do.

use std::{fmt, io};

use wire::key::PublicKey;

use crate::{MAX_ALLOWED_IPS, MAX_PEERS};

/// Why a device could not be opened, or did not do as told.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DeviceError {
    /// The interface name can't be one.
    #[error(
        "an interface name of 1 to 15 bytes without '/', space or control characters was expected, {0:?} was found; choose another name"
    )]
    BadName(String),
    /// The MTU is out of range.
    #[error("an MTU of 1280 to 65535 was expected, {0} was found; set one that IPv6 can use")]
    BadMtu(u16),
    /// Something else owns the UDP port.
    #[error(
        "UDP port {port} was expected to be free, another socket of this host has it; stop its owner or listen on another port"
    )]
    PortTaken {
        /// The port.
        port: u16,
    },
    /// The TUN driver can't be reached.
    #[error("{path} was expected to open, {found}; {remedy}", path = crate::error::TUN_PATH)]
    TunUnavailable {
        /// What happened.
        found: String,
        /// What to do about it.
        remedy: &'static str,
    },
    /// The kernel has no WireGuard.
    #[error(
        "a kernel with WireGuard was expected, {found}; load the module (modprobe wireguard) on the host, or set the backend to Userspace"
    )]
    NoKernelWireGuard {
        /// What happened.
        found: String,
    },
    /// The interface exists as something this device must not touch.
    #[error(
        "interface {name} was expected to be absent or {expected}, {found} was found; delete it (ip link delete {name}) or choose another name"
    )]
    NameTaken {
        /// Name of the interface.
        name: String,
        /// What this device could have adopted.
        expected: &'static str,
        /// What it is.
        found: String,
    },
    /// Some peers of a delta were refused; the others were applied.
    #[error("{} of the peers were refused: {}", .0.len(), Listed(.0))]
    Refused(Vec<Refusal>),
    /// No such peer.
    #[error("peer {} was expected to be configured, it isn't; apply it first", .0.short())]
    UnknownPeer(PublicKey),
    /// The peer has no endpoint to send to.
    #[error("peer {} was expected to have an endpoint, it has none; set one first", .0.short())]
    NoEndpoint(PublicKey),
    /// The interface was deleted, or the device stopped.
    #[error("the device was expected to run, its interface or socket is gone; open it again")]
    Stopped,
    /// A system call failed.
    #[error("{doing}: {source}")]
    Io {
        /// What was being done.
        doing: &'static str,
        /// What the system said.
        source: io::Error,
    },
}

/// Where the TUN driver is.
pub(crate) const TUN_PATH: &str = "/dev/net/tun";

impl DeviceError {
    pub(crate) fn io(doing: &'static str) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::Io { doing, source }
    }
}

/// A peer of a delta that was not applied.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// Which peer.
    pub public_key: PublicKey,
    /// Why.
    pub reason: RefusalReason,
}

/// Why a peer was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum RefusalReason {
    /// The key gives no secret: all zero, of small order or not canonical.
    InvalidKey,
    /// The key is the device's own.
    OwnKey,
    /// The device has as many peers as it takes.
    TooManyPeers,
    /// The peer has more allowed IPs than a peer may have.
    TooManyAllowedIps,
}

impl fmt::Display for RefusalReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::InvalidKey => f.write_str("not a valid public key"),
            Self::OwnKey => f.write_str("the key of this device itself"),
            Self::TooManyPeers => write!(f, "the device has {MAX_PEERS} peers already"),
            Self::TooManyAllowedIps => write!(f, "more than {MAX_ALLOWED_IPS} allowed IPs"),
        }
    }
}

/// Names at most so many refusals; a message is for a human.
const LISTED: usize = 5;

struct Listed<'a>(&'a [Refusal]);

impl fmt::Display for Listed<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, refusal) in self.0.iter().take(LISTED).enumerate() {
            let comma = if i == 0 { "" } else { ", " };
            write!(f, "{comma}{} ({})", refusal.public_key.short(), refusal.reason)?;
        }
        if self.0.len() > LISTED {
            write!(f, " and {} more", self.0.len() - LISTED)?;
        }
        Ok(())
    }
}
