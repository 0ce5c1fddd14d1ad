//! Taking away what Warren made on this node, or saying what that is.

use crate::{
    args::{CniMode, RunArgs},
    cni::{self, Reservations},
    net, process,
};
use anyhow::Context;
use std::{
    fs,
    io::{self, ErrorKind},
    path::Path,
    process::ExitCode,
};

/// Prints a line for each thing that is removed; with `dry_run` the same lines, and removes nothing.
pub async fn run(args: &RunArgs, dry_run: bool) -> anyhow::Result<ExitCode> {
    // A running agent would put everything back at once.
    let lock = args.state_dir.join("lock");
    let _lock = if lock.exists() { Some(process::lock(&lock)?) } else { None };
    let run_dir = args.socket.parent().unwrap_or(Path::new("/"));
    let mut removed = Vec::new();
    let file = args.cni_conf_dir.join(cni::FILE);
    let managed = args.cni_mode == CniMode::Managed || file.symlink_metadata().is_ok();
    if managed && cni::withdraw(&args.cni_conf_dir, run_dir, dry_run)? {
        removed.push(format!("CNI file {}", file.display()));
    }
    removed.extend(net::cleanup(&args.device, &args.originals(), dry_run).await?);
    removed.extend(delete_device(&args.device, dry_run).await?);
    removed.extend(remove_reservations(Path::new(cni::IPAM_DIR), dry_run)?);
    removed.extend(remove_socket(&args.socket, dry_run)?);
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

/// An address that a living pod has must not be given to another one after the next installation.
fn remove_reservations(dir: &Path, dry_run: bool) -> anyhow::Result<Option<String>> {
    match cni::release(dir, dry_run).with_context(|| format!("remove {}", dir.display()))? {
        Reservations::None => Ok(None),
        Reservations::Held(count) => {
            println!("left {} alone: {count} addresses are in use by pods", dir.display());
            Ok(None)
        }
        Reservations::Free => Ok(Some(format!("address records {}", dir.display()))),
    }
}

fn remove_socket(path: &Path, dry_run: bool) -> anyhow::Result<Option<String>> {
    let found = path.symlink_metadata().is_ok();
    if found && !dry_run {
        fs::remove_file(path).or_else(absent).with_context(|| format!("remove {}", path.display()))?;
    }
    Ok(found.then(|| format!("socket {}", path.display())))
}

fn absent(error: io::Error) -> io::Result<()> {
    if error.kind() == ErrorKind::NotFound { Ok(()) } else { Err(error) }
}
