//! The lab's internet: network namespaces, links, routers, the delay and the watch for plaintext.
//!
//! Everything lives in namespaces named `wl-LAB-..`; links are made with both ends inside them, so the root namespace
//! never sees an interface, a route or a rule of the lab.

pub mod namespace;
pub mod router;
pub mod shaper;
pub mod sniffer;
pub mod topology;
