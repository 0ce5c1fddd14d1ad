//! `MeshPeerSlice`: what agents download. At most 64 peers an object, so that one join rewrites little.

use crate::mesh_node::Candidate;
use kube::{CustomResource, KubeSchema};
use serde::{Deserialize, Serialize};

/// A part of the directory of peers. Written by the operator alone; don't edit.
#[derive(CustomResource, KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[kube(
    group = "warren.dev",
    version = "v1alpha1",
    kind = "MeshPeerSlice",
    plural = "meshpeerslices",
    shortname = "mps",
    category = "warren",
    derive = "PartialEq",
    derive = "Default",
    doc = "A part of the directory of peers that every agent reads. Written by the operator alone. The slice `removed` holds tombstones.",
    printcolumn(name = "Peers", type_ = "integer", json_path = ".spec.count"),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp")
)]
#[serde(rename_all = "camelCase")]
pub struct MeshPeerSliceSpec {
    /// How many entries or tombstones there are.
    #[serde(default)]
    pub count: u32,
    /// The peers, sorted by name.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64))]
    pub entries: Vec<PeerEntry>,
    /// In the slice `removed`: the last 256 that left, oldest first. An absent entry removes nothing, a tombstone does.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 256))]
    pub tombstones: Vec<Tombstone>,
}

/// One peer, as the others must configure it.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct PeerEntry {
    /// Name of the `MeshNode`.
    #[schemars(length(max = 253))]
    pub name: String,
    /// UID of the Node.
    #[schemars(length(max = 64))]
    pub uid: String,
    /// Its admitted WireGuard public key.
    #[schemars(length(max = 44), regex(pattern = r"^[A-Za-z0-9+/]{42}[AEIMQUYcgkosw048]=$"))]
    pub public_key: String,
    /// Grows with every change of the entry, also across nodes that were made again under the same name: a lower one is stale.
    #[serde(default)]
    pub generation: u64,
    /// Its mesh addresses.
    #[serde(default, rename = "meshIPs")]
    #[schemars(length(max = 2), inner(length(max = 39)))]
    pub mesh_ips: Vec<String>,
    /// Its pod ranges.
    #[serde(default, rename = "podCIDRs", skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16), inner(length(max = 43)))]
    pub pod_cidrs: Vec<String>,
    /// Its own addresses that the mesh carries.
    #[serde(default, rename = "nodeIPs", skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16), inner(length(max = 39)))]
    pub node_ips: Vec<String>,
    /// Its WireGuard port.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub listen_port: Option<u16>,
    /// Its punch round; a larger one means: probe again now.
    #[serde(default)]
    pub round: u32,
    /// Where it may be reached.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16))]
    pub candidates: Vec<Candidate>,
}

/// A peer that is gone: its key must go too.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct Tombstone {
    /// Name of the `MeshNode`.
    #[schemars(length(max = 253))]
    pub name: String,
    /// UID of the Node.
    #[schemars(length(max = 64))]
    pub uid: String,
    /// The key that no longer belongs to the mesh.
    #[schemars(length(max = 44))]
    pub public_key: String,
    /// The generation of its last entry: an entry with a higher one is alive again.
    #[serde(default)]
    pub generation: u64,
}
