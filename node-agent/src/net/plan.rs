//! The complete desired state of the host network, as plain data.

use std::net::{IpAddr, SocketAddr};

use ipnet::IpNet;

/// What the host network of this node is to be. There is no "leave as it is": what is not in the plan and ours is removed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NetPlan {
    /// Name of the WireGuard interface, which exists already. Its index is looked up at every apply, so a device that was
    /// made again is followed.
    pub device: String,
    /// MTU of the device.
    pub mtu: u16,
    /// This node's mesh addresses, at most one per family that matters: the first of a family is the source of what the host
    /// sends into the mesh.
    pub addresses: Vec<IpAddr>,
    /// Routes to programmed peers. A carried node address belongs here only while its peer is programmed.
    pub routes: Vec<PeerRoute>,
    /// What the mesh claims and never lets out in clear: the mesh ranges and the podCIDRs of the slices, with or without a
    /// programmed peer. Never node addresses.
    pub claims: Vec<IpNet>,
    /// The podCIDRs of this node.
    pub own_pod_cidrs: Vec<IpNet>,
    /// Addresses of this node's underlay that its peers carry, hence valid as source inside the tunnel.
    pub own_node_cidrs: Vec<IpNet>,
    /// The cluster's service ranges: pods talking to them are not masqueraded.
    pub service_cidrs: Vec<IpNet>,
    /// The mark of outer packets.
    pub mark: Mark,
    /// WireGuard's own UDP port.
    pub listen_port: u16,
    /// UDP ports of a relay on this node.
    pub relay_ports: Vec<PortRange>,
    /// TCP ports of a relay on this node.
    pub relay_tcp_ports: Vec<PortRange>,
    /// The port by which others reach that relay over TCP, if it is another than it listens on.
    pub relay_redirect: Option<Redirect>,
    /// Where this node's agent and kubelet reach the API server; their addresses are never routed into the mesh.
    pub api_servers: Vec<SocketAddr>,
    /// The port, if this node serves the API.
    pub serves_api: Option<u16>,
    /// Masquerading of pod traffic that leaves the mesh.
    pub masquerade: Masquerade,
    /// Whether this node's pods get their interfaces from our CNI file; then forwarding must work.
    pub cni: bool,
}

impl NetPlan {
    /// Whether two plans, whatever they claim, are the same.
    pub fn same_but_claims(&self, other: &Self) -> bool {
        let Self {
            device,
            mtu,
            addresses,
            routes,
            claims: _,
            own_pod_cidrs,
            own_node_cidrs,
            service_cidrs,
            mark,
            listen_port,
            relay_ports,
            relay_tcp_ports,
            relay_redirect,
            api_servers,
            serves_api,
            masquerade,
            cni,
        } = self;
        (device, addresses, routes, own_pod_cidrs)
            == (&other.device, &other.addresses, &other.routes, &other.own_pod_cidrs)
            && (own_node_cidrs, service_cidrs) == (&other.own_node_cidrs, &other.service_cidrs)
            && (relay_ports, relay_tcp_ports, relay_redirect)
                == (&other.relay_ports, &other.relay_tcp_ports, &other.relay_redirect)
            && (mtu, mark, listen_port, cni) == (&other.mtu, &other.mark, &other.listen_port, &other.cni)
            && (api_servers, serves_api, masquerade) == (&other.api_servers, &other.serves_api, &other.masquerade)
    }
}

/// A prefix behind a programmed peer.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct PeerRoute {
    /// Where to.
    pub prefix: IpNet,
    /// What it is; decides the table.
    pub kind: RouteKind,
    /// Source for what the host itself sends; without it the node's mesh address of the same family.
    pub src: Option<IpAddr>,
    /// Smaller MTU than the device's, for this peer's path.
    pub mtu: Option<u16>,
}

/// What a peer's prefix is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum RouteKind {
    /// Its mesh address.
    Mesh,
    /// Its pods.
    Pod,
    /// One of its underlay addresses, carried so that the API server reaches the kubelet.
    Node,
}

/// A packet mark: the bits of `mask` equal `value`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Mark {
    /// The bits that are set.
    pub value: u32,
    /// The bits that are ours.
    pub mask: u32,
}

impl Default for Mark {
    /// One low bit that neither kube-proxy, Cilium, Calico, Tailscale nor KubeSpan uses.
    fn default() -> Self {
        Self { value: 0x10, mask: 0x10 }
    }
}

/// An inclusive range of ports.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct PortRange {
    /// First port.
    pub first: u16,
    /// Last port.
    pub last: u16,
}

impl PortRange {
    /// The range of this one port.
    pub const fn one(port: u16) -> Self {
        Self { first: port, last: port }
    }
}

/// A TCP port of this node that leads to another one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Redirect {
    /// Where others connect to.
    pub from: u16,
    /// Where somebody listens.
    pub to: u16,
}

/// How pod traffic that leaves the mesh gets its source.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Masquerade {
    /// Masquerade packets of this node's pods to addresses outside mesh, pods and services.
    pub enabled: bool,
    /// Further destinations that see the pod's own address.
    pub exclude: Vec<IpNet>,
}
