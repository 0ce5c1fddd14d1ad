//! What a check does around a fault: traffic while it lasts, and whether the mesh is whole again after it.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use crate::lab::Lab;
use crate::scenario::Node;
use crate::workload::{self, Pod};
use crate::{wait, warren};

/// Kubelet takes most of a minute to give up a connection whose NAT has forgotten it, and its pods are not ready meanwhile. It
/// waits for minutes before it starts a container again that ended several times.
pub const SOON: Duration = Duration::from_secs(300);
const TRY: Duration = Duration::from_secs(3);

/// Every pod reaches every pod again; prints how long that took.
pub fn reach(lab: &Lab, when: &str) -> Result<()> {
    let begin = Instant::now();
    wait::until(&format!("every pod to reach every other {when}"), SOON, || {
        let pods = workload::pods(lab).map_err(|error| format!("{error:#}"))?;
        let failures = workload::failures(&workload::matrix(lab, &pods, TRY));
        if failures.is_empty() { Ok(()) } else { Err(failures.join("; ")) }
    })?;
    eprintln!("           whole again {when}: {:.1} s", begin.elapsed().as_secs_f32());
    warren::wait_ready(lab)
}

/// A stream between two pods while something happens to the lab.
pub fn during(lab: &Lab, from: &Pod, to: &Pod, seconds: u64, fault: impl FnOnce() -> Result<()>) -> Result<Value> {
    std::thread::scope(|scope| {
        let stream = scope.spawn(|| from.check(lab, &["stream", &to.socket().to_string(), &seconds.to_string()]));
        fault()?;
        let text = stream.join().map_err(|_| anyhow::anyhow!("the stream panicked"))??;
        serde_json::from_str(&text).with_context(|| format!("reading {text:?}"))
    })
}

/// The pod of a node.
pub fn on<'a>(pods: &'a [Pod], node: &str) -> Result<&'a Pod> {
    pods.iter().find(|pod| pod.node == node).with_context(|| format!("no pod on {node}"))
}

/// Sends every operator a signal; at least one must have been there.
pub fn signal_operators(lab: &Lab, signal: &str) -> Result<()> {
    // Only two of the nodes run an operator.
    let reached = |node: &&Node| lab.exec(&node.name, "pkill", &[signal, "-x", "warren-operator"]).is_ok();
    let count = lab.running().iter().filter(|node| reached(node)).count();
    ensure!(count > 0, "no operator was found");
    Ok(())
}
