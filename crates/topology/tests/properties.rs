//! What holds for any history of a cluster, however odd.
//!
//! - *Sound*: whatever was done and written by hand, a plan breaks no invariant and writing it leaves nothing to do.
//! - *Replicas agree*: the plan is a function of the view, not of the order in which its lists arrive.
//! - *Batching*: after honest changes (joins, leaves, re-creations, re-keys, changes of address; nobody claims what
//!   another has) the operator tells peers of exactly the nodes that are there, with their last keys and prefixes,
//!   however the changes were batched into plans. If nobody leaves, the specs are equal too, mesh addresses included, as
//!   long as nodes join in order of age. Which slice an entry is in, and its generation, tell of the batching.
//! - *Thrift*: one join touches at most two slices.
#![allow(missing_docs, clippy::unwrap_used)]

mod world;

use std::collections::BTreeMap;

use proptest::collection::vec;
use proptest::prelude::*;
use topology::PublicKey;
use topology::cluster::{ClusterView, ProofVerdict, SliceFacts, StatusFacts, plan};
use topology::mesh::{AdmissionMode, NodeAddresses, PortRange};
use topology::peer::{MAX_GENERATION, Tombstone, Uid};
use topology::spec::{AdmissionState, NodeKind};
use world::*;

/// One thing that happens. Numbers are taken modulo what there is.
#[derive(Clone, Debug)]
enum Step {
    Join(u16),
    Leave(u16),
    Recreate(u16),
    Key(u16, u16),
    Readdress(u16, u8),
    Suspend(u16, bool),
    Protect(bool),
    Garbage(Garbage),
    Plan,
}

/// What people write by hand.
#[derive(Clone, Debug)]
enum Garbage {
    MeshIps(u16, u8),
    Port(u16, u16),
    PodCidr(u16, u8),
    NodeIps(u16, u8),
    Routes(u16, u8),
    SpecKey(u16, u16, u8),
    StatusKey(u16, u16, u8),
    Kind(u16),
    Candidates(u16, Vec<u8>),
    CopySlice(u8, u8),
    DropSlice(u8),
    EditEntry(u16, u16, u64),
    EditCopy(u8, u8, u8),
    Tombstones(u16, u64),
    Mesh(u8),
}

fn honest() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => (0..12u16).prop_map(Step::Join),
        2 => (0..12u16).prop_map(Step::Leave),
        1 => (0..12u16).prop_map(Step::Recreate),
        2 => (0..12u16, 0..3u16).prop_map(|(node, key)| Step::Key(node, key)),
        1 => (0..12u16, any::<u8>()).prop_map(|(node, low)| Step::Readdress(node, low)),
        3 => Just(Step::Plan),
    ]
}

fn garbage() -> impl Strategy<Value = Garbage> {
    let node = || 0..12u16;
    prop_oneof![
        (node(), any::<u8>()).prop_map(|(n, v)| Garbage::MeshIps(n, v)),
        (node(), prop_oneof![Just(0), 21818..21826u16]).prop_map(|(n, v)| Garbage::Port(n, v)),
        (node(), any::<u8>()).prop_map(|(n, v)| Garbage::PodCidr(n, v)),
        (node(), any::<u8>()).prop_map(|(n, v)| Garbage::NodeIps(n, v)),
        (node(), any::<u8>()).prop_map(|(n, v)| Garbage::Routes(n, v)),
        (node(), 0..16u16, any::<u8>()).prop_map(|(n, k, v)| Garbage::SpecKey(n, k, v)),
        (node(), 0..16u16, any::<u8>()).prop_map(|(n, k, v)| Garbage::StatusKey(n, k, v)),
        node().prop_map(Garbage::Kind),
        (node(), vec(any::<u8>(), 0..24)).prop_map(|(n, v)| Garbage::Candidates(n, v)),
        (any::<u8>(), any::<u8>()).prop_map(|(a, b)| Garbage::CopySlice(a, b)),
        any::<u8>().prop_map(Garbage::DropSlice),
        (node(), 0..16u16, prop_oneof![0..5u64, Just(u64::MAX), Just(MAX_GENERATION)])
            .prop_map(|(n, k, g)| Garbage::EditEntry(n, k, g)),
        (any::<u8>(), any::<u8>(), any::<u8>()).prop_map(|(s, e, v)| Garbage::EditCopy(s, e, v)),
        (node(), prop_oneof![0..9u64, Just(u64::MAX)]).prop_map(|(n, g)| Garbage::Tombstones(n, g)),
        any::<u8>().prop_map(Garbage::Mesh),
    ]
}

fn anything() -> impl Strategy<Value = Step> {
    prop_oneof![
        6 => honest(),
        1 => (0..12u16, any::<bool>()).prop_map(|(node, on)| Step::Suspend(node, on)),
        1 => any::<bool>().prop_map(Step::Protect),
        6 => garbage().prop_map(Step::Garbage),
    ]
}

/// An honest key of a node: nobody else's.
fn own_key(number: u16, round: u16) -> PublicKey {
    key(100 + number * 8 + round)
}

/// The cluster and what is true of it, whatever was planned so far.
struct World {
    view: ClusterView,
    keys: BTreeMap<String, PublicKey>,
    lives: u32,
    clock: i64,
}

impl World {
    fn new() -> Self {
        Self { view: empty(), keys: BTreeMap::new(), lives: 0, clock: 0 }
    }

    fn run(&mut self, step: &Step) {
        match step {
            Step::Join(number) if !self.view.nodes.iter().any(|node| node.name == name(*number)) => {
                self.add(*number);
            }
            Step::Leave(number) if self.view.nodes.len() > 1 => {
                self.view.nodes.retain(|node| node.name != name(*number))
            }
            Step::Recreate(number) if self.view.nodes.iter().any(|node| node.name == name(*number)) => {
                self.view.nodes.retain(|node| node.name != name(*number));
                self.add(*number);
            }
            Step::Key(number, round) => {
                self.keys.insert(name(*number), own_key(*number, *round));
            }
            Step::Readdress(number, low) => {
                let nodes = self.view.nodes.iter_mut();
                for node in nodes.filter(|node| node.name == name(*number)) {
                    node.internal_ips = vec![ip(&format!("192.168.{}.{low}", 100 + number))];
                }
            }
            Step::Suspend(number, on) => self.edit(*number, |facts| facts.spec.suspended = *on),
            Step::Protect(on) => self.view.protected = *on,
            Step::Garbage(garbage) => self.spoil(garbage),
            Step::Plan => self.plan(),
            Step::Join(_) | Step::Leave(_) | Step::Recreate(_) => {}
        }
    }

    fn add(&mut self, number: u16) {
        self.lives += 1;
        self.clock += 1;
        let mut node = node(number, &format!("life-{}", self.lives));
        node.created = self.clock;
        self.view.nodes.push(node);
        self.keys.insert(name(number), own_key(number, 4));
    }

    /// The agents of all nodes whose MeshNode stands show their keys, then the operator plans and writes.
    fn plan(&mut self) {
        let lives: BTreeMap<&str, &Uid> = self.view.nodes.iter().map(|node| (&*node.name, &node.uid)).collect();
        for facts in &mut self.view.mesh_nodes {
            if lives.get(&*facts.name) == Some(&&facts.spec.node_uid) {
                facts.status.public_key = self.keys.get(&facts.name).copied();
                facts.status.proof = ProofVerdict::Valid;
            }
        }
        let planned = plan(&self.view);
        assert_eq!(errors(&self.view, &planned), []);
        self.view = self.view.after(&planned);
    }

    fn edit(&mut self, number: u16, change: impl FnOnce(&mut topology::cluster::MeshNodeFacts)) {
        if let Some(facts) = self.view.mesh_nodes.iter_mut().find(|facts| facts.name == name(number)) {
            change(facts);
        }
    }

    fn spoil(&mut self, garbage: &Garbage) {
        match garbage {
            Garbage::MeshIps(number, value) => {
                let texts =
                    [format!("10.90.0.{}", value % 16), format!("fd90::{}", value % 16), format!("10.{value}.0.1")];
                let addrs = texts.iter().skip(usize::from(value % 3)).map(|text| ip(text)).collect();
                self.edit(*number, |facts| facts.spec.mesh_ips = addrs);
            }
            Garbage::Port(number, port) => self.edit(*number, |facts| facts.spec.listen_port = *port),
            Garbage::PodCidr(number, value) => {
                let text = [
                    "10.200.3.0/24",
                    "10.200.0.0/16",
                    "0.0.0.0/0",
                    "192.168.0.0/28",
                    "10.90.0.0/20",
                    "fe80::/16",
                    "10.200.4.128/26",
                ];
                let net = text[usize::from(*value) % text.len()].parse().unwrap();
                for node in self.view.nodes.iter_mut().filter(|node| node.name == name(*number)) {
                    node.pod_cidrs.insert(usize::from(*value) % 2, net);
                }
                self.edit(*number, |facts| facts.spec.pod_cidrs.push(net));
            }
            Garbage::NodeIps(number, value) => {
                let addr = ip(&format!("192.168.0.{}", value % 14));
                for node in self.view.nodes.iter_mut().filter(|node| node.name == name(*number)) {
                    node.internal_ips.push(addr);
                }
                self.edit(*number, |facts| facts.spec.node_ips = vec![addr, addr, ip("127.0.0.1")]);
            }
            Garbage::Routes(number, value) => {
                let text =
                    ["192.168.0.0/29", "172.30.0.0/16", "172.30.9.1/24", "::/0", "10.200.2.0/23", "10.90.1.0/24"];
                let routes = text.iter().skip(usize::from(*value) % text.len()).map(|text| text.parse().unwrap());
                self.edit(*number, |facts| facts.spec.routes = routes.collect());
            }
            Garbage::SpecKey(number, which, value) => self.edit(*number, |facts| {
                facts.spec.admission.public_key = any_key(*which);
                facts.spec.admission.next_public_key = any_key(which + 1);
                facts.spec.admission.state =
                    [AdmissionState::Accepted, AdmissionState::Pending, AdmissionState::Rejected]
                        [usize::from(*value) % 3];
            }),
            Garbage::StatusKey(number, which, value) => self.edit(*number, |facts| {
                facts.status.public_key = any_key(*which);
                facts.status.proof =
                    [ProofVerdict::Valid, ProofVerdict::Missing, ProofVerdict::Invalid][usize::from(*value) % 3];
            }),
            Garbage::Kind(number) => self.edit(*number, |facts| facts.spec.kind = NodeKind::External),
            Garbage::Candidates(number, values) => {
                let parts =
                    ["127.0.0.1", "203.0.113.7", "10.90.0.3", "10.200.1.1", "224.0.0.9", "[2001:db8::1]", "0.0.0.0"];
                let addrs = values.iter().map(|v| format!("{}:{v}", parts[usize::from(*v) % parts.len()]));
                let candidates = addrs.map(|text| candidate(&text)).collect();
                self.edit(*number, |facts| {
                    facts.status =
                        StatusFacts { candidates, listen_port: Some(0), round: 1, ..std::mem::take(&mut facts.status) }
                });
            }
            Garbage::CopySlice(from, to) if !self.view.slices.is_empty() => {
                let from = self.view.slices[usize::from(*from) % self.view.slices.len()].entries.clone();
                let names = ["peers-0001", "peers-0007", "peers-4294967295", "by-hand", "peers-2"];
                let to = names[usize::from(*to) % names.len()];
                self.view.slices.retain(|slice| slice.name != to);
                self.view.slices.push(SliceFacts { name: to.to_owned(), entries: from });
            }
            Garbage::DropSlice(which) if !self.view.slices.is_empty() => {
                let which = usize::from(*which) % self.view.slices.len();
                self.view.slices.remove(which);
            }
            Garbage::EditEntry(number, which, generation) => {
                let entries = self.view.slices.iter_mut().flat_map(|slice| &mut slice.entries);
                for entry in entries.filter(|entry| entry.name == name(*number)) {
                    entry.generation = *generation;
                    entry.public_key = any_key(*which).unwrap_or(entry.public_key);
                    entry.mesh_ips.reverse();
                }
            }
            Garbage::EditCopy(which, entry, value) if !self.view.slices.is_empty() => {
                // A copy of a slice with one entry altered at the same generation.
                let which = usize::from(*which) % self.view.slices.len();
                let mut copy = self.view.slices[which].clone();
                let entry = usize::from(*entry) % copy.entries.len().max(1);
                if let Some(entry) = copy.entries.get_mut(entry) {
                    match value % 4 {
                        0 => entry.uid = Uid::from("foreign"),
                        1 => entry.round = entry.round.wrapping_add(1),
                        2 => entry.candidates.push(candidate("203.0.113.77:7")),
                        _ => entry.mesh_ips.reverse(),
                    }
                }
                copy.name =
                    ["peers-0001", "peers-0002", "peers-0007", "by-hand"][usize::from(*value) / 4 % 4].to_owned();
                self.view.slices.retain(|slice| slice.name != copy.name);
                self.view.slices.push(copy);
            }
            Garbage::Tombstones(number, generation) => {
                let life = self.view.nodes.iter().find(|node| node.name == name(*number));
                let uid = life.map_or(Uid::from("?"), |node| node.uid.clone());
                let (name, public_key, generation) = (name(*number), key(*number), *generation);
                self.view.tombstones.push(Tombstone { name, uid, public_key, generation });
            }
            Garbage::Mesh(value) => {
                let mesh = &mut self.view.mesh;
                match value % 9 {
                    0 => mesh.ipv4 = "10.90.0.0/29".parse().unwrap(),
                    1 => mesh.ipv6 = None,
                    2 => mesh.listen_ports = PortRange { first: 21820, last: 21822 },
                    3 => mesh.node_addresses = NodeAddresses::Approve,
                    4 => mesh.node_addresses = NodeAddresses::None,
                    5 => mesh.admission = AdmissionMode::Manual,
                    7 => mesh.pod_cidrs = vec!["10.200.0.0/21".parse().unwrap()],
                    6 => mesh.service_cidrs = vec!["10.90.0.4/30".parse().unwrap()],
                    _ => *mesh = world::mesh(),
                }
            }
            Garbage::CopySlice(..) | Garbage::DropSlice(_) | Garbage::EditCopy(..) => {}
        }
    }
}

/// Keys of others, unusable ones, and none.
fn any_key(which: u16) -> Option<PublicKey> {
    match which {
        0 => Some(PublicKey::from_bytes([0; 32])),
        1 => None,
        other => Some(own_key(other % 12, 4)),
    }
}

/// What peers are told of each node, its slice, generation and mesh address aside.
fn told(view: &ClusterView) -> Vec<(String, Uid, PublicKey, Vec<ipnet::IpNet>)> {
    let entries = entries(view).into_iter().map(|entry| {
        let mut nets: Vec<ipnet::IpNet> = entry.claims().filter(|net| !entry.mesh_ips.contains(&net.addr())).collect();
        nets.sort();
        (entry.name, entry.uid, entry.public_key, nets)
    });
    entries.collect()
}

fn expected(world: &World) -> Vec<(String, Uid, PublicKey, Vec<ipnet::IpNet>)> {
    let mut all: Vec<_> = world
        .view
        .nodes
        .iter()
        .map(|node| {
            let hosts = node.internal_ips.iter().map(|addr| ipnet::IpNet::from(*addr));
            let mut nets: Vec<ipnet::IpNet> = node.pod_cidrs.iter().copied().chain(hosts).collect();
            nets.sort();
            (node.name.clone(), node.uid.clone(), world.keys[&node.name], nets)
        })
        .collect();
    all.sort();
    all
}

proptest! {
    #![proptest_config(config(160))]

    #[test]
    fn any_history_with_any_garbage_ends_in_a_sound_fixed_point(steps in vec(anything(), 1..40)) {
        let mut world = World::new();
        for step in &steps {
            world.run(step);
        }
        assert_sound(&world.view);
    }

    #[test]
    fn two_replicas_compile_the_same_bytes(steps in vec(anything(), 1..40), seed in any::<usize>()) {
        let mut world = World::new();
        for step in &steps {
            world.run(step);
        }
        let mut other = world.view.clone();
        let (nodes, objects) = (other.nodes.len().max(1), other.mesh_nodes.len().max(1));
        other.nodes.rotate_left(seed % nodes);
        other.mesh_nodes.reverse();
        other.mesh_nodes.rotate_left(seed % objects);
        other.slices.reverse();
        prop_assert_eq!(format!("{:?}", plan(&world.view)), format!("{:?}", plan(&other)));
    }

    #[test]
    fn honest_changes_end_the_same_however_they_are_batched(steps in vec(honest(), 1..60)) {
        let mut batched = World::new();
        let mut single = World::new();
        for step in &steps {
            batched.run(step);
            single.run(step);
            single.plan();
        }
        // One plan creates, one admits.
        for world in [&mut batched, &mut single] {
            world.plan();
            world.plan();
        }
        prop_assert_eq!(told(&batched.view), expected(&batched));
        prop_assert_eq!(told(&single.view), expected(&single));
        prop_assert!(plan(&batched.view).is_settled());
    }

    #[test]
    fn joins_in_order_of_age_give_the_same_specs_however_they_are_batched(breaks in vec(any::<bool>(), 1..24)) {
        let mut batched = World::new();
        let mut single = World::new();
        for (number, is_break) in breaks.iter().enumerate() {
            for world in [&mut batched, &mut single] {
                world.run(&Step::Join(number as u16));
            }
            single.plan();
            if *is_break {
                batched.plan();
            }
        }
        for world in [&mut batched, &mut single] {
            world.plan();
            world.plan();
        }
        let specs = |world: &World| world.view.mesh_nodes.iter().map(|facts| facts.spec.clone()).collect::<Vec<_>>();
        prop_assert_eq!(specs(&batched), specs(&single));
    }
}

proptest! {
    #![proptest_config(config(24))]

    #[test]
    fn one_join_touches_two_slices_at_most(
        count in 1..150u16,
        // Not all of them: an empty list of Nodes is a fault, and retires nobody.
        leavers in vec(2..150u16, 0..120),
        joiners in 1..4u16,
    ) {
        let mut view = cluster_of(count);
        view.nodes.retain(|node| view.mesh_nodes.len() < 2 || !leavers.iter().any(|gone| node.name == name(*gone)));
        step(&mut view);
        for joiner in 0..joiners {
            // Its name sorts before, among or after the others.
            let joined = format!("{}-{joiner}", ["a", "node-0070", "z"][usize::from(joiner)]);
            let newcomer = node(200 + joiner, &format!("uid-{joiner}"));
            view.nodes.push(topology::cluster::NodeFacts { name: joined.clone(), ..newcomer });
            let created = step(&mut view);
            prop_assert_eq!(created.touched_slices().len(), 0, "an object alone is no peer");
            stored(&mut view, &joined).status = shows(key(200 + joiner));
            let admitted = step(&mut view);
            prop_assert!(admitted.touched_slices().len() <= 2, "{:?}", admitted.touched_slices());
            prop_assert!(entry(&admitted, &joined).is_some());
        }
    }
}
