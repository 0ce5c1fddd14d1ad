//! The Kubernetes API of Warren, group `warren.dev`, version `v1alpha1`: one source of truth.
//!
//! Every kind is cluster-scoped and belongs to the category `warren`, so `kubectl get warren` shows all of it. The Rust
//! types here are the only definition: the YAML in `crds/generated/` is printed from them by `warren-crds` and checked for
//! drift, and the doc comments are what `kubectl explain` prints.
//!
//! Who writes what is the heart of the model, because Kubernetes' own access control enforces it:
//!
//! | Kind | Written by | Read by |
//! |---|---|---|
//! | [`Mesh`] | an admin (spec), the operator (status) | everybody |
//! | [`MeshNode`] | the operator (spec), the node itself (status) | everybody |
//! | [`MeshPeerSlice`] | the operator alone | agents |
//! | [`MeshRelay`] | the operator (spec, and in status the condition `Reachable`), the relay itself (the rest of status) | agents |
//!
//! What a node can write (`MeshNode.status`) never decides who owns an address: allowed IPs come from `spec` only. No object
//! holds a heartbeat, a counter or the state of a pair, since every write to a watched object reaches every agent.
//!
//! What a schema can say, it says: every list has `maxItems`, every string `maxLength`, addresses and prefixes are checked by
//! CEL in the API server, so that a typing mistake is refused with a message rather than found later in a log. What needs a
//! look at two objects at once (uniqueness, overlaps) is the operator's: see the crate `topology`.

#![allow(clippy::duplicated_attributes, reason = "a kind has one `printcolumn(..)` for each column")]

pub mod address;
pub mod bounds;
pub mod condition;
pub mod mesh;
pub mod mesh_node;
pub mod mesh_peer_slice;
pub mod mesh_relay;
pub mod names;
mod yaml;

pub use condition::{Condition, ConditionStatus};
pub use mesh::{Mesh, MeshSpec, MeshStatus};
pub use mesh_node::{MeshNode, MeshNodeSpec, MeshNodeStatus};
pub use mesh_peer_slice::{MeshPeerSlice, MeshPeerSliceSpec, PeerEntry, Tombstone};
pub use mesh_relay::{MeshRelay, MeshRelaySpec, MeshRelayStatus};
pub use yaml::{CrdFile, crd_files};
