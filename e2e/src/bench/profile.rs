//! Where the time goes: samples of both processes of a pair while one TCP stream goes through it, by what they were doing.
//!
//! `perf` samples by the clock, which works in virtual machines too. There a sample can't be taken while interrupts are off; it is
//! then put down to the function that allows them again, mostly one of the scheduler or of the software interrupts.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::Path;
use std::process::{Child, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::bench::pair::{self, Pair};
use crate::bench::program::{Kind, warren_with_symbols};
use crate::bench::stream::{Shape, carry};
use crate::command::{command, run};
use crate::progress::Progress;
use crate::wait;

const KINDS: [Kind; 2] = [Kind::Warren, Kind::WireguardGo];
/// Samples a second and processor; no multiple of a timer of anybody.
const RATE: &str = "1999";
/// perf opens its events and then its file.
const STARTED: Duration = Duration::from_secs(20);

/// What a process does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Work {
    Ciphers,
    KernelCopies,
    Scheduler,
    Kernel,
    Memory,
    Own,
}

impl Work {
    const ALL: [Self; 6] = [Self::Ciphers, Self::KernelCopies, Self::Scheduler, Self::Kernel, Self::Memory, Self::Own];

    fn name(self) -> &'static str {
        match self {
            Self::Ciphers => "ciphers",
            Self::KernelCopies => "kernel: copies from and to the process",
            Self::Scheduler => "kernel: scheduler, waking, locks",
            Self::Kernel => "kernel: the rest (IP, UDP, TUN, memory)",
            Self::Memory => "process: allocation, copies, clearing",
            Self::Own => "process: everything else",
        }
    }

    /// By the function at the top of the stack.
    fn of(function: &str, in_kernel: bool) -> Self {
        let has = |parts: &[&str]| parts.iter().any(|part| function.contains(part));
        if has(&["chacha20", "poly1305", "CRYPTO_"]) {
            Self::Ciphers
        } else if in_kernel && has(&["_iter", "copy_user", "rep_movs", "csum_partial"]) {
            Self::KernelCopies
        } else if in_kernel && has(&["task_switch", "sched", "wake", "spin_", "futex", "poll", "rcu_", "idle"]) {
            Self::Scheduler
        } else if in_kernel {
            Self::Kernel
        } else if has(&["alloc", "free", "mem", "unlink_chunk", "Bytes", "gcDrain", "scanobject", "sweep"]) {
            Self::Memory
        } else {
            Self::Own
        }
    }
}

/// Samples of each kind of work at the sending and at the receiving end.
type Samples = BTreeMap<Work, [usize; 2]>;

/// Profiles Warren's device and wireguard-go.
pub fn measure(seconds: u8, progress: &Progress) -> Result<String> {
    run(&mut command("perf", ["--version"])).context("install the Debian package linux-perf")?;
    let mut programs = pair::build(&[Kind::WireguardGo], progress)?;
    programs.insert(0, (Kind::Warren, progress.step("build Warren with symbols", warren_with_symbols)?));
    let scratch = std::env::temp_dir().join(format!("warren-profile-{}", std::process::id()));
    let profiles = pair::with_cable(|ends| {
        let one = |(kind, program): &(Kind, std::path::PathBuf)| {
            progress.step(&format!("profile {}", kind.name()), || {
                Pair::with(ends, (*kind, program), 1, |pair| profile(pair, seconds, &scratch))
            })
        };
        programs.iter().map(one).collect::<Result<Vec<_>>>()
    });
    let _ = std::fs::remove_file(&scratch);
    Ok(table(&profiles?))
}

fn profile(pair: &Pair<'_>, seconds: u8, file: &Path) -> Result<Samples> {
    let file = file.display().to_string();
    let pids = pair.pids();
    let both = pids.iter().map(ToString::to_string).collect::<Vec<_>>().join(",");
    let mut perf = command("perf", ["record", "-q", "-e", "cpu-clock", "-F", RATE, "-o", &file, "-p", &both]);
    let mut perf = perf.stdout(Stdio::null()).spawn().context("starting perf")?;
    let carried = wait::until("perf to begin", STARTED, || std::fs::metadata(&file).map_err(|error| error.to_string()))
        .and_then(|_| carry(pair, Shape::One, seconds));
    end(&mut perf)?;
    carried?;
    let said = run(&mut command("perf", ["script", "-i", &file, "-F", "pid,ip,sym,dso"]))?;
    let samples = count(&said, &pids);
    ensure!(!samples.is_empty(), "perf took no samples");
    Ok(samples)
}

/// It writes its file when it is interrupted.
fn end(perf: &mut Child) -> Result<()> {
    let _ = kill(Pid::from_raw(perf.id().cast_signed()), Signal::SIGINT);
    perf.wait().context("waiting for perf").map(drop)
}

/// One line a sample: `PID ADDRESS FUNCTION (FILE)`.
fn count(said: &str, pids: &[i32]) -> Samples {
    let mut samples = Samples::new();
    for line in said.lines() {
        let Some((pid, rest)) = line.trim_start().split_once(char::is_whitespace) else { continue };
        let Some(end) = pids.iter().position(|own| pid.parse() == Ok(*own)).filter(|end| *end < 2) else { continue };
        let Some((function, file)) = rest.trim_start().rsplit_once(" (") else { continue };
        let function = function.split_once(' ').map_or(function, |(_, name)| name);
        samples.entry(Work::of(function, file.starts_with("[kernel") || file.starts_with("[guest"))).or_default()
            [end] += 1;
    }
    samples
}

fn table(profiles: &[Samples]) -> String {
    let mut table = String::from("### Where the time goes with one TCP stream\n\n| Share of samples, % |");
    for kind in KINDS.iter().take(profiles.len()) {
        let _ = write!(table, " {0} sends | {0} receives |", kind.name());
    }
    let _ = writeln!(table, "\n|---|{}", "---:|".repeat(profiles.len() * 2));
    for work in Work::ALL {
        let _ = write!(table, "| {} |", work.name());
        for samples in profiles {
            for end in 0..2 {
                let all: usize = samples.values().map(|ends| ends[end]).sum();
                let own = samples.get(&work).map_or(0, |ends| ends[end]);
                let _ = write!(table, " {:.0} |", own as f64 * 100.0 / all.max(1) as f64);
            }
        }
        table.push('\n');
    }
    table
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn samples_are_counted_by_end_and_kind_of_work() {
        let said = "  17 ffffffff81 _copy_from_iter ([kernel.kallsyms])\n  18 55 ring_core_0_17_chacha20_poly1305_open (/x/device)\n\
                    18 55 wgdev::userspace::inbound::run (/x/device)\n 99 55 malloc (/x/device)\n  17 55 _int_malloc (/x/device)\n";
        let samples = count(said, &[17, 18]);
        let expected =
            [(Work::Ciphers, [0, 1]), (Work::KernelCopies, [1, 0]), (Work::Memory, [1, 0]), (Work::Own, [0, 1])];
        assert_eq!(samples, expected.into_iter().collect());
    }
}
