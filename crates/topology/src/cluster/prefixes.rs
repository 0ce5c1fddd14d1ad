//! Pod ranges, node addresses and routes: who owns which prefix.
//!
//! What peers act upon comes first, whatever its kind, so that a newcomer's pod range, which its kubelet says, takes nothing
//! away. Of the rest, pod ranges come before node addresses and those before routes that an admin wrote.

use std::net::IpAddr;

use ipnet::IpNet;

use crate::cluster::condition::{ConditionType, Reason};
use crate::cluster::subject::Subject;
use crate::mesh::{MeshConfig, NodeAddresses};
use crate::prefix::{self, PrefixMap};

/// A node owns at most this many prefixes of each kind; real ones have two pod ranges and a handful of addresses.
const MAX_PREFIXES: usize = 16;

/// What every prefix that is already given away belongs to: an index into the subjects.
type Owners = PrefixMap<usize>;

/// Settles all prefixes.
pub(super) fn assign(mesh: &MeshConfig, subjects: &mut [Subject<'_>]) {
    let mut owners = Owners::default();
    let mut contests = [Kind::PodCidr, Kind::NodeIp, Kind::Route].map(|kind| Contest::new(mesh, subjects, kind));
    for published in [true, false] {
        for contest in &mut contests {
            contest.settle(mesh, subjects, &mut owners, published);
        }
    }
    let outcomes = contests.map(|contest| (contest.kind, contest.outcome(mesh, subjects, &owners)));
    for (kind, Outcome { accepted, refused }) in outcomes {
        for (index, net) in accepted {
            match kind {
                Kind::PodCidr => subjects[index].spec.pod_cidrs.push(net),
                Kind::NodeIp => subjects[index].spec.node_ips.push(net.addr()),
                // The spec keeps what the admin wrote, so that a conflict does not erase the wish.
                Kind::Route => subjects[index].routes.push(net),
            }
        }
        for (index, reason, text) in refused {
            report(&mut subjects[index], kind, reason, &text);
        }
    }
    for index in 0..subjects.len() {
        for addr in awaiting_approval(mesh, &subjects[index]) {
            match refusal(mesh, &owners, subjects, index, prefix::host(addr), Kind::NodeIp) {
                None => report_pending(&mut subjects[index], addr),
                Some(Refused::Own) => {}
                Some(Refused::Other(reason, text)) => report(&mut subjects[index], Kind::NodeIp, reason, &text),
            }
        }
    }
}

fn report(subject: &mut Subject<'_>, kind: Kind, reason: Reason, text: &str) {
    let (condition, remedy) = match kind {
        Kind::PodCidr => (ConditionType::PodCIDRConflict, "give the node another podCIDR (it takes a new Node object)"),
        Kind::NodeIp => (
            ConditionType::NodeIPConflict,
            "it is not carried, pods and mesh addresses of this node work all the same; to reach the node by its own \
             address give it a unique one (kubelet --node-ip)",
        ),
        Kind::Route => (ConditionType::RouteConflict, "remove it from spec.routes or choose a narrower one"),
    };
    subject.find(condition, reason, format!("{text}; {remedy}"));
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

    /// What a node wants, and what of it is written already.
    fn claims(self, mesh: &MeshConfig, subject: &Subject<'_>) -> (Vec<IpNet>, Vec<IpNet>) {
        let written = subject.written();
        match self {
            Self::PodCidr => {
                let wanted = subject.node.map_or(written.pod_cidrs.clone(), |node| node.pod_cidrs.clone());
                (wanted, written.pod_cidrs)
            }
            Self::NodeIp => (hosts(&taken_node_ips(mesh, subject)), hosts(&written.node_ips)),
            Self::Route => (written.routes.clone(), written.routes),
        }
    }
}

/// One prefix that a node wants.
struct Claim {
    index: usize,
    /// In the node's own list.
    place: usize,
    net: IpNet,
    published: bool,
}

/// The claims of one kind while they are settled: places in its list and prefixes by subject.
struct Contest {
    kind: Kind,
    claims: Vec<Claim>,
    accepted: Vec<(usize, usize, IpNet)>,
    refused: Vec<(usize, usize, IpNet)>,
}

/// What became of all claims of one kind, in the order of subjects and of their own lists: the order in which claims
/// were settled must not show, for it is another one once the outcome is written.
struct Outcome {
    accepted: Vec<(usize, IpNet)>,
    refused: Vec<(usize, Reason, String)>,
}

impl Contest {
    fn new(mesh: &MeshConfig, subjects: &[Subject<'_>], kind: Kind) -> Self {
        let claims = ranked_claims(subjects, |subject| kind.claims(mesh, subject));
        Self { kind, claims, accepted: Vec::new(), refused: Vec::new() }
    }

    /// Settles the claims that peers act upon, or all others.
    fn settle(&mut self, mesh: &MeshConfig, subjects: &[Subject<'_>], owners: &mut Owners, published: bool) {
        for Claim { index, place, net, .. } in self.claims.iter().filter(|claim| claim.published == published) {
            let (index, place, net) = (*index, *place, *net);
            // What only overlaps the node's own (a home network around its address) is no conflict.
            let fits = !matches!(refusal(mesh, owners, subjects, index, net, self.kind), Some(Refused::Other(..)));
            let is_repeated = self.accepted.iter().any(|(known, _, taken)| (*known, *taken) == (index, net));
            if fits && !is_repeated {
                owners.insert(net, index);
                self.accepted.push((index, place, net));
            } else {
                self.refused.push((index, place, net));
            }
        }
    }

    fn outcome(mut self, mesh: &MeshConfig, subjects: &[Subject<'_>], owners: &Owners) -> Outcome {
        self.accepted.sort();
        self.refused.sort();
        let refused = self.refused.into_iter().filter_map(|(index, _, net)| {
            match refusal(mesh, owners, subjects, index, net, self.kind)? {
                Refused::Other(reason, text) => Some((index, reason, text)),
                Refused::Own => None,
            }
        });
        let refused = refused.collect();
        Outcome { refused, accepted: self.accepted.into_iter().map(|(index, _, net)| (index, net)).collect() }
    }
}

/// All claims of one kind in the order in which they are settled.
fn ranked_claims(subjects: &[Subject<'_>], claims_of: impl Fn(&Subject<'_>) -> (Vec<IpNet>, Vec<IpNet>)) -> Vec<Claim> {
    let mut claims = Vec::new();
    for (index, subject) in subjects.iter().enumerate() {
        let (wanted, written) = claims_of(subject);
        let told: Vec<IpNet> = subject.published.map(|entry| entry.claims().collect()).unwrap_or_default();
        for (place, net) in wanted.iter().take(MAX_PREFIXES).enumerate() {
            let net = net.trunc();
            let is_written = written.iter().any(|known| known.trunc() == net);
            let published = told.contains(&net);
            claims.push((subject.rank(published, is_written), Claim { index, place, net, published }));
        }
    }
    claims.sort_by(|(a, first), (b, second)| (a, first.place).cmp(&(b, second.place)));
    claims.into_iter().map(|(_, claim)| claim).collect()
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
    if kind == Kind::PodCidr && !mesh.allows_pods(net) {
        let text = format!("expected a {what} inside spec.podCIDRs of Mesh/default, found {net}");
        return Some(Refused::Other(Reason::OutOfRange, text));
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
    if mesh.node_addresses == NodeAddresses::None {
        return Vec::new();
    }
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

fn report_pending(subject: &mut Subject<'_>, addr: IpAddr) {
    let text = format!(
        "expected the node addresses that were taken at admission, found the new address {addr}; to carry it add it to \
         spec.nodeIPs of this MeshNode"
    );
    subject.find(ConditionType::NodeIPPending, Reason::AddressChanged, text);
}
