//! Where relays come to stand.

use crate::cluster::{Cluster, NAMESPACE};
use anyhow::{Result, ensure};
use crds::{
    MeshNode, MeshRelay,
    names::{RELAY_LABEL, RELAY_PLACEMENT},
};
use k8s_openapi::api::core::v1::Node;
use kube::{
    Api, ResourceExt,
    api::{Patch, PatchParams},
};
use serde_json::{Value, json};

/// Whether the Node has the label, and whether the operator says that it wrote it.
async fn label_of(cluster: &Cluster, name: &str) -> Result<(Option<String>, bool)> {
    let node = cluster.all::<Node>().get(name).await?;
    let ours = node.annotations().get(RELAY_PLACEMENT).is_some_and(|note| note.starts_with("placed@"));
    Ok((node.labels().get(RELAY_LABEL).cloned(), ours))
}

async fn until_labelled(cluster: &Cluster, name: &str, wanted: (Option<&str>, bool)) -> Result<()> {
    let wanted = (wanted.0.map(String::from), wanted.1);
    let what = format!("the label of {name} to be {wanted:?}");
    cluster.until(&what, || async { Ok((label_of(cluster, name).await? == wanted).then_some(())) }).await
}

async fn label(cluster: &Cluster, name: &str, value: Option<&str>) -> Result<()> {
    let patch = json!({ "metadata": { "labels": { RELAY_LABEL: value } } });
    cluster.all::<Node>().patch(name, &PatchParams::default(), &Patch::Merge(&patch)).await?;
    Ok(())
}

/// A member at this address, as its agent reports it.
async fn join_at(cluster: &Cluster, name: &str, number: u8, address: &str) -> Result<()> {
    cluster.join(name, number).await?;
    report(cluster, name, json!({ "candidates": [{ "address": address, "kind": "Host" }] })).await
}

async fn report(cluster: &Cluster, name: &str, status: Value) -> Result<()> {
    let api = cluster.all::<MeshNode>();
    api.patch_status(name, &PatchParams::default(), &Patch::Merge(&json!({ "status": status }))).await?;
    Ok(())
}

async fn until_reachable(cluster: &Cluster, status: crds::ConditionStatus) -> Result<()> {
    let relays = cluster.all::<MeshRelay>();
    let says = |relay: &MeshRelay| {
        let conditions = relay.status.iter().flat_map(|status| &status.conditions);
        conditions.into_iter().any(|condition| condition.type_ == "Reachable" && condition.status == status)
    };
    let what = format!("the relay to be reachable: {status:?}");
    cluster.until(&what, || async { Ok(relays.get_opt("pub").await?.filter(says).map(drop)) }).await
}

pub async fn a_relay_comes_to_stand_without_a_label_and_is_proven_by_those_who_reach_it(
    cluster: &Cluster,
) -> Result<()> {
    cluster.install_policies().await?;
    let _replica = cluster.operator("a", &["--relay-placement", "auto"])?;
    join_at(cluster, "pub", 3, "203.0.113.3:21820").await?;
    until_labelled(cluster, "pub", (Some("true"), true)).await?;
    join_at(cluster, "home", 1, "192.168.1.1:21820").await?;
    join_at(cluster, "other", 2, "192.168.1.2:21820").await?;
    cluster.until_event("RelayPlaced", "pub").await?;
    until_reachable(cluster, crds::ConditionStatus::False).await?;
    for name in ["home", "other"] {
        report(cluster, name, json!({ "relays": [{ "name": "pub", "transport": "Quic" }] })).await?;
    }
    until_reachable(cluster, crds::ConditionStatus::True).await?;
    for name in ["home", "other"] {
        ensure!(label_of(cluster, name).await? == (None, false), "{name} has a private address");
    }
    Ok(())
}

pub async fn what_an_admin_says_of_a_node_wins_and_labels_by_hand_stand(cluster: &Cluster) -> Result<()> {
    cluster.install_policies().await?;
    let _replica = cluster.operator("a", &["--relay-placement", "auto"])?;
    join_at(cluster, "pub", 1, "203.0.113.1:21820").await?;
    until_labelled(cluster, "pub", (Some("true"), true)).await?;
    join_at(cluster, "home", 2, "192.168.1.2:21820").await?;
    let wish =
        |name: &'static str, wish: &'static str| cluster.patch_mesh_node(name, json!({ "spec": { "relay": wish } }));
    wish("pub", "Never").await?;
    until_labelled(cluster, "pub", (None, false)).await?;
    wish("home", "Always").await?;
    until_labelled(cluster, "home", (Some("true"), true)).await?;
    // By hand: it stands whatever is wished, and nothing is added beside it.
    label(cluster, "pub", Some("true")).await?;
    wish("home", "Never").await?;
    until_labelled(cluster, "home", (None, false)).await?;
    ensure!(label_of(cluster, "pub").await? == (Some("true".into()), false), "an admin's label stands");
    let spec = cluster.mesh_node("pub").await?.map(|node| node.spec.relay);
    ensure!(spec == Some(crds::mesh_node::RelayWish::Never), "and so does the wish");
    cluster.until_event("RelayWithdrawn", "home").await
}

/// The admission policy that comes with the right to patch Nodes.
pub async fn the_operator_may_change_one_label_of_a_node_and_nothing_else(cluster: &Cluster) -> Result<()> {
    let policy = include_str!("../../../charts/warren/files/placement-policy.yaml").replace("__NAMESPACE__", NAMESPACE);
    for value in serde_saphyr::from_multiple::<Value>(&policy)? {
        cluster.apply(value).await?;
    }
    cluster.add_node("n1", 1).await?;
    cluster.grant_in("", "warren-operator", &["nodes", "nodes/status"]).await?;
    let api: Api<Node> = Api::all(cluster.token_of("warren-operator", None).await?);
    let patch = |body: Value| {
        let api = api.clone();
        async move { api.patch("n1", &PatchParams::default(), &Patch::Merge(&body)).await }
    };
    let labels = |name: &str| json!({ "metadata": { "labels": { name: "true" } } });
    // What changes nothing is no write, so each probe is another one.
    let probes = std::cell::Cell::new(0);
    let probe = || {
        probes.set(probes.get() + 1);
        patch(json!({ "metadata": { "annotations": { "probe": probes.get().to_string() } } }))
    };
    cluster.until_refused("the operator may", probe).await?;
    let refused = [
        labels("b"),
        json!({ "metadata": { "labels": { RELAY_LABEL: "true", "kubernetes.io/role": "master" } } }),
        json!({ "metadata": { "annotations": { "b": "c" } } }),
        json!({ "metadata": { "finalizers": ["warren.dev/held"] } }),
        json!({ "spec": { "unschedulable": true } }),
        json!({ "spec": { "taints": [{ "key": "k", "effect": "NoExecute" }] } }),
    ];
    for body in refused {
        let error = patch(body.clone()).await.err().map(|error| error.to_string()).unwrap_or_default();
        ensure!(error.contains("the operator may"), "{body}: {error:?}");
    }
    let status = json!({ "status": { "addresses": [] } });
    let error = api.patch_status("n1", &PatchParams::default(), &Patch::Merge(&status)).await.err();
    ensure!(error.is_some_and(|error| error.to_string().contains("below a Node")), "the status of a Node");
    let placed =
        json!({ "metadata": { "labels": { RELAY_LABEL: "true" }, "annotations": { RELAY_PLACEMENT: "placed@x" } } });
    patch(placed).await?;
    patch(json!({ "metadata": { "labels": { RELAY_LABEL: null }, "annotations": { RELAY_PLACEMENT: null } } })).await?;
    // Everybody else writes as before.
    label(cluster, "n1", Some("true")).await?;
    cluster.all::<Node>().patch("n1", &PatchParams::default(), &Patch::Merge(&labels("b"))).await?;
    Ok(())
}
