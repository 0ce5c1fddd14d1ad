//! Waiting for a condition, never for a time: every wait has a deadline and says what it saw last.

use std::time::{Duration, Instant};

use anyhow::{Result, bail};

/// How often a condition is looked at: short against everything the lab waits for, long against what a look costs.
const POLL: Duration = Duration::from_millis(200);

/// Looks until `look` gives a value; its `Err` is what it saw instead, and the last one is part of the failure.
pub fn until<T>(what: &str, deadline: Duration, mut look: impl FnMut() -> Result<T, String>) -> Result<T> {
    let start = Instant::now();
    loop {
        let seen = match look() {
            Ok(value) => return Ok(value),
            Err(seen) => seen,
        };
        if start.elapsed() >= deadline {
            bail!("waited {} s for {what}; seen last: {seen}", deadline.as_secs());
        }
        std::thread::sleep(POLL);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_thing_seen_is_in_the_failure() {
        let mut looks = 0;
        let error = until::<()>("a miracle", Duration::from_millis(300), || {
            looks += 1;
            Err(format!("look {looks}"))
        })
        .expect_err("it never happens");
        assert_eq!(error.to_string(), format!("waited 0 s for a miracle; seen last: look {looks}"));
    }
}
