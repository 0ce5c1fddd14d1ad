//! A clock that goes on while the machine sleeps.
//!
//! The monotonic clock stands still during a suspend, so that a leader that wakes up would take its old term for a running
//! one. `CLOCK_BOOTTIME` counts that time as well.
#![allow(unsafe_code)]

use std::{ops::Add, time::Duration};

/// A point in time of this machine, suspends included.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Moment(Duration);

impl Moment {
    /// This moment.
    pub fn now() -> Self {
        let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
        // SAFETY: `time` is valid for writes and outlives the call.
        let result = unsafe { libc::clock_gettime(libc::CLOCK_BOOTTIME, &mut time) };
        assert_eq!(result, 0, "CLOCK_BOOTTIME is there since Linux 2.6.39");
        let seconds = Duration::from_secs(time.tv_sec.try_into().unwrap_or_default());
        Self(seconds + Duration::from_nanos(time.tv_nsec.try_into().unwrap_or_default()))
    }

    /// The time since `earlier`, or zero.
    pub fn saturating_duration_since(self, earlier: Self) -> Duration {
        self.0.saturating_sub(earlier.0)
    }
}

impl Add<Duration> for Moment {
    type Output = Self;

    fn add(self, time: Duration) -> Self {
        Self(self.0.saturating_add(time))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_the_clock_that_counts_suspends() {
        let uptime = std::fs::read_to_string("/proc/uptime").unwrap();
        let seconds: f64 = uptime.split(' ').next().unwrap().parse().unwrap();
        let difference = Moment::now().0.as_secs_f64() - seconds;
        assert!((0.0..5.0).contains(&difference), "/proc/uptime counts suspends too: {difference}");
        assert!(Moment::now() + Duration::from_secs(1) > Moment::now());
    }
}
