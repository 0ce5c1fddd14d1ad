//! The conditions of `MeshNode.status`: each is true of this moment, or it is not there.

use crate::paths::Summary;
use crds::{Condition, ConditionStatus, names::RELAY_PORTS_EXHAUSTED};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use topology::spec::AdmissionState;

mod facts;

use facts::NO_KERNEL_WIREGUARD;
pub use facts::{Admission, Cni, DeviceProblem, Facts, Network};

/// The schema's limit of a message, with room for an ellipsis.
const MAX_MESSAGE: usize = 1000;
/// WireGuard over IPv6: 40 bytes of IPv6, 8 of UDP, 32 of WireGuard.
const OVERHEAD: u32 = 80;

/// One observation, without its history.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Observed {
    /// Its type.
    pub type_: &'static str,
    /// Whether it holds.
    pub status: ConditionStatus,
    /// One word.
    pub reason: String,
    /// One sentence.
    pub message: String,
}

impl Observed {
    fn new(type_: &'static str, holds: bool, reason: impl Into<String>, message: impl Into<String>) -> Self {
        let status = if holds { ConditionStatus::True } else { ConditionStatus::False };
        Self { type_, status, reason: reason.into(), message: shorten(message.into()) }
    }
}

/// Everything that can be said, in the order in which it is shown.
pub fn observe(facts: &Facts) -> Vec<Observed> {
    let always = [
        ready(facts),
        Observed::new("KeyPublished", true, "Published", "the public key is in this status"),
        endpoint_discovered(facts),
        paths_healthy(&facts.paths),
        mtu_consistent(facts),
        routes_programmed(facts),
    ];
    always.into_iter().chain(cni_ready(&facts.cni)).chain(warnings(facts)).collect()
}

/// Gives observations their history: since when, and for which generation.
pub fn with_history(
    observed: Vec<Observed>,
    before: &[Condition],
    generation: Option<i64>,
    now: &Time,
) -> Vec<Condition> {
    let condition = |o: Observed| {
        let old = before.iter().find(|c| c.type_ == o.type_ && c.status == o.status);
        Condition {
            type_: o.type_.into(),
            status: o.status,
            reason: o.reason,
            message: o.message,
            observed_generation: generation,
            last_transition_time: old.map_or(now, |c| &c.last_transition_time).clone(),
        }
    };
    observed.into_iter().map(condition).collect()
}

/// Why the data plane does not stand as told, if it doesn't; also the answer of the readiness probe.
pub fn not_programmed(facts: &Facts) -> Option<(&'static str, String)> {
    match &facts.device {
        None if !facts.admission.has_addresses => {
            return Some(("NoSpec", "waits for the operator to give this node its addresses".into()));
        }
        None => return Some(("DeviceMissing", "the mesh device is being made".into())),
        Some(Err(why)) => return Some((why.reason, why.message.clone())),
        Some(Ok(_)) => {}
    }
    match &facts.network {
        None => return Some(("RoutesMissing", "routes are being made".into())),
        Some(network) if network.unfit => return Some(("RoutesFailed", network.failures.join("; "))),
        Some(_) => {}
    }
    match &facts.cni {
        Cni::NotManaged | Cni::Ready => None,
        Cni::Waiting(why) => Some(("CNIWaiting", why.clone())),
        Cni::Failed(_, why) => Some(("CNINotReady", why.clone())),
    }
}

fn ready(facts: &Facts) -> Observed {
    let not = |reason: &str, message: String| Observed::new("Ready", false, reason, message);
    let admission = &facts.admission;
    if admission.suspended {
        return not("Suspended", "an admin took this node out of the mesh (spec.suspended)".into());
    }
    if let Some((reason, message)) = not_programmed(facts) {
        return not(reason, message);
    }
    if admission.state != AdmissionState::Accepted || !admission.own_key {
        let reason = admission.reason.clone().filter(|_| admission.state != AdmissionState::Accepted);
        let message = match admission.message.as_str() {
            "" => "programmed; waits for the operator to admit this node's key",
            message => message,
        };
        return not(&reason.unwrap_or_else(|| "KeyNotAdmitted".into()), message.into());
    }
    if !admission.listed {
        let message = "the key is admitted, but no slice names this node yet, so no peer knows it; \
                       if that lasts, look for failed writes in the operator's log";
        return not("NotInDirectory", message.into());
    }
    Observed::new("Ready", true, "Programmed", "device, routes and peers stand as the operator published them")
}

fn endpoint_discovered(facts: &Facts) -> Observed {
    let (host, reflexive) = (facts.host_candidates, facts.reflexive_candidates);
    let message = match (host, reflexive, facts.stun_servers) {
        (0, 0, _) => {
            "found no address by which another node could reach this one; check that an interface with an address is up"
                .into()
        }
        (_, 0, 0) => format!(
            "{host} addresses of interfaces; no STUN server is known, so an address behind NAT can't be learned"
        ),
        (_, 0, n) => format!("{host} addresses of interfaces; none of {n} STUN servers has answered"),
        _ => format!("{host} addresses of interfaces, {reflexive} seen by STUN servers"),
    };
    let reason = match (host, reflexive) {
        (0, 0) => "NoCandidates",
        (_, 0) => "HostOnly",
        _ => "Discovered",
    };
    Observed::new("EndpointDiscovered", host + reflexive > 0, reason, message)
}

fn paths_healthy(paths: &Summary) -> Observed {
    if paths.unconnected.is_empty() {
        let (reason, message) = match (paths.direct, paths.relayed) {
            (0, 0) => ("NoPeers", "no peer has been tried for long enough to say".to_owned()),
            (_, 0) => ("AllConnected", "every peer is connected".to_owned()),
            (_, n) => ("AllConnected", format!("every peer is connected, {n} of them through a relay")),
        };
        return Observed::new("PathsHealthy", true, reason, message);
    }
    let named = paths.unconnected.iter().map(|(name, reason)| format!("{name} ({})", reason.as_str()));
    let mut message = format!("not connected: {}", named.collect::<Vec<_>>().join(", "));
    if let Some(more) = (paths.down as usize).checked_sub(paths.unconnected.len()).filter(|n| *n > 0) {
        message.push_str(&format!(" and {more} more"));
    }
    Observed::new("PathsHealthy", false, "PeersUnconnected", message)
}

fn mtu_consistent(facts: &Facts) -> Observed {
    let device = facts.device.as_ref().and_then(|d| d.as_ref().ok());
    let type_ = "MTUConsistent";
    match (device, facts.underlay_mtu) {
        (Some(device), Some(underlay)) if u32::from(*device) + OVERHEAD > underlay => Observed::new(
            type_,
            false,
            "DeviceTooLarge",
            format!(
                "expected a device MTU of at most {}, which the underlay's {underlay} leaves, found {device}; lower Mesh.spec.mtu or raise the underlay's MTU",
                underlay.saturating_sub(OVERHEAD)
            ),
        ),
        (Some(_), _) => Observed::new(type_, true, "Fits", "packets of the mesh fit into the underlay's"),
        (None, _) => {
            Observed { status: ConditionStatus::Unknown, ..Observed::new(type_, false, "NoDevice", "no device yet") }
        }
    }
}

fn routes_programmed(facts: &Facts) -> Observed {
    let type_ = "RoutesProgrammed";
    match &facts.network {
        None => Observed { status: ConditionStatus::Unknown, ..Observed::new(type_, false, "NotYet", "no device yet") },
        Some(network) if !network.failures.is_empty() => {
            Observed::new(type_, false, "Failed", network.failures.join("; "))
        }
        Some(network) if !network.conflicts.is_empty() => {
            Observed::new(type_, false, "Conflict", network.conflicts.join("; "))
        }
        Some(_) => Observed::new(type_, true, "Programmed", "routes, rules and firewall stand"),
    }
}

fn cni_ready(cni: &Cni) -> Option<Observed> {
    let type_ = "CNIReady";
    match cni {
        Cni::NotManaged => None,
        Cni::Waiting(why) => Some(Observed::new(type_, false, "Waiting", why)),
        Cni::Ready => Some(Observed::new(type_, true, "Published", "the CNI configuration is published")),
        Cni::Failed(reason, message) => Some(Observed::new(type_, false, *reason, message)),
    }
}

fn without_port(peers: u32) -> Option<String> {
    let peers = match peers {
        0 => return None,
        1 => "a peer that is".to_owned(),
        n => format!("{n} peers that are"),
    };
    Some(format!(
        "no relay has a port left for {peers} not reached directly (`warren-agent paths` says which); expected a free port on one, found \
         none: let one more node be a relay, or give relays more ports (relay.relayPorts)"
    ))
}

/// Conditions that are bad news: there only while they hold.
fn warnings(facts: &Facts) -> impl Iterator<Item = Observed> {
    let network = facts.network.clone().unwrap_or_default();
    let several = |type_, reason: &'static str, found: Vec<String>| {
        (!found.is_empty()).then(|| Observed::new(type_, true, reason, found.join("; ")))
    };
    let one = |type_, reason: &'static str, found: &Option<String>| {
        found.as_ref().map(|message| Observed::new(type_, true, reason, message))
    };
    let problem = facts.device.as_ref().and_then(|device| device.as_ref().err());
    let no_kernel = problem.filter(|p| p.reason == NO_KERNEL_WIREGUARD).map(|p| p.message.clone());
    [
        one(NO_KERNEL_WIREGUARD, "ModuleMissing", &no_kernel),
        several("ForwardBlocked", "DroppedByOthers", network.forward_blocked),
        several("HostSettings", "SysctlNeeded", network.sysctls),
        several("UnderlayOverlap", "LocalNetwork", network.overlaps),
        one("RulesContended", "RepairedAgainAndAgain", &facts.contended),
        one("TLSPortTaken", "ListenedOn", &facts.tls_port_taken),
        one(RELAY_PORTS_EXHAUSTED, "NoPortLeft", &without_port(facts.paths.portless)),
        one("MassRemovalGuard", "Holding", &facts.guard),
        one("StateNotPersisted", "WriteFailed", &facts.not_persisted),
        one("ClockBehind", "SetBack", &facts.clock_behind),
    ]
    .into_iter()
    .flatten()
}

fn shorten(message: String) -> String {
    if message.len() <= MAX_MESSAGE {
        return message;
    }
    let end = (0..=MAX_MESSAGE).rev().find(|i| message.is_char_boundary(*i)).unwrap_or(0);
    format!("{}...", &message[..end])
}

#[cfg(test)]
mod tests;
