//! Ctrl-C and SIGTERM in the middle of a run: the lab goes down with it.

use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result};
use nix::sys::signal::{SigSet, Signal};

/// From here on an interrupt ends this process **by becoming** `warren-lab down NAME`: replacing the program stops all threads at
/// once, so nothing is made any more while the rest is removed. Call before any other thread exists.
pub fn take_down_on_interrupt(lab: &str, exe: &Path) -> Result<()> {
    let mut signals = SigSet::empty();
    for signal in [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP] {
        signals.add(signal);
    }
    signals.thread_block().context("blocking signals")?;
    let mut down = Command::new(exe);
    down.args(["down", "--name", lab, "--interrupted"]);
    std::thread::spawn(move || {
        if let Ok(signal) = signals.wait() {
            eprintln!("\n{signal}: taking the lab down");
            let error = down.exec();
            eprintln!("could not start `warren-lab down`: {error}; run it by hand");
            std::process::exit(1);
        }
    });
    Ok(())
}
