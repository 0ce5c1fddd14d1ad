//! What an address in an object tells.

use std::net::IpAddr;

/// Whether others anywhere on the internet could send to it, as far as an address can tell: it is from no range that is private, a
/// carrier's, of one link, of one host, or nobody's (RFC 1918, 6598, 3927, 1122; RFC 4193, 4291).
#[must_use]
pub fn is_public(ip: IpAddr) -> bool {
    match ip.to_canonical() {
        IpAddr::V4(ip) => {
            let carrier = ip.octets()[0] == 100 && ip.octets()[1] & 0xc0 == 64;
            !(ip.is_private() || carrier || ip.is_link_local() || ip.is_loopback() || ip.is_unspecified())
        }
        IpAddr::V6(ip) => {
            !(ip.is_unique_local() || ip.is_unicast_link_local() || ip.is_loopback() || ip.is_unspecified())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_private_to_somebody_is_not_public() {
        let public = |text: &&str| is_public(text.parse().unwrap());
        let private = [
            "10.0.0.7",
            "172.31.0.1",
            "192.168.0.1",
            "100.64.0.1",
            "100.127.255.254",
            "169.254.0.1",
            "127.0.0.1",
            "0.0.0.0",
            "fd00::7",
            "fe80::1",
            "::1",
            "::",
            "::ffff:10.0.0.7",
        ];
        assert_eq!(private.iter().find(|ip| public(ip)), None);
        let others = ["203.0.113.7", "172.32.0.1", "100.63.0.1", "100.128.0.1", "2001:db8::7", "::ffff:203.0.113.7"];
        assert_eq!(others.iter().find(|ip| !public(ip)), None);
    }
}
