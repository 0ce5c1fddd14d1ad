//! `warren-agent`: wires arguments, logs and the runtime; everything else is in the library.

use clap::Parser;
use node_agent::{
    args::{Args, Command, LogFormat, RunArgs},
    commands, process, start,
};
use std::process::ExitCode;
use tracing_subscriber::EnvFilter;

fn main() -> ExitCode {
    let Args { command, run } = Args::parse();
    let command = command.unwrap_or(Command::Run);
    init_logs(&run);
    if command == Command::Run
        && let Err(e) = process::forbid_core_dumps()
    {
        // A process that can be dumped must not hold the key.
        eprintln!("warren-agent: expected to forbid core dumps: {e}");
        return ExitCode::FAILURE;
    }
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(e) => {
            eprintln!("warren-agent: expected a runtime: {e}");
            return ExitCode::FAILURE;
        }
    };
    let result = runtime.block_on(async {
        match command {
            Command::Run => start::run(run).await.map(|()| ExitCode::SUCCESS),
            other => commands::run(other, &run).await,
        }
    });
    // A blocking task (a name that doesn't resolve) must not hold the exit up.
    runtime.shutdown_background();
    result.unwrap_or_else(|e| {
        eprintln!("warren-agent: {e:#}");
        ExitCode::FAILURE
    })
}

fn init_logs(args: &RunArgs) {
    // kube reports each failed request as an error of its own, with addresses; the feeds say what matters.
    let filter = format!("kube_client::client::builder=off,{}", args.log);
    let filter = EnvFilter::try_new(filter).unwrap_or_else(|_| EnvFilter::new("info"));
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    match args.log_format {
        LogFormat::Text => builder.with_ansi(std::io::IsTerminal::is_terminal(&std::io::stderr())).init(),
        LogFormat::Json => builder.json().init(),
    }
}
