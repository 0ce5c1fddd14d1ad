use super::*;
use crate::index::{Update, Watched};
use crds::{MeshNode, MeshRelay};
use k8s_openapi::api::core::v1 as core;
use serde_json::Value;

const NOW: i64 = 1_800_000_000;

fn now() -> Timestamp {
    Timestamp::from_second(NOW).unwrap()
}

fn add<K: Watched>(cluster: &mut Cluster, value: Value) {
    cluster.absorb(K::change(Update::Applied(Stored::read::<K>(serde_json::from_value(value).unwrap()).unwrap())));
}

fn member(cluster: &mut Cluster, name: &str, spec: Value, status: Value) {
    let mut full = json!({ "nodeUID": "u", "admission": { "state": "Accepted" } });
    full.as_object_mut().unwrap().extend(spec.as_object().unwrap().clone());
    let metadata =
        json!({ "name": name, "uid": "m", "resourceVersion": "2", "creationTimestamp": "2026-01-01T00:00:00Z" });
    let kind = json!({ "apiVersion": "warren.dev/v1alpha1", "kind": "MeshNode", "metadata": metadata, "spec": full, "status": status });
    add::<MeshNode>(cluster, kind);
}

fn host(cluster: &mut Cluster, name: &str, labels: Value, annotations: Value, status: Value) {
    let metadata =
        json!({ "name": name, "uid": "n", "resourceVersion": "7", "labels": labels, "annotations": annotations });
    add::<core::Node>(cluster, json!({ "apiVersion": "v1", "kind": "Node", "metadata": metadata, "status": status }));
}

fn relay(cluster: &mut Cluster, name: &str, conditions: Value) {
    let metadata = json!({ "name": name, "uid": "r", "resourceVersion": "3", "generation": 4 });
    let spec = json!({ "nodeName": name, "nodeUID": "n" });
    let kind = json!({ "apiVersion": "warren.dev/v1alpha1", "kind": "MeshRelay", "metadata": metadata, "spec": spec, "status": { "conditions": conditions } });
    add::<MeshRelay>(cluster, kind);
}

fn at_host(address: &str) -> Value {
    json!({ "candidates": [{ "address": address, "kind": "Host" }] })
}

#[test]
fn objects_are_read_as_placement_needs_them() {
    let mut cluster = Cluster::default();
    let dead = json!({ "conditions": [{ "type": "Ready", "status": "Unknown" }] });
    let labels = json!({ "topology.kubernetes.io/zone": "z", "node-role.kubernetes.io/control-plane": "", "warren.dev/relay": "true" });
    host(&mut cluster, "a", labels, json!({ "warren.dev/relay-placement": "placed@2027-01-15T07:00:00Z" }), dead);
    let status = json!({
        "candidates": [{ "address": "198.51.100.7:1", "kind": "ServerReflexive" }, { "address": "10.0.0.7:1", "kind": "Host" }],
        "relays": [{ "name": "b", "transport": "Quic" }, { "name": "c", "transport": "Tls" }, { "name": "d", "transport": "Pigeon" }],
    });
    member(&mut cluster, "a", json!({ "relay": "Never" }), status);
    let found = facts(&cluster, "a", cluster.nodes.get("a").unwrap());
    let placed = Timestamp::from_second(NOW - 3600).unwrap();
    assert_eq!((found.domain.as_str(), found.site.as_str()), ("z", "198.51.100.7"));
    assert_eq!((found.control_plane, found.admitted, found.alive), (true, true, false));
    assert_eq!((found.wish, found.label, found.mark), (Wish::Never, Label::Ours(placed), Some(Mark::Placed(placed))));
    assert_eq!(found.reaches, [("b".to_owned(), true), ("c".to_owned(), false)].into());
    assert_eq!(found.standing, Standing::Hidden, "a NAT's address is not the node's own");

    host(&mut cluster, "b", json!({ "warren.dev/relay": "yes" }), json!({}), json!({}));
    let found = facts(&cluster, "b", cluster.nodes.get("b").unwrap());
    assert_eq!(
        (found.label, found.admitted, found.domain.as_str(), found.site.as_str()),
        (Label::Others, false, "b", "b")
    );
    host(&mut cluster, "b", json!({ "warren.dev/relay": "false" }), json!({}), json!({}));
    assert_eq!(facts(&cluster, "b", cluster.nodes.get("b").unwrap()).label, Label::Refused);
    let again = json!({ "warren.dev/relay-placement": "unreachable@2027-01-15T07:00:00Z" });
    host(&mut cluster, "b", json!({ "warren.dev/relay": "true" }), again, json!({}));
    assert_eq!(facts(&cluster, "b", cluster.nodes.get("b").unwrap()).label, Label::Others, "an admin insists");
}

#[test]
fn public_addresses_speak_for_a_node() {
    let standing_of = |status: Value, node: Value| {
        let mut cluster = Cluster::default();
        host(&mut cluster, "a", json!({}), json!({}), node);
        member(&mut cluster, "a", json!({}), status);
        facts(&cluster, "a", cluster.nodes.get("a").unwrap()).standing
    };
    assert_eq!(standing_of(at_host("203.0.113.7:1"), json!({})), Standing::Public);
    for private in ["10.0.0.7:1", "100.64.0.7:1", "192.168.0.7:1", "[fd00::7]:1"] {
        assert_eq!(standing_of(at_host(private), json!({})), Standing::Hidden, "{private}");
    }
    assert_eq!(standing_of(at_host("[2001:db8::7]:1"), json!({})), Standing::Perhaps);
    let open = json!({ "candidates": [{ "address": "10.0.0.7:1", "kind": "Host" }], "nat": { "ipv4": "Open" } });
    assert_eq!(standing_of(open, json!({})), Standing::Perhaps);
    let external = json!({ "addresses": [{ "type": "ExternalIP", "address": "203.0.113.7" }] });
    assert_eq!(standing_of(at_host("10.0.0.7:1"), external), Standing::Public, "a 1:1 NAT");
    let machine =
        json!({ "conditions": [{ "type": "Ready", "status": "Unknown", "reason": "NodeStatusNeverUpdated" }] });
    assert_eq!(standing_of(at_host("203.0.113.7:1"), machine), Standing::Hidden, "no pod runs there");
}

#[test]
fn a_label_is_written_for_the_version_that_was_looked_at_and_says_who_wrote_it() {
    let mut cluster = Cluster::default();
    host(&mut cluster, "a", json!({}), json!({}), json!({}));
    member(&mut cluster, "a", json!({}), at_host("203.0.113.7:1"));
    let written = label_writes(&cluster, &plan(&cluster, now()), now());
    let [Write { target, verb: Verb::Merge(body) }] = &written[..] else { panic!("{written:?}") };
    assert_eq!(*target, Target::new(Kind::Node, "a"));
    let expected = json!({ "metadata": {
        "resourceVersion": "7",
        "labels": { "warren.dev/relay": "true" },
        "annotations": { "warren.dev/relay-placement": "placed@2027-01-15T08:00:00Z" },
    }});
    assert_eq!(*body, expected);

    let ours = json!({ "warren.dev/relay-placement": "placed@2027-01-15T07:00:00Z" });
    host(&mut cluster, "a", json!({ "warren.dev/relay": "true" }), ours, json!({}));
    member(&mut cluster, "a", json!({ "relay": "Never" }), at_host("203.0.113.7:1"));
    let withdrawn = plan(&cluster, now());
    let written = label_writes(&cluster, &withdrawn, now());
    let [Write { verb: Verb::Merge(body), .. }] = &written[..] else { panic!("{written:?}") };
    let expected = json!({ "resourceVersion": "7", "labels": { "warren.dev/relay": null }, "annotations": { "warren.dev/relay-placement": null } });
    assert_eq!(body["metadata"], expected);
    let told = notice(&cluster, &withdrawn.changes[0]);
    assert_eq!((told.reason, told.warning, told.uid.as_deref()), ("RelayWithdrawn", false, Some("m")));
}

#[test]
fn who_reaches_a_relay_is_said_once_and_in_numbers_that_come_to_rest() {
    let mut cluster = Cluster::default();
    let reaching = |name: &str| {
        let relays = json!([{ "name": "a", "transport": "Quic" }]);
        (name.to_owned(), json!({ "relays": relays }))
    };
    host(&mut cluster, "a", json!({ "warren.dev/relay": "true" }), json!({}), json!({}));
    relay(&mut cluster, "a", json!([]));
    let said = |cluster: &Cluster| {
        let written = condition_writes(cluster, &plan(cluster, now()), now());
        let [Write { target, verb: Verb::Apply(body) }] = &written[..] else { panic!("{written:?}") };
        assert_eq!(*target, Target::status(Kind::MeshRelay, "a"));
        body["status"]["conditions"][0].clone()
    };
    let first = said(&cluster);
    assert_eq!(
        (&first["type"], &first["status"], &first["reason"]),
        (&json!("Reachable"), &json!("Unknown"), &json!("NobodyToTell"))
    );
    for number in 0..9 {
        let (name, status) = reaching(&format!("n{number}"));
        host(&mut cluster, &name, json!({}), json!({}), json!({}));
        member(&mut cluster, &name, json!({}), status);
    }
    let reached = said(&cluster);
    assert_eq!((&reached["status"], &reached["observedGeneration"]), (&json!("True"), &json!(4)));
    assert!(reached["message"].as_str().unwrap().starts_with("nodes at 5 or more sites reach it by QUIC"), "{reached}");
    relay(&mut cluster, "a", json!([reached]));
    assert!(condition_writes(&cluster, &plan(&cluster, now()), now()).is_empty(), "it is said already");
    host(&mut cluster, "n9", json!({}), json!({}), json!({}));
    let (name, status) = reaching("n9");
    member(&mut cluster, &name, json!({}), status);
    assert!(condition_writes(&cluster, &plan(&cluster, now()), now()).is_empty(), "one more is no news");
}
