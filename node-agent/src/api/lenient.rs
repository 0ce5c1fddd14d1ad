//! Reading what a newer or broken writer wrote: of an object that does not parse, everything that does.
//!
//! Objects are made of parts that stand for different nodes, and one part that this version cannot read says nothing about
//! the others. So a candidate of an unknown kind is left out alone, an entry that cannot be read is reduced to its name (the
//! reader then keeps what it knew under that name), and a status that cannot be read leaves the spec.

use serde::de::DeserializeOwned;
use serde_json::{Value, json};

/// Reduces the content of an object of this kind to what can be read of it.
pub fn soften(kind: &str, data: &mut Value) {
    match kind {
        "MeshPeerSlice" => {
            each(data.pointer_mut("/spec/entries"), entry);
            each(data.pointer_mut("/spec/tombstones"), |stone| parses::<crds::Tombstone>(stone).then(|| stone.clone()));
        }
        "MeshNode" => {
            candidates(data.pointer_mut("/status/candidates"));
            if !parses::<crds::MeshNodeStatus>(&data["status"]) {
                drop_field(data, "status");
            }
        }
        "MeshRelay" if !parses::<crds::MeshRelayStatus>(&data["status"]) => drop_field(data, "status"),
        _ => {}
    }
}

fn entry(entry: &Value) -> Option<Value> {
    let mut softer = entry.clone();
    candidates(softer.pointer_mut("/candidates"));
    if parses::<crds::PeerEntry>(&softer) {
        return Some(softer);
    }
    // Without a key it is known to be no peer, and by its name to be there.
    let name = entry["name"].as_str()?;
    Some(json!({"name": name, "uid": "", "publicKey": ""}))
}

fn candidates(list: Option<&mut Value>) {
    each(list, |found| parses::<crds::mesh_node::Candidate>(found).then(|| found.clone()));
}

/// What is no list fails as a whole.
fn each(list: Option<&mut Value>, softer: impl Fn(&Value) -> Option<Value>) {
    if let Some(Value::Array(items)) = list {
        *items = items.iter().filter_map(softer).collect();
    }
}

fn drop_field(data: &mut Value, field: &str) {
    if let Some(fields) = data.as_object_mut() {
        fields.remove(field);
    }
}

fn parses<T: DeserializeOwned>(value: &Value) -> bool {
    serde_json::from_value::<T>(value.clone()).is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEY: &str = "hSDwCYkwp1R0i33ctD73Wg2/Og0mOBr066SpjqqbTmo=";

    #[test]
    fn one_unknown_word_costs_its_own_part_only() {
        let good = json!({"name": "a", "uid": "u", "publicKey": KEY,
            "candidates": [{"address": "192.0.2.1:1", "kind": "Teleported"}, {"address": "192.0.2.1:2", "kind": "Host"}]});
        let mut data = json!({"spec": {"entries": [good, {"name": "b", "uid": 7}, 7],
            "tombstones": [{"name": "c", "uid": "u", "publicKey": KEY}, {"name": 7}]}});
        soften("MeshPeerSlice", &mut data);
        let spec: crds::MeshPeerSliceSpec = serde_json::from_value(data["spec"].clone()).unwrap();
        let names: Vec<&str> = spec.entries.iter().map(|e| e.name.as_str()).collect();
        assert_eq!((names, spec.entries[0].candidates.len()), (vec!["a", "b"], 1));
        assert_eq!(spec.entries[1].public_key, "");
        assert_eq!(spec.tombstones.len(), 1);
    }

    #[test]
    fn a_status_that_cannot_be_read_leaves_the_spec() {
        let mut data = json!({"spec": {"listenPort": 7}, "status": {"round": "many"}});
        soften("MeshNode", &mut data);
        assert_eq!(data, json!({"spec": {"listenPort": 7}}));
    }

    #[test]
    fn a_spec_of_another_shape_stays_unreadable() {
        for spec in [json!(7), json!({"entries": 7})] {
            let mut data = json!({ "spec": spec });
            soften("MeshPeerSlice", &mut data);
            assert!(!parses::<crds::MeshPeerSliceSpec>(&data["spec"]), "{spec}");
        }
    }
}
