//! What a site's router does, as nftables rulesets. Interfaces are always `lan` and `wan`.

use std::fmt::Write;
use std::net::Ipv4Addr;

use crate::scenario::{API_PORT, HTTPS_PORT, LISTEN_PORTS, Site};

/// What every home router and firewall does: nothing unasked comes in, to itself or through it. A NAT without it can be
/// poisoned: a stranger's packet that arrives first takes the mapping's tuple.
const FW: &str = r#"
table inet fw {
  chain input {
    type filter hook input priority 0; policy accept;
    iifname "wan" ct state established,related accept
    iifname "wan" icmpv6 type { nd-neighbor-solicit, nd-neighbor-advert } accept
    iifname "wan" drop
  }
  chain forward {
    type filter hook forward priority 0; policy accept;
    iifname "wan" ct state established,related accept
    iifname "wan" drop
  }
}
"#;

/// The one line that every guide to a Linux router has, and nothing that drops strays.
const PLAIN: &str = r#"
table ip nat {
  chain pre {
    type nat hook prerouting priority dstnat;
  }
  chain post {
    type nat hook postrouting priority srcnat;
    oifname "wan" masquerade
  }
}
"#;

/// The ruleset of the router before a node of that inner address, in a lab whose API server has that one.
#[must_use]
pub fn ruleset(site: &Site, inner: Ipv4Addr, api: Ipv4Addr) -> String {
    match site {
        Site::Public => String::new(),
        Site::Home { wan, shift, .. } => home(wan.addr(), *shift),
        Site::Hard { wan, .. } => hard(wan.addr()),
        Site::Plain { .. } => PLAIN.to_owned(),
        Site::OnlyTls { wan, .. } => only_tls(wan.addr(), api),
        Site::Firewall { .. } => FW.to_owned(),
        Site::OneToOne { wan, .. } => one_to_one(wan.addr(), inner),
    }
}

/// Endpoint-independent mapping, address- and port-dependent filtering. WireGuard's ports move by a fixed distance, all
/// other UDP to a range of its own, so the mapped port never equals the listen port. The kernel keeps an inner port's mapping
/// for every destination while one lives, which is what makes the range endpoint-independent.
/// The empty prerouting chain must exist, or replies of some mappings are not translated back.
fn home(wan: Ipv4Addr, shift: u16) -> String {
    let (low, high) = (LISTEN_PORTS.start(), LISTEN_PORTS.end());
    let map = LISTEN_PORTS.fold(String::new(), |mut map, port| {
        let comma = if map.is_empty() { "" } else { ", " };
        let _ = write!(map, "{comma}{port} : {}", port.wrapping_add(shift));
        map
    });
    format!(
        r#"
table ip nat {{
  chain pre {{
    type nat hook prerouting priority dstnat;
  }}
  chain post {{
    type nat hook postrouting priority srcnat;
    oifname "wan" udp sport {low}-{high} snat to {wan} : udp sport map {{ {map} }}
    oifname "wan" meta l4proto udp snat to {wan} : 40000-49999
    oifname "wan" snat to {wan}
  }}
}}
{FW}"#
    )
}

/// Address- and port-dependent mapping with ports drawn at random, address- and port-dependent filtering. `fully-random` alone draws
/// once for each connection, which is what makes the mapping another one for each destination.
fn hard(wan: Ipv4Addr) -> String {
    format!(
        r#"
table ip nat {{
  chain pre {{
    type nat hook prerouting priority dstnat;
  }}
  chain post {{
    type nat hook postrouting priority srcnat;
    oifname "wan" meta l4proto {{ tcp, udp }} snat to {wan} : 32768-60999 fully-random
    oifname "wan" snat to {wan}
  }}
}}
{FW}"#
    )
}

/// TCP to port 443 gets out, and what answers it in. Everything else disappears without a word, as it does in such networks.
fn only_tls(wan: Ipv4Addr, api: Ipv4Addr) -> String {
    format!(
        r#"
table ip nat {{
  chain pre {{
    type nat hook prerouting priority dstnat;
    iifname "lan" ip daddr {api} tcp dport {API_PORT} dnat to {api}:{HTTPS_PORT}
  }}
  chain post {{
    type nat hook postrouting priority srcnat;
    oifname "wan" snat to {wan}
  }}
}}
table inet border {{
  chain forward {{
    type filter hook forward priority -1; policy drop;
    iifname "lan" tcp dport {HTTPS_PORT} accept
    iifname "wan" ct state established,related accept
  }}
}}
{FW}"#
    )
}

/// What the control plane's node does so that its API server is reached on port 443, before its agent leads that to a relay. Relays of
/// other nodes are by their agents.
#[must_use]
pub fn api_front() -> String {
    format!(
        r#"
table ip front {{
  chain pre {{
    type nat hook prerouting priority dstnat - 1;
    fib daddr type local tcp dport {HTTPS_PORT} redirect to :{API_PORT}
  }}
}}
"#
    )
}

/// What clouds do: the instance has a private address, the world sees another, ports stay, everything comes in.
fn one_to_one(wan: Ipv4Addr, inner: Ipv4Addr) -> String {
    format!(
        r#"
table ip nat {{
  chain pre {{
    type nat hook prerouting priority dstnat;
    ip daddr {wan} dnat to {inner}
  }}
  chain post {{
    type nat hook postrouting priority srcnat;
    oifname "wan" ip saddr {inner} snat to {wan}
    oifname "lan" ip saddr {inner} snat to {wan}
  }}
}}
"#
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scenario::Scenario;

    #[test]
    fn every_site_that_filters_has_the_firewall() {
        for node in Scenario::demo("t").nodes.iter().filter(|node| node.has_router()) {
            let rules = ruleset(&node.site, node.v4.addr(), Ipv4Addr::new(203, 0, 113, 10));
            let filters = !matches!(node.site, Site::Plain { .. });
            assert_eq!(rules.contains("iifname \"wan\" drop"), filters, "{}: {rules}", node.name);
        }
    }

    #[test]
    fn a_border_that_lets_https_out_lets_nothing_else_out() {
        let rules = only_tls(Ipv4Addr::new(198, 51, 100, 110), Ipv4Addr::new(203, 0, 113, 10));
        assert!(rules.contains("priority -1; policy drop;"), "{rules}");
        assert_eq!(rules.matches(" accept\n").count() - FW.matches(" accept\n").count(), 2, "{rules}");
    }

    #[test]
    fn a_home_moves_every_listen_port_by_the_same_distance() {
        let rules = home(Ipv4Addr::new(198, 51, 100, 10), 10_000);
        assert!(rules.contains("{ 21820 : 31820, 21821 : 31821,") && rules.contains("22843 : 32843 }"));
    }
}
