//! A simulated internet that runs real path engines in virtual time.
//!
//! # The model
//!
//! [`World`] holds machines and networks. A network is a realm in which addresses are unique; realms hang on each other by
//! [middleboxes](middlebox) that map, filter and forget as RFC 4787 describes, so a packet from a home behind a
//! provider's NAT walks through both, and through the other side's when it arrives, not when it was sent. A Linux box that
//! drops no strays tracks connections as the kernel does, so it can be poisoned. Only the core has [`Weather`] (delay,
//! jitter, loss, cuts) and routers that count a packet's hops. STUN servers stand in it, and relays that hand on
//! [signals](world::Signalling), late, lossy and out of order if that is wanted, and [carry data](relay) if they may.
//!
//! Every machine runs one [`path::Engine`] and a [toy WireGuard device](device) that has what the engine relies on:
//! a handshake of one round trip, roaming after authentic packets, counters, keepalives, the five seconds between two
//! initiations, and the stall when both sides initiate at once. Probes are the real bytes; WireGuard's messages are
//! values. A directory hands the candidates that one node publishes to the others, late and in any order. Users ping.
//!
//! Time moves from event to event. Randomness comes from one seed, so one number names a whole run, and two runs of it
//! leave the same [record](trace) to the byte.
//!
//! # The judges
//!
//! Watching every step: a pair that is shown as direct while the user's pings die is a lie, a probe to a forbidden
//! address is a crime, a timer that never advances is a panic. Watching the end: [`oracle::connects`] says from RFC 4787
//! alone which sites must have found each other, so a path missed and a path claimed falsely both fail.
//!
//! # What it is not
//!
//! No model of throughput, queues, TCP or real cryptography, and no substitute for the lab of network namespaces: what
//! Linux does with a stray packet is modelled after what was seen there, not derived from an RFC.

pub mod device;
pub mod internet;
pub mod middlebox;
pub mod node;
pub mod oracle;
pub mod packet;
pub mod random;
pub mod relay;
pub mod site;
pub mod trace;
pub mod world;

pub use internet::Weather;
pub use middlebox::{Behaviour, Block, Filtering, Mapping, Strays};
pub use site::Site;
pub use world::{Signalling, World};
