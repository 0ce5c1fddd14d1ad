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
use k8s_openapi::api::{apps::v1::DaemonSet, core::v1::Pod};
use kube::{Api, Client, ResourceExt, api::ListParams};
use matrix::{Cell, Target, pairs, render};
use std::{collections::BTreeSet, net::SocketAddr, process::ExitCode, time::Duration};
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

/// Where the Pods of the test are.
pub struct Pods {
    namespace: String,
    selector: String,
    daemonset: String,
}

impl Pods {
    /// The Pods with these labels, of that DaemonSet or of the one that is named like the first label's value.
    pub fn new(namespace: String, selector: String, daemonset: Option<String>) -> anyhow::Result<Self> {
        let first = selector.split(',').next().and_then(|label| label.split_once('='));
        let by_label = || first.map(|(_, value)| value.trim_start_matches('=').trim().to_owned());
        let daemonset = daemonset.or_else(by_label).filter(|name| !name.is_empty());
        let daemonset = daemonset.with_context(|| {
            format!("expected the DaemonSet of the Pods: give --daemonset, the selector {selector:?} names none")
        })?;
        Ok(Self { namespace, selector, daemonset })
    }
}

/// Runs the test and prints the matrix.
pub async fn run(args: &RunArgs, pods: &Pods, port: u16, wait: Duration) -> anyhow::Result<ExitCode> {
    let connection = Connection::new(args.kubeconfig.as_deref(), &args.api_servers, Default::default()).await?;
    let targets = ready_pods(&connection.client()?.1, pods, wait).await?;
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

async fn ready_pods(client: &Client, pods: &Pods, wait: Duration) -> anyhow::Result<Vec<Target>> {
    let daemonsets = Api::<DaemonSet>::namespaced(client.clone(), &pods.namespace);
    let api = Api::<Pod>::namespaced(client.clone(), &pods.namespace);
    let params = ListParams::default().labels(&pods.selector);
    let until = Instant::now() + wait;
    let mut last = String::from("the API was not asked yet");
    while Instant::now() < until {
        let found = async { anyhow::Ok((daemonsets.get(&pods.daemonset).await?, api.list(&params).await?.items)) };
        match found.await {
            Ok((daemonset, found)) => match complete(&daemonset, &found) {
                Ok(targets) => return Ok(targets),
                Err(missing) => last = missing,
            },
            Err(e) => last = format!("the DaemonSet {} or its Pods can't be read: {e}", pods.daemonset),
        }
        sleep(POLL).await;
    }
    bail!("expected a Ready test Pod on every node within {} s, found: {last}", wait.as_secs())
}

/// The Pods, if every node that is to have one has one that is Ready, or what is missing. The Pods alone don't tell: the
/// first of five looks like the only one.
fn complete(daemonset: &DaemonSet, pods: &[Pod]) -> Result<Vec<Target>, String> {
    let name = daemonset.name_any();
    let status = daemonset.status.as_ref();
    let seen = status.and_then(|status| status.observed_generation);
    let Some(status) = status.filter(|_| seen.is_some() && seen == daemonset.metadata.generation) else {
        return Err(format!("the controller has not looked at the DaemonSet {name} yet"));
    };
    let desired = usize::try_from(status.desired_number_scheduled).unwrap_or(0);
    if desired == 0 {
        return Err(format!("the DaemonSet {name} fits no node; check its nodeSelector and tolerations"));
    }
    let stays = |pod: &&Pod| pod.metadata.deletion_timestamp.is_none();
    let (ready, waiting): (Vec<&Pod>, Vec<&Pod>) = pods.iter().filter(stays).partition(|pod| is_ready(pod));
    let targets: Vec<Target> = ready.into_iter().filter_map(target).collect();
    let nodes: BTreeSet<&str> = targets.iter().map(|target| target.node.as_str()).collect();
    if nodes.len() < desired || !waiting.is_empty() {
        let waiting: Vec<String> = waiting.into_iter().map(ResourceExt::name_any).collect();
        let named = if waiting.is_empty() { String::new() } else { format!("; not Ready: {}", waiting.join(", ")) };
        return Err(format!("{} of {desired} Pods of the DaemonSet {name} are Ready{named}", nodes.len()));
    }
    Ok(targets)
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

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn daemonset(observed: i64, desired: i32) -> DaemonSet {
        let status = json!({"observedGeneration": observed, "desiredNumberScheduled": desired,
            "currentNumberScheduled": 0, "numberMisscheduled": 0, "numberReady": 0});
        let object = json!({"metadata": {"name": "warren-test", "generation": 2}, "status": status});
        serde_json::from_value(object).unwrap()
    }

    fn pod(node: u8, ready: &str) -> Pod {
        let status = json!({"podIP": format!("10.0.{node}.2"), "conditions": [{"type": "Ready", "status": ready}]});
        let object = json!({"metadata": {"name": format!("p{node}")}, "spec": {"nodeName": format!("n{node}"), "containers": []},
            "status": status});
        serde_json::from_value(object).unwrap()
    }

    #[test]
    fn one_ready_pod_of_five_is_not_the_whole_test() {
        let five = daemonset(2, 5);
        let ready = |n: u8| (0..n).map(|node| pod(node, "True")).collect::<Vec<_>>();
        assert!(complete(&five, &ready(1)).unwrap_err().contains("1 of 5"));
        assert!(complete(&five, &[]).unwrap_err().contains("0 of 5"));
        assert_eq!(complete(&five, &ready(5)).unwrap().len(), 5);
        let mut all = ready(4);
        all.push(pod(4, "False"));
        assert!(complete(&five, &all).unwrap_err().contains("not Ready: p4"));
    }

    #[test]
    fn a_pod_that_ends_and_a_count_that_is_old_do_not_count() {
        let mut ends = pod(0, "True");
        ends.metadata.deletion_timestamp = serde_json::from_value(json!("2026-01-01T00:00:00Z")).unwrap();
        assert!(complete(&daemonset(2, 2), &[ends, pod(1, "True")]).unwrap_err().contains("1 of 2"));
        assert!(complete(&daemonset(1, 1), &[pod(0, "True")]).unwrap_err().contains("has not looked"));
        assert!(complete(&daemonset(2, 0), &[]).unwrap_err().contains("fits no node"));
    }

    #[test]
    fn the_daemonset_is_named_like_the_first_label_unless_said_otherwise() {
        let name = |selector: &str, given: Option<&str>| {
            Pods::new("ns".into(), selector.into(), given.map(Into::into)).map(|pods| pods.daemonset)
        };
        assert_eq!(name("app.kubernetes.io/name=warren-test", None).unwrap(), "warren-test");
        assert_eq!(name("app==x,tier=y", None).unwrap(), "x");
        assert_eq!(name("app", Some("z")).unwrap(), "z");
        assert!(name("app", None).is_err());
    }
}
