//! Which leg a source on a port is.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use wire::relay::Side;

/// A leg, by place of its allocation and side.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct LegRef {
    pub(super) slot: u32,
    pub(super) side: Side,
}

/// Ordered trees rather than hash tables: members choose their sources, and could choose ones that collide.
#[derive(Debug)]
pub(super) struct Table(Vec<BTreeMap<(u128, u16), LegRef>>);

impl Table {
    pub(super) fn new(ports: u16) -> Self {
        Self(vec![BTreeMap::new(); usize::from(ports)])
    }

    pub(super) fn len(&self) -> usize {
        self.0.iter().map(BTreeMap::len).sum()
    }

    pub(super) fn get(&self, port: u16, source: SocketAddr) -> Option<LegRef> {
        self.0.get(usize::from(port))?.get(&key(source)).copied()
    }

    /// Returns whose the source was.
    pub(super) fn insert(&mut self, port: u16, source: SocketAddr, leg: LegRef) -> Option<LegRef> {
        self.0.get_mut(usize::from(port))?.insert(key(source), leg)
    }

    pub(super) fn remove(&mut self, port: u16, source: SocketAddr) {
        if let Some(sources) = self.0.get_mut(usize::from(port)) {
            sources.remove(&key(source));
        }
    }
}

/// One integer for both families compares faster than an enum does.
fn key(source: SocketAddr) -> (u128, u16) {
    let ip = match source {
        SocketAddr::V4(v4) => v4.ip().to_ipv6_mapped(),
        SocketAddr::V6(v6) => *v6.ip(),
    };
    (ip.to_bits(), source.port())
}
