//! How the lab tells a guest to run programs: one JSON object a line, requests one way and answers the other, over a virtio serial
//! port that the emulator shows as a socket. Many programs may run at once; an answer carries the number of its request.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Sender, channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use serde::{Deserialize, Serialize};

use super::Shared;
use crate::wait;

/// Name of the port inside.
pub const PORT: &str = "warren";

/// A program to run.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Request {
    /// Never used twice, so that no late answer is taken for another's.
    pub id: u64,
    /// The program.
    pub program: String,
    /// Its arguments.
    pub args: Vec<String>,
    /// Its standard input.
    pub input: String,
}

/// What came of it.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Answer {
    /// That of the request.
    pub id: u64,
    /// Its exit status in words, when it was not 0, or why it could not be started.
    pub failure: Option<String>,
    /// What it printed.
    pub stdout: String,
    /// What it complained of.
    pub stderr: String,
}

impl Request {
    /// A request with a number of its own, also among all programs of this machine.
    #[must_use]
    pub fn new(program: &str, args: &[&str], input: &str) -> Self {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        let id = u64::from(std::process::id()) << 32 | NEXT.fetch_add(1, Ordering::Relaxed);
        let args = args.iter().map(ToString::to_string).collect();
        Self { id, program: program.into(), args, input: input.into() }
    }
}

impl Answer {
    /// Standard output; anything but exit status 0 is an error with what was said in it.
    pub fn into_result(self, what: &str) -> Result<String> {
        match self.failure {
            Some(how) => bail!("{what} ended with {how}: {}{}", self.stderr, self.stdout),
            None => Ok(self.stdout),
        }
    }
}

/// The channels of a lab's guests, by name: the emulator takes one connection at a time, so a program keeps one for all its threads.
#[derive(Clone, Debug, Default)]
pub struct Channels(Arc<Mutex<BTreeMap<String, Shared>>>);

impl Channels {
    /// The open channel to this guest, or one to this socket, opened within `limit`.
    pub fn of(&self, guest: &str, socket: &PathBuf, limit: Duration) -> Result<Shared> {
        let mut open = lock(&self.0);
        if let Some(channel) = open.get(guest) {
            return Ok(Arc::clone(channel));
        }
        let stream = wait::until(&format!("the channel to guest {guest}"), limit, || {
            UnixStream::connect(socket).map_err(|error| error.to_string())
        })?;
        let channel = Arc::new(Channel::over(stream)?);
        open.insert(guest.into(), Arc::clone(&channel));
        Ok(channel)
    }

    /// The guest is off: the next use opens a new channel.
    pub fn forget(&self, guest: &str) {
        lock(&self.0).remove(guest);
    }
}

/// One connection to a guest.
#[derive(Debug)]
pub struct Channel {
    writer: Mutex<UnixStream>,
    waiting: Waiting,
}

/// Who waits for which answer; `None` once the guest is gone.
type Waiting = Arc<Mutex<Option<BTreeMap<u64, Sender<Answer>>>>>;

impl Channel {
    fn over(stream: UnixStream) -> Result<Self> {
        let waiting: Waiting = Arc::new(Mutex::new(Some(BTreeMap::new())));
        let (reader, asked) = (stream.try_clone().context("sharing the channel")?, Arc::clone(&waiting));
        std::thread::spawn(move || {
            for line in BufReader::new(reader).lines().map_while(Result::ok) {
                let Ok(answer) = serde_json::from_str::<Answer>(&line) else { continue };
                if let Some(sender) = lock(&asked).as_mut().and_then(|asked| asked.remove(&answer.id)) {
                    // Who asked may have given up.
                    let _ = sender.send(answer);
                }
            }
            *lock(&asked) = None;
        });
        Ok(Self { writer: Mutex::new(stream), waiting })
    }

    /// Has the program run and waits for its end.
    pub fn ask(&self, request: Request, limit: Duration) -> Result<Answer> {
        let (sender, receiver) = channel();
        lock(&self.waiting).as_mut().context("the guest is gone")?.insert(request.id, sender);
        let line = serde_json::to_string(&request)? + "\n";
        lock(&self.writer).write_all(line.as_bytes()).context("asking the guest")?;
        receiver.recv_timeout(limit).with_context(|| format!("no answer of the guest within {} s", limit.as_secs()))
    }
}

impl Drop for Channel {
    fn drop(&mut self) {
        // The reading thread holds the socket too: this ends it.
        let _ = lock(&self.writer).shutdown(Shutdown::Both);
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // What is behind these locks is whole between any two statements.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::guest::runner;

    fn pair() -> Channel {
        let (ours, theirs) = UnixStream::pair().unwrap();
        std::thread::spawn(move || {
            let writer = Arc::new(Mutex::new(theirs.try_clone().unwrap()));
            for line in BufReader::new(theirs).lines().map_while(Result::ok) {
                runner::serve(line, &writer);
            }
        });
        Channel::over(ours).unwrap()
    }

    const LIMIT: Duration = Duration::from_secs(20);

    #[test]
    fn a_program_runs_with_its_input_and_tells_how_it_ended() {
        let channel = pair();
        let answer = channel.ask(Request::new("cat", &[], "hello\n"), LIMIT).unwrap();
        assert_eq!(answer.into_result("cat").unwrap(), "hello\n");
        let answer = channel.ask(Request::new("sh", &["-c", "echo broken >&2; exit 3"], ""), LIMIT).unwrap();
        let error = answer.into_result("it").expect_err("exit 3 is a failure").to_string();
        assert!(error.contains("status: 3") && error.contains("broken"), "{error}");
        let answer = channel.ask(Request::new("no-such-program", &[], ""), LIMIT).unwrap();
        assert!(answer.into_result("it").is_err());
    }

    #[test]
    fn one_program_does_not_wait_for_another() {
        let channel = pair();
        // The first ends only when the second has run.
        let fifo = std::env::temp_dir().join(format!("warren-channel-{}", std::process::id()));
        let path = fifo.display().to_string();
        std::thread::scope(|scope| {
            channel.ask(Request::new("mkfifo", &[&path], ""), LIMIT).unwrap();
            let first = scope.spawn(|| channel.ask(Request::new("cat", &[&path], ""), LIMIT).unwrap().stdout);
            channel.ask(Request::new("sh", &["-c", &format!("echo done > {path}")], ""), LIMIT).unwrap();
            assert_eq!(first.join().unwrap(), "done\n");
        });
        std::fs::remove_file(fifo).unwrap();
    }

    #[test]
    fn a_guest_that_goes_ends_the_wait() {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let channel = Channel::over(ours).unwrap();
        std::thread::scope(|scope| {
            let asked = scope.spawn(|| channel.ask(Request::new("cat", &[], ""), LIMIT));
            let mut line = String::new();
            BufReader::new(theirs).read_line(&mut line).unwrap();
            assert!(asked.join().unwrap().is_err());
        });
    }
}
