//! The agent's side: from what slices say to what this node configures.

use std::net::IpAddr;

use ipnet::IpNet;
use wire::key::PublicKey;

use crate::mesh::MeshConfig;
use crate::peer::Candidate;
use crate::spec::NodeSpec;

mod change;
mod entries;
mod guard;
mod plan;
pub mod table;

pub use change::{BeforeAfter, PeerChange, PeerChanges, PeerPlans, PlanChange};
pub use entries::Entries;
pub use guard::{CONFIRM_AFTER, LAST_HALF_AFTER};
pub use plan::NodePlanner;
pub use table::{Delta, GuardStatus, PeerTable};

/// What the agent knows of its own machine.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SelfFacts {
    /// The node's own name.
    pub name: String,
    /// Its own key.
    pub public_key: Option<PublicKey>,
    /// Its own spec, once it was read (or from the disk cache).
    pub spec: Option<NodeSpec>,
    /// Every address of the machine, those of our own device aside.
    pub own_addresses: Vec<IpAddr>,
    /// The subnets of its links. Default routes and what lies in its own pod and mesh ranges is ignored.
    pub connected: Vec<IpNet>,
    /// Its gateways.
    pub gateways: Vec<IpAddr>,
    /// Its resolvers.
    pub resolvers: Vec<IpAddr>,
    /// The addresses of the Kubernetes API that agents use.
    pub api_addresses: Vec<IpAddr>,
}

/// Everything this node configures on account of the mesh.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NodePlan {
    /// The WireGuard peers.
    pub peers: PeerPlans,
    /// Ranges that get an `unreachable` route of a worse metric in our table: the mesh, and every pod range (also our
    /// own), so that nothing leaks while a peer is absent. Never a carried node address.
    pub unreachable: Vec<IpNet>,
    /// Our pod ranges, which get a rule of their own before ours.
    pub own_pod_cidrs: Vec<IpNet>,
    /// Our addresses in the mesh.
    pub own_mesh_ips: Vec<IpAddr>,
    /// Prefixes that get no route because this machine's own network needs them.
    pub underlay_overlaps: Vec<UnderlayOverlap>,
    /// What else was not taken over from the slices.
    pub refusals: Vec<Refusal>,
}

/// One WireGuard peer.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PeerPlan {
    /// Its name.
    pub name: String,
    /// Its addresses in the mesh.
    pub mesh_ips: Vec<IpAddr>,
    /// Its own addresses that the mesh carries.
    pub node_ips: Vec<IpAddr>,
    /// What it may send from and be sent to, sorted. Each of these has a route into the device.
    pub allowed_ips: Vec<IpNet>,
    /// Where it may be reached.
    pub candidates: Vec<Candidate>,
    /// The port it listens on.
    pub listen_port: u16,
    /// Its punch round.
    pub round: u32,
}

/// A prefix of a peer that gets no route here.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct UnderlayOverlap {
    /// The peer; empty for a range of the mesh itself.
    pub peer: String,
    /// Its prefix.
    pub prefix: IpNet,
    /// What of this machine it overlaps.
    pub with: IpNet,
    /// What that is.
    pub kind: UnderlayKind,
}

/// A part of the machine's own network.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum UnderlayKind {
    /// One of its addresses.
    OwnAddress,
    /// A gateway.
    Gateway,
    /// A resolver.
    Resolver,
    /// The Kubernetes API.
    Api,
    /// The subnet of a link.
    ConnectedSubnet,
}

/// Something in a slice that this node does not take over.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Refusal {
    /// The peer.
    pub peer: String,
    /// What and why.
    pub why: RefusalReason,
}

/// Why it is not taken over.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum RefusalReason {
    /// The key is not a usable curve point.
    InvalidKey,
    /// The key is our own, or that of the named peer.
    DuplicateKey(String),
    /// Our key is that of the named node, and this machine a copy of it: it configures no peer.
    KeyOfAnother(String),
    /// The prefix belongs to the named node, which may be this one.
    PrefixTaken(IpNet, String),
    /// The prefix is none that a tunnel may carry, or lies where it must not.
    PrefixForbidden(IpNet),
    /// This node is suspended and configures no peer.
    Suspended,
}

/// Computes everything this node configures, from the merged peer table.
pub fn plan_node(own: &SelfFacts, mesh: &MeshConfig, peers: &PeerTable) -> NodePlan {
    let mut planner = NodePlanner::default();
    planner.update(own, mesh, peers, None);
    planner.into_plan()
}

impl NodePlan {
    /// What to change on the device to come from `before` to `self`.
    pub fn changes_since(&self, before: &Self) -> PeerChanges {
        PlanChange::between(&before.peers, &self.peers).order()
    }
}
