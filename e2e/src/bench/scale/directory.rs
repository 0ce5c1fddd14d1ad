//! A directory of peers that nobody runs: valid keys, addresses that don't clash, and no candidates, so that what is measured is the
//! agent's own work and not its probes of addresses where nobody answers.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

/// As the operator packs them.
pub const SLICE: usize = 64;
/// Every so many peers one has more than one pod range.
const WIDER: usize = 8;

/// The first mesh address of a peer; 1 is the node itself.
#[must_use]
pub fn mesh_address(peer: usize) -> String {
    let number = peer + 2;
    format!("10.118.{}.{}", number / 256, number % 256)
}

/// The spec of the node that is measured, with the first address.
#[must_use]
pub fn node(name: &str) -> Value {
    object(
        "MeshNode",
        name,
        json!({
            "nodeUID": "node-0", "meshIPs": ["10.118.0.1"], "podCIDRs": ["10.127.0.0/24"], "nodeIPs": [],
            "listenPort": 21820, "admission": {"state": "Pending", "reason": "KeyMissing"},
        }),
    )
}

/// The settings of the mesh.
#[must_use]
pub fn mesh() -> Value {
    let spec = json!({
        "addresses": {"ipv4": "10.118.0.0/16"}, "serviceCIDRs": ["10.96.0.0/16"], "backend": "Userspace",
        "podCIDRs": ["10.127.0.0/16", "10.128.0.0/9", "fd00:100::/24"],
    });
    object("Mesh", "default", spec)
}

/// A change of these settings: the ranges of the pods are not named.
#[must_use]
pub fn without_pod_ranges() -> Value {
    json!({"spec": {"podCIDRs": []}})
}

/// The peers `0..count` in slices.
pub fn slices(count: usize) -> impl Iterator<Item = Value> {
    let slice = move |number: usize| {
        let peers: Vec<usize> = (number * SLICE..count.min((number + 1) * SLICE)).collect();
        object("MeshPeerSlice", &slice_name(number), spec(&peers))
    };
    (0..count.div_ceil(SLICE)).map(slice)
}

/// The slice that has this peer.
#[must_use]
pub fn slice_of(peer: usize) -> String {
    slice_name(peer / SLICE)
}

/// What the slice of a peer says once that peer has joined as the last of all.
#[must_use]
pub fn joining(peer: usize) -> Value {
    let first = peer / SLICE * SLICE;
    json!({"spec": spec(&(first..=peer).collect::<Vec<_>>())})
}

fn slice_name(number: usize) -> String {
    format!("peers-{number:03}")
}

fn spec(peers: &[usize]) -> Value {
    let entries: Vec<Value> = peers.iter().map(|peer| entry(*peer)).collect();
    json!({"count": entries.len(), "entries": entries})
}

fn entry(peer: usize) -> Value {
    let name = format!("node-{peer:05}");
    let mut key: [u8; 32] = Sha256::digest(&name).into();
    // Below the prime, so that it is the only encoding of its point.
    key[31] &= 0x3f;
    let (high, low) = (peer / 256, peer % 256);
    let mut pods = vec![format!("10.{}.{low}.0/24", 128 + high)];
    if peer.is_multiple_of(WIDER) {
        pods.extend([format!("10.{}.{low}.0/24", 160 + high), format!("fd00:{:x}:{low:x}::/64", 0x100 + high)]);
    }
    json!({
        "name": name, "uid": format!("uid-{peer}"), "publicKey": STANDARD.encode(key), "generation": 1,
        "meshIPs": [mesh_address(peer)], "podCIDRs": pods, "nodeIPs": [], "listenPort": 21820, "round": 1, "candidates": [],
    })
}

fn object(kind: &str, name: &str, spec: Value) -> Value {
    json!({"apiVersion": "warren.dev/v1alpha1", "kind": kind, "metadata": {"name": name}, "spec": spec})
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn no_two_peers_share_a_key_or_a_prefix() {
        let all: Vec<Value> = (0..5_001).map(entry).collect();
        let distinct = |field: &str| all.iter().map(|e| e[field].to_string()).collect::<BTreeSet<_>>().len();
        assert_eq!([distinct("publicKey"), distinct("meshIPs"), distinct("podCIDRs")], [all.len(); 3]);
    }

    #[test]
    fn a_peer_joins_the_last_slice() {
        assert_eq!(slices(130).map(|s| s["spec"]["count"].clone()).collect::<Vec<_>>(), [64, 64, 2]);
        assert_eq!(joining(130)["spec"]["count"], json!(3));
        assert_eq!(slice_of(130), "peers-002");
    }
}
