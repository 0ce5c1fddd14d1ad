//! `MeshNode.status`: when to write it, and what counts as a change.

pub mod bucket;
pub mod conditions;
pub mod content;
pub mod pacer;
