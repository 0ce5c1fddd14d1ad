//! Ctrl-C and SIGTERM in the middle of a run: the lab goes down with it.

use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::iterator::Signals;

/// From here on an interrupt ends this process **by becoming** `warren-lab down NAME`: replacing the program stops all threads at
/// once, so nothing is made any more while the rest is removed.
///
/// The signals are handled, not blocked: a blocked signal stays blocked in every process that the lab starts, down to the pods.
pub fn take_down_on_interrupt(lab: &str, exe: &Path) -> Result<()> {
    let mut signals = Signals::new([SIGINT, SIGTERM, SIGHUP]).context("handling signals")?;
    let mut down = Command::new(exe);
    down.args(["down", "--name", lab, "--interrupted"]);
    std::thread::spawn(move || {
        if signals.forever().next().is_some() {
            eprintln!("\ninterrupted: taking the lab down");
            let error = down.exec();
            eprintln!("could not start `warren-lab down`: {error}; run it by hand");
            std::process::exit(1);
        }
    });
    Ok(())
}
