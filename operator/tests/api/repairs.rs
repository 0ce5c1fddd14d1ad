//! What the operator makes of mistakes, departures and returns.

use crate::cluster::Cluster;
use anyhow::{Result, ensure};
use crds::{MeshNode, MeshPeerSlice, MeshRelay};
use k8s_openapi::api::{core::v1::Node, events::v1::Event};
use kube::{
    Api,
    api::{DeleteParams, Patch, PatchParams},
};
use serde_json::json;
use wire::key::{PrivateKey, PublicKey};

fn has(node: &MeshNode, type_: &str) -> bool {
    let conditions = node.status.as_ref().map(|status| &status.conditions);
    conditions.is_some_and(|list| list.iter().any(|condition| condition.type_ == type_))
}

fn reason(node: &MeshNode) -> Option<&str> {
    node.spec.admission.reason.as_deref()
}

impl Cluster {
    pub async fn join(&self, name: &str, number: u8) -> Result<MeshNode> {
        self.add_node(name, number).await?;
        self.publish_key(name, &PrivateKey::from_bytes([number; 32])).await?;
        self.until_node(name, "admitted", |node| reason(node) == Some("KeyAccepted")).await
    }

    async fn tombstones(&self) -> Result<Vec<crds::Tombstone>> {
        let removed = self.all::<MeshPeerSlice>().get_opt(crds::names::REMOVED_SLICE).await?;
        Ok(removed.map(|slice| slice.spec.tombstones).unwrap_or_default())
    }

    pub async fn until_event(&self, reason: &str, name: &str) -> Result<()> {
        let events: Api<Event> = Api::namespaced(self.client.clone(), "default");
        self.until(&format!("the Event {reason} of {name}"), || async {
            let list = events.list(&Default::default()).await?;
            let found = list.items.iter().any(|event| {
                event.reason.as_deref() == Some(reason)
                    && event.regarding.as_ref().and_then(|object| object.name.as_deref()) == Some(name)
            });
            Ok(found.then_some(()))
        })
        .await
    }
}

pub async fn garbage_by_hand_is_named_and_nothing_is_lost(cluster: &Cluster) -> Result<()> {
    cluster.install_policies().await?;
    let _replica = cluster.operator("a", &[])?;
    let first = cluster.join("n1", 1).await?;
    let second = cluster.join("n2", 2).await?;
    cluster.until_listed(2).await?;

    // Another node's mesh address, written by hand.
    cluster.patch_mesh_node("n2", json!({ "spec": { "meshIPs": first.spec.mesh_ips } })).await?;
    let own = |node: &MeshNode| node.spec.mesh_ips.iter().all(|ip| !first.spec.mesh_ips.contains(ip));
    // Two requests: its status may be written before its spec, where somebody else's write overtook the latter.
    let reassigned = |node: &MeshNode| has(node, "AddressReassigned") && own(node);
    cluster.until_node("n2", "given an address of its own", reassigned).await?;
    ensure!(cluster.mesh_node("n1").await?.is_some_and(|node| node.spec == first.spec), "the holder keeps its address");

    // Another node's key, and no key at all.
    cluster.add_node("n3", 3).await?;
    cluster.until_node("n3", "made", |_| true).await?;
    cluster.publish("n3", &PrivateKey::from_bytes([1; 32]).public_key().to_string(), None).await?;
    let node = cluster.until_node("n3", "refused", |node| reason(node) == Some("DuplicateKey")).await?;
    ensure!(node.spec.admission.message.is_some_and(|message| message.contains("n1")), "it says who holds the key");
    cluster.publish("n3", &PublicKey::from_bytes([0; 32]).to_string(), None).await?;
    cluster.until_node("n3", "refused", |node| reason(node) == Some("InvalidKey")).await?;

    // A key that nobody ever showed, written into the spec by hand.
    cluster.publish("n3", &PrivateKey::from_bytes([3; 32]).public_key().to_string(), None).await?;
    let invented = PublicKey::from_bytes([0; 32]).to_string();
    cluster.patch_mesh_node("n3", json!({ "spec": { "admission": { "publicKey": invented } } })).await?;
    cluster.until_node("n3", "rid of it", |node| node.spec.admission.public_key.is_none()).await?;

    // Another node's pod range, and another node's address, both by the Node.
    let node = json!({ "apiVersion": "v1", "kind": "Node", "metadata": { "name": "n4" }, "spec": { "podCIDRs": ["10.244.1.0/24"], "podCIDR": "10.244.1.0/24" } });
    cluster.create(node).await?;
    cluster.node_address("n4", "192.168.1.1").await?;
    let node = cluster
        .until_node("n4", "in conflict", |node| has(node, "PodCIDRConflict") && has(node, "NodeIPConflict"))
        .await?;
    ensure!(node.spec.node_ips.is_empty(), "a contested node address stays with the incumbent");
    cluster.until_event("Conflict", "n4").await?;

    // Candidates that nobody should send to, beside one that is fine.
    let candidates = ["127.0.0.1:1", "169.254.169.254:80", "224.0.0.1:1", "10.244.1.9:1", "203.0.113.9:21820"];
    let candidates = candidates.map(|address| json!({ "address": address, "kind": "Host" }));
    let status = Patch::Merge(json!({ "status": { "candidates": candidates } }));
    cluster.all::<MeshNode>().patch_status("n2", &PatchParams::default(), &status).await?;
    cluster.until_node("n2", "told which are dropped", |node| has(node, "CandidatesDropped")).await?;
    cluster
        .until("the good one to be listed", || async {
            let slices = cluster.all::<MeshPeerSlice>().list(&Default::default()).await?;
            let entry = slices.items.into_iter().flat_map(|slice| slice.spec.entries).find(|entry| entry.name == "n2");
            let listed = entry.map(|entry| entry.candidates).unwrap_or_default();
            Ok((listed.len() == 1 && listed[0].address == "203.0.113.9:21820").then_some(()))
        })
        .await?;

    // A slice that was written by hand, and a copy of the real one that says something else at the same generation.
    let slices = cluster.all::<MeshPeerSlice>();
    let mut copy = slices.get("peers-0001").await?.spec;
    copy.entries[0].round += 1;
    cluster.apply(json!({ "apiVersion": "warren.dev/v1alpha1", "kind": "MeshPeerSlice", "metadata": { "name": "peers-0002" }, "spec": copy })).await?;
    cluster.apply(json!({ "apiVersion": "warren.dev/v1alpha1", "kind": "MeshPeerSlice", "metadata": { "name": "by-hand" }, "spec": { "count": 0 } })).await?;
    cluster
        .until("the slice by hand to be taken away", || async {
            let gone = slices.get_opt("by-hand").await?.is_none() && slices.get_opt("peers-0002").await?.is_none();
            Ok(gone.then_some(()))
        })
        .await?;
    cluster.until_listed(2).await?;
    for before in [&first, &second] {
        let name = before.metadata.name.as_deref().unwrap_or_default();
        let now = cluster.mesh_node(name).await?;
        let same = now.is_some_and(|now| now.spec.admission.public_key == before.spec.admission.public_key);
        ensure!(same, "{name} keeps its key");
    }
    Ok(())
}

pub async fn a_node_made_again_under_its_name_is_another_node(cluster: &Cluster) -> Result<()> {
    cluster.install_policies().await?;
    let _replica = cluster.operator("a", &[])?;
    cluster.join("n1", 1).await?;
    let old = cluster.join("n2", 2).await?;
    cluster.until_listed(2).await?;

    cluster.all::<Node>().delete("n2", &DeleteParams::default()).await?;
    cluster.add_node("n2", 2).await?;
    let new = cluster.until_node("n2", "another", |node| node.spec.node_uid != old.spec.node_uid).await?;
    ensure!(new.spec.admission.public_key.is_none(), "a new machine has no key yet");
    let stones = cluster
        .until("its tombstone", || async { Ok(Some(cluster.tombstones().await?).filter(|stones| !stones.is_empty())) });
    let stones = stones.await?;
    ensure!(stones.len() == 1 && stones[0].uid == old.spec.node_uid, "found {stones:?}");

    cluster.publish_key("n2", &PrivateKey::from_bytes([22; 32])).await?;
    cluster.until_node("n2", "admitted", |node| reason(node) == Some("KeyAccepted")).await?;
    cluster.until_listed(2).await?;

    // For good, this time.
    cluster.all::<Node>().delete("n2", &DeleteParams::default()).await?;
    cluster.until("n2 to be gone", || async { Ok(cluster.mesh_node("n2").await?.is_none().then_some(())) }).await?;
    cluster.until_listed(1).await?;
    cluster.until_event("PeerRemoved", "n2").await
}

pub async fn relays_follow_the_label(cluster: &Cluster) -> Result<()> {
    let _replica = cluster.operator("a", &[])?;
    let node = cluster.add_node("n1", 1).await?;
    cluster.add_node("n2", 2).await?;
    let external = json!({ "apiVersion": "warren.dev/v1alpha1", "kind": "MeshRelay", "metadata": { "name": "outside" }, "spec": {} });
    cluster.apply(external).await?;
    let label = |value: Option<&str>| json!({ "metadata": { "labels": { "warren.dev/relay": value } } });
    let nodes = cluster.all::<Node>();
    nodes.patch("n1", &PatchParams::default(), &Patch::Merge(&label(Some("true")))).await?;
    let relays = cluster.all::<MeshRelay>();
    let relay = cluster.until("the relay", || async { Ok(relays.get_opt("n1").await?) }).await?;
    ensure!(relay.spec.node_uid == node.metadata.uid, "only a token of this very node may write its status");

    // Its public address is the operator's to say, until an admin does.
    let external = |address: &str| json!({ "status": { "addresses": [{ "type": "ExternalIP", "address": address }] } });
    let addresses = |expected: &'static str| {
        let relays = relays.clone();
        cluster.until("the address of the relay", move || {
            let relays = relays.clone();
            async move { Ok((relays.get("n1").await?.spec.addresses == [expected]).then_some(())) }
        })
    };
    nodes.patch_status("n1", &PatchParams::default(), &Patch::Merge(&external("203.0.113.1"))).await?;
    addresses("203.0.113.1:3478").await?;
    let stun = json!({ "status": { "stun": ["203.0.113.1:3478", "192.168.1.1:4000"] } });
    relays.patch_status("n1", &PatchParams::default(), &Patch::Merge(&stun)).await?;
    addresses("203.0.113.1:4000").await?;
    let chosen = json!({ "spec": { "addresses": ["198.51.100.9:443"] } });
    relays.patch("n1", &PatchParams::default(), &Patch::Merge(&chosen)).await?;
    nodes.patch_status("n1", &PatchParams::default(), &Patch::Merge(&external("203.0.113.99"))).await?;
    nodes.patch("n2", &PatchParams::default(), &Patch::Merge(&label(Some("true")))).await?;
    cluster.until("the other relay", || async { Ok(relays.get_opt("n2").await?) }).await?;
    ensure!(relays.get("n1").await?.spec.addresses == ["198.51.100.9:443"], "an admin's word stands");
    // The zone is kept up beside that, and is an admin's to say too.
    let domain = |expected: &'static str| {
        let relays = relays.clone();
        cluster.until("the failure domain of the relay", move || {
            let relays = relays.clone();
            async move { Ok((relays.get("n1").await?.spec.failure_domain.as_deref() == Some(expected)).then_some(())) }
        })
    };
    let zone = |zone: &str| json!({ "metadata": { "labels": { "topology.kubernetes.io/zone": zone } } });
    nodes.patch("n1", &PatchParams::default(), &Patch::Merge(&zone("east"))).await?;
    domain("east").await?;
    ensure!(relays.get("n1").await?.spec.addresses == ["198.51.100.9:443"], "an admin's word stands");
    let chosen = json!({ "spec": { "failureDomain": "rack-7" } });
    relays.patch("n1", &PatchParams::default(), &Patch::Merge(&chosen)).await?;
    nodes.patch("n1", &PatchParams::default(), &Patch::Merge(&zone("west"))).await?;
    nodes.patch("n2", &PatchParams::default(), &Patch::Merge(&zone("west"))).await?;
    cluster
        .until("the other relay's failure domain", || async {
            Ok((relays.get("n2").await?.spec.failure_domain.as_deref() == Some("west")).then_some(()))
        })
        .await?;
    domain("rack-7").await?;
    nodes.patch("n1", &PatchParams::default(), &Patch::Merge(&label(None))).await?;
    cluster.until("the relay to go", || async { Ok(relays.get_opt("n1").await?.is_none().then_some(())) }).await?;
    ensure!(relays.get_opt("outside").await?.is_some(), "an admin's relay is left alone");
    Ok(())
}

pub async fn a_suspended_node_leaves_the_directory(cluster: &Cluster) -> Result<()> {
    cluster.install_policies().await?;
    let _replica = cluster.operator("a", &[])?;
    cluster.join("n1", 1).await?;
    cluster.join("n2", 2).await?;
    cluster.until_listed(2).await?;
    cluster.patch_mesh_node("n2", json!({ "spec": { "suspended": true } })).await?;
    cluster.until_listed(1).await?;
    ensure!(cluster.tombstones().await?.iter().any(|stone| stone.name == "n2"), "peers are told to drop it");
    ensure!(cluster.mesh_node("n2").await?.is_some_and(|node| node.spec.suspended), "the admin's word stands");
    cluster.patch_mesh_node("n2", json!({ "spec": { "suspended": false } })).await?;
    cluster.until_listed(2).await
}
