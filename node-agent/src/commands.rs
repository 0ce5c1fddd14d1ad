//! The subcommands that ask or clean up instead of running.

use crate::{
    args::{CniMode, Command, ProbeKind, RunArgs, Selftest},
    cni,
    local::{
        client,
        report::{PathsReport, StatusReport},
    },
    net, process, selftest,
};
use anyhow::{Context, bail};
use serde::de::DeserializeOwned;
use std::{path::Path, process::ExitCode, time::Duration};

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
        Command::Cleanup { dry_run } => cleanup(args, dry_run).await,
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

async fn cleanup(args: &RunArgs, dry_run: bool) -> anyhow::Result<ExitCode> {
    // A running agent would put everything back at once.
    let lock = args.state_dir.join("lock");
    let _lock = if lock.exists() { Some(process::lock(&lock)?) } else { None };
    let mut removed = Vec::new();
    let file = args.cni_conf_dir.join(cni::FILE);
    let run_dir = args.socket.parent().unwrap_or(Path::new("/"));
    let managed = args.cni_mode == CniMode::Managed || file.symlink_metadata().is_ok();
    if managed && cni::withdraw(&args.cni_conf_dir, run_dir, dry_run)? {
        removed.push(format!("CNI file {}", file.display()));
    }
    removed.extend(net::cleanup(&args.device, dry_run).await?);
    removed.extend(delete_device(&args.device, dry_run).await?);
    let verb = if dry_run { "would remove" } else { "removed" };
    for what in &removed {
        println!("{verb} {what}");
    }
    if removed.is_empty() {
        println!("nothing of Warren's found");
    }
    println!("the key and the cache stay in {}; delete the folder to forget this node", args.state_dir.display());
    Ok(ExitCode::SUCCESS)
}

/// Deletes the interface if either backend made it: one of that name that is something else is not ours.
async fn delete_device(name: &str, dry_run: bool) -> anyhow::Result<Option<String>> {
    let Some((index, _)) = net::own_link(name).await? else {
        if net::link_exists(name).await? {
            println!("left interface {name} alone: it is neither a TUN nor a WireGuard interface of Warren's");
        }
        return Ok(None);
    };
    if !dry_run {
        net::delete_link(index).await.with_context(|| format!("delete the interface {name}"))?;
    }
    Ok(Some(format!("interface {name}")))
}
