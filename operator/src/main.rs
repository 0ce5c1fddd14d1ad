//! `warren-operator`.

use anyhow::{Context, Result};
use clap::Parser;
use operator::{
    args::{Args, Command},
    process, run, server,
};

fn main() -> Result<()> {
    let Args { command, health_socket, run: run_args } = Args::parse();
    if let Some(Command::Probe { kind }) = command {
        return server::probe(&health_socket, kind);
    }
    process::forbid_core_dumps().context("forbid core dumps")?;
    // One thread: the work is waiting, and every thread costs memory on a small node.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().context("start the runtime")?;
    runtime.block_on(run::run(run_args, &health_socket))
}
