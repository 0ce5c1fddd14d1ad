//! Where relays stand. Pure: what is known of nodes and relays and the time in, what is proven and what to change out.
//!
//! # What is proven
//!
//! Agents keep a channel to every relay and say in their status which ones they have, and by what. A channel over QUIC is UDP to the
//! relay's host, so who has one has proven that UDP gets there from where it stands. Nodes of one *site*, behind one public address,
//! are one witness, and those of the relay's own site are none as long as there are others. Two witnesses make a relay reachable, or
//! all there are. A node that has channels over TLS alone knows nothing about UDP and is not asked; where nobody else is left, TLS is
//! what counts. What is proven is the relay's host and one port: a firewall that lets 51899 in and its relay ports not is not found out.
//!
//! # What is changed
//!
//! `MeshNode.spec.relay` comes first, at once: `Always` is labelled, `Never` is not. A label that somebody else wrote is never touched, and
//! while there is one, nothing is added to it: then an admin places relays. Otherwise up to [`MOST`] nodes are labelled that have a
//! public address, each in another failure domain if possible, one change in [`CHANGE_PERIOD`]. One that is not proven
//! in [`PROOF_TIME`] goes if there is something better: a relay that is proven, or a node that was not tried yet. It is tried
//! again after [`RETRY`]. A node of the control plane has a relay only while no other node can.
//!
//! All memory is in the annotation of the nodes and in the relays' conditions, so every replica of the operator decides alike, and a
//! new one goes on where the last one was.

use k8s_openapi::jiff::{SignedDuration, Timestamp};
use std::collections::{BTreeMap, BTreeSet};

mod mark;

pub use mark::Mark;

/// Relays that are placed, those that an admin wants included: a pair uses two, and the third takes over from either.
pub const MOST: usize = 3;
/// Witnesses that make a relay reachable: one may stand in the same network without anybody knowing.
const WITNESSES: usize = 2;
/// Between two changes: pods start and agents connect within this, so the next change knows what the last one did.
pub const CHANGE_PERIOD: SignedDuration = SignedDuration::from_mins(3);
/// How long a relay may be unproven: agents that were refused try again within 15 s, an image on a slow line takes minutes.
pub const PROOF_TIME: SignedDuration = SignedDuration::from_mins(5);
/// When a node that nobody reached is tried again: firewalls are changed by people, in days.
pub const RETRY: SignedDuration = SignedDuration::from_hours(24);
/// How long the control plane waits for other nodes to join before it takes a relay itself.
pub const CONTROL_PLANE_GRACE: SignedDuration = SignedDuration::from_secs(60);

/// What an admin wants of a node.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Wish {
    /// What is best for the mesh.
    #[default]
    Auto,
    /// A relay.
    Always,
    /// None.
    Never,
}

/// Who labelled a node.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Label {
    /// Nobody.
    #[default]
    None,
    /// Somebody else: there shall be no relay.
    Refused,
    /// Somebody else: there shall be one.
    Others,
    /// The operator, then.
    Ours(Timestamp),
}

/// How likely others reach a node unasked.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Standing {
    /// It has a public IPv4 address.
    Public,
    /// It has a public IPv6 address, or no NAT before it: often enough there is a firewall all the same.
    Perhaps,
    /// Nothing speaks for it.
    #[default]
    Hidden,
}

/// What is known of a node.
#[derive(Clone, Debug, PartialEq)]
pub struct Node {
    /// Its name.
    pub name: String,
    /// What fails together: its zone, or itself.
    pub domain: String,
    /// Who shares its public address; itself if that is not known.
    pub site: String,
    /// Whether it belongs to the control plane.
    pub control_plane: bool,
    /// Whether it is a member of the mesh.
    pub admitted: bool,
    /// Whether Kubernetes takes it for alive.
    pub alive: bool,
    /// When its MeshNode was made.
    pub since: Timestamp,
    /// Whether others may reach it.
    pub standing: Standing,
    /// What an admin wants.
    pub wish: Wish,
    /// Who labelled it.
    pub label: Label,
    /// What the operator did last.
    pub mark: Option<Mark>,
    /// The relays it has a channel to, and whether that is by UDP. Not that of its own.
    pub reaches: BTreeMap<String, bool>,
}

/// What is known of a relay.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Relay {
    /// Its name.
    pub name: String,
    /// The node it runs on; none outside the cluster.
    pub node: Option<String>,
    /// When its MeshRelay was made: a label may be older, from before Warren was taken away and put back.
    pub since: Timestamp,
    /// Since when it is known not to be proven.
    pub unproven_since: Option<Timestamp>,
}

/// Who reaches a relay.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Reach {
    /// Sites that do by UDP.
    pub udp: usize,
    /// Sites that do by TCP alone.
    pub tcp: usize,
    /// Sites that are needed.
    pub needed: usize,
    /// Whether TCP counts, since nobody could tell about UDP.
    pub by_tcp: bool,
}

impl Reach {
    /// Whether it is proven; `None` while there is nobody who could tell.
    pub fn proven(&self) -> Option<bool> {
        let counted = if self.by_tcp { self.tcp } else { self.udp };
        (self.needed > 0).then_some(counted >= self.needed)
    }
}

/// Why a node is labelled or not any more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Why {
    /// An admin says so.
    Ordered,
    /// It has an address that others reach, as far as is known.
    Candidate,
    /// It is no member.
    NoMember,
    /// Too few reach it.
    Unreachable,
    /// Another node has a proven relay, and this one is of the control plane.
    ControlPlane,
}

/// One change of a label.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Change {
    /// Of which node.
    pub node: String,
    /// Whether it gets the label or loses it.
    pub place: bool,
    /// Why.
    pub why: Why,
}

impl Change {
    /// What is to be remembered of it.
    pub fn mark(&self, now: Timestamp) -> Option<Mark> {
        match (self.place, self.why) {
            (true, _) => Some(Mark::Placed(now)),
            (false, Why::Unreachable) => Some(Mark::Unreachable(now)),
            // An admin may change his mind at once.
            (false, Why::Ordered) => None,
            (false, _) => Some(Mark::Moved(now)),
        }
    }
}

/// What is proven, what to change, and when to look again.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Plan {
    /// Of every relay.
    pub reach: BTreeMap<String, Reach>,
    /// Labels to change.
    pub changes: Vec<Change>,
    /// When something is due although nothing has changed.
    pub look_again: Option<Timestamp>,
}

/// Looks at everything.
pub fn plan(nodes: &[Node], relays: &[Relay], now: Timestamp) -> Plan {
    let reach: BTreeMap<_, _> = relays.iter().map(|relay| (relay.name.clone(), reach(nodes, relay))).collect();
    let orders: Vec<Change> = nodes.iter().filter_map(order).collect();
    if !orders.is_empty() {
        return Plan { reach, changes: orders, look_again: None };
    }
    let mut view = View { nodes, relays, reach: &reach, now, look_again: None };
    let change = view.placement().or_else(|| view.withdrawal());
    // A time that is yet to come is nobody's who has this clock, and must not hold everything up.
    let last = nodes.iter().filter_map(|node| Some(node.mark?.at())).filter(|at| *at <= now).max();
    let quiet_until = last.and_then(|last| last.checked_add(CHANGE_PERIOD).ok()).filter(|until| *until > now);
    let (changes, look_again) = match (change, quiet_until) {
        (Some(_), Some(until)) => (Vec::new(), Some(until)),
        (change, _) => (change.into_iter().collect(), view.look_again),
    };
    Plan { reach, changes, look_again }
}

fn order(node: &Node) -> Option<Change> {
    let place = match (node.wish, node.label) {
        (Wish::Always, Label::None) => true,
        (Wish::Never, Label::Ours(_)) => false,
        _ => return None,
    };
    Some(Change { node: node.name.clone(), place, why: Why::Ordered })
}

/// Who reaches a relay, and who could tell.
fn reach(nodes: &[Node], relay: &Relay) -> Reach {
    let host = relay.node.as_ref().and_then(|host| nodes.iter().find(|node| node.name == *host));
    let witnesses =
        || nodes.iter().filter(|node| node.admitted && node.alive && Some(&node.name) != relay.node.as_ref());
    let away = |node: &&Node| host.is_none_or(|host| host.site != node.site);
    let mut counted: Vec<&Node> = witnesses().filter(away).collect();
    if counted.is_empty() {
        counted = witnesses().collect();
    }
    let sites = |which: &dyn Fn(&Node) -> bool| -> BTreeSet<&str> {
        counted.iter().filter(|node| which(node)).map(|node| node.site.as_str()).collect()
    };
    let udp = sites(&|node| node.reaches.get(&relay.name) == Some(&true));
    let tcp = sites(&|node| node.reaches.contains_key(&relay.name));
    let able = sites(&|node| node.reaches.is_empty() || node.reaches.values().any(|udp| *udp));
    let by_tcp = able.is_empty();
    let could = if by_tcp { sites(&|_| true) } else { able };
    Reach { udp: udp.len(), tcp: tcp.difference(&udp).count(), needed: could.len().min(WITNESSES), by_tcp }
}

struct View<'a> {
    nodes: &'a [Node],
    relays: &'a [Relay],
    reach: &'a BTreeMap<String, Reach>,
    now: Timestamp,
    look_again: Option<Timestamp>,
}

impl View<'_> {
    /// The first relay of ours that is to go.
    fn withdrawal(&mut self) -> Option<Change> {
        let ours = |node: &&Node| node.wish == Wish::Auto && matches!(node.label, Label::Ours(_));
        let nodes = self.nodes;
        nodes.iter().filter(ours).find_map(|node| {
            let why = self.reason_to_go(node)?;
            Some(Change { node: node.name.clone(), place: false, why })
        })
    }

    fn reason_to_go(&mut self, node: &Node) -> Option<Why> {
        if !node.admitted {
            return Some(Why::NoMember);
        }
        let others = || self.nodes.iter().filter(|other| other.name != node.name);
        let are_proven = |other: &Node| self.is_proven(other) == Some(true);
        if node.control_plane && others().any(|other| !other.control_plane && are_proven(other)) {
            return Some(Why::ControlPlane);
        }
        if self.is_proven(node) != Some(false) {
            return None;
        }
        let outside = self.relays.iter().any(|relay| relay.node.is_none() && self.proven(&relay.name) == Some(true));
        let reached = self.reach_of(node).is_some_and(|reach| reach.udp + reach.tcp > 0);
        let untried = || !reached && !self.candidates(Some(&node.name)).0.is_empty();
        let better = outside || others().any(are_proven) || untried();
        let until = self.proof_until(node);
        if better && until > self.now {
            self.note(Some(until));
        }
        (better && until <= self.now).then_some(Why::Unreachable)
    }

    /// The next node that is to get one.
    fn placement(&mut self) -> Option<Change> {
        let labelled = self.nodes.iter().filter(|node| matches!(node.label, Label::Others | Label::Ours(_)));
        let by_others = labelled.clone().any(|node| node.label == Label::Others);
        if by_others || labelled.clone().count() >= MOST {
            return None;
        }
        let used: BTreeSet<&str> = labelled.map(|node| node.domain.as_str()).collect();
        let (candidates, young) = self.candidates(None);
        let best =
            candidates.iter().min_by_key(|node| (used.contains(node.domain.as_str()), node.standing, &node.name));
        let best = best.map(|node| Change { node: node.name.clone(), place: true, why: Why::Candidate });
        if best.is_none() {
            self.note(young);
        }
        best
    }

    /// The nodes that may get a relay, if that of `without` did not count; and when there may be more.
    fn candidates(&self, without: Option<&str>) -> (Vec<&Node>, Option<Timestamp>) {
        let with = |node: &&Node| Some(node.name.as_str()) != without;
        let nodes = || self.nodes.iter().filter(with);
        let barred = |node: &Node| match node.mark {
            Some(Mark::Unreachable(at)) => self.now.duration_since(at) < RETRY,
            _ => false,
        };
        let fits = |node: &&Node| {
            node.wish == Wish::Auto
                && node.label == Label::None
                && node.admitted
                && node.alive
                && node.standing != Standing::Hidden
                && !barred(node)
        };
        let mut fitting: Vec<&Node> = nodes().filter(fits).collect();
        let proven = nodes().any(|node| self.is_proven(node) == Some(true));
        if proven || fitting.iter().any(|node| node.standing == Standing::Public) {
            fitting.retain(|node| node.standing == Standing::Public);
        }
        let hopeful = |node: &Node| {
            let has_relay = matches!(node.label, Label::Others | Label::Ours(_));
            has_relay && (self.is_proven(node) != Some(false) || self.proof_until(node) > self.now)
        };
        if fitting.iter().any(|node| !node.control_plane) || nodes().any(|node| !node.control_plane && hopeful(node)) {
            fitting.retain(|node| !node.control_plane);
        }
        let ripe = |node: &Node| {
            node.since.checked_add(CONTROL_PLANE_GRACE).ok().filter(|at| node.control_plane && *at > self.now)
        };
        let young = fitting.iter().filter_map(|node| ripe(node)).min();
        let retries = nodes().filter_map(|node| match node.mark {
            Some(Mark::Unreachable(at)) => at.checked_add(RETRY).ok().filter(|at| *at > self.now),
            _ => None,
        });
        let later = retries.chain(young).min();
        fitting.retain(|node| ripe(node).is_none());
        (fitting, later)
    }

    fn relay_of(&self, node: &Node) -> Option<&Relay> {
        self.relays.iter().find(|relay| relay.node.as_ref() == Some(&node.name))
    }

    fn reach_of(&self, node: &Node) -> Option<&Reach> {
        self.reach.get(&self.relay_of(node)?.name)
    }

    /// Whether the relay on a node is; of one that is not there yet nobody can tell.
    fn is_proven(&self, node: &Node) -> Option<bool> {
        self.proven(&self.relay_of(node)?.name)
    }

    fn proven(&self, relay: &str) -> Option<bool> {
        self.reach.get(relay).and_then(Reach::proven)
    }

    /// Until when the relay on a node may be unproven.
    fn proof_until(&self, node: &Node) -> Timestamp {
        let Label::Ours(placed) = node.label else { return self.now };
        let relay = self.relay_of(node);
        let times = relay.into_iter().flat_map(|relay| [Some(relay.since), relay.unproven_since]).flatten();
        times.chain([placed]).max().and_then(|at| at.checked_add(PROOF_TIME).ok()).unwrap_or(self.now)
    }

    fn note(&mut self, at: Option<Timestamp>) {
        self.look_again = [self.look_again, at].into_iter().flatten().min();
    }
}

#[cfg(test)]
mod tests;
