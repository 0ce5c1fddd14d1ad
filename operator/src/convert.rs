//! Between objects as the API server stores them and the types that planning works on.
//!
//! Reading is lenient and never fails for a single field: what does not parse is left out, and so planned anew. Writing is
//! explicit: every list is there even when it is empty, so that server-side apply takes out what is no longer wanted, and the
//! fields that belong to an admin are absent.

mod view;
mod write;

pub use view::view;
pub use write::{conditions, mesh_node_spec, relay_spec, slice_spec, tombstone_spec};
pub(crate) use write::{cut, dated};

use crds::{
    MeshSpec,
    mesh::{Admission, NodeAddresses},
};
use ipnet::IpNet;
use topology::mesh::{AdmissionMode, MeshConfig, NodeAddresses as Addresses, PortRange};

/// The spec of the Mesh cannot be used; the text says which field.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("expected spec.{field} to be {expected}, found {found:?}; correct it in Mesh/default")]
pub struct InvalidMesh {
    field: &'static str,
    expected: &'static str,
    found: String,
}

/// The settings that planning needs. The schema refuses most mistakes; what it lets through is named here.
pub fn mesh_config(spec: &MeshSpec) -> Result<MeshConfig, InvalidMesh> {
    let invalid =
        |field, expected, found: &str| InvalidMesh { field, expected, found: found.chars().take(64).collect() };
    let nets = |field, texts: &[String]| -> Result<Vec<IpNet>, InvalidMesh> {
        texts.iter().map(|text| text.parse().map_err(|_| invalid(field, "a list of prefixes", text))).collect()
    };
    let ipv4 = &spec.addresses.ipv4;
    let ipv6 = spec.addresses.ipv6.as_deref();
    let parse_ipv6 = |text: &str| text.parse().map_err(|_| invalid("addresses.ipv6", "an IPv6 prefix", text));
    Ok(MeshConfig {
        ipv4: ipv4.parse().map_err(|_| invalid("addresses.ipv4", "an IPv4 prefix", ipv4))?,
        ipv6: ipv6.map(parse_ipv6).transpose()?,
        node_cidrs: nets("nodeCIDRs", &spec.node_cidrs)?,
        service_cidrs: nets("serviceCIDRs", &spec.service_cidrs)?,
        pod_cidrs: nets("podCIDRs", &spec.pod_cidrs)?,
        listen_ports: PortRange { first: spec.listen_ports.first, last: spec.listen_ports.last },
        admission: match spec.admission {
            Admission::Auto => AdmissionMode::Auto,
            Admission::Manual => AdmissionMode::Manual,
        },
        node_addresses: match spec.node_addresses {
            NodeAddresses::Carry => Addresses::Carry,
            NodeAddresses::Approve => Addresses::Approve,
            NodeAddresses::None => Addresses::None,
        },
    })
}

#[cfg(test)]
mod tests;
