//! What the lab is doing and how long each step took.

use std::time::Instant;

use anyhow::Result;

/// Prints a line per finished step. Shared by threads.
#[derive(Debug)]
pub struct Progress {
    start: Instant,
}

impl Progress {
    /// Starts the clock.
    #[must_use]
    #[expect(clippy::new_without_default, reason = "it reads the clock")]
    pub fn new() -> Self {
        Self { start: Instant::now() }
    }

    /// Runs a step, then prints its name and how long it took.
    pub fn step<T>(&self, name: &str, work: impl FnOnce() -> Result<T>) -> Result<T> {
        let began = Instant::now();
        let result = work();
        let took = began.elapsed();
        let mark = if result.is_ok() { "" } else { "  FAILED" };
        eprintln!("{:7.1} s  {name} ({:.1} s){mark}", self.start.elapsed().as_secs_f32(), took.as_secs_f32());
        result
    }

    /// A line between the steps.
    pub fn say(&self, line: &str) {
        eprintln!("{:7.1} s  {line}", self.start.elapsed().as_secs_f32());
    }
}
