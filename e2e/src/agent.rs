//! Asks a node's agent by its socket, from outside the node, which costs next to nothing.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use anyhow::{Context, Result};
use serde_json::Value;

use crate::lab::Lab;
use crate::process::Process;

/// An agent answers within a millisecond; one that is starting may not.
const ANSWER: Duration = Duration::from_secs(1);

/// What the agent of `node` answers at `path`.
pub fn ask(lab: &Lab, node: &str, path: &str) -> Result<Value> {
    let init = Process::recorded(lab.state(), node).with_context(|| format!("node {node} is not running"))?;
    let mut stream = UnixStream::connect(format!("/proc/{}/root/run/warren/agent.sock", init.pid))
        .with_context(|| format!("reaching the agent of {node}"))?;
    stream.set_read_timeout(Some(ANSWER)).context("setting a timeout")?;
    write!(stream, "GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
        .context("asking the agent")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).context("reading the agent's answer")?;
    // Whatever frames the body, the object is one piece of it.
    let (begin, end) = answer.find('{').zip(answer.rfind('}')).context("an answer with an object")?;
    serde_json::from_str(&answer[begin..=end]).context("reading the agent's answer")
}

/// How `from` reaches `to`, as its agent says. The error is what it says instead, for a wait to show.
pub fn path(lab: &Lab, from: &str, to: &str) -> Result<Value, String> {
    let report = ask(lab, from, "/v1/paths").map_err(|error| format!("{error:#}"))?;
    let peers = report["peers"].as_array().cloned().unwrap_or_default();
    peers.into_iter().find(|peer| peer["name"] == to).ok_or_else(|| format!("{from} has no peer {to}"))
}

/// Both directions of a pair if each is as `is_it` says; else the first that is not.
pub fn both_ways(lab: &Lab, pair: (&str, &str), is_it: impl Fn(&Value) -> bool) -> Result<[Value; 2], String> {
    let (one, other) = pair;
    let see = |from, to| match path(lab, from, to)? {
        path if is_it(&path) => Ok(path),
        path => Err(format!("{from} to {to}: {path}")),
    };
    Ok([see(one, other)?, see(other, one)?])
}
