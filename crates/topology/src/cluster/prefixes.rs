//! Pod ranges, node addresses and routes: who owns which prefix.
//!
//! The three kinds are settled one after the other, so that a pod range never yields to a node address nor either of
//! them to a route that an admin wrote.

use std::collections::BTreeSet;
use std::net::IpAddr;

use ipnet::IpNet;

use crate::cluster::condition::{ConditionType, Reason};
use crate::cluster::subject::Subject;
use crate::mesh::{MeshConfig, NodeAddresses};
use crate::prefix::{self, PrefixMap};

/// A node owns at most this many prefixes of each kind; real ones have two pod ranges and a handful of addresses.
const MAX_PREFIXES: usize = 16;

/// What every prefix that is already given away belongs to: an index into the subjects.
pub(super) type Owners = PrefixMap<usize>;

/// Settles the pod ranges and returns who owns which.
pub(super) fn assign_pod_cidrs(mesh: &MeshConfig, subjects: &mut [Subject<'_>]) -> Owners {
    let mut owners = Owners::default();
    let settled = settle(mesh, subjects, &mut owners, Kind::PodCidr, |subject| {
        let written = subject.written().pod_cidrs;
        let wanted = subject.node.map_or(written.clone(), |node| node.pod_cidrs.clone());
        (wanted, written)
    });
    for (index, net) in settled.accepted {
        subjects[index].spec.pod_cidrs.push(net);
    }
    for (index, reason, text) in settled.refused {
        let text = format!("{text}; give the node another podCIDR (it takes a new Node object)");
        subjects[index].find(ConditionType::PodCIDRConflict, reason, text);
    }
    owners
}

/// Settles the carried node addresses.
pub(super) fn assign_node_ips(mesh: &MeshConfig, subjects: &mut [Subject<'_>], owners: &mut Owners) {
    if mesh.node_addresses == NodeAddresses::None {
        return;
    }
    let settled = settle(mesh, subjects, owners, Kind::NodeIp, |subject| {
        let taken = taken_node_ips(mesh, subject);
        (hosts(&taken), hosts(&subject.written().node_ips))
    });
    for (index, net) in settled.accepted {
        subjects[index].spec.node_ips.push(net.addr());
    }
    for (index, reason, text) in settled.refused {
        report_node_ip(&mut subjects[index], reason, &text);
    }
    for index in 0..subjects.len() {
        for addr in awaiting_approval(mesh, &subjects[index]) {
            match refusal(mesh, owners, subjects, index, prefix::host(addr), Kind::NodeIp) {
                None => report_pending(&mut subjects[index], addr),
                Some(Refused::Own) => {}
                Some(Refused::Other(reason, text)) => report_node_ip(&mut subjects[index], reason, &text),
            }
        }
    }
}

/// Settles the ranges behind nodes. The spec keeps what the admin wrote, so that a conflict does not erase the wish.
pub(super) fn assign_routes(mesh: &MeshConfig, subjects: &mut [Subject<'_>], owners: &mut Owners) {
    let settled = settle(mesh, subjects, owners, Kind::Route, |subject| {
        let written = subject.written().routes;
        (written.clone(), written)
    });
    for (index, net) in settled.accepted {
        subjects[index].routes.push(net);
    }
    for (index, reason, text) in settled.refused {
        let text = format!("{text}; remove it from spec.routes or choose a narrower one");
        subjects[index].find(ConditionType::RouteConflict, reason, text);
    }
}

#[derive(Clone, Copy, PartialEq)]
enum Kind {
    PodCidr,
    NodeIp,
    Route,
}

impl Kind {
    fn as_str(self) -> &'static str {
        match self {
            Self::PodCidr => "pod range",
            Self::NodeIp => "node address",
            Self::Route => "route",
        }
    }
}

/// What became of all claims of one kind, in the order of subjects and of their own lists: the order in which claims
/// were settled must not show, for it is another one once the outcome is written.
struct Settled {
    accepted: Vec<(usize, IpNet)>,
    refused: Vec<(usize, Reason, String)>,
}

/// Settles the claims that `claims_of` finds: what the node wants, and what of it is written already.
fn settle(
    mesh: &MeshConfig,
    subjects: &[Subject<'_>],
    owners: &mut Owners,
    kind: Kind,
    claims_of: impl Fn(&Subject<'_>) -> (Vec<IpNet>, Vec<IpNet>),
) -> Settled {
    let mut accepted = Vec::new();
    let mut known = BTreeSet::new();
    let mut contested = Vec::new();
    for (index, place, net) in ranked_claims(subjects, claims_of) {
        match refusal(mesh, owners, subjects, index, net, kind) {
            // A home network around the node's own address is the usual case of a route, and no conflict.
            Some(Refused::Own) if kind != Kind::Route || known.contains(&(index, net)) => {
                contested.push((index, place, net));
            }
            Some(Refused::Other(..)) => contested.push((index, place, net)),
            Some(Refused::Own) | None => {
                owners.insert(net, index);
                known.insert((index, net));
                accepted.push((index, place, net));
            }
        }
    }
    accepted.sort();
    contested.sort();
    // The reasons are those of the final outcome: what overlapped only the node's own may overlap another's by now.
    let refused =
        contested.into_iter().filter_map(|(index, _, net)| match refusal(mesh, owners, subjects, index, net, kind)? {
            Refused::Other(reason, text) => Some((index, reason, text)),
            Refused::Own => None,
        });
    Settled { refused: refused.collect(), accepted: accepted.into_iter().map(|(index, _, net)| (index, net)).collect() }
}

/// All claims of one kind in the order in which they are settled: index of the subject, place in its list, prefix.
fn ranked_claims(
    subjects: &[Subject<'_>],
    claims_of: impl Fn(&Subject<'_>) -> (Vec<IpNet>, Vec<IpNet>),
) -> Vec<(usize, usize, IpNet)> {
    let mut claims = Vec::new();
    for (index, subject) in subjects.iter().enumerate() {
        let (wanted, written) = claims_of(subject);
        let published: Vec<IpNet> = subject.published.map(|entry| entry.claims().collect()).unwrap_or_default();
        for (place, net) in wanted.iter().take(MAX_PREFIXES).enumerate() {
            let net = net.trunc();
            let is_written = written.iter().any(|known| known.trunc() == net);
            let rank = subject.rank(published.contains(&net), is_written);
            claims.push((rank, place, index, net));
        }
    }
    claims.sort();
    claims.into_iter().map(|(_, place, index, net)| (index, place, net)).collect()
}

enum Refused {
    /// Overlaps nothing but what the node itself has.
    Own,
    Other(Reason, String),
}

fn refusal(
    mesh: &MeshConfig,
    owners: &Owners,
    subjects: &[Subject<'_>],
    index: usize,
    net: IpNet,
    kind: Kind,
) -> Option<Refused> {
    let what = kind.as_str();
    if !prefix::is_carriable(net) {
        let text = format!("expected a unicast {what}, found {net}");
        return Some(Refused::Other(Reason::NotCarriable, text));
    }
    if let Some(reserved) = mesh.reserved_overlap(net) {
        let text =
            format!("expected a {what} apart from the mesh and Service ranges, found {net} overlapping {reserved}");
        return Some(Refused::Other(Reason::OverlapsReserved, text));
    }
    let mut is_own = false;
    for (taken, owner) in owners.overlapping(net) {
        if *owner != index {
            let holder = subjects[*owner].name;
            let text = format!(
                "expected a {what} of its own, found {net} overlapping {taken}, which node {holder} holds and keeps"
            );
            return Some(Refused::Other(Reason::HeldByOther, text));
        }
        is_own = true;
    }
    is_own.then_some(Refused::Own)
}

/// The node's addresses that the mesh could carry at all.
fn eligible(mesh: &MeshConfig, subject: &Subject<'_>) -> Vec<IpAddr> {
    let written = subject.written().node_ips;
    let known = subject.node.map_or(&written, |node| &node.internal_ips);
    let wanted = |addr: &&IpAddr| mesh.node_cidrs.iter().any(|net| net.contains(*addr));
    let wanted = known.iter().filter(wanted).copied();
    wanted.take(MAX_PREFIXES).collect()
}

/// Under `Approve` the addresses are frozen once the node has a key: from then on an admin adds them.
fn is_frozen(mesh: &MeshConfig, subject: &Subject<'_>) -> bool {
    let admitted = subject.stored.is_some_and(|facts| facts.spec.admission.public_key.is_some());
    mesh.node_addresses == NodeAddresses::Approve && admitted && subject.node.is_some()
}

fn taken_node_ips(mesh: &MeshConfig, subject: &Subject<'_>) -> Vec<IpAddr> {
    let mut taken = eligible(mesh, subject);
    if is_frozen(mesh, subject) {
        let approved = subject.written().node_ips;
        taken.retain(|addr| approved.contains(addr));
    }
    taken
}

fn awaiting_approval(mesh: &MeshConfig, subject: &Subject<'_>) -> Vec<IpAddr> {
    if !is_frozen(mesh, subject) {
        return Vec::new();
    }
    let approved = subject.written().node_ips;
    let mut waiting = eligible(mesh, subject);
    waiting.retain(|addr| !approved.contains(addr));
    waiting
}

fn hosts(addrs: &[IpAddr]) -> Vec<IpNet> {
    addrs.iter().copied().map(prefix::host).collect()
}

fn report_node_ip(subject: &mut Subject<'_>, reason: Reason, text: &str) {
    let text = format!(
        "{text}; it is not carried, pods and mesh addresses of this node work all the same; to reach the node by its \
         own address give it a unique one (kubelet --node-ip)"
    );
    subject.find(ConditionType::NodeIPConflict, reason, text);
}

fn report_pending(subject: &mut Subject<'_>, addr: IpAddr) {
    let text = format!(
        "expected the node addresses that were taken at admission, found the new address {addr}; to carry it add it to \
         spec.nodeIPs of this MeshNode"
    );
    subject.find(ConditionType::NodeIPPending, Reason::AddressChanged, text);
}
