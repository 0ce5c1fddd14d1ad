//! What tests of the whole agent share.
#![allow(dead_code, reason = "each test uses its part")]
#![allow(clippy::unwrap_used, reason = "a test may fail by panicking")]

pub mod fake_api;
pub mod netns;
pub mod operator;
pub mod pair;
