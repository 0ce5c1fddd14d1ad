//! Randomness that isn't secret: jitter.

/// A number in 0..1. Without random bytes the middle: jitter is a courtesy, not a need.
pub fn unit() -> f64 {
    getrandom::u32().map_or(0.5, |n| f64::from(n) / (f64::from(u32::MAX) + 1.0))
}
