//! Feeds the election from the API server and tells the rest of the process whether it may write.

use super::{Elector, LEASE_DURATION, RENEW_DEADLINE, RETRY, Record, Step, WRITE_TIMEOUT, clock::Moment};
use crate::metrics::Metrics;
use k8s_openapi::{
    api::coordination::v1::{Lease, LeaseSpec},
    apimachinery::pkg::apis::meta::v1::MicroTime,
    jiff::Timestamp,
};
use kube::{
    Api, Client,
    api::{ObjectMeta, PostParams},
};
use std::{sync::Arc, time::Duration};
use tokio::sync::watch;

/// Name of the Lease.
pub const LEASE_NAME: &str = "warren-operator";

/// Says whether this replica may write. Cheap to ask, and asked before every single write.
#[derive(Clone, Debug)]
pub struct Fence(watch::Receiver<Option<Moment>>);

impl Fence {
    /// Whether a write may begin now.
    pub fn holds(&self) -> bool {
        self.0.borrow().is_some_and(|until| Moment::now() < until)
    }

    /// Waits until the answer may have changed. False when the election has ended.
    pub async fn changed(&mut self) -> bool {
        self.0.changed().await.is_ok()
    }
}

/// The election of one replica.
pub struct Election {
    api: Api<Lease>,
    elector: Elector,
    identity: String,
    term: watch::Sender<Option<Moment>>,
    metrics: Arc<Metrics>,
    failing: bool,
}

impl Election {
    /// Prepares the election over the Lease in `namespace`.
    pub fn new(client: Client, namespace: &str, identity: String, metrics: Arc<Metrics>) -> (Self, Fence) {
        let (term, fence) = watch::channel(None);
        let api = Api::namespaced(client, namespace);
        let elector = Elector::new(identity.clone());
        (Self { api, elector, identity, term, metrics, failing: false }, Fence(fence))
    }

    /// Takes part until `stop` resolves; then releases the lease.
    pub async fn run(mut self, stop: impl Future<Output = ()>) {
        tokio::pin!(stop);
        loop {
            let outcome = tokio::time::timeout(WRITE_TIMEOUT, self.turn()).await;
            let result = outcome.unwrap_or_else(|_| Err(anyhow::anyhow!("no answer within {WRITE_TIMEOUT:?}")));
            self.report(result);
            self.publish();
            tokio::select! {
                () = tokio::time::sleep(RETRY) => {}
                () = &mut stop => break,
            }
        }
        self.release().await;
    }

    async fn turn(&mut self) -> anyhow::Result<()> {
        // The holder renews without reading: if somebody else wrote, the version does not fit.
        if self.elector.valid_until().is_none_or(|until| until <= Moment::now()) {
            let lease = self.api.get_opt(LEASE_NAME).await?;
            self.elector.observe(lease.as_ref().map(record), Moment::now());
        }
        let sent = Moment::now();
        let written = match self.elector.next(sent) {
            Step::Wait => return Ok(()),
            Step::Create => self.api.create(&PostParams::default(), &self.lease(None, 0)).await,
            Step::Write { version, transitions } => {
                let lease = self.lease(Some(version), transitions);
                self.api.replace(LEASE_NAME, &PostParams::default(), &lease).await
            }
        };
        match written {
            Ok(lease) => self.elector.written(record(&lease), sent),
            // 404: it was deleted under us.
            Err(kube::Error::Api(status)) if status.code == 409 || status.code == 404 => {
                let lease = self.api.get_opt(LEASE_NAME).await?;
                self.elector.observe(lease.as_ref().map(record), Moment::now());
            }
            Err(error) => return Err(error.into()),
        }
        Ok(())
    }

    fn report(&mut self, result: anyhow::Result<()>) {
        match result {
            Ok(()) => self.failing = false,
            Err(error) => {
                self.metrics.lease_errors.inc();
                if !std::mem::replace(&mut self.failing, true) {
                    tracing::warn!(%error, "cannot read or write the Lease; this replica stops writing when its term runs out");
                }
            }
        }
    }

    fn publish(&self) {
        let until = self.elector.valid_until().filter(|until| Moment::now() < *until);
        let before = self.term.send_replace(until);
        if before.is_some() != until.is_some() {
            self.metrics.lease_held.set(i64::from(until.is_some()));
            self.metrics.lease_transitions.inc();
            tracing::info!(leader = until.is_some(), identity = self.identity, "leadership changed");
        }
    }

    async fn release(&mut self) {
        self.term.send_replace(None);
        self.metrics.lease_held.set(0);
        let Some(record) = self.elector.release() else { return };
        let mut lease = self.lease(Some(record.version), record.transitions);
        if let Some(spec) = &mut lease.spec {
            spec.holder_identity = Some(String::new());
        }
        let params = PostParams::default();
        match tokio::time::timeout(WRITE_TIMEOUT, self.api.replace(LEASE_NAME, &params, &lease)).await {
            Ok(Ok(_)) => tracing::info!("released the lease"),
            // The other replica takes over when the lease runs out.
            _ => tracing::info!("could not release the lease"),
        }
    }

    fn lease(&self, version: Option<String>, transitions: i32) -> Lease {
        let now = Some(MicroTime(Timestamp::now()));
        Lease {
            metadata: ObjectMeta { name: Some(LEASE_NAME.into()), resource_version: version, ..ObjectMeta::default() },
            spec: Some(LeaseSpec {
                holder_identity: Some(self.identity.clone()),
                lease_duration_seconds: i32::try_from(LEASE_DURATION.as_secs()).ok(),
                lease_transitions: Some(transitions),
                renew_time: now,
                ..LeaseSpec::default()
            }),
        }
    }
}

fn record(lease: &Lease) -> Record {
    let spec = lease.spec.clone().unwrap_or_default();
    let seconds = spec.lease_duration_seconds.and_then(|n| u64::try_from(n).ok());
    Record {
        holder: spec.holder_identity.unwrap_or_default(),
        version: lease.metadata.resource_version.clone().unwrap_or_default(),
        // Capped, so that a number written by hand cannot leave the mesh without a writer for good.
        duration: seconds.map_or(LEASE_DURATION, Duration::from_secs).min(LEASE_DURATION * 4),
        transitions: spec.lease_transitions.unwrap_or_default(),
    }
}

// What the holder relies on, checked where the numbers meet.
const _: () = assert!(RENEW_DEADLINE.as_secs() + WRITE_TIMEOUT.as_secs() < LEASE_DURATION.as_secs());
