//! Keeps the memory of this process off the disk.

use anyhow::Context;
use nix::sys::prctl;
use nix::sys::resource::{Resource, setrlimit};

/// Turns core dumps off, twice: not dumpable, also for `kill -ABRT` with a core pattern that pipes to a program, and a
/// size limit of zero, which cannot be raised again. Called first in `main`, before there is anything worth hiding.
///
/// # Errors
/// When the kernel refuses, which it never does for lowering.
pub fn forbid_core_dumps() -> anyhow::Result<()> {
    setrlimit(Resource::RLIMIT_CORE, 0, 0).context("cannot set the core file limit to zero")?;
    prctl::set_dumpable(false).context("cannot mark this process as not dumpable")
}
