//! `/metrics`, `/healthz` and `/readyz`: over a Unix socket always, over TCP where the port is free.
//!
//! Both replicas of a node share its ports, because they run on the host's network; so the probes of the Pod ask the socket,
//! which is the Pod's own, and a taken metrics port is a warning.

use crate::{
    args::{Listen, ProbeKind},
    metrics::Metrics,
};
use anyhow::{Context, Result, bail};
use axum::{Router, extract::State, http::StatusCode, routing::get};
use std::{
    io::{Read, Write},
    os::unix::net::UnixStream,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};
use tokio::net::{TcpListener, UnixListener};

/// A loop that has not turned for this long is stuck: a pass is bounded by its write limit and timeouts well below it.
const STUCK_AFTER: Duration = Duration::from_secs(90);
/// A probe that has no answer by then has failed; the kubelet's own default is one second.
const PROBE_TIMEOUT: Duration = Duration::from_secs(2);
/// The most of an answer that a probe reads.
const PROBE_BYTES: u64 = 4096;

/// How the process is.
#[derive(Debug)]
pub struct Health {
    started: Instant,
    last_turn: AtomicU64,
    ready: AtomicBool,
}

impl Default for Health {
    fn default() -> Self {
        Self { started: Instant::now(), last_turn: AtomicU64::new(0), ready: AtomicBool::new(false) }
    }
}

impl Health {
    /// The event loop turned.
    pub fn turned(&self) {
        self.last_turn.store(self.started.elapsed().as_secs(), Ordering::Relaxed);
    }

    /// Every kind has been listed once. It stays so: losing the API server later takes nothing away.
    pub fn set_ready(&self) {
        self.ready.store(true, Ordering::Relaxed);
    }

    fn is_live(&self) -> bool {
        let since = self.started.elapsed().as_secs().saturating_sub(self.last_turn.load(Ordering::Relaxed));
        since < STUCK_AFTER.as_secs()
    }

    fn is_ready(&self) -> bool {
        self.ready.load(Ordering::Relaxed)
    }
}

#[derive(Clone)]
struct Shared {
    health: Arc<Health>,
    metrics: Arc<Metrics>,
}

/// Starts to answer. Nothing here stops the operator: what cannot be bound is logged.
pub async fn start(socket: &Path, listen: Listen, health: Arc<Health>, metrics: Arc<Metrics>) {
    let router = Router::new()
        .route("/metrics", get(|State(shared): State<Shared>| async move { shared.metrics.render() }))
        .route("/healthz", get(|State(shared): State<Shared>| async move { answer(shared.health.is_live()) }))
        .route("/readyz", get(|State(shared): State<Shared>| async move { answer(shared.health.is_ready()) }))
        .with_state(Shared { health, metrics });
    match bind(socket) {
        Ok(listener) => drop(tokio::spawn(axum::serve(listener, router.clone()).into_future())),
        Err(error) => tracing::warn!(socket = %socket.display(), %error, "cannot listen for probes"),
    }
    let Listen::At(address) = listen else { return };
    match TcpListener::bind(address).await {
        Ok(listener) => drop(tokio::spawn(axum::serve(listener, router).into_future())),
        Err(error) => {
            tracing::warn!(%address, %error, "no metrics over TCP: the port is taken, as by another replica on this node")
        }
    }
}

fn bind(socket: &Path) -> std::io::Result<UnixListener> {
    // Left behind by a process that was killed.
    if let Err(error) = std::fs::remove_file(socket)
        && error.kind() != std::io::ErrorKind::NotFound
    {
        return Err(error);
    }
    UnixListener::bind(socket)
}

fn answer(fine: bool) -> (StatusCode, &'static str) {
    if fine { (StatusCode::OK, "ok\n") } else { (StatusCode::SERVICE_UNAVAILABLE, "not yet\n") }
}

/// Asks the running operator; an error says what it answered.
pub fn probe(socket: &Path, kind: ProbeKind) -> Result<()> {
    let path = match kind {
        ProbeKind::Live => "/healthz",
        ProbeKind::Ready => "/readyz",
    };
    let mut stream = UnixStream::connect(socket)
        .with_context(|| format!("expected a running operator to listen on {}", socket.display()))?;
    stream.set_read_timeout(Some(PROBE_TIMEOUT)).context("set a time limit")?;
    write!(stream, "GET {path} HTTP/1.0\r\nHost: operator\r\n\r\n").context("ask the operator")?;
    let mut text = String::new();
    stream.take(PROBE_BYTES).read_to_string(&mut text).context("read the operator's answer")?;
    let status = text.lines().next().unwrap_or_default();
    if status.split(' ').nth(1) == Some("200") {
        return Ok(());
    }
    bail!("expected {path} to say 200, found {status:?}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn probes_follow_the_state_and_a_stale_socket_is_replaced() {
        let dir = std::env::temp_dir().join(format!("warren-operator-test-{}", std::process::id()));
        std::fs::create_dir_all(&dir).unwrap();
        let socket = dir.join("health.sock");
        std::fs::write(&socket, "left behind").unwrap();
        let health = Arc::new(Health::default());
        start(&socket, Listen::Off, health.clone(), Arc::new(Metrics::new().unwrap())).await;
        let ask = |kind| {
            let socket = socket.clone();
            tokio::task::spawn_blocking(move || probe(&socket, kind))
        };
        assert!(ask(ProbeKind::Live).await.unwrap().is_ok());
        assert!(ask(ProbeKind::Ready).await.unwrap().unwrap_err().to_string().contains("503"));
        health.set_ready();
        assert!(ask(ProbeKind::Ready).await.unwrap().is_ok());
        std::fs::remove_dir_all(&dir).unwrap();
        assert!(ask(ProbeKind::Live).await.unwrap().unwrap_err().to_string().contains("expected a running operator"));
    }

    #[test]
    fn a_taken_port_is_survived() {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
            let listen = Listen::At(taken.local_addr().unwrap());
            start(Path::new("/nonexistent/health.sock"), listen, Arc::default(), Arc::new(Metrics::new().unwrap()))
                .await;
        });
    }
}
