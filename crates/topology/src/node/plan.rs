//! From the peer table to the plan of one node.

use std::collections::BTreeMap;
use std::net::IpAddr;

use ipnet::IpNet;
use wire::key::PublicKey;

use crate::candidates;
use crate::mesh::MeshConfig;
use crate::node::{NodePlan, PeerPlan, PeerTable, Refusal, RefusalReason, SelfFacts, UnderlayKind, UnderlayOverlap};
use crate::peer::{Candidate, Entry};
use crate::prefix::{self, PrefixMap};

pub(super) struct Planner<'a> {
    own: &'a SelfFacts,
    mesh: &'a MeshConfig,
    /// This machine's own network.
    underlay: PrefixMap<UnderlayKind>,
    /// Which peer owns which prefix so far; `None` is this node.
    owners: PrefixMap<Option<String>>,
    /// Every pod range that a slice names, for the candidate filter.
    pod_cidrs: PrefixMap<()>,
    plan: NodePlan,
}

impl<'a> Planner<'a> {
    pub fn new(own: &'a SelfFacts, mesh: &'a MeshConfig) -> Self {
        let spec = own.spec.clone().unwrap_or_default();
        let mut planner = Self {
            own,
            mesh,
            underlay: PrefixMap::default(),
            owners: PrefixMap::default(),
            pod_cidrs: PrefixMap::default(),
            plan: NodePlan {
                own_pod_cidrs: spec.pod_cidrs.iter().map(IpNet::trunc).collect(),
                own_mesh_ips: spec.mesh_ips.clone(),
                ..NodePlan::default()
            },
        };
        let mine = spec.mesh_ips.iter().chain(&spec.node_ips).copied();
        let mine = mine.map(prefix::host).chain(spec.pod_cidrs).chain(spec.routes);
        for net in mine {
            planner.owners.insert(net, None);
        }
        planner.map_underlay();
        planner
    }

    pub fn plan(mut self, peers: &PeerTable) -> NodePlan {
        let entries: Vec<&Entry> = peers.entries().values().filter(|entry| entry.name != self.own.name).collect();
        for net in entries.iter().flat_map(|entry| &entry.pod_cidrs) {
            self.pod_cidrs.insert(*net, ());
        }
        for net in self.plan.own_pod_cidrs.clone() {
            self.pod_cidrs.insert(net, ());
        }
        self.close_ranges(&entries);
        if self.own.spec.as_ref().is_some_and(|spec| spec.suspended) {
            self.refuse("", RefusalReason::Suspended);
        } else {
            self.add_peers(entries, peers);
        }
        self.plan.underlay_overlaps.sort();
        self.plan.underlay_overlaps.dedup();
        self.plan.refusals.sort();
        self.plan
    }

    /// Link subnets inside our own ranges are our own doing (the pod bridge, our device), a link without a subnet says
    /// nothing.
    fn map_underlay(&mut self) {
        let own = self.own;
        for net in own.connected.iter().map(IpNet::trunc) {
            let mut ours = self.mesh.ranges();
            ours.extend(&self.plan.own_pod_cidrs);
            if net.prefix_len() > 0 && !ours.iter().any(|range| range.contains(&net)) {
                self.underlay.insert(net, UnderlayKind::ConnectedSubnet);
            }
        }
        let hosts = [
            (&own.resolvers, UnderlayKind::Resolver),
            (&own.api_addresses, UnderlayKind::Api),
            (&own.gateways, UnderlayKind::Gateway),
            (&own.own_addresses, UnderlayKind::OwnAddress),
        ];
        for (addrs, kind) in hosts {
            let not_ours = |addr: &&IpAddr| !self.plan.own_mesh_ips.contains(addr) && !self.is_own_pod(**addr);
            let addrs: Vec<IpAddr> = addrs.iter().filter(not_ours).copied().collect();
            for addr in addrs {
                self.underlay.insert(prefix::host(addr), kind);
            }
        }
    }

    fn is_own_pod(&self, addr: IpAddr) -> bool {
        self.plan.own_pod_cidrs.iter().any(|net| net.contains(&addr))
    }

    /// The ranges that must never leave this node in clear. One that this machine's own network overlaps cannot be
    /// closed without cutting the machine off.
    fn close_ranges(&mut self, entries: &[&Entry]) {
        let mesh = self.mesh.ranges().into_iter().map(|net| ("", net));
        let pods = entries.iter().flat_map(|entry| entry.pod_cidrs.iter().map(|net| (&*entry.name, net.trunc())));
        let mut closed: Vec<IpNet> = self.plan.own_pod_cidrs.clone();
        for (peer, net) in mesh.chain(pods) {
            if prefix::is_carriable(net) && !self.overlaps_underlay(peer, net) {
                closed.push(net);
            }
        }
        closed.sort();
        closed.dedup();
        self.plan.unreachable = closed;
    }

    /// Peers that slices name come before those that are only held, higher generations before lower ones, names settle
    /// the rest: of two claimants all nodes then choose the same.
    fn add_peers(&mut self, mut entries: Vec<&Entry>, peers: &PeerTable) {
        entries.sort_by_key(|entry| {
            let order = std::cmp::Reverse(entry.generation);
            (peers.is_held(&entry.name), order, &entry.name)
        });
        let mut names: BTreeMap<PublicKey, String> = BTreeMap::new();
        for entry in entries {
            let key = entry.public_key;
            if key.validate().is_err() {
                self.refuse(&entry.name, RefusalReason::InvalidKey);
            } else if self.own.public_key == Some(key) {
                let holder = self.own.name.clone();
                self.refuse(&entry.name, RefusalReason::DuplicateKey(holder));
            } else if let Some(holder) = names.get(&key) {
                let holder = holder.clone();
                self.refuse(&entry.name, RefusalReason::DuplicateKey(holder));
            } else {
                names.insert(key, entry.name.clone());
                let peer = self.peer(entry);
                self.plan.peers.insert(key, peer);
            }
        }
    }

    fn peer(&mut self, entry: &Entry) -> PeerPlan {
        let claims: Vec<IpNet> = entry.claims().collect();
        let mut allowed: Vec<IpNet> = claims.into_iter().filter(|net| self.claim(entry, *net)).collect();
        allowed.sort();
        allowed.dedup();
        let mesh_ips = entry.mesh_ips.iter().copied();
        PeerPlan {
            name: entry.name.clone(),
            uid: entry.uid.clone(),
            mesh_ips: mesh_ips.filter(|addr| allowed.contains(&prefix::host(*addr))).collect(),
            routes: allowed.clone(),
            allowed_ips: allowed,
            candidates: self.candidates(entry),
            listen_port: entry.listen_port,
            round: entry.round,
        }
    }

    /// Takes a prefix for a peer, if it may have it.
    fn claim(&mut self, entry: &Entry, net: IpNet) -> bool {
        let is_mesh_ip = entry.mesh_ips.iter().any(|addr| prefix::host(*addr) == net);
        let in_mesh = self.mesh.ranges().iter().any(|range| range.contains(&net));
        let misplaced = if is_mesh_ip { !in_mesh } else { self.mesh.reserved_overlap(net).is_some() };
        if misplaced || !prefix::is_carriable(net) {
            self.refuse(&entry.name, RefusalReason::PrefixForbidden(net));
            return false;
        }
        if self.overlaps_underlay(&entry.name, net) {
            return false;
        }
        let other = self
            .owners
            .overlapping(net)
            .find(|(_, owner)| owner.as_ref() != Some(&entry.name))
            .map(|(_, owner)| owner.as_ref().unwrap_or(&self.own.name).clone());
        if let Some(owner) = other {
            self.refuse(&entry.name, RefusalReason::PrefixTaken(net, owner));
            return false;
        }
        self.owners.insert(net, Some(entry.name.clone()));
        true
    }

    fn overlaps_underlay(&mut self, peer: &str, net: IpNet) -> bool {
        let hit = self.underlay.overlapping(net).next();
        let Some((with, kind)) = hit.map(|(with, kind)| (with, *kind)) else {
            return false;
        };
        self.plan.underlay_overlaps.push(UnderlayOverlap { peer: peer.to_owned(), prefix: net, with, kind });
        true
    }

    fn candidates(&self, entry: &Entry) -> Vec<Candidate> {
        let in_pod_cidr = |addr| self.pod_cidrs.holding(addr).is_some();
        let (mut kept, _) = candidates::sanitise(self.mesh, in_pod_cidr, &entry.candidates);
        // Two homes may well have the same private address: a packet to it would only ever reach ourselves.
        kept.retain(|candidate| !self.own.own_addresses.contains(&candidate.addr.ip()));
        kept
    }

    fn refuse(&mut self, peer: &str, why: RefusalReason) {
        self.plan.refusals.push(Refusal { peer: peer.to_owned(), why });
    }
}
