//! Deadlines.

use std::time::Instant;

/// The first of several deadlines, if there is any.
pub(crate) fn earliest<const N: usize>(deadlines: [Option<Instant>; N]) -> Option<Instant> {
    deadlines.into_iter().flatten().min()
}
