//! The operator's part, as far as an agent sees it: it admits whatever key a node shows and publishes all admitted nodes.

use super::fake_api::FakeApi;
use serde_json::{Value, json};

/// Makes `Mesh/default` with this spec.
pub fn create_mesh(api: &FakeApi, spec: Value) {
    api.put("meshes", json!({"metadata": {"name": "default"}, "spec": spec}));
}

/// Makes a MeshNode that waits for its key.
pub fn create_node(api: &FakeApi, name: &str, number: u8) {
    let spec = json!({
        "nodeUID": format!("node-{name}"),
        "meshIPs": [format!("10.118.0.{number}")],
        "podCIDRs": [format!("10.244.{number}.0/24")],
        "nodeIPs": [],
        "listenPort": 21820 + u16::from(number),
        "admission": {"state": "Pending", "reason": "KeyMissing"},
    });
    api.put("meshnodes", json!({"metadata": {"name": name}, "spec": spec}));
}

/// Admits the key that a node shows, if it shows another than the admitted one. Whether it did.
pub fn admit(api: &FakeApi, name: &str) -> bool {
    let Some(mut node) = api.get("meshnodes", name) else { return false };
    let key = node["status"]["publicKey"].clone();
    if key.is_null() || node["spec"]["admission"]["publicKey"] == key {
        return false;
    }
    node["spec"]["admission"] =
        json!({"state": "Accepted", "publicKey": key, "keyGeneration": 1, "reason": "KeyAccepted"});
    api.put("meshnodes", node);
    true
}

/// Publishes these nodes in this slice; unchanged content is not written.
pub fn publish(api: &FakeApi, slice: &str, names: &[&str], generation: u64) {
    let entry = |name: &&str| {
        let node = api.get("meshnodes", name)?;
        let key = node["spec"]["admission"]["publicKey"].as_str()?.to_owned();
        Some(json!({
            "name": name,
            "uid": node["spec"]["nodeUID"],
            "publicKey": key,
            "generation": generation,
            "meshIPs": node["spec"]["meshIPs"],
            "podCIDRs": node["spec"]["podCIDRs"],
            "nodeIPs": node["spec"]["nodeIPs"],
            "listenPort": node["status"]["listenPort"],
            "round": node["status"]["round"],
            "candidates": node["status"]["candidates"],
        }))
    };
    let entries: Vec<Value> = names.iter().filter_map(entry).collect();
    api.put(
        "meshpeerslices",
        json!({"metadata": {"name": slice}, "spec": {"count": entries.len(), "entries": entries}}),
    );
}

/// The status of a condition.
pub fn condition(node: &Value, type_: &str) -> Option<(String, String)> {
    let conditions = node["status"]["conditions"].as_array()?;
    let found = conditions.iter().find(|c| c["type"] == type_)?;
    Some((found["status"].as_str()?.into(), found["reason"].as_str()?.into()))
}
