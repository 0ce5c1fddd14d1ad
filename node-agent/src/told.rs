//! What the control plane told this node: kept in memory, mirrored to the disk cache, merged into one peer table.

pub mod convert;
mod directory;
pub mod relays;

use crate::{
    api::{Fed, Told},
    cache::{Cache, Name},
    net::PortRange,
    relays::Relay,
};
use crds::{Mesh, MeshNode, MeshPeerSlice, MeshRelay, names};
use ipnet::IpNet;
use kube::ResourceExt;
use serde::Serialize;
use std::{
    collections::{BTreeMap, BTreeSet},
    net::SocketAddr,
    sync::Arc,
    time::Duration,
};
use topology::{mesh::MeshConfig, node::PeerTable, spec::NodeSpec};
use wire::key::PublicKey;

/// Slices held at most: 64 peers each, so far more than a mesh of 8,192 peers needs.
const MAX_SLICES: usize = 256;
/// Relays held at most; each adds a STUN server.
const MAX_RELAYS: usize = 64;
/// STUN servers used at most: two or three tell all there is to tell.
const MAX_STUN_SERVERS: usize = 16;

/// Which parts changed in meaning.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Changed {
    /// `Mesh/default`.
    pub mesh: bool,
    /// Our MeshNode: spec or status.
    pub node: bool,
    /// Peers.
    pub peers: bool,
    /// Relays.
    pub relays: bool,
}

impl Changed {
    /// Whether anything changed.
    pub fn any(self) -> bool {
        self != Self::default()
    }
}

/// Everything the node was told.
pub struct View {
    own_name: String,
    cache: Cache,
    mesh: Option<Mesh>,
    node: Option<MeshNode>,
    /// Whether the API has our object; the spec outlives it.
    node_present: bool,
    /// The slices as last told, and the peers in each.
    told: BTreeMap<String, Arc<BTreeSet<String>>>,
    /// The slices on disk, and the peers in each.
    stored: BTreeMap<String, Arc<BTreeSet<String>>>,
    relays: BTreeMap<String, MeshRelay>,
    /// Whether the API has ever said which relays there are.
    relays_known: bool,
    table: PeerTable,
    /// Names of the entries that are others than when [`Self::take_changed`] was called last; `None` stands for all.
    changed: Option<BTreeSet<String>>,
    /// Whether the slices were listed since this process started.
    listed: bool,
    complete: bool,
}

impl View {
    /// What was told last, from disk.
    pub fn restore(cache: Cache, own_name: &str) -> Self {
        let mut entries = Vec::new();
        let mut tombstones = Vec::new();
        let mut stored = BTreeMap::new();
        for file in cache.names("slice") {
            if let Some(slice) = cache.load::<MeshPeerSlice>(&file) {
                entries.extend(convert::entries(&slice, |_| None));
                tombstones.extend(convert::tombstones(&slice));
                stored.insert(slice.name_any(), Arc::new(convert::names(&slice)));
            }
        }
        let relays: Option<BTreeMap<String, MeshRelay>> = cache.load(&Name::single("relays"));
        Self {
            own_name: own_name.into(),
            mesh: cache.load(&Name::single("mesh")),
            node: cache.load::<MeshNode>(&Name::single("node")).filter(|n| n.name_any() == own_name),
            node_present: false,
            relays_known: relays.is_some(),
            relays: relays.unwrap_or_default(),
            table: PeerTable::restore(own_name, entries, tombstones),
            told: stored.clone(),
            stored,
            changed: None,
            listed: false,
            complete: false,
            cache,
        }
    }

    /// Takes news in; `now` is the time since this process started.
    pub fn handle(&mut self, told: Told, now: Duration) -> Changed {
        let mut changed = Changed::default();
        match told {
            Told::Mesh(fed) => {
                changed.mesh = single(&mut self.mesh, fed, names::MESH);
                if changed.mesh {
                    self.keep("mesh", &self.mesh);
                }
            }
            Told::Node(fed) => {
                // An object that is gone while the control plane is being restored must not take the node down: its spec stays.
                self.node_present = match &fed {
                    Fed::Listed(all) => {
                        let named = |n: &MeshNode| n.name_any() == self.own_name;
                        all.objects.iter().any(named) || all.unreadable.contains(&self.own_name)
                    }
                    Fed::Applied(_) => true,
                    Fed::Deleted(_) => false,
                };
                changed.node = self.take_node(fed);
            }
            Told::Relays(fed) => {
                // That there is none is news too, the first time.
                let are_known = matches!(fed, Fed::Listed(_));
                changed.relays = take_relays(&mut self.relays, fed) | (are_known && !self.relays_known);
                self.relays_known |= are_known;
                if changed.relays {
                    self.keep("relays", &self.relays);
                }
            }
            Told::Slices(fed) => changed.peers = self.slices(fed, now),
        }
        changed
    }

    /// The settings of the mesh, validated.
    pub fn mesh(&self) -> Option<&Mesh> {
        self.mesh.as_ref()
    }

    /// The same as topology sees it; `None` when absent or unreadable.
    pub fn mesh_config(&self) -> Option<MeshConfig> {
        self.mesh.as_ref().and_then(convert::mesh_config)
    }

    /// The ranges that pod CIDRs come from, as far as an admin named them.
    pub fn pod_ranges(&self) -> Vec<IpNet> {
        self.mesh.as_ref().map(|mesh| convert::nets(&mesh.spec.pod_cidrs)).unwrap_or_default()
    }

    /// Whether the directory names this node with that key.
    pub fn is_listed(&self, key: &PublicKey) -> bool {
        self.table.entries().get(&self.own_name).is_some_and(|entry| entry.public_key == *key)
    }

    /// Whether the peers are all there are: the API listed them to this process, there was one at least, and the guard holds
    /// none back.
    pub fn is_complete(&self) -> bool {
        self.complete
    }

    /// Whether the API has listed the directory to this process, whatever was in it.
    pub fn was_listed(&self) -> bool {
        self.listed
    }

    /// Our own object as last seen.
    pub fn node(&self) -> Option<&MeshNode> {
        self.node.as_ref()
    }

    /// Whether the API has our object now.
    pub fn node_is_present(&self) -> bool {
        self.node_present
    }

    /// A write of ours was answered with this object: news like any other, and perhaps late. It says what was written, not
    /// that the object is still there.
    pub fn node_written(&mut self, mut node: MeshNode) -> Changed {
        node.metadata.managed_fields = None;
        Changed { node: self.take_node(Fed::Applied(node)), ..Changed::default() }
    }

    /// Our own spec as topology sees it.
    pub fn own_spec(&self) -> Option<NodeSpec> {
        self.node.as_ref().map(convert::node_spec)
    }

    /// The merged peers.
    pub fn table(&self) -> &PeerTable {
        &self.table
    }

    /// Names of the entries that are others than at the last call; `None` stands for all.
    pub fn take_changed(&mut self) -> Option<BTreeSet<String>> {
        self.changed.replace(BTreeSet::new())
    }

    /// Those who tell this node its address: relays first, then what the mesh names. A relay on this node sees no NAT.
    pub fn stun_servers(&self) -> Vec<SocketAddr> {
        let others = self.relays.values().filter(|r| r.spec.node_name.as_deref() != Some(&self.own_name));
        let of_relays = others.flat_map(relays::stun);
        let of_mesh = self.mesh.iter().flat_map(|m| &m.spec.stun.servers);
        let mut servers: Vec<SocketAddr> = Vec::new();
        for server in of_relays.chain(of_mesh).filter_map(|s| s.parse().ok()) {
            if !servers.contains(&server) && servers.len() < MAX_STUN_SERVERS {
                servers.push(server);
            }
        }
        servers
    }

    /// The relays that this node keeps a channel to, by name.
    pub fn relays(&self) -> impl Iterator<Item = Relay> {
        self.relays.values().filter_map(|r| relays::relay(r, &self.own_name))
    }

    /// Whether [`Self::relays`] are all there are, as far as the API ever said.
    pub fn knows_relays(&self) -> bool {
        self.relays_known
    }

    /// Ports of a relay on this node: those of UDP, and those of TCP.
    pub fn own_relay_ports(&self) -> (Vec<PortRange>, Vec<PortRange>) {
        let (mut udp, mut tcp) = (Vec::new(), Vec::new());
        for relay in self.relays.values().filter(|r| r.spec.node_name.as_deref() == Some(&self.own_name)) {
            let Some(status) = &relay.status else { continue };
            let stun = status.stun.iter().filter_map(|s| s.parse::<SocketAddr>().ok());
            udp.extend(stun.map(|a| PortRange::one(a.port())));
            if status.identity_key.is_some() {
                udp.extend([PortRange::one(relays::quic_port(relay)), relays::RELAY_PORTS]);
                tcp.push(PortRange::one(relays::tls_port(relay)));
            }
        }
        for ports in [&mut udp, &mut tcp] {
            ports.sort();
            ports.dedup();
        }
        (udp, tcp)
    }

    /// The TCP port that a relay on this node says that it listens on.
    pub fn own_relay_tls_port(&self) -> Option<u16> {
        let mut own = self.relays.values().filter(|r| r.spec.node_name.as_deref() == Some(&self.own_name));
        own.find_map(|relay| relay.status.as_ref().filter(|status| status.identity_key.is_some())?.tls_port)
    }

    /// The identity of the mesh, part of every pair key: two meshes never accept each other's probes.
    pub fn mesh_id(&self) -> String {
        self.mesh.as_ref().and_then(ResourceExt::uid).unwrap_or_default()
    }

    fn take_node(&mut self, fed: Fed<MeshNode>) -> bool {
        if self.is_stale(&fed) {
            return false;
        }
        let spec = |n: &Option<MeshNode>| n.as_ref().map(|n| (n.uid(), n.spec.clone()));
        let before = spec(&self.node);
        let changed = single(&mut self.node, fed, &self.own_name);
        if before != spec(&self.node) {
            self.keep("node", &self.node);
        }
        changed
    }

    /// Whether something later is known already: the watch and the answers to our own writes overtake each other. The
    /// version also orders an object and the one that was made again under its name; a list may set it back (a restored
    /// etcd), single objects may not.
    fn is_stale(&self, fed: &Fed<MeshNode>) -> bool {
        let (Some(known), Fed::Applied(told)) = (&self.node, fed) else { return false };
        let version = |n: &MeshNode| n.resource_version().and_then(|v| v.parse::<u64>().ok());
        version(told).zip(version(known)).is_some_and(|(told, known)| told < known)
    }

    fn keep<T: Serialize>(&self, kind: &'static str, value: &T) {
        self.cache.store(&Name::single(kind), value);
    }
}

/// An object of which there is one. Its deletion keeps the last known content: settings don't stop being true.
fn single<K: PartialEq + ResourceExt>(slot: &mut Option<K>, fed: Fed<K>, name: &str) -> bool {
    let new = match fed {
        Fed::Listed(all) => all.objects.into_iter().find(|o| o.name_any() == name),
        Fed::Applied(one) => Some(one),
        Fed::Deleted(_) => None,
    };
    match new {
        Some(new) if slot.as_ref() != Some(&new) => {
            *slot = Some(new);
            true
        }
        _ => false,
    }
}

fn take_relays(known: &mut BTreeMap<String, MeshRelay>, fed: Fed<MeshRelay>) -> bool {
    let before = known.clone();
    match fed {
        Fed::Listed(all) => {
            known.retain(|name, _| all.unreadable.contains(name));
            let room = MAX_RELAYS.saturating_sub(known.len());
            known.extend(all.objects.into_iter().take(room).map(|r| (r.name_any(), r)));
        }
        Fed::Applied(relay) if known.len() < MAX_RELAYS || known.contains_key(&relay.name_any()) => {
            known.insert(relay.name_any(), relay);
        }
        Fed::Applied(_) => {}
        Fed::Deleted(name) => {
            known.remove(&name);
        }
    }
    *known != before
}

#[cfg(test)]
mod tests;
