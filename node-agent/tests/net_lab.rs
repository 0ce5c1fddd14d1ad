//! The host network in real namespaces: what is written, what is repaired, and which way packets take.
//!
//! Needs root, `ip` and `nft`; skipped with the reason otherwise, unless REQUIRE_LAB=1. Every apply runs with CAP_NET_ADMIN
//! and CAP_NET_RAW alone and with `/proc/sys` read-only.

#[path = "net_lab/lab.rs"]
mod lab;
#[path = "net_lab/packets.rs"]
mod packets;
#[path = "net_lab/plans.rs"]
mod plans;
#[path = "net_lab/plugins.rs"]
mod plugins;
#[path = "net_lab/redirect.rs"]
mod redirect;
#[path = "net_lab/state.rs"]
mod state;
#[path = "net_lab/thread.rs"]
mod thread;
