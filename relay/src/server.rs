//! What the relay decides, without a socket, a clock or a random number of its own.

mod budget;
pub mod stun;

pub use budget::Budget;
pub use stun::{PLAIN_ANSWERS_PER_SECOND, Server, Verdict};
