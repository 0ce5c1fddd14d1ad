//! What the API server itself refuses, and how it says so.

use crate::cluster::Cluster;
use anyhow::{Context, Result, bail, ensure};
use serde_json::{Value, json};
use std::{collections::BTreeSet, path::Path};

/// A spec that passes, one that does not, and what the refusal must say.
struct Rule {
    kind: &'static str,
    accepted: Value,
    refused: Value,
    says: &'static str,
}

fn rule(kind: &'static str, accepted: Value, refused: Value, says: &'static str) -> Rule {
    Rule { kind, accepted, refused, says }
}

const KEY: &str = "AQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQE=";

fn rules() -> Vec<Rule> {
    let node = |more: Value| {
        let mut spec = json!({ "nodeUID": "u" });
        for (field, value) in more.as_object().into_iter().flatten() {
            spec[field] = value.clone();
        }
        spec
    };
    let mesh = |accepted, refused, says| rule("Mesh", accepted, refused, says);
    let mesh_node = |accepted, refused, says| rule("MeshNode", node(accepted), node(refused), says);
    let entry = |key: &str| json!({ "count": 1, "entries": [{ "name": "n", "uid": "u", "publicKey": key }] });
    let many: Vec<Value> = (0..65).map(|n| json!({ "name": format!("n{n}"), "uid": "u", "publicKey": KEY })).collect();
    vec![
        mesh(
            json!({ "nodeCIDRs": ["10.0.0.0/8", "fc00::/7"] }),
            json!({ "nodeCIDRs": ["10.0.0.0"] }),
            "each entry must be a prefix like 10.0.0.0/8 or fc00::/7",
        ),
        mesh(
            json!({ "serviceCIDRs": ["10.96.0.0/12"] }),
            json!({ "serviceCIDRs": ["services"] }),
            "each entry must be a prefix like 10.96.0.0/12",
        ),
        mesh(
            json!({ "podCIDRs": ["10.244.0.0/16"] }),
            json!({ "podCIDRs": ["services"] }),
            "each entry must be a prefix like 10.244.0.0/16",
        ),
        mesh(
            json!({ "paths": { "mode": "OnDemand", "idleSeconds": 10 } }),
            json!({ "paths": { "mode": "OnDemand", "idleSeconds": 9 } }),
            "spec.paths.idleSeconds",
        ),
        mesh(
            json!({ "paths": { "mode": "Eager" } }),
            json!({ "paths": { "mode": "Lazy" } }),
            r#"supported values: "Auto", "Eager", "OnDemand""#,
        ),
        mesh(
            json!({ "addresses": { "ipv4": "10.9.0.0/16" } }),
            json!({ "addresses": { "ipv4": "10.9.0.0/31" } }),
            "must be a unicast IPv4 prefix of 8 to 30 bits, like 10.118.0.0/16",
        ),
        mesh(
            json!({ "addresses": { "ipv4": "10.0.0.0/8" } }),
            json!({ "addresses": { "ipv4": "10.0.0.0/7" } }),
            "must be a unicast IPv4 prefix of 8 to 30 bits",
        ),
        mesh(
            json!({ "addresses": { "ipv4": "100.64.0.0/10" } }),
            json!({ "addresses": { "ipv4": "169.254.0.0/16" } }),
            "must be a unicast IPv4 prefix",
        ),
        mesh(
            json!({ "addresses": { "ipv4": "10.9.0.0/16" } }),
            json!({ "addresses": { "ipv4": "fd00::/64" } }),
            "must be a unicast IPv4 prefix",
        ),
        mesh(
            json!({ "addresses": { "ipv6": "fd00::/64" } }),
            json!({ "addresses": { "ipv6": "10.0.0.0/8" } }),
            "must be a unique local IPv6 prefix (in fc00::/7) of at most 112 bits, like fd12:3456:789a::/64",
        ),
        mesh(
            json!({ "addresses": { "ipv6": "fc00::/7" } }),
            json!({ "addresses": { "ipv6": "2001:db8::/64" } }),
            "must be a unique local IPv6 prefix",
        ),
        mesh(
            json!({ "addresses": { "ipv6": "fd00::/112" } }),
            json!({ "addresses": { "ipv6": "fd00::/113" } }),
            "must be a unique local IPv6 prefix",
        ),
        mesh(
            json!({ "listenPorts": { "first": 21820, "last": 21830 } }),
            json!({ "listenPorts": { "first": 21830, "last": 21820 } }),
            "`first` must not be above `last`",
        ),
        mesh(
            json!({ "listenPorts": { "first": 1024 } }),
            json!({ "listenPorts": { "first": 53 } }),
            "greater than or equal to 1024",
        ),
        mesh(
            json!({ "fwmark": { "value": 32, "mask": 32 } }),
            json!({ "fwmark": { "value": 64, "mask": 32 } }),
            "`value` must be a non-zero part of `mask`: each of its bits must be one of the mask's",
        ),
        mesh(
            json!({ "fwmark": { "value": 0x500, "mask": 0x7fff_ff00 } }),
            json!({ "fwmark": { "value": 16, "mask": 32 } }),
            "`value` must be a non-zero part of `mask`",
        ),
        mesh(
            json!({ "fwmark": { "value": 0x4000_0000, "mask": 0x4000_0000 } }),
            json!({ "fwmark": { "value": 0x300, "mask": 0x500 } }),
            "`value` must be a non-zero part of `mask`",
        ),
        mesh(json!({ "mtu": 1380 }), json!({ "mtu": 600 }), "greater than or equal to 1280"),
        mesh(
            json!({ "stun": { "servers": ["192.0.2.7:3478", "[2001:db8::1]:3478"] } }),
            json!({ "stun": { "servers": ["stun.example.org:3478"] } }),
            "should match",
        ),
        mesh(json!({ "admission": "Manual" }), json!({ "admission": "Sometimes" }), "supported values"),
        mesh_node(
            json!({ "meshIPs": ["10.118.0.1", "fd00::1"] }),
            json!({ "meshIPs": ["10.118.0.1/32"] }),
            "each entry must be an address like 10.118.0.7",
        ),
        mesh_node(
            json!({ "meshIPs": ["10.118.0.1", "fd00::1"] }),
            json!({ "meshIPs": ["10.118.0.1", "fd00::1", "fd00::2"] }),
            "at most 2 items",
        ),
        mesh_node(
            json!({ "podCIDRs": ["10.244.0.0/24"] }),
            json!({ "podCIDRs": ["10.244.0.0"] }),
            "each entry must be a prefix like 10.244.3.0/24",
        ),
        mesh_node(
            json!({ "nodeIPs": ["192.168.1.10"] }),
            json!({ "nodeIPs": ["node-1"] }),
            "each entry must be an address like 192.168.1.10",
        ),
        mesh_node(
            json!({ "admission": { "publicKey": KEY } }),
            json!({ "admission": { "publicKey": "short" } }),
            "should match",
        ),
        rule(
            "MeshRelay",
            json!({ "addresses": ["203.0.113.5:3478", "[2001:db8::1]:3478"] }),
            json!({ "addresses": ["relay.example.org:3478"] }),
            "should match",
        ),
        rule(
            "MeshRelay",
            json!({ "addresses": ["203.0.113.5:1", "203.0.113.5:2", "203.0.113.5:3", "203.0.113.5:4"] }),
            json!({ "addresses": ["203.0.113.5:1", "203.0.113.5:2", "203.0.113.5:3", "203.0.113.5:4", "203.0.113.5:5"] }),
            "at most 4 items",
        ),
        rule(
            "MeshRelay",
            json!({ "addresses": ["203.0.113.5:3478", "[2001:db8::1]:3478"] }),
            json!({ "addresses": ["203.0.113.5:3478", "203.0.113.500:3478"] }),
            "each entry must have an address that is one, like 203.0.113.7:3478 or [2001:db8::7]:3478",
        ),
        rule(
            "MeshRelay",
            json!({ "identityKey": KEY, "addresses": ["203.0.113.5:3478"] }),
            json!({ "identityKey": KEY }),
            "a relay outside the cluster that is known by its identityKey needs addresses too",
        ),
        rule("MeshRelay", json!({ "tlsPort": 443 }), json!({ "tlsPort": 0 }), "greater than or equal to 1"),
        mesh_node(json!({ "relay": "Never" }), json!({ "relay": "Sometimes" }), "supported values"),
        rule("MeshPeerSlice", entry(KEY), entry("not a key"), "should match"),
        rule("MeshPeerSlice", entry(KEY), json!({ "entries": many }), "at most 64 items"),
    ]
}

pub async fn every_rule_accepts_and_refuses(cluster: &Cluster) -> Result<()> {
    let mut said = BTreeSet::new();
    for Rule { kind, accepted, refused, says } in rules() {
        let name = if kind == "Mesh" { "default" } else { "n" };
        let object = |spec: &Value| json!({ "apiVersion": "warren.dev/v1alpha1", "kind": kind, "metadata": { "name": name }, "spec": spec });
        cluster.reset().await?;
        said.insert(refusal(cluster, object(&refused), says).await?);
        cluster.create(object(&accepted)).await.with_context(|| format!("{kind} {accepted} must pass"))?;
    }
    said.insert(another_mesh(cluster).await?);
    said.extend(pools_only_grow(cluster).await?);
    said.insert(another_node_uid(cluster).await?);
    status_limits(cluster).await?;
    said.insert(relay_without_an_address(cluster).await?);
    every_message_was_heard(&said)
}

async fn refusal(cluster: &Cluster, object: Value, says: &str) -> Result<String> {
    match cluster.create(object.clone()).await {
        Ok(_) => bail!("{object} must be refused"),
        Err(error) if error.to_string().contains(says) => Ok(error.to_string()),
        Err(error) => bail!("expected a refusal that says {says:?}, found: {error}"),
    }
}

async fn another_mesh(cluster: &Cluster) -> Result<String> {
    let object =
        json!({ "apiVersion": "warren.dev/v1alpha1", "kind": "Mesh", "metadata": { "name": "second" }, "spec": {} });
    refusal(cluster, object, "there is one Mesh and its name is `default`").await
}

async fn pools_only_grow(cluster: &Cluster) -> Result<Vec<String>> {
    use kube::api::{Patch, PatchParams};
    let mut said = Vec::new();
    cluster.reset().await?;
    let addresses = json!({ "ipv4": "10.9.0.0/16", "ipv6": "fd00:9::/64" });
    let mesh = json!({ "apiVersion": "warren.dev/v1alpha1", "kind": "Mesh", "metadata": { "name": "default" }, "spec": { "addresses": addresses } });
    cluster.create(mesh).await?;
    let api = cluster.all::<crds::Mesh>();
    for (wider, refused, says) in [
        (json!({ "ipv4": "10.8.0.0/15" }), json!({ "ipv4": "10.8.0.0/16" }), "the IPv4 pool can only grow"),
        (json!({ "ipv4": "10.8.0.0/13" }), json!({ "ipv4": "10.9.0.0/16" }), "the IPv4 pool can only grow"),
        (json!({ "ipv6": "fd00:9::/60" }), json!({ "ipv6": "fd00:8::/60" }), "the IPv6 pool can only grow"),
        (json!({ "ipv6": "fd00:9::/60" }), json!({ "ipv6": null }), "the IPv6 pool can't be taken away"),
    ] {
        let patch = |addresses: &Value| Patch::Merge(json!({ "spec": { "addresses": addresses } }));
        match api.patch("default", &PatchParams::default(), &patch(&refused)).await {
            Ok(_) => bail!("{refused} must be refused"),
            Err(error) if error.to_string().contains(says) => said.push(error.to_string()),
            Err(error) => bail!("expected a refusal that says {says:?}, found: {error}"),
        }
        api.patch("default", &PatchParams::default(), &patch(&wider))
            .await
            .with_context(|| format!("{wider} must pass"))?;
    }
    Ok(said)
}

async fn another_node_uid(cluster: &Cluster) -> Result<String> {
    cluster.reset().await?;
    cluster.create(json!({ "apiVersion": "warren.dev/v1alpha1", "kind": "MeshNode", "metadata": { "name": "n" }, "spec": { "nodeUID": "u" } })).await?;
    cluster.patch_mesh_node("n", json!({ "spec": { "suspended": true } })).await?;
    match cluster.patch_mesh_node("n", json!({ "spec": { "nodeUID": "v" } })).await {
        Ok(_) => bail!("nodeUID must not change"),
        Err(error) => {
            ensure!(error.to_string().contains("nodeUID can't change"), "found: {error}");
            Ok(error.to_string())
        }
    }
}

async fn status_limits(cluster: &Cluster) -> Result<()> {
    use kube::api::{Patch, PatchParams};
    let api = cluster.all::<crds::MeshNode>();
    let patch = |status: Value| {
        let api = api.clone();
        async move { api.patch_status("n", &PatchParams::default(), &Patch::Merge(&json!({ "status": status }))).await }
    };
    let candidates =
        |n: usize| json!({ "candidates": vec![json!({ "address": "198.51.100.7:21820", "kind": "Host" }); n] });
    let reached = |n: usize| {
        let relays = (0..n).map(|number| json!({ "name": format!("r{number}"), "transport": "Quic" }));
        json!({ "relays": relays.collect::<Vec<_>>() })
    };
    patch(candidates(16)).await?;
    patch(reached(8)).await?;
    for (status, says) in [
        (candidates(17), "at most 16 items"),
        (json!({ "candidates": [{ "address": "example.org:1", "kind": "Host" }] }), "should match"),
        (json!({ "publicKey": "short" }), "should match"),
        (reached(9), "at most 8 items"),
        (json!({ "relays": [{ "name": "r", "transport": "Pigeon" }] }), "supported values"),
        (json!({ "relayTLSPort": 0 }), "greater than or equal to 1"),
        (json!({ "listenPort": 0 }), "greater than or equal to 1"),
        (json!({ "round": 4_294_967_296_u64 }), "less than or equal to 4294967295"),
        (json!({ "round": -1 }), "greater than or equal to 0"),
        (json!({ "paths": { "direct": 4_294_967_296_u64 } }), "less than or equal to"),
    ] {
        match patch(status.clone()).await {
            Ok(_) => bail!("{status} must be refused"),
            Err(error) => ensure!(error.to_string().contains(says), "expected {says:?}, found: {error}"),
        }
    }
    Ok(())
}

async fn relay_without_an_address(cluster: &Cluster) -> Result<String> {
    use kube::api::{Patch, PatchParams};
    cluster
        .create(json!({ "apiVersion": "warren.dev/v1alpha1", "kind": "MeshRelay", "metadata": { "name": "n" }, "spec": {} }))
        .await?;
    let api = cluster.all::<crds::MeshRelay>();
    let patch = |address: &str| Patch::Merge(json!({ "status": { "addresses": ["192.0.2.7", address] } }));
    api.patch_status("n", &PatchParams::default(), &patch("2001:db8::7")).await?;
    let says = "each entry must be an address like 192.0.2.7";
    match api.patch_status("n", &PatchParams::default(), &patch("relay.example.org")).await {
        Ok(_) => bail!("a relay's address must be one"),
        Err(error) => {
            ensure!(error.to_string().contains(says), "expected {says:?}, found: {error}");
            Ok(error.to_string())
        }
    }
}

/// Every CEL rule of every definition was seen to refuse something.
fn every_message_was_heard(said: &BTreeSet<String>) -> Result<()> {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("../crds/generated");
    for entry in std::fs::read_dir(dir)? {
        let path = entry?.path();
        let crd: Value = serde_saphyr::from_str(&std::fs::read_to_string(&path)?)?;
        let mut messages = Vec::new();
        collect_messages(&crd, &mut messages);
        for message in messages {
            ensure!(
                said.iter().any(|text| text.contains(&message)),
                "{}: no object breaks {message:?}",
                path.display()
            );
        }
    }
    Ok(())
}

fn collect_messages(value: &Value, found: &mut Vec<String>) {
    match value {
        Value::Object(fields) => {
            let rules = fields.get("x-kubernetes-validations").and_then(Value::as_array);
            found.extend(rules.into_iter().flatten().filter_map(|rule| Some(rule["message"].as_str()?.to_owned())));
            fields.values().for_each(|value| collect_messages(value, found));
        }
        Value::Array(items) => items.iter().for_each(|value| collect_messages(value, found)),
        _ => {}
    }
}
