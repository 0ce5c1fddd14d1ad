//! Every integer that an API server lets through can be decoded.
#![allow(missing_docs, clippy::unwrap_used)]

use crds::{Mesh, MeshNode, MeshNodeStatus, MeshPeerSlice, MeshRelay, bounds::MAX_INTEGER, crd_files};
use kube::CustomResourceExt;
use serde_json::{Value, json};

/// Path of every integer, with its schema.
fn integers(value: &Value, path: &str, found: &mut Vec<(String, Value)>) {
    match value {
        Value::Object(fields) => {
            if fields.get("type") == Some(&json!("integer")) && !path.contains("additionalPrinterColumns") {
                found.push((path.to_owned(), value.clone()));
            }
            fields.iter().for_each(|(name, value)| integers(value, &format!("{path}.{name}"), found));
        }
        Value::Array(items) => {
            items.iter().enumerate().for_each(|(n, item)| integers(item, &format!("{path}[{n}]"), found));
        }
        _ => {}
    }
}

fn listed(value: &Value) -> Vec<(String, Value)> {
    let mut found = Vec::new();
    integers(value, "", &mut found);
    found
}

#[test]
fn every_integer_is_bounded_within_its_type() {
    let typed = [Mesh::crd(), MeshNode::crd(), MeshPeerSlice::crd(), MeshRelay::crd()];
    let files = crd_files().unwrap();
    assert_eq!(typed.len(), files.len());
    for (typed, file) in typed.iter().zip(files) {
        let typed = listed(&serde_json::to_value(typed).unwrap());
        let written: Value = serde_saphyr::from_str(&file.text).unwrap();
        let written = listed(&written);
        assert_eq!(typed.len(), written.len(), "{}", file.name);
        for ((path, typed), (_, written)) in typed.iter().zip(&written) {
            let (least, most) = match typed["format"].as_str().unwrap() {
                "uint8" => (0.0, f64::from(u8::MAX)),
                "uint16" => (0.0, f64::from(u16::MAX)),
                "uint32" => (0.0, f64::from(u32::MAX)),
                "uint64" => (0.0, MAX_INTEGER as f64),
                "int32" => (f64::from(i32::MIN), f64::from(i32::MAX)),
                "int64" => (-(MAX_INTEGER as f64), MAX_INTEGER as f64),
                other => panic!("{}: {path} has the format {other}", file.name),
            };
            let bound =
                |name: &str| written[name].as_f64().unwrap_or_else(|| panic!("{}: {path} has no {name}", file.name));
            assert!(bound("minimum") >= least && bound("maximum") <= most, "{}: {path}: {written}", file.name);
            let format = written["format"].as_str();
            assert!(matches!(format, Some("int32" | "int64")), "{}: {path} has the format {format:?}", file.name);
        }
    }
}

#[test]
fn the_largest_numbers_that_a_node_may_write_are_read() {
    let most = u32::MAX;
    let status = json!({ "round": most, "paths": { "direct": most, "relayed": most, "down": most } });
    let status: MeshNodeStatus = serde_json::from_value(status).unwrap();
    assert_eq!((status.round, status.paths.down), (most, most));
}
