//! Real agents on the userspace device, and what others do to their node. Figures are printed, never asserted.

#![allow(clippy::unwrap_used, reason = "a test may fail by panicking")]

#[path = "node_faults/node.rs"]
mod node;
#[path = "node_faults/others.rs"]
mod others;
mod support;

use serde_json::Value;
use std::{
    io::ErrorKind,
    net::{SocketAddr, TcpStream},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};
use support::{
    netns::enter,
    operator::condition,
    pair::{DEADLINE, Lab},
};

/// Mesh addresses.
const A: &str = "10.118.0.1";
const B: &str = "10.118.0.2";

/// Two nodes that reach each other.
fn connected() -> Option<Lab> {
    let mut lab = Lab::new()?;
    lab.start("a");
    lab.start("b");
    lab.reach("a", B);
    lab.wait_direct("a");
    lab.wait_direct("b");
    Some(lab)
}

impl Lab {
    /// Waits for a value; how long that took comes with it.
    fn until<T>(&self, what: &str, mut look: impl FnMut(&Self) -> Option<T>) -> (T, Duration) {
        let began = Instant::now();
        loop {
            if let Some(found) = look(self) {
                return (found, began.elapsed());
            }
            assert!(began.elapsed() < DEADLINE, "waited for {what}\n{}", self.logs());
            thread::sleep(Duration::from_millis(10));
        }
    }

    fn until_condition(&self, node: &str, type_: &str, wanted: Option<&str>) -> Duration {
        let shown = |lab: &Self| condition(&lab.api.get("meshnodes", node)?, type_).map(|(_, reason)| reason);
        self.until(&format!("{type_} {wanted:?} of {node}"), |lab| (shown(lab).as_deref() == wanted).then_some(())).1
    }

    /// What the node's agent says of a field of its status, without a reason to fail while it starts.
    fn says(&self, node: &str, field: &str) -> Option<Value> {
        let text = self.ask(node, &["status", "--json"]).ok()?;
        Some(serde_json::from_str::<Value>(&text).ok()?[field].clone())
    }

    fn sh(&self, node: &str, script: &str) -> String {
        self.spaces.exec(node, "sh", &["-c", script]).unwrap()
    }
}

/// Attempts to reach B from A, one after the other until stopped.
struct Traffic {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<Duration>,
}

impl Traffic {
    fn start(lab: &Lab) -> Self {
        let (stop, space) = (Arc::new(AtomicBool::new(false)), lab.spaces.full("a"));
        let stopped = stop.clone();
        let thread = thread::spawn(move || {
            enter(&space).unwrap();
            let target: SocketAddr = format!("{B}:9").parse().unwrap();
            let (mut last, mut longest) = (Instant::now(), Duration::ZERO);
            while !stopped.load(Ordering::Relaxed) {
                // A refused connection is an answer, and it came through the tunnel.
                match TcpStream::connect_timeout(&target, Duration::from_millis(100)) {
                    Err(e) if e.kind() != ErrorKind::ConnectionRefused => thread::yield_now(),
                    _ => {
                        longest = longest.max(last.elapsed());
                        last = Instant::now();
                        thread::sleep(Duration::from_millis(5));
                    }
                }
            }
            longest
        });
        Self { stop, thread }
    }

    /// The longest time without an answer.
    fn stop(self) -> Duration {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().unwrap()
    }
}
