//! Two replicas, one writer.

use crate::{cluster::Cluster, parts::Process};
use anyhow::{Context, Result, ensure};
use crds::{Mesh, MeshNode, MeshPeerSlice, MeshRelay};
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::api::DeleteParams;
use operator::lease::{LEASE_DURATION, RENEW_DEADLINE};
use serde_json::json;
use std::{
    io::{Read, Write},
    os::unix::net::UnixStream,
    time::Duration,
};
use wire::key::PrivateKey;

impl Cluster {
    /// The sum of a metric's samples in a running replica.
    pub fn metric(&self, replica: &str, prefix: &str, with: &str) -> Result<f64> {
        let mut stream = UnixStream::connect(self.parts.dir.join(format!("{replica}.sock")))?;
        write!(stream, "GET /metrics HTTP/1.0\r\n\r\n")?;
        let mut text = String::new();
        stream.read_to_string(&mut text)?;
        let samples = text.lines().filter(|line| line.starts_with(prefix) && line.contains(with));
        samples.map(|line| line.rsplit(' ').next().unwrap_or_default().parse::<f64>().context("a number")).sum()
    }

    fn writes(&self, replica: &str) -> Result<f64> {
        self.metric(replica, "warren_operator_writes_total", "result=\"ok\"")
    }

    /// Nodes with admitted keys, and the settled directory.
    async fn settle(&self, names: &[&str]) -> Result<()> {
        for (number, name) in (1u8..).zip(names) {
            self.add_node(name, number).await?;
            self.publish_key(name, &PrivateKey::from_bytes([number; 32])).await?;
        }
        for name in names {
            self.until_node(name, "admitted", |node| node.spec.admission.public_key.is_some()).await?;
        }
        self.until_listed(names.len()).await?;
        self.until_reported(names.len()).await
    }

    pub async fn until_listed(&self, count: usize) -> Result<()> {
        self.until(&format!("{count} peers in the slices"), || async {
            let slices = self.all::<MeshPeerSlice>().list(&Default::default()).await?;
            let listed: usize = slices.items.iter().map(|slice| slice.spec.entries.len()).sum();
            Ok((listed == count).then_some(()))
        })
        .await
    }

    /// The last thing that the operator writes: `Mesh.status`.
    async fn until_reported(&self, count: usize) -> Result<()> {
        self.until(&format!("{count} accepted nodes in Mesh.status"), || async {
            let mesh = self.all::<Mesh>().get_opt("default").await?;
            let accepted = mesh.and_then(|mesh| mesh.status).map(|status| status.nodes.accepted);
            Ok((accepted == u32::try_from(count).ok()).then_some(()))
        })
        .await
    }

    async fn until_ready(&self, replica: &str) -> Result<()> {
        let socket = self.parts.dir.join(format!("{replica}.sock"));
        self.until(&format!("{replica} to be ready"), || async {
            let socket = socket.clone();
            let probe = move || operator::server::probe(&socket, operator::args::ProbeKind::Ready);
            Ok(tokio::task::spawn_blocking(probe).await?.ok())
        })
        .await
    }
}

pub async fn it_waits_for_definitions_and_then_serves(cluster: &Cluster) -> Result<()> {
    for name in ["meshes", "meshnodes", "meshpeerslices", "meshrelays"] {
        let crds = cluster.all::<CustomResourceDefinition>();
        crds.delete(&format!("{name}.warren.dev"), &DeleteParams::default()).await?;
    }
    cluster
        .until("the kinds to be gone", || async {
            let left = cluster.all::<CustomResourceDefinition>().list(&Default::default()).await?;
            Ok(left.items.is_empty().then_some(()))
        })
        .await?;
    let mut replica = cluster.operator("a", &["--mesh-defaults", r#"{"serviceCIDRs":["10.96.0.0/12"]}"#])?;
    cluster.until_held_by("a").await?;
    ensure!(!replica.has_ended(), "it must wait for its kinds, not end");
    cluster.install_crds().await?;
    cluster.until_ready("a").await?;
    let mesh = cluster.until("Mesh/default", || async { Ok(cluster.all::<Mesh>().get_opt("default").await?) }).await?;
    ensure!(mesh.spec.service_cidrs == ["10.96.0.0/12"], "the given defaults are in the Mesh");
    ensure!(mesh.spec.addresses.ipv6.is_some_and(|range| range.starts_with("fd")), "a unique local range was drawn");
    let resident = replica.resident_kib().context("resident memory")?;
    println!("  resident memory of a debug build: {} MiB", resident / 1024);
    Ok(())
}

pub async fn one_of_two_replicas_writes_and_the_other_takes_over(cluster: &Cluster) -> Result<()> {
    cluster.install_policies().await?;
    let first = cluster.operator("a", &[])?;
    cluster.until_held_by("a").await?;
    let second = cluster.operator("b", &[])?;
    cluster.until_ready("b").await?;
    cluster.settle(&["n1", "n2", "n3"]).await?;
    ensure!(cluster.writes("b")? == 0.0, "the follower writes nothing");
    cluster.until_calm().await?;
    let challenge = cluster.challenge().await?;
    let before = (cluster.slices().await?, cluster.versions().await?, challenge);

    let holder = cluster.holder().await?;
    drop(first); // SIGKILL
    cluster.until_held_by("b").await?;
    ensure!(cluster.holder().await? != holder, "another replica holds the lease");
    // It takes the challenge over before anything else, which shows that it has planned and written.
    cluster.until_challenged_anew(before.2.as_deref()).await?;
    ensure!(cluster.slices().await? == before.0, "a fail-over leaves every slice byte for byte as it was");
    let untouched = |versions: &std::collections::BTreeMap<String, String>| {
        versions
            .iter()
            .filter(|(name, _)| !name.starts_with("Mesh/"))
            .map(|(n, v)| (n.clone(), v.clone()))
            .collect::<Vec<_>>()
    };
    ensure!(untouched(&cluster.versions().await?) == untouched(&before.1), "it writes nothing but Mesh.status");
    cluster.add_node("n4", 4).await?;
    cluster.publish_key("n4", &PrivateKey::from_bytes([4; 32])).await?;
    cluster.until_listed(4).await?;
    let after = cluster.versions().await?;
    let touched: Vec<_> = before.1.iter().filter(|(name, version)| after.get(*name) != Some(version)).collect();
    let allowed = |name: &str| name.starts_with("Mesh/") || name.starts_with("MeshPeerSlice/");
    ensure!(touched.iter().all(|(name, _)| allowed(name)), "a fail-over rewrites no node: {touched:?}");
    let peers = cluster.all::<MeshPeerSlice>().list(&Default::default()).await?;
    let entries: Vec<_> = peers.items.into_iter().flat_map(|slice| slice.spec.entries).collect();
    let kept = entries.iter().filter(|entry| before.0.values().any(|slice| slice.contains(&entry.public_key)));
    ensure!(kept.count() == 3, "the three nodes are still listed");

    second.signal(libc::SIGTERM);
    cluster.until("the lease to be released", || async { Ok(cluster.holder().await?.is_none().then_some(())) }).await
}

pub async fn replicas_that_slept_past_the_lease_leave_one_writer(cluster: &Cluster) -> Result<()> {
    cluster.install_policies().await?;
    let first = cluster.operator("a", &[])?;
    cluster.until_held_by("a").await?;
    let second = cluster.operator("b", &[])?;
    cluster.until_ready("b").await?;
    cluster.settle(&["n1", "n2"]).await?;
    let before = cluster.slices().await?;

    // The leader alone sleeps: the other takes over, and the sleeper writes nothing when it wakes up to a change.
    let sleeper = cluster.writes("a")?;
    first.signal(libc::SIGSTOP);
    cluster.until_held_by("b").await?;
    cluster.add_node("n3", 3).await?;
    cluster.until_node("n3", "made", |node| !node.spec.mesh_ips.is_empty()).await?;
    first.signal(libc::SIGCONT);
    cluster.until_planned("a", 3).await?;
    cluster.add_node("n4", 4).await?;
    cluster.until_node("n4", "made", |node| !node.spec.mesh_ips.is_empty()).await?;
    cluster.until_planned("a", 4).await?;
    ensure!(cluster.writes("a")? == sleeper, "a leader that slept past its lease writes nothing");

    // Both sleep past the lease and wake up together.
    let both: [&Process; 2] = [&first, &second];
    both.iter().for_each(|replica| replica.signal(libc::SIGSTOP));
    tokio::time::sleep(LEASE_DURATION + Duration::from_secs(1)).await;
    both.iter().for_each(|replica| replica.signal(libc::SIGCONT));
    cluster
        .until("exactly one leader", || async {
            let held = |replica| cluster.metric(replica, "warren_operator_lease_held", "");
            Ok((held("a")? + held("b")? == 1.0).then_some(()))
        })
        .await?;
    cluster.add_node("n5", 5).await?;
    cluster.until_node("n5", "made", |node| !node.spec.mesh_ips.is_empty()).await?;
    ensure!(cluster.slices().await? == before, "the slices are byte-identical through all of it");
    let nodes = cluster.all::<MeshNode>().list(&Default::default()).await?;
    let addresses: std::collections::BTreeSet<_> = nodes.items.iter().flat_map(|node| &node.spec.mesh_ips).collect();
    ensure!(addresses.len() == 10, "five nodes have ten addresses, all different: {addresses:?}");
    Ok(())
}

pub async fn a_leader_that_slept_alone_makes_up_for_what_it_missed(cluster: &Cluster) -> Result<()> {
    cluster.install_policies().await?;
    let replica = cluster.operator("a", &[])?;
    cluster.until_held_by("a").await?;
    cluster.settle(&["n1"]).await?;
    let challenge = cluster.challenge().await?;
    replica.signal(libc::SIGSTOP);
    cluster.add_node("n2", 2).await?;
    tokio::time::sleep(RENEW_DEADLINE + Duration::from_secs(1)).await;
    replica.signal(libc::SIGCONT);
    cluster.until_node("n2", "made", |node| !node.spec.mesh_ips.is_empty()).await?;
    // A term that ran out has ended: keys are asked for anew, not with a challenge whose other half is gone.
    cluster.until_challenged_anew(challenge.as_deref()).await
}

pub async fn nothing_is_written_when_nothing_changed(cluster: &Cluster) -> Result<()> {
    cluster.install_policies().await?;
    let _first = cluster.operator("a", &[])?;
    let _second = cluster.operator("b", &[])?;
    cluster.settle(&["n1", "n2"]).await?;
    cluster.until_calm().await?;
    let before = cluster.versions().await?;
    // What a kubelet and an admin do all day, then a change that shows that all of it has been seen.
    for n in 0..20 {
        let patch = json!({ "metadata": { "annotations": { "heartbeat": n.to_string() } } });
        cluster.apply_merge_node("n1", patch).await?;
    }
    cluster.apply_merge_node("n2", json!({ "metadata": { "labels": { "warren.dev/relay": "true" } } })).await?;
    cluster.until("the relay", || async { Ok(cluster.all::<MeshRelay>().get_opt("n2").await?) }).await?;
    let mut after = cluster.versions().await?;
    after.remove("MeshRelay/n2");
    ensure!(before == after, "expected the same versions, found {before:?} and then {after:?}");
    Ok(())
}

impl Cluster {
    async fn apply_merge_node(&self, name: &str, patch: serde_json::Value) -> Result<()> {
        use kube::api::{Patch, PatchParams};
        let nodes = self.all::<k8s_openapi::api::core::v1::Node>();
        nodes.patch(name, &PatchParams::default(), &Patch::Merge(&patch)).await?;
        Ok(())
    }

    async fn challenge(&self) -> Result<Option<String>> {
        let mesh = self.all::<Mesh>().get_opt("default").await?;
        Ok(mesh.and_then(|mesh| mesh.status?.challenge))
    }

    /// Waits until the next leader has put its own challenge in the place of `former`.
    async fn until_challenged_anew(&self, former: Option<&str>) -> Result<()> {
        self.until("a challenge of the new leader", || async {
            let present = self.challenge().await?;
            Ok((present.is_some() && present.as_deref() != former).then_some(()))
        })
        .await
    }

    /// Waits until a replica has planned for `count` nodes.
    async fn until_planned(&self, replica: &str, count: u32) -> Result<()> {
        let planned = || self.metric(replica, "warren_mesh_nodes{", "");
        let what = format!("{replica} to plan for {count} nodes");
        self.until(&what, || async { Ok((planned()? == f64::from(count)).then_some(())) }).await
    }

    /// Waits until both the numbers in `Mesh.status` and the conditions of the nodes have been written.
    async fn until_calm(&self) -> Result<()> {
        self.until("every node to have its condition", || async {
            let nodes = self.all::<MeshNode>().list(&Default::default()).await?;
            let told = |node: &MeshNode| {
                let conditions = node.status.as_ref().map(|status| &status.conditions);
                let current = |c: &crds::Condition| c.observed_generation == node.metadata.generation;
                conditions.is_some_and(|list| {
                    list.iter().any(|c| c.type_ == "Admitted" && c.reason == "KeyAccepted") && list.iter().all(current)
                })
            };
            Ok(nodes.items.iter().all(told).then_some(()))
        })
        .await
    }
}
