//! The data plane on real sockets, between real WireGuard devices.

#![allow(clippy::unwrap_used)]

#[path = "forwarder/lab.rs"]
mod lab;
#[path = "forwarder/node.rs"]
mod node;
#[allow(dead_code, reason = "the tests of the data plane use the rest")]
#[path = "plane/support.rs"]
mod support;

#[path = "forwarder/channels.rs"]
mod channels;
#[path = "forwarder/devices.rs"]
mod devices;
#[path = "forwarder/overload.rs"]
mod overload;
#[path = "forwarder/sockets.rs"]
mod sockets;
