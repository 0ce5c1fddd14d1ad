//! What the kernel says of the device and its peers.

use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV4, SocketAddrV6},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use ipnet::IpNet;
use nlink::netlink::AttrIter;
use wire::key::PublicKey;

use super::message::{allowed_ip, device, peer};
use crate::{PeerCounters, PeerStatus};

/// Bytes of the generic header before the attributes.
const GENERIC_HEADER: usize = 4;

/// The device as the kernel has it.
#[derive(Debug, Default)]
pub(super) struct Dump {
    /// `None` when it has no key.
    pub(super) public_key: Option<PublicKey>,
    pub(super) listen_port: u16,
    pub(super) fwmark: u32,
    pub(super) peers: BTreeMap<PublicKey, PeerStatus>,
}

impl Dump {
    /// Reads the messages of one dump. A device with many peers takes several, and a peer with many allowed IPs goes on
    /// in the next one: its key comes again, with the rest of the list and nothing else.
    pub(super) fn parse(messages: &[Vec<u8>]) -> Self {
        let now = SystemTime::now();
        let mut peers = BTreeMap::new();
        let mut dump = Self::device(messages, |attributes| add(&mut peers, attributes, now));
        for status in peers.values_mut() {
            status.allowed_ips.sort_unstable();
        }
        dump.peers = peers;
        dump
    }

    /// The device without its peers, and their counters alone, in the kernel's order: of many peers, that is cheaper.
    pub(super) fn counters(messages: &[Vec<u8>]) -> (Self, Vec<PeerCounters>) {
        let now = SystemTime::now();
        let mut all: Vec<PeerCounters> = Vec::new();
        let dump = Self::device(messages, |attributes| {
            let more = counters(attributes, now);
            // The rest of a list that went on: its peer is the last one.
            all.extend(more.filter(|more| all.last().is_none_or(|last| last.public_key != more.public_key)));
        });
        (dump, all)
    }

    fn device(messages: &[Vec<u8>], mut peer: impl FnMut(&[u8])) -> Self {
        let mut dump = Self::default();
        for message in messages {
            let attributes = message.get(GENERIC_HEADER..).unwrap_or_default();
            for (kind, value) in AttrIter::new(attributes) {
                match kind {
                    device::PUBLIC_KEY => dump.public_key = key(value).filter(|k| *k.as_bytes() != [0; 32]),
                    device::LISTEN_PORT => dump.listen_port = u16::from_ne_bytes(fixed(value).unwrap_or_default()),
                    device::FWMARK => dump.fwmark = u32::from_ne_bytes(fixed(value).unwrap_or_default()),
                    device::PEERS => AttrIter::new(value).for_each(|(_, value)| peer(value)),
                    _ => {}
                }
            }
        }
        dump
    }
}

fn add(peers: &mut BTreeMap<PublicKey, PeerStatus>, attributes: &[u8], now: SystemTime) {
    let Some(public_key) = key_of(attributes) else {
        return;
    };
    let status = peers.entry(public_key).or_insert_with(|| empty(public_key));
    for (kind, value) in AttrIter::new(attributes) {
        match kind {
            peer::ENDPOINT => status.endpoint = endpoint(value),
            peer::KEEPALIVE => status.keepalive = keepalive(value),
            peer::LAST_HANDSHAKE => status.last_handshake = age(value, now),
            peer::RX_BYTES => status.rx_bytes = u64::from_ne_bytes(fixed(value).unwrap_or_default()),
            peer::TX_BYTES => status.tx_bytes = u64::from_ne_bytes(fixed(value).unwrap_or_default()),
            peer::ALLOWED_IPS => status.allowed_ips.extend(AttrIter::new(value).filter_map(|(_, v)| net(v))),
            _ => {}
        }
    }
}

fn key_of(attributes: &[u8]) -> Option<PublicKey> {
    let known = AttrIter::new(attributes).find(|(kind, _)| *kind == peer::PUBLIC_KEY);
    known.and_then(|(_, value)| key(value))
}

fn counters(attributes: &[u8], now: SystemTime) -> Option<PeerCounters> {
    let mut of = empty(key_of(attributes)?).counters();
    for (kind, value) in AttrIter::new(attributes) {
        match kind {
            peer::ENDPOINT => of.endpoint = endpoint(value),
            peer::LAST_HANDSHAKE => of.last_handshake = age(value, now),
            peer::RX_BYTES => of.rx_bytes = u64::from_ne_bytes(fixed(value).unwrap_or_default()),
            peer::TX_BYTES => of.tx_bytes = u64::from_ne_bytes(fixed(value).unwrap_or_default()),
            _ => {}
        }
    }
    Some(of)
}

fn empty(public_key: PublicKey) -> PeerStatus {
    PeerStatus {
        public_key,
        endpoint: None,
        allowed_ips: Vec::new(),
        keepalive: None,
        rx_bytes: 0,
        tx_bytes: 0,
        last_handshake: None,
    }
}

fn fixed<const N: usize>(value: &[u8]) -> Option<[u8; N]> {
    value.first_chunk().copied()
}

fn key(value: &[u8]) -> Option<PublicKey> {
    fixed(value).map(PublicKey::from_bytes)
}

fn keepalive(value: &[u8]) -> Option<Duration> {
    let secs = u16::from_ne_bytes(fixed(value)?);
    (secs > 0).then(|| Duration::from_secs(secs.into()))
}

/// Time since a `timespec`. The epoch means that it never happened; a clock that was set back makes it now.
fn age(value: &[u8], now: SystemTime) -> Option<Duration> {
    let secs = i64::from_ne_bytes(fixed(value)?);
    let nanos = i64::from_ne_bytes(fixed(value.get(8..)?)?);
    if (secs, nanos) == (0, 0) {
        return None;
    }
    let since_epoch = Duration::new(u64::try_from(secs).ok()?, u32::try_from(nanos).ok()?);
    let at = UNIX_EPOCH.checked_add(since_epoch)?;
    Some(now.duration_since(at).unwrap_or_default())
}

fn endpoint(value: &[u8]) -> Option<SocketAddr> {
    let family = u16::from_ne_bytes(fixed(value)?);
    let port = u16::from_be_bytes(fixed(value.get(2..)?)?);
    match libc::c_int::from(family) {
        libc::AF_INET => {
            let ip = Ipv4Addr::from(fixed::<4>(value.get(4..)?)?);
            Some(SocketAddrV4::new(ip, port).into())
        }
        libc::AF_INET6 => {
            let ip = Ipv6Addr::from(fixed::<16>(value.get(8..)?)?);
            let scope = u32::from_ne_bytes(fixed(value.get(24..)?)?);
            Some(SocketAddrV6::new(ip, port, 0, scope).into())
        }
        _ => None,
    }
}

fn net(attributes: &[u8]) -> Option<IpNet> {
    let (mut address, mut length) = (None, None);
    for (kind, value) in AttrIter::new(attributes) {
        match kind {
            allowed_ip::ADDRESS => {
                address = match value.len() {
                    4 => fixed::<4>(value).map(IpAddr::from),
                    16 => fixed::<16>(value).map(IpAddr::from),
                    _ => None,
                }
            }
            allowed_ip::LENGTH => length = value.first().copied(),
            _ => {}
        }
    }
    IpNet::new(address?, length?).ok()
}

#[cfg(test)]
mod tests {
    use nlink::netlink::MessageBuilder;

    use super::*;
    use crate::kernel::message::{Action, Entry, write_peers};

    /// A message of a dump, as the kernel lays it out: the requests have the same attributes.
    fn message(own: u8, entries: &[Entry]) -> Vec<u8> {
        let mut builder = MessageBuilder::new(0, 0);
        builder.append_bytes(&[0; GENERIC_HEADER]);
        builder.append_attr(device::PUBLIC_KEY, &[own; 32]);
        builder.append_attr_u16(device::LISTEN_PORT, 21820);
        builder.append_attr_u32(device::FWMARK, 0x10);
        write_peers(&mut builder, entries);
        builder.as_bytes()[nlink::netlink::NLMSG_HDRLEN..].to_vec()
    }

    fn entry(key: u8, endpoint: Option<&str>, nets: &[&str], keepalive: Option<u16>) -> Entry {
        let action = Action::Change {
            endpoint: endpoint.map(|e| e.parse().unwrap()),
            allowed_ips: Some(nets.iter().map(|n| n.parse().unwrap()).collect()),
            keepalive,
        };
        Entry { key: PublicKey::from_bytes([key; 32]), action }
    }

    #[test]
    fn a_peer_that_goes_on_in_the_next_message_is_one_peer() {
        let first = entry(2, Some("192.0.2.2:1"), &["10.0.2.0/24", "fd00::2/128"], Some(25));
        let messages = [
            message(9, &[entry(3, None, &[], Some(0)), first]),
            message(9, &[entry(2, None, &["10.0.1.0/24"], None), entry(1, Some("[fe80::1%7]:5"), &[], None)]),
        ];
        let dump = Dump::parse(&messages);
        assert_eq!(dump.public_key, Some(PublicKey::from_bytes([9; 32])));
        assert_eq!((dump.listen_port, dump.fwmark), (21820, 0x10));
        let peers: Vec<_> = dump.peers.values().cloned().collect();
        assert_eq!(peers.iter().map(|p| p.public_key.as_bytes()[0]).collect::<Vec<_>>(), [1, 2, 3]);
        assert_eq!(peers[0].endpoint, Some("[fe80::1%7]:5".parse().unwrap()));
        assert_eq!(peers[1].endpoint, Some("192.0.2.2:1".parse().unwrap()));
        let nets: Vec<_> = peers[1].allowed_ips.iter().map(ToString::to_string).collect();
        assert_eq!(nets, ["10.0.1.0/24", "10.0.2.0/24", "fd00::2/128"]);
        assert_eq!(peers[1].keepalive, Some(Duration::from_secs(25)));
        assert_eq!(peers[2].keepalive, None);
        let (device, mut counters) = Dump::counters(&messages);
        assert_eq!((device.public_key, device.listen_port, device.fwmark), (dump.public_key, 21820, 0x10));
        counters.sort_by_key(|counters| counters.public_key);
        assert_eq!(counters, peers.iter().map(PeerStatus::counters).collect::<Vec<_>>());
    }

    #[test]
    fn a_device_without_a_key_has_none() {
        assert_eq!(Dump::parse(&[message(0, &[])]).public_key, None);
    }

    #[test]
    fn the_epoch_is_never_and_the_future_is_now() {
        let now = UNIX_EPOCH + Duration::from_secs(1000);
        let at = |secs: i64, nanos: i64| age(&[secs.to_ne_bytes(), nanos.to_ne_bytes()].concat(), now);
        assert_eq!(at(0, 0), None);
        assert_eq!(at(990, 500_000_000), Some(Duration::from_millis(9500)));
        assert_eq!(at(2000, 0), Some(Duration::ZERO));
        assert_eq!(at(-1, 0), None);
        assert_eq!(at(i64::MAX, -1), None);
        assert_eq!(age(&[0; 15], now), None);
    }

    #[test]
    fn what_is_cut_short_is_left_out() {
        let whole = message(9, &[entry(2, Some("192.0.2.2:1"), &["10.0.2.0/24"], Some(25))]);
        for length in 0..whole.len() {
            let dump = Dump::parse(&[whole[..length].to_vec()]);
            assert!(dump.peers.len() <= 1);
        }
    }
}
