//! UDP in bulk: many datagrams with one system call, both ways.
//!
//! # Model
//!
//! Linux hands datagrams of one sender and one size over as one message of up to 64 KiB (`UDP_GRO`), takes such a message to send
//! (`UDP_SEGMENT`), and moves several messages with one call (`recvmmsg`, `sendmmsg`). A [`Receiver`] and a [`Sender`] do both, with the
//! local address of each message beside it, so that a host with several answers from the one that was asked. [`control`] has
//! the socket options and the ancillary data behind them.
//!
//! The WireGuard device and the relay are built on it. It opens no socket and decides nothing.
//!
//! # What it refuses
//!
//! * To tell merged datagrams apart: whoever judges them looks at each segment.
//! * To wait. What cannot be sent now is counted and dropped, as the network would do.

pub mod control;
mod receive;
mod runs;
mod send;

pub use control::Control;
pub use receive::{Received, Receiver, SLOTS};
pub use runs::Run;
pub use send::{Outgoing, Sender, Sent};
