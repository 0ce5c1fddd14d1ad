//! Running other programs, with errors that say what ran and what it said.

use std::ffi::OsStr;
use std::io::Write;
use std::process::{Command, Output, Stdio};

use anyhow::{Context, Result, bail};

/// `program` with `args`, nothing on standard input.
pub fn command<I, S>(program: impl AsRef<OsStr>, args: I) -> Command
where
    I: IntoIterator<Item = S>,
    S: AsRef<OsStr>,
{
    let mut command = Command::new(program);
    command.args(args).stdin(Stdio::null());
    command
}

/// Runs to the end and returns standard output; anything but exit status 0 is an error with standard error in it.
pub fn run(command: &mut Command) -> Result<String> {
    finish(command, |command| command.output().context("starting it"))
}

/// Like [`run`], with `input` on standard input.
pub fn run_with_input(command: &mut Command, input: &str) -> Result<String> {
    finish(command, |command| {
        let mut child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .context("starting it")?;
        let mut pipe = child.stdin.take().context("its standard input")?;
        // A program that ends early closes the pipe; its exit status and message tell more than EPIPE.
        let _ = pipe.write_all(input.as_bytes());
        drop(pipe);
        child.wait_with_output().context("waiting for it")
    })
}

/// Whether it ran and succeeded; what it printed is dropped.
pub fn succeeds(command: &mut Command) -> bool {
    command.stdout(Stdio::null()).stderr(Stdio::null()).status().is_ok_and(|status| status.success())
}

fn finish(command: &mut Command, go: impl FnOnce(&mut Command) -> Result<Output>) -> Result<String> {
    let line = describe(command);
    let output = go(command).with_context(|| format!("running `{line}`"))?;
    if !output.status.success() {
        let stderr = String::from_utf8_lossy(&output.stderr);
        let stdout = String::from_utf8_lossy(&output.stdout);
        bail!("`{line}` ended with {}: {}{}", output.status, tail(&stderr), tail(&stdout));
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

fn describe(command: &Command) -> String {
    let mut words = vec![command.get_program().to_string_lossy().into_owned()];
    words.extend(command.get_args().map(|word| word.to_string_lossy().into_owned()));
    words.join(" ")
}

/// The end of a long output: what a program says last is nearly always why it stopped.
fn tail(text: &str) -> &str {
    const KEPT: usize = 4000;
    let start = text.len().saturating_sub(KEPT);
    (start..text.len()).find_map(|i| text.get(i..)).unwrap_or("").trim_end()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failure_names_the_command_its_status_and_its_words() {
        let error = run(&mut command("sh", ["-c", "echo broken >&2; exit 3"])).expect_err("exit 3 is a failure");
        let text = format!("{error:#}");
        assert!(text.contains("sh -c") && text.contains("exit status: 3") && text.contains("broken"), "{text}");
    }

    #[test]
    fn input_reaches_the_program() {
        assert_eq!(run_with_input(&mut command("cat", [""; 0]), "hello").expect("cat runs"), "hello");
    }
}
