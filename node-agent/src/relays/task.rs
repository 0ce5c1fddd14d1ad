//! The task of one channel.

use super::{Credentials, Link, ORDERS_QUEUE, Relay, Report, Voice, What, backoff::Backoff};
use crate::{
    carry::{Feed, Lane},
    host::Host,
    random,
};
use channel::{Heard, Packets};
use std::{sync::Arc, time::Instant};
use tokio::{
    sync::{mpsc, oneshot, watch},
    time::sleep,
};
use wire::control::{DeniedReason, ToNode};

pub(super) struct Task {
    pub host: Arc<dyn Host>,
    pub credentials: Credentials,
    pub relay: Relay,
    pub number: u64,
    pub news: mpsc::Sender<Report>,
    pub feed: Option<Feed>,
    pub lane: Arc<Lane>,
    /// Whether the operator has admitted this node's key.
    pub admitted: watch::Receiver<bool>,
}

/// Why the loop lets go of an open channel.
const UNANSWERED: &str = "the relay did not answer over it";

/// How a channel came to its end.
struct End {
    why: String,
    denied: Option<DeniedReason>,
}

impl Task {
    /// Runs until the loop lets go of it.
    pub async fn run(mut self) {
        let mut backoff = Backoff::default();
        loop {
            let (why, pause) = match self.host.open_link(&self.credentials, &self.relay, backoff.patience()).await {
                Ok(link) => {
                    let opened = Instant::now();
                    let End { why, denied } = self.pipe(link).await;
                    if denied != Some(DeniedReason::NotAdmitted) {
                        self.admitted.mark_unchanged();
                    }
                    let pause = match denied {
                        // Admission is a matter of seconds for a new node.
                        None | Some(DeniedReason::NotAdmitted) => backoff.ended(opened.elapsed(), random::unit()),
                        Some(_) => backoff.refused(random::unit()),
                    };
                    (why, pause)
                }
                Err(e) => (format!("{e:#}"), backoff.failed(random::unit())),
            };
            tracing::debug!(relay = self.relay.name, why, ?pause, "no channel to a relay");
            if self.report(What::Closed(why)).await.is_none() {
                return;
            }
            tokio::select! {
                () = sleep(pause) => {}
                // Also if it came while the relay said no.
                Ok(()) = self.admitted.changed() => backoff = Backoff::default(),
            }
        }
    }

    /// Hands on what each side says until one of them ends it. The engine introduces this node.
    async fn pipe(&self, link: Link) -> End {
        let Link { transport, again, mut outgoing, mut incoming, outlet } = link;
        let end = |why: String| End { why, denied: None };
        let ((sender, mut orders), (held, let_go)) = (mpsc::channel(ORDERS_QUEUE), oneshot::channel());
        self.lane.open(outlet);
        if self.report(What::Open(transport, again, Voice { orders: sender, _held: held })).await.is_none() {
            return end("the agent let go of it".into());
        }
        let writing = async {
            while let Some(order) = orders.recv().await {
                if let Err(e) = outgoing.send(&order).await {
                    return end(format!("{e:#}"));
                }
            }
            end(UNANSWERED.into())
        };
        let reading = async {
            loop {
                let mut packets = Packets::default();
                let message = match incoming.hear(&mut packets).await {
                    Ok(Some(Heard::Packets)) => {
                        if let Some(feed) = &self.feed {
                            feed.deliver(self.relay.id, &packets);
                        }
                        continue;
                    }
                    Ok(Some(Heard::Message(message))) => message,
                    Ok(None) => return end("the relay closed it".into()),
                    Err(e) => return end(format!("{e:#}")),
                };
                let refusal = if let ToNode::Denied(reason) = message { Some(reason) } else { None };
                // Also what ends the channel: whether there will be one soon depends on why there is none.
                if self.report(What::Said(message)).await.is_none() {
                    return end("the agent let go of it".into());
                }
                if let Some(reason) = refusal {
                    return End { why: denied(reason).into(), denied: Some(reason) };
                }
            }
        };
        let end = tokio::select! {
            end = reading => end,
            end = writing => end,
            _ = let_go => end(UNANSWERED.into()),
        };
        self.lane.close();
        end
    }

    async fn report(&self, what: What) -> Option<()> {
        self.news.send(Report { id: self.relay.id, task: self.number, what }).await.ok()
    }
}

fn denied(reason: DeniedReason) -> &'static str {
    match reason {
        DeniedReason::NotAdmitted => "the relay knows no admitted node with this node's keys, or not yet",
        DeniedReason::Replaced => {
            "another channel of a node with this node's keys took its place: does a copy of this node run?"
        }
        DeniedReason::Version => "the relay speaks another version of the protocol",
        DeniedReason::Full => "the relay has as many channels as it may have",
        DeniedReason::Protocol => "the relay did not accept what this node said",
    }
}
