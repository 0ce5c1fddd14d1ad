//! What the control plane told this node: kept in memory, mirrored to the disk cache, merged into one peer table.

pub mod convert;

use crate::{
    api::{Fed, Listing, Told},
    cache::{Cache, Name},
};
use crds::{Mesh, MeshNode, MeshPeerSlice, MeshRelay, names};
use ipnet::IpNet;
use kube::ResourceExt;
use serde::Serialize;
use std::{
    collections::{BTreeMap, BTreeSet},
    net::SocketAddr,
    time::Duration,
};
use topology::{
    mesh::MeshConfig,
    node::{Delta, PeerTable},
    peer::{Entry, Tombstone},
    spec::NodeSpec,
};
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
    told: BTreeMap<String, BTreeSet<String>>,
    /// The slices on disk, and the peers in each.
    stored: BTreeMap<String, BTreeSet<String>>,
    relays: BTreeMap<String, MeshRelay>,
    table: PeerTable,
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
                stored.insert(slice.name_any(), convert::names(&slice));
            }
        }
        Self {
            own_name: own_name.into(),
            mesh: cache.load(&Name::single("mesh")),
            node: cache.load::<MeshNode>(&Name::single("node")).filter(|n| n.name_any() == own_name),
            node_present: false,
            relays: cache.load(&Name::single("relays")).unwrap_or_default(),
            table: PeerTable::restore(own_name, entries, tombstones),
            told: stored.clone(),
            stored,
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
                changed.relays = relays(&mut self.relays, fed);
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

    /// Those who tell this node its address: relays first, then what the mesh names. A relay on this node sees no NAT.
    pub fn stun_servers(&self) -> Vec<SocketAddr> {
        let others = self.relays.values().filter(|r| r.spec.node_name.as_deref() != Some(&self.own_name));
        let of_relays = others.filter_map(|r| r.status.as_ref()).flat_map(|s| &s.stun);
        let of_mesh = self.mesh.iter().flat_map(|m| &m.spec.stun.servers);
        let mut servers: Vec<SocketAddr> = Vec::new();
        for server in of_relays.chain(of_mesh).filter_map(|s| s.parse().ok()) {
            if !servers.contains(&server) && servers.len() < MAX_STUN_SERVERS {
                servers.push(server);
            }
        }
        servers
    }

    /// UDP ports of a relay on this node.
    pub fn own_relay_ports(&self) -> Vec<u16> {
        let own = self.relays.values().filter(|r| r.spec.node_name.as_deref() == Some(&self.own_name));
        let stun = own.filter_map(|r| r.status.as_ref()).flat_map(|s| &s.stun);
        let mut ports: Vec<u16> = stun.filter_map(|s| s.parse::<SocketAddr>().ok()).map(|a| a.port()).collect();
        ports.sort_unstable();
        ports.dedup();
        ports
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

    fn slices(&mut self, fed: Fed<MeshPeerSlice>, now: Duration) -> bool {
        let delta = match &fed {
            Fed::Listed(all) => self.list(all, now),
            Fed::Applied(slice) if slice.name_any() == names::REMOVED_SLICE => {
                self.table.handle_tombstones(convert::tombstones(slice), now)
            }
            Fed::Applied(slice) => {
                self.told.insert(slice.name_any(), convert::names(slice));
                self.table.handle_slice(&slice.name_any(), self.entries(slice), now)
            }
            Fed::Deleted(name) => {
                self.told.remove(name);
                self.table.handle_slice_deleted(name, now)
            }
        };
        self.listed |= matches!(fed, Fed::Listed(_));
        let holds = self.table.guard(now).is_some();
        let was_complete = self.complete;
        self.complete = self.listed && !holds && !self.table.entries().is_empty();
        self.persist(fed, holds);
        !delta.is_empty() || was_complete != self.complete
    }

    fn list(&mut self, all: &Listing<MeshPeerSlice>, now: Duration) -> Delta {
        let is_removed = |name: &str| name == names::REMOVED_SLICE;
        let tombstones: Vec<Tombstone> = if all.unreadable.iter().any(|name| is_removed(name)) {
            self.table.tombstones().cloned().collect()
        } else {
            all.objects.iter().flat_map(convert::tombstones).collect()
        };
        let peers = all.objects.iter().filter(|slice| !is_removed(&slice.name_any())).take(MAX_SLICES);
        let mut lists: BTreeMap<String, Vec<Entry>> =
            peers.clone().map(|slice| (slice.name_any(), self.entries(slice))).collect();
        let mut told: BTreeMap<String, BTreeSet<String>> =
            peers.map(|slice| (slice.name_any(), convert::names(slice))).collect();
        // A slice that is there and can't be read is as it was.
        for name in all.unreadable.iter().filter(|name| !is_removed(name)) {
            let names = self.told.get(name).cloned().unwrap_or_default();
            lists.insert(name.clone(), names.iter().filter_map(|name| self.known(name)).collect());
            told.insert(name.clone(), names);
        }
        self.told = told;
        self.table.handle_list(lists, tombstones, now)
    }

    fn entries(&self, slice: &MeshPeerSlice) -> Vec<Entry> {
        convert::entries(slice, |name| self.known(name))
    }

    fn known(&self, name: &str) -> Option<Entry> {
        self.table.entries().get(name).cloned()
    }

    /// The disk follows what is in force: while the guard holds a peer back, the slice that names it stays as it is there,
    /// because a restart must not do what the guard prevented. All else is kept, tombstones above all, because a restart
    /// must not undo a revocation either.
    fn persist(&mut self, fed: Fed<MeshPeerSlice>, holds: bool) {
        match fed {
            Fed::Listed(all) => {
                let Listing { objects: all, unreadable } = all;
                let listed: BTreeSet<String> = all.iter().map(ResourceExt::name_any).chain(unreadable).collect();
                let gone: Vec<String> = self.stored.keys().filter(|name| !listed.contains(*name)).cloned().collect();
                gone.iter().for_each(|name| self.forget_slice(name, holds));
                all.iter().for_each(|slice| self.keep_slice(slice));
            }
            Fed::Applied(slice) => self.keep_slice(&slice),
            Fed::Deleted(name) => self.forget_slice(&name, holds),
        }
    }

    fn keep_slice(&mut self, slice: &MeshPeerSlice) {
        let (name, names) = (slice.name_any(), convert::names(slice));
        if self.would_lose(&name, &names) || (self.stored.len() >= MAX_SLICES && !self.stored.contains_key(&name)) {
            return;
        }
        if let Some(file) = Name::of("slice", &name) {
            self.cache.store(&file, &convert::whole(slice, || self.cache.load(&file)));
            self.stored.insert(name, names);
        }
    }

    /// Whether the disk would forget somebody whom the guard holds.
    fn would_lose(&self, slice: &str, names: &BTreeSet<String>) -> bool {
        let stored = self.stored.get(slice);
        stored.is_some_and(|stored| stored.difference(names).any(|name| self.table.is_held(name)))
    }

    fn forget_slice(&mut self, name: &str, holds: bool) {
        // Slices that stay for the guard may still name those whom the tombstones bury.
        if self.would_lose(name, &BTreeSet::new()) || (holds && name == names::REMOVED_SLICE) {
            return;
        }
        self.stored.remove(name);
        if let Some(file) = Name::of("slice", name) {
            self.cache.remove(&file);
        }
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

fn relays(known: &mut BTreeMap<String, MeshRelay>, fed: Fed<MeshRelay>) -> bool {
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
mod tests {
    use super::*;
    use crate::testing::TempDir;
    use crds::{MeshRelaySpec, MeshRelayStatus, MeshSpec};

    fn open() -> (TempDir, Cache) {
        let dir = TempDir::new("told");
        let cache = Cache::open(&dir.path().join("cache")).unwrap();
        (dir, cache)
    }

    fn relay(name: &str, stun: &[&str]) -> MeshRelay {
        let mut relay = MeshRelay::new(name, MeshRelaySpec::default());
        relay.status =
            Some(MeshRelayStatus { stun: stun.iter().map(|s| s.to_string()).collect(), ..Default::default() });
        relay
    }

    fn peer(n: u8) -> crds::PeerEntry {
        crds::PeerEntry {
            name: format!("n{n}"),
            uid: format!("u{n}"),
            public_key: PublicKey::from_bytes([n; 32]).to_string(),
            generation: 1,
            ..Default::default()
        }
    }

    fn slice(name: &str, numbers: std::ops::Range<u8>) -> MeshPeerSlice {
        let entries = numbers.map(peer).collect();
        MeshPeerSlice::new(name, crds::MeshPeerSliceSpec { entries, ..Default::default() })
    }

    #[test]
    fn what_was_told_is_there_after_a_restart() {
        let (_dir, cache) = open();
        let mut view = View::restore(cache.clone(), "a");
        let now = Duration::ZERO;
        assert!(view.handle(Told::Mesh(Fed::Listed(vec![Mesh::new("default", MeshSpec::default())].into())), now).mesh);
        assert!(view.handle(Told::Node(Fed::Listed(vec![MeshNode::new("a", Default::default())].into())), now).node);
        assert!(view.handle(Told::Relays(Fed::Applied(relay("r", &["192.0.2.1:3478"]))), now).relays);
        cache.flush();
        let again = View::restore(cache.clone(), "a");
        assert_eq!(again.mesh(), view.mesh());
        assert_eq!(again.node(), view.node());
        assert_eq!(again.stun_servers(), ["192.0.2.1:3478".parse().unwrap()]);
        assert!(View::restore(cache, "b").node().is_none(), "another node's spec");
    }

    #[test]
    fn a_deleted_or_missing_mesh_or_node_keeps_what_is_known() {
        let (_dir, cache) = open();
        let mut view = View::restore(cache, "a");
        let now = Duration::ZERO;
        view.handle(Told::Mesh(Fed::Applied(Mesh::new("default", MeshSpec::default()))), now);
        view.handle(Told::Node(Fed::Applied(MeshNode::new("a", Default::default()))), now);
        for told in [
            Told::Mesh(Fed::Listed(Vec::new().into())),
            Told::Mesh(Fed::Deleted("default".into())),
            Told::Node(Fed::Listed(Vec::new().into())),
            Told::Node(Fed::Deleted("a".into())),
        ] {
            assert!(!view.handle(told, now).any());
        }
        assert!(view.mesh().is_some() && view.node().is_some());
    }

    #[test]
    fn what_the_guard_holds_back_is_held_on_disk_too() {
        let (_dir, cache) = open();
        let mut view = View::restore(cache.clone(), "a");
        assert!(view.handle(Told::Slices(Fed::Listed(vec![slice("peers-0", 1..4)].into())), Duration::ZERO).peers);
        view.handle(Told::Slices(Fed::Applied(slice("peers-0", 0..0))), Duration::from_secs(1));
        assert!(view.table().guard(Duration::from_secs(1)).is_some());
        cache.flush();
        assert_eq!(View::restore(cache, "a").table().entries().len(), 3);
    }

    fn node(uid: &str, version: u64, port: u16) -> MeshNode {
        let mut node = MeshNode::new("a", crds::MeshNodeSpec { listen_port: Some(port), ..Default::default() });
        node.metadata.uid = Some(uid.into());
        node.metadata.resource_version = Some(version.to_string());
        node
    }

    #[test]
    fn a_revocation_outlives_a_restart_although_the_guard_holds_others() {
        let (_dir, cache) = open();
        let mut view = View::restore(cache.clone(), "a");
        view.handle(
            Told::Slices(Fed::Listed(vec![slice("peers-0", 1..5), slice("peers-1", 11..13)].into())),
            Duration::ZERO,
        );
        let names = |view: &View| view.table().entries().keys().cloned().collect::<Vec<_>>();
        // Peers vanish without a word, and the guard keeps them. Then one is revoked, and one is new.
        let now = Duration::from_secs(1);
        view.handle(Told::Slices(Fed::Applied(slice("peers-0", 1..2))), now);
        assert!(view.table().guard(now).is_some());
        let mut removed = slice("removed", 0..0);
        removed.spec.tombstones = vec![crds::Tombstone {
            name: "n11".into(),
            uid: "u11".into(),
            public_key: peer(11).public_key,
            generation: 1,
        }];
        view.handle(Told::Slices(Fed::Applied(removed)), now);
        view.handle(Told::Slices(Fed::Applied(slice("peers-1", 12..14))), now);
        let expected = ["n1", "n12", "n13", "n2", "n3", "n4"];
        assert_eq!(names(&view), expected);
        cache.flush();
        assert_eq!(names(&View::restore(cache, "a")), expected);
    }

    #[test]
    fn an_answer_to_a_write_is_taken_as_any_other_news() {
        let (_dir, cache) = open();
        let mut view = View::restore(cache.clone(), "a");
        view.handle(Told::Node(Fed::Listed(vec![node("u", 5, 1)].into())), Duration::ZERO);
        let mut answer = node("u", 7, 2);
        answer.metadata.managed_fields = Some(Vec::new());
        assert!(view.node_written(answer).node, "the spec of the answer is news");
        assert_eq!(view.node().unwrap().metadata.managed_fields, None);
        assert!(!view.handle(Told::Node(Fed::Applied(node("u", 7, 2))), Duration::ZERO).node, "and its echo is none");
        cache.flush();
        assert_eq!(View::restore(cache, "a").node().unwrap().spec.listen_port, Some(2));
    }

    #[test]
    fn a_late_answer_to_a_write_undoes_nothing() {
        let (_dir, cache) = open();
        let mut view = View::restore(cache, "a");
        view.handle(Told::Node(Fed::Applied(node("u", 9, 2))), Duration::ZERO);
        assert!(!view.node_written(node("u", 8, 1)).node);
        assert_eq!(view.node().unwrap().spec.listen_port, Some(2));
        // Deleted and made again under the same name: the answer may be about the old object, or already about the new one.
        assert!(!view.node_written(node("older", 8, 1)).node);
        assert!(view.node_written(node("newer", 10, 3)).node);
        view.handle(Told::Node(Fed::Deleted("a".into())), Duration::ZERO);
        view.node_written(node("newer", 11, 3));
        assert!(!view.node_is_present(), "the answer says what was, not what is");
    }

    #[test]
    fn stun_servers_are_unique_capped_and_relays_come_first() {
        let (_dir, cache) = open();
        let mut view = View::restore(cache, "a");
        let mut mesh = Mesh::new("default", MeshSpec::default());
        mesh.spec.stun.servers = vec!["192.0.2.9:3478".into(), "192.0.2.1:3478".into(), "nonsense".into()];
        view.handle(Told::Mesh(Fed::Applied(mesh)), Duration::ZERO);
        view.handle(Told::Relays(Fed::Listed(vec![relay("r", &["192.0.2.1:3478"])].into())), Duration::ZERO);
        let shown: Vec<String> = view.stun_servers().iter().map(SocketAddr::to_string).collect();
        assert_eq!(shown, ["192.0.2.1:3478", "192.0.2.9:3478"]);
        let many: Vec<MeshRelay> =
            (0..100).map(|n| relay(&format!("r{n}"), &[&format!("198.51.100.{n}:3478")])).collect();
        view.handle(Told::Relays(Fed::Listed(many.into())), Duration::ZERO);
        assert_eq!(view.stun_servers().len(), MAX_STUN_SERVERS);
    }
}
