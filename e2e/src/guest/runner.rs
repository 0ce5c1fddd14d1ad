//! The guest's end of the channel: runs what the lab asks for, each in a thread of its own.

use std::fs::{self, OpenOptions};
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Output, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result};

use super::channel::{Answer, PORT, Request};
use crate::command::command;

/// A port that nobody is connected to reads as ended, and nothing says when somebody comes.
const NOBODY: Duration = Duration::from_millis(20);

/// Answers until the power is cut.
pub fn run_forever() -> Result<()> {
    let path = port()?;
    let port =
        OpenOptions::new().read(true).write(true).open(&path).with_context(|| format!("opening {}", path.display()))?;
    let writer = Arc::new(Mutex::new(port.try_clone().context("sharing the port")?));
    let mut reader = BufReader::new(port);
    loop {
        let mut line = String::new();
        match reader.read_line(&mut line).context("reading from the lab")? {
            0 => std::thread::sleep(NOBODY),
            _ => serve(line, &writer),
        }
    }
}

/// The device of our port among all virtio serial ports.
fn port() -> Result<PathBuf> {
    for entry in fs::read_dir("/sys/class/virtio-ports").context("listing the serial ports")?.flatten() {
        if fs::read_to_string(entry.path().join("name")).is_ok_and(|name| name.trim() == PORT) {
            return Ok(Path::new("/dev").join(entry.file_name()));
        }
    }
    anyhow::bail!("the emulator has no serial port {PORT:?}")
}

/// Runs one request in a thread of its own and answers it.
pub(super) fn serve(line: String, writer: &Arc<Mutex<impl Write + Send + 'static>>) {
    let writer = Arc::clone(writer);
    std::thread::spawn(move || {
        // Half a line is what a lab that ended in the middle leaves.
        let Ok(request) = serde_json::from_str::<Request>(&line) else { return };
        let Ok(text) = serde_json::to_string(&answer(&request)) else { return };
        // The lab may have gone: then there is nobody to tell.
        let _ = writer.lock().unwrap_or_else(PoisonError::into_inner).write_all((text + "\n").as_bytes());
    });
}

fn answer(request: &Request) -> Answer {
    let id = request.id;
    match output(request) {
        Ok(output) => Answer {
            id,
            failure: (!output.status.success()).then(|| output.status.to_string()),
            stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
            stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
        },
        Err(error) => Answer { id, failure: Some(format!("{error:#}")), ..Answer::default() },
    }
}

fn output(request: &Request) -> Result<Output> {
    let mut program = command(&request.program, &request.args);
    let mut child = program
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .context("it could not be started")?;
    let mut pipe = child.stdin.take().context("its standard input")?;
    // A program that ends early closes the pipe; how it ended tells more than that.
    let _ = pipe.write_all(request.input.as_bytes());
    drop(pipe);
    child.wait_with_output().context("waiting for it")
}
