//! The subcommands that ask or clean up instead of running.

mod cleanup;

use crate::{
    args::{Command, ProbeKind, RunArgs, Selftest},
    local::{
        client,
        report::{PathsReport, StatusReport},
    },
    selftest,
};
use anyhow::{Context, bail};
use serde::de::DeserializeOwned;
use std::{process::ExitCode, time::Duration};

/// Runs a subcommand.
pub async fn run(command: Command, args: &RunArgs) -> anyhow::Result<ExitCode> {
    match command {
        Command::Run => bail!("`run` is started by the main program"),
        Command::Status { json } => {
            let body = ask(args, "/v1/status").await?;
            print(json, &body, StatusReport::to_text)
        }
        Command::Paths { peer, json } => {
            let path = peer.as_ref().map_or_else(|| "/v1/paths".into(), |p| format!("/v1/paths/{p}"));
            let body = ask(args, &path).await?;
            print(json, &body, |report: &PathsReport| report.to_text(peer.is_some()))
        }
        Command::Probe { kind } => probe(args, kind).await,
        Command::Cleanup { dry_run } => cleanup::run(args, dry_run).await,
        Command::Selftest(Selftest::Serve { listen }) => {
            let name = args.node_name.clone().unwrap_or_else(|| "unnamed".into());
            selftest::serve(listen.0, name).await?;
            Ok(ExitCode::SUCCESS)
        }
        Command::Selftest(Selftest::Run { namespace, selector, daemonset, port, wait_seconds }) => {
            let pods = selftest::Pods::new(namespace, selector, daemonset)?;
            selftest::run(args, &pods, port, Duration::from_secs(wait_seconds)).await
        }
    }
}

async fn ask(args: &RunArgs, path: &str) -> anyhow::Result<String> {
    match client::get(&args.socket, path).await? {
        (200, body) => Ok(body),
        (_, body) => bail!("{}", body.trim_end()),
    }
}

fn print<T: DeserializeOwned>(json: bool, body: &str, text: impl Fn(&T) -> String) -> anyhow::Result<ExitCode> {
    if json {
        println!("{body}");
    } else {
        let report = serde_json::from_str(body).context("read the agent's answer")?;
        print!("{}", text(&report));
    }
    Ok(ExitCode::SUCCESS)
}

async fn probe(args: &RunArgs, kind: ProbeKind) -> anyhow::Result<ExitCode> {
    let path = match kind {
        ProbeKind::Ready => "/v1/ready",
        ProbeKind::Live => "/v1/live",
    };
    let (status, body) = client::get(&args.socket, path).await?;
    print!("{body}");
    Ok(if status == 200 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
