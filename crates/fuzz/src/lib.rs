//! What is fuzzed: parsers of bytes from strangers, and the state machines behind them.
//!
//! Each target is a function of bytes that panics when something that must always hold does not. `tests/corpus.rs` replays the
//! committed corpus, and mutations of it from a fixed seed, with every `cargo test`. `make fuzz` gives the same functions to libFuzzer,
//! which is guided by the code that its inputs reach (`libfuzzer/`, a workspace of its own); an input that it fails on is worth committing.

mod control_message;
mod plane;
mod relay_message;
mod sealed_message;
mod stun_message;

pub use control_message::control_message;
pub use plane::plane;
pub use relay_message::relay_message;
pub use sealed_message::sealed_message;
pub use stun_message::stun_message;

/// A name, as the corpus folder has it, and what to do with the bytes.
pub type Target = (&'static str, fn(&[u8]));

/// Every target.
pub const TARGETS: [Target; 5] = [
    ("control_message", control_message),
    ("relay_message", relay_message),
    ("sealed_message", sealed_message),
    ("stun_message", stun_message),
    ("plane", plane),
];
