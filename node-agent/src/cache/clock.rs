//! Whether this machine's clock is behind what it was: peers refuse the handshakes of a node whose time runs backwards.

use crate::files;
use std::{
    path::Path,
    time::{Duration, SystemTime},
};

/// Clocks are set back by this much for good reasons; handshakes then wait no longer than that.
const TOLERANCE: Duration = Duration::from_secs(60);

/// The latest time that an agent of this node has left on disk.
#[derive(Clone, Copy, Debug)]
pub struct Clock {
    last: Option<SystemTime>,
}

impl Clock {
    /// What the files in the folder tell. To be asked before anything is written.
    pub fn of(folder: &Path) -> Self {
        Self { last: files::last_written(folder) }
    }

    /// What is wrong, and what to do.
    pub fn behind(self, now: SystemTime) -> Option<String> {
        let behind = self.last?.duration_since(now).ok().filter(|behind| *behind > TOLERANCE)?;
        Some(format!(
            "this machine's clock is {} behind what it was when the agent last wrote to its disk, so peers refuse the handshakes that \
             this node begins and it waits for theirs; set the clock, and let a time service keep it",
            spoken(behind)
        ))
    }
}

/// To the hour or minute, so that the sentence does not change with every second.
fn spoken(duration: Duration) -> String {
    let minutes = duration.as_secs() / 60;
    match minutes / 60 {
        0 => format!("{minutes} min"),
        hours => format!("{hours} h"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_clock_that_is_set_back_is_told_and_one_that_goes_on_is_not() {
        let last = SystemTime::UNIX_EPOCH + Duration::from_secs(1_000_000);
        let clock = Clock { last: Some(last) };
        for (now, told) in [
            (last + Duration::from_secs(1), None),
            (last, None),
            (last - TOLERANCE, None),
            (last - TOLERANCE - Duration::from_secs(1), Some("1 min")),
            (last - Duration::from_secs(86_400), Some("24 h")),
        ] {
            let behind = clock.behind(now);
            assert_eq!(behind.is_some(), told.is_some(), "{behind:?}");
            assert!(told.is_none_or(|told| behind.is_some_and(|text| text.contains(told))));
        }
        assert_eq!(Clock { last: None }.behind(SystemTime::UNIX_EPOCH), None);
    }
}
