//! Prefixes as disjoint, non-touching address ranges, the form nftables keeps them in.

use std::net::IpAddr;

use ipnet::IpNet;

/// The least set of inclusive ranges of one family that covers `nets`, in order. No two of them overlap or touch, which the
/// kernel would refuse or read back merged.
pub(super) fn ranges<'a>(nets: impl IntoIterator<Item = &'a IpNet>, v6: bool) -> Vec<(IpAddr, IpAddr)> {
    let mut spans: Vec<(u128, u128)> =
        nets.into_iter().filter(|n| is_v6(n) == v6).map(|n| (number(n.network()), number(n.broadcast()))).collect();
    spans.sort_unstable();
    let mut merged: Vec<(u128, u128)> = Vec::with_capacity(spans.len());
    for (first, last) in spans {
        match merged.last_mut() {
            Some(previous) if first <= previous.1.saturating_add(1) => previous.1 = previous.1.max(last),
            _ => merged.push((first, last)),
        }
    }
    merged.into_iter().map(|(first, last)| (address(first, v6), address(last, v6))).collect()
}

pub(super) fn is_v6(net: &IpNet) -> bool {
    matches!(net, IpNet::V6(_))
}

fn number(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(a) => u32::from(a).into(),
        IpAddr::V6(a) => a.into(),
    }
}

fn address(number: u128, v6: bool) -> IpAddr {
    if v6 { IpAddr::V6(number.into()) } else { IpAddr::V4((number as u32).into()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(nets: &[&str], v6: bool) -> Vec<String> {
        let nets: Vec<IpNet> = nets.iter().map(|n| n.parse().unwrap()).collect();
        ranges(&nets, v6).into_iter().map(|(a, b)| format!("{a}-{b}")).collect()
    }

    #[test]
    fn nested_and_touching_prefixes_become_one_range() {
        assert_eq!(of(&["10.1.0.0/24", "10.0.0.0/16", "10.0.3.0/24", "fd00::/64"], false), ["10.0.0.0-10.1.0.255"]);
        assert_eq!(of(&["10.0.0.0/24", "10.0.2.0/24"], false), ["10.0.0.0-10.0.0.255", "10.0.2.0-10.0.2.255"]);
        assert_eq!(of(&["::/0", "fd00::/64"], true), ["::-ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff"]);
    }
}
