//! Asks the API server itself before something follows from an absence or from the policies as they were seen.
//!
//! Watches may lag behind, each by its own time, and a list may come from an API server that lags. So before a node is retired
//! or loses its place, its Node or `MeshNode` is looked for; and before a new key is admitted, the policies must be the ones
//! that were seen: whoever wrote a key while they were altered did so before this read, which therefore shows another
//! generation.

use crate::{
    index::{Change, Cluster, Kind, Stored, Update, Watched},
    lease::WRITE_TIMEOUT,
    protection::Seal,
};
use crds::MeshNode;
use futures::{StreamExt, stream};
use k8s_openapi::api::{
    admissionregistration::v1::{ValidatingAdmissionPolicy, ValidatingAdmissionPolicyBinding},
    core::v1::Node,
};
use kube::{
    Api, Client,
    api::DynamicObject,
    core::{ApiResource, PartialObjectMeta},
};
use std::collections::BTreeSet;
use topology::cluster::{ClusterView, EventReason, Plan};

/// Requests at once.
const CONCURRENCY: usize = 8;

/// An object that the plan takes to be gone.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Absence {
    kind: Kind,
    name: String,
}

impl Absence {
    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }
}

/// What a plan concludes from the absence of objects.
pub fn absences(cluster: &Cluster, view: &ClusterView, plan: &Plan) -> BTreeSet<Absence> {
    let nodes = plan.retire.iter().filter(|retire| cluster.nodes.get(&retire.name).is_none());
    let nodes = nodes.map(|retire| Absence { kind: Kind::Node, name: retire.name.clone() });
    let known = |name: &str| cluster.mesh_nodes.get(name).is_some();
    let buried = plan.tombstones.iter().filter(|stone| !view.tombstones.contains(stone) && !known(&stone.name));
    let buried = buried.map(|stone| Absence { kind: Kind::MeshNode, name: stone.name.clone() });
    nodes.chain(buried).collect()
}

/// Whether the plan admits a key that peers were not told before.
pub fn admits_keys(plan: &Plan) -> bool {
    let new = [EventReason::KeyAccepted, EventReason::KeyReplaced];
    plan.events.iter().any(|event| new.contains(&event.reason))
}

/// Takes the answer in. Returns whether the object is there after all, so that the plan is void.
pub fn settle(cluster: &mut Cluster, absence: &Absence, found: Option<DynamicObject>) -> bool {
    let Some(object) = found else { return false };
    let change = match absence.kind {
        Kind::Node => read::<Node>(object),
        Kind::MeshNode => read::<MeshNode>(object),
        _ => return false,
    };
    cluster.absorb(change);
    true
}

fn read<K: Watched>(object: DynamicObject) -> Change {
    K::change(match Stored::read::<K>(object) {
        Ok(stored) => Update::Applied(stored),
        Err(unreadable) => Update::Unreadable(unreadable.meta),
    })
}

/// Looks for every object; an error means that nobody knows.
pub async fn look_for(
    client: &Client,
    absences: BTreeSet<Absence>,
) -> kube::Result<Vec<(Absence, Option<DynamicObject>)>> {
    let look = |absence: Absence| async move {
        let resource = match absence.kind {
            Kind::Node => ApiResource::erase::<Node>(&()),
            _ => ApiResource::erase::<MeshNode>(&()),
        };
        let api: Api<DynamicObject> = Api::all_with(client.clone(), &resource);
        let found = timely(api.get_opt(&absence.name)).await?;
        Ok((absence, found))
    };
    side_by_side(absences.into_iter().map(look)).await
}

/// What the API server has of the objects in `seen`, all asked for at once: a node that joins waits for the answers.
pub async fn present_seal(client: &Client, seen: &Seal) -> kube::Result<Seal> {
    let look = |(kind, name): (Kind, String)| async move {
        let meta = match kind {
            Kind::Policy => meta::<ValidatingAdmissionPolicy>(client, &name).await?,
            _ => meta::<ValidatingAdmissionPolicyBinding>(client, &name).await?,
        };
        Ok(meta.map(|meta| ((kind, name), meta)))
    };
    let found = side_by_side(seen.keys().cloned().map(look)).await?;
    Ok(found.into_iter().flatten().collect())
}

/// All answers, or the first error once everything was answered.
async fn side_by_side<T>(
    requests: impl Iterator<Item = impl Future<Output = kube::Result<T>>>,
) -> kube::Result<Vec<T>> {
    let answers: Vec<kube::Result<T>> = stream::iter(requests).buffer_unordered(CONCURRENCY).collect().await;
    answers.into_iter().collect()
}

async fn meta<K>(client: &Client, name: &str) -> kube::Result<Option<(String, Option<i64>)>>
where
    K: kube::Resource<DynamicType = ()> + Clone + serde::de::DeserializeOwned + std::fmt::Debug,
{
    let api: Api<K> = Api::all(client.clone());
    let found: Option<PartialObjectMeta<K>> = timely(api.get_metadata_opt(name)).await?;
    Ok(found.map(|object| (object.metadata.uid.unwrap_or_default(), object.metadata.generation)))
}

async fn timely<T>(request: impl Future<Output = kube::Result<T>>) -> kube::Result<T> {
    let late = |_| kube::Error::Service("no answer in time".into());
    tokio::time::timeout(WRITE_TIMEOUT, request).await.map_err(late)?
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{convert, proof::Prover};
    use crds::MeshSpec;
    use serde_json::{Value, json};

    fn object(value: Value) -> DynamicObject {
        serde_json::from_value(value).unwrap()
    }

    fn node(name: &str) -> DynamicObject {
        object(
            json!({ "apiVersion": "v1", "kind": "Node", "metadata": { "name": name, "uid": format!("uid-{name}") } }),
        )
    }

    fn mesh_node(name: &str) -> DynamicObject {
        let metadata = json!({ "name": name, "uid": format!("object-{name}") });
        let spec = json!({ "nodeUID": format!("uid-{name}") });
        object(json!({ "apiVersion": "warren.dev/v1alpha1", "kind": "MeshNode", "metadata": metadata, "spec": spec }))
    }

    fn planned(cluster: &Cluster) -> (ClusterView, Plan) {
        let mesh = convert::mesh_config(&serde_json::from_str::<MeshSpec>("{}").unwrap()).unwrap();
        let view = convert::view(cluster, mesh, &Prover::default(), true);
        let plan = topology::cluster::plan(&view);
        (view, plan)
    }

    #[test]
    fn a_node_that_is_there_after_all_is_not_retired() {
        let mut cluster = Cluster::default();
        for name in ["n1", "n2"] {
            cluster.absorb(read::<MeshNode>(mesh_node(name)));
        }
        cluster.absorb(read::<Node>(node("n2")));
        let (view, plan) = planned(&cluster);
        assert_eq!(plan.retire.len(), 1);
        let absence = Absence { kind: Kind::Node, name: "n1".into() };
        assert_eq!(absences(&cluster, &view, &plan), BTreeSet::from([absence.clone()]));
        assert!(!settle(&mut cluster, &absence, None), "it is gone: the plan stands");
        assert!(settle(&mut cluster, &absence, Some(node("n1"))));
        assert!(planned(&cluster).1.retire.is_empty());
        let mut another = node("n1");
        another.metadata.uid = Some("made again".into());
        cluster.nodes.forget("n1");
        assert!(settle(&mut cluster, &absence, Some(another)));
        let (view, plan) = planned(&cluster);
        assert_eq!(plan.retire.len(), 1, "another Node of that name does not keep it");
        assert!(absences(&cluster, &view, &plan).is_empty(), "and is no absence");
    }

    #[test]
    fn a_peer_is_not_buried_because_its_mesh_node_is_not_listed() {
        let mut cluster = Cluster::default();
        cluster.absorb(read::<Node>(node("n1")));
        let entry = json!({ "name": "n1", "uid": "uid-n1", "publicKey": "AQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQE=", "generation": 1 });
        let slice = json!({ "apiVersion": "warren.dev/v1alpha1", "kind": "MeshPeerSlice", "metadata": { "name": "peers-0001" },
                            "spec": { "count": 1, "entries": [entry] } });
        cluster.absorb(read::<crds::MeshPeerSlice>(object(slice)));
        let (view, plan) = planned(&cluster);
        assert_eq!(plan.tombstones.len(), 1);
        let found = absences(&cluster, &view, &plan);
        assert_eq!(found, BTreeSet::from([Absence { kind: Kind::MeshNode, name: "n1".into() }]));
        let mut listed = mesh_node("n1");
        listed.data["spec"]["admission"] =
            json!({ "state": "Accepted", "publicKey": "AQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQE=" });
        assert!(settle(&mut cluster, found.first().unwrap(), Some(listed)));
        assert!(planned(&cluster).1.tombstones.is_empty());
    }
}
