//! What the relay finds on the host it runs on, whatever that is.

#![allow(clippy::unwrap_used)]

use std::net::IpAddr;

#[test]
fn no_address_that_others_could_not_send_to() {
    let found = relay::addresses::of_host().unwrap();
    println!("{found:?}");
    for ip in found {
        let link_local = match ip {
            IpAddr::V4(ip) => ip.is_link_local(),
            IpAddr::V6(ip) => ip.is_unicast_link_local(),
        };
        assert!(!ip.is_loopback() && !ip.is_unspecified() && !ip.is_multicast() && !link_local, "{ip}");
    }
}
