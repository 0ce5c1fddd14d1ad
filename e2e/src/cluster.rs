//! A real Kubernetes cluster on the lab's internet: one control plane, and nodes that are machines as far as Kubernetes and
//! Warren can tell. Nothing that Warren is to provide is there: no CNI configuration, no route to any pod.

pub mod control_plane;
pub mod init;
pub mod kubelet;
pub mod node;
pub mod pki;
