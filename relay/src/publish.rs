//! Writes where this relay can be asked into its `MeshRelay`, by server-side apply, and only when that changes.
//!
//! One watch follows the one object. The API may be away at any time and for any length of it; nothing else waits.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use crds::{MeshNode, MeshRelay};
use futures::StreamExt;
use futures::stream::BoxStream;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use k8s_openapi::jiff::Timestamp;
use kube::api::{Api, Patch, PatchParams};
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::runtime::{WatchStreamExt, watcher};
use tokio::sync::watch;
use tokio::time::{Instant, MissedTickBehavior};

use crate::addresses::with_given;
use crate::backoff::Backoff;
use crate::control::{Board, Doors};
use crate::monitor::Metrics;
use crate::server::Budget;
use status::{Offer, Plan};

mod status;

/// How often the host's addresses are looked at: reading three small files, cheap enough to notice a new address soon.
const ADDRESS_PERIOD: Duration = Duration::from_secs(10);

/// Silence on a connection after which it counts as dead: just above the 290 s after which the API server ends a watch.
const READ_TIMEOUT: Duration = Duration::from_secs(295);

/// Writes at rest: none. In a quarrel with another writer: one in this time, after a burst for a lively start.
const WRITE_PERIOD: Duration = Duration::from_secs(30);
const WRITE_BURST: u32 = 3;

/// Whose status is written.
#[derive(Debug, Clone)]
pub struct Identity {
    /// Name of the MeshRelay.
    pub name: String,
    /// Name of the Node, if the relay runs on one.
    pub node_name: Option<String>,
}

/// That this relay carries packets, and by which key nodes recognise it.
#[derive(Debug, Clone)]
pub struct Service {
    /// The public half of its identity.
    pub identity: [u8; channel::IDENTITY_LEN],
    /// Says which doors are open.
    pub board: Arc<Board>,
}

impl Service {
    fn offer(&self, led: Option<u16>) -> Offer {
        Offer { identity: self.identity, doors: *self.board.doors.borrow(), led }
    }
}

/// Makes a client from a kubeconfig, or from the pod's service account.
///
/// # Errors
/// When configuration is missing or malformed. An API that cannot be reached is no error here.
pub async fn client(kubeconfig: Option<&Path>) -> anyhow::Result<kube::Client> {
    let mut config = match kubeconfig {
        Some(path) => {
            let file = Kubeconfig::read_from(path)
                .with_context(|| format!("cannot read the kubeconfig {}", path.display()))?;
            kube::Config::from_custom_kubeconfig(file, &KubeConfigOptions::default())
                .await
                .with_context(|| format!("cannot use the kubeconfig {}", path.display()))?
        }
        None => kube::Config::incluster().context(
            "cannot use the pod's service account; outside a cluster give --kubeconfig or --in-cluster=never",
        )?,
    };
    config.read_timeout = Some(READ_TIMEOUT);
    kube::Client::try_from(config).context("cannot make a client for the Kubernetes API")
}

/// Publishes until it is dropped. `addresses` is asked again and again for what to publish, after what the object itself gives.
pub async fn run(
    client: kube::Client,
    identity: Identity,
    addresses: impl Fn() -> Vec<std::net::SocketAddr>,
    service: Option<Service>,
    metrics: Arc<Metrics>,
) {
    let mut own_node = own_node(&client, &identity);
    let api: Api<MeshRelay> = Api::all(client);
    let mut events = watcher::watch_object(api.clone(), &identity.name).default_backoff().boxed();
    let mut period = tokio::time::interval(ADDRESS_PERIOD);
    period.set_missed_tick_behavior(MissedTickBehavior::Delay);

    let mut doors = service.as_ref().map(|service| service.board.doors.subscribe());
    let mut publisher = Publisher::new(api, identity, service, metrics);
    loop {
        tokio::select! {
            event = events.next() => match event {
                Some(event) => publisher.observe(event),
                None => return,
            },
            Some(event) = own_node.next() => publisher.observe_node(event),
            () = changed(&mut doors) => {}
            _ = period.tick() => {}
            () = publisher.retry_due() => {}
        }
        publisher.publish(&addresses()).await;
    }
}

/// What becomes of the MeshNode that this relay runs on: its agent may lead a port here. Without a node nothing ever does.
fn own_node(
    client: &kube::Client,
    identity: &Identity,
) -> BoxStream<'static, Result<Option<MeshNode>, watcher::Error>> {
    match &identity.node_name {
        Some(name) => watcher::watch_object(Api::all(client.clone()), name).default_backoff().boxed(),
        None => futures::stream::pending().boxed(),
    }
}

/// Ready when the doors of the control channel have changed.
async fn changed(doors: &mut Option<watch::Receiver<Doors>>) {
    let has_changed = match doors {
        Some(doors) => doors.changed().await.is_ok(),
        None => false,
    };
    if !has_changed {
        std::future::pending::<()>().await;
    }
}

struct Publisher {
    api: Api<MeshRelay>,
    identity: Identity,
    service: Option<Service>,
    metrics: Arc<Metrics>,
    seen: Option<MeshRelay>,
    /// The TCP port that the agent of this node leads here.
    led: Option<u16>,
    budget: Budget,
    backoff: Backoff,
    /// Whether the API was away at the last look, so that each change is logged once.
    away: bool,
    /// Whether the object was found to belong to another node, likewise.
    foreign: bool,
}

impl Publisher {
    fn new(api: Api<MeshRelay>, identity: Identity, service: Option<Service>, metrics: Arc<Metrics>) -> Self {
        let budget = Budget::new(WRITE_PERIOD, WRITE_BURST, Instant::now().into_std());
        Self {
            api,
            identity,
            service,
            metrics,
            seen: None,
            led: None,
            budget,
            backoff: Backoff::default(),
            away: false,
            foreign: false,
        }
    }

    /// Takes in what the watch says: the object, or that there is none.
    fn observe(&mut self, event: Result<Option<MeshRelay>, watcher::Error>) {
        match event {
            Ok(relay) => {
                if std::mem::take(&mut self.away) {
                    tracing::info!("the Kubernetes API answers again");
                }
                if !relay.as_ref().zip(self.seen.as_ref()).is_some_and(|(new, seen)| status::is_older(new, seen)) {
                    self.seen = relay;
                }
            }
            Err(error) if !self.away => {
                self.away = true;
                tracing::warn!(%error, "cannot watch the MeshRelay; STUN is served meanwhile, and the watch is tried again");
            }
            Err(error) => tracing::debug!(%error, "cannot watch the MeshRelay"),
        }
    }

    /// Takes in what the agent of this node says of its ports. While that can't be read the last word stands.
    fn observe_node(&mut self, event: Result<Option<MeshNode>, watcher::Error>) {
        match event {
            Ok(node) => self.led = node.and_then(|node| node.status?.relay_tls_port),
            Err(error) => tracing::debug!(%error, "cannot watch the MeshNode of this node"),
        }
    }

    /// Writes if there is something to write and it is time to.
    async fn publish(&mut self, addresses: &[std::net::SocketAddr]) {
        let given = self.seen.as_ref().map_or(&[][..], |relay| &relay.spec.addresses);
        let addresses = with_given(given, addresses);
        self.metrics.addresses.set(i64::try_from(addresses.len()).unwrap_or(i64::MAX));
        let Some(relay) = &self.seen else {
            // Nothing is postponed for an object that is gone.
            return self.backoff.reset();
        };
        let offer = self.service.as_ref().map(|service| service.offer(self.led));
        let plan = status::plan(relay, &self.identity, &addresses, offer.as_ref(), Time(Timestamp::now()));
        let foreign = matches!(plan, Plan::Foreign { .. });
        match plan {
            Plan::Nothing => self.backoff.reset(),
            Plan::Foreign { node_name } => self.leave_alone(&node_name),
            Plan::Write(status) => self.write(status).await,
        }
        self.foreign = foreign;
    }

    fn leave_alone(&mut self, node_name: &str) {
        self.backoff.reset();
        if !self.foreign {
            tracing::warn!(
                name = self.identity.name,
                found = node_name,
                expected = self.identity.node_name,
                "the MeshRelay belongs to another Node and is left alone; give this relay the --name of its own"
            );
        }
    }

    async fn write(&mut self, status: crds::MeshRelayStatus) {
        let now = Instant::now();
        if !self.backoff.is_due(now) {
            return;
        }
        if !self.budget.take(now.into_std()) {
            self.backoff.wait(now, WRITE_PERIOD);
            return;
        }
        let patch = Patch::Apply(status::patch(&self.identity.name, &status));
        let params = PatchParams::apply(crds::names::RELAY_MANAGER).force();
        match self.api.patch_status(&self.identity.name, &params, &patch).await {
            Ok(relay) => {
                tracing::info!(
                    name = self.identity.name,
                    addresses = status.stun.len(),
                    "published where to ask this relay"
                );
                tracing::debug!(addresses = ?status.stun, "published");
                self.metrics.status_writes.with_label_values(&["ok"]).inc();
                self.seen = Some(relay);
                self.backoff.reset();
            }
            Err(error) => {
                // Who may only read has the key written into the spec by an admin, who reads it here.
                let identity_key = status.identity_key.as_deref().unwrap_or_default();
                let name = &self.identity.name;
                tracing::warn!(name, identity_key, %error, "cannot write the MeshRelay's status, trying again");
                self.metrics.status_writes.with_label_values(&["error"]).inc();
                self.backoff.failed(now);
            }
        }
    }

    /// Ready when a postponed write is due; never while there is none.
    fn retry_due(&self) -> impl Future<Output = ()> + use<> {
        let due = self.backoff.due();
        async move {
            match due {
                Some(due) => tokio::time::sleep_until(due).await,
                None => std::future::pending().await,
            }
        }
    }
}
