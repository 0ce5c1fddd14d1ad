//! What scenarios do to the cluster and what they wait for.

use crate::parts::{Parts, Process};
use anyhow::{Context, Result, bail};
use crds::{Mesh, MeshNode, MeshPeerSlice, MeshRelay};
use k8s_openapi::{
    api::{
        admissionregistration::v1::{ValidatingAdmissionPolicy, ValidatingAdmissionPolicyBinding},
        coordination::v1::Lease,
        core::v1::{Namespace, Node},
        events::v1::Event,
    },
    apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition,
};
use kube::{
    Api, Client, Resource, ResourceExt,
    api::{DeleteParams, DynamicObject, ListParams, Patch, PatchParams, PostParams},
    core::{ApiResource, DynamicResourceScope, GroupVersionKind},
};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use std::{
    collections::BTreeMap,
    fmt::Debug,
    path::Path,
    process::Command,
    time::{Duration, Instant},
};
use wire::{key::PrivateKey, proof::key_proof};

pub const NAMESPACE: &str = "warren-system";
/// Everything waited for happens within seconds; a minute is for a machine that does other things too.
const PATIENCE: Duration = Duration::from_secs(60);
const POLL: Duration = Duration::from_millis(50);

pub struct Cluster {
    pub client: Client,
    pub parts: Parts,
}

impl Cluster {
    pub async fn start(binaries: &Path) -> Result<Self> {
        let mut parts = Parts::start(binaries)?;
        let deadline = Instant::now() + PATIENCE;
        let client = loop {
            let client = operator::client::connect(Some(&parts.kubeconfig)).await?;
            match Api::<Namespace>::all(client.clone()).list(&ListParams::default()).await {
                Ok(_) => break client,
                Err(_) if Instant::now() < deadline && !parts.apiserver.has_ended() => tokio::time::sleep(POLL).await,
                Err(error) => bail!("the API server did not come up: {error}; it said: {}", parts.last_words()),
            }
        };
        let cluster = Self { client, parts };
        let namespace = json!({ "metadata": { "name": NAMESPACE } });
        let namespaces: Api<Namespace> = Api::all(cluster.client.clone());
        namespaces.create(&PostParams::default(), &serde_json::from_value(namespace)?).await?;
        Ok(cluster)
    }

    pub async fn install_crds(&self) -> Result<()> {
        let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("../crds/generated");
        for entry in std::fs::read_dir(&dir).with_context(|| format!("read {}", dir.display()))? {
            let text = std::fs::read_to_string(entry?.path())?;
            let crd: CustomResourceDefinition = serde_saphyr::from_str(&text)?;
            self.all::<CustomResourceDefinition>().create(&PostParams::default(), &crd).await?;
        }
        self.until("the kinds to be served", || async {
            let listed = self.all::<Mesh>().list(&ListParams::default()).await.is_ok()
                && self.all::<MeshNode>().list(&ListParams::default()).await.is_ok()
                && self.all::<MeshPeerSlice>().list(&ListParams::default()).await.is_ok()
                && self.all::<MeshRelay>().list(&ListParams::default()).await.is_ok();
            Ok(listed.then_some(()))
        })
        .await
    }

    pub async fn install_policies(&self) -> Result<()> {
        for text in operator::protection::ACCEPTED {
            let values: Vec<Value> = serde_saphyr::from_multiple(&text.replace("__NAMESPACE__", NAMESPACE))?;
            for value in values {
                self.apply(value).await?;
            }
        }
        Ok(())
    }

    pub async fn remove_policies(&self) -> Result<()> {
        self.delete_all::<ValidatingAdmissionPolicyBinding>().await?;
        self.delete_all::<ValidatingAdmissionPolicy>().await
    }

    /// Makes the cluster as it was after [`Self::install_crds`].
    pub async fn reset(&self) -> Result<()> {
        self.remove_policies().await?;
        self.delete_all::<Node>().await?;
        self.delete_all::<MeshNode>().await?;
        self.delete_all::<MeshPeerSlice>().await?;
        self.delete_all::<MeshRelay>().await?;
        self.delete_all::<Mesh>().await?;
        let leases: Api<Lease> = Api::namespaced(self.client.clone(), NAMESPACE);
        leases.delete_collection(&DeleteParams::default(), &ListParams::default()).await?;
        let events: Api<Event> = Api::namespaced(self.client.clone(), "default");
        events.delete_collection(&DeleteParams::default(), &ListParams::default()).await?;
        Ok(())
    }

    async fn delete_all<K>(&self) -> Result<()>
    where
        K: Resource<DynamicType = ()> + Clone + DeserializeOwned + Debug,
    {
        self.all::<K>().delete_collection(&DeleteParams::default(), &ListParams::default()).await?;
        Ok(())
    }

    pub fn all<K: Resource<DynamicType = ()>>(&self) -> Api<K> {
        Api::all(self.client.clone())
    }

    pub fn operator(&self, name: &str, more: &[&str]) -> Result<Process> {
        let mut command = Command::new(env!("CARGO_BIN_EXE_warren-operator"));
        command.arg("--kubeconfig").arg(&self.parts.kubeconfig).args(["--namespace", NAMESPACE, "--identity", name]);
        command
            .arg("--health-socket")
            .arg(self.parts.dir.join(format!("{name}.sock")))
            .args(["--metrics-listen", "none"]);
        // Where it matters, the scenario says otherwise.
        command.env("WARREN_RELAY_PLACEMENT", "label");
        command.env("WARREN_LOG", "info,operator=debug").args(more);
        Process::spawn(command, &self.parts.dir.join(format!("{name}.log")))
    }

    /// Applies any object as an admin would.
    pub async fn apply(&self, value: Value) -> Result<DynamicObject> {
        let (api, name) = self.dynamic(&value)?;
        Ok(api.patch(&name, &PatchParams::apply("test").force(), &Patch::Apply(&value)).await?)
    }

    pub async fn create(&self, value: Value) -> kube::Result<DynamicObject> {
        let (api, _) = self.dynamic(&value).map_err(|error| kube::Error::Service(error.into()))?;
        let object = serde_json::from_value(value).map_err(kube::Error::SerdeError)?;
        api.create(&PostParams::default(), &object).await
    }

    fn dynamic(&self, value: &Value) -> Result<(Api<DynamicObject>, String)> {
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let (group, version) = match value["apiVersion"].as_str().unwrap_or_default().split_once('/') {
            Some((group, version)) => (group.to_owned(), version.to_owned()),
            None => (String::new(), text(&value["apiVersion"])),
        };
        let gvk = GroupVersionKind { group, version, kind: text(&value["kind"]) };
        let resource = ApiResource::from_gvk(&gvk);
        Ok((all_with(&self.client, &resource), text(&value["metadata"]["name"])))
    }

    pub async fn add_node(&self, name: &str, number: u8) -> Result<Node> {
        let node = json!({
            "apiVersion": "v1", "kind": "Node",
            "metadata": { "name": name },
            "spec": { "podCIDRs": [format!("10.244.{number}.0/24")], "podCIDR": format!("10.244.{number}.0/24") },
        });
        self.create(node).await?;
        self.node_address(name, &format!("192.168.1.{number}")).await
    }

    pub async fn node_address(&self, name: &str, address: &str) -> Result<Node> {
        let status = json!({ "status": { "addresses": [{ "type": "InternalIP", "address": address }] } });
        Ok(self.all::<Node>().patch_status(name, &PatchParams::default(), &Patch::Merge(&status)).await?)
    }

    pub async fn mesh_node(&self, name: &str) -> Result<Option<MeshNode>> {
        Ok(self.all::<MeshNode>().get_opt(name).await?)
    }

    pub async fn patch_mesh_node(&self, name: &str, patch: Value) -> Result<MeshNode> {
        Ok(self.all::<MeshNode>().patch(name, &PatchParams::default(), &Patch::Merge(&patch)).await?)
    }

    /// Does what an agent does: publishes a key and answers the challenge that stands in the Mesh.
    pub async fn publish_key(&self, name: &str, key: &PrivateKey) -> Result<()> {
        let mesh = self
            .until("a challenge", || async {
                let mesh = self.all::<Mesh>().get_opt("default").await?;
                Ok(mesh.and_then(|mesh| mesh.status).filter(|status| status.challenge.is_some()))
            })
            .await?;
        let node = self.until(&format!("MeshNode {name}"), || self.mesh_node(name)).await?;
        let theirs = mesh.proof_key.context("a proof key")?.parse()?;
        let shared = key.diffie_hellman(&theirs)?;
        let challenge = mesh.challenge.unwrap_or_default();
        let proof = key_proof(&shared, challenge.as_bytes(), &node.spec.node_uid, &key.public_key());
        self.publish(name, &key.public_key().to_string(), Some(proof.to_string())).await
    }

    pub async fn publish(&self, name: &str, key: &str, proof: Option<String>) -> Result<()> {
        let mut status = json!({ "publicKey": key, "listenPort": 21820, "round": 1 });
        status["candidates"] = json!([{ "address": "198.51.100.7:21820", "kind": "Host" }]);
        if let Some(proof) = proof {
            status["keyProof"] = json!(proof);
        }
        let body = json!({ "apiVersion": "warren.dev/v1alpha1", "kind": "MeshNode", "status": status });
        let params = PatchParams::apply("warren-agent").force();
        self.all::<MeshNode>().patch_status(name, &params, &Patch::Apply(&body)).await?;
        Ok(())
    }

    /// Waits until `probe` finds something.
    pub async fn until<T, F: Future<Output = Result<Option<T>>>>(
        &self,
        what: &str,
        probe: impl Fn() -> F,
    ) -> Result<T> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            match probe().await {
                Ok(Some(found)) => return Ok(found),
                Err(error) if Instant::now() >= deadline => return Err(error.context(format!("waiting for {what}"))),
                _ if Instant::now() >= deadline => bail!("waited for {what} in vain"),
                _ => tokio::time::sleep(POLL).await,
            }
        }
    }

    pub async fn until_node(&self, name: &str, what: &str, test: impl Fn(&MeshNode) -> bool) -> Result<MeshNode> {
        self.until(&format!("MeshNode {name} to be {what}"), || async { Ok(self.mesh_node(name).await?.filter(&test)) })
            .await
    }

    pub async fn holder(&self) -> Result<Option<String>> {
        let leases: Api<Lease> = Api::namespaced(self.client.clone(), NAMESPACE);
        let lease = leases.get_opt("warren-operator").await?;
        Ok(lease.and_then(|lease| lease.spec?.holder_identity).filter(|holder| !holder.is_empty()))
    }

    pub async fn until_held_by(&self, name: &str) -> Result<()> {
        self.until(&format!("the lease to be held by {name}"), || async {
            Ok(self.holder().await?.filter(|holder| holder.starts_with(name)).map(|_| ()))
        })
        .await
    }

    /// `kind/name` to `resourceVersion`, of everything the operator writes.
    pub async fn versions(&self) -> Result<BTreeMap<String, String>> {
        let mut versions = BTreeMap::new();
        self.collect::<Mesh>(&mut versions).await?;
        self.collect::<MeshNode>(&mut versions).await?;
        self.collect::<MeshPeerSlice>(&mut versions).await?;
        self.collect::<MeshRelay>(&mut versions).await?;
        Ok(versions)
    }

    async fn collect<K>(&self, versions: &mut BTreeMap<String, String>) -> Result<()>
    where
        K: Resource<DynamicType = ()> + Clone + DeserializeOwned + Debug,
    {
        for object in self.all::<K>().list(&ListParams::default()).await? {
            versions.insert(
                format!("{}/{}", K::kind(&()), object.name_any()),
                object.resource_version().unwrap_or_default(),
            );
        }
        Ok(())
    }

    /// The slices as the API server stores them, without metadata.
    pub async fn slices(&self) -> Result<BTreeMap<String, String>> {
        let slices = self.all::<MeshPeerSlice>().list(&ListParams::default()).await?;
        slices.into_iter().map(|slice| Ok((slice.name_any(), serde_json::to_string(&slice.spec)?))).collect()
    }
}

fn all_with<K: Resource<Scope = DynamicResourceScope>>(client: &Client, resource: &K::DynamicType) -> Api<K> {
    Api::all_with(client.clone(), resource)
}
