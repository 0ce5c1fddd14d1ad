use super::*;
use crate::index::{Change, Cluster, MeshNodeValue, Meta, Stored, Update};
use crate::proof::Prover;
use crds::{Condition, ConditionStatus, MeshNodeSpec, MeshPeerSliceSpec, names::REMOVED_SLICE};
use k8s_openapi::{apimachinery::pkg::apis::meta::v1::Time, jiff::Timestamp};
use topology::{
    cluster::{Condition as Planned, ConditionType, Reason},
    peer::{Candidate, CandidateKind, Entry, Tombstone, Uid},
    spec::{Admission as Verdict, AdmissionReason, AdmissionState, NodeSpec},
};
use wire::key::PublicKey;

fn key(n: u8) -> PublicKey {
    PublicKey::from_bytes([n; 32])
}

fn stored<T>(name: &str, value: T) -> Stored<T> {
    Stored { meta: Meta { name: name.into(), uid: format!("uid-{name}"), ..Meta::default() }, value }
}

fn read(cluster: &Cluster) -> topology::cluster::ClusterView {
    view(cluster, mesh_config(&MeshSpec::default()).unwrap(), &Prover::default(), true)
}

fn entry() -> Entry {
    Entry {
        name: "n1".into(),
        uid: Uid("u1".into()),
        public_key: key(1),
        next_public_key: None,
        mesh_ips: vec!["10.118.0.1".parse().unwrap(), "fd00::1".parse().unwrap()],
        pod_cidrs: vec!["10.244.1.0/24".parse().unwrap()],
        node_ips: vec!["192.168.1.1".parse().unwrap()],
        routes: Vec::new(),
        listen_port: 21820,
        location: None,
        classes: Vec::new(),
        candidates: vec![
            Candidate { kind: CandidateKind::Static, addr: "203.0.113.5:21820".parse().unwrap() },
            Candidate { kind: CandidateKind::PortMapped, addr: "203.0.113.5:4000".parse().unwrap() },
            Candidate { kind: CandidateKind::ServerReflexive, addr: "[2001:db8::1]:21820".parse().unwrap() },
            Candidate { kind: CandidateKind::Host, addr: "192.168.1.1:21820".parse().unwrap() },
        ],
        round: 3,
        generation: 7,
    }
}

#[test]
fn a_slice_is_read_back_as_it_was_written() {
    let bare = Entry { name: "n2".into(), pod_cidrs: vec![], node_ips: vec![], candidates: vec![], ..entry() };
    let entries = vec![entry(), bare];
    let spec: MeshPeerSliceSpec = serde_json::from_value(slice_spec(&entries)).unwrap();
    assert_eq!(spec.count, 2);
    let mut cluster = Cluster::default();
    cluster.absorb(Change::Slice(Update::Applied(stored("peers-0", spec))));
    assert_eq!(read(&cluster).slices[0].entries, entries);
}

#[test]
fn tombstones_are_read_back_as_they_were_written() {
    let stones = vec![Tombstone { name: "n1".into(), uid: Uid("u1".into()), public_key: key(1), generation: 9 }];
    let spec: MeshPeerSliceSpec = serde_json::from_value(tombstone_spec(&stones)).unwrap();
    let mut cluster = Cluster::default();
    cluster.absorb(Change::Slice(Update::Applied(stored(REMOVED_SLICE, spec))));
    let view = read(&cluster);
    assert_eq!((view.tombstones, view.slices.len()), (stones, 0));
}

#[test]
fn a_node_spec_is_read_back_as_it_was_written_and_leaves_the_admins_fields_alone() {
    for (state, reason, public_key) in [
        (AdmissionState::Accepted, AdmissionReason::KeyAccepted, Some(key(4))),
        (AdmissionState::Pending, AdmissionReason::KeyMissing, None),
        (AdmissionState::Rejected, AdmissionReason::DuplicateKey, None),
    ] {
        let spec = NodeSpec {
            node_uid: Uid("u1".into()),
            mesh_ips: vec!["10.118.0.1".parse().unwrap()],
            listen_port: 21825,
            admission: Verdict {
                state,
                reason,
                public_key,
                key_generation: 2,
                message: "so".into(),
                next_public_key: None,
            },
            ..NodeSpec::default()
        };
        let body = mesh_node_spec(&spec);
        assert!(body.get("suspended").is_none(), "suspended is the admin's");
        assert!(body.get("backend").is_none(), "so is the backend");
        assert_eq!(body["podCIDRs"], serde_json::json!([]), "an empty list is written, so that it replaces a full one");
        let written: MeshNodeSpec = serde_json::from_value(body).unwrap();
        let mut cluster = Cluster::default();
        let value = MeshNodeValue { spec: written, ..MeshNodeValue::default() };
        cluster.absorb(Change::MeshNode(Update::Applied(stored("n1", value))));
        assert_eq!(read(&cluster).mesh_nodes[0].spec, spec);
    }
}

#[test]
fn what_does_not_parse_is_left_out_and_the_rest_stays() {
    let spec = MeshNodeSpec {
        node_uid: "u1".into(),
        mesh_ips: vec!["10.118.0.1".into(), "nonsense".into()],
        ..MeshNodeSpec::default()
    };
    let mut value = MeshNodeValue { spec, ..MeshNodeValue::default() };
    value.status.public_key = Some("nonsense".into());
    let mut cluster = Cluster::default();
    cluster.absorb(Change::MeshNode(Update::Applied(stored("n1", value))));
    let facts = read(&cluster).mesh_nodes.remove(0);
    assert_eq!((facts.spec.mesh_ips.len(), facts.status.public_key), (1, None));
}

#[test]
fn a_mesh_that_cannot_be_used_says_which_field() {
    type Edit = fn(&mut MeshSpec);
    let edits: [(&str, Edit); 4] = [
        ("addresses.ipv4", |spec| spec.addresses.ipv4 = "fd00::/64".into()),
        ("addresses.ipv6", |spec| spec.addresses.ipv6 = Some("10.0.0.0/8".into())),
        ("nodeCIDRs", |spec| spec.node_cidrs.push("10.0.0.0".into())),
        ("serviceCIDRs", |spec| spec.service_cidrs.push(String::new())),
    ];
    for (field, edit) in edits {
        let mut spec = MeshSpec::default();
        edit(&mut spec);
        let error = mesh_config(&spec).unwrap_err().to_string();
        assert!(error.contains(field) && error.contains("Mesh/default"), "{error}");
    }
}

#[test]
fn a_condition_keeps_its_time_until_its_status_changes() {
    let (then, now) = (Timestamp::UNIX_EPOCH, Timestamp::from_second(1000).unwrap());
    let planned = |status| Planned {
        kind: ConditionType::Admitted,
        status,
        reason: Reason::Key(AdmissionReason::KeyMissing),
        message: "m".repeat(5000),
    };
    let stored = Condition {
        type_: "Admitted".into(),
        status: ConditionStatus::False,
        reason: "Other".into(),
        message: String::new(),
        observed_generation: Some(1),
        last_transition_time: Time(then),
    };
    let same = conditions(&[planned(false)], std::slice::from_ref(&stored), Some(2), now).remove(0);
    assert_eq!((same.last_transition_time.0, same.observed_generation), (then, Some(2)));
    assert_eq!(same.message.len(), 1024, "the schema takes no more");
    let other = conditions(&[planned(true)], &[stored], Some(2), now).remove(0);
    assert_eq!(other.last_transition_time.0, now);
}

#[test]
fn a_generation_never_outgrows_the_schema() {
    assert_eq!(topology::peer::MAX_GENERATION, crds::bounds::MAX_INTEGER);
}

#[test]
fn a_mesh_node_that_cannot_be_read_keeps_what_peers_were_told_and_is_not_made_again() {
    // This Mesh has no IPv6 range and carries no node addresses.
    let told = Entry { mesh_ips: vec!["10.118.0.1".parse().unwrap()], node_ips: vec![], ..entry() };
    let spec: MeshPeerSliceSpec = serde_json::from_value(slice_spec(&[told])).unwrap();
    let mut cluster = Cluster::default();
    cluster.absorb(Change::Slice(Update::Applied(stored("peers-0001", spec))));
    let node = |name: &str, uid: &str| {
        let meta = Meta { name: name.into(), uid: uid.into(), ..Meta::default() };
        let value = crate::index::NodeValue {
            pod_cidrs: entry().pod_cidrs,
            internal_ips: entry().node_ips,
            ..Default::default()
        };
        Change::Node(Update::Applied(Stored { meta, value }))
    };
    cluster.absorb(node("n1", "u1"));
    cluster.absorb(Change::MeshNode(Update::Unreadable(stored("n1", ()).meta)));
    let view = read(&cluster);
    let plan = topology::cluster::plan(&view);
    assert_eq!((plan.touched_slices().len(), plan.tombstones.len()), (0, 0));
    assert_ne!(plan.nodes["n1"].action, topology::cluster::Action::Create);
    assert!(crate::reconcile::diff::conditions(&cluster, &plan, Timestamp::UNIX_EPOCH).is_empty());
    let writes = crate::reconcile::diff::phases(&cluster, &plan);
    assert!(writes.iter().all(|(_, writes)| writes.is_empty()), "{writes:?}");
}

#[test]
fn a_node_that_cannot_be_read_is_not_gone() {
    let mut cluster = Cluster::default();
    let spec =
        MeshNodeSpec { node_uid: "uid-n1".into(), pod_cidrs: vec!["10.244.1.0/24".into()], ..Default::default() };
    cluster.absorb(Change::MeshNode(Update::Applied(stored("n1", MeshNodeValue { spec, ..Default::default() }))));
    cluster.absorb(Change::Node(Update::Applied(stored("n2", Default::default()))));
    cluster.absorb(Change::Node(Update::Unreadable(stored("n1", ()).meta)));
    let plan = topology::cluster::plan(&read(&cluster));
    assert!(plan.retire.is_empty());
    assert_eq!(plan.nodes["n1"].spec.pod_cidrs.len(), 1);
}
