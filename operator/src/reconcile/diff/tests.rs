//! Each folder of `tests/fixtures` holds a cluster and the writes it calls for. `UPDATE_FIXTURES=1` rewrites the latter.

use super::*;
use crate::{
    index::{Update, Watched},
    proof::Prover,
};
use k8s_openapi::api::core::v1::Node;
use std::{fs, path::Path};

fn cluster(text: &str) -> Cluster {
    let mut cluster = Cluster::default();
    for value in serde_saphyr::from_multiple::<Value>(text).unwrap() {
        match value["kind"].as_str().unwrap() {
            "Node" => add::<Node>(&mut cluster, value),
            "Mesh" => add::<Mesh>(&mut cluster, value),
            "MeshNode" => add::<MeshNode>(&mut cluster, value),
            "MeshPeerSlice" => add::<MeshPeerSlice>(&mut cluster, value),
            "MeshRelay" => add::<MeshRelay>(&mut cluster, value),
            other => panic!("no fixture has a {other}"),
        }
    }
    cluster
}

fn add<K: Watched>(cluster: &mut Cluster, value: Value) {
    cluster.absorb(K::change(Update::Applied(Stored::read::<K>(serde_json::from_value(value).unwrap()).unwrap())));
}

fn writes(cluster: &Cluster) -> Vec<(Phase, Vec<Write>)> {
    let mesh = convert::mesh_config(&cluster.mesh().unwrap().value.spec).unwrap();
    let view = convert::view(cluster, mesh, &Prover::default(), true);
    let plan = topology::cluster::plan(&view);
    let broken = topology::check::check(&view, &plan);
    assert!(broken.is_empty(), "{broken:?}");
    phases(cluster, &plan, Timestamp::UNIX_EPOCH)
}

fn rendered(phases: &[(Phase, Vec<Write>)]) -> String {
    let mut list = Vec::new();
    for (phase, writes) in phases {
        for Write { target, verb } in writes {
            let what =
                format!("{} {}{}", target.kind.as_str(), target.name, if target.status { "/status" } else { "" });
            list.push(match verb {
                Verb::Create(body) => json!({ "phase": format!("{phase:?}"), "create": what, "body": body }),
                Verb::Apply(body) => json!({ "phase": format!("{phase:?}"), "apply": what, "body": body }),
                Verb::Merge(body) => json!({ "phase": format!("{phase:?}"), "merge": what, "body": body }),
                Verb::Delete { uid, version } => {
                    json!({ "phase": format!("{phase:?}"), "delete": what, "uid": uid, "version": version })
                }
            });
        }
    }
    serde_saphyr::to_string(&list).unwrap()
}

#[test]
fn every_fixture_calls_for_its_writes() {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures");
    let mut seen = 0;
    for folder in fs::read_dir(dir).unwrap() {
        let folder = folder.unwrap().path();
        let found = rendered(&writes(&cluster(&fs::read_to_string(folder.join("cluster.yaml")).unwrap())));
        let expected = folder.join("writes.yaml");
        if std::env::var_os("UPDATE_FIXTURES").is_some() {
            fs::write(&expected, &found).unwrap();
        }
        assert_eq!(found, fs::read_to_string(&expected).unwrap(), "{}", folder.display());
        seen += 1;
    }
    assert!(seen >= 4, "the fixtures are there");
}

/// Carries the writes out on the copy, as an API server would.
fn carry_out(cluster: &mut Cluster, phases: Vec<(Phase, Vec<Write>)>) -> usize {
    let mut count = 0;
    for write in phases.into_iter().flat_map(|(_, writes)| writes) {
        count += 1;
        let target = write.target;
        match write.verb {
            Verb::Delete { .. } => forget(cluster, &target),
            Verb::Create(body) | Verb::Apply(body) | Verb::Merge(body) => {
                let object = merged(cluster, &target, body);
                learn(cluster, &target, serde_json::from_value(object).unwrap()).unwrap();
            }
        }
    }
    count
}

fn merged(cluster: &Cluster, target: &Target, mut body: Value) -> Value {
    let stored = cluster.mesh_nodes.get(&target.name).filter(|_| target.kind == Kind::MeshNode);
    body["metadata"]["uid"] = json!(stored.map_or(format!("object-{}", target.name), |stored| stored.meta.uid.clone()));
    let Some(stored) = stored else { return body };
    if target.status {
        body["spec"] = serde_json::to_value(&stored.value.spec).unwrap();
        let mut status = serde_json::to_value(&stored.value.status).unwrap();
        status["conditions"] = body["status"]["conditions"].clone();
        body["status"] = status;
    } else {
        body["spec"]["suspended"] = json!(stored.value.spec.suspended);
        body["status"] = serde_json::to_value(&stored.value.status).unwrap();
    }
    body
}

#[test]
fn every_fixture_comes_to_rest() {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures");
    for folder in fs::read_dir(dir).unwrap() {
        let folder = folder.unwrap().path();
        let mut cluster = cluster(&fs::read_to_string(folder.join("cluster.yaml")).unwrap());
        let mut left = usize::MAX;
        // New objects get their conditions in the second pass.
        for _ in 0..3 {
            let phases = writes(&cluster);
            left = carry_out(&mut cluster, phases);
        }
        assert_eq!(left, 0, "{} still writes: {}", folder.display(), rendered(&writes(&cluster)));
    }
}
