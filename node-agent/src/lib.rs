//! The agent: what makes a machine a member of the mesh.
//!
//! # Model
//!
//! One agent runs on each node. It is told things by the Kubernetes API (the settings of the mesh, its own addresses, the
//! directory of peers, where STUN servers are), finds things out about its machine (addresses, gateways, NATs), computes from
//! both what the node should have, compares that with what it has, and changes the difference: WireGuard peers, routes,
//! rules, firewall, the CNI file. It tells the API its public key, where it may be reached, and conditions.
//!
//! The computing parts are pure and live elsewhere: `topology` says what a node must configure, `path` finds ways to peers.
//! Here are the shells that carry it out ([`host`], [`net`], [`cni`], `wgdev`), what is known ([`told`], [`cache`], [`key`]),
//! what is said ([`status`], [`local`], [`metrics`]), and the one loop that joins them ([`agent`]).
//!
//! # Life cycle
//!
//! At the start the process makes itself undumpable, takes the lock of the node, and reads the key, or makes one. What was
//! told last is on disk, so device, peers and routes stand before the API has answered; the API then corrects it. A new node
//! publishes its key and a proof that it holds the private half, and waits to be admitted. From there everything is change:
//! an object, an address, a datagram, a timer. Each wakes the loop once, and the loop brings the node in line.
//!
//! When the agent ends, the interface, its routes and the firewall stay, so that nothing leaks while nobody is there; sessions
//! are those of the process and begin anew. `warren-agent cleanup` takes everything away.
//!
//! # What it refuses to do
//!
//! - The private key never leaves the state folder and the memory of this process: not in an object, a log, an error, a core
//!   file or an argument.
//! - Nothing that is missing is removed: an API that is down, an empty list, a deleted object leave the node as it is. Only a
//!   tombstone or a confirmed list removes a peer.
//! - Readiness never waits for a peer, and the CNI file neither: a node alone is ready.
//! - Nothing is written to the API that it knows already, and there is no heartbeat.
//! - It starts no process and needs no capability but NET_ADMIN and NET_RAW.

pub mod agent;
pub mod api;
pub mod args;
pub mod cache;
pub mod carry;
pub mod cni;
pub mod commands;
pub mod files;
pub mod host;
pub mod key;
pub mod local;
pub mod memory;
pub mod metrics;
pub mod net;
pub mod paths;
pub mod process;
pub mod random;
pub mod relays;
pub mod selftest;
pub mod start;
pub mod status;
#[cfg(test)]
mod testing;
pub mod told;
