//! The definitions as YAML, one file a kind.

use crate::bounds::bound_integers;
use crate::{Mesh, MeshNode, MeshPeerSlice, MeshRelay};
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::CustomResourceExt;

/// A generated file.
pub struct CrdFile {
    /// File name, for example `meshes.yaml`.
    pub name: String,
    /// The definition.
    pub text: String,
}

/// Every definition, in the order in which they are listed in the documentation.
pub fn crd_files() -> Result<Vec<CrdFile>, serde_saphyr::ser::Error> {
    [Mesh::crd(), MeshNode::crd(), MeshPeerSlice::crd(), MeshRelay::crd()].into_iter().map(crd_file).collect()
}

fn crd_file(mut crd: CustomResourceDefinition) -> Result<CrdFile, serde_saphyr::ser::Error> {
    bound_integers(&mut crd);
    Ok(CrdFile { name: format!("{}.yaml", crd.spec.names.plural), text: serde_saphyr::to_string(&crd)? })
}
