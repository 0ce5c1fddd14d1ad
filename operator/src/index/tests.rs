use super::*;
use k8s_openapi::api::core::v1::Node;
use serde_json::json;

fn stored(name: &str, version: u64, value: NodeValue) -> Stored<NodeValue> {
    let meta = Meta { name: name.into(), uid: format!("uid-{name}"), version: version.to_string(), ..Meta::default() };
    Stored { meta, value }
}

fn plain(name: &str, version: u64) -> Stored<NodeValue> {
    stored(name, version, NodeValue::default())
}

fn relay(name: &str, version: u64) -> Stored<NodeValue> {
    stored(name, version, NodeValue { relay: true, ..NodeValue::default() })
}

fn listed(objects: &[Stored<NodeValue>]) -> Collection<NodeValue> {
    let mut collection = Collection::default();
    list(&mut collection, objects);
    collection
}

fn list(collection: &mut Collection<NodeValue>, objects: &[Stored<NodeValue>]) -> Effect {
    collection.absorb(Update::ListBegins);
    for object in objects {
        assert_eq!(collection.absorb(Update::Listed(object.clone())), Effect::Nothing);
    }
    collection.absorb(Update::ListEnds)
}

#[test]
fn an_empty_first_list_is_a_list() {
    let mut collection: Collection<NodeValue> = Collection::default();
    assert!(!collection.synced());
    assert_eq!(list(&mut collection, &[]), Effect::Changed);
    assert!(collection.synced());
    assert_eq!(list(&mut collection, &[]), Effect::Nothing);
}

#[test]
fn a_heartbeat_is_no_change() {
    let mut collection = listed(&[plain("a", 1)]);
    assert_eq!(collection.absorb(Update::Applied(plain("a", 2))), Effect::Nothing);
    assert_eq!(collection.get("a").unwrap().meta.version, "2", "the version is followed all the same");
    assert_eq!(collection.absorb(Update::Applied(relay("a", 3))), Effect::Changed);
}

#[test]
fn an_echo_older_than_the_own_write_is_ignored() {
    let mut collection = listed(&[plain("a", 1)]);
    collection.learn(relay("a", 9));
    assert_eq!(collection.absorb(Update::Applied(plain("a", 5))), Effect::Nothing);
    assert!(collection.get("a").unwrap().value.relay);
}

#[test]
fn the_end_of_a_predecessor_does_not_take_its_successor() {
    let mut collection = listed(&[plain("a", 1)]);
    let mut successor = plain("a", 5);
    successor.meta.uid = "another".into();
    assert_eq!(collection.learn(successor), Effect::Removed);
    assert_eq!(collection.absorb(Update::Deleted("a".into(), "uid-a".into())), Effect::Nothing);
    assert!(collection.get("a").is_some());
    assert_eq!(collection.absorb(Update::Deleted("a".into(), "another".into())), Effect::Removed);
    assert!(collection.is_empty());
}

#[test]
fn a_new_list_removes_what_it_lacks_and_only_when_it_is_complete() {
    let mut collection = listed(&[plain("a", 1), plain("b", 1)]);
    collection.absorb(Update::ListBegins);
    collection.absorb(Update::Listed(plain("a", 2)));
    assert_eq!(collection.len(), 2, "a list that is not complete removes nothing");
    assert_eq!(collection.absorb(Update::ListEnds), Effect::Removed);
    assert_eq!(collection.len(), 1);
}

#[test]
fn an_unreadable_object_keeps_its_last_readable_version() {
    let mut collection = listed(&[relay("a", 1), plain("b", 1)]);
    collection.absorb(Update::Unreadable(plain("a", 2).meta));
    assert!(collection.get("a").unwrap().value.relay);
    collection.absorb(Update::ListBegins);
    collection.absorb(Update::Unreadable(plain("a", 3).meta));
    collection.absorb(Update::Listed(plain("b", 2)));
    assert_eq!(collection.absorb(Update::ListEnds), Effect::Nothing);
    assert!(collection.get("a").unwrap().value.relay);
}

#[test]
fn a_suspension_is_as_urgent_as_a_departure() {
    let suspended = |suspended| Stored {
        meta: Meta { name: "a".into(), version: "1".into(), ..Meta::default() },
        value: MeshNodeValue {
            spec: crds::MeshNodeSpec { suspended, ..Default::default() },
            ..MeshNodeValue::default()
        },
    };
    let mut collection: Collection<MeshNodeValue> = Collection::default();
    assert_eq!(collection.learn(suspended(false)), Effect::Changed);
    assert_eq!(collection.learn(suspended(true)), Effect::Removed);
    assert_eq!(collection.learn(suspended(true)), Effect::Nothing);
    assert_eq!(collection.learn(suspended(false)), Effect::Changed);
}

#[test]
fn every_kind_must_be_listed_before_anything_is_concluded() {
    let mut cluster = Cluster::default();
    assert_eq!(cluster.missing().len(), 7);
    cluster.absorb(Change::Node(Update::ListEnds));
    assert!(!cluster.missing().contains(&Kind::Node) && !cluster.synced());
}

#[test]
fn a_node_is_reduced_to_what_planning_looks_at() {
    let reduce = |node: serde_json::Value| serde_json::from_value::<Node>(node).unwrap().reduce();
    let full = reduce(json!({
        "metadata": { "name": "n", "labels": { "warren.dev/relay": "true" } },
        "spec": { "podCIDR": "10.244.1.0/24", "podCIDRs": ["10.244.1.0/24", "fd00:1::/64", "nonsense"] },
        "status": { "addresses": [
            { "type": "InternalIP", "address": "192.168.1.10" },
            { "type": "ExternalIP", "address": "203.0.113.5" },
            { "type": "InternalIP", "address": "not an address" },
            { "type": "Hostname", "address": "n" },
        ] },
    }));
    assert_eq!(full.pod_cidrs.len(), 2);
    assert_eq!(full.internal_ips, ["192.168.1.10".parse::<std::net::IpAddr>().unwrap()]);
    assert!(full.relay);
    assert_eq!(full.external_ips, ["203.0.113.5".parse::<std::net::IpAddr>().unwrap()]);
    let old = reduce(json!({ "metadata": {}, "spec": { "podCIDR": "10.244.1.0/24" } }));
    assert_eq!(old.pod_cidrs.len(), 1);
    let off = reduce(json!({ "metadata": { "labels": { "warren.dev/relay": "false" } } }));
    assert_eq!(off, NodeValue { refuses_relay: true, ..NodeValue::default() });
}

#[test]
fn an_object_that_was_never_readable_is_there_until_it_is_deleted() {
    let mut collection: Collection<NodeValue> = Collection::default();
    collection.absorb(Update::ListBegins);
    collection.absorb(Update::Unreadable(plain("a", 1).meta));
    collection.absorb(Update::ListEnds);
    let known =
        |collection: &Collection<NodeValue>| collection.unreadable().map(|meta| meta.name.clone()).collect::<Vec<_>>();
    assert_eq!((collection.len(), known(&collection)), (0, vec!["a".to_owned()]));
    assert_eq!(collection.absorb(Update::Unreadable(plain("b", 1).meta)), Effect::Changed);
    assert_eq!(collection.absorb(Update::Applied(relay("a", 2))), Effect::Changed);
    assert_eq!((collection.len(), known(&collection)), (1, vec!["b".to_owned()]));
    assert_eq!(collection.absorb(Update::Deleted("b".into(), "uid-b".into())), Effect::Removed);
    assert!(known(&collection).is_empty());
}

#[test]
fn what_a_node_writes_never_hides_its_spec() {
    let candidate = json!({ "address": "203.0.113.5:1", "kind": "Host" });
    let condition = json!({ "type": "Admitted", "status": "True", "reason": "KeyAccepted", "message": "",
                            "lastTransitionTime": "2026-01-01T00:00:00Z" });
    for garbage in [
        json!({ "round": 4_294_967_296_u64 }),
        json!({ "paths": { "direct": -1 } }),
        json!({ "conditions": [condition, { "type": "Mine", "lastTransitionTime": "yesterday" }] }),
        json!({ "candidates": [candidate, { "address": "203.0.113.6:1", "kind": "Invented" }] }),
        json!("garbage"),
    ] {
        let object = json!({
            "apiVersion": "warren.dev/v1alpha1", "kind": "MeshNode", "metadata": { "name": "n" },
            "spec": { "nodeUID": "u", "suspended": true }, "status": garbage,
        });
        let stored = Stored::read::<crds::MeshNode>(serde_json::from_value(object).unwrap()).unwrap();
        assert!(stored.value.must_go(), "{garbage}");
        let status = stored.value.status;
        let lists = (status.candidates.len(), status.conditions.len());
        assert_eq!(
            lists,
            (usize::from(garbage["candidates"].is_array()), usize::from(garbage["conditions"].is_array()))
        );
    }
}
