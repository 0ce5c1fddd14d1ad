//! From stored objects to the view that planning looks at.

use crate::index::{Cluster, MeshNodeValue, Meta, NodeValue, Stored};
use crate::proof::Prover;
use crds::{
    MeshNodeSpec, MeshPeerSliceSpec, PeerEntry,
    mesh_node::{self, CandidateKind},
    names::REMOVED_SLICE,
};
use std::str::FromStr;
use topology::{
    cluster::{
        ClusterView, Condition, ConditionType, MeshNodeFacts, NodeFacts, ProofVerdict, Reason, SliceFacts, StatusFacts,
    },
    mesh::MeshConfig,
    peer::{Candidate, CandidateKind as Kind, Entry, MAX_CANDIDATES, Tombstone, Uid},
    spec::{Admission, AdmissionReason, AdmissionState, NodeSpec},
};
use wire::key::PublicKey;

/// Everything that planning looks at.
pub fn view(cluster: &Cluster, mesh: MeshConfig, prover: &Prover, protected: bool) -> ClusterView {
    let removed = cluster.slices.get(REMOVED_SLICE);
    let slices = cluster.slices.iter().filter(|(name, _)| *name != REMOVED_SLICE);
    ClusterView {
        mesh,
        nodes: nodes(cluster),
        mesh_nodes: mesh_nodes(cluster, prover),
        slices: slices.map(|(name, slice)| slice_facts(name, &slice.value)).collect(),
        tombstones: removed.map(|slice| tombstones(&slice.value)).unwrap_or_default(),
        protected,
    }
}

// A Node that cannot be read is there all the same, with what its MeshNode says.
fn nodes(cluster: &Cluster) -> Vec<NodeFacts> {
    let unreadable = cluster.nodes.unreadable().filter_map(|meta| {
        let written = node_spec(&cluster.mesh_nodes.get(&meta.name)?.value.spec);
        Some(NodeFacts {
            name: meta.name.clone(),
            uid: Uid(meta.uid.clone()),
            created: meta.created,
            pod_cidrs: written.pod_cidrs,
            internal_ips: written.node_ips,
        })
    });
    cluster.nodes.iter().map(|(_, node)| node_facts(node)).chain(unreadable).collect()
}

// A MeshNode that cannot be read is there all the same, with what peers were told of it. It is never written, because there
// is no version to write on.
fn mesh_nodes(cluster: &Cluster, prover: &Prover) -> Vec<MeshNodeFacts> {
    let unreadable = cluster.mesh_nodes.unreadable().map(|meta| frozen(cluster, meta));
    cluster.mesh_nodes.iter().map(|(_, node)| mesh_node_facts(node, prover)).chain(unreadable).collect()
}

fn frozen(cluster: &Cluster, meta: &Meta) -> MeshNodeFacts {
    let entries = cluster.slices.iter().flat_map(|(_, slice)| &slice.value.entries);
    let told = entries.filter(|told| told.name == meta.name).max_by_key(|told| told.generation).and_then(entry);
    let node_uid = cluster.nodes.get(&meta.name).map(|node| Uid(node.meta.uid.clone())).unwrap_or_default();
    let mut facts = MeshNodeFacts {
        name: meta.name.clone(),
        uid: Uid(meta.uid.clone()),
        created: meta.created,
        spec: NodeSpec { node_uid, ..NodeSpec::default() },
        status: StatusFacts::default(),
        conditions: Vec::new(),
    };
    let Some(told) = told else { return facts };
    facts.status = StatusFacts {
        public_key: Some(told.public_key),
        proof: ProofVerdict::Missing,
        listen_port: Some(told.listen_port),
        candidates: told.candidates,
        round: told.round,
    };
    facts.spec = NodeSpec {
        node_uid: told.uid,
        mesh_ips: told.mesh_ips,
        pod_cidrs: told.pod_cidrs,
        node_ips: told.node_ips,
        listen_port: told.listen_port,
        admission: Admission {
            state: AdmissionState::Accepted,
            public_key: Some(told.public_key),
            ..Admission::default()
        },
        ..NodeSpec::default()
    };
    facts
}

fn node_facts(node: &Stored<NodeValue>) -> NodeFacts {
    NodeFacts {
        name: node.meta.name.clone(),
        uid: Uid(node.meta.uid.clone()),
        created: node.meta.created,
        pod_cidrs: node.value.pod_cidrs.clone(),
        internal_ips: node.value.internal_ips.clone(),
    }
}

fn mesh_node_facts(node: &Stored<MeshNodeValue>, prover: &Prover) -> MeshNodeFacts {
    let MeshNodeValue { spec, status, relayed: _, portless: _ } = &node.value;
    let public_key: Option<PublicKey> = status.public_key.as_deref().and_then(parsed);
    let admitted = spec.admission.public_key.as_deref().and_then(parsed);
    let proof = match public_key {
        // A key that is admitted already proves nothing anew, and a fail-over costs no curve operation for it.
        Some(key) if admitted != Some(key) || spec.admission.state != mesh_node::AdmissionState::Accepted => {
            prover.verdict(&spec.node_uid, &key, status.key_proof.as_deref())
        }
        _ => ProofVerdict::Missing,
    };
    MeshNodeFacts {
        name: node.meta.name.clone(),
        uid: Uid(node.meta.uid.clone()),
        created: node.meta.created,
        spec: node_spec(spec),
        status: StatusFacts {
            public_key,
            proof,
            listen_port: status.listen_port,
            candidates: candidates(&status.candidates),
            round: status.round,
        },
        conditions: status.conditions.iter().filter_map(condition).collect(),
    }
}

fn node_spec(spec: &MeshNodeSpec) -> NodeSpec {
    let admission = &spec.admission;
    NodeSpec {
        node_uid: Uid(spec.node_uid.clone()),
        mesh_ips: all(&spec.mesh_ips),
        pod_cidrs: all(&spec.pod_cidrs),
        node_ips: all(&spec.node_ips),
        listen_port: spec.listen_port.unwrap_or_default(),
        suspended: spec.suspended,
        admission: Admission {
            state: match admission.state {
                mesh_node::AdmissionState::Pending => AdmissionState::Pending,
                mesh_node::AdmissionState::Accepted => AdmissionState::Accepted,
                mesh_node::AdmissionState::Rejected => AdmissionState::Rejected,
            },
            public_key: admission.public_key.as_deref().and_then(parsed),
            key_generation: admission.key_generation.into(),
            next_public_key: None,
            reason: admission.reason.as_deref().and_then(AdmissionReason::parse).unwrap_or_default(),
            message: admission.message.clone().unwrap_or_default(),
        },
        ..NodeSpec::default()
    }
}

fn condition(condition: &crds::Condition) -> Option<Condition> {
    Some(Condition {
        kind: ConditionType::parse(&condition.type_)?,
        status: condition.status == crds::ConditionStatus::True,
        reason: Reason::parse(&condition.reason)?,
        message: condition.message.clone(),
    })
}

fn slice_facts(name: &str, slice: &MeshPeerSliceSpec) -> SliceFacts {
    SliceFacts { name: name.to_owned(), entries: slice.entries.iter().filter_map(entry).collect() }
}

fn entry(entry: &PeerEntry) -> Option<Entry> {
    Some(Entry {
        name: entry.name.clone(),
        uid: Uid(entry.uid.clone()),
        public_key: parsed(&entry.public_key)?,
        next_public_key: None,
        mesh_ips: all(&entry.mesh_ips),
        pod_cidrs: all(&entry.pod_cidrs),
        node_ips: all(&entry.node_ips),
        routes: Vec::new(),
        listen_port: entry.listen_port.unwrap_or_default(),
        location: None,
        classes: Vec::new(),
        candidates: candidates(&entry.candidates),
        round: entry.round,
        generation: entry.generation,
    })
}

fn tombstones(slice: &MeshPeerSliceSpec) -> Vec<Tombstone> {
    let stone = |stone: &crds::Tombstone| {
        Some(Tombstone {
            name: stone.name.clone(),
            uid: Uid(stone.uid.clone()),
            public_key: parsed(&stone.public_key)?,
            generation: stone.generation,
        })
    };
    slice.tombstones.iter().filter_map(stone).collect()
}

fn candidates(list: &[mesh_node::Candidate]) -> Vec<Candidate> {
    let convert = |candidate: &mesh_node::Candidate| {
        let kind = match candidate.kind {
            CandidateKind::Host => Kind::Host,
            CandidateKind::ServerReflexive => Kind::ServerReflexive,
            CandidateKind::PortMapped => Kind::PortMapped,
            CandidateKind::Static => Kind::Static,
        };
        Some(Candidate { kind, addr: parsed(&candidate.address)? })
    };
    list.iter().take(MAX_CANDIDATES).filter_map(convert).collect()
}

fn parsed<T: FromStr>(text: &str) -> Option<T> {
    text.parse().ok()
}

fn all<T: FromStr>(texts: &[String]) -> Vec<T> {
    texts.iter().filter_map(|text| parsed(text)).collect()
}
