//! The data plane through its public verbs.

#![allow(clippy::unwrap_used)]

#[path = "plane/support.rs"]
mod support;

#[path = "plane/attach.rs"]
mod attach;
#[path = "plane/binding.rs"]
mod binding;
#[path = "plane/colouring.rs"]
mod colouring;
#[path = "plane/consent.rs"]
mod consent;
#[path = "plane/fairness.rs"]
mod fairness;
#[path = "plane/forwarding.rs"]
mod forwarding;
#[path = "plane/hostile.rs"]
mod hostile;
#[path = "plane/kept.rs"]
mod kept;
#[path = "plane/lifetime.rs"]
mod lifetime;
#[path = "plane/restart.rs"]
mod restart;
