//! The prefix map against a list.
#![allow(missing_docs, clippy::unwrap_used)]

mod world;

use std::collections::BTreeSet;
use std::net::{Ipv4Addr, Ipv6Addr};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use proptest::collection::vec;
use proptest::prelude::*;
use topology::prefix::{PrefixMap, overlap};

/// Prefixes crowded enough to nest.
fn prefixes() -> impl Strategy<Value = IpNet> {
    let v4 = (0..4u32, any::<u8>(), 0..=32u8).prop_map(|(high, low, len)| {
        IpNet::V4(Ipv4Net::new(Ipv4Addr::from(high << 30 | u32::from(low)), len).unwrap())
    });
    let v6 = (0..4u128, any::<u8>(), 0..=128u8).prop_map(|(high, low, len)| {
        IpNet::V6(Ipv6Net::new(Ipv6Addr::from(high << 126 | u128::from(low)), len).unwrap())
    });
    prop_oneof![v4, v6].prop_map(|net| net.trunc())
}

proptest! {
    #![proptest_config(world::config(400))]

    #[test]
    fn it_finds_exactly_the_overlapping_prefixes(known in vec(prefixes(), 0..30), wanted in prefixes()) {
        let mut map = PrefixMap::default();
        for net in &known {
            map.insert(*net, *net);
        }
        let found: Vec<IpNet> = map.overlapping(wanted).map(|(net, _)| net).collect();
        let distinct: BTreeSet<IpNet> = found.iter().copied().collect();
        prop_assert_eq!(found.len(), distinct.len());
        prop_assert_eq!(distinct, known.into_iter().filter(|net| overlap(*net, wanted)).collect::<BTreeSet<_>>());
    }
}
