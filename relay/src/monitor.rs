//! Counters, and the small HTTP server that shows them.

use std::net::SocketAddr;
use std::sync::Arc;

use anyhow::Context;
use axum::Router;
use axum::http::{StatusCode, header};
use axum::response::IntoResponse;
use axum::routing::get;
use prometheus::{IntCounter, IntCounterVec, IntGauge, Opts, Registry, TextEncoder};
use tokio::net::TcpListener;

use crate::control::{Board, Supervisor};
use crate::server::Verdict;
use crate::udp::Forwarder;
use carrying::Carrying;

mod carrying;

/// All counters of the relay. Labels come from closed lists; no address and no name ever is one.
#[derive(Debug)]
pub struct Metrics {
    registry: Registry,
    requests: IntCounterVec,
    received_bytes: IntCounter,
    /// Bytes of replies sent.
    pub sent_bytes: IntCounter,
    /// Replies that the kernel did not take.
    pub send_errors: IntCounter,
    /// Datagrams that the kernel could not deliver.
    pub receive_errors: IntCounter,
    /// Writes of the status, by `result`.
    pub status_writes: IntCounterVec,
    /// Addresses that are published, or would be.
    pub addresses: IntGauge,
    carrying: Carrying,
}

impl Metrics {
    /// Fresh counters, all of them shown as zero from the start.
    ///
    /// # Errors
    /// Never in practice: names are fixed and registered once.
    pub fn new() -> prometheus::Result<Self> {
        let metrics = Self {
            registry: Registry::new(),
            requests: IntCounterVec::new(
                Opts::new("warren_relay_stun_requests_total", "Datagrams on the STUN port by what became of them."),
                &["result"],
            )?,
            received_bytes: IntCounter::new(
                "warren_relay_stun_received_bytes_total",
                "Bytes received on the STUN port.",
            )?,
            sent_bytes: IntCounter::new("warren_relay_stun_sent_bytes_total", "Bytes sent from the STUN port.")?,
            send_errors: IntCounter::new(
                "warren_relay_stun_send_errors_total",
                "Replies that the kernel did not take.",
            )?,
            receive_errors: IntCounter::new(
                "warren_relay_stun_receive_errors_total",
                "Errors on receiving that concerned one datagram.",
            )?,
            status_writes: IntCounterVec::new(
                Opts::new("warren_relay_status_writes_total", "Writes of the MeshRelay's status by result."),
                &["result"],
            )?,
            addresses: IntGauge::new("warren_relay_addresses", "Addresses at which this relay can be asked.")?,
            carrying: Carrying::new()?,
        };
        metrics.register()?;
        Ok(metrics)
    }

    fn register(&self) -> prometheus::Result<()> {
        let build = IntGauge::with_opts(
            Opts::new("warren_relay_build_info", "Always 1; the label tells the version.")
                .const_label("version", env!("CARGO_PKG_VERSION")),
        )?;
        build.set(1);
        self.registry.register(Box::new(build))?;
        self.registry.register(Box::new(self.requests.clone()))?;
        self.registry.register(Box::new(self.received_bytes.clone()))?;
        self.registry.register(Box::new(self.sent_bytes.clone()))?;
        self.registry.register(Box::new(self.send_errors.clone()))?;
        self.registry.register(Box::new(self.receive_errors.clone()))?;
        self.registry.register(Box::new(self.status_writes.clone()))?;
        self.registry.register(Box::new(self.addresses.clone()))?;
        self.carrying.register(&self.registry)?;
        for verdict in Verdict::ALL {
            self.requests.with_label_values(&[verdict.label()]);
        }
        for result in ["ok", "error"] {
            self.status_writes.with_label_values(&[result]);
        }
        Ok(())
    }

    /// Counts one datagram.
    pub fn count(&self, verdict: Verdict, bytes: usize) {
        self.requests.with_label_values(&[verdict.label()]).inc();
        self.received_bytes.inc_by(bytes as u64);
    }

    /// How many datagrams had this verdict.
    #[must_use]
    pub fn counted(&self, verdict: Verdict) -> u64 {
        self.requests.with_label_values(&[verdict.label()]).get()
    }

    /// Shows from now on what these do, and keeps them.
    pub fn observe(&self, forwarder: Forwarder, front_end: Supervisor, board: Arc<Board>) {
        self.carrying.observe(forwarder, front_end, board);
    }

    fn text(&self) -> prometheus::Result<String> {
        self.carrying.look();
        TextEncoder::new().encode_to_string(&self.registry.gather())
    }
}

/// Opens a listener for metrics or health.
///
/// # Errors
/// When the address cannot be bound.
pub async fn listen(address: SocketAddr, flag: &str) -> anyhow::Result<TcpListener> {
    TcpListener::bind(address).await.with_context(|| {
        format!("cannot listen on {address} (TCP); free that port on this host, or choose another by {flag}")
    })
}

/// `/metrics`, `/healthz` and `/readyz`. Health means that the sockets are open and this process turns its loop; it does
/// not depend on the API, since a relay is of use without.
pub fn router(metrics: Arc<Metrics>) -> Router {
    health_router().route("/metrics", get(move || async move { render(&metrics) }))
}

/// `/healthz` and `/readyz` alone.
pub fn health_router() -> Router {
    Router::new().route("/healthz", get(|| async { "ok\n" })).route("/readyz", get(|| async { "ok\n" }))
}

fn render(metrics: &Metrics) -> impl IntoResponse + use<> {
    match metrics.text() {
        Ok(text) => (StatusCode::OK, [(header::CONTENT_TYPE, prometheus::TEXT_FORMAT)], text),
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, [(header::CONTENT_TYPE, "text/plain")], error.to_string()),
    }
}
