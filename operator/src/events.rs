//! Events for people who watch a node with `kubectl describe`, never more than a trickle.

use crate::metrics::Metrics;
use crds::names::OPERATOR_MANAGER;
use k8s_openapi::{
    api::{core::v1::ObjectReference, events::v1::Event},
    apimachinery::pkg::apis::meta::v1::MicroTime,
    jiff::Timestamp,
};
use kube::{
    Api, Client,
    api::{ObjectMeta, PostParams},
};
use std::{
    sync::Arc,
    time::{Duration, Instant},
};

/// Events in a row: enough for every node of a small mesh that joins at once.
const BURST: u32 = 25;
/// One more in this time: the default of client-go, 12 a minute and object, for the whole operator.
const REFILL: Duration = Duration::from_secs(5);
/// An Event is not worth holding up a pass for longer.
const TIMEOUT: Duration = Duration::from_secs(2);
/// Events about cluster-scoped objects live here by Kubernetes' convention.
const NAMESPACE: &str = "default";
/// The API server's own limit on a note.
const MAX_NOTE: usize = 1024;

/// One thing to tell.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Notice {
    /// The kind of the object.
    pub kind: &'static str,
    /// Its name.
    pub name: String,
    /// Its UID, if it is known.
    pub uid: Option<String>,
    /// One CamelCase word.
    pub reason: &'static str,
    /// Whether somebody should look.
    pub warning: bool,
    /// For people.
    pub message: String,
}

/// How many Events may still be written.
#[derive(Debug)]
struct Budget {
    left: u32,
    refilled: Instant,
}

impl Budget {
    fn take(&mut self, now: Instant) -> bool {
        while self.left < BURST && now.saturating_duration_since(self.refilled) >= REFILL {
            self.left += 1;
            self.refilled += REFILL;
        }
        if self.left == BURST {
            self.refilled = now;
        }
        let allowed = self.left > 0;
        self.left = self.left.saturating_sub(1);
        allowed
    }
}

/// Writes Events.
pub struct Recorder {
    api: Api<Event>,
    identity: String,
    budget: Budget,
    metrics: Arc<Metrics>,
}

impl Recorder {
    /// A recorder with a full budget.
    pub fn new(client: Client, identity: String, metrics: Arc<Metrics>) -> Self {
        let budget = Budget { left: BURST, refilled: Instant::now() };
        Self { api: Api::namespaced(client, NAMESPACE), identity, budget, metrics }
    }

    /// Tells it, if the budget allows. What is not told is counted and stands in the log.
    pub async fn tell(&mut self, notice: &Notice) {
        let Notice { kind, name, uid: _, reason, warning, message } = notice;
        if *warning {
            tracing::warn!(kind, name, reason, "{message}");
        } else {
            tracing::info!(kind, name, reason, "{message}");
        }
        let result = if !self.budget.take(Instant::now()) {
            "dropped"
        } else {
            let event = event(notice, &self.identity, Timestamp::now());
            let params = PostParams::default();
            match tokio::time::timeout(TIMEOUT, self.api.create(&params, &event)).await {
                Ok(Ok(_)) => "ok",
                _ => "failed",
            }
        };
        self.metrics.events.with_label_values(&[reason, result]).inc();
    }
}

fn event(notice: &Notice, identity: &str, now: Timestamp) -> Event {
    let mut note = notice.message.clone();
    note.truncate(note.floor_char_boundary(MAX_NOTE));
    Event {
        metadata: ObjectMeta {
            name: Some(format!("{}.{:x}", notice.name, now.as_nanosecond())),
            namespace: Some(NAMESPACE.into()),
            ..ObjectMeta::default()
        },
        action: Some("Reconcile".into()),
        event_time: Some(MicroTime(now)),
        note: Some(note),
        reason: Some(notice.reason.into()),
        regarding: Some(ObjectReference {
            api_version: Some(crate::reconcile::API_VERSION.into()),
            kind: Some(notice.kind.into()),
            name: Some(notice.name.clone()),
            uid: notice.uid.clone(),
            ..ObjectReference::default()
        }),
        reporting_controller: Some(OPERATOR_MANAGER.into()),
        reporting_instance: Some(identity.into()),
        type_: Some(if notice.warning { "Warning" } else { "Normal" }.into()),
        ..Event::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_storm_of_events_becomes_a_trickle() {
        let start = Instant::now();
        let mut budget = Budget { left: BURST, refilled: start };
        let told = (0..1000).filter(|_| budget.take(start)).count();
        assert_eq!(told, BURST as usize);
        assert!(!budget.take(start + REFILL / 2));
        assert!(budget.take(start + REFILL));
        assert!(!budget.take(start + REFILL));
        let told = (0..1000).filter(|_| budget.take(start + REFILL * 1000)).count();
        assert_eq!(told, BURST as usize, "a quiet time fills the budget and no more");
    }

    #[test]
    fn a_long_message_is_cut_at_a_character() {
        let message = "é".repeat(2000);
        let notice =
            Notice { kind: "MeshNode", name: "n".into(), uid: None, reason: "Conflict", warning: true, message };
        let note = event(&notice, "me", Timestamp::UNIX_EPOCH).note.unwrap();
        assert!(note.len() <= MAX_NOTE && note.ends_with('é'));
    }
}
