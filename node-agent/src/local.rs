//! The agent's own small API on a Unix socket: it answers when the Kubernetes API, `kubectl logs` and `kubectl exec` don't.

pub mod client;
pub mod report;
pub mod server;

use crate::metrics::Metrics;
use tokio::sync::{mpsc, oneshot};

/// Questions that may wait for the loop; more are answered with "busy".
pub const QUEUE: usize = 16;

/// A question to the loop.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Question {
    /// What is programmed, and the conditions.
    Status,
    /// How each peer is reached, or this one.
    Paths(Option<String>),
    /// Whether the readiness probe passes.
    Ready,
    /// Whether the loop turns.
    Live,
    /// The metrics.
    Metrics,
}

/// A question and where the answer goes.
#[derive(Debug)]
pub struct Ask {
    /// What is asked.
    pub question: Question,
    /// Where the answer goes.
    pub reply: oneshot::Sender<Answer>,
}

/// An answer as HTTP has it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    /// 200 or why not.
    pub status: u16,
    /// MIME type.
    pub content_type: &'static str,
    /// The text.
    pub body: String,
}

impl Answer {
    /// A JSON answer.
    pub fn json<T: serde::Serialize>(value: &T) -> Self {
        match serde_json::to_string(value) {
            Ok(body) => Self { status: 200, content_type: "application/json", body },
            Err(e) => Self::text(500, e.to_string()),
        }
    }

    /// The metrics as they are now.
    pub fn metrics(metrics: &Metrics) -> Self {
        Self { content_type: "text/plain; version=0.0.4", ..Self::text(200, metrics.encode()) }
    }

    /// A plain answer.
    pub fn text(status: u16, body: impl Into<String>) -> Self {
        Self { status, content_type: "text/plain; charset=utf-8", body: body.into() }
    }
}

/// Asks the loop.
pub async fn ask(asks: &mpsc::Sender<Ask>, question: Question) -> Answer {
    let (reply, answer) = oneshot::channel();
    if asks.try_send(Ask { question, reply }).is_err() {
        return Answer::text(503, "the agent is busy or is stopping");
    }
    answer.await.unwrap_or_else(|_| Answer::text(503, "the agent is stopping"))
}
