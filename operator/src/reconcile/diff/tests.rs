//! Each folder of `tests/fixtures` holds a cluster and the writes it calls for. `UPDATE_FIXTURES=1` rewrites the latter.

use super::*;
use crate::{
    coalesce::Lane,
    index::{Update, Watched},
    proof::Prover,
    reconcile::progress::Progress,
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

fn planned(cluster: &Cluster) -> Plan {
    let mesh = convert::mesh_config(&cluster.mesh().unwrap().value.spec).unwrap();
    let view = convert::view(cluster, mesh, &Prover::default(), true);
    let plan = topology::cluster::plan(&view);
    let broken = topology::check::check(&view, &plan);
    assert!(broken.is_empty(), "{broken:?}");
    plan
}

fn writes(cluster: &Cluster) -> Vec<(Phase, Vec<Write>)> {
    let plan = planned(cluster);
    let mut all = phases(cluster, &plan);
    all.push((Phase::Conditions, conditions(cluster, &plan, Timestamp::UNIX_EPOCH)));
    all
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
fn carry_out(cluster: &mut Cluster) -> usize {
    let plan = planned(cluster);
    let mut progress = Progress::new(Lane::Slow);
    let mut count = 0;
    let mut all: Vec<(Phase, Option<Vec<Write>>)> =
        phases(cluster, &plan).into_iter().map(|(phase, writes)| (phase, Some(writes))).collect();
    all.push((Phase::Conditions, None));
    for (phase, writes) in all {
        let writes = writes.unwrap_or_else(|| conditions(cluster, &plan, Timestamp::UNIX_EPOCH));
        let wanted = writes.len();
        let mut outcomes = Vec::new();
        for write in progress.select(phase, writes, |_| true) {
            carry_out_one(cluster, write.target.clone(), write.verb);
            outcomes.push((write.target, true));
        }
        count += outcomes.len();
        progress.note(phase, wanted, outcomes);
    }
    count
}

fn carry_out_one(cluster: &mut Cluster, target: Target, verb: Verb) {
    match verb {
        Verb::Delete { .. } => forget(cluster, &target),
        Verb::Create(body) | Verb::Apply(body) | Verb::Merge(body) => {
            let object = merged(cluster, &target, body);
            learn(cluster, &target, serde_json::from_value(object).unwrap()).unwrap();
        }
    }
}

fn merged(cluster: &Cluster, target: &Target, mut body: Value) -> Value {
    let stored = cluster.mesh_nodes.get(&target.name).filter(|_| target.kind == Kind::MeshNode);
    body["metadata"]["uid"] = json!(stored.map_or(format!("object-{}", target.name), |stored| stored.meta.uid.clone()));
    let generation = stored.and_then(|stored| stored.meta.generation).unwrap_or_default();
    body["metadata"]["generation"] = json!(if target.status { generation } else { generation + 1 });
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
            left = carry_out(&mut cluster);
        }
        assert_eq!(left, 0, "{} still writes: {}", folder.display(), rendered(&writes(&cluster)));
        for (name, node) in cluster.mesh_nodes.iter() {
            let described = node.value.status.conditions.iter().map(|condition| condition.observed_generation);
            assert!(described.clone().count() > 0, "{name}");
            assert!(described.clone().all(|observed| observed == node.meta.generation), "{}: {name}", folder.display());
        }
    }
}

#[test]
fn a_condition_is_said_again_for_a_new_generation_and_once() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/settled/cluster.yaml");
    let mut cluster = cluster(&fs::read_to_string(path).unwrap());
    for _ in 0..3 {
        carry_out(&mut cluster);
    }
    let (_, node) = cluster.mesh_nodes.iter().next().unwrap();
    let mut node = node.clone();
    node.meta.generation = Some(node.meta.generation.unwrap_or_default() + 1);
    cluster.absorb(MeshNode::change(Update::Applied(node.clone())));
    assert_eq!(carry_out(&mut cluster), 1);
    let conditions = &cluster.mesh_nodes.get(&node.meta.name).unwrap().value.status.conditions;
    assert!(conditions.iter().all(|condition| condition.observed_generation == node.meta.generation));
    assert_eq!(carry_out(&mut cluster), 0);
}
