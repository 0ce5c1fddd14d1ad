//! A small cluster to plan for.
#![allow(dead_code, missing_docs, clippy::unwrap_used, clippy::expect_used)]

use std::net::{IpAddr, Ipv4Addr};

use proptest::test_runner::{Config, RngSeed};
use topology::PublicKey;
use topology::check::{Violation, check};
use topology::cluster::{
    ClusterView, Condition, ConditionType, MeshNodeFacts, NodeFacts, Plan, ProofVerdict, StatusFacts, plan,
};
use topology::mesh::{AdmissionMode, MeshConfig, NodeAddresses, PortRange};
use topology::peer::{Candidate, CandidateKind, Entry, Uid};

/// The same cases in every run; `PROPTEST_CASES` asks for more and other ones.
#[allow(clippy::disallowed_methods, reason = "whoever runs the tests says how many cases")]
pub fn config(cases: u32) -> Config {
    let wanted = std::env::var("PROPTEST_CASES").is_ok();
    let usual = Config { failure_persistence: None, ..Config::default() };
    if wanted { usual } else { Config { cases, rng_seed: RngSeed::Fixed(3), ..usual } }
}

pub fn key(number: u16) -> PublicKey {
    let mut bytes = [0; 32];
    bytes[..2].copy_from_slice(&number.to_le_bytes());
    bytes[9] = 7;
    PublicKey::from_bytes(bytes)
}

pub fn mesh() -> MeshConfig {
    MeshConfig {
        ipv4: "10.90.0.0/16".parse().unwrap(),
        ipv6: Some("fd90::/64".parse().unwrap()),
        node_cidrs: vec!["10.0.0.0/8".parse().unwrap(), "192.168.0.0/16".parse().unwrap()],
        service_cidrs: vec!["10.96.0.0/12".parse().unwrap()],
        pod_cidrs: vec![],
        listen_ports: PortRange { first: 21820, last: 22843 },
        admission: AdmissionMode::Auto,
        node_addresses: NodeAddresses::Carry,
    }
}

pub fn empty() -> ClusterView {
    ClusterView { mesh: mesh(), nodes: vec![], mesh_nodes: vec![], slices: vec![], tombstones: vec![], protected: true }
}

pub fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

pub fn name(number: u16) -> String {
    format!("node-{number:04}")
}

/// A Node with a pod range and an address of its own.
pub fn node(number: u16, uid: &str) -> NodeFacts {
    let [high, low] = number.to_be_bytes();
    NodeFacts {
        name: name(number),
        uid: Uid::from(uid),
        created: i64::from(number),
        pod_cidrs: vec![format!("10.{}.{low}.0/24", 200 + high).parse().unwrap()],
        internal_ips: vec![IpAddr::V4(Ipv4Addr::new(192, 168, high, low))],
    }
}

pub fn candidate(text: &str) -> Candidate {
    Candidate { kind: CandidateKind::Host, addr: text.parse().unwrap() }
}

/// What a running agent with a proven key shows.
pub fn shows(public_key: PublicKey) -> StatusFacts {
    StatusFacts { public_key: Some(public_key), proof: ProofVerdict::Valid, ..StatusFacts::default() }
}

/// Plans and writes once.
pub fn step(view: &mut ClusterView) -> Plan {
    let planned = plan(view);
    *view = view.after(&planned);
    planned
}

pub fn stored<'a>(view: &'a mut ClusterView, name: &str) -> &'a mut MeshNodeFacts {
    view.mesh_nodes.iter_mut().find(|facts| facts.name == name).expect("the MeshNode exists")
}

/// Joins node `number` with key `number` and lets the operator finish.
pub fn join(view: &mut ClusterView, number: u16) -> Plan {
    view.nodes.push(node(number, &format!("uid-{number}")));
    step(view);
    stored(view, &name(number)).status = shows(key(number));
    step(view)
}

pub fn cluster_of(count: u16) -> ClusterView {
    let mut view = empty();
    for number in 1..=count {
        view.nodes.push(node(number, &format!("uid-{number}")));
    }
    step(&mut view);
    for number in 1..=count {
        stored(&mut view, &name(number)).status = shows(key(number));
    }
    step(&mut view);
    view
}

pub fn entry<'a>(plan: &'a Plan, name: &str) -> Option<&'a Entry> {
    plan.entries().find(|entry| entry.name == name)
}

pub fn entries(view: &ClusterView) -> Vec<Entry> {
    let mut all: Vec<Entry> = view.slices.iter().flat_map(|slice| slice.entries.clone()).collect();
    all.sort_by(|a, b| a.name.cmp(&b.name));
    all
}

pub fn condition<'a>(plan: &'a Plan, name: &str, kind: ConditionType) -> Option<&'a Condition> {
    plan.nodes[name].conditions.iter().find(|condition| condition.kind == kind)
}

pub fn errors(view: &ClusterView, plan: &Plan) -> Vec<Violation> {
    let mut found = check(view, plan);
    found.retain(|violation| !violation.is_warning());
    found
}

/// The plan breaks nothing, and writing it leaves nothing to do.
pub fn assert_sound(view: &ClusterView) {
    let first = plan(view);
    assert_eq!(errors(view, &first), []);
    let after = view.after(&first);
    let second = plan(&after);
    assert_eq!(errors(&after, &second), []);
    assert!(second.is_settled(), "not a fixed point:\n{first:#?}\nthen\n{second:#?}");
}
