//! What waits to be written, and the thread that writes it.

use super::Name;
use crate::files;
use std::{
    collections::BTreeMap,
    fs, io,
    path::{Path, PathBuf},
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};
use tokio::sync::watch;

/// What the disk refused is tried again after this: whoever frees the disk need not restart anything.
pub(super) const RETRY: Duration = Duration::from_secs(5);

#[derive(Debug, Default)]
pub(super) struct Queue {
    state: Mutex<Pending>,
    pub(super) wake: Condvar,
}

#[derive(Debug, Default)]
pub(super) struct Pending {
    /// `None` removes the file.
    pub(super) files: BTreeMap<Name, Option<Vec<u8>>>,
    /// What the disk refused.
    pub(super) refused: BTreeMap<Name, Option<Vec<u8>>>,
    /// What is being written.
    pub(super) writing: Option<(Name, Option<Vec<u8>>)>,
}

impl Pending {
    /// The newest content that the disk does not have yet, if there is any; it may be that there is to be none.
    pub(super) fn newest(&self, name: &Name) -> Option<&Option<Vec<u8>>> {
        let writing = self.writing.as_ref().filter(|(writing, _)| writing == name).map(|(_, content)| content);
        self.files.get(name).or(writing).or_else(|| self.refused.get(name))
    }
}

impl Queue {
    pub(super) fn lock(&self) -> MutexGuard<'_, Pending> {
        // Nothing panics while it holds the lock, and a half-made queue is still a queue.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

pub(super) struct Writer {
    pub(super) folder: PathBuf,
    pub(super) queue: Arc<Queue>,
    pub(super) report: watch::Sender<Option<String>>,
    pub(super) retry: Duration,
}

impl Writer {
    pub(super) fn run(self) {
        let mut retry_at = Instant::now();
        loop {
            let (name, content) = self.next(retry_at);
            let path = self.folder.join(&name.0);
            let result = match &content {
                Some(content) if fs::read(&path).is_ok_and(|old| old == *content) => Ok(()),
                Some(content) => files::replace(&path, content),
                None => remove_if_there(&path),
            };
            let mut pending = self.queue.lock();
            match result {
                Ok(()) if pending.refused.is_empty() => self.tell(None),
                Ok(()) => {}
                Err(e) => {
                    retry_at = Instant::now() + self.retry;
                    // A newer content that waits already is the one to try again.
                    if !pending.files.contains_key(&name) {
                        pending.refused.insert(name, content);
                    }
                    self.tell(Some(format!("{}: {e}", path.display())));
                }
            }
            pending.writing = None;
            self.queue.wake.notify_all();
        }
    }

    fn tell(&self, failure: Option<String>) {
        self.report.send_if_modified(|old| std::mem::replace(old, failure.clone()) != failure);
    }

    /// The next thing to write: what is new, or from `retry_at` on what was refused.
    pub(super) fn next(&self, retry_at: Instant) -> (Name, Option<Vec<u8>>) {
        let mut pending = self.queue.lock();
        loop {
            if let Some(work) = pending.files.pop_first() {
                pending.writing = Some(work.clone());
                return work;
            }
            let wait = retry_at.saturating_duration_since(Instant::now());
            if pending.refused.is_empty() {
                pending = self.queue.wake.wait(pending).unwrap_or_else(PoisonError::into_inner);
            } else if wait.is_zero() {
                pending.files = std::mem::take(&mut pending.refused);
            } else {
                pending = self.queue.wake.wait_timeout(pending, wait).unwrap_or_else(PoisonError::into_inner).0;
            }
        }
    }
}

fn remove_if_there(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => Err(e),
        _ => Ok(()),
    }
}
