//! What is inside the seal: kind, flags, epoch, body.

use std::net::{IpAddr, Ipv6Addr, SocketAddr};

use super::Probe;

/// Port and IPv6 address; kinds without an address leave zeros.
const BODY_LEN: usize = 18;

/// Kind, flags, epoch, body.
pub(super) const PLAINTEXT_LEN: usize = 1 + 1 + 8 + BODY_LEN;

/// Kinds on the wire. Those of [signals](super::signal) are 16 and above.
mod kind {
    pub(super) const PING: u8 = 1;
    pub(super) const PONG: u8 = 2;
    pub(super) const NOMINATE: u8 = 3;
    pub(super) const NOMINATE_ACK: u8 = 4;
}

pub(super) fn encode(probe: &Probe) -> [u8; PLAINTEXT_LEN] {
    let (kind, epoch, observed) = match *probe {
        Probe::Ping => (kind::PING, 0, None),
        Probe::Pong { observed } => (kind::PONG, 0, Some(observed)),
        Probe::Nominate { epoch } => (kind::NOMINATE, epoch, None),
        Probe::NominateAck { epoch } => (kind::NOMINATE_ACK, epoch, None),
    };
    let mut plaintext = [0; PLAINTEXT_LEN];
    plaintext[0] = kind;
    plaintext[2..10].copy_from_slice(&epoch.to_be_bytes());
    if let Some(observed) = observed {
        plaintext[10..12].copy_from_slice(&observed.port().to_be_bytes());
        plaintext[12..].copy_from_slice(&mapped(observed.ip()).octets());
    }
    plaintext
}

/// `None` for an unknown kind. Flags and unused bytes are ignored, so that a later version may give them a meaning.
pub(super) fn decode(plaintext: &[u8; PLAINTEXT_LEN]) -> Option<Probe> {
    let (&[kind, _flags], rest) = plaintext.split_first_chunk::<2>()?;
    let (&epoch, rest) = rest.split_first_chunk::<8>()?;
    let epoch = u64::from_be_bytes(epoch);
    match kind {
        kind::PING => Some(Probe::Ping),
        kind::PONG => {
            let (&port, ip) = rest.split_first_chunk::<2>()?;
            let ip: [u8; 16] = ip.try_into().ok()?;
            let ip = Ipv6Addr::from(ip).to_canonical();
            Some(Probe::Pong { observed: SocketAddr::new(ip, u16::from_be_bytes(port)) })
        }
        kind::NOMINATE => Some(Probe::Nominate { epoch }),
        kind::NOMINATE_ACK => Some(Probe::NominateAck { epoch }),
        _ => None,
    }
}

/// One form for both families: IPv4 inside IPv6 (RFC 4291, section 2.5.5.2).
pub(super) fn mapped(ip: IpAddr) -> Ipv6Addr {
    match ip {
        IpAddr::V4(ip) => ip.to_ipv6_mapped(),
        IpAddr::V6(ip) => ip,
    }
}
