//! From API objects to the types of planning. What does not parse is left out, alone, with a log line: one bad entry must
//! not cost the others their place.

use crds::{Mesh, MeshNode, MeshPeerSlice, PeerEntry, mesh, mesh_node};
use ipnet::IpNet;
use kube::ResourceExt;
use std::{collections::BTreeSet, net::IpAddr};
use topology::{
    mesh::{AdmissionMode, MeshConfig, NodeAddresses, PortRange},
    peer::{Candidate, CandidateKind, Entry, MAX_CANDIDATES, MAX_SLICE_ENTRIES, MAX_TOMBSTONES, Tombstone, Uid},
    spec::{Admission, AdmissionReason, AdmissionState, NodeSpec},
};
use wire::key::PublicKey;

/// Addresses and prefixes of one sort that a node may have; the schema has the same limit.
const MAX_PREFIXES: usize = 16;

/// The port of a node that does not say which it listens on: the first of the default range.
pub const DEFAULT_PORT: u16 = 21820;

/// The settings that planning needs. `None` when the address pool is unreadable, which the schema excludes.
pub fn mesh_config(mesh: &Mesh) -> Option<MeshConfig> {
    let spec = &mesh.spec;
    let ipv4 = spec.addresses.ipv4.parse();
    let ipv4 = ipv4.inspect_err(|_| tracing::error!("the mesh's IPv4 pool can't be read")).ok()?;
    Some(MeshConfig {
        ipv4,
        ipv6: spec.addresses.ipv6.as_deref().and_then(|p| p.parse().ok()),
        node_cidrs: nets(&spec.node_cidrs),
        service_cidrs: nets(&spec.service_cidrs),
        pod_cidrs: nets(&spec.pod_cidrs),
        listen_ports: PortRange { first: spec.listen_ports.first, last: spec.listen_ports.last },
        admission: match spec.admission {
            mesh::Admission::Auto => AdmissionMode::Auto,
            mesh::Admission::Manual => AdmissionMode::Manual,
        },
        node_addresses: match spec.node_addresses {
            mesh::NodeAddresses::Carry => NodeAddresses::Carry,
            mesh::NodeAddresses::Approve => NodeAddresses::Approve,
            mesh::NodeAddresses::None => NodeAddresses::None,
        },
    })
}

/// Our own spec.
pub fn node_spec(node: &MeshNode) -> NodeSpec {
    let spec = &node.spec;
    NodeSpec {
        node_uid: Uid(spec.node_uid.clone()),
        mesh_ips: addresses(&spec.mesh_ips),
        pod_cidrs: nets(&spec.pod_cidrs),
        node_ips: addresses(&spec.node_ips),
        listen_port: spec.listen_port.unwrap_or(DEFAULT_PORT),
        suspended: spec.suspended,
        admission: admission(&spec.admission),
        ..NodeSpec::default()
    }
}

/// The peers of a slice. What cannot be read of one is no news: in its place stands what `known` says of that name, and
/// for a name that is new, what can be read.
pub fn entries(slice: &MeshPeerSlice, known: impl Fn(&str) -> Option<Entry>) -> Vec<Entry> {
    let read = |told: &PeerEntry| if is_whole(told) { entry(told) } else { known(&told.name).or_else(|| entry(told)) };
    slice.spec.entries.iter().take(MAX_SLICE_ENTRIES).filter_map(read).collect()
}

/// The slice with those entries that can be read, and in place of the others those of an older copy.
pub fn whole(slice: &MeshPeerSlice, old: impl FnOnce() -> Option<MeshPeerSlice>) -> MeshPeerSlice {
    let mut whole = slice.clone();
    if whole.spec.entries.iter().all(is_whole) {
        return whole;
    }
    let old = old().map(|slice| slice.spec.entries).unwrap_or_default();
    let read = |told: PeerEntry| {
        if is_whole(&told) { Some(told) } else { old.iter().find(|entry| entry.name == told.name).cloned() }
    };
    whole.spec.entries = whole.spec.entries.into_iter().filter_map(read).collect();
    whole
}

/// Whether everything that WireGuard would be told of a peer can be read. Candidates are hints, each good or bad by itself.
fn is_whole(entry: &PeerEntry) -> bool {
    entry.public_key.parse::<PublicKey>().is_ok()
        && entry.mesh_ips.iter().chain(&entry.node_ips).all(|text| text.parse::<IpAddr>().is_ok())
        && entry.pod_cidrs.iter().all(|text| text.parse::<IpNet>().is_ok())
}

/// The names of a slice's peers, readable or not.
pub fn names(slice: &MeshPeerSlice) -> BTreeSet<String> {
    slice.spec.entries.iter().take(MAX_SLICE_ENTRIES).map(|entry| entry.name.clone()).collect()
}

/// The tombstones of a slice; only `removed` has any.
pub fn tombstones(slice: &MeshPeerSlice) -> Vec<Tombstone> {
    if slice.name_any() != crds::names::REMOVED_SLICE {
        return Vec::new();
    }
    let tombstone = |t: &crds::Tombstone| {
        Some(Tombstone {
            name: t.name.clone(),
            uid: Uid(t.uid.clone()),
            public_key: t.public_key.parse().ok()?,
            generation: t.generation,
        })
    };
    // The newest are last.
    let skip = slice.spec.tombstones.len().saturating_sub(MAX_TOMBSTONES);
    slice.spec.tombstones.iter().skip(skip).filter_map(tombstone).collect()
}

fn entry(entry: &PeerEntry) -> Option<Entry> {
    let Ok(public_key) = entry.public_key.parse::<PublicKey>() else {
        tracing::warn!(peer = entry.name, "a new peer's key can't be read; it is not configured");
        return None;
    };
    Some(Entry {
        name: entry.name.clone(),
        uid: Uid(entry.uid.clone()),
        public_key,
        next_public_key: None,
        mesh_ips: addresses(&entry.mesh_ips),
        pod_cidrs: nets(&entry.pod_cidrs),
        node_ips: addresses(&entry.node_ips),
        routes: Vec::new(),
        listen_port: entry.listen_port.unwrap_or(DEFAULT_PORT),
        location: None,
        classes: Vec::new(),
        candidates: exact(entry.candidates.iter().filter_map(candidate).take(MAX_CANDIDATES)),
        round: entry.round,
        generation: entry.generation,
    })
}

fn admission(admission: &mesh_node::NodeAdmission) -> Admission {
    Admission {
        state: match admission.state {
            mesh_node::AdmissionState::Pending => AdmissionState::Pending,
            mesh_node::AdmissionState::Accepted => AdmissionState::Accepted,
            mesh_node::AdmissionState::Rejected => AdmissionState::Rejected,
        },
        public_key: admission.public_key.as_deref().and_then(|k| k.parse().ok()),
        key_generation: admission.key_generation.into(),
        next_public_key: None,
        reason: admission.reason.as_deref().and_then(AdmissionReason::parse).unwrap_or_default(),
        message: admission.message.clone().unwrap_or_default(),
    }
}

fn candidate(candidate: &mesh_node::Candidate) -> Option<Candidate> {
    let kind = match candidate.kind {
        mesh_node::CandidateKind::Host => CandidateKind::Host,
        mesh_node::CandidateKind::ServerReflexive => CandidateKind::ServerReflexive,
        mesh_node::CandidateKind::PortMapped => CandidateKind::PortMapped,
        mesh_node::CandidateKind::Static => CandidateKind::Static,
    };
    Some(Candidate { kind, addr: candidate.address.parse().ok()? })
}

fn addresses(texts: &[String]) -> Vec<IpAddr> {
    exact(texts.iter().filter_map(|t| t.parse().ok()).take(MAX_PREFIXES))
}

/// The prefixes among `texts`, at most 16.
pub fn nets(texts: &[String]) -> Vec<IpNet> {
    exact(texts.iter().filter_map(|t| t.parse::<IpNet>().ok()).map(|n| n.trunc()).take(MAX_PREFIXES))
}

/// A list without spare places: what is said of thousands of peers stays in memory.
fn exact<T>(items: impl Iterator<Item = T>) -> Vec<T> {
    let mut list: Vec<T> = items.collect();
    list.shrink_to_fit();
    list
}

#[cfg(test)]
mod tests {
    use super::*;
    use crds::{MeshPeerSliceSpec, MeshSpec};

    const KEY: &str = "hSDwCYkwp1R0i33ctD73Wg2/Og0mOBr066SpjqqbTmo=";

    fn peer(name: &str, key: &str) -> PeerEntry {
        PeerEntry { name: name.into(), uid: "u".into(), public_key: key.into(), ..Default::default() }
    }

    #[test]
    fn an_unreadable_entry_is_what_it_was_or_left_out_alone() {
        let entries_in = vec![peer("a", KEY), peer("b", "no key"), peer("c", KEY)];
        let slice = MeshPeerSlice::new("s", MeshPeerSliceSpec { entries: entries_in, ..Default::default() });
        let names: Vec<String> = entries(&slice, |_| None).into_iter().map(|e| e.name).collect();
        assert_eq!(names, ["a", "c"]);
        let known = |name: &str| entry(&PeerEntry { round: 7, ..peer(name, KEY) });
        let rounds: Vec<u32> = entries(&slice, known).into_iter().map(|e| e.round).collect();
        assert_eq!(rounds, [0, 7, 0]);
    }

    #[test]
    fn unreadable_addresses_and_too_many_candidates_are_cut() {
        let mut entry_in = peer("a", KEY);
        entry_in.mesh_ips = vec!["10.118.0.1".into(), "nonsense".into()];
        entry_in.pod_cidrs = vec!["10.244.1.7/24".into()];
        let host = |n| mesh_node::Candidate { address: format!("192.0.2.{n}:1"), kind: mesh_node::CandidateKind::Host };
        entry_in.candidates = (0..40).map(host).collect();
        let converted = entry(&entry_in).unwrap();
        assert_eq!(converted.mesh_ips, ["10.118.0.1".parse::<IpAddr>().unwrap()]);
        assert_eq!(converted.pod_cidrs, ["10.244.1.0/24".parse::<IpNet>().unwrap()]);
        assert_eq!(converted.candidates.len(), MAX_CANDIDATES);
        assert_eq!(converted.listen_port, DEFAULT_PORT);
    }

    #[test]
    fn tombstones_are_read_from_their_slice_only_and_the_newest_are_kept() {
        let stone = |n: usize| crds::Tombstone { name: format!("n{n}"), public_key: KEY.into(), ..Default::default() };
        let spec = MeshPeerSliceSpec { tombstones: (0..300).map(stone).collect(), ..Default::default() };
        assert!(tombstones(&MeshPeerSlice::new("s", spec.clone())).is_empty());
        let read = tombstones(&MeshPeerSlice::new("removed", spec));
        assert_eq!((read.len(), read[255].name.as_str()), (256, "n299"));
    }

    #[test]
    fn an_empty_mesh_has_defaults() {
        let mesh: MeshSpec = serde_json::from_str("{}").unwrap();
        let config = mesh_config(&Mesh::new("default", mesh)).unwrap();
        assert_eq!(config.ipv4.to_string(), "10.118.0.0/16");
        assert!(config.listen_ports.contains(21820));
    }
}
