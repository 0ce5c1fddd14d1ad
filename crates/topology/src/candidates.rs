//! The candidate filter: what a node says about its own reachability, minus what nobody should send packets to.
//!
//! A candidate is only a place to send an authenticated probe to, so a wrong one wins no traffic. It may still point
//! probes at somebody else (multicast, a metadata service, the peer's own loopback) or into the mesh, where an outer
//! packet must never go.

use std::collections::BTreeSet;
use std::net::IpAddr;

use ipnet::IpNet;

use crate::mesh::MeshConfig;
use crate::peer::{Candidate, MAX_CANDIDATES};
use crate::prefix;

/// Cloud metadata and platform services outside the link-local range: AWS (IPv6), Alibaba, Azure, Oracle.
const METADATA: [IpAddr; 4] = [
    IpAddr::V6(std::net::Ipv6Addr::new(0xfd00, 0xec2, 0, 0, 0, 0, 0, 0x254)),
    IpAddr::V4(std::net::Ipv4Addr::new(100, 100, 100, 200)),
    IpAddr::V4(std::net::Ipv4Addr::new(168, 63, 129, 16)),
    IpAddr::V4(std::net::Ipv4Addr::new(192, 0, 0, 192)),
];

/// Why a candidate is dropped.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Dropped {
    /// Port 0.
    NoPort,
    /// Unspecified, loopback, link-local, multicast, reserved or IPv4-mapped.
    NotUnicast,
    /// A metadata service.
    Metadata,
    /// Inside the mesh range.
    Mesh,
    /// Inside a Service range.
    Service,
    /// Inside a pod range.
    Pod,
    /// There are enough without it.
    TooMany,
}

impl Dropped {
    /// The reason in words.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::NoPort => "port 0",
            Self::NotUnicast => "not a unicast address",
            Self::Metadata => "a metadata service",
            Self::Mesh => "inside the mesh",
            Self::Service => "inside a Service range",
            Self::Pod => "inside a pod range",
            Self::TooMany => "more than 16",
        }
    }
}

/// Sorts, deduplicates and filters. `in_pod_cidr` knows every pod range of the mesh.
pub fn sanitise(
    mesh: &MeshConfig,
    in_pod_cidr: impl Fn(IpAddr) -> bool,
    candidates: &[Candidate],
) -> (Vec<Candidate>, Vec<(Candidate, Dropped)>) {
    let mut kept: Vec<Candidate> = Vec::new();
    let mut dropped = Vec::new();
    let mut known = BTreeSet::new();
    let sorted: BTreeSet<Candidate> = candidates.iter().copied().collect();
    for candidate in sorted {
        let why = forbidden(mesh, &in_pod_cidr, &candidate)
            .or_else(|| (kept.len() >= MAX_CANDIDATES).then_some(Dropped::TooMany));
        match why {
            Some(why) => dropped.push((candidate, why)),
            // The same address under a second kind adds nothing to try.
            None if known.insert(candidate.addr) => kept.push(candidate),
            None => {}
        }
    }
    (kept, dropped)
}

/// Why the candidate may not be used, if so.
pub fn forbidden(mesh: &MeshConfig, in_pod_cidr: impl Fn(IpAddr) -> bool, candidate: &Candidate) -> Option<Dropped> {
    let addr = candidate.addr.ip();
    let holds = |nets: &[IpNet]| nets.iter().any(|net| net.contains(&addr));
    if candidate.addr.port() == 0 {
        Some(Dropped::NoPort)
    } else if !prefix::is_carriable(prefix::host(addr)) {
        Some(Dropped::NotUnicast)
    } else if METADATA.contains(&addr) {
        Some(Dropped::Metadata)
    } else if holds(&mesh.ranges()) {
        Some(Dropped::Mesh)
    } else if holds(&mesh.service_cidrs) {
        Some(Dropped::Service)
    } else if in_pod_cidr(addr) {
        Some(Dropped::Pod)
    } else {
        None
    }
}
