//! Checks that hold on every lab with Warren in it, whatever its shape: shared by the test binaries.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use serde_json::json;

use crate::command::run;
use crate::images::reference;
use crate::lab::{Lab, OUTSIDE_PORT};
use crate::scenario::{Node, OUTSIDE, OUTSIDE_V6, Site};
use crate::workload::{self, NAMESPACE, Pod, check_on_host, failures, matrix};
use crate::{wait, warren};

/// One try of one check.
const TRY: Duration = Duration::from_secs(5);
/// A webhook's pod must start and its Service must reach it.
const SERVED: Duration = Duration::from_secs(90);
/// Bytes of a transfer: several congestion windows of full-size segments.
const TRANSFER: &str = "5000000";
/// One fetch misses a given backend of a five-node Service with 4/5: together with all other clients, each backend is met hundreds of times.
const FETCHES: usize = 20;

/// `helm install --wait` returns, every node and every MeshNode becomes Ready.
pub fn install(lab: &Lab) -> Result<()> {
    warren::install(lab)?;
    warren::wait_ready(lab)
}

/// Every pod reaches every other, by every address it has, and the answer comes from that pod.
pub fn pod_to_pod(lab: &Lab) -> Result<()> {
    let pods = workload::deploy(lab)?;
    wait::until("every pod to reach every other", warren::CONVERGED, || {
        let failures = failures(&matrix(lab, &pods, TRY));
        if failures.is_empty() { Ok(()) } else { Err(failures.join("; ")) }
    })?;
    // From here on the mesh claims the node addresses that it carries: they must not be seen in clear any more.
    lab.sniffer().watch_carried()
}

/// Every node's own network reaches every pod.
pub fn host_to_pod(lab: &Lab) -> Result<()> {
    let pods = workload::pods(lab)?;
    for node in lab.running() {
        for url in pods.iter().flat_map(Pod::urls) {
            check_on_host(lab, &node.name, &["get", &format!("{url}/")])?;
        }
    }
    Ok(())
}

/// Every pod, and every node itself, reaches the Service, whichever backend it meets.
pub fn service(lab: &Lab) -> Result<()> {
    for pod in workload::pods(lab)? {
        for url in workload::service_urls(lab) {
            // kube-proxy of this node learns of the Service on its own time; from then on no fetch may fail.
            wait::until(&format!("kube-proxy of {} to know {url}", pod.node), SERVED, || {
                check_on_host(lab, &pod.node, &["get", &url]).map_err(|error| format!("{error:#}"))
            })?;
            for _ in 0..FETCHES {
                pod.check(lab, &["get", &url]).context("pod to Service")?;
                check_on_host(lab, &pod.node, &["get", &url]).context("host to Service")?;
            }
        }
    }
    Ok(())
}

/// Every pod reaches the world, under its node's outer address, in every family that the underlay has; but for those whose network lets
/// nothing out to there.
pub fn pod_to_outside(lab: &Lab) -> Result<()> {
    for pod in workload::pods(lab)? {
        let node = lab.node(&pod.node)?;
        if node.has_only_tls() {
            continue;
        }
        // IPv6 is routed, not translated: the node's own address is its outer one.
        let v6 = (IpAddr::from(OUTSIDE_V6.addr()), IpAddr::from(node.v6.addr()));
        let v4 = (IpAddr::from(OUTSIDE.addr()), IpAddr::from(node.outer_v4()));
        for (world, client) in [v4].into_iter().chain(lab.scenario().dual_stack.then_some(v6)) {
            let seen = pod.check(lab, &["get", &format!("http://{}/", SocketAddr::new(world, OUTSIDE_PORT))])?;
            let expected = format!("client={client}");
            ensure!(seen.contains(&expected), "the world sees a pod of {} as {seen:?}, expected {expected}", pod.node);
        }
    }
    Ok(())
}

/// Every byte of a long transfer arrives, both ways, between every pair: full-size segments fit every path, also one with a
/// smaller uplink.
pub fn transfers(lab: &Lab) -> Result<()> {
    let pods = workload::pods(lab)?;
    for from in &pods {
        for to in pods.iter().filter(|to| to.node != from.node) {
            for url in to.urls() {
                for verb in ["transfer", "upload"] {
                    from.check(lab, &[verb, &url, TRANSFER]).with_context(|| format!("{verb} with {}", to.node))?;
                }
            }
        }
    }
    Ok(())
}

/// A pod's packet of exactly its interface's size crosses every pair unfragmented.
pub fn full_size_packets(lab: &Lab) -> Result<()> {
    let pods = workload::pods(lab)?;
    let mut sizes = Vec::new();
    for pod in &pods {
        let mtu = lab.exec(&pod.node, "cat", &["/sys/class/net/warren0/mtu"])?;
        sizes.push(mtu.trim().parse::<usize>().with_context(|| format!("MTU {mtu:?} of warren0 on {}", pod.node))?);
    }
    for (from, own) in pods.iter().zip(&sizes) {
        for (to, other) in pods.iter().zip(&sizes).filter(|(to, _)| to.node != from.node) {
            for address in &to.addresses {
                // IP and ICMP headers.
                let headers = if address.is_ipv4() { 20 + 8 } else { 40 + 8 };
                let payload = (own.min(other) - headers).to_string();
                from.check(lab, &["icmp", &address.to_string(), &payload])
                    .with_context(|| format!("to {}", to.node))?;
            }
        }
    }
    Ok(())
}

/// `kubectl logs` and `kubectl exec` work on every node whose address is its own.
pub fn logs_and_exec(lab: &Lab) -> Result<()> {
    for pod in workload::pods(lab)? {
        if !lab.scenario().has_unique_address(lab.node(&pod.node)?) {
            continue;
        }
        let here = format!("http://{}/", pod.socket());
        let said = lab
            .kubectl(&["exec", "-n", NAMESPACE, &pod.name, "--", "/lab-pod", "get", &here])
            .with_context(|| format!("kubectl exec on {}", pod.node))?;
        ensure!(said.contains(&format!("node={}", pod.node)), "exec on {} answered {said:?}", pod.node);
        lab.kubectl(&["logs", "-n", NAMESPACE, &pod.name]).with_context(|| format!("kubectl logs on {}", pod.node))?;
    }
    Ok(())
}

/// The API server calls a webhook whose only pod is behind a NAT (or a firewall).
pub fn webhook(lab: &Lab) -> Result<()> {
    let behind = |node: &&&Node| matches!(node.site, Site::Home { .. } | Site::Firewall { .. });
    let Some(node) = lab.running().iter().find(behind).map(|node| node.name.clone()) else {
        bail!("no node of this lab is behind anything");
    };
    lab.apply(&webhook_manifests(&node)?)?;
    let refusal = format!("refused by the webhook on node {node}");
    wait::until("the webhook to refuse an object", SERVED, || {
        match lab.kubectl(&["create", "configmap", "refused", "-n", NAMESPACE, "--dry-run=server"]) {
            Err(error) if format!("{error:#}").contains(&refusal) => Ok(()),
            Err(error) => Err(format!("{error:#}")),
            Ok(_) => Err("it was allowed".into()),
        }
    })?;
    lab.kubectl(&["create", "configmap", "fine", "-n", NAMESPACE, "--dry-run=server"])?;
    lab.kubectl(&["delete", "validatingwebhookconfiguration", "lab"]).map(drop)
}

fn webhook_manifests(node: &str) -> Result<String> {
    use base64::Engine;
    let name = format!("webhook.{NAMESPACE}.svc");
    let made = rcgen::generate_simple_self_signed([name]).context("making the webhook's certificate")?;
    let bundle = base64::engine::general_purpose::STANDARD.encode(made.cert.pem());
    let labels = json!({"app": "webhook"});
    let env = json!([
        {"name": "NODE_NAME", "valueFrom": {"fieldRef": {"fieldPath": "spec.nodeName"}}},
        {"name": "WEBHOOK_CERT", "value": made.cert.pem()},
        {"name": "WEBHOOK_KEY", "value": made.signing_key.serialize_pem()},
    ]);
    let manifests = json!({"apiVersion": "v1", "kind": "List", "items": [
        {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "webhook", "namespace": NAMESPACE, "labels": labels}, "spec": {
            "nodeName": node,
            "terminationGracePeriodSeconds": 1,
            "containers": [{"name": "webhook", "image": reference("lab-pod"), "args": ["serve"], "env": env}],
        }},
        {"apiVersion": "v1", "kind": "Service", "metadata": {"name": "webhook", "namespace": NAMESPACE}, "spec": {
            "selector": labels, "ports": [{"port": 443, "targetPort": 8443}],
        }},
        {"apiVersion": "admissionregistration.k8s.io/v1", "kind": "ValidatingWebhookConfiguration", "metadata": {"name": "lab"},
            "webhooks": [{
                "name": "lab.warren.dev", "sideEffects": "None", "admissionReviewVersions": ["v1"], "failurePolicy": "Fail", "timeoutSeconds": 5,
                "namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": NAMESPACE}},
                "rules": [{"apiGroups": [""], "apiVersions": ["v1"], "operations": ["CREATE"], "resources": ["configmaps"]}],
                "clientConfig": {"caBundle": bundle, "service": {"name": "webhook", "namespace": NAMESPACE}},
            }]},
    ]});
    Ok(manifests.to_string())
}

/// The chart's own test passes.
pub fn helm_test(lab: &Lab) -> Result<()> {
    warren::test(lab).map(drop)
}

/// Packets to the address of a pod that is gone end on the node that sends them: neither the sender's own table nor the default
/// route carries them out.
pub fn packets_to_dead_pods_stay_inside(lab: &Lab) -> Result<()> {
    let pods = workload::pods(lab)?;
    let dead = pods.last().context("no pod")?.clone();
    lab.kubectl(&["delete", "pod", "-n", NAMESPACE, &dead.name, "--timeout=60s"])?;
    let alive = workload::pods(lab)?;
    ensure!(
        alive.iter().all(|pod| pod.addresses != dead.addresses),
        "the address of {} was given out again",
        dead.name
    );
    for address in &dead.addresses {
        let target = SocketAddr::new(*address, workload::PORT).to_string();
        for pod in &alive {
            let args = ["--timeout", "1", "udp", &target, "100"];
            ensure!(pod.check(lab, &args).is_err(), "a dead pod answered a pod on {}", pod.node);
            ensure!(check_on_host(lab, &pod.node, &args).is_err(), "a dead pod answered {}", pod.node);
        }
    }
    lab.sniffer().verdict().map(drop)
}

/// Agents and kubelets reach the API server by the underlay: none of a node's own packets to it enters the mesh, also right after
/// kubelet and agent started anew.
pub fn api_by_the_underlay(lab: &Lab) -> Result<()> {
    const WATCH: &str = r#"
table inet wlwatch {
  counter mesh { }
  counter underlay { }
  chain out {
    type filter hook postrouting priority 300; policy accept;
    tcp dport 6443 fib saddr type local oifname "warren0" counter name "mesh"
    tcp dport 6443 fib saddr type local oifname != { "warren0", "lo" } counter name "underlay"
  }
}
"#;
    let away: Vec<&Node> = lab.running().into_iter().skip(1).collect();
    let mut before = Vec::new();
    for node in &away {
        crate::cluster::node::namespace(lab, node).nft(WATCH)?;
        before.push(clients(lab, node)?);
        for service in CLIENTS {
            lab.exec(&node.name, "pkill", &["-9", "-x", service]).with_context(|| format!("killing {service}"))?;
        }
    }
    let count = |node: &Node, counter: &str| -> Result<u64> {
        let said = lab.exec(&node.name, "nft", &["list", "counter", "inet", "wlwatch", counter])?;
        let words: Vec<&str> = said.split_whitespace().collect();
        let at = words.iter().position(|word| *word == "packets").context("a counter")?;
        words.get(at + 1).and_then(|number| number.parse().ok()).with_context(|| format!("reading {said:?}"))
    };
    for (node, old) in away.iter().zip(&before) {
        wait::until(
            &format!("a new kubelet and a new agent of {} to talk to the API server", node.name),
            SERVED,
            || {
                let now = clients(lab, node).map_err(|error| format!("{error:#}"))?;
                let renewed = now.len() == CLIENTS.len() && now.iter().all(|one| !old.contains(one));
                if renewed { Ok(()) } else { Err(format!("connected: {now:?}, before: {old:?}")) }
            },
        )?;
    }
    warren::wait_ready(lab)?;
    for node in away {
        let (inside, outside) = (count(node, "mesh")?, count(node, "underlay")?);
        ensure!(outside > 0, "no packet of {} to the API server was seen at all", node.name);
        ensure!(inside == 0, "{inside} packets of {} to the API server entered the mesh", node.name);
    }
    Ok(())
}

/// Who talks to the API server from every node.
const CLIENTS: [&str; 2] = ["kubelet", "warren-agent"];

/// Name and process of those with an established connection to the API server.
fn clients(lab: &Lab, node: &Node) -> Result<Vec<String>> {
    let said = lab.exec(&node.name, "ss", &["-Htnp", "state", "established", "dport", "=", ":6443"])?;
    let of = |name: &&str| {
        let pid = said.split(&format!("(\"{name}\",pid=")).nth(1)?.split(',').next()?;
        Some(format!("{name} {pid}"))
    };
    Ok(CLIENTS.iter().filter_map(of).collect())
}

/// A packet to a pod's address that leaves a site in clear is found, also when that pod is gone.
pub fn planted_leaks_are_found(lab: &Lab) -> Result<()> {
    let sniffer = lab.sniffer();
    sniffer.verdict().context("before anything was planted")?;
    let Some(site) = lab.scenario().nodes.iter().find(|node| node.has_router()) else { bail!("no site has a router") };
    let router = crate::net::topology::router(&lab.scenario().name, &site.name);
    let exe = lab.exe().to_string_lossy().into_owned();
    for target in ["10.244.0.9:80", "10.118.3.1:21819", "10.96.0.80:80"] {
        run(&mut router.command(&exe, &["internal", "send", target, "leak"]))?;
        let found = sniffer.report()?.findings;
        ensure!(
            found.keys().any(|finding| finding.contains(target.split(':').next().unwrap_or(target))),
            "{target} was not found: {found:?}"
        );
        ensure!(sniffer.verdict().is_err(), "a finding must fail the run");
        sniffer.forget()?;
    }
    sniffer.verdict().map(drop)
}
