//! The ordered punch on real Linux boxes: real agents and a real relay, each pair behind masquerading routers in namespaces of its own.
//!
//! Three cells, the node with the smaller key first: two plain boxes, and one and a home router in both roles. `PUNCH_RUNS` sets how many runs
//! there are in each (`make punch` does); then ordinary probing, which is what agents do without a relay's control channel, is shown
//! beside it in every fifth, and 99 of 100 ordered runs must be direct in the first round. Without it each cell has one run, which must be direct
//! in any; `PUNCH_RUN` makes one of those of `PUNCH_RUNS` alone. Start skew, delay of signals and delay of packets are spread evenly over the runs of a cell.
//!
//! Needs root, `ip`, `nft`, `conntrack` and `/dev/net/tun`; skipped with the reason otherwise, unless REQUIRE_LAB=1.

#![allow(clippy::unwrap_used, reason = "a test may fail by panicking")]

#[path = "punch_lab/boxes.rs"]
mod boxes;
#[path = "punch_lab/pair.rs"]
mod pair;
#[path = "punch_lab/services.rs"]
mod services;
mod support;

use boxes::{Boxes, Nat};
use pair::{Circumstances, Outcome};
use std::{
    collections::VecDeque,
    sync::{Arc, Mutex},
    thread,
    time::Duration,
};

/// From the instant when both know each other until both show a direct path. The second round begins after 35 s of silence.
const FIRST_ROUND: Duration = Duration::from_secs(25);
/// Far beyond the second round; only a pair that is never direct gets there.
const ANY_ROUND: Duration = Duration::from_secs(150);
/// Pairs that are under way at once: what two cores carry without being late.
const AT_ONCE: usize = 6;
/// Of so many ordered runs one has one of ordinary probing beside it: nearly all of those wait in vain.
const ORDINARY_EVERY: u32 = 5;

/// The first node has the smaller key: it calls if neither has to open first.
const CELLS: [[Nat; 2]; 3] = [
    [Nat::Poisonable, Nat::Poisonable],
    [Nat::Poisonable, Nat::PortRestricted],
    [Nat::PortRestricted, Nat::Poisonable],
];

/// One run that is to be made.
struct Job {
    cell: [Nat; 2],
    ordered: bool,
    circumstances: Circumstances,
}

#[test]
fn plain_boxes_connect_by_the_ordered_punch() {
    let runs: Option<u32> = std::env::var("PUNCH_RUNS").ok().map(|text| text.parse().unwrap());
    let limit = if runs.is_some() { FIRST_ROUND } else { ANY_ROUND };
    let mut jobs = VecDeque::new();
    let only: Option<u32> = std::env::var("PUNCH_RUN").ok().map(|text| text.parse().unwrap());
    for number in (0..runs.unwrap_or(1)).filter(|number| only.is_none_or(|only| only == *number)) {
        let circumstances = Circumstances::spread(number, runs.unwrap_or(1));
        for cell in CELLS {
            let with_ordinary = runs.is_some() && number % ORDINARY_EVERY == 0;
            let orders = [true, false].into_iter().filter(|ordered| *ordered || with_ordinary);
            jobs.extend(orders.map(|ordered| Job { cell, ordered, circumstances }));
        }
    }
    let Some(done) = work(jobs, limit) else { return };
    if runs.is_some() {
        println!("{:<28} {:>5}   {:<42} ordinary probing", "smaller x larger key", "runs", "ordered punch");
    }
    let mut short = Vec::new();
    for cell in CELLS {
        let of = |ordered| Column(done.iter().filter(|(job, _)| job.cell == cell && job.ordered == ordered).collect());
        let (ordered, ordinary) = (of(true), of(false));
        if runs.is_some() {
            let name = format!("{:?} x {:?}", cell[0], cell[1]);
            println!("{name:<28} {:>5}   {:<42} {}", ordered.0.len(), ordered.text(), ordinary.text());
        }
        if ordered.direct() * 100 < ordered.0.len() * 99 {
            short.push(cell);
        }
    }
    assert_eq!(short, Vec::<[Nat; 2]>::new(), "these cells are direct too seldom");
}

/// Makes all runs, several at once; nothing if this machine has no lab.
fn work(jobs: VecDeque<Job>, limit: Duration) -> Option<Vec<(Job, Outcome)>> {
    let mut labs = Vec::new();
    for number in 0..AT_ONCE.min(jobs.len()) {
        match Boxes::new(number) {
            Ok(boxes) => labs.push(boxes),
            Err(reason) => {
                assert!(std::env::var_os("REQUIRE_LAB").is_none_or(|v| v != "1"), "the lab is required: {reason:#}");
                eprintln!("skipped: {reason:#}");
                return None;
            }
        }
    }
    let (jobs, done) = (Arc::new(Mutex::new(jobs)), Arc::new(Mutex::new(Vec::new())));
    thread::scope(|scope| {
        for boxes in labs {
            let (jobs, done) = (Arc::clone(&jobs), Arc::clone(&done));
            scope.spawn(move || {
                let next = || jobs.lock().unwrap().pop_front();
                while let Some(job) = next() {
                    let outcome = pair::run(&boxes, job.cell, job.ordered, job.circumstances, limit).unwrap();
                    if job.ordered
                        && let Some(logs) = &outcome.logs
                    {
                        let log = keep(&job, logs);
                        println!("not direct: {:?}, {:?}, {log}: {}", job.cell, job.circumstances, outcome.said);
                    }
                    done.lock().unwrap().push((job, outcome));
                }
            });
        }
    });
    Some(Arc::into_inner(done).unwrap().into_inner().unwrap())
}

/// Keeps what the agents of a run logged. Returns where.
fn keep(job: &Job, logs: &str) -> String {
    let name = format!("{:?}-{:?}-{}.log", job.cell[0], job.cell[1], job.circumstances.number);
    let file = e2e::images::workspace().join("target/lab-logs/punch").join(name);
    std::fs::create_dir_all(file.parent().unwrap()).unwrap();
    std::fs::write(&file, logs).unwrap();
    file.display().to_string()
}

/// All runs of one cell in one manner.
struct Column<'a>(Vec<&'a (Job, Outcome)>);

impl Column<'_> {
    fn direct(&self) -> usize {
        self.0.iter().filter(|(_, outcome)| outcome.took.is_some()).count()
    }

    /// How many were direct, and after how long.
    fn text(&self) -> String {
        let mut took: Vec<Duration> = self.0.iter().filter_map(|(_, outcome)| outcome.took).collect();
        took.sort();
        let at = |percent: usize| took.get((took.len() * percent).div_ceil(100).saturating_sub(1));
        let seconds = |time: Option<&Duration>| time.map_or("-".into(), |time| format!("{:.2}", time.as_secs_f64()));
        let (half, most) = (seconds(at(50)), seconds(took.last()));
        format!("{} of {} (p50 {half} s, at most {most} s)", took.len(), self.0.len())
    }
}
