//! Something to run on the mesh: one small server per node, a Service over all of them, and checks from inside each.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use anyhow::{Context, Result};
use serde_json::{Value, json};

use crate::images::{binary, reference};
use crate::lab::Lab;
use crate::scenario::Node;
use crate::wait;

/// Where the lab's workload runs.
pub const NAMESPACE: &str = "lab";
/// The port of its pods, TCP and UDP.
pub const PORT: u16 = 8080;
/// Pods start within seconds once their node has a network.
const STARTED: Duration = Duration::from_secs(120);

/// One pod of the workload.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pod {
    /// Its name.
    pub name: String,
    /// The node it runs on.
    pub node: String,
    /// Its addresses, the first family first.
    pub addresses: Vec<IpAddr>,
    container: String,
}

/// Who reached whom: by source, then by target, the milliseconds or what went wrong.
pub type Matrix = BTreeMap<String, BTreeMap<String, Result<f64, String>>>;

impl Pod {
    /// Where its server listens, by its first address.
    #[must_use]
    pub fn socket(&self) -> SocketAddr {
        SocketAddr::new(self.addresses[0], PORT)
    }

    /// The same for every address it has.
    pub fn urls(&self) -> impl Iterator<Item = String> {
        self.addresses.iter().map(|address| format!("http://{}", SocketAddr::new(*address, PORT)))
    }

    /// Runs a check of `lab-pod` inside, by its node's containerd: so it also works where the API server cannot reach the kubelet.
    pub fn check(&self, lab: &Lab, args: &[&str]) -> Result<String> {
        // Names only have to differ between calls that run at once in one container.
        let id = format!("check-{}-{:?}", std::process::id(), std::time::Instant::now())
            .replace(|c: char| !c.is_ascii_alphanumeric(), "");
        let id = &id[..id.len().min(60)];
        let mut all = vec!["-n", "k8s.io", "tasks", "exec", "--exec-id", id, &self.container, "/lab-pod"];
        all.extend(args);
        lab.exec(&self.node, "ctr", &all).with_context(|| format!("in pod {} on {}", self.name, self.node))
    }
}

/// Runs a check on a node itself, outside any pod.
pub fn check_on_host(lab: &Lab, node: &str, args: &[&str]) -> Result<String> {
    lab.exec(node, &binary("lab-pod").to_string_lossy(), args).with_context(|| format!("on node {node}"))
}

/// Starts the workload and waits for a running pod on every running node.
pub fn deploy(lab: &Lab) -> Result<Vec<Pod>> {
    lab.apply(&manifests(lab.scenario().dual_stack).to_string())?;
    pods(lab)
}

/// The pods, once there is a running one on every running node.
pub fn pods(lab: &Lab) -> Result<Vec<Pod>> {
    pods_on(lab, &lab.running())
}

/// The pods, once there is a running one on each of these nodes: not every machine runs pods.
pub fn pods_on(lab: &Lab, nodes: &[&Node]) -> Result<Vec<Pod>> {
    let expected = nodes.len();
    wait::until(&format!("a running pod on each of {expected} nodes"), STARTED, || {
        let list = lab
            .kubectl_json(&["get", "pods", "-n", NAMESPACE, "-l", "app=lab-pod"])
            .map_err(|error| format!("{error:#}"))?;
        let items = list["items"].as_array().map(Vec::as_slice).unwrap_or_default();
        let mut pods: Vec<Pod> = items.iter().filter_map(running).collect();
        pods.sort_by_key(|pod| lab.scenario().nodes.iter().position(|node| node.name == pod.node));
        if pods.len() >= expected { Ok(pods) } else { Err(items.iter().map(summary).collect::<Vec<_>>().join("; ")) }
    })
}

/// Lets every pod fetch from every other, all at once.
pub fn matrix(lab: &Lab, pods: &[Pod], timeout: Duration) -> Matrix {
    let row = |from: &Pod| {
        let others = || pods.iter().filter(|to| to.node != from.node);
        let targets: Vec<String> = others()
            .flat_map(|to| to.urls().enumerate().map(move |(i, url)| format!("{}{}={url}/", to.node, "6".repeat(i))))
            .collect();
        let seconds = timeout.as_secs().to_string();
        let mut args = vec!["--timeout", &seconds, "matrix"];
        args.extend(targets.iter().map(String::as_str));
        match from.check(lab, &args) {
            Ok(text) => parse_row(&text, others().map(|to| (to.node.clone(), to.name.clone()))),
            Err(error) => others().map(|to| (to.node.clone(), Err(format!("{error:#}")))).collect(),
        }
    };
    std::thread::scope(|scope| {
        let started: Vec<_> = pods.iter().map(|from| (from.node.clone(), scope.spawn(move || row(from)))).collect();
        let joined =
            |thread: std::thread::ScopedJoinHandle<'_, _>| thread.join().expect("a row's check does not panic");
        started.into_iter().map(|(from, thread)| (from, joined(thread))).collect()
    })
}

/// The cells that are not what they should be.
#[must_use]
pub fn failures(matrix: &Matrix) -> Vec<String> {
    let cells = matrix.iter().flat_map(|(from, row)| row.iter().map(move |(to, cell)| (from, to, cell)));
    cells.filter_map(|(from, to, cell)| cell.as_ref().err().map(|error| format!("{from} to {to}: {error}"))).collect()
}

/// Every address of a target must have answered, and it must have been that pod.
fn parse_row(text: &str, targets: impl Iterator<Item = (String, String)>) -> BTreeMap<String, Result<f64, String>> {
    let answers: Value = serde_json::from_str(text).unwrap_or_else(|error| json!({"error": error.to_string()}));
    let cell = |node: &str, pod: &str| -> Result<f64, String> {
        let mut first = None;
        for key in [node.to_owned(), format!("{node}6")] {
            let Some(answer) = answers.get(&key) else { continue };
            let ms = answer["ms"].as_f64().ok_or_else(|| answer["error"].as_str().unwrap_or("no answer").to_owned())?;
            let said = answer["answer"].as_str().unwrap_or_default();
            if !said.contains(&format!("pod={pod} ")) {
                return Err(format!("somebody else answered: {said}"));
            }
            first.get_or_insert(ms);
        }
        first.ok_or_else(|| format!("no answer in {text:?}"))
    };
    targets.map(|(node, pod)| (node.clone(), cell(&node, &pod))).collect()
}

fn running(item: &Value) -> Option<Pod> {
    if item["status"]["phase"] != "Running" || !item["metadata"]["deletionTimestamp"].is_null() {
        return None;
    }
    let status = &item["status"]["containerStatuses"][0];
    status["ready"].as_bool().filter(|ready| *ready)?;
    let addresses =
        item["status"]["podIPs"].as_array()?.iter().filter_map(|entry| entry["ip"].as_str()?.parse().ok()).collect();
    Some(Pod {
        name: item["metadata"]["name"].as_str()?.into(),
        node: item["spec"]["nodeName"].as_str()?.into(),
        addresses,
        container: status["containerID"].as_str()?.strip_prefix("containerd://")?.into(),
    })
}

fn summary(item: &Value) -> String {
    let status = &item["status"]["containerStatuses"][0];
    let deleted = if item["metadata"]["deletionTimestamp"].is_null() { "" } else { " being deleted" };
    format!(
        "{} on {} is {}{deleted}, ready: {}, waits for {}, address {}",
        item["metadata"]["name"],
        item["spec"]["nodeName"],
        item["status"]["phase"],
        status["ready"],
        status["state"]["waiting"]["reason"],
        item["status"]["podIP"],
    )
}

/// The Service's fixed addresses, so that checks need no DNS.
const SERVICE: [&str; 2] = ["10.96.0.80", "fd00:10:96::80"];

/// The Service's addresses in this lab, as URLs.
pub fn service_urls(lab: &Lab) -> Vec<String> {
    let v6 = lab.scenario().dual_stack.then(|| format!("http://[{}]/", SERVICE[1]));
    [format!("http://{}/", SERVICE[0])].into_iter().chain(v6).collect()
}

fn manifests(dual_stack: bool) -> Value {
    let families = if dual_stack { "RequireDualStack" } else { "SingleStack" };
    let addresses = &SERVICE[..if dual_stack { 2 } else { 1 }];
    let labels = json!({"app": "lab-pod"});
    let field = |name: &str, path: &str| json!({"name": name, "valueFrom": {"fieldRef": {"fieldPath": path}}});
    let container = json!({
        "name": "lab-pod",
        "image": reference("lab-pod"),
        "args": ["serve"],
        "env": [field("POD_NAME", "metadata.name"), field("NODE_NAME", "spec.nodeName")],
        "readinessProbe": {"httpGet": {"path": "/", "port": PORT}, "periodSeconds": 1},
    });
    json!({"apiVersion": "v1", "kind": "List", "items": [
        {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": NAMESPACE}},
        {"apiVersion": "apps/v1", "kind": "DaemonSet", "metadata": {"name": "lab-pod", "namespace": NAMESPACE}, "spec": {
            "selector": {"matchLabels": labels},
            "template": {"metadata": {"labels": labels}, "spec": {
                "terminationGracePeriodSeconds": 1,
                "tolerations": [{"operator": "Exists"}],
                "containers": [container],
            }},
        }},
        {"apiVersion": "v1", "kind": "Service", "metadata": {"name": "lab-pod", "namespace": NAMESPACE}, "spec": {
            "clusterIP": addresses[0], "clusterIPs": addresses, "ipFamilyPolicy": families, "selector": labels,
            "ports": [{"port": 80, "targetPort": PORT}],
        }},
    ]})
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cell_needs_the_right_pod_at_every_address() {
        let row = |text: &str| parse_row(text, [("b".to_owned(), "pod-b".to_owned())].into_iter());
        let good =
            r#"{"b": {"ms": 3.0, "answer": "pod=pod-b node=b"}, "b6": {"ms": 4.0, "answer": "pod=pod-b node=b"}}"#;
        assert_eq!(row(good)["b"], Ok(3.0));
        assert!(row(&good.replace("pod=pod-b node=b\"}}", "pod=pod-c node=c\"}}"))["b"].is_err());
        assert!(row(r#"{"b": {"error": "timed out"}}"#)["b"].is_err());
        assert!(row("nonsense")["b"].is_err());
    }
}
