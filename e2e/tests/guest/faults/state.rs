//! The agent's files are broken or cannot be written.

use std::time::Instant;

use anyhow::{Result, ensure};
use e2e::guest::{DISK, member};
use e2e::lab::Lab;

use super::{SHORT_STREAM, STREAM, row, sh, wait_condition};
use crate::pings::Addresses;
use crate::restarts::identity;
use crate::{A, B, pings};

/// Row 21: garbage, half a file, and an empty one.
pub fn cache_corrupt(lab: &Lab) -> Result<()> {
    let (node, before, began) = (lab.node(A)?, identity(lab, A)?, Instant::now());
    let spoil = format!(
        "cd {DISK}/state/cache; n=0; for f in *; do n=$((n + 1)); case $((n % 3)) in \
         0) : >$f;; 1) head -c 40 $f >$f.half; mv $f.half $f;; 2) head -c 300 /dev/urandom >$f;; esac; done; echo $n"
    );
    let mut spoiled = String::new();
    let pings = pings::during(lab, &Addresses::read(lab)?, STREAM, || {
        member::end_agent(lab, node, "-9")?;
        spoiled = sh(lab, A, &spoil)?;
        member::start_agent(lab, node, None)?;
        member::wait_ready(lab, A)?;
        member::wait_direct(lab, A, B).map(drop)
    })?;
    let aside = sh(lab, A, &format!("ls {DISK}/state/cache | grep -c corrupt"))?;
    let seen = format!("{pings}, {} of {} files set aside", aside.trim(), spoiled.trim());
    row("21", "cache files corrupt", "set aside, started from the API, hold", seen, began.elapsed());
    ensure!(pings.lost == 0 && identity(lab, A)? == before, "{pings}");
    Ok(())
}

/// Row 22: the disk fills up; what the operator publishes then is used all the same, and written when there is room again.
pub fn disk_full(lab: &Lab) -> Result<()> {
    let began = Instant::now();
    // The file system takes back what it had set aside for the large file, and frees what was deleted with its next commit: small files
    // take that.
    let fill = "cat /dev/zero >large; n=0; while echo >$n && sync; do n=$((n + 1)); done";
    sh(lab, A, &format!("mkdir {DISK}/full; cd {DISK}/full; ({fill}) 2>/dev/null; true"))?;
    let mtu = |mtu: u32| {
        let patch = format!(r#"{{"spec":{{"mtu":{mtu}}}}}"#);
        lab.kubectl(&["patch", "mesh", "default", "--type=merge", "-p", &patch]).map(drop)
    };
    let pings = pings::during(lab, &Addresses::read(lab)?, SHORT_STREAM, || {
        mtu(1_300)?;
        wait_condition(lab, A, "StateNotPersisted", true)
    })?;
    row("22", "disk full", "runs on, StateNotPersisted", format!("StateNotPersisted, {pings}"), began.elapsed());
    ensure!(pings.lost == 0, "{pings}");
    let began = Instant::now();
    sh(lab, A, &format!("rm -r {DISK}/full"))?;
    lab.kubectl(&["patch", "mesh", "default", "--type=json", "-p", r#"[{"op":"remove","path":"/spec/mtu"}]"#])?;
    wait_condition(lab, A, "StateNotPersisted", false)?;
    row("22", "room again", "the condition goes", "it is gone", began.elapsed());
    Ok(())
}
