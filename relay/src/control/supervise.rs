//! Keeps something running that may fail.

use std::convert::Infallible;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use tokio::runtime::Builder;
use tokio::sync::watch;
use tokio::time::Instant;

use crate::backoff::Backoff;

/// After a life of this length a failure is the first of its kind.
const STEADY: Duration = Duration::from_secs(60);

/// A thread that runs one future after the other. Dropping it ends the thread and what runs on it.
#[derive(Debug)]
pub struct Supervisor {
    stop: watch::Sender<bool>,
    failures: Arc<AtomicU64>,
    thread: Option<JoinHandle<()>>,
}

impl Supervisor {
    /// Runs what `make` makes, each on a runtime of its own, and makes another when it fails or panics.
    ///
    /// # Errors
    /// When the system is out of threads.
    pub fn start<F>(name: &'static str, mut make: impl FnMut() -> F + Send + 'static) -> std::io::Result<Self>
    where
        F: Future<Output = anyhow::Result<Infallible>>,
    {
        let (stop, mut stopped) = watch::channel(false);
        let failures = Arc::new(AtomicU64::new(0));
        let counted = Arc::clone(&failures);
        let thread = std::thread::Builder::new().name(name.to_owned()).spawn(move || {
            let mut backoff = Backoff::default();
            loop {
                let born = Instant::now();
                // Whatever is left half done goes with it: nothing of it is seen again.
                match catch_unwind(AssertUnwindSafe(|| live(make(), &mut stopped))) {
                    Ok(Ok(())) => return,
                    Ok(Err(error)) => {
                        tracing::error!(part = name, error = format!("{error:#}"), "failed, starting again")
                    }
                    Err(_) => tracing::error!(part = name, "panicked, starting again"),
                }
                counted.fetch_add(1, Ordering::Relaxed);
                let now = Instant::now();
                if now.duration_since(born) >= STEADY {
                    backoff.reset();
                }
                backoff.failed(now);
                if !rest(backoff.due().unwrap_or(now), &mut stopped) {
                    return;
                }
            }
        })?;
        Ok(Self { stop, failures, thread: Some(thread) })
    }

    /// How often it has failed.
    #[must_use]
    pub fn failures(&self) -> u64 {
        self.failures.load(Ordering::Relaxed)
    }
}

impl Drop for Supervisor {
    fn drop(&mut self) {
        self.stop.send_replace(true);
        if let Some(thread) = self.thread.take() {
            // It catches panics, so there is nothing to hear from it.
            let _ = thread.join();
        }
    }
}

/// One life, with its runtime and all tasks on it. Ends well only when told to stop.
fn live(
    work: impl Future<Output = anyhow::Result<Infallible>>,
    stopped: &mut watch::Receiver<bool>,
) -> anyhow::Result<()> {
    let runtime = Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        tokio::select! {
            failed = work => failed.map(|never| match never {}),
            _ = stopped.wait_for(|stopped| *stopped) => Ok(()),
        }
    })
}

/// Waits; `false` when told to stop meanwhile.
fn rest(until: Instant, stopped: &mut watch::Receiver<bool>) -> bool {
    let Ok(runtime) = Builder::new_current_thread().enable_time().build() else {
        std::thread::sleep(until.saturating_duration_since(Instant::now()));
        return !*stopped.borrow();
    };
    runtime.block_on(async {
        tokio::select! {
            () = tokio::time::sleep_until(until) => true,
            _ = stopped.wait_for(|stopped| *stopped) => false,
        }
    })
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;

    #[test]
    fn what_panics_or_fails_is_started_again_until_it_is_stopped() {
        let (started, starts) = mpsc::channel();
        let mut life = 0;
        let supervisor = Supervisor::start("test", move || {
            life += 1;
            let (life, started) = (life, started.clone());
            async move {
                started.send(life).unwrap();
                match life {
                    1 => panic!("the first life ends badly"),
                    2 => anyhow::bail!("the second life fails"),
                    _ => std::future::pending().await,
                }
            }
        });
        let supervisor = supervisor.unwrap();
        assert_eq!([starts.recv(), starts.recv(), starts.recv()].map(Result::unwrap), [1, 2, 3]);
        assert_eq!(supervisor.failures(), 2);
        drop(supervisor);
        assert!(starts.recv().is_err(), "the thread has ended");
    }
}
