//! Sources that no leg may have.

use std::net::{IpAddr, SocketAddr};

use ipnet::IpNet;

/// The address as the internet writes it: IPv4 when a socket for both families shows it inside IPv6, and without flow and scope.
pub(super) fn canonical(source: SocketAddr) -> SocketAddr {
    SocketAddr::new(source.ip().to_canonical(), source.port())
}

/// Whether data may go to this address once it has answered a challenge. The relay's own addresses, and those that reach itself,
/// many or nobody, may not: whatever listens on this host would hear from the relay instead of from a stranger.
#[must_use]
pub fn is_admissible(source: SocketAddr, own: &[IpAddr], denied: &[IpNet]) -> bool {
    let ip = source.ip();
    let special = match ip {
        IpAddr::V4(ip) => {
            let [first, ..] = ip.octets();
            // This network, loopback, link-local, multicast and everything above it (RFC 6890, RFC 5771, RFC 1112).
            first == 0 || ip.is_loopback() || ip.is_link_local() || first >= 224
        }
        IpAddr::V6(ip) => ip.is_unspecified() || ip.is_loopback() || ip.is_unicast_link_local() || ip.is_multicast(),
    };
    !special && source.port() != 0 && !own.contains(&ip) && !denied.iter().any(|net| net.contains(&ip))
}
