//! What the relay decides, without a socket, a clock or a random number of its own.
//!
//! * [`stun`] tells whoever asks which address it has.
//! * [`control`] hears what nodes want and tells whom it concerns.
//! * [`plane`] lets the two nodes of a pair talk through a port of this host.
//!
//! Time comes as an argument, randomness as a seed. The shells are [`crate::serve`], [`crate::udp`] and [`crate::control`].

mod budget;
pub mod control;
pub mod plane;
pub mod stun;

pub use budget::Budget;
pub use stun::{PLAIN_ANSWERS_PER_SECOND, Server, Verdict};
