//! `helm test`: proves that pods reach pods on other nodes, with the agent's own image and an ordinary pod network.
//!
//! A DaemonSet runs [`serve`] on every node. [`run`] finds its Pods by the API and asks each of them to fetch each other
//! one; what a Pod can fetch is exactly what it can reach.

pub mod fetch;
pub mod matrix;

use crate::{api::Connection, args::RunArgs};
use anyhow::{Context, bail};
use axum::{
    Router,
    extract::{RawQuery, State},
    http::StatusCode,
    routing::get,
};
use fetch::fetch;
use futures::{StreamExt, stream};
use k8s_openapi::api::core::v1::Pod;
use kube::{Api, ResourceExt, api::ListParams};
use matrix::{Cell, Target, pairs, render};
use std::{net::SocketAddr, process::ExitCode, time::Duration};
use tokio::{
    net::TcpListener,
    time::{Instant, sleep},
};

/// Longest that a Pod tries to fetch from another: two losses of a SYN.
const FETCH_TIMEOUT: Duration = Duration::from_secs(4);
/// Longest that the runner waits for a Pod's report.
const CHECK_TIMEOUT: Duration = Duration::from_secs(8);
/// A path may still be found while the test runs: pairs that fail are asked again until then.
const PATIENCE: Duration = Duration::from_secs(45);
/// Fetches at the same time: a test must not be a load.
const AT_ONCE: usize = 8;
/// Between looks at the Pods.
const POLL: Duration = Duration::from_secs(1);

/// Answers `GET /` with the node's name and `GET /check?url=U` with what a fetch of U found.
pub async fn serve(listen: SocketAddr, node: String) -> anyhow::Result<()> {
    let listener = match TcpListener::bind(listen).await {
        // A kernel without IPv6 has no `[::]`.
        Err(_) if listen.ip().is_unspecified() => TcpListener::bind(("0.0.0.0", listen.port())).await,
        other => other,
    };
    let listener = listener.with_context(|| format!("listen on {listen}"))?;
    let router = Router::new()
        .route("/", get(|State(node): State<String>| async move { node }))
        .route("/check", get(check))
        .with_state(node);
    axum::serve(listener, router).await.context("serve")
}

async fn check(RawQuery(query): RawQuery) -> (StatusCode, String) {
    let Some(url) = query.as_deref().and_then(|q| q.strip_prefix("url=")) else {
        return (StatusCode::BAD_REQUEST, "expected /check?url=http://ADDRESS:PORT/".into());
    };
    match fetch(url, FETCH_TIMEOUT).await {
        Ok(body) => (StatusCode::OK, body),
        Err(e) => (StatusCode::BAD_GATEWAY, format!("{e:#}")),
    }
}

/// Runs the test and prints the matrix.
pub async fn run(
    args: &RunArgs,
    namespace: &str,
    selector: &str,
    port: u16,
    wait_seconds: u64,
) -> anyhow::Result<ExitCode> {
    let connection = Connection::new(args.kubeconfig.as_deref(), &args.api_servers, Default::default()).await?;
    let pods = Api::<Pod>::namespaced(connection.client()?.1, namespace);
    let targets = ready_pods(&pods, selector, Duration::from_secs(wait_seconds)).await?;
    println!("{} nodes: {}", targets.len(), targets.iter().map(|t| t.node.as_str()).collect::<Vec<_>>().join(", "));
    if targets.len() < 2 {
        println!("one node has nobody to talk to yet; the test passes");
        return Ok(ExitCode::SUCCESS);
    }
    let cells = probe_all(&targets, port).await;
    print!("{}", render(&targets, &cells));
    let failed = cells.iter().filter(|c| c.failure.is_some()).count();
    println!("{} of {} pairs reach each other", cells.len() - failed, cells.len());
    Ok(if failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

async fn ready_pods(pods: &Api<Pod>, selector: &str, wait: Duration) -> anyhow::Result<Vec<Target>> {
    let until = Instant::now() + wait;
    let params = ListParams::default().labels(selector);
    let mut last = String::from("the API was not asked yet");
    while Instant::now() < until {
        match pods.list(&params).await {
            Ok(found) => {
                let waiting: Vec<String> =
                    found.items.iter().filter(|p| !is_ready(p)).map(ResourceExt::name_any).collect();
                if !found.items.is_empty() && waiting.is_empty() {
                    return Ok(found.items.iter().filter_map(target).collect());
                }
                last = match found.items.len() {
                    0 => format!("no Pod has the labels {selector}"),
                    all => format!("{} of {all} Pods are not Ready: {}", waiting.len(), waiting.join(", ")),
                };
            }
            Err(e) => last = format!("the Pods can't be listed: {e}"),
        }
        sleep(POLL).await;
    }
    bail!("expected all test Pods to be Ready within {} s, found: {last}", wait.as_secs())
}

fn is_ready(pod: &Pod) -> bool {
    let conditions = pod.status.as_ref().and_then(|s| s.conditions.as_ref());
    conditions.is_some_and(|all| all.iter().any(|c| c.type_ == "Ready" && c.status == "True"))
}

fn target(pod: &Pod) -> Option<Target> {
    let node = pod.spec.as_ref()?.node_name.clone()?;
    let status = pod.status.as_ref()?;
    let listed = status.pod_ips.iter().flatten().filter_map(|ip| ip.ip.parse().ok());
    let mut ips: Vec<_> = listed.chain(status.pod_ip.iter().filter_map(|ip| ip.parse().ok())).collect();
    ips.dedup();
    ips.truncate(2);
    (!ips.is_empty()).then_some(Target { node, ips })
}

async fn probe_all(targets: &[Target], port: u16) -> Vec<Cell> {
    let until = Instant::now() + PATIENCE;
    let each = pairs(targets).into_iter().map(|(from, to, ip)| async move {
        let asked = SocketAddr::new(targets[from].ips[0], port);
        let wanted = SocketAddr::new(ip, port);
        let url = format!("http://{asked}/check?url=http://{wanted}/");
        loop {
            let began = Instant::now();
            let failure = match fetch(&url, CHECK_TIMEOUT).await {
                Ok(node) if node == targets[to].node => None,
                Ok(other) => Some(format!("expected to reach {}, reached {other}", targets[to].node)),
                Err(e) => Some(format!("{e:#}")),
            };
            if failure.is_none() || Instant::now() >= until {
                return Cell { from, to, ip, failure, took: began.elapsed() };
            }
            sleep(POLL).await;
        }
    });
    let mut cells: Vec<Cell> = stream::iter(each).buffer_unordered(AT_ONCE).collect().await;
    cells.sort_by_key(|c| (c.from, c.to, c.ip));
    cells
}
