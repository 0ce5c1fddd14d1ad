//! The record of a run. Two runs of one seed must agree in every byte.

use std::time::Duration;

/// Lines kept; the fingerprint covers all.
const MAX_LINES: usize = 200_000;

/// What happened, in order.
#[derive(Debug, Default)]
pub struct Trace {
    lines: Vec<String>,
    fingerprint: u64,
}

impl Trace {
    /// Adds a line.
    pub fn note(&mut self, now: Duration, text: &str) {
        let line = format!("{:>12.6} {text}", now.as_secs_f64());
        for byte in line.bytes() {
            // FNV-1a: stable between builds, unlike the standard hasher.
            self.fingerprint = (self.fingerprint ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
        }
        if self.lines.len() < MAX_LINES {
            self.lines.push(line);
        }
    }

    /// A number that stands for the whole record.
    #[must_use]
    pub fn fingerprint(&self) -> u64 {
        self.fingerprint
    }

    /// The record.
    #[must_use]
    pub fn lines(&self) -> &[String] {
        &self.lines
    }
}
