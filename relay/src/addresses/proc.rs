//! Reading `/proc/net`: routes and IPv6 addresses. Lines that do not parse are passed over.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv6Addr};

/// Flags of an IPv6 address that make it a bad one to publish: temporary (privacy), duplicate, deprecated, tentative.
const UNFIT: u32 = 0x01 | 0x08 | 0x20 | 0x40;

/// The scope of global and unique local addresses in `/proc/net/if_inet6`.
const GLOBAL_SCOPE: u32 = 0;

/// Flag of a route that refuses: the kernel keeps a default one of that sort on `lo` where IPv6 has no other.
const ROUTE_REJECT: u32 = 0x0200;

/// Devices with an IPv4 default route, from `/proc/net/route`: device, destination, .., mask in the eighth column.
pub(super) fn default_devices_v4(text: &str) -> BTreeSet<String> {
    let device = |line: &str| {
        let columns: Vec<&str> = line.split_whitespace().collect();
        let is_default = columns.get(1)? == &"00000000" && columns.get(7)? == &"00000000";
        is_default.then(|| columns[0].to_owned())
    };
    text.lines().filter_map(device).collect()
}

/// Devices with an IPv6 default route, from `/proc/net/ipv6_route`: destination, length, .., flags, device.
pub(super) fn default_devices_v6(text: &str) -> BTreeSet<String> {
    let device = |line: &str| {
        let columns: Vec<&str> = line.split_whitespace().collect();
        let &[destination, length, _, _, _, _, _, _, flags, device] = columns.as_slice() else {
            return None;
        };
        let is_default = length == "00" && destination.bytes().all(|digit| digit == b'0');
        let rejects = u32::from_str_radix(flags, 16).ok()? & ROUTE_REJECT != 0;
        (is_default && !rejects).then(|| device.to_owned())
    };
    text.lines().filter_map(device).collect()
}

/// Stable addresses of these devices, from `/proc/net/if_inet6`: address, index, length, scope, flags, device.
pub(super) fn addresses_v6(text: &str, devices: &BTreeSet<String>) -> Vec<IpAddr> {
    let address = |line: &str| {
        let columns: Vec<&str> = line.split_whitespace().collect();
        let &[address, _, _, scope, flags, device] = columns.as_slice() else {
            return None;
        };
        let [scope, flags] = [scope, flags].map(|hex| u32::from_str_radix(hex, 16));
        let fit = scope.ok()? == GLOBAL_SCOPE && flags.ok()? & UNFIT == 0 && devices.contains(device);
        let ip = Ipv6Addr::from(u128::from_str_radix(address, 16).ok()?);
        fit.then_some(IpAddr::V6(ip))
    };
    text.lines().filter_map(address).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn devices(names: &[&str]) -> BTreeSet<String> {
        names.iter().map(|&name| name.to_owned()).collect()
    }

    #[test]
    fn ipv4_default_routes() {
        let text = "Iface\tDestination\tGateway \tFlags\tRefCnt\tUse\tMetric\tMask\t\tMTU\tWindow\tIRTT\n\
            eth0\t00000000\t010200C0\t0003\t0\t0\t100\t00000000\t0\t0\t0\n\
            eth0\t000200C0\t00000000\t0001\t0\t0\t100\t00FFFFFF\t0\t0\t0\n\
            wwan0\t00000000\t010AA8C0\t0003\t0\t0\t600\t00000000\t0\t0\t0\n\
            cni0\t00F42A0A\t00000000\t0001\t0\t0\t0\t00FFFFFF\t0\t0\t0\n\
            tun0\t00000000\t00000000\t0001\t0\t0\t0\t00000080\t0\t0\t0\n";
        assert_eq!(default_devices_v4(text), devices(&["eth0", "wwan0"]));
        assert_eq!(default_devices_v4("garbage\n\n\tx"), devices(&[]));
    }

    #[test]
    fn ipv6_default_routes() {
        let zero = "0".repeat(32);
        let text = format!(
            "{zero} 00 {zero} 00 fe800000000000000000000000000001 00000400 00000001 00000000 00450003     eth0\n\
             20010db8000000000000000000000000 40 {zero} 00 {zero} 00000100 00000001 00000000 00000001     eth1\n\
             {zero} 00 {zero} 00 {zero} ffffffff 00000001 00000000 00200200       lo\n"
        );
        assert_eq!(default_devices_v6(&text), devices(&["eth0"]));
    }

    #[test]
    fn ipv6_addresses_that_stay() {
        let text = "20010db8000000000000000000000007 02 40 00 80     eth0\n\
            20010db8000000000123456789abcdef 02 40 00 01     eth0\n\
            20010db8000000000000000000000008 02 40 00 a0     eth0\n\
            20010db8000000000000000000000009 02 40 00 c0     eth0\n\
            fe80000000000000000000000000000a 02 40 20 80     eth0\n\
            fd00000000000000000000000000000b 03 40 00 80     eth1\n\
            00000000000000000000000000000001 01 80 10 80       lo\n\
            nonsense\n";
        let expected: IpAddr = "2001:db8::7".parse().unwrap();
        assert_eq!(addresses_v6(text, &devices(&["eth0"])), [expected]);
    }
}
