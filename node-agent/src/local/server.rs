//! Serves the local API on the Unix socket, and the metrics on TCP.

use super::{Answer, Ask, Question, ask};
use anyhow::Context;
use axum::{
    Router,
    extract::{Path as UrlPath, State},
    http::{StatusCode, header},
    response::{IntoResponse, Response},
    routing::get,
};
use std::{fs, io, net::SocketAddr, os::unix::fs::PermissionsExt, path::Path};
use tokio::{
    net::{TcpListener, UnixListener},
    sync::mpsc,
};

/// Binds the socket, mode 0600, replacing one that a dead agent left (the lock says that it is dead), and serves on it.
pub fn serve_socket(path: &Path, asks: mpsc::Sender<Ask>) -> anyhow::Result<()> {
    let listener = bind(path).with_context(|| format!("listen on the socket {}", path.display()))?;
    let router = Router::new()
        .route("/v1/status", get(|s: State<mpsc::Sender<Ask>>| answer(s, Question::Status)))
        .route("/v1/paths", get(|s: State<mpsc::Sender<Ask>>| answer(s, Question::Paths(None))))
        .route(
            "/v1/paths/{peer}",
            get(|s: State<mpsc::Sender<Ask>>, UrlPath(peer): UrlPath<String>| answer(s, Question::Paths(Some(peer)))),
        )
        .route("/v1/ready", get(|s: State<mpsc::Sender<Ask>>| answer(s, Question::Ready)))
        .route("/v1/live", get(|s: State<mpsc::Sender<Ask>>| answer(s, Question::Live)))
        .route("/metrics", get(|s: State<mpsc::Sender<Ask>>| answer(s, Question::Metrics)))
        .with_state(asks);
    tokio::spawn(async move {
        if let Err(e) = axum::serve(listener, router).await {
            tracing::error!(error = %e, "the local API ended");
        }
    });
    Ok(())
}

/// Serves metrics. A port that is taken is reported and not fatal: the node must work.
pub async fn serve_metrics(listen: SocketAddr, asks: mpsc::Sender<Ask>) {
    let listener = match TcpListener::bind(listen).await {
        Ok(listener) => listener,
        Err(e) => {
            tracing::error!(%listen, error = %e, "expected to serve metrics here; choose another --metrics-listen");
            return;
        }
    };
    let router = Router::new()
        .route("/metrics", get(|s: State<mpsc::Sender<Ask>>| answer(s, Question::Metrics)))
        .with_state(asks);
    tokio::spawn(async move {
        if let Err(e) = axum::serve(listener, router).await {
            tracing::error!(error = %e, "the metrics server ended");
        }
    });
}

async fn answer(State(asks): State<mpsc::Sender<Ask>>, question: Question) -> Response {
    let Answer { status, content_type, body } = ask(&asks, question).await;
    let status = StatusCode::from_u16(status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    (status, [(header::CONTENT_TYPE, content_type)], body).into_response()
}

fn bind(path: &Path) -> io::Result<UnixListener> {
    if let Some(folder) = path.parent() {
        fs::create_dir_all(folder)?;
    }
    // Made under another name and then renamed: at no moment is there a socket that others may use.
    let temporary = path.with_extension("new");
    for stale in [&temporary, &path.to_path_buf()] {
        match fs::remove_file(stale) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
            _ => {}
        }
    }
    let listener = UnixListener::bind(&temporary)?;
    fs::set_permissions(&temporary, fs::Permissions::from_mode(0o600))?;
    fs::rename(&temporary, path)?;
    Ok(listener)
}
