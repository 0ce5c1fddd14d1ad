//! Long-running processes of the lab outside the nodes, known by process id **and** start time, so that a stale record
//! never reaches a stranger's process.

use std::fs::{self, OpenOptions};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::state::{State, write};
use crate::wait;

/// A killed process must be gone by then; the kernel needs milliseconds, unless it writes to a slow disk.
const END: Duration = Duration::from_secs(20);

/// A process and the moment it started, in the kernel's clock ticks since boot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Process {
    /// Its id in the root PID namespace.
    pub pid: i32,
    started: u64,
}

impl Process {
    /// Starts `command` in a session of its own, its output appended to the log of that name, and records it.
    pub fn start(state: &State, name: &str, command: &mut Command) -> Result<Self> {
        let path = state.logs().join(format!("{name}.log"));
        let log = OpenOptions::new()
            .create(true)
            .append(true)
            .open(&path)
            .with_context(|| format!("opening {}", path.display()))?;
        let child = command
            .stdin(Stdio::null())
            .stdout(log.try_clone().context("sharing the log")?)
            .stderr(log)
            .spawn()
            .with_context(|| format!("starting {name}"))?;
        let process = Self::of(i32::try_from(child.id()).context("a process id")?)?;
        process.record(state, name)?;
        Ok(process)
    }

    /// The process that has this id now.
    pub fn of(pid: i32) -> Result<Self> {
        let (_, started) = stat(pid).with_context(|| format!("process {pid} ended at once"))?;
        Ok(Self { pid, started })
    }

    /// Remembers it under a name.
    pub fn record(&self, state: &State, name: &str) -> Result<()> {
        write(&state.pid_file(name), format!("{} {}", self.pid, self.started))
    }

    /// The process recorded under this name, if it still runs.
    pub fn recorded(state: &State, name: &str) -> Option<Self> {
        let text = fs::read_to_string(state.pid_file(name)).ok()?;
        let (pid, started) = text.split_once(' ')?;
        let process = Self { pid: pid.parse().ok()?, started: started.parse().ok()? };
        process.is_alive().then_some(process)
    }

    /// Whether it still runs; a zombie does not.
    #[must_use]
    pub fn is_alive(&self) -> bool {
        stat(self.pid).is_some_and(|(state, started)| started == self.started && !matches!(state, 'Z' | 'X'))
    }

    /// Sends a signal.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        if !self.is_alive() {
            bail!("process {} has ended", self.pid);
        }
        kill(Pid::from_raw(self.pid), signal).with_context(|| format!("sending {signal} to process {}", self.pid))
    }

    /// Ends it without asking and waits until it is gone. Nothing of the lab is worth a polite end of 5 s and more.
    pub fn end(&self) -> Result<()> {
        // It may end on its own between the two: then there is nothing left to do.
        if self.is_alive() && self.signal(Signal::SIGKILL).is_err() && self.is_alive() {
            bail!("cannot kill process {}", self.pid);
        }
        wait::until(&format!("process {} to end", self.pid), END, || {
            if self.is_alive() { Err("it still runs".into()) } else { Ok(()) }
        })
    }

    /// Its only child.
    pub fn child(&self) -> Result<Self> {
        let path = format!("/proc/{0}/task/{0}/children", self.pid);
        wait::until(&format!("a child of process {}", self.pid), END, || {
            let children = fs::read_to_string(&path).map_err(|error| error.to_string())?;
            let first = children.split_whitespace().next().ok_or("it has none")?;
            let pid = first.parse().map_err(|_| format!("children {first:?}"))?;
            Self::of(pid).map_err(|error| error.to_string())
        })
    }
}

/// Whether each thread of a process is stopped.
pub fn stands_still(pid: i32) -> Result<(), String> {
    let threads = fs::read_dir(format!("/proc/{pid}/task")).map_err(|error| error.to_string())?;
    for thread in threads.flatten().map(|thread| thread.path()) {
        match stat_in(&thread) {
            Some(('T', _)) => {}
            other => return Err(format!("{} is in state {other:?}", thread.display())),
        }
    }
    Ok(())
}

fn stat(pid: i32) -> Option<(char, u64)> {
    stat_in(Path::new(&format!("/proc/{pid}")))
}

/// State and start time from a `stat` below `/proc`; the name in it may hold anything, so look behind its last bracket.
fn stat_in(folder: &Path) -> Option<(char, u64)> {
    let text = fs::read_to_string(folder.join("stat")).ok()?;
    let mut fields = text.rsplit_once(") ")?.1.split(' ');
    let state = fields.next()?.chars().next()?;
    // starttime is field 22 of proc(5); state is field 3.
    Some((state, fields.nth(18)?.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::Command;

    #[test]
    fn another_process_with_the_same_id_is_not_ours() {
        let me = Process::of(i32::try_from(std::process::id()).unwrap()).unwrap();
        assert!(me.is_alive());
        assert!(!Process { started: me.started + 1, ..me }.is_alive());
    }

    #[test]
    fn a_process_that_is_stopped_stands_still() {
        let mut child = Command::new("sleep").arg("600").spawn().unwrap();
        let pid = child.id().try_into().unwrap();
        assert!(stands_still(pid).is_err());
        kill(Pid::from_raw(pid), Signal::SIGSTOP).unwrap();
        wait::until("the child to stand still", END, || stands_still(pid)).unwrap();
        child.kill().unwrap();
        child.wait().unwrap();
    }

    #[test]
    fn a_zombie_has_ended() {
        let mut child = Command::new("sleep").arg("600").spawn().unwrap();
        let process = Process::of(i32::try_from(child.id()).unwrap()).unwrap();
        process.end().unwrap();
        assert!(!process.is_alive());
        child.wait().unwrap();
    }
}
