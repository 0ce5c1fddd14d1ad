//! What the relay decides, without a socket, a clock or a random number of its own.
//!
//! * [`stun`] tells whoever asks which address it has.
//! * [`plane`] lets the two nodes of a pair talk through a port of this host.
//!
//! Time comes as an argument, randomness as a seed. The shells are [`crate::serve`] and [`crate::udp`].

mod budget;
pub mod plane;
pub mod stun;

pub use budget::Budget;
pub use stun::{PLAIN_ANSWERS_PER_SECOND, Server, Verdict};
