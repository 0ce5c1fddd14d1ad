//! What an apply changed, refused and found in the way.

use std::fmt;

use ipnet::IpNet;

use super::{Ground, NetPlan, RouteKind, Underlay};

/// Why nothing could be done.
#[derive(Debug, thiserror::Error)]
pub enum NetError {
    /// The interface of the plan is not there.
    #[error("expected the interface {name}, found none of that name: create the WireGuard device first")]
    NoDevice {
        /// Its name.
        name: String,
    },
    /// The kernel refused to answer.
    #[error("could not {action}: {source}; expected to run with CAP_NET_ADMIN")]
    Netlink {
        /// What was tried.
        action: &'static str,
        /// The kernel's answer.
        source: nlink::Error,
    },
}

impl NetError {
    pub(super) fn netlink(action: &'static str) -> impl FnOnce(nlink::Error) -> Self {
        move |source| Self::Netlink { action, source }
    }
}

/// The result of one apply.
#[derive(Debug, Clone)]
pub struct Report {
    /// What was different and is now as planned. Empty when all was well.
    pub changes: Vec<Change>,
    /// Single entries that could not be made as planned.
    pub failures: Vec<Failure>,
    /// What of the plan was refused because it would hide something local.
    pub overlaps: Vec<Overlap>,
    /// What others have set up that stands in the way, with the remedy.
    pub problems: Vec<Problem>,
    /// The underlay that the plan was checked against.
    pub underlay: Underlay,
    /// What later changes of single routes build on, if all stands as planned.
    pub ground: Option<Ground>,
    /// Whether a failure concerns the whole node rather than one peer.
    unfit: bool,
    standing: Option<Standing>,
}

impl Report {
    pub(super) fn new(underlay: Underlay) -> Self {
        Self {
            changes: Vec::new(),
            failures: Vec::new(),
            overlaps: Vec::new(),
            problems: Vec::new(),
            underlay,
            ground: None,
            unfit: false,
            standing: None,
        }
    }

    /// Proof that interface, addresses, firewall, rules and the refusal of what is absent stand; the CNI file is published only
    /// with it. It does not wait for a peer, nor for a peer's route.
    pub fn standing(&self) -> Option<Standing> {
        self.standing
    }

    pub(super) fn changed(&mut self, kind: ChangeKind, what: impl Into<String>) {
        self.changes.push(Change { kind, what: what.into() });
    }

    pub(super) fn failed(&mut self, kind: ChangeKind, what: impl Into<String>, error: impl fmt::Display) {
        self.unfit |= kind != ChangeKind::Sysctl;
        self.failures.push(Failure { kind, what: what.into(), error: error.to_string() });
    }

    /// A peer's route could not be set: that peer is not reached, and the node is no worse for it.
    pub(super) fn failed_peer(&mut self, what: impl Into<String>, error: impl fmt::Display) {
        self.failures.push(Failure { kind: ChangeKind::Route, what: what.into(), error: error.to_string() });
    }

    pub(super) fn settle(&mut self, plan: &NetPlan) {
        if !self.unfit && !plan.addresses.is_empty() {
            self.standing = Some(Standing { mtu: plan.mtu });
        }
    }
}

/// Proof that the host network stood as planned when it was last applied.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Standing {
    mtu: u16,
}

impl Standing {
    /// A proof of nothing, for tests of what asks for one.
    #[doc(hidden)]
    pub fn for_tests(mtu: u16) -> Self {
        Self { mtu }
    }

    /// The device's MTU.
    pub fn mtu(self) -> u16 {
        self.mtu
    }
}

/// One difference that was repaired.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Change {
    /// The sort of thing, for the metric of repairs.
    pub kind: ChangeKind,
    /// What was done, for the log.
    pub what: String,
}

/// What sort of thing was changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum ChangeKind {
    /// MTU or state of the device.
    Link,
    /// An address of the device.
    Address,
    /// A per-device sysctl.
    Sysctl,
    /// A route of ours.
    Route,
    /// A policy rule of ours.
    Rule,
    /// Our nftables table.
    Firewall,
}

impl ChangeKind {
    /// The metric label.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Link => "link",
            Self::Address => "address",
            Self::Sysctl => "sysctl",
            Self::Route => "route",
            Self::Rule => "rule",
            Self::Firewall => "firewall",
        }
    }
}

/// One thing that could not be done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure {
    /// The sort of thing.
    pub kind: ChangeKind,
    /// What was tried.
    pub what: String,
    /// The kernel's answer.
    pub error: String,
}

/// A prefix that was not routed into the mesh, because something local would have been hidden.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Overlap {
    /// What the plan wanted to route or claim.
    pub prefix: IpNet,
    /// What it was to be; `None` for a claim.
    pub kind: Option<RouteKind>,
    /// What it would have hidden.
    pub with: IpNet,
    /// Why that is protected.
    pub why: Protected,
}

impl Overlap {
    /// Whether this is how it should be: the API server's node has its address carried for others, and this node reaches it by
    /// the underlay all the same.
    pub fn is_expected(&self) -> bool {
        self.kind == Some(RouteKind::Node) && self.why == Protected::ApiServer
    }
}

impl fmt::Display for Overlap {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { prefix, with, .. } = self;
        write!(f, "{prefix} is not routed into the mesh: ")?;
        match self.why {
            Protected::Connected => write!(f, "it lies in {with}, to which this node is directly connected"),
            Protected::Gateway => write!(f, "it is this node's gateway"),
            Protected::Resolver => write!(f, "it is this node's resolver"),
            Protected::ApiServer => write!(f, "this node reaches the API server there"),
            Protected::Own => write!(f, "it lies in {with}, which is this node's own"),
            Protected::Internet => write!(f, "it is wider than any private range"),
            Protected::Special => write!(f, "it is loopback, link-local, multicast or broadcast"),
        }
    }
}

/// Why a destination is never routed into the mesh.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Protected {
    /// The subnet of one of this node's own interfaces.
    Connected,
    /// A default gateway.
    Gateway,
    /// A resolver of `/etc/resolv.conf`.
    Resolver,
    /// An address of the API server.
    ApiServer,
    /// This node's own pods or addresses.
    Own,
    /// Wider than any private range.
    Internet,
    /// Loopback, link-local (the metadata service is), multicast or broadcast: nobody's to route.
    Special,
}

/// Something of others that stands in the way. [`fmt::Display`] says what was expected, found, and what to do.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Problem {
    /// Another table drops what is forwarded; an accept of ours cannot undo it.
    ForwardBlocked {
        /// Family and name of the table.
        table: String,
        /// Its chain.
        chain: String,
        /// What to run.
        remedy: String,
    },
    /// Somebody else's rule or route comes before ours or is in our tables.
    RouteConflict {
        /// The rule or route.
        found: String,
        /// What to do about it.
        remedy: String,
    },
    /// The plan wants IPv6 and the host has it turned off; the IPv4 part was applied.
    Ipv6Off {
        /// Where it is turned off.
        found: String,
        /// What to do about it.
        remedy: String,
    },
    /// A sysctl that only the host's administrator can set.
    Sysctl {
        /// The command that sets it.
        command: String,
        /// What it is now.
        found: String,
        /// What it is needed for.
        reason: &'static str,
    },
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::ForwardBlocked { table, chain, remedy } => write!(
                f,
                "expected forwarded packets to pass, found that chain {chain} of table {table} drops them: run {remedy}"
            ),
            Self::RouteConflict { found, remedy } => {
                write!(f, "expected our routing rules to decide first, found {found}: {remedy}")
            }
            Self::Ipv6Off { found, remedy } => write!(f, "expected IPv6 on the device, found {found}: {remedy}"),
            Self::Sysctl { command, found, reason } => {
                write!(f, "expected another value {reason}, found {found}: run {command}")
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn standing_after(fail: impl FnOnce(&mut Report)) -> bool {
        let mut report = Report::new(Underlay::default());
        fail(&mut report);
        report.settle(&crate::net::compile::example());
        report.standing().is_some()
    }

    #[test]
    fn one_peers_route_does_not_keep_a_node_from_being_ready_but_a_rule_does() {
        assert!(standing_after(|_| {}));
        assert!(standing_after(|r| r.failed_peer("route", "no")));
        assert!(standing_after(|r| r.failed(ChangeKind::Sysctl, "sysctl", "no")));
        assert!(!standing_after(|r| r.failed(ChangeKind::Rule, "rule", "no")));
        assert!(!standing_after(|r| r.failed(ChangeKind::Firewall, "table", "no")));
    }
}
