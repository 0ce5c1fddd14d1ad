//! The Kubernetes API: several addresses for one cluster, and what the agent watches and writes there.

pub mod attempts;
pub mod connect;
pub mod endpoints;
pub mod feed;
pub mod lenient;
pub mod resolve;
pub mod writer;

pub use connect::Connection;
pub use feed::{Fed, Listing, Told};
