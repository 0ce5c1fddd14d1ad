//! Invariants of the agents' plans.

use std::net::IpAddr;

use ipnet::IpNet;

use crate::check::{Rule, Violation};
use crate::mesh::MeshConfig;
use crate::node::{NodePlan, PeerTable, SelfFacts};
use crate::prefix;

/// Every invariant that one node's plan breaks.
pub fn check_node(own: &SelfFacts, mesh: &MeshConfig, peers: &PeerTable, plan: &NodePlan) -> Vec<Violation> {
    let mut found = Vec::new();
    check_allowed_ips(peers, plan, &mut found);
    check_routes(own, mesh, plan, &mut found);
    for entry in peers.entries().iter() {
        let hosts = entry.node_ips.iter().copied().map(prefix::host);
        found.extend(
            hosts
                .filter(|net| plan.unreachable.contains(net))
                .map(|net| violation(Rule::RoutesFitPeers, &entry.name, net)),
        );
    }
    found
}

fn check_allowed_ips(peers: &PeerTable, plan: &NodePlan, found: &mut Vec<Violation>) {
    let mut all: Vec<(IpNet, &str)> = Vec::new();
    for (key, peer) in &plan.peers {
        let entry = peers.entries().get(&peer.name);
        let entry = entry.filter(|entry| entry.public_key == *key);
        let given: Vec<IpNet> = entry.map(|entry| entry.claims().collect()).unwrap_or_default();
        for net in &peer.allowed_ips {
            if !given.contains(net) {
                found.push(violation(Rule::AllowedIpsFromSlices, &peer.name, *net));
            }
            all.push((*net, &peer.name));
        }
    }
    for (index, (net, name)) in all.iter().enumerate() {
        let others = &all[..index];
        let clash = others.iter().any(|(other, owner)| owner != name && prefix::overlap(*net, *other));
        if clash {
            found.push(violation(Rule::DisjointPrefixes, name, *net));
        }
    }
}

fn check_routes(own: &SelfFacts, mesh: &MeshConfig, plan: &NodePlan, found: &mut Vec<Violation>) {
    let is_ours = |net: IpNet| {
        let ours = mesh.ranges().into_iter().chain(plan.own_pod_cidrs.clone());
        ours.into_iter().any(|range| range.contains(&net))
    };
    let hosts: Vec<&IpAddr> = own.gateways.iter().chain(&own.resolvers).chain(&own.api_addresses).collect();
    let connected = own.connected.iter().map(IpNet::trunc);
    let needed: Vec<IpNet> = hosts
        .into_iter()
        .copied()
        .filter(|addr| !plan.own_mesh_ips.contains(addr))
        .map(prefix::host)
        .filter(|net| !plan.own_pod_cidrs.iter().any(|range| range.contains(net)))
        .chain(connected.filter(|net| net.prefix_len() > 0 && !is_ours(*net)))
        .collect();
    for peer in plan.peers.values() {
        for net in &peer.allowed_ips {
            if needed.iter().any(|need| prefix::overlap(*need, *net)) {
                found.push(violation(Rule::RouteOffUnderlay, &peer.name, *net));
            }
        }
    }
    for net in &plan.unreachable {
        let is_own_pod = plan.own_pod_cidrs.contains(net);
        if !is_own_pod && needed.iter().any(|need| prefix::overlap(*need, *net)) {
            found.push(violation(Rule::RouteOffUnderlay, "unreachable", *net));
        }
    }
}

/// Every pair of nodes of which only one has the other as a peer. `plans` are names and plans of accepted nodes.
pub fn check_symmetry(plans: &[(&str, &NodePlan)]) -> Vec<Violation> {
    let has = |plan: &NodePlan, name: &str| plan.peers.values().any(|peer| peer.name == name);
    let mut found = Vec::new();
    for (index, (a, of_a)) in plans.iter().enumerate() {
        for (b, of_b) in &plans[..index] {
            if has(of_a, b) != has(of_b, a) {
                found.push(Violation { rule: Rule::SymmetricPeers, detail: format!("{a} and {b}") });
            }
        }
    }
    found
}

fn violation(rule: Rule, peer: &str, net: IpNet) -> Violation {
    Violation { rule, detail: format!("{net} of {peer}") }
}
