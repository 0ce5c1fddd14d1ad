//! What a process has used, from `/proc`.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

use crate::net::namespace::Namespace;

/// Clock ticks of `/proc` in a second: a constant of the kernel's interface.
const TICKS: f64 = 100.0;

/// Memory and CPU time of a process.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Usage {
    /// Resident memory in MiB.
    pub rss_mib: f64,
    /// What of it are pages of files, which are the program's own: read again whenever they are needed.
    pub file_mib: f64,
    /// CPU time of all its threads that still run, in seconds.
    pub cpu: f64,
}

/// Now.
pub fn of(pid: i32) -> Result<Usage> {
    let path = format!("/proc/{pid}/status");
    let status = fs::read_to_string(&path).with_context(|| format!("reading {path}"))?;
    let mib = |name: &str| {
        let kib =
            status.lines().find_map(|line| line.strip_prefix(name)?.split_whitespace().next()?.parse::<f64>().ok());
        kib.map(|kib| kib / 1024.0).with_context(|| format!("no {name} in {path}"))
    };
    // Per thread in nanoseconds: the ticks of /proc/PID/stat are a fifth of what an idle agent may use in a minute.
    let tasks = fs::read_dir(format!("/proc/{pid}/task")).context("listing threads")?;
    let cpu: f64 = tasks.flatten().filter_map(|task| nanoseconds(&task.path())).sum();
    Ok(Usage { rss_mib: mib("VmRSS:")?, file_mib: mib("RssFile:")?, cpu: cpu / 1e9 })
}

/// CPU time of the threads of this name, in seconds.
pub fn of_threads(pid: i32, name: &str) -> Result<f64> {
    let tasks = fs::read_dir(format!("/proc/{pid}/task")).context("listing threads")?;
    let named = |path: &PathBuf| fs::read_to_string(path.join("comm")).is_ok_and(|comm| comm.trim_end() == name);
    Ok(tasks.flatten().map(|task| task.path()).filter(named).filter_map(|path| nanoseconds(&path)).sum::<f64>() / 1e9)
}

fn nanoseconds(task: &Path) -> Option<f64> {
    fs::read_to_string(task.join("schedstat")).ok()?.split(' ').next()?.parse().ok()
}

/// Processes of this name that run in the network namespace, without the short ones that kubelet starts as probes.
#[must_use]
pub fn running(program: &str, namespace: &Namespace) -> Vec<i32> {
    let Ok(inode) = namespace.inode() else { return Vec::new() };
    let is = |pid: &i32| {
        let comm = fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
        comm.trim_end() == program
            && fs::metadata(format!("/proc/{pid}/ns/net")).is_ok_and(|meta| meta.ino() == inode)
            && fs::read_to_string(format!("/proc/{pid}/cmdline")).is_ok_and(|args| is_service(&args))
    };
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok()).filter(is).collect()
}

/// A probe that is about to end, and has a name but no arguments any more, is none either.
fn is_service(cmdline: &str) -> bool {
    !cmdline.is_empty() && cmdline.split('\0').nth(1) != Some("probe")
}

/// When the process was started, to 10 ms.
pub fn started(pid: i32) -> Result<Instant> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).with_context(|| format!("process {pid} has ended"))?;
    let uptime = fs::read_to_string("/proc/uptime").context("reading /proc/uptime")?;
    let now = Instant::now();
    let age = age(&stat, &uptime).with_context(|| format!("reading the age of process {pid}"))?;
    now.checked_sub(age).context("a process older than the clock")
}

fn age(stat: &str, uptime: &str) -> Option<Duration> {
    // The name in brackets may hold anything; the start time is field 22, the 20th behind it.
    let ticks: f64 = stat.rsplit_once(')')?.1.split_whitespace().nth(19)?.parse().ok()?;
    let up: f64 = uptime.split_whitespace().next()?.parse().ok()?;
    Some(Duration::from_secs_f64((up - ticks / TICKS).max(0.0)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_age_is_read_behind_the_name() {
        let stat = "7 (a) b) S 1 7 7 0 -1 4194304 1 0 0 0 0 0 0 0 20 0 1 0 1234 0 0";
        assert_eq!(age(stat, "20.00 1.0\n"), Some(Duration::from_secs_f64(20.0 - 12.34)));
        assert_eq!(age("7 (a", "20.0"), None);
    }

    #[test]
    fn a_probe_is_no_service() {
        assert!(is_service("/warren-agent\0run\0--state-dir=/x\0") && is_service("/warren-relay\0"));
        assert!(!is_service("/warren-agent\0probe\0ready\0") && !is_service(""));
    }

    #[test]
    fn this_process_is_young_and_has_used_something() {
        let me = i32::try_from(std::process::id()).unwrap();
        let began = started(me).unwrap();
        assert!(began <= Instant::now());
        let used = of(me).unwrap();
        assert!(used.rss_mib > used.file_mib && used.file_mib > 0.1);
    }
}
