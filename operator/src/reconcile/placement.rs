//! From what is known of the cluster to what placement looks at, and from what it says to writes.

use super::{
    API_VERSION,
    diff::{Target, Verb, Write},
};
use crate::{
    convert::dated,
    events::Notice,
    index::{Cluster, Kind, MeshNodeValue, NodeValue, RelayValue, Stored, kinds::REACHABLE},
    placement::{Change, Label, Mark, Node, Plan, Reach, Relay, Standing, Why, Wish},
};
use crds::{
    Condition, ConditionStatus,
    address::is_public,
    mesh_node::{AdmissionState, CandidateKind, NatClass, RelayTransport, RelayWish},
    names::{RELAY_LABEL, RELAY_PLACEMENT},
};
use k8s_openapi::{apimachinery::pkg::apis::meta::v1::Time, jiff::Timestamp};
use serde_json::json;
use std::net::{IpAddr, SocketAddr};

/// Sites are counted in a message up to this many: a number that moves with every node that joins would reach every node each time.
const MOST_COUNTED: usize = 5;

/// What placement says of this cluster now.
pub fn plan(cluster: &Cluster, now: Timestamp) -> Plan {
    let nodes: Vec<Node> = cluster.nodes.iter().map(|(name, node)| facts(cluster, name, node)).collect();
    let relays: Vec<Relay> = cluster.relays.iter().map(|(name, relay)| relay_facts(name, relay)).collect();
    crate::placement::plan(&nodes, &relays, now)
}

fn facts(cluster: &Cluster, name: &str, node: &Stored<NodeValue>) -> Node {
    let member = cluster.mesh_nodes.get(name);
    let spec = member.map(|member| &member.value.spec);
    let admitted = spec.is_some_and(|spec| spec.admission.state == AdmissionState::Accepted && !spec.suspended);
    let value = &node.value;
    let created = member.map_or(node.meta.created, |member| member.meta.created);
    let reached = member.into_iter().flat_map(|member| &member.value.status.relays);
    Node {
        name: name.to_owned(),
        domain: value.zone.clone().unwrap_or_else(|| name.to_owned()),
        site: member
            .and_then(|member| public_address(&member.value))
            .map_or_else(|| name.to_owned(), |ip| ip.to_string()),
        control_plane: value.control_plane,
        admitted,
        alive: !value.dead,
        since: Timestamp::from_second(created).unwrap_or_default(),
        standing: standing(value, member.map(|member| &member.value)),
        wish: match spec.map(|spec| spec.relay).unwrap_or_default() {
            RelayWish::Auto => Wish::Auto,
            RelayWish::Always => Wish::Always,
            RelayWish::Never => Wish::Never,
        },
        label: match (value.relay, value.refuses_relay, value.mark) {
            (true, _, Some(Mark::Placed(at))) => Label::Ours(at),
            (true, ..) => Label::Others,
            (false, true, _) => Label::Refused,
            (false, false, _) => Label::None,
        },
        mark: value.mark,
        reaches: reached.map(|reach| (reach.name.clone(), reach.transport == RelayTransport::Quic)).collect(),
    }
}

fn relay_facts(name: &str, relay: &Stored<RelayValue>) -> Relay {
    let reachable = relay.value.reachable.as_ref().filter(|stored| stored.status == ConditionStatus::False);
    Relay {
        name: name.to_owned(),
        node: relay.value.node_name.clone(),
        since: Timestamp::from_second(relay.meta.created).unwrap_or_default(),
        unproven_since: reachable.map(|stored| stored.last_transition_time.0),
    }
}

fn candidates(member: &MeshNodeValue) -> impl Iterator<Item = (CandidateKind, IpAddr)> {
    let listed = member.status.candidates.iter();
    listed.filter_map(|c| Some((c.kind, c.address.parse::<SocketAddr>().ok()?.ip())))
}

/// The IPv4 address that the world sees the node at, as far as it knows.
fn public_address(member: &MeshNodeValue) -> Option<IpAddr> {
    let seen = |kind| kind != CandidateKind::Host;
    let mut found = candidates(member).filter(|(kind, ip)| ip.is_ipv4() && (seen(*kind) || is_public(*ip)));
    found.next().map(|(_, ip)| ip)
}

fn standing(node: &NodeValue, member: Option<&MeshNodeValue>) -> Standing {
    // No pod runs on a machine without kubelet.
    let Some(member) = member.filter(|_| !node.without_kubelet) else { return Standing::Hidden };
    let own = || candidates(member).filter(|(kind, _)| *kind == CandidateKind::Host).map(|(_, ip)| ip);
    let mut public = own().chain(node.external_ips.iter().copied()).filter(|ip| is_public(*ip)).peekable();
    let open = [member.status.nat.ipv4, member.status.nat.ipv6].contains(&Some(NatClass::Open));
    let any = public.peek().is_some() || open;
    if public.any(|ip| ip.is_ipv4()) {
        Standing::Public
    } else if any {
        Standing::Perhaps
    } else {
        Standing::Hidden
    }
}

/// The labels to change.
pub fn label_writes(cluster: &Cluster, plan: &Plan, now: Timestamp) -> Vec<Write> {
    let write = |change: &Change| {
        let node = cluster.nodes.get(&change.node)?;
        let label = change.place.then_some("true");
        let metadata = json!({
            // Whoever labels this node meanwhile is not overwritten.
            "resourceVersion": node.meta.version,
            "labels": { RELAY_LABEL: label },
            "annotations": { RELAY_PLACEMENT: change.mark(now).map(|mark| mark.to_string()) },
        });
        let verb = Verb::Merge(json!({ "metadata": metadata }));
        Some(Write { target: Target::new(Kind::Node, &change.node), verb })
    };
    plan.changes.iter().filter_map(write).collect()
}

/// What is said of relays that is not said yet.
pub fn condition_writes(cluster: &Cluster, plan: &Plan, now: Timestamp) -> Vec<Write> {
    let write = |(name, reach): (&String, &Reach)| {
        let relay = cluster.relays.get(name)?;
        let stored = relay.value.reachable.as_ref();
        let condition =
            dated(condition(reach, relay.meta.generation, now), stored.map(std::slice::from_ref).unwrap_or_default());
        let known = stored.filter(|stored| stored.observed_generation == condition.observed_generation);
        if known.is_some_and(|known| known.same_as(&condition)) {
            return None;
        }
        let (metadata, status) = (json!({ "name": name }), json!({ "conditions": [condition] }));
        let body = json!({ "apiVersion": API_VERSION, "kind": "MeshRelay", "metadata": metadata, "status": status });
        Some(Write { target: Target::status(Kind::MeshRelay, name), verb: Verb::Apply(body) })
    };
    plan.reach.iter().filter_map(write).collect()
}

fn condition(reach: &Reach, generation: Option<i64>, now: Timestamp) -> Condition {
    let sites = |n: usize| match n {
        0 => "no site".to_owned(),
        1 => "1 site".to_owned(),
        MOST_COUNTED.. => format!("{MOST_COUNTED} or more sites"),
        n => format!("{n} sites"),
    };
    let by = if reach.by_tcp { "TLS" } else { "QUIC" };
    let counts = format!("nodes at {} reach it by QUIC, at {} by TLS alone", sites(reach.udp), sites(reach.tcp));
    let (status, reason, message) = match reach.proven() {
        Some(true) => (ConditionStatus::True, "Reached", counts),
        Some(false) => {
            let message = format!(
                "expected nodes of {} other sites to reach it by {by}, found: {counts}; open its ports, or have a relay elsewhere",
                reach.needed
            );
            (ConditionStatus::False, "TooFewReach", message)
        }
        None => {
            (ConditionStatus::Unknown, "NobodyToTell", "no other node is a member of the mesh and alive".to_owned())
        }
    };
    Condition {
        type_: REACHABLE.into(),
        status,
        reason: reason.into(),
        message,
        observed_generation: generation,
        last_transition_time: Time(now),
    }
}

/// The Event for a change that was made.
pub fn notice(cluster: &Cluster, change: &Change) -> Notice {
    let (reason, warning) = match (change.place, change.why) {
        (true, _) => ("RelayPlaced", false),
        (false, Why::Unreachable) => ("RelayWithdrawn", true),
        (false, _) => ("RelayWithdrawn", false),
    };
    let because = match change.why {
        Why::Ordered => "spec.relay says so",
        Why::Candidate => "it has an address that others may reach; whether they do, its MeshRelay will say",
        Why::NoMember => "the node is no member of the mesh",
        Why::Unreachable => {
            "too few nodes reach it; open its ports and set spec.relay to Always, or wait a day for the next attempt"
        }
        Why::ControlPlane => "another node has a relay that is reached, and this one belongs to the control plane",
    };
    let what = if change.place { "this node gets a relay" } else { "this node has no relay any more" };
    Notice {
        kind: "MeshNode",
        name: change.node.clone(),
        uid: cluster.mesh_nodes.get(&change.node).map(|node| node.meta.uid.clone()),
        reason,
        warning,
        message: format!("{what}: {because}"),
    }
}

#[cfg(test)]
mod tests;
