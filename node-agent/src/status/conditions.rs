//! The conditions of `MeshNode.status`: each is true of this moment, or it is not there.

use crate::paths::Summary;
use crds::{Condition, ConditionStatus, names::RELAY_PORTS_EXHAUSTED};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use topology::spec::AdmissionState;
use wgdev::DeviceError;

/// The schema's limit of a message, with room for an ellipsis.
const MAX_MESSAGE: usize = 1000;
/// WireGuard over IPv6: 40 bytes of IPv6, 8 of UDP, 32 of WireGuard.
const OVERHEAD: u32 = 80;

/// What is known of this node; everything a condition is made of.
#[derive(Clone, Debug, Default)]
pub struct Facts {
    /// What the operator said of our key.
    pub admission: Admission,
    /// The device's MTU, or why there is none. `None` before it was tried.
    pub device: Option<Result<u16, DeviceProblem>>,
    /// The smallest MTU of the underlay.
    pub underlay_mtu: Option<u32>,
    /// Host candidates found.
    pub host_candidates: usize,
    /// Server-reflexive candidates found.
    pub reflexive_candidates: usize,
    /// STUN servers that were asked.
    pub stun_servers: usize,
    /// Result of the last change of the host network; `None` before the first.
    pub network: Option<Network>,
    /// The CNI file.
    pub cni: Cni,
    /// Paths to the peers.
    pub paths: Summary,
    /// Why the public port of a relay on this node does not lead to it.
    pub tls_port_taken: Option<String>,
    /// What the mass-removal guard holds back.
    pub guard: Option<String>,
    /// Why it looks as if somebody were undoing our work.
    pub contended: Option<String>,
    /// Why the state folder can't be written.
    pub not_persisted: Option<String>,
    /// What is wrong with the clock.
    pub clock_behind: Option<String>,
}

/// Why there is no device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeviceProblem {
    /// One word.
    pub reason: &'static str,
    /// One sentence.
    pub message: String,
}

/// An admin demands the kernel's WireGuard, and the kernel has none. Also the type of a condition.
const NO_KERNEL_WIREGUARD: &str = "NoKernelWireGuard";

impl From<&DeviceError> for DeviceProblem {
    fn from(error: &DeviceError) -> Self {
        let reason = match error {
            DeviceError::NoKernelWireGuard { .. } => NO_KERNEL_WIREGUARD,
            _ => "DeviceFailed",
        };
        Self { reason, message: error.to_string() }
    }
}

/// What the operator decided, as far as this node is concerned.
#[derive(Clone, Debug, Default)]
pub struct Admission {
    /// Its verdict.
    pub state: AdmissionState,
    /// The admitted key is ours.
    pub own_key: bool,
    /// A slice names this node with that key.
    pub listed: bool,
    /// Why, in one word.
    pub reason: Option<String>,
    /// Why, in one sentence.
    pub message: String,
    /// An admin took the node out.
    pub suspended: bool,
    /// The spec has mesh addresses.
    pub has_addresses: bool,
}

/// Result of the last change of the host network.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Network {
    /// What failed concerns the whole node, not one peer.
    pub unfit: bool,
    /// What could not be done.
    pub failures: Vec<String>,
    /// Somebody's rule or route stands before ours.
    pub conflicts: Vec<String>,
    /// Somebody drops what is forwarded.
    pub forward_blocked: Vec<String>,
    /// Global settings that only an admin can make.
    pub sysctls: Vec<String>,
    /// What the node's own network keeps.
    pub overlaps: Vec<String>,
}

/// The CNI file.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Cni {
    /// Another program configures pods.
    #[default]
    NotManaged,
    /// The device or the pod ranges are not there yet.
    Waiting(String),
    /// Published.
    Ready,
    /// Refused or failed: reason and message.
    Failed(&'static str, String),
}

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
mod tests {
    use super::*;
    use path::Reason;

    fn good() -> Facts {
        Facts {
            admission: Admission {
                state: AdmissionState::Accepted,
                own_key: true,
                listed: true,
                has_addresses: true,
                ..Admission::default()
            },
            device: Some(Ok(1420)),
            underlay_mtu: Some(1500),
            host_candidates: 1,
            reflexive_candidates: 1,
            stun_servers: 1,
            network: Some(Network::default()),
            cni: Cni::Ready,
            ..Facts::default()
        }
    }

    fn find(facts: &Facts, type_: &str) -> Option<(ConditionStatus, String)> {
        observe(facts).into_iter().find(|o| o.type_ == type_).map(|o| (o.status, o.reason))
    }

    fn ready_reason(facts: &Facts) -> String {
        find(facts, "Ready").unwrap().1
    }

    #[test]
    fn a_programmed_and_admitted_node_is_ready_also_alone() {
        assert_eq!(find(&good(), "Ready"), Some((ConditionStatus::True, "Programmed".into())));
        assert_eq!(find(&good(), "PathsHealthy"), Some((ConditionStatus::True, "NoPeers".into())));
        assert!(observe(&good()).iter().all(|o| o.status == ConditionStatus::True));
    }

    #[test]
    fn ready_says_what_is_missing() {
        let with = |change: fn(&mut Facts)| {
            let mut facts = good();
            change(&mut facts);
            ready_reason(&facts)
        };
        assert_eq!(with(|f| f.admission.listed = false), "NotInDirectory");
        assert_eq!(with(|f| f.device = None), "DeviceMissing");
        assert_eq!(with(|f| (f.device, f.admission.has_addresses) = (None, false)), "NoSpec");
        assert_eq!(with(|f| f.device = Some(Err(DeviceProblem::from(&DeviceError::Stopped)))), "DeviceFailed");
        assert_eq!(with(|f| f.network = None), "RoutesMissing");
        assert_eq!(with(|f| f.network.as_mut().unwrap().unfit = true), "RoutesFailed");
        assert_eq!(with(|f| f.network.as_mut().unwrap().failures = vec!["x".into()]), "Programmed", "one peer's route");
        assert_eq!(with(|f| f.cni = Cni::Waiting("w".into())), "CNIWaiting");
        assert_eq!(with(|f| f.cni = Cni::Failed("PluginsMissing", "ptp".into())), "CNINotReady");
        assert_eq!(with(|f| f.admission.suspended = true), "Suspended");
        assert_eq!(with(|f| f.admission.own_key = false), "KeyNotAdmitted");
        assert_eq!(
            with(|f| (f.admission.state, f.admission.reason) = (AdmissionState::Rejected, Some("DuplicateKey".into()))),
            "DuplicateKey"
        );
    }

    #[test]
    fn a_kernel_without_wireguard_is_a_condition_of_its_own_while_it_is_demanded() {
        let mut facts = good();
        assert_eq!(find(&facts, "NoKernelWireGuard"), None);
        let error = DeviceError::NoKernelWireGuard { found: "one without".into() };
        facts.device = Some(Err(DeviceProblem::from(&error)));
        assert_eq!(ready_reason(&facts), "NoKernelWireGuard");
        assert_eq!(find(&facts, "NoKernelWireGuard"), Some((ConditionStatus::True, "ModuleMissing".into())));
        let told = observe(&facts).into_iter().find(|o| o.type_ == "NoKernelWireGuard").unwrap().message;
        assert_eq!(told, error.to_string());
    }

    #[test]
    fn at_most_five_unconnected_peers_are_named() {
        let mut facts = good();
        facts.paths.unconnected = (0..crate::paths::NAMED_PEERS).map(|n| (format!("n{n}"), Reason::NoAnswer)).collect();
        facts.paths.down = 7;
        let all = observe(&facts);
        let message = &all.iter().find(|o| o.type_ == "PathsHealthy").unwrap().message;
        assert!(message.contains("n4 (NoAnswer) and 2 more"), "{message}");
        assert!(!message.contains("n5"), "{message}");
        assert_eq!(ready_reason(&facts), "Programmed", "paths are not part of Ready");
    }

    #[test]
    fn an_mtu_that_the_underlay_cannot_carry_is_told() {
        let mut facts = good();
        facts.underlay_mtu = Some(1499);
        assert_eq!(find(&facts, "MTUConsistent"), Some((ConditionStatus::False, "DeviceTooLarge".into())));
    }

    #[test]
    fn warnings_are_there_only_while_they_hold() {
        let mut facts = good();
        assert_eq!(find(&facts, "ForwardBlocked"), None);
        facts.network.as_mut().unwrap().forward_blocked = vec!["docker".into()];
        facts.guard = Some("3 peers kept".into());
        assert_eq!(find(&facts, "ForwardBlocked").unwrap().0, ConditionStatus::True);
        assert_eq!(find(&facts, "MassRemovalGuard").unwrap().0, ConditionStatus::True);
    }

    #[test]
    fn pairs_without_a_port_on_any_relay_are_a_condition_while_there_are_any() {
        let mut facts = good();
        assert_eq!(find(&facts, RELAY_PORTS_EXHAUSTED), None);
        facts.paths.portless = 3;
        assert_eq!(find(&facts, RELAY_PORTS_EXHAUSTED), Some((ConditionStatus::True, "NoPortLeft".into())));
        assert_eq!(ready_reason(&facts), "Programmed", "paths are not part of Ready");
    }

    #[test]
    fn a_transition_time_moves_only_with_the_status() {
        let at = |seconds| Time(k8s_openapi::jiff::Timestamp::from_second(seconds).unwrap());
        let first = with_history(observe(&good()), &[], Some(1), &at(1));
        let mut facts = good();
        facts.reflexive_candidates = 0;
        facts.network.as_mut().unwrap().failures = vec!["x".into()];
        let second = with_history(observe(&facts), &first, Some(2), &at(2));
        let time = |c: &[Condition], t: &str| c.iter().find(|c| c.type_ == t).unwrap().last_transition_time.clone();
        assert_eq!(time(&second, "EndpointDiscovered"), at(1), "another reason, the same status");
        assert_eq!(time(&second, "RoutesProgrammed"), at(2));
    }

    #[test]
    fn a_long_message_is_cut_within_the_schema() {
        let mut facts = good();
        facts.guard = Some("ü".repeat(2000));
        assert!(observe(&facts).iter().all(|o| o.message.len() <= 1024));
    }
}
