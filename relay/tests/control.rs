//! The control channel's logic through its public verbs.

#![allow(clippy::unwrap_used)]

#[path = "control/world.rs"]
mod world;

#[path = "control/consent.rs"]
mod consent;
#[path = "control/hello.rs"]
mod hello;
#[path = "control/members.rs"]
mod members;
#[path = "control/pairs.rs"]
mod pairs;
#[path = "control/random.rs"]
mod random;
#[path = "control/strays.rs"]
mod strays;
