use super::*;
use crate::testing::TempDir;
use crds::{MeshRelaySpec, MeshRelayStatus, MeshSpec};

fn open() -> (TempDir, Cache) {
    let dir = TempDir::new("told");
    let cache = Cache::open(&dir.path().join("cache")).unwrap();
    (dir, cache)
}

fn relay(name: &str, stun: &[&str]) -> MeshRelay {
    let mut relay = MeshRelay::new(name, MeshRelaySpec::default());
    relay.status = Some(MeshRelayStatus { stun: stun.iter().map(|s| s.to_string()).collect(), ..Default::default() });
    relay
}

fn peer(n: u8) -> crds::PeerEntry {
    crds::PeerEntry {
        name: format!("n{n}"),
        uid: format!("u{n}"),
        public_key: PublicKey::from_bytes([n; 32]).to_string(),
        generation: 1,
        ..Default::default()
    }
}

fn slice(name: &str, numbers: std::ops::Range<u8>) -> MeshPeerSlice {
    let entries = numbers.map(peer).collect();
    MeshPeerSlice::new(name, crds::MeshPeerSliceSpec { entries, ..Default::default() })
}

#[test]
fn what_was_told_is_there_after_a_restart() {
    let (_dir, cache) = open();
    let mut view = View::restore(cache.clone(), "a");
    let now = Duration::ZERO;
    assert!(view.handle(Told::Mesh(Fed::Listed(vec![Mesh::new("default", MeshSpec::default())].into())), now).mesh);
    assert!(view.handle(Told::Node(Fed::Listed(vec![MeshNode::new("a", Default::default())].into())), now).node);
    assert!(view.handle(Told::Relays(Fed::Applied(relay("r", &["192.0.2.1:3478"]))), now).relays);
    cache.flush();
    let again = View::restore(cache.clone(), "a");
    assert_eq!(again.mesh(), view.mesh());
    assert_eq!(again.node(), view.node());
    assert_eq!(again.stun_servers(), ["192.0.2.1:3478".parse().unwrap()]);
    assert!(View::restore(cache, "b").node().is_none(), "another node's spec");
}

#[test]
fn that_there_is_no_relay_is_news_once_and_remembered() {
    let (_dir, cache) = open();
    let mut view = View::restore(cache.clone(), "a");
    assert!(!view.knows_relays());
    let none = || Told::Relays(Fed::Listed(Vec::new().into()));
    assert!(view.handle(none(), Duration::ZERO).relays);
    assert!(view.knows_relays() && !view.handle(none(), Duration::ZERO).relays);
    cache.flush();
    assert!(View::restore(cache, "a").knows_relays());
}

#[test]
fn a_deleted_or_missing_mesh_or_node_keeps_what_is_known() {
    let (_dir, cache) = open();
    let mut view = View::restore(cache, "a");
    let now = Duration::ZERO;
    view.handle(Told::Mesh(Fed::Applied(Mesh::new("default", MeshSpec::default()))), now);
    view.handle(Told::Node(Fed::Applied(MeshNode::new("a", Default::default()))), now);
    for told in [
        Told::Mesh(Fed::Listed(Vec::new().into())),
        Told::Mesh(Fed::Deleted("default".into())),
        Told::Node(Fed::Listed(Vec::new().into())),
        Told::Node(Fed::Deleted("a".into())),
    ] {
        assert!(!view.handle(told, now).any());
    }
    assert!(view.mesh().is_some() && view.node().is_some());
}

#[test]
fn what_the_guard_holds_back_is_held_on_disk_too() {
    let (_dir, cache) = open();
    let mut view = View::restore(cache.clone(), "a");
    assert!(view.handle(Told::Slices(Fed::Listed(vec![slice("peers-0", 1..4)].into())), Duration::ZERO).peers);
    view.handle(Told::Slices(Fed::Applied(slice("peers-0", 0..0))), Duration::from_secs(1));
    assert!(view.table().guard(Duration::from_secs(1)).is_some());
    cache.flush();
    assert_eq!(View::restore(cache, "a").table().entries().len(), 3);
}

fn node(uid: &str, version: u64, port: u16) -> MeshNode {
    let mut node = MeshNode::new("a", crds::MeshNodeSpec { listen_port: Some(port), ..Default::default() });
    node.metadata.uid = Some(uid.into());
    node.metadata.resource_version = Some(version.to_string());
    node
}

#[test]
fn a_revocation_outlives_a_restart_although_the_guard_holds_others() {
    let (_dir, cache) = open();
    let mut view = View::restore(cache.clone(), "a");
    view.handle(
        Told::Slices(Fed::Listed(vec![slice("peers-0", 1..5), slice("peers-1", 11..13)].into())),
        Duration::ZERO,
    );
    let names = |view: &View| view.table().entries().names().cloned().collect::<Vec<_>>();
    // Peers vanish without a word, and the guard keeps them. Then one is revoked, and one is new.
    let now = Duration::from_secs(1);
    view.handle(Told::Slices(Fed::Applied(slice("peers-0", 1..2))), now);
    assert!(view.table().guard(now).is_some());
    let mut removed = slice("removed", 0..0);
    removed.spec.tombstones =
        vec![crds::Tombstone { name: "n11".into(), uid: "u11".into(), public_key: peer(11).public_key, generation: 1 }];
    view.handle(Told::Slices(Fed::Applied(removed)), now);
    view.handle(Told::Slices(Fed::Applied(slice("peers-1", 12..14))), now);
    let expected = ["n1", "n12", "n13", "n2", "n3", "n4"];
    assert_eq!(names(&view), expected);
    cache.flush();
    assert_eq!(names(&View::restore(cache, "a")), expected);
}

#[test]
fn an_answer_to_a_write_is_taken_as_any_other_news() {
    let (_dir, cache) = open();
    let mut view = View::restore(cache.clone(), "a");
    view.handle(Told::Node(Fed::Listed(vec![node("u", 5, 1)].into())), Duration::ZERO);
    let mut answer = node("u", 7, 2);
    answer.metadata.managed_fields = Some(Vec::new());
    assert!(view.node_written(answer).node, "the spec of the answer is news");
    assert_eq!(view.node().unwrap().metadata.managed_fields, None);
    assert!(!view.handle(Told::Node(Fed::Applied(node("u", 7, 2))), Duration::ZERO).node, "and its echo is none");
    cache.flush();
    assert_eq!(View::restore(cache, "a").node().unwrap().spec.listen_port, Some(2));
}

#[test]
fn a_late_answer_to_a_write_undoes_nothing() {
    let (_dir, cache) = open();
    let mut view = View::restore(cache, "a");
    view.handle(Told::Node(Fed::Applied(node("u", 9, 2))), Duration::ZERO);
    assert!(!view.node_written(node("u", 8, 1)).node);
    assert_eq!(view.node().unwrap().spec.listen_port, Some(2));
    // Deleted and made again under the same name: the answer may be about the old object, or already about the new one.
    assert!(!view.node_written(node("older", 8, 1)).node);
    assert!(view.node_written(node("newer", 10, 3)).node);
    view.handle(Told::Node(Fed::Deleted("a".into())), Duration::ZERO);
    view.node_written(node("newer", 11, 3));
    assert!(!view.node_is_present(), "the answer says what was, not what is");
}

#[test]
fn stun_servers_are_unique_capped_and_relays_come_first() {
    let (_dir, cache) = open();
    let mut view = View::restore(cache, "a");
    let mut mesh = Mesh::new("default", MeshSpec::default());
    mesh.spec.stun.servers = vec!["192.0.2.9:3478".into(), "192.0.2.1:3478".into(), "nonsense".into()];
    view.handle(Told::Mesh(Fed::Applied(mesh)), Duration::ZERO);
    view.handle(Told::Relays(Fed::Listed(vec![relay("r", &["192.0.2.1:3478"])].into())), Duration::ZERO);
    let shown: Vec<String> = view.stun_servers().iter().map(SocketAddr::to_string).collect();
    assert_eq!(shown, ["192.0.2.1:3478", "192.0.2.9:3478"]);
    let many: Vec<MeshRelay> = (0..100).map(|n| relay(&format!("r{n}"), &[&format!("198.51.100.{n}:3478")])).collect();
    view.handle(Told::Relays(Fed::Listed(many.into())), Duration::ZERO);
    assert_eq!(view.stun_servers().len(), MAX_STUN_SERVERS);
}

#[test]
fn only_a_relay_on_this_node_takes_ports_here_and_relay_ports_only_with_a_key() {
    let (_dir, cache) = open();
    let mut view = View::restore(cache, "a");
    let mut own = relay("a", &["192.0.2.1:3478", "[2001:db8::1]:3478"]);
    own.spec.node_name = Some("a".into());
    view.handle(Told::Relays(Fed::Applied(relay("b", &["192.0.2.2:5000"]))), Duration::ZERO);
    view.handle(Told::Relays(Fed::Applied(own.clone())), Duration::ZERO);
    assert_eq!(view.own_relay_ports(), (vec![PortRange::one(3478)], vec![]));
    let status = own.status.as_mut().unwrap();
    (status.identity_key, status.quic_port) = (Some(PublicKey::from_bytes([7; 32]).to_string()), Some(4000));
    view.handle(Told::Relays(Fed::Applied(own)), Duration::ZERO);
    let udp = vec![PortRange::one(3478), PortRange::one(4000), PortRange { first: 51900, last: 51963 }];
    assert_eq!(view.own_relay_ports(), (udp, vec![PortRange::one(8443)]));
}
