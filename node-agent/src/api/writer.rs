//! Writes `MeshNode.status`, by server-side apply.

use super::Connection;
use crds::{MeshNode, MeshNodeStatus, names};
use kube::{Api, api::Patch, api::PatchParams};
use serde_json::json;
use std::time::Duration;
use tokio::time::timeout;

/// An API server that takes longer is treated as gone, and its connections as dead.
const WRITE_TIMEOUT: Duration = Duration::from_secs(10);

/// Why a status was not written.
#[derive(Debug, thiserror::Error)]
pub enum WriteError {
    /// The object isn't there (yet).
    #[error("expected the MeshNode to exist; the operator makes it, check that it runs")]
    Missing,
    /// The API server said no.
    #[error(
        "expected to be allowed to write this node's own status, found: {0}; check the role and the admission policies of Warren"
    )]
    Refused(String),
    /// No answer, or an unexpected one.
    #[error("{0}")]
    Unreachable(String),
}

/// Applies the whole status of our MeshNode; what an earlier apply had and this one hasn't goes away.
pub async fn write(connection: &Connection, name: &str, status: &MeshNodeStatus) -> Result<MeshNode, WriteError> {
    let (number, client) = connection.client().map_err(|e| WriteError::Unreachable(e.to_string()))?;
    let api: Api<MeshNode> = Api::all(client);
    let body = json!({
        "apiVersion": format!("{}/v1alpha1", names::GROUP),
        "kind": "MeshNode",
        "metadata": { "name": name },
        "status": status,
    });
    let params = PatchParams::apply(names::AGENT_MANAGER).force();
    match timeout(WRITE_TIMEOUT, api.patch_status(name, &params, &Patch::Apply(&body))).await {
        Ok(Ok(written)) => {
            connection.worked(number);
            Ok(written)
        }
        Ok(Err(kube::Error::Api(status))) if status.code == 404 => Err(WriteError::Missing),
        Ok(Err(kube::Error::Api(status))) if (400..500).contains(&status.code) && status.code != 429 => {
            Err(WriteError::Refused(status.message))
        }
        Ok(Err(kube::Error::Api(status))) => {
            connection.unable(number);
            Err(WriteError::Unreachable(status.message))
        }
        Ok(Err(e)) => {
            connection.failed(number);
            Err(WriteError::Unreachable(e.to_string()))
        }
        Err(_) => {
            // The connection may have died without a word; whoever else uses it should know.
            connection.failed(number);
            connection.reset();
            Err(WriteError::Unreachable("no answer to a write".into()))
        }
    }
}
