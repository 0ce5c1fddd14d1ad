//! From the peer table to the plan of one node.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;

use crate::candidates;
use crate::mesh::MeshConfig;
use crate::node::change::PlanChange;
use crate::node::entries::Entries;
use crate::node::{NodePlan, PeerPlan, PeerTable, Refusal, RefusalReason, SelfFacts, UnderlayKind, UnderlayOverlap};
use crate::peer::{Candidate, Entry};
use crate::prefix::{self, PrefixMap};
use crate::spec::NodeSpec;

/// Plans one node, and keeps what it takes to plan a few changed peers without looking at the others.
#[derive(Default)]
pub struct NodePlanner {
    state: Option<Box<Planner>>,
    plan: NodePlan,
    revision: u64,
}

impl NodePlanner {
    /// The plan as of the last update.
    pub fn plan(&self) -> &NodePlan {
        &self.plan
    }

    /// The plan alone.
    pub fn into_plan(self) -> NodePlan {
        self.plan
    }

    /// Grows with every update that changed a peer.
    pub fn revision(&self) -> u64 {
        self.revision
    }

    /// Brings the plan up to date. `changed` names the entries that are others than at the last update, `None` stands for
    /// any number of them.
    ///
    /// A few changed peers are planned alone if that gives what planning all of them would: nothing else changed, and no
    /// two peers claim the same, before or after.
    pub fn update(
        &mut self,
        own: &SelfFacts,
        mesh: &MeshConfig,
        peers: &PeerTable,
        changed: Option<&BTreeSet<String>>,
    ) -> PlanChange {
        let same = self.state.as_ref().is_some_and(|state| state.own == *own && state.mesh == *mesh);
        let few = changed.filter(|names| same && names.len() <= FEW);
        let mut change = PlanChange::default();
        let alone = few.and_then(|names| self.state.as_mut()?.replan(&mut self.plan, peers, names, &mut change));
        if alone.is_none() {
            change.revert(&mut self.plan.peers);
            let mut state = Box::new(Planner::new(own.clone(), mesh.clone()));
            let plan = state.plan(peers);
            self.state = Some(state);
            change = PlanChange::between(&self.plan.peers, &plan.peers);
            self.plan = plan;
        }
        self.revision += u64::from(!change.is_empty());
        change
    }
}

/// Changed peers up to which planning them alone is the cheaper way: a slice's worth.
const FEW: usize = 64;

struct Planner {
    own: SelfFacts,
    mesh: MeshConfig,
    /// This machine's own network.
    underlay: PrefixMap<UnderlayKind>,
    /// Which peer owns which prefix so far; `None` is this node.
    owners: PrefixMap<Option<Arc<Entry>>>,
    /// Every pod range that a slice names, for the candidate filter.
    pod_cidrs: PrefixMap<()>,
    /// What was planned, by name.
    entries: Entries,
}

impl Planner {
    fn new(own: SelfFacts, mesh: MeshConfig) -> Self {
        let spec = own.spec.clone().unwrap_or_default();
        let mut planner = Self {
            own,
            mesh,
            underlay: PrefixMap::default(),
            owners: PrefixMap::default(),
            pod_cidrs: PrefixMap::default(),
            entries: Entries::default(),
        };
        let mine = spec.mesh_ips.iter().chain(&spec.node_ips).copied();
        let mine = mine.map(prefix::host).chain(spec.pod_cidrs.iter().copied()).chain(spec.routes.iter().copied());
        for net in mine {
            planner.owners.insert(net, None);
        }
        planner.map_underlay(&spec);
        planner
    }

    fn plan(&mut self, peers: &PeerTable) -> NodePlan {
        let spec = self.own.spec.clone().unwrap_or_default();
        let mut plan = NodePlan {
            own_pod_cidrs: spec.pod_cidrs.iter().map(IpNet::trunc).collect(),
            own_mesh_ips: spec.mesh_ips,
            ..NodePlan::default()
        };
        self.entries = peers.entries().iter().filter(|entry| entry.name != self.own.name).cloned().collect();
        let entries: Vec<Arc<Entry>> = self.entries.iter().cloned().collect();
        for net in entries.iter().flat_map(|entry| &entry.pod_cidrs).chain(&plan.own_pod_cidrs) {
            self.pod_cidrs.insert(*net, ());
        }
        self.close_ranges(&entries, &mut plan);
        if spec.suspended {
            plan.refuse("", RefusalReason::Suspended);
        } else if let Some(holder) = self.rightful_holder(&entries, peers) {
            plan.refuse("", RefusalReason::KeyOfAnother(holder));
        } else {
            self.add_peers(entries, peers, &mut plan);
        }
        plan.underlay_overlaps.sort();
        plan.underlay_overlaps.dedup();
        plan.refusals.sort();
        plan
    }

    /// Plans these peers alone, and notes what that changes. `None` if the result might not be what planning all would give;
    /// then this and the plan are void, and `change` says which peers of the plan were touched.
    fn replan(
        &mut self,
        plan: &mut NodePlan,
        peers: &PeerTable,
        names: &BTreeSet<String>,
        change: &mut PlanChange,
    ) -> Option<()> {
        let suspended = self.own.spec.as_ref().is_some_and(|spec| spec.suspended);
        let contested = plan.refusals.iter().any(|refusal| refusal.why.is_contest());
        let mut odd = plan.refusals.iter().map(|r| &r.peer).chain(plan.underlay_overlaps.iter().map(|o| &o.peer));
        if suspended || contested || odd.any(|peer| names.contains(peer)) {
            return None;
        }
        let others = names.iter().filter(|name| **name != self.own.name);
        let before: Vec<_> = others.clone().filter_map(|name| self.entries.remove(name)).collect();
        let after: Vec<_> = others.filter_map(|name| peers.entries().get(name).cloned()).collect();
        let pods = before.iter().chain(&after).flat_map(|entry| &entry.pod_cidrs);
        if self.has_candidate_in(&pods.map(IpNet::trunc).collect()) {
            return None;
        }
        let oddities = |plan: &NodePlan| plan.refusals.len() + plan.underlay_overlaps.len();
        let known = oddities(plan);
        for entry in before {
            let removed = plan.peers.remove(&entry.public_key)?;
            change.peers.insert(entry.public_key, (Some(removed), None));
            self.withdraw(&entry, plan)?;
        }
        for net in after.iter().flat_map(|entry| &entry.pod_cidrs) {
            self.pod_cidrs.insert(*net, ());
        }
        for entry in after {
            let added = self.join(&entry, plan)?;
            change.peers.entry(entry.public_key).or_default().1 = Some(added);
        }
        change.peers.retain(|_, (before, after)| before != after);
        // Who else is concerned by a refusal is not known here.
        (oddities(plan) == known).then_some(())
    }

    /// Takes back all that a peer claims, one that has all of it.
    fn withdraw(&mut self, entry: &Entry, plan: &mut NodePlan) -> Option<()> {
        for net in &entry.pod_cidrs {
            self.pod_cidrs.remove(*net);
            let at = plan.unreachable.binary_search(&net.trunc()).ok()?;
            plan.unreachable.remove(at);
        }
        for net in entry.claims() {
            self.owners.remove(net);
        }
        Some(())
    }

    /// Puts a peer into the plan, one whose key and prefixes nobody else has.
    fn join(&mut self, entry: &Arc<Entry>, plan: &mut NodePlan) -> Option<Arc<PeerPlan>> {
        let key = entry.public_key;
        if key.validate().is_err() || self.own.public_key == Some(key) || plan.peers.contains_key(&key) {
            return None;
        }
        for net in &entry.pod_cidrs {
            let at = plan.unreachable.binary_search(&net.trunc()).err()?;
            plan.unreachable.insert(at, net.trunc());
        }
        let peer = Arc::new(self.peer(entry, plan));
        self.entries.insert(entry.clone());
        plan.peers.insert(key, peer.clone());
        Some(peer)
    }

    /// Whether a candidate of somebody lies in one of these pod ranges.
    fn has_candidate_in(&self, pods: &BTreeSet<IpNet>) -> bool {
        let mut candidates = self.entries.iter().flat_map(|entry| &entry.candidates);
        candidates.any(|candidate| pods.iter().any(|range| range.contains(&candidate.addr.ip())))
    }

    /// The node that the slices give our key to, when they don't give it to us: this machine is a copy of that one. With peers
    /// it would take that node's sessions over, since a handshake with the key is all that WireGuard asks for.
    fn rightful_holder(&self, entries: &[Arc<Entry>], peers: &PeerTable) -> Option<String> {
        let key = self.own.public_key?;
        if peers.entries().get(&self.own.name).is_some_and(|own| own.public_key == key) {
            return None;
        }
        let holder = entries.iter().find(|entry| entry.public_key == key && !peers.is_held(&entry.name))?;
        Some(holder.name.clone())
    }

    /// Link subnets inside our own ranges are our own doing (the pod bridge, our device), a link without a subnet says
    /// nothing.
    fn map_underlay(&mut self, spec: &NodeSpec) {
        let own = &self.own;
        let pods: Vec<IpNet> = spec.pod_cidrs.iter().map(IpNet::trunc).collect();
        for net in own.connected.iter().map(IpNet::trunc) {
            let mut ours = self.mesh.ranges();
            ours.extend(&pods);
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
            let is_own_pod = |addr: &IpAddr| pods.iter().any(|net| net.contains(addr));
            for addr in addrs.iter().filter(|addr| !spec.mesh_ips.contains(addr) && !is_own_pod(addr)) {
                self.underlay.insert(prefix::host(*addr), kind);
            }
        }
    }

    /// The ranges that must never leave this node in clear. One that this machine's own network overlaps cannot be
    /// closed without cutting the machine off.
    fn close_ranges(&self, entries: &[Arc<Entry>], plan: &mut NodePlan) {
        let mesh = self.mesh.ranges().into_iter().map(|net| ("", net));
        let pods = entries.iter().flat_map(|entry| entry.pod_cidrs.iter().map(|net| (&*entry.name, net.trunc())));
        let mut closed: Vec<IpNet> = plan.own_pod_cidrs.clone();
        for (peer, net) in mesh.chain(pods) {
            if prefix::is_carriable(net) && !self.overlaps_underlay(peer, net, plan) {
                closed.push(net);
            }
        }
        closed.sort();
        closed.dedup();
        plan.unreachable = closed;
    }

    /// Peers that slices name come before those that are only held, higher generations before lower ones, names settle
    /// the rest: of two claimants all nodes then choose the same.
    fn add_peers(&mut self, mut entries: Vec<Arc<Entry>>, peers: &PeerTable, plan: &mut NodePlan) {
        let order = |entry: &Entry| (peers.is_held(&entry.name), std::cmp::Reverse(entry.generation));
        entries.sort_by(|a, b| order(a).cmp(&order(b)).then_with(|| a.name.cmp(&b.name)));
        for entry in entries {
            let key = entry.public_key;
            if key.validate().is_err() {
                plan.refuse(&entry.name, RefusalReason::InvalidKey);
            } else if self.own.public_key == Some(key) {
                let holder = self.own.name.clone();
                plan.refuse(&entry.name, RefusalReason::DuplicateKey(holder));
            } else if let Some(holder) = plan.peers.get(&key) {
                let holder = holder.name.clone();
                plan.refuse(&entry.name, RefusalReason::DuplicateKey(holder));
            } else {
                let peer = self.peer(&entry, plan);
                plan.peers.insert(key, Arc::new(peer));
            }
        }
    }

    fn peer(&mut self, entry: &Arc<Entry>, plan: &mut NodePlan) -> PeerPlan {
        let mut allowed: Vec<IpNet> = entry.claims().filter(|net| self.claim(entry, *net, plan)).collect();
        allowed.sort();
        allowed.dedup();
        // There are thousands of them, and they stay.
        allowed.shrink_to_fit();
        let has = |addrs: &[IpAddr]| {
            let has = |addr: &&IpAddr| allowed.contains(&prefix::host(**addr));
            let mut has: Vec<IpAddr> = addrs.iter().filter(has).copied().collect();
            has.shrink_to_fit();
            has
        };
        PeerPlan {
            name: entry.name.clone(),
            mesh_ips: has(&entry.mesh_ips),
            node_ips: has(&entry.node_ips),
            allowed_ips: allowed,
            candidates: self.candidates(entry),
            listen_port: entry.listen_port,
            round: entry.round,
        }
    }

    /// Takes a prefix for a peer, if it may have it.
    fn claim(&mut self, entry: &Arc<Entry>, net: IpNet, plan: &mut NodePlan) -> bool {
        let is_mesh_ip = entry.mesh_ips.iter().any(|addr| prefix::host(*addr) == net);
        let in_mesh = self.mesh.ranges().iter().any(|range| range.contains(&net));
        let misplaced = if is_mesh_ip { !in_mesh } else { self.mesh.reserved_overlap(net).is_some() };
        if misplaced || !prefix::is_carriable(net) {
            plan.refuse(&entry.name, RefusalReason::PrefixForbidden(net));
            return false;
        }
        if self.overlaps_underlay(&entry.name, net, plan) {
            return false;
        }
        let name = |owner: &Option<Arc<Entry>>| owner.as_ref().map_or(&self.own.name, |entry| &entry.name).clone();
        let is_other = |owner: &Option<Arc<Entry>>| owner.as_ref().is_none_or(|owner| owner.name != entry.name);
        let other = self.owners.overlapping(net).find(|(_, owner)| is_other(owner)).map(|(_, owner)| name(owner));
        if let Some(owner) = other {
            plan.refuse(&entry.name, RefusalReason::PrefixTaken(net, owner));
            return false;
        }
        self.owners.insert(net, Some(entry.clone()));
        true
    }

    fn overlaps_underlay(&self, peer: &str, net: IpNet, plan: &mut NodePlan) -> bool {
        let hit = self.underlay.overlapping(net).next();
        let Some((with, kind)) = hit.map(|(with, kind)| (with, *kind)) else {
            return false;
        };
        plan.underlay_overlaps.push(UnderlayOverlap { peer: peer.to_owned(), prefix: net, with, kind });
        true
    }

    fn candidates(&self, entry: &Entry) -> Vec<Candidate> {
        let in_pod_cidr = |addr| self.pod_cidrs.holding(addr).is_some();
        let (mut kept, _) = candidates::sanitise(&self.mesh, in_pod_cidr, &entry.candidates);
        // Two homes may well have the same private address: a packet to it would only ever reach ourselves.
        kept.retain(|candidate| !self.own.own_addresses.contains(&candidate.addr.ip()));
        kept.shrink_to_fit();
        kept
    }
}

impl NodePlan {
    fn refuse(&mut self, peer: &str, why: RefusalReason) {
        self.refusals.push(Refusal { peer: peer.to_owned(), why });
    }
}

impl RefusalReason {
    /// Whether somebody else would get what is refused here.
    fn is_contest(&self) -> bool {
        matches!(self, Self::DuplicateKey(_) | Self::KeyOfAnother(_) | Self::PrefixTaken(..))
    }
}
