//! The attributes of WireGuard's generic netlink family (`linux/wireguard.h`), and how a peer is written in them.
//!
//! nlink has a driver for this family too. It names interfaces, so that a change could hit another interface of that
//! name; it merges the parts of a dump by searching all peers for each one; and it splits a peer of more than 800
//! prefixes over two messages. So its messages and sockets are used, and the dozen attributes are written here.

use std::net::{IpAddr, SocketAddr};

use ipnet::IpNet;
use nlink::netlink::MessageBuilder;
use wire::key::PublicKey;

pub(super) const FAMILY: &str = "wireguard";
pub(super) const VERSION: u8 = 1;

pub(super) mod command {
    pub(in crate::kernel) const GET_DEVICE: u8 = 0;
    pub(in crate::kernel) const SET_DEVICE: u8 = 1;
}

pub(super) mod device {
    pub(in crate::kernel) const IF_INDEX: u16 = 1;
    pub(in crate::kernel) const PRIVATE_KEY: u16 = 3;
    pub(in crate::kernel) const PUBLIC_KEY: u16 = 4;
    pub(in crate::kernel) const LISTEN_PORT: u16 = 6;
    pub(in crate::kernel) const FWMARK: u16 = 7;
    pub(in crate::kernel) const PEERS: u16 = 8;
}

pub(super) mod peer {
    pub(in crate::kernel) const PUBLIC_KEY: u16 = 1;
    pub(in crate::kernel) const FLAGS: u16 = 3;
    pub(in crate::kernel) const ENDPOINT: u16 = 4;
    pub(in crate::kernel) const KEEPALIVE: u16 = 5;
    pub(in crate::kernel) const LAST_HANDSHAKE: u16 = 6;
    pub(in crate::kernel) const RX_BYTES: u16 = 7;
    pub(in crate::kernel) const TX_BYTES: u16 = 8;
    pub(in crate::kernel) const ALLOWED_IPS: u16 = 9;
}

pub(super) mod allowed_ip {
    pub(in crate::kernel) const FAMILY: u16 = 1;
    pub(in crate::kernel) const ADDRESS: u16 = 2;
    pub(in crate::kernel) const LENGTH: u16 = 3;
}

const NESTED: u16 = libc::NLA_F_NESTED as u16;

/// Flags of a peer: what to do with it.
mod flag {
    pub(super) const REMOVE: u32 = 1 << 0;
    pub(super) const REPLACE_ALLOWED_IPS: u32 = 1 << 1;
    pub(super) const UPDATE_ONLY: u32 = 1 << 2;
}

/// One entry of a message: what to do with one peer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Entry {
    pub(super) key: PublicKey,
    pub(super) action: Action,
}

/// `None` leaves that part as it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Action {
    Remove,
    /// Adds the peer. What a stranger may have given one of this key meanwhile is overwritten.
    Add {
        endpoint: Option<SocketAddr>,
        allowed_ips: Vec<IpNet>,
        keepalive: u16,
    },
    /// Changes the peer if it is there.
    Change {
        endpoint: Option<SocketAddr>,
        allowed_ips: Option<Vec<IpNet>>,
        keepalive: Option<u16>,
    },
}

impl Entry {
    /// Appends the entry to the nest of peers of a message.
    pub(super) fn write(&self, message: &mut MessageBuilder, place: u16) {
        let nest = message.nest_start(place | NESTED);
        message.append_attr(peer::PUBLIC_KEY, self.key.as_bytes());
        let (flags, endpoint, allowed_ips, keepalive) = match &self.action {
            Action::Remove => (flag::REMOVE, None, None, None),
            Action::Add { endpoint, allowed_ips, keepalive } => {
                (flag::REPLACE_ALLOWED_IPS, *endpoint, Some(allowed_ips), Some(*keepalive))
            }
            Action::Change { endpoint, allowed_ips, keepalive } => {
                let replace = if allowed_ips.is_some() { flag::REPLACE_ALLOWED_IPS } else { 0 };
                (flag::UPDATE_ONLY | replace, *endpoint, allowed_ips.as_ref(), *keepalive)
            }
        };
        message.append_attr_u32(peer::FLAGS, flags);
        if let Some(endpoint) = endpoint {
            message.append_attr(peer::ENDPOINT, &socket_address(endpoint));
        }
        if let Some(keepalive) = keepalive {
            message.append_attr_u16(peer::KEEPALIVE, keepalive);
        }
        if let Some(allowed_ips) = allowed_ips.filter(|nets| !nets.is_empty()) {
            let list = message.nest_start(peer::ALLOWED_IPS | NESTED);
            for net in allowed_ips {
                write_allowed_ip(message, *net);
            }
            message.nest_end(list);
        }
        message.nest_end(nest);
    }

    /// Bytes it takes, at most.
    pub(super) fn size(&self) -> usize {
        /// Key, flags, endpoint, keepalive and the headers of two nests.
        const FIXED: usize = 36 + 8 + 32 + 8 + 8;
        /// Nest, family, IPv6 address, length.
        const ALLOWED_IP: usize = 4 + 8 + 20 + 8;
        let allowed_ips = match &self.action {
            Action::Remove => 0,
            Action::Add { allowed_ips, .. } => allowed_ips.len(),
            Action::Change { allowed_ips, .. } => allowed_ips.as_ref().map_or(0, Vec::len),
        };
        FIXED + allowed_ips * ALLOWED_IP
    }
}

/// Appends a nest of peers.
pub(super) fn write_peers(message: &mut MessageBuilder, entries: &[Entry]) {
    let nest = message.nest_start(device::PEERS | NESTED);
    for (place, entry) in (0..).zip(entries) {
        entry.write(message, place);
    }
    message.nest_end(nest);
}

fn write_allowed_ip(message: &mut MessageBuilder, net: IpNet) {
    let nest = message.nest_start(NESTED);
    match net.addr() {
        IpAddr::V4(v4) => {
            message.append_attr_u16(allowed_ip::FAMILY, libc::AF_INET as u16);
            message.append_attr(allowed_ip::ADDRESS, &v4.octets());
        }
        IpAddr::V6(v6) => {
            message.append_attr_u16(allowed_ip::FAMILY, libc::AF_INET6 as u16);
            message.append_attr(allowed_ip::ADDRESS, &v6.octets());
        }
    }
    message.append_attr_u8(allowed_ip::LENGTH, net.prefix_len());
    message.nest_end(nest);
}

/// `sockaddr_in` or `sockaddr_in6`.
fn socket_address(address: SocketAddr) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(28);
    match address {
        SocketAddr::V4(v4) => {
            bytes.extend((libc::AF_INET as u16).to_ne_bytes());
            bytes.extend(v4.port().to_be_bytes());
            bytes.extend(v4.ip().octets());
            bytes.extend([0; 8]);
        }
        SocketAddr::V6(v6) => {
            bytes.extend((libc::AF_INET6 as u16).to_ne_bytes());
            bytes.extend(v6.port().to_be_bytes());
            bytes.extend(v6.flowinfo().to_ne_bytes());
            bytes.extend(v6.ip().octets());
            bytes.extend(v6.scope_id().to_ne_bytes());
        }
    }
    bytes
}
