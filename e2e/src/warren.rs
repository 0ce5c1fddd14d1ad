//! Warren in a lab: installed by Helm as a user would, and waited for.

use std::time::Duration;

use anyhow::Result;
use ipnet::IpNet;
use serde_json::{Value, json};

use crate::images::{TAG, workspace};
use crate::lab::Lab;
use crate::scenario::{API_PORT, Site};
use crate::wait;

/// The release and its namespace, as the documentation has them.
pub const NAMESPACE: &str = "warren-system";
const RELEASE: &str = "warren";
/// What `helm install --wait` may take on a machine that builds at the same time.
const INSTALL: &str = "5m";
/// From the installed chart to a mesh that is whole: handshakes take seconds, images are there already.
pub const CONVERGED: Duration = Duration::from_secs(180);

/// Labels the nodes that answer STUN, installs the chart and returns what Helm said.
pub fn install(lab: &Lab) -> Result<String> {
    install_with(lab, &[])
}

/// The same without labelling anything: the operator finds out where relays can stand.
pub fn install_unlabelled(lab: &Lab) -> Result<String> {
    make_namespace(lab)?;
    helm(lab, &["install", RELEASE], &[])
}

/// [`install`] with further settings (`--set a=b`).
pub fn install_with(lab: &Lab, further: &[&str]) -> Result<String> {
    let reachable = |site: &Site| matches!(site, Site::Public | Site::OneToOne { .. });
    let running = lab.running();
    for node in running.iter().filter(|node| reachable(&node.site)) {
        lab.kubectl(&["label", "node", &node.name, "--overwrite", "warren.dev/relay=true"])?;
    }
    make_namespace(lab)?;
    helm(lab, &["install", RELEASE], further)
}

fn make_namespace(lab: &Lab) -> Result<()> {
    // As the documentation says: agents use the host network, which a namespace must allow where Pod Security is enforced.
    let labels = json!({"pod-security.kubernetes.io/enforce": "privileged"});
    let namespace = json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": NAMESPACE, "labels": labels}});
    lab.apply(&namespace.to_string()).map(drop)
}

/// The same settings again, with further ones (`--set a=b`).
pub fn upgrade(lab: &Lab, further: &[&str]) -> Result<String> {
    helm(lab, &["upgrade", RELEASE], further)
}

/// Back to an earlier revision of the release.
pub fn rollback(lab: &Lab, revision: u32) -> Result<String> {
    let revision = revision.to_string();
    lab.helm(&["rollback", RELEASE, &revision, "-n", NAMESPACE, "--wait", "--timeout", INSTALL])
}

/// Waits until Kubernetes has replaced every pod of the release: Helm's `--wait` may return before the last agents.
pub fn wait_rolled_out(lab: &Lab) -> Result<()> {
    for workload in ["daemonset/warren-agent", "daemonset/warren-relay", "deployment/warren-operator"] {
        let timeout = format!("--timeout={INSTALL}");
        lab.kubectl(&["rollout", "status", "-n", NAMESPACE, workload, &timeout])?;
    }
    Ok(())
}

fn helm(lab: &Lab, verb: &[&str], further: &[&str]) -> Result<String> {
    let chart = workspace().join("charts/warren").display().to_string();
    let host = format!("k8sServiceHost={}", lab.scenario().api_address());
    let (port, tag) = (format!("k8sServicePort={API_PORT}"), format!("image.tag={TAG}"));
    let text = |nets: Vec<IpNet>| nets.iter().map(ToString::to_string).collect::<Vec<_>>();
    let (services, pods) = (text(lab.scenario().service_cidrs()), text(lab.scenario().pod_cidrs()));
    let mesh = format!("mesh.spec={}", json!({"serviceCIDRs": services, "podCIDRs": pods}));
    let mut args = verb.to_vec();
    args.extend([&chart, "-n", NAMESPACE, "--wait", "--timeout", INSTALL]);
    args.extend(["--set-string", &host, "--set", &port, "--set-string", &tag, "--set-json", &mesh]);
    args.extend(further);
    lab.helm(&args)
}

/// Runs the chart's own tests. Without `--logs`: the API server reads logs by the node's address, which two homes of a lab share.
pub fn test(lab: &Lab) -> Result<String> {
    lab.helm(&["test", RELEASE, "-n", NAMESPACE, "--timeout", INSTALL])
}

/// Uninstalls; Helm returns when the pods are gone.
pub fn uninstall(lab: &Lab) -> Result<String> {
    lab.helm(&["uninstall", RELEASE, "-n", NAMESPACE, "--wait", "--cascade", "foreground", "--timeout", INSTALL])
}

/// Deletes the pods of a component (`agent`, `relay`) where a field selector says, and returns when they are gone; others take their place.
pub fn delete_pods(lab: &Lab, component: &str, fields: &str) -> Result<()> {
    let labels = format!("app.kubernetes.io/component={component}");
    let args = ["delete", "pods", "-n", NAMESPACE, "-l", &labels, "--field-selector", fields, "--timeout=60s"];
    lab.kubectl(&args).map(drop)
}

/// Waits until every running node is Ready for Kubernetes and for Warren. Helm's `--wait` may return one agent early.
pub fn wait_ready(lab: &Lab) -> Result<()> {
    wait_condition(lab, "nodes", "Ready")?;
    wait_condition(lab, "meshnodes", "Ready")
}

/// Waits until this condition is True on the object of every running node.
pub fn wait_condition(lab: &Lab, kind: &str, condition: &str) -> Result<()> {
    let expected = lab.running().len();
    wait::until(&format!("{condition} on all {expected} {kind}"), CONVERGED, || {
        let list = lab.kubectl_json(&["get", kind]).map_err(|error| format!("{error:#}"))?;
        let items = list["items"].as_array().map(Vec::as_slice).unwrap_or_default();
        let lacking: Vec<String> = items.iter().filter_map(|item| lacks(item, condition)).collect();
        match (items.len(), lacking.is_empty()) {
            (found, _) if found < expected => Err(format!("{found} of {expected} exist")),
            (_, false) => Err(lacking.join("; ")),
            _ => Ok(()),
        }
    })
}

/// The same for one object.
pub fn wait_condition_of(lab: &Lab, kind: &str, name: &str, condition: &str) -> Result<()> {
    wait::until(&format!("{condition} on {kind} {name}"), CONVERGED, || {
        let object = lab.kubectl_json(&["get", kind, name]).map_err(|error| format!("{error:#}"))?;
        lacks(&object, condition).map_or(Ok(()), Err)
    })
}

/// Why this object lacks the condition, if it does.
fn lacks(item: &Value, condition: &str) -> Option<String> {
    let name = item["metadata"]["name"].as_str().unwrap_or("?");
    let conditions = item["status"]["conditions"].as_array().map(Vec::as_slice).unwrap_or_default();
    match conditions.iter().find(|one| one["type"] == condition) {
        Some(one) if one["status"] == "True" => None,
        Some(one) => Some(format!("{name} is {}: {} {}", one["status"], one["reason"], one["message"])),
        None => Some(format!("{name} has no such condition")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_lacks_a_condition_says_why() {
        let item = |status| {
            json!({"metadata": {"name": "n"}, "status": {"conditions": [
            {"type": "Ready", "status": status, "reason": "NoKey", "message": "waiting"}]}})
        };
        assert_eq!(lacks(&item("True"), "Ready"), None);
        assert!(lacks(&item("False"), "Ready").is_some_and(|text| text.contains("NoKey")));
        assert!(lacks(&item("True"), "Other").is_some());
    }
}
