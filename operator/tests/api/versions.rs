//! Definitions of another version than the operator's, and none at all.

use crate::cluster::Cluster;
use anyhow::{Context, Result, ensure};
use crds::{Mesh, MeshNode};
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::{CustomResourceDefinition, JSONSchemaProps};
use kube::{
    Api,
    api::{ApiResource, DeleteParams, DynamicObject, PostParams},
};
use serde_json::{Value, json};
use wire::key::PrivateKey;

const TOMORROW: &str = "fieldOfTomorrow";
const KINDS: [&str; 4] = ["meshes", "meshnodes", "meshpeerslices", "meshrelays"];

impl Cluster {
    /// Makes the definition of this kind one that has, or has not, another field in its spec.
    async fn define(&self, plural: &str, newer: bool) -> Result<()> {
        let api = self.all::<CustomResourceDefinition>();
        let mut crd = api.get(&format!("{plural}.warren.dev")).await?;
        let schema = crd.spec.versions[0].schema.as_mut().and_then(|schema| schema.open_api_v3_schema.as_mut());
        let fields = schema.and_then(|schema| schema.properties.as_mut()?.get_mut("spec")?.properties.as_mut());
        let fields = fields.context("a schema with a spec")?;
        if newer {
            let text = JSONSchemaProps { type_: Some("string".into()), ..JSONSchemaProps::default() };
            fields.insert(TOMORROW.into(), text);
        } else {
            fields.remove(TOMORROW);
        }
        api.replace(&crd.metadata.name.clone().unwrap_or_default(), &PostParams::default(), &crd).await?;
        Ok(())
    }

    /// The spec as it is stored, unknown fields too.
    async fn raw_spec<K: kube::Resource<DynamicType = ()>>(&self, name: &str) -> Result<Value> {
        let api: Api<DynamicObject> = Api::all_with(self.client.clone(), &ApiResource::erase::<K>(&()));
        Ok(api.get(name).await?.data["spec"].clone())
    }

    /// Writes the other field as an admin, until the server knows it: it takes a new schema up within seconds.
    async fn write_tomorrow<K>(&self, kind: &str, name: &str) -> Result<()>
    where
        K: kube::Resource<DynamicType = ()>,
    {
        let object = json!({ "apiVersion": "warren.dev/v1alpha1", "kind": kind, "metadata": { "name": name }, "spec": { TOMORROW: "set" } });
        self.until(&format!("{kind} {name} to take the field"), || async {
            self.apply(object.clone()).await?;
            Ok((self.raw_spec::<K>(name).await?[TOMORROW] == "set").then_some(()))
        })
        .await
    }
}

pub async fn fields_of_a_newer_version_outlive_the_operators_writes(cluster: &Cluster) -> Result<()> {
    cluster.install_policies().await?;
    let _replica = cluster.operator("a", &[])?;
    cluster.add_node("n1", 1).await?;
    cluster.publish_key("n1", &PrivateKey::from_bytes([1; 32])).await?;
    cluster.until_listed(1).await?;
    for plural in ["meshes", "meshnodes"] {
        cluster.define(plural, true).await?;
    }
    cluster.write_tomorrow::<Mesh>("Mesh", "default").await?;
    cluster.write_tomorrow::<MeshNode>("MeshNode", "n1").await?;

    // What the operator writes of these objects itself: an address, a key and numbers.
    cluster.node_address("n1", "192.168.1.77").await?;
    let moved = |node: &MeshNode| node.spec.node_ips == ["192.168.1.77"];
    cluster.until_node("n1", "at its new address", moved).await?;
    cluster.publish_key("n1", &PrivateKey::from_bytes([9; 32])).await?;
    let key = PrivateKey::from_bytes([9; 32]).public_key().to_string();
    cluster.until_node("n1", "admitted anew", |node| node.spec.admission.public_key.as_deref() == Some(&key)).await?;
    ensure!(cluster.raw_spec::<MeshNode>("n1").await?[TOMORROW] == "set", "the field of the MeshNode is gone");
    ensure!(cluster.raw_spec::<Mesh>("default").await?[TOMORROW] == "set", "the field of the Mesh is gone");

    // Back to the older definitions: the field is hidden, and that is no news to anybody.
    let before = cluster.slices().await?;
    for plural in ["meshes", "meshnodes"] {
        cluster.define(plural, false).await?;
    }
    cluster
        .until("the older definition", || async {
            Ok(cluster.raw_spec::<MeshNode>("n1").await?.get(TOMORROW).is_none().then_some(()))
        })
        .await?;
    cluster.add_node("n2", 2).await?;
    cluster.until_node("n2", "made", |node| !node.spec.mesh_ips.is_empty()).await?;
    ensure!(cluster.slices().await? == before, "the directory changed");
    Ok(())
}

pub async fn definitions_deleted_under_a_running_operator_come_back_with_everything(cluster: &Cluster) -> Result<()> {
    cluster.install_policies().await?;
    let mut replica = cluster.operator("a", &[])?;
    let names = ["n1", "n2", "n3"];
    for (number, name) in (1u8..).zip(names) {
        cluster.add_node(name, number).await?;
        cluster.publish_key(name, &PrivateKey::from_bytes([number; 32])).await?;
    }
    cluster.until_listed(3).await?;
    let addresses = || async {
        let nodes = cluster.all::<MeshNode>().list(&Default::default()).await?.items;
        let v4 = nodes.into_iter().map(|node| (node.metadata.name, node.spec.mesh_ips.first().cloned()));
        Ok::<_, anyhow::Error>(v4.collect::<Vec<_>>())
    };
    let before = addresses().await?;
    let crds = cluster.all::<CustomResourceDefinition>();
    for plural in KINDS {
        crds.delete(&format!("{plural}.warren.dev"), &DeleteParams::default()).await?;
    }
    cluster
        .until("the kinds to be gone", || async {
            Ok(crds.list(&Default::default()).await?.items.is_empty().then_some(()))
        })
        .await?;
    cluster.install_crds().await?;
    for (number, name) in (1u8..).zip(names) {
        ensure!(!replica.has_ended(), "the operator ended");
        cluster.until_node(name, "made again", |node| !node.spec.mesh_ips.is_empty()).await?;
        cluster.publish_key(name, &PrivateKey::from_bytes([number; 32])).await?;
    }
    cluster.until_listed(3).await?;
    ensure!(addresses().await? == before, "addresses are others: {before:?}, then {:?}", addresses().await?);
    Ok(())
}
