//! etcd, API server, controller manager and scheduler, in the network namespace of the first node.

use std::time::Duration;

use anyhow::Result;
use nix::sys::signal::Signal;

use crate::command::command;
use crate::lab::Lab;
use crate::net::topology;
use crate::process::Process;
use crate::scenario::API_PORT;
use crate::state::write;
use crate::wait;

/// 3 to 4 s measured with nothing else running; several times that beside a build.
const READY: Duration = Duration::from_secs(120);

/// One of the four processes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Component {
    /// The database.
    Etcd,
    /// The API server.
    ApiServer,
    /// The controllers.
    ControllerManager,
    /// The scheduler.
    Scheduler,
}

impl Component {
    /// The program, and the name under which the process is recorded and logged.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Etcd => "etcd",
            Self::ApiServer => "kube-apiserver",
            Self::ControllerManager => "kube-controller-manager",
            Self::Scheduler => "kube-scheduler",
        }
    }
}

/// The file that makes the API server strict.
const ADMISSION: &str = "admission.json";

/// Pod Security `baseline` wherever a namespace does not say otherwise, as hardened clusters have it: Warren must say otherwise.
fn pod_security() -> serde_json::Value {
    serde_json::json!({"apiVersion": "apiserver.config.k8s.io/v1", "kind": "AdmissionConfiguration", "plugins": [{
        "name": "PodSecurity",
        "configuration": {
            "apiVersion": "pod-security.admission.config.k8s.io/v1",
            "kind": "PodSecurityConfiguration",
            "defaults": {"enforce": "baseline", "enforce-version": "latest"},
        },
    }]})
}

/// Starts all four and waits until they serve.
pub fn start(lab: &Lab) -> Result<()> {
    write(&lab.state().pki().join(ADMISSION), pod_security().to_string())?;
    start_component(lab, Component::Etcd)?;
    start_component(lab, Component::ApiServer)?;
    wait_ready(lab)?;
    start_component(lab, Component::ControllerManager)?;
    start_component(lab, Component::Scheduler)
}

/// Waits until the API server says that it is ready.
pub fn wait_ready(lab: &Lab) -> Result<()> {
    let name = Component::ApiServer.name();
    wait::until("the API server to be ready", READY, || {
        if Process::recorded(lab.state(), name).is_none() {
            return Ok(Err(last_words(lab, name)));
        }
        let ready = lab.kubectl(&["get", "--raw", "/readyz"]).map_err(|error| format!("{error:#}"))?;
        Ok(Ok(ready))
    })?
    .map(drop)
}

/// Why a process ended, from the last line of its log.
fn last_words(lab: &Lab, name: &str) -> anyhow::Error {
    let log = std::fs::read_to_string(lab.state().logs().join(format!("{name}.log"))).unwrap_or_default();
    anyhow::anyhow!("{name} ended: {}", log.lines().last().unwrap_or("it said nothing"))
}

/// What only the cluster's administrator can do, done once.
pub fn initialise(lab: &Lab) -> Result<()> {
    lab.kubectl(&[
        "create",
        "clusterrolebinding",
        "kube-proxy",
        "--clusterrole=system:node-proxier",
        "--user=system:kube-proxy",
    ])?;
    wait::until("the default ServiceAccount", READY, || {
        lab.kubectl(&["get", "serviceaccount", "default"]).map_err(|error| format!("{error:#}"))
    })
    .map(drop)
}

/// Starts one of them; its address and files are where they were before.
pub fn start_component(lab: &Lab, component: Component) -> Result<()> {
    let name = component.name();
    let node = topology::node(&lab.scenario().name, &lab.scenario().control_plane().name);
    let net = format!("--net={}", node.path().display());
    let program = lab.parts().program(name);
    let mut process = command("setsid", ["nsenter", &net, "--"]);
    process.arg(program).args(arguments(lab, component));
    Process::start(lab.state(), name, &mut process).map(drop)
}

/// Freezes one of them: its connections stay open and say nothing.
pub fn freeze(lab: &Lab, component: Component) -> Result<()> {
    signal(lab, component, Signal::SIGSTOP)
}

/// Lets a frozen one go on.
pub fn thaw(lab: &Lab, component: Component) -> Result<()> {
    signal(lab, component, Signal::SIGCONT)
}

fn signal(lab: &Lab, component: Component, signal: Signal) -> Result<()> {
    match Process::recorded(lab.state(), component.name()) {
        Some(process) => process.signal(signal),
        None => anyhow::bail!("{} does not run", component.name()),
    }
}

fn arguments(lab: &Lab, component: Component) -> Vec<String> {
    match component {
        Component::Etcd => etcd(lab),
        Component::ApiServer => api_server(lab),
        Component::ControllerManager => controller_manager(lab),
        Component::Scheduler => {
            vec![
                format!("--kubeconfig={}", lab.state().pki().join("scheduler.kubeconfig").display()),
                "--leader-elect=false".into(),
            ]
        }
    }
}

fn etcd(lab: &Lab) -> Vec<String> {
    vec![
        format!("--data-dir={}", lab.state().dir().join("etcd").display()),
        // A lab that loses power starts from nothing.
        "--unsafe-no-fsync".into(),
        "--log-level=warn".into(),
        "--listen-client-urls=http://127.0.0.1:2379".into(),
        "--advertise-client-urls=http://127.0.0.1:2379".into(),
        "--listen-peer-urls=http://127.0.0.1:2380".into(),
    ]
}

fn api_server(lab: &Lab) -> Vec<String> {
    let pki = lab.state().pki();
    let file = |name: &str| pki.join(name).display().to_string();
    vec![
        "--etcd-servers=http://127.0.0.1:2379".into(),
        // Its own address: behind 1:1 NAT the private one, as every cloud's installer does.
        format!("--advertise-address={}", lab.scenario().control_plane().v4.addr()),
        format!("--secure-port={API_PORT}"),
        format!("--service-cluster-ip-range={}", joined(&lab.scenario().service_cidrs())),
        "--authorization-mode=Node,RBAC".into(),
        "--enable-admission-plugins=NodeRestriction".into(),
        format!("--admission-control-config-file={}", file(ADMISSION)),
        "--allow-privileged".into(),
        format!("--client-ca-file={}", file("ca.crt")),
        format!("--tls-cert-file={}", file("apiserver.crt")),
        format!("--tls-private-key-file={}", file("apiserver.key")),
        // By name it would ask a DNS that does not exist.
        "--kubelet-preferred-address-types=InternalIP".into(),
        format!("--kubelet-certificate-authority={}", file("ca.crt")),
        format!("--kubelet-client-certificate={}", file("apiserver-kubelet.crt")),
        format!("--kubelet-client-key={}", file("apiserver-kubelet.key")),
        "--service-account-issuer=https://kubernetes.default.svc.cluster.local".into(),
        format!("--service-account-key-file={}", file("sa.pub")),
        format!("--service-account-signing-key-file={}", file("sa.key")),
    ]
}

fn controller_manager(lab: &Lab) -> Vec<String> {
    let pki = lab.state().pki();
    let file = |name: &str| pki.join(name).display().to_string();
    vec![
        format!("--kubeconfig={}", file("controller-manager.kubeconfig")),
        "--leader-elect=false".into(),
        "--use-service-account-credentials".into(),
        format!("--root-ca-file={}", file("ca.crt")),
        format!("--service-account-private-key-file={}", file("sa.key")),
        format!("--cluster-signing-cert-file={}", file("ca.crt")),
        format!("--cluster-signing-key-file={}", file("ca.key")),
        "--allocate-node-cidrs".into(),
        format!("--cluster-cidr={}", joined(&lab.scenario().pod_cidrs())),
        format!("--service-cluster-ip-range={}", joined(&lab.scenario().service_cidrs())),
    ]
}

fn joined(nets: &[ipnet::IpNet]) -> String {
    nets.iter().map(ToString::to_string).collect::<Vec<_>>().join(",")
}
