//! Carries writes out: a few at a time, each only while this replica leads.

use super::diff::{Target, Verb, Write};
use crate::{
    index::Kind,
    lease::{WRITE_TIMEOUT, driver::Fence},
    metrics::Metrics,
};
use crds::{Mesh, MeshNode, MeshPeerSlice, MeshRelay, names::OPERATOR_MANAGER};
use futures::{StreamExt, stream};
use k8s_openapi::api::core::v1::Node;
use kube::{
    Api, Client,
    api::{DeleteParams, DynamicObject, Patch, PatchParams, PostParams, Preconditions},
    core::ApiResource,
};
use serde_json::Value;
use std::sync::Arc;

/// Requests at once: enough to hide the round trip, too few to push an API server.
const CONCURRENCY: usize = 8;

/// How a write ended.
#[derive(Clone, Debug, PartialEq)]
pub enum Outcome {
    /// The object as it is now.
    Written(Box<DynamicObject>),
    /// The object is gone, as it should be.
    Gone,
    /// This replica does not lead (any more): nothing was sent.
    NotLeading,
    /// Somebody else wrote first, or the object is there or not there against expectation: the watch will tell.
    Conflict,
    /// The request was taken and changed nothing, although the plan says it should: somebody else owns a field.
    WithoutEffect,
    /// Refused, or no answer.
    Failed,
}

impl Outcome {
    /// Whether there is nothing to retry.
    pub fn is_fine(&self) -> bool {
        matches!(self, Self::Written(_) | Self::Gone)
    }

    fn label(&self) -> &'static str {
        match self {
            Self::Written(_) | Self::Gone => "ok",
            Self::NotLeading => "not_leading",
            Self::Conflict => "conflict",
            Self::WithoutEffect => "without_effect",
            Self::Failed => "failed",
        }
    }
}

/// Sends writes.
#[derive(Clone)]
pub struct Applier {
    client: Client,
    fence: Fence,
    metrics: Arc<Metrics>,
}

impl Applier {
    /// An applier that asks `fence` before each request.
    pub fn new(client: Client, fence: Fence, metrics: Arc<Metrics>) -> Self {
        Self { client, fence, metrics }
    }

    /// The connection.
    pub fn client(&self) -> &Client {
        &self.client
    }

    /// What it asks.
    pub fn fence(&self) -> &Fence {
        &self.fence
    }

    /// Carries out every write; the order of the outcomes is that in which they ended.
    pub async fn apply(&self, writes: Vec<Write>) -> Vec<(Target, Outcome)> {
        let one = |write: Write| async move {
            let outcome = self.one(&write).await;
            (write.target, outcome)
        };
        stream::iter(writes.into_iter().map(one)).buffer_unordered(CONCURRENCY).collect().await
    }

    async fn one(&self, write: &Write) -> Outcome {
        let outcome = if self.fence.holds() {
            match tokio::time::timeout(WRITE_TIMEOUT, self.send(write)).await {
                Ok(outcome) => outcome,
                Err(_) => failed(write, &format!("no answer within {WRITE_TIMEOUT:?}")),
            }
        } else {
            Outcome::NotLeading
        };
        let verb = match (&write.verb, write.target.status) {
            (Verb::Create(_), _) => "create",
            (Verb::Apply(_), false) => "apply",
            (Verb::Apply(_), true) => "apply_status",
            (Verb::Merge(_), _) => "merge",
            (Verb::Delete { .. }, _) => "delete",
        };
        self.metrics.writes.with_label_values(&[write.target.kind.as_str(), verb, outcome.label()]).inc();
        outcome
    }

    async fn send(&self, write: &Write) -> Outcome {
        let Target { kind, name, status } = &write.target;
        let Some(resource) = resource(*kind) else { return failed(write, "not a kind that is written") };
        let api: Api<DynamicObject> = Api::all_with(self.client.clone(), &resource);
        let result = match &write.verb {
            Verb::Create(body) => create(&api, body).await,
            Verb::Apply(body) => {
                let params = PatchParams::apply(OPERATOR_MANAGER).force();
                let patch = Patch::Apply(body);
                if *status {
                    api.patch_status(name, &params, &patch).await
                } else {
                    api.patch(name, &params, &patch).await
                }
            }
            Verb::Merge(body) => {
                let params = PatchParams { field_manager: Some(OPERATOR_MANAGER.into()), ..PatchParams::default() };
                api.patch(name, &params, &Patch::Merge(body)).await
            }
            Verb::Delete { uid, version } => {
                let preconditions = Preconditions { uid: Some(uid.clone()), resource_version: version.clone() };
                let params = DeleteParams { preconditions: Some(preconditions), ..DeleteParams::default() };
                return match api.delete(name, &params).await {
                    Ok(_) => Outcome::Gone,
                    Err(kube::Error::Api(status)) if status.code == 404 => Outcome::Gone,
                    Err(error) => error_outcome(write, &error),
                };
            }
        };
        match result {
            Ok(object) if changed_nothing(write, &object) => Outcome::WithoutEffect,
            Ok(object) => Outcome::Written(Box::new(object)),
            Err(error) => error_outcome(write, &error),
        }
    }
}

async fn create(api: &Api<DynamicObject>, body: &Value) -> kube::Result<DynamicObject> {
    let object = serde_json::from_value(body.clone()).map_err(kube::Error::SerdeError)?;
    let params = PostParams { field_manager: Some(OPERATOR_MANAGER.into()), ..PostParams::default() };
    api.create(&params, &object).await
}

fn changed_nothing(write: &Write, answer: &DynamicObject) -> bool {
    let (Verb::Apply(body) | Verb::Merge(body)) = &write.verb else { return false };
    let before = body["metadata"]["resourceVersion"].as_str();
    before.is_some() && before == answer.metadata.resource_version.as_deref()
}

fn resource(kind: Kind) -> Option<ApiResource> {
    match kind {
        Kind::Mesh => Some(ApiResource::erase::<Mesh>(&())),
        Kind::MeshNode => Some(ApiResource::erase::<MeshNode>(&())),
        Kind::MeshPeerSlice => Some(ApiResource::erase::<MeshPeerSlice>(&())),
        Kind::MeshRelay => Some(ApiResource::erase::<MeshRelay>(&())),
        // Labels, and those of relays only (the admission policy that comes with this right).
        Kind::Node => Some(ApiResource::erase::<Node>(&())),
        Kind::Policy | Kind::Binding => None,
    }
}

fn error_outcome(write: &Write, error: &kube::Error) -> Outcome {
    match error {
        kube::Error::Api(status) if status.code == 409 || status.code == 404 => {
            tracing::debug!(kind = write.target.kind.as_str(), name = write.target.name, "overtaken by another write");
            Outcome::Conflict
        }
        // Its `Display` holds the whole answer, with every cause twice.
        kube::Error::Api(status) => failed(write, &format!("{}: {}", status.reason, status.message)),
        _ => failed(write, &error.to_string()),
    }
}

fn failed(write: &Write, error: &str) -> Outcome {
    let Target { kind, name, status } = &write.target;
    tracing::warn!(kind = kind.as_str(), name, status, error, "a write failed; it is tried again");
    Outcome::Failed
}
