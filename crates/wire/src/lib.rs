//! Bytes that cross a trust boundary, and the keys that give them meaning.
//!
//! # Model
//!
//! Warren's nodes find each other with small datagrams that share WireGuard's own UDP port. This crate says what those
//! datagrams look like and who can make them. Everything here is a function of its arguments: no socket, no clock, no
//! random numbers, no file. A shell draws the transaction ids and private keys and passes them in, so the same bytes in
//! give the same bytes out, in the agent, in the simulator and in a test.
//!
//! * [`key`]: Curve25519 keys as newtypes. A [`PublicKey`] is any 32 bytes until [`PublicKey::validate`] has accepted
//!   it; a [`PrivateKey`] wipes itself and can be neither cloned nor printed.
//! * [`stun`]: the Binding method of RFC 8489, and the two predicates that split one UDP port in three:
//!   [`stun::is_wireguard`] (the device's), [`stun::is_stun`] (ours), neither (dropped).
//! * [`pair`]: keys that exactly two nodes can compute, from one's private key and the other's public key. No message is
//!   exchanged to agree on them, so a mesh of N nodes needs N published keys and no signalling per pair.
//! * [`probe`]: a STUN message whose one attribute is sealed with those keys: PING and PONG prove that a path carries
//!   packets both ways, NOMINATE and its acknowledgement choose it.
//! * [`relay`]: BIND, CHALLENGE, ANSWER and BOUND, by which a node binds its leg of a relayed pair; and which datagrams a
//!   relay may forward.
//! * [`control`]: what a node and a relay tell each other over the relay's control channel.
//! * [`proof`]: proof to the operator that a node holds the private half of the key it publishes.
//!
//! # Life of a probe
//!
//! The sender [`seal`](probe::seal)s a PING under a fresh transaction id. It leaves from WireGuard's port and looks like
//! a STUN Binding request to every middlebox. The receiver reads the [`key id`](probe::key_id) first, a table lookup
//! without any cryptography: an unknown id is the end of the packet, so strangers cost nothing but the lookup. A
//! known id selects the [`pair::PairKeys`] that [`open`](probe::open) it. The PONG carries the source address that the
//! receiver saw and the same transaction id. All probes have one size, hence a reply is never larger than its request,
//! and an observer cannot tell a nomination from a ping.
//!
//! # What it refuses
//!
//! * To panic or to allocate in proportion to anything received: every decoder takes any bytes and returns a small error.
//! * To make a secret from a public key that contributes nothing (all-zero shared secrets, compared in constant time).
//! * To decode more of STUN than Binding: no long-term credentials, no TURN, no RFC 5780 server behaviour.
//! * To remember anything. Replay windows, rate limits, epochs and transaction tables belong to the path engine; a PING
//!   that opens is evidence of a candidate, never of a path.
//! * To show a secret: private keys, shared secrets and pair keys print as their type's name.

pub mod control;
pub mod key;
pub mod pair;
pub mod probe;
pub mod proof;
pub mod relay;
pub mod stun;

pub use key::{KeyError, PrivateKey, PublicKey, SharedSecret};
