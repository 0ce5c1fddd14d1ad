//! What the lab is doing and how long each step took.

use std::sync::Mutex;
use std::time::{Duration, Instant};

use anyhow::Result;

/// Prints a line per finished step and keeps them for a summary. Shared by threads.
#[derive(Debug)]
pub struct Progress {
    start: Instant,
    steps: Mutex<Vec<(String, Duration)>>,
}

impl Progress {
    /// Starts the clock.
    #[must_use]
    #[expect(clippy::new_without_default, reason = "it reads the clock")]
    pub fn new() -> Self {
        Self { start: Instant::now(), steps: Mutex::new(Vec::new()) }
    }

    /// Runs a step, then prints its name and how long it took.
    pub fn step<T>(&self, name: &str, work: impl FnOnce() -> Result<T>) -> Result<T> {
        let began = Instant::now();
        let result = work();
        let took = began.elapsed();
        let mark = if result.is_ok() { "" } else { "  FAILED" };
        eprintln!("{:7.1} s  {name} ({:.1} s){mark}", self.start.elapsed().as_secs_f32(), took.as_secs_f32());
        if let Ok(mut steps) = self.steps.lock() {
            steps.push((name.to_owned(), took));
        }
        result
    }

    /// A line between the steps.
    pub fn say(&self, line: &str) {
        eprintln!("{:7.1} s  {line}", self.start.elapsed().as_secs_f32());
    }

    /// Every step so far with its duration.
    pub fn steps(&self) -> Vec<(String, Duration)> {
        self.steps.lock().map(|steps| steps.clone()).unwrap_or_default()
    }
}
