//! What this node should have, computed from what it was told and what it found: plain values, nothing is done here.

use crate::{
    args::CniMode,
    cni::{CniPlan, RunDir},
    host::Survey,
    net,
    relays::{MAX_RELAYS, Relay},
    told::{self, View},
};
use crds::mesh::{Backend, PathMode, Paths};
use ipnet::IpNet;
use path::{CandidateKind, Forbidden, PeerConfig};
use std::{
    collections::BTreeSet,
    net::{IpAddr, SocketAddr},
    path::PathBuf,
    time::Duration,
};
use topology::{
    mesh::MeshConfig,
    node::{NodePlan, PeerPlan, SelfFacts},
    peer,
    spec::NodeSpec,
};
use wire::key::PublicKey;

/// The largest mesh in which every pair is kept connected unless an admin says otherwise: as many pairs as a small node can keep.
const EAGER_NODES: usize = 64;

/// The agent's fixed settings.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Name of this node.
    pub node_name: String,
    /// Name of the mesh device.
    pub device: String,
    /// Whether Warren configures pods.
    pub cni_mode: CniMode,
    /// Folder of CNI configurations.
    pub cni_conf_dir: PathBuf,
    /// Folder of CNI plugins.
    pub cni_bin_dir: PathBuf,
    /// Where the CNI configuration itself lies, if not in its folder.
    pub cni_run_dir: Option<RunDir>,
    /// By which TCP port others shall reach a relay on this node.
    pub relay_tls_port: Option<u16>,
    /// Between looks at what nobody announces.
    pub housekeeping: Duration,
}

impl Settings {
    /// A key file that was deleted comes back within this; a look costs a system call.
    pub const HOUSEKEEPING: Duration = Duration::from_secs(20);
}

/// What the device must be; a change of any of it needs another device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeviceIntent {
    /// The port the operator assigned.
    pub listen_port: u16,
    /// The mark of outer packets.
    pub fwmark: u32,
    /// The identity of the mesh.
    pub mesh_id: String,
    /// Which WireGuard an admin wants here.
    pub backend: Backend,
}

/// Everything this node should have.
#[derive(Clone, Debug, PartialEq)]
pub struct Intent {
    /// The device.
    pub device: DeviceIntent,
    /// The last port to try when the assigned one is taken. An open device has no use for it, so it is no part of what that is.
    pub last_port: u16,
    /// Its MTU.
    pub mtu: u16,
    /// What the mesh closes, without what lies in another part of it.
    pub claims: Vec<IpNet>,
    /// What may never be an endpoint.
    pub forbidden: Forbidden,
    /// Host candidates, with the prefix lengths of their subnets.
    pub hosts: Vec<IpNet>,
    /// Whom to ask for our address.
    pub stun_servers: Vec<SocketAddr>,
    /// Which relays to keep a channel to.
    pub relays: Vec<Relay>,
    /// Whether that was ever said.
    pub knows_relays: bool,
    /// After how long an idle pair is let go; nothing keeps every pair connected.
    pub idle: Option<Duration>,
    /// The CNI file.
    pub cni: Option<CniPlan>,
    /// The peers that only the device remembers.
    pub leftovers: Leftovers,
}

/// What becomes of peers that the device had before this process, and that the plan doesn't have.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Leftovers {
    /// The directory was not read yet, or is in doubt: that it doesn't name them says nothing. Those with these keys go.
    Keep {
        /// What tombstones bury.
        revoked: BTreeSet<PublicKey>,
    },
    /// They are no peers any more.
    Remove,
}

/// What the computation needs beside what was told.
pub struct Found<'a> {
    /// The node's own network.
    pub survey: &'a Survey,
    /// The sockets of the API server.
    pub api_servers: &'a [SocketAddr],
    /// Our key.
    pub public_key: PublicKey,
}

/// Ports of this machine that have to do with its network.
#[derive(Clone, Copy, Debug)]
pub struct Ports {
    /// WireGuard's own.
    pub listen_port: u16,
    /// That of the Kubernetes API, if it is served here.
    pub serves_api: Option<u16>,
    /// The one that leads to a relay here.
    pub relay_redirect: Option<net::Redirect>,
}

/// What the peers are planned from, beside what the slices say. `None` until settings and own addresses are known.
pub fn basis(settings: &Settings, view: &View, found: &Found<'_>) -> Option<(SelfFacts, MeshConfig)> {
    let spec = view.own_spec().filter(|s| !s.mesh_ips.is_empty())?;
    Some((facts(settings, spec, found), view.mesh_config()?))
}

/// What the node should have beside its peers, which `plan` has. `None` until settings and own addresses are known.
pub fn intent(settings: &Settings, view: &View, found: &Found<'_>, plan: &NodePlan) -> Option<Intent> {
    let mesh = view.mesh_config()?;
    let spec = view.own_spec()?;
    let object = view.mesh()?;
    let device = DeviceIntent {
        listen_port: spec.listen_port,
        fwmark: object.spec.fwmark.value,
        mesh_id: view.mesh_id(),
        backend: view.node().and_then(|n| n.spec.backend).unwrap_or(object.spec.backend),
    };
    let leftovers = if view.is_complete() || spec.suspended {
        Leftovers::Remove
    } else {
        Leftovers::Keep { revoked: view.table().tombstones().map(|stone| stone.public_key).collect() }
    };
    let claims = net::least_claims(&view.pod_ranges(), plan.unreachable.iter().copied());
    let forbidden = forbidden(plan, &claims, &mesh, found);
    Some(Intent {
        device,
        last_port: mesh.listen_ports.last.max(spec.listen_port),
        mtu: object.spec.mtu.unwrap_or_else(|| found.survey.underlay.device_mtu()),
        relays: relays(view.relays(), &forbidden),
        knows_relays: view.knows_relays(),
        forbidden,
        hosts: hosts(&found.survey.underlay),
        stun_servers: view.stun_servers(),
        idle: idle(&object.spec.paths, plan.peers.len()),
        cni: (settings.cni_mode == CniMode::Managed).then(|| CniPlan {
            conf_dir: settings.cni_conf_dir.clone(),
            bin_dir: settings.cni_bin_dir.clone(),
            run_dir: settings.cni_run_dir.clone(),
            pod_cidrs: spec.pod_cidrs.clone(),
            confirmed: view.node_is_present(),
        }),
        claims,
        leftovers,
    })
}

/// The host network that goes with an intent, once the device's port is known; without the routes to peers.
pub fn net_plan(
    settings: &Settings,
    view: &View,
    found: &Found<'_>,
    intent: &Intent,
    plan: &NodePlan,
    ports: &Ports,
) -> Option<net::NetPlan> {
    let Ports { listen_port, serves_api, relay_redirect } = *ports;
    let spec = view.own_spec()?;
    let mark = &view.mesh()?.spec.fwmark;
    let managed = intent.cni.is_some();
    // Our rules come before the main table: a pod range in them would take the other CNI's packets away from it.
    let pods = settings.cni_mode.carries_pods();
    let ranges = view.mesh_config()?.ranges();
    let (relay_ports, relay_tcp_ports) = view.own_relay_ports();
    Some(net::NetPlan {
        device: settings.device.clone(),
        mtu: intent.mtu,
        addresses: plan.own_mesh_ips.clone(),
        routes: Vec::new(),
        claims: intent.claims.iter().copied().filter(|claim| pods || ranges.contains(claim)).collect(),
        own_pod_cidrs: if managed { plan.own_pod_cidrs.clone() } else { Vec::new() },
        own_node_cidrs: spec.node_ips.iter().copied().map(IpNet::from).collect(),
        service_cidrs: view.mesh_config()?.service_cidrs,
        mark: net::Mark { value: mark.value, mask: mark.mask },
        listen_port,
        relay_ports,
        relay_tcp_ports,
        relay_redirect,
        api_servers: found.api_servers.to_vec(),
        serves_api,
        masquerade: net::Masquerade { enabled: managed, exclude: Vec::new() },
        cni: managed,
    })
}

/// What the path engine must know of a peer.
pub fn path_peer(public_key: PublicKey, peer: &PeerPlan) -> PeerConfig {
    PeerConfig {
        public_key,
        candidates: peer.candidates.iter().map(candidate).collect(),
        round: peer.round,
        wanted: true,
    }
}

/// After how long a pair is let go that nobody uses, in a mesh of so many peers.
fn idle(paths: &Paths, peers: usize) -> Option<Duration> {
    let on_demand = match paths.mode {
        PathMode::Auto => peers >= EAGER_NODES,
        PathMode::Eager => false,
        PathMode::OnDemand => true,
    };
    on_demand.then(|| Duration::from_secs(paths.idle_seconds.into()))
}

fn facts(settings: &Settings, spec: NodeSpec, found: &Found<'_>) -> SelfFacts {
    let underlay = &found.survey.underlay;
    SelfFacts {
        name: settings.node_name.clone(),
        public_key: Some(found.public_key),
        spec: Some(spec),
        own_addresses: found.survey.own_addresses.clone(),
        connected: underlay.connected.clone(),
        gateways: underlay.gateways.clone(),
        resolvers: underlay.resolvers.clone(),
        api_addresses: found.api_servers.iter().map(SocketAddr::ip).collect(),
    }
}

fn forbidden(plan: &NodePlan, claims: &[IpNet], mesh: &MeshConfig, found: &Found<'_>) -> Forbidden {
    let inside = claims.iter().chain(&plan.own_pod_cidrs).copied();
    let mut networks: Vec<IpNet> = inside.chain(mesh.reserved()).collect();
    networks.sort();
    networks.dedup();
    let mut own_addresses = found.survey.own_addresses.clone();
    own_addresses.extend(&plan.own_mesh_ips);
    Forbidden { networks, own_addresses, api_servers: found.api_servers.to_vec() }
}

/// Relays at addresses that may be dialled, the first by name.
fn relays(told: impl Iterator<Item = Relay>, forbidden: &Forbidden) -> Vec<Relay> {
    let allowed = |ip: &IpAddr| forbidden.check(SocketAddr::new(*ip, told::relays::QUIC_PORT)).is_ok();
    let mut kept: Vec<Relay> = Vec::new();
    for mut relay in told {
        // The one on this node is asked by loopback, which is nobody else's.
        if !relay.udp.is_empty() {
            relay.udp.retain(allowed);
            for sockets in [&mut relay.quic, &mut relay.tls] {
                sockets.retain(|socket| allowed(&socket.ip()));
            }
            if relay.udp.is_empty() {
                tracing::debug!(relay = relay.name, "no address of a relay may be dialled from here");
                continue;
            }
        }
        // Two objects with one key are one relay.
        if kept.len() < MAX_RELAYS && kept.iter().all(|other| other.id != relay.id) {
            kept.push(relay);
        }
    }
    kept
}

fn hosts(underlay: &net::Underlay) -> Vec<IpNet> {
    let with_prefix = |address: &IpAddr| {
        let subnet = underlay.connected.iter().filter(|net| net.contains(address)).max_by_key(|net| net.prefix_len());
        subnet.and_then(|net| IpNet::new(*address, net.prefix_len()).ok()).unwrap_or_else(|| IpNet::from(*address))
    };
    underlay.candidates.iter().map(with_prefix).collect()
}

/// The routes to a peer; those to its pods only if the mesh is what carries them.
pub fn routes(peer: &PeerPlan, pods: bool) -> impl Iterator<Item = net::PeerRoute> {
    let kind = move |prefix: &IpNet| {
        let host = prefix.prefix_len() == prefix.max_prefix_len();
        if host && peer.mesh_ips.contains(&prefix.addr()) {
            net::RouteKind::Mesh
        } else if host && peer.node_ips.contains(&prefix.addr()) {
            net::RouteKind::Node
        } else {
            net::RouteKind::Pod
        }
    };
    let routes =
        peer.allowed_ips.iter().map(move |p| net::PeerRoute { prefix: *p, kind: kind(p), src: None, mtu: None });
    routes.filter(move |route| pods || route.kind != net::RouteKind::Pod)
}

fn candidate(candidate: &peer::Candidate) -> path::Candidate {
    let kind = match candidate.kind {
        peer::CandidateKind::Static => CandidateKind::Static,
        peer::CandidateKind::PortMapped => CandidateKind::PortMapped,
        peer::CandidateKind::ServerReflexive => CandidateKind::ServerReflexive,
        peer::CandidateKind::Host => CandidateKind::Host,
    };
    path::Candidate::new(kind, candidate.addr)
}

#[cfg(test)]
mod tests {
    use super::*;
    use path::RelayId;

    #[test]
    fn a_mesh_of_up_to_64_nodes_keeps_every_pair_unless_an_admin_says_otherwise() {
        let paths = |mode| Paths { mode, idle_seconds: 40 };
        let (kept, let_go) = (None, Some(Duration::from_secs(40)));
        for (mode, peers, expected) in [
            (PathMode::Auto, 63, kept),
            (PathMode::Auto, 64, let_go),
            (PathMode::Eager, 9_999, kept),
            (PathMode::OnDemand, 1, let_go),
        ] {
            assert_eq!(idle(&paths(mode), peers), expected, "{mode:?} with {peers} peers");
        }
    }

    fn relay(n: u8, addresses: &[&str]) -> Relay {
        let udp: Vec<IpAddr> = addresses.iter().map(|a| a.parse().unwrap()).collect();
        let at = |port| udp.iter().map(|ip| SocketAddr::new(*ip, port)).collect();
        Relay {
            id: RelayId([n; 32]),
            name: format!("r{n}"),
            domain: None,
            quic: at(51899),
            tls: at(8443),
            udp: udp.clone(),
        }
    }

    #[test]
    fn relays_are_kept_at_addresses_that_may_be_dialled_and_no_more_than_the_cap() {
        let forbidden = Forbidden {
            networks: vec!["10.244.0.0/16".parse().unwrap()],
            own_addresses: vec!["192.0.2.10".parse().unwrap()],
            ..Forbidden::default()
        };
        let here = Relay { udp: Vec::new(), ..relay(3, &["127.0.0.1"]) };
        let told = [
            relay(1, &["10.244.0.7", "198.51.100.1", "192.0.2.10", "127.0.0.1", "224.0.0.1"]),
            relay(2, &["10.244.0.7"]),
            here.clone(),
            relay(1, &["198.51.100.2"]),
        ];
        assert_eq!(relays(told.into_iter(), &forbidden), [relay(1, &["198.51.100.1"]), here]);
        let many = (0..20).map(|n| relay(n, &["198.51.100.1"]));
        assert_eq!(relays(many, &forbidden).len(), MAX_RELAYS);
    }
}
