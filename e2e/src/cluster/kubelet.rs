//! Configuration of the three services of a node: containerd, kubelet, kube-proxy. Pure; JSON is YAML to both of the latter.

use std::net::IpAddr;
use std::path::Path;

use serde_json::{Value, json};

use crate::images::reference;
use crate::scenario::{Node, Scenario};

/// Cluster DNS has a fixed place in the Service network, as everywhere; the lab runs none.
const DNS_HOST: u32 = 10;

/// containerd: overlayfs, no pulls, no AppArmor.
#[must_use]
pub fn containerd() -> String {
    let pause = reference("pause");
    format!(
        r#"version = 2
disabled_plugins = ["io.containerd.snapshotter.v1.btrfs", "io.containerd.snapshotter.v1.zfs",
  "io.containerd.snapshotter.v1.aufs", "io.containerd.snapshotter.v1.devmapper", "io.containerd.internal.v1.opt"]
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "{pause}"
  disable_apparmor = true
  # Without CAP_SYS_RESOURCE the score may not be lowered, and runc dies of the attempt.
  restrict_oom_score_adj = true
  [plugins."io.containerd.grpc.v1.cri".containerd]
    snapshotter = "overlayfs"
    [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
      runtime_type = "io.containerd.runc.v2"
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "/opt/cni/bin"
    conf_dir = "/etc/cni/net.d"
"#
    )
}

/// kubelet's configuration.
#[must_use]
pub fn kubelet(scenario: &Scenario, node: &Node, pki: &Path, cgroup: &str, resolv_conf: &Path) -> Value {
    let file = |name: &str| pki.join(name).display().to_string();
    json!({
        "apiVersion": "kubelet.config.k8s.io/v1beta1",
        "kind": "KubeletConfiguration",
        "authentication": {
            "anonymous": {"enabled": false},
            "webhook": {"enabled": true},
            "x509": {"clientCAFile": file("ca.crt")},
        },
        "authorization": {"mode": "Webhook"},
        "tlsCertFile": file(&format!("{}.crt", node.name)),
        "tlsPrivateKeyFile": file(&format!("{}.key", node.name)),
        "containerRuntimeEndpoint": "unix:///run/containerd/containerd.sock",
        "cgroupDriver": "cgroupfs",
        "cgroupRoot": format!("/{cgroup}"),
        "failCgroupV1": false,
        "failSwapOn": false,
        "enforceNodeAllocatable": ["none"],
        "imageGCHighThresholdPercent": 100,
        "makeIPTablesUtilChains": false,
        "evictionHard": {"memory.available": "50Mi", "nodefs.available": "1%", "imagefs.available": "1%"},
        "clusterDNS": [dns(scenario).to_string()],
        "clusterDomain": "cluster.local",
        "resolvConf": resolv_conf,
        "readOnlyPort": 0,
        // A changed ConfigMap or a new pod is seen at once by watches; this is only the fallback.
        "nodeStatusUpdateFrequency": "5s",
    })
}

/// What kubelet takes only as flags.
#[must_use]
pub fn kubelet_flags(scenario: &Scenario, node: &Node, pki: &Path, config: &Path) -> Vec<String> {
    let mut addresses = vec![IpAddr::V4(node.v4.addr()).to_string()];
    addresses.extend(scenario.dual_stack.then(|| node.v6.addr().to_string()));
    vec![
        format!("--config={}", config.display()),
        format!("--kubeconfig={}", pki.join(format!("{}.kubeconfig", node.name)).display()),
        format!("--hostname-override={}", node.name),
        format!("--node-ip={}", addresses.join(",")),
    ]
}

/// kube-proxy's configuration.
#[must_use]
pub fn kube_proxy(scenario: &Scenario, node: &Node, pki: &Path) -> Value {
    let pods: Vec<String> = scenario.pod_cidrs().iter().map(ToString::to_string).collect();
    json!({
        "apiVersion": "kubeproxy.config.k8s.io/v1alpha1",
        "kind": "KubeProxyConfiguration",
        "mode": scenario.proxy_mode,
        "clientConnection": {"kubeconfig": pki.join("proxy.kubeconfig")},
        "clusterCIDR": pods.join(","),
        "hostnameOverride": node.name,
        // The limits are the machine's, not a namespace's.
        "conntrack": {"maxPerCore": 0, "min": 0, "tcpEstablishedTimeout": "0s", "tcpCloseWaitTimeout": "0s"},
    })
}

/// Where pods are told to ask for names.
#[must_use]
pub fn dns(scenario: &Scenario) -> IpAddr {
    match scenario.service_cidrs()[0] {
        ipnet::IpNet::V4(net) => IpAddr::V4((u32::from(net.network()) + DNS_HOST).into()),
        ipnet::IpNet::V6(net) => IpAddr::V6((u128::from(net.network()) + u128::from(DNS_HOST)).into()),
    }
}
