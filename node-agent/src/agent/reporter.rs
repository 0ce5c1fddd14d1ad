//! Keeps `MeshNode.status` in step with what is true, with as few writes as that takes.

use crate::{
    api::{
        Connection,
        writer::{self, WriteError},
    },
    random,
    status::{
        conditions::Facts,
        content::{self, Content},
        pacer::{Change, Pacer},
    },
};
use crds::{Condition, MeshNode, MeshNodeStatus};
use k8s_openapi::{apimachinery::pkg::apis::meta::v1::Time, jiff::Timestamp};
use std::time::Instant;
use tokio::task::JoinHandle;

/// The writing side; one write is under way at most.
pub struct Reporter {
    connection: Connection,
    name: String,
    pacer: Pacer,
    /// What the last poll wanted, to see whether it moves.
    wanted: Option<MeshNodeStatus>,
    /// What was written and what came back: a server that drops a field must not be told again for ever.
    last: Option<Exchange>,
    writing: Option<(MeshNodeStatus, JoinHandle<Result<MeshNode, WriteError>>)>,
    failure: Option<String>,
}

struct Exchange {
    sent: MeshNodeStatus,
    returned: Option<MeshNodeStatus>,
}

impl Reporter {
    /// A reporter for the MeshNode of that name.
    pub fn new(connection: Connection, name: &str, now: Instant) -> Self {
        Self {
            connection,
            name: name.into(),
            pacer: Pacer::new(now),
            wanted: None,
            last: None,
            writing: None,
            failure: None,
        }
    }

    /// Why the last write failed, if it did.
    pub fn failure(&self) -> Option<&str> {
        self.failure.as_deref()
    }

    /// Compares what should be with what is, and starts a write if one is due. Returns when to look again.
    pub fn poll(&mut self, content: &Content, facts: &Facts, node: &MeshNode, now: Instant) -> Option<Instant> {
        if self.writing.is_some() {
            return None;
        }
        let there = node.status.as_ref();
        let before: &[Condition] = there.map(|s| s.conditions.as_slice()).unwrap_or_default();
        let wanted = content::status(content, facts, before, &Time(Timestamp::now()));
        let baseline = match &self.last {
            Some(last) if last.returned.as_ref() == there => Some(&last.sent),
            _ => there,
        };
        let change = content::change(baseline, &wanted);
        let moved = self.wanted.as_ref().is_none_or(|old| content::change(Some(old), &wanted) != Change::None);
        self.wanted = Some(wanted.clone());
        // While the API is away everybody takes turns. What is written when one comes is what is true then.
        if let Some(at) = self.connection.waits_until(now).filter(|_| change != Change::None) {
            return Some(at);
        }
        match self.pacer.poll(change, moved, now) {
            Ok(()) => match self.connection.take_turn(now) {
                Ok(()) => {
                    self.start(wanted);
                    None
                }
                Err(at) => Some(at),
            },
            Err(again) => again,
        }
    }

    /// Something changed that may let a failed write through: the API is back, or the object is there.
    pub fn retry_now(&mut self) {
        self.pacer.succeeded();
    }

    /// Waits for the write under way; forever if there is none. Cancel safe.
    pub async fn written(&mut self) -> Result<MeshNode, WriteError> {
        let Some((_, task)) = &mut self.writing else { return std::future::pending().await };
        task.await.unwrap_or_else(|e| Err(WriteError::Unreachable(e.to_string())))
    }

    /// Takes the result of [`Self::written`] in.
    pub fn finish(&mut self, result: &Result<MeshNode, WriteError>, now: Instant) {
        let sent = self.writing.take().map(|(sent, _)| sent);
        match (result, sent) {
            (Ok(node), Some(sent)) => {
                self.pacer.succeeded();
                self.failure = None;
                self.last = Some(Exchange { sent, returned: node.status.clone() });
            }
            (Err(e), _) => {
                self.pacer.failed(now, random::unit());
                let text = e.to_string();
                if self.failure.as_ref() != Some(&text) {
                    tracing::warn!(error = text, "the status was not written; trying again");
                }
                self.failure = Some(text);
            }
            (Ok(_), None) => {}
        }
    }

    fn start(&mut self, status: MeshNodeStatus) {
        let (connection, name, sent) = (self.connection.clone(), self.name.clone(), status.clone());
        let task = tokio::spawn(async move { writer::write(&connection, &name, &status).await });
        self.writing = Some((sent, task));
    }
}
