//! What a table was measured on: a figure without that is worth nothing.

use std::fs;

use anyhow::{Context, Result};

use crate::command::{command, run};

/// One sentence: date, command, processor, memory, kernel, and the load that others put on the machine meanwhile.
pub fn sentence(load_before: f64) -> Result<String> {
    let date = run(&mut command("date", ["--utc", "+%-d %B %Y"]))?;
    let kernel = run(&mut command("uname", ["-r"]))?;
    let cores = std::thread::available_parallelism().context("counting processors")?;
    let mut words: Vec<String> = std::env::args().collect();
    words[0] = "warren-bench".into();
    Ok(format!(
        "On {}, `{}`: {cores} cores of {}, {} GiB, Linux {}; load average before it {load_before:.1}.",
        date.trim(),
        words.join(" "),
        field("/proc/cpuinfo", "model name").unwrap_or_else(|| "an unnamed processor".into()),
        field("/proc/meminfo", "MemTotal").and_then(|kib| gib(&kib)).context("the size of the memory")?,
        kernel.trim(),
    ))
}

/// Processes that ran or waited to, on average over the last minute.
pub fn load() -> Result<f64> {
    let text = fs::read_to_string("/proc/loadavg").context("reading /proc/loadavg")?;
    text.split(' ').next().and_then(|word| word.parse().ok()).context("a load average")
}

fn field(path: &str, name: &str) -> Option<String> {
    let text = fs::read_to_string(path).ok()?;
    let line = text.lines().find(|line| line.starts_with(name))?;
    Some(line.split_once(':')?.1.trim().to_owned())
}

fn gib(kib: &str) -> Option<u64> {
    Some(kib.split(' ').next()?.parse::<u64>().ok()?.div_ceil(1 << 20))
}
