//! What a mesh costs that has nothing to do.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use crate::bench::cluster::AGENT;
use crate::bench::usage::{self, Usage};
use crate::bench::{Goal, LAB, Row, Spread};
use crate::lab::Lab;
use crate::net::topology;
use crate::progress::Progress;

/// Nothing happens for so long before anything is counted.
const QUIET: Duration = Duration::from_secs(60);
/// And for so long while it is: at least two rounds of keepalives and of STUN are in it.
const COUNTED: Duration = Duration::from_secs(60);
/// Node and what the internet sees of its packets' other end: the pairs are watched on this home's router.
const HOME: &str = "home-a";
const PEERS: [&str; 3] = ["pub", "home-b", "fw"];
const PROGRAMS: [(&str, &str, Goal, Goal); 3] = [
    ("agent", AGENT, Goal::Most(15.0), Goal::Most(0.05)),
    ("operator", "warren-operator", Goal::Most(30.0), Goal::None),
    ("relay", "warren-relay", Goal::None, Goal::None),
];

/// Waits for quiet and counts.
pub fn measure(lab: &Lab, progress: &Progress) -> Result<Vec<Row>> {
    let processes: Vec<Vec<i32>> = PROGRAMS.iter().map(|(_, program, ..)| find(lab, program)).collect();
    pass(progress, "quiet", QUIET)?;
    watch_pairs(lab)?;
    let writes = api_writes(lab)?;
    ensure!(writes > 0.0, "the API server counts no write to warren.dev, though the mesh was made by writes");
    let packets = pair_packets(lab)?;
    let before = use_of(&processes)?;
    let began = Instant::now();
    pass(progress, "counting", COUNTED)?;
    let after = use_of(&processes)?;
    let minutes = began.elapsed().as_secs_f64() / 60.0;
    let packets_after = pair_packets(lab)?;
    let writes_after = api_writes(lab)?;
    let mut rows = Vec::new();
    for ((name, _, memory, cpu), (before, after)) in PROGRAMS.iter().zip(before.iter().zip(&after)) {
        let rss = Spread::of(after.iter().map(|usage| usage.rss_mib));
        let time = Spread::of(after.iter().zip(before).map(|(after, before)| (after.cpu - before.cpu) / minutes));
        rows.push(Row::new(format!("{name}: memory"), "MiB", rss).goal(*memory));
        rows.push(Row::new(format!("{name}: CPU of an idle minute"), "s", time).goal(*cpu));
    }
    for peer in PEERS {
        let count = (packets_after[peer] - packets[peer]) as f64 / minutes;
        let row =
            Row::new(format!("{HOME} x {peer}: packets of an idle pair in a minute"), "packets", Spread::of([count]));
        rows.push(row.goal(Goal::Most(12.0)));
    }
    let nodes = lab.running().len() as f64;
    let each = (writes_after - writes) / nodes / minutes;
    rows.push(
        Row::new("writes to Warren's API, per node and minute", "writes", Spread::of([each])).goal(Goal::Most(0.0)),
    );
    Ok(rows)
}

/// Time that passes is what is measured here.
fn pass(progress: &Progress, name: &str, time: Duration) -> Result<()> {
    progress.step(name, || {
        std::thread::sleep(time);
        Ok(())
    })
}

fn find(lab: &Lab, program: &str) -> Vec<i32> {
    lab.running().iter().flat_map(|node| usage::running(program, &topology::node(LAB, &node.name))).collect()
}

fn use_of(processes: &[Vec<i32>]) -> Result<Vec<Vec<Usage>>> {
    processes.iter().map(|pids| pids.iter().map(|pid| usage::of(*pid)).collect()).collect()
}

/// Counts both directions of WireGuard's port between this home and its peers, after the router's own rules.
fn watch_pairs(lab: &Lab) -> Result<()> {
    let mut rules = String::from("table inet bench {\n");
    for peer in PEERS {
        rules += &format!("  counter {peer} {{ }}\n");
    }
    rules += "  chain forward {\n    type filter hook forward priority 300; policy accept;\n";
    for peer in PEERS {
        let address = lab.node(peer)?.outer_v4();
        // STUN with the public nodes is of no pair.
        rules += &format!("    ip daddr {address} udp dport != 3478 counter name \"{peer}\"\n");
        rules += &format!("    ip saddr {address} udp sport != 3478 counter name \"{peer}\"\n");
    }
    topology::router(LAB, HOME).nft(&(rules + "  }\n}\n"))
}

fn pair_packets(lab: &Lab) -> Result<BTreeMap<&'static str, u64>> {
    let router = topology::router(&lab.scenario().name, HOME);
    let count = |peer: &'static str| {
        let said = crate::command::run(&mut router.command("nft", &["list", "counter", "inet", "bench", peer]))?;
        let words = said.split_whitespace().skip_while(|word| *word != "packets");
        let packets = words.skip(1).find_map(|word| word.parse().ok());
        Ok((peer, packets.with_context(|| format!("no count in {said:?}"))?))
    };
    PEERS.into_iter().map(count).collect()
}

/// Every write to an object of Warren's group that the API server has answered.
fn api_writes(lab: &Lab) -> Result<f64> {
    Ok(count_writes(&lab.kubectl(&["get", "--raw", "/metrics"])?))
}

fn count_writes(metrics: &str) -> f64 {
    const WRITES: [&str; 7] = ["POST", "PUT", "PATCH", "APPLY", "DELETE", "DELETECOLLECTION", "CREATE"];
    let is_write = |line: &&str| {
        line.starts_with("apiserver_request_total{")
            && line.contains("group=\"warren.dev\"")
            && WRITES.iter().any(|verb| line.contains(&format!("verb=\"{verb}\"")))
    };
    metrics.lines().filter(is_write).filter_map(|line| line.rsplit_once(' ')?.1.parse::<f64>().ok()).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_writes_to_our_group_count() {
        let metrics = r#"# HELP apiserver_request_total x
apiserver_request_total{code="200",group="warren.dev",resource="meshnodes",verb="APPLY"} 7
apiserver_request_total{code="200",group="warren.dev",resource="meshnodes",verb="PATCH"} 2e+00
apiserver_request_total{code="0",group="warren.dev",resource="meshnodes",verb="WATCH"} 40
apiserver_request_total{code="200",group="coordination.k8s.io",resource="leases",verb="PUT"} 90
"#;
        assert!((count_writes(metrics) - 9.0).abs() < 1e-9);
    }
}
