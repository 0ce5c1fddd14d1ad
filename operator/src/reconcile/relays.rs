//! The relays of the cluster: one for every Node with the label, with the addresses and the zone that its Node says.

use super::{
    API_VERSION,
    diff::{Target, Verb, Write},
};
use crate::{
    convert,
    index::{Cluster, Kind, NodeValue, RelayValue, Stored},
};
use serde_json::{Value, json};
use std::net::SocketAddr;

/// The port of STUN (RFC 8489, section 7.1), until the relay says another.
const STUN_PORT: u16 = 3478;
/// As many as the schema takes.
const MAX_ADDRESSES: usize = 4;

/// Relays to delete, and relays to make or correct. A relay without a Node is an admin's and left alone.
pub fn writes(cluster: &Cluster) -> (Vec<Write>, Vec<Write>) {
    let mut retire = Vec::new();
    for (name, relay) in cluster.relays.iter() {
        let node = cluster.nodes.get(name).filter(|node| node.value.relay);
        let current = node.is_some_and(|node| relay.value.node_uid.as_ref() == Some(&node.meta.uid));
        // No Node at all is a broken list rather than the end of every relay.
        if is_ours(name, relay) && !current && !cluster.nodes.is_empty() {
            let verb = Verb::Delete { uid: relay.meta.uid.clone(), version: None };
            retire.push(Write { target: Target::new(Kind::MeshRelay, name), verb });
        }
    }
    let nodes = cluster.nodes.iter().filter(|(_, node)| node.value.relay);
    let wanted = nodes.filter_map(|(name, node)| match cluster.relays.get(name) {
        None => Some(create(name, node)),
        Some(relay) if !is_ours(name, relay) => None,
        Some(relay) if relay.value.node_uid.as_ref() != Some(&node.meta.uid) => Some(create(name, node)),
        Some(relay) => correction(name, node, relay),
    });
    (retire, wanted.collect())
}

fn is_ours(name: &str, relay: &Stored<RelayValue>) -> bool {
    relay.value.node_name.as_deref() == Some(name)
}

fn create(name: &str, node: &Stored<NodeValue>) -> Write {
    let owner = json!({ "apiVersion": "v1", "kind": "Node", "name": name, "uid": node.meta.uid });
    let metadata = json!({ "name": name, "ownerReferences": [owner] });
    let spec = convert::relay_spec(name, &node.meta.uid, &addresses(&node.value, None), node.value.zone.as_deref());
    Write { target: Target::new(Kind::MeshRelay, name), verb: Verb::Create(object(metadata, spec)) }
}

fn correction(name: &str, node: &Stored<NodeValue>, relay: &Stored<RelayValue>) -> Option<Write> {
    // What somebody else wrote stands, and is not named: so it is not ours either.
    let addresses = (!relay.value.is_addressed_by_others).then(|| addresses(&node.value, Some(&relay.value)));
    let domain = node.value.zone.as_deref().filter(|_| !relay.value.is_placed_by_others);
    let is_placed = relay.value.is_placed_by_others || relay.value.domain.as_deref() == domain;
    if is_placed && addresses.as_ref().is_none_or(|wanted| relay.value.addresses == *wanted) {
        return None;
    }
    let metadata = json!({ "name": name, "resourceVersion": relay.meta.version });
    let mut spec = convert::relay_spec(name, &node.meta.uid, &[], domain);
    if let Some(wanted) = addresses {
        spec["addresses"] = json!(wanted);
    }
    Some(Write { target: Target::new(Kind::MeshRelay, name), verb: Verb::Apply(object(metadata, spec)) })
}

fn object(metadata: Value, spec: Value) -> Value {
    json!({ "apiVersion": API_VERSION, "kind": "MeshRelay", "metadata": metadata, "spec": spec })
}

/// Where a relay on this Node answers beside what it sees itself.
fn addresses(node: &NodeValue, relay: Option<&RelayValue>) -> Vec<String> {
    // The relay repeats the addresses of its spec; what it adds has the port that it really has.
    let known = relay.map(|relay| &relay.addresses[..]).unwrap_or_default();
    let shown = relay.map(|relay| &relay.stun[..]).unwrap_or_default();
    let own = shown.iter().find(|text| !known.contains(text)).or(known.first());
    let port = own.and_then(|text| text.parse::<SocketAddr>().ok()).map_or(STUN_PORT, |addr| addr.port());
    node.external_ips.iter().take(MAX_ADDRESSES).map(|ip| SocketAddr::new(*ip, port).to_string()).collect()
}
