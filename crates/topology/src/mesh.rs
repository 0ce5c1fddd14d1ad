//! The mesh-wide settings that planning needs: the parts of `Mesh/default` that say who may own which address.

use std::ops::RangeInclusive;

use ipnet::{IpNet, Ipv4Net, Ipv6Net};

use crate::prefix;

/// What `Mesh/default` says, already validated by its schema.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MeshConfig {
    /// Every node gets one address of this range.
    pub ipv4: Ipv4Net,
    /// Every node gets one address of this (unique local) range as well, if there is one.
    pub ipv6: Option<Ipv6Net>,
    /// Only node addresses inside these ranges are ever carried.
    pub node_cidrs: Vec<IpNet>,
    /// The cluster's Service ranges: nobody may claim them and no candidate may lie in them.
    pub service_cidrs: Vec<IpNet>,
    /// The ranges that nodes' pod ranges are drawn from. Without one of a family, any pod range of it will do.
    pub pod_cidrs: Vec<IpNet>,
    /// The ports that nodes listen on.
    pub listen_ports: PortRange,
    /// Whether a new key needs an admin.
    pub admission: AdmissionMode,
    /// Whether the mesh carries the nodes' own addresses.
    pub node_addresses: NodeAddresses,
}

impl MeshConfig {
    /// The mesh ranges, IPv4 first.
    pub fn ranges(&self) -> Vec<IpNet> {
        let v6 = self.ipv6.map(|net| IpNet::V6(net.trunc()));
        std::iter::once(IpNet::V4(self.ipv4.trunc())).chain(v6).collect()
    }

    /// Mesh and Service ranges: nothing that a node brings along may overlap them.
    pub fn reserved(&self) -> Vec<IpNet> {
        let mut nets = self.ranges();
        nets.extend(self.service_cidrs.iter().map(IpNet::trunc));
        nets
    }

    /// Whether pod ranges may lie there.
    pub fn allows_pods(&self, net: IpNet) -> bool {
        let mut family =
            self.pod_cidrs.iter().filter(|range| range.addr().is_ipv4() == net.addr().is_ipv4()).peekable();
        family.peek().is_none() || family.any(|range| range.contains(&net))
    }

    /// The first reserved range that overlaps `net`.
    pub fn reserved_overlap(&self, net: IpNet) -> Option<IpNet> {
        self.reserved().into_iter().find(|reserved| prefix::overlap(*reserved, net))
    }
}

/// An inclusive range of UDP ports.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PortRange {
    /// The first port.
    pub first: u16,
    /// The last port; a range that ends before it starts holds only `first`.
    pub last: u16,
}

impl PortRange {
    /// Whether `port` lies in the range. Port 0 never does.
    pub fn contains(&self, port: u16) -> bool {
        self.bounds().contains(&port)
    }

    /// Every port of the range, ascending.
    pub fn ports(&self) -> impl Iterator<Item = u16> + use<> {
        self.bounds()
    }

    /// How many ports there are.
    pub fn size(&self) -> usize {
        self.bounds().len()
    }

    fn bounds(&self) -> RangeInclusive<u16> {
        let first = self.first.max(1);
        first..=self.last.max(first)
    }
}

/// How a key that was never admitted before becomes admitted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AdmissionMode {
    /// The node's token and its proof of possession are enough.
    Auto,
    /// An admin writes the key into `spec.admission.publicKey`.
    Manual,
}

/// What happens with a node's InternalIPs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NodeAddresses {
    /// Carried, and followed when the Node changes them.
    Carry,
    /// Taken at admission; a later addition needs an admin.
    Approve,
    /// Never carried.
    None,
}
