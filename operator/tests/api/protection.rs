//! Keys and the admission policies.

use crate::cluster::{Cluster, NAMESPACE};
use anyhow::{Result, bail, ensure};
use crds::{ConditionStatus, Mesh, MeshNode, MeshPeerSlice, MeshRelay};
use k8s_openapi::api::{
    authentication::v1::TokenRequest,
    core::v1::{Node, Pod, Secret, ServiceAccount},
};
use kube::{
    Api, Client,
    api::{Patch, PatchParams, PostParams},
};
use serde_json::{Value, json};
use wire::key::PrivateKey;

impl Cluster {
    async fn until_mesh(&self, what: &str, test: impl Fn(&Mesh) -> bool) -> Result<Mesh> {
        self.until(what, || async { Ok(self.all::<Mesh>().get_opt("default").await?.filter(&test)) }).await
    }

    async fn until_unprotected(&self) -> Result<String> {
        let mesh =
            self.until_mesh("NodeWritesUnprotected to say what is wrong", |mesh| unprotected(mesh).is_some()).await?;
        Ok(unprotected(&mesh).unwrap_or_default())
    }
}

fn unprotected(mesh: &Mesh) -> Option<String> {
    let conditions = &mesh.status.as_ref()?.conditions;
    let condition = conditions.iter().find(|condition| condition.type_ == "NodeWritesUnprotected")?;
    let holds = condition.status == ConditionStatus::True && condition.message.contains("found:");
    holds.then(|| condition.message.clone())
}

pub async fn no_key_is_admitted_without_the_policies(cluster: &Cluster) -> Result<()> {
    let _replica = cluster.operator("a", &[])?;
    cluster.add_node("n1", 1).await?;
    let message = cluster.until_unprotected().await?;
    ensure!(message.contains("is missing"), "expected it to name what is missing, found: {message}");
    let mesh = cluster.until_mesh("Mesh/default", |_| true).await?;
    ensure!(mesh.status.is_some_and(|status| status.challenge.is_none()), "no challenge before the policies");

    let key = PrivateKey::from_bytes([1; 32]);
    cluster.until_node("n1", "made", |_| true).await?;
    cluster.publish("n1", &key.public_key().to_string(), None).await?;
    cluster.until_node("n1", "told why", |node| reason(node) == Some("NodeWritesUnprotected")).await?;
    cluster.install_policies().await?;
    cluster.publish_key("n1", &key).await?;
    let node = cluster.until_node("n1", "admitted", |node| reason(node) == Some("KeyAccepted")).await?;
    ensure!(node.spec.admission.public_key == Some(key.public_key().to_string()));
    cluster.until_mesh("a Mesh that is Ready", |mesh| unprotected(mesh).is_none()).await?;

    // A proof that somebody else's key answers proves nothing.
    cluster.add_node("n2", 2).await?;
    cluster.publish_key("n2", &PrivateKey::from_bytes([2; 32])).await?;
    let node = cluster.until_node("n2", "admitted", |node| reason(node) == Some("KeyAccepted")).await?;
    let borrowed = PrivateKey::from_bytes([9; 32]).public_key().to_string();
    let proof = node.status.and_then(|status| status.key_proof);
    cluster.publish("n2", &borrowed, proof).await?;
    let node = cluster.until_node("n2", "refused", |node| reason(node) == Some("ProofInvalid")).await?;
    let kept = PrivateKey::from_bytes([2; 32]).public_key().to_string();
    ensure!(node.spec.admission.public_key == Some(kept), "peers keep the admitted key");
    Ok(())
}

fn reason(node: &MeshNode) -> Option<&str> {
    node.spec.admission.reason.as_deref()
}

pub async fn altered_policies_are_noticed(cluster: &Cluster) -> Result<()> {
    cluster.install_policies().await?;
    let _replica = cluster.operator("a", &[])?;
    cluster.add_node("n1", 1).await?;
    cluster.publish_key("n1", &PrivateKey::from_bytes([1; 32])).await?;
    cluster.until_node("n1", "admitted", |node| reason(node) == Some("KeyAccepted")).await?;

    let binding = json!({
        "apiVersion": "admissionregistration.k8s.io/v1",
        "kind": "ValidatingAdmissionPolicyBinding",
        "metadata": { "name": crds::names::AGENT_POLICY },
        "spec": { "policyName": crds::names::AGENT_POLICY, "validationActions": ["Warn"] },
    });
    cluster.apply(binding).await?;
    let message = cluster.until_unprotected().await?;
    ensure!(message.contains("ValidatingAdmissionPolicyBinding warren-agent-writes"), "found: {message}");
    let mesh = cluster.until_mesh("the challenge to be withdrawn", |mesh| {
        mesh.status.as_ref().is_some_and(|status| status.challenge.is_none())
    });
    mesh.await?;
    cluster.add_node("n2", 2).await?;
    cluster.until_node("n2", "made", |_| true).await?;
    cluster.publish("n2", &PrivateKey::from_bytes([2; 32]).public_key().to_string(), None).await?;
    cluster.until_node("n2", "told why", |node| reason(node) == Some("NodeWritesUnprotected")).await?;
    let node = cluster.until_node("n1", "admitted still", |node| reason(node) == Some("KeyAccepted")).await?;
    ensure!(node.spec.admission.public_key.is_some());

    cluster.install_policies().await?;
    cluster.publish_key("n2", &PrivateKey::from_bytes([2; 32])).await?;
    cluster.until_node("n2", "admitted", |node| reason(node) == Some("KeyAccepted")).await?;
    Ok(())
}

/// The policies themselves, with tokens as kubelets hand them out.
pub async fn agents_write_only_their_own_status(cluster: &Cluster) -> Result<()> {
    cluster.install_policies().await?;
    let _replica = cluster.operator("a", &[])?;
    for (number, name) in [(1, "n1"), (2, "n2")] {
        cluster.add_node(name, number).await?;
        cluster.until_node(name, "made", |_| true).await?;
    }
    cluster.grant_agents().await?;
    let own = cluster.agent(Some("n1")).await?;
    let unbound = cluster.agent(None).await?;
    cluster.until_refused("bound to node (none)", || patch(&unbound, "n1", json!({ "round": 1 }))).await?;
    patch(&own, "n1", json!({ "round": 2 })).await?;
    refused(patch(&own, "n2", json!({ "round": 2 })).await, "bound to node n1, not to n2")?;
    refused(patch(&unbound, "n1", json!({ "round": 3 })).await, "bound to node (none)")?;

    // What rides along beside the status has no effect.
    let before = cluster.mesh_node("n1").await?.map(|node| (node.spec, node.metadata.labels));
    let api: Api<MeshNode> = Api::all(own.clone());
    let body = json!({
        "metadata": { "labels": { "mine": "yes" } },
        "spec": { "meshIPs": ["10.118.9.9"], "suspended": true },
        "status": { "round": 4 },
    });
    api.patch_status("n1", &PatchParams::default(), &Patch::Merge(&body)).await?;
    let node =
        cluster.until_node("n1", "in round 4", |node| node.status.as_ref().is_some_and(|s| s.round == 4)).await?;
    ensure!(before == Some((node.spec, node.metadata.labels)), "spec and labels stand");
    let spec = json!({ "spec": { "suspended": true } });
    forbidden(api.patch("n1", &PatchParams::default(), &Patch::Merge(&spec)).await, "the spec of its MeshNode")?;

    // Nothing else is an agent's either.
    let slice = json!({ "apiVersion": "warren.dev/v1alpha1", "kind": "MeshPeerSlice", "metadata": { "name": "peers-0099" }, "spec": { "count": 0 } });
    let slices: Api<MeshPeerSlice> = Api::all(own.clone());
    forbidden(slices.create(&PostParams::default(), &serde_json::from_value(slice.clone())?).await, "a slice")?;
    cluster.create(slice).await?;
    let tombstones = json!({ "spec": { "count": 7 } });
    forbidden(slices.patch("peers-0099", &PatchParams::default(), &Patch::Merge(&tombstones)).await, "a slice")?;
    let container = json!({ "name": "c", "image": "none" });
    let pod = json!({ "metadata": { "name": "p" }, "spec": { "containers": [container] } });
    let pods: Api<Pod> = Api::namespaced(own.clone(), NAMESPACE);
    forbidden(pods.create(&PostParams::default(), &serde_json::from_value(pod)?).await, "a Pod")?;
    let secrets: Api<Secret> = Api::namespaced(own.clone(), NAMESPACE);
    let secret = serde_json::from_value(json!({ "metadata": { "name": "s" } }))?;
    forbidden(secrets.create(&PostParams::default(), &secret).await, "a Secret")?;
    forbidden(secrets.list(&Default::default()).await, "Secrets")?;
    forbidden(Api::<Node>::all(own).list(&Default::default()).await, "Nodes")
}

/// The same for relays.
pub async fn relays_write_only_their_own_status(cluster: &Cluster) -> Result<()> {
    cluster.install_policies().await?;
    let _replica = cluster.operator("a", &[])?;
    let label = json!({ "metadata": { "labels": { crds::names::RELAY_LABEL: "true" } } });
    for (number, name) in [(1, "n1"), (2, "n2")] {
        cluster.add_node(name, number).await?;
        cluster.all::<Node>().patch(name, &PatchParams::default(), &Patch::Merge(&label)).await?;
    }
    let relays = cluster.all::<MeshRelay>();
    for name in ["n1", "n2"] {
        cluster.until("the relays", || async { Ok(relays.get_opt(name).await?) }).await?;
    }
    cluster.grant("warren-relay", "meshrelays/status").await?;
    let own = cluster.token_of("warren-relay", Some("n1")).await?;
    let unbound = cluster.token_of("warren-relay", None).await?;
    let stun = |address: &str| Patch::Merge(json!({ "status": { "stun": [address] } }));
    let write = |client: &Client, name: &'static str| {
        let api: Api<MeshRelay> = Api::all(client.clone());
        async move { api.patch_status(name, &PatchParams::default(), &stun("203.0.113.7:3478")).await }
    };
    cluster.until_refused("bound to node (none)", || write(&unbound, "n1")).await?;
    write(&own, "n1").await?;
    refused(write(&own, "n2").await, "bound to node n1, not to n2")?;
    refused(write(&unbound, "n1").await, "bound to node (none)")?;
    let theirs = relays.get("n2").await?.status.map(|status| status.stun).unwrap_or_default();
    ensure!(theirs.is_empty(), "another relay's status stands");
    let api: Api<MeshRelay> = Api::all(own);
    let spec = Patch::Merge(json!({ "spec": { "addresses": ["203.0.113.9:1"] } }));
    forbidden(api.patch("n1", &PatchParams::default(), &spec).await, "the spec of its MeshRelay")
}

/// A policy that was altered for a moment may have let a key in: the challenge that was open then is void.
pub async fn a_policy_altered_for_a_moment_voids_the_challenge(cluster: &Cluster) -> Result<()> {
    cluster.install_policies().await?;
    let _replica = cluster.operator("a", &[])?;
    cluster.add_node("n1", 1).await?;
    cluster.publish_key("n1", &PrivateKey::from_bytes([1; 32])).await?;
    cluster.until_node("n1", "admitted", |node| reason(node) == Some("KeyAccepted")).await?;
    let challenge = |mesh: &Mesh| mesh.status.as_ref().and_then(|status| status.challenge.clone());
    let before = challenge(&cluster.until_mesh("a challenge", |mesh| challenge(mesh).is_some()).await?);
    cluster
        .apply(json!({
            "apiVersion": "admissionregistration.k8s.io/v1",
            "kind": "ValidatingAdmissionPolicyBinding",
            "metadata": { "name": crds::names::AGENT_POLICY },
            "spec": { "policyName": crds::names::AGENT_POLICY, "validationActions": ["Warn"] },
        }))
        .await?;
    cluster.install_policies().await?;
    cluster
        .until_mesh("another challenge", |mesh| challenge(mesh).is_some() && challenge(mesh) != before)
        .await
        .map(|_| ())
}

fn forbidden<T>(result: kube::Result<T>, what: &str) -> Result<()> {
    match result {
        Err(kube::Error::Api(status)) if status.code == 403 => Ok(()),
        Err(error) => bail!("{what}: expected it to be forbidden, found: {error}"),
        Ok(_) => bail!("{what}: expected it to be forbidden"),
    }
}

async fn patch(client: &Client, name: &str, status: Value) -> kube::Result<MeshNode> {
    let api: Api<MeshNode> = Api::all(client.clone());
    api.patch_status(name, &PatchParams::default(), &Patch::Merge(&json!({ "status": status }))).await
}

fn refused<T>(result: kube::Result<T>, with: &str) -> Result<()> {
    match result {
        Ok(_) => bail!("expected a refusal that says {with:?}"),
        Err(error) if error.to_string().contains(with) => Ok(()),
        Err(error) => bail!("expected a refusal that says {with:?}, found: {error}"),
    }
}

impl Cluster {
    /// Waits until a policy refuses a write and `says` why: it acts a moment after it was made. So does a role, and until then
    /// the same write is refused for want of it.
    pub async fn until_refused<T, F>(&self, says: &str, write: impl Fn() -> F) -> Result<()>
    where
        F: Future<Output = kube::Result<T>>,
    {
        self.until(&format!("a refusal that says {says:?}"), async || Ok(refused(write().await, says).ok())).await
    }

    async fn grant_agents(&self) -> Result<()> {
        self.grant("warren-agent", "meshnodes/status").await
    }

    /// Lets a service account patch what the chart lets it patch.
    async fn grant(&self, account: &str, resource: &str) -> Result<()> {
        self.grant_in("warren.dev", account, &[resource]).await
    }

    pub async fn grant_in(&self, group: &str, account: &str, resources: &[&str]) -> Result<()> {
        let name = json!({ "name": account, "namespace": NAMESPACE });
        let accounts: Api<ServiceAccount> = Api::namespaced(self.client.clone(), NAMESPACE);
        let created = serde_json::from_value(json!({ "metadata": name }))?;
        if let Err(error) = accounts.create(&PostParams::default(), &created).await {
            ensure!(error.to_string().contains("already exists"), "{error}");
        }
        let rules = json!([{ "apiGroups": [group], "resources": resources, "verbs": ["patch"] }]);
        let role = json!({ "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRole", "metadata": { "name": account }, "rules": rules });
        self.apply(role).await?;
        self.apply(json!({
            "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRoleBinding", "metadata": { "name": account },
            "roleRef": { "apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": account },
            "subjects": [{ "kind": "ServiceAccount", "name": account, "namespace": NAMESPACE }],
        }))
        .await?;
        Ok(())
    }

    async fn agent(&self, node: Option<&str>) -> Result<Client> {
        self.token_of("warren-agent", node).await
    }

    /// A client with the account's token on `node`, or with one that is bound to no node.
    pub async fn token_of(&self, account: &str, node: Option<&str>) -> Result<Client> {
        let mut spec = json!({ "audiences": [], "expirationSeconds": 3600 });
        if let Some(name) = node {
            let uid = self.all::<Node>().get(name).await?.metadata.uid;
            spec["boundObjectRef"] = json!({ "kind": "Node", "apiVersion": "v1", "name": name, "uid": uid });
        }
        let accounts: Api<ServiceAccount> = Api::namespaced(self.client.clone(), NAMESPACE);
        let request: TokenRequest = serde_json::from_value(json!({ "spec": spec }))?;
        let answer = accounts.create_token_request(account, &PostParams::default(), &request).await?;
        let token = answer.status.and_then(|status| status.token).unwrap_or_default();
        let text = std::fs::read_to_string(&self.parts.kubeconfig)?.replace(crate::parts::ADMIN_TOKEN, &token);
        let path = self.parts.dir.join(format!("{account}.kubeconfig"));
        std::fs::write(&path, text)?;
        operator::client::connect(Some(&path)).await
    }
}
