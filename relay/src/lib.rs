//! The relay: a host with a reachable address that helps nodes behind NATs to find each other.
//!
//! # Model
//!
//! A node cannot see the address that its NAT gives it, so it asks somebody outside. One part of the relay is
//! that somebody: it answers STUN Binding requests with the source address they arrived from, and nothing else. It
//! knows no node, holds no key and keeps no state between two packets but one token bucket. The other part carries
//! WireGuard's packets between two nodes that cannot reach each other, for members of the mesh that ask for it on the control channel.
//!
//! * [`server`] decides, without a socket or a clock of its own: [`server::stun`] bytes, source and time in, at most one reply
//!   out; [`server::plane`] the data plane; [`server::control`] who may ask for what.
//! * [`socket`] and [`serve`] are the shell of the first. A reply leaves from the address that was asked, also on a host with
//!   several, because a NAT drops an answer that comes from anywhere else.
//! * [`udp`] is the shell of the second: a thread that outlives whoever speaks to it.
//! * [`control`](mod@control) is the shell of the third: a thread that is started again when it fails. [`carry`] starts both.
//! * [`publish`] writes where the relay can be asked into the status of its `MeshRelay`, if there is a cluster: the addresses
//!   that an admin or the operator gave in its spec, then those it finds itself.
//! * [`monitor`] shows counters and health.
//!
//! # Life cycle
//!
//! The sockets are opened first and served until SIGTERM. The Kubernetes API is a bystander: it is told the addresses
//! once, again only when they change, and its absence is waited out with backoff while STUN goes on. A relay outside any
//! cluster runs with no API at all, and carries nothing, since it knows no member.
//!
//! # What it refuses
//!
//! * To amplify. A request at least as large as its answer is always answered; members of a mesh pad theirs. Smaller
//!   ones, as every other STUN client sends, share a budget of 50 answers a second, because a sender can forge its source.
//! * To answer anything but a well-formed Binding request: no errors, no indications, no other attribute that must be
//!   understood. Silence is the answer to everything else, and a counter with a reason from a closed list.
//! * To log packets or their sources.
//! * To carry anything for who is no member, or to know what it carries.
//! * To need a capability or root, or to write anything but its identity key.

pub mod addresses;
pub mod args;
mod backoff;
pub mod carry;
pub mod control;
pub mod hardening;
pub mod identity;
pub mod monitor;
pub mod publish;
pub mod serve;
pub mod server;
pub mod socket;
pub mod udp;
