//! The connection to the Kubernetes API.

use anyhow::{Context, Result};
use kube::{
    Client, Config,
    config::{KubeConfigOptions, Kubeconfig},
};
use std::{path::Path, time::Duration};

/// An API server that does not take a connection within this time is treated as away, so that a lease can be given up in time.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);
/// A connection that says nothing for this long is taken for dead: an idle watch gets a bookmark every minute.
const READ_TIMEOUT: Duration = Duration::from_secs(100);

/// A client for the given kubeconfig, or for the service account of the Pod.
pub async fn connect(kubeconfig: Option<&Path>) -> Result<Client> {
    let mut config = match kubeconfig {
        Some(path) => from_file(path).await?,
        None => Config::incluster().context(
            "expected to run in a Pod with a service account; outside of one give --kubeconfig FILE (or KUBECONFIG)",
        )?,
    };
    config.connect_timeout = Some(CONNECT_TIMEOUT);
    config.read_timeout = Some(READ_TIMEOUT);
    Client::try_from(config).context("set up the connection to the Kubernetes API")
}

async fn from_file(path: &Path) -> Result<Config> {
    let kubeconfig = Kubeconfig::read_from(path).with_context(|| format!("read kubeconfig {}", path.display()))?;
    Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default())
        .await
        .with_context(|| format!("use kubeconfig {}", path.display()))
}
