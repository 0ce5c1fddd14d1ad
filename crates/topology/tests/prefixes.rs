//! Pod ranges, node addresses, routes and candidates.
#![allow(missing_docs, clippy::unwrap_used)]

mod world;

use topology::cluster::{ConditionType, Reason, plan};
use topology::mesh::NodeAddresses;
use topology::peer::{Candidate, CandidateKind, MAX_CANDIDATES};
use world::*;

#[test]
fn a_pod_range_that_another_node_has_stays_with_the_incumbent() {
    let mut view = cluster_of(2);
    for taken in ["10.200.1.0/24", "10.200.0.0/16", "10.200.1.128/25"] {
        let mut view = view.clone();
        let mut newcomer = node(3, "uid-3");
        newcomer.pod_cidrs = vec![taken.parse().unwrap()];
        newcomer.created = -5;
        view.nodes.push(newcomer);
        let plan = plan(&view);
        let condition = condition(&plan, &name(3), ConditionType::PodCIDRConflict).unwrap();
        assert_eq!(condition.reason, Reason::HeldByOther);
        assert!(plan.nodes[&name(3)].spec.pod_cidrs.is_empty());
        assert_eq!(plan.nodes[&name(1)].spec.pod_cidrs, view.nodes[0].pod_cidrs);
        assert_sound(&view);
    }
    // Written by hand into the MeshNode it changes nothing: the Node says what is right.
    stored(&mut view, &name(2)).spec.pod_cidrs = vec!["10.200.1.0/24".parse().unwrap()];
    assert_eq!(plan(&view).nodes[&name(2)].spec.pod_cidrs, view.nodes[1].pod_cidrs);
}

#[test]
fn a_pod_range_inside_the_mesh_or_service_range_or_not_unicast_is_not_carried() {
    let cases = [
        ("10.90.7.0/24", Reason::OverlapsReserved),
        ("10.100.0.0/16", Reason::OverlapsReserved),
        ("0.0.0.0/0", Reason::NotCarriable),
        ("169.254.0.0/17", Reason::NotCarriable),
        ("ff00::/8", Reason::NotCarriable),
        ("::/0", Reason::NotCarriable),
    ];
    for (garbage, reason) in cases {
        let mut view = cluster_of(1);
        let mut newcomer = node(2, "uid-2");
        newcomer.pod_cidrs.insert(0, garbage.parse().unwrap());
        view.nodes.push(newcomer);
        let plan = plan(&view);
        assert_eq!(condition(&plan, &name(2), ConditionType::PodCIDRConflict).unwrap().reason, reason, "{garbage}");
        assert_eq!(plan.nodes[&name(2)].spec.pod_cidrs.len(), 1, "the good one is carried");
        assert_sound(&view);
    }
}

#[test]
fn a_pod_range_that_is_free_again_goes_to_the_next_node_with_the_old_owner_buried_first() {
    let mut view = cluster_of(2);
    let mut heir = node(3, "uid-3");
    heir.pod_cidrs = view.nodes[0].pod_cidrs.clone();
    view.nodes.remove(0);
    view.nodes.push(heir);
    let plan = step(&mut view);
    assert_eq!(plan.nodes[&name(3)].spec.pod_cidrs, ["10.200.1.0/24".parse().unwrap()]);
    assert!(plan.tombstones.iter().any(|stone| stone.name == name(1)));
}

#[test]
fn equal_node_addresses_stay_with_the_incumbent_until_it_leaves() {
    let mut view = cluster_of(2);
    let mut newcomer = node(3, "uid-3");
    newcomer.internal_ips = view.nodes[0].internal_ips.clone();
    newcomer.created = -5;
    view.nodes.push(newcomer);
    step(&mut view);
    stored(&mut view, &name(3)).status = shows(key(3));
    let plan = step(&mut view);
    assert_eq!(entry(&plan, &name(1)).unwrap().node_ips, view.nodes[0].internal_ips);
    let loser = entry(&plan, &name(3)).unwrap();
    assert!(loser.node_ips.is_empty() && !loser.pod_cidrs.is_empty());
    let condition_before = condition(&plan, &name(3), ConditionType::NodeIPConflict).unwrap();
    assert!(condition_before.message.contains(&name(1)), "{}", condition_before.message);
    assert_sound(&view);
    view.nodes.remove(0);
    let plan = step(&mut view);
    assert!(condition(&plan, &name(3), ConditionType::NodeIPConflict).is_none());
    assert_eq!(entry(&plan, &name(3)).unwrap().node_ips, [ip("192.168.0.1")]);
}

#[test]
fn only_addresses_inside_the_node_ranges_and_outside_all_others_are_carried() {
    let mut view = cluster_of(1);
    let mut newcomer = node(2, "uid-2");
    let addresses = ["203.0.113.7", "127.0.0.1", "10.90.0.77", "10.96.0.1", "10.200.1.9", "192.168.9.9"];
    newcomer.internal_ips = addresses.iter().map(|text| ip(text)).collect();
    view.mesh.node_cidrs.push("127.0.0.0/8".parse().unwrap());
    view.nodes.push(newcomer);
    assert_eq!(plan(&view).nodes[&name(2)].spec.node_ips, [ip("192.168.9.9")]);
    assert_sound(&view);
    view.mesh.node_addresses = NodeAddresses::None;
    assert!(plan(&view).nodes[&name(2)].spec.node_ips.is_empty());
}

#[test]
fn a_changed_node_address_is_followed_or_waits_for_an_admin() {
    let mut view = cluster_of(2);
    view.nodes[0].internal_ips = vec![ip("192.168.77.1")];
    assert_eq!(plan(&view).nodes[&name(1)].spec.node_ips, [ip("192.168.77.1")]);

    view.mesh.node_addresses = NodeAddresses::Approve;
    let waiting = plan(&view);
    assert!(waiting.nodes[&name(1)].spec.node_ips.is_empty());
    assert!(condition(&waiting, &name(1), ConditionType::NodeIPPending).is_some());
    assert_sound(&view);
    stored(&mut view, &name(1)).spec.node_ips = vec![ip("192.168.77.1"), ip("192.168.66.6")];
    let approved = plan(&view);
    assert_eq!(approved.nodes[&name(1)].spec.node_ips, [ip("192.168.77.1")]);
    assert!(condition(&approved, &name(1), ConditionType::NodeIPPending).is_none());
    assert_sound(&view);
}

#[test]
fn a_route_may_hold_the_nodes_own_address_but_nobody_elses() {
    let mut view = cluster_of(2);
    stored(&mut view, &name(1)).spec.routes = vec!["172.30.0.0/16".parse().unwrap(), "192.168.0.0/31".parse().unwrap()];
    stored(&mut view, &name(2)).spec.routes = vec!["192.168.0.0/24".parse().unwrap(), "172.30.7.0/24".parse().unwrap()];
    let plan = plan(&view);
    assert_eq!(entry(&plan, &name(1)).unwrap().routes.len(), 2);
    assert!(entry(&plan, &name(2)).unwrap().routes.is_empty());
    assert_eq!(plan.nodes[&name(2)].spec.routes.len(), 2, "what the admin wrote stays");
    assert!(condition(&plan, &name(2), ConditionType::RouteConflict).is_some());
    assert_sound(&view);
}

#[test]
fn bad_candidates_are_dropped_by_name_and_the_good_ones_carried() {
    let bad = [
        "127.0.0.1:1",
        "[::1]:1",
        "0.0.0.0:1",
        "169.254.169.254:80",
        "[fe80::1]:1",
        "224.0.0.1:1",
        "255.255.255.255:1",
        "[ff02::1]:1",
        "10.90.0.9:1",
        "[fd90::9]:1",
        "10.96.0.1:1",
        "10.200.2.5:1",
        "203.0.113.9:0",
        "[fd00:ec2::254]:80",
        "100.100.100.200:80",
        "[::ffff:203.0.113.1]:5",
    ];
    for text in bad {
        let mut view = cluster_of(2);
        let status = &mut stored(&mut view, &name(1)).status;
        status.candidates = vec![candidate(text), candidate("203.0.113.9:21820")];
        let plan = plan(&view);
        assert_eq!(entry(&plan, &name(1)).unwrap().candidates, [candidate("203.0.113.9:21820")], "{text}");
        let raised = condition(&plan, &name(1), ConditionType::CandidatesDropped).unwrap();
        assert!(raised.message.contains(&text.parse::<std::net::SocketAddr>().unwrap().to_string()));
        assert_sound(&view);
    }
}

#[test]
fn no_more_than_sixteen_candidates_pass_and_none_twice() {
    let mut view = cluster_of(1);
    let status = &mut stored(&mut view, &name(1)).status;
    status.candidates = (1..=40).map(|host| candidate(&format!("203.0.113.{host}:5"))).collect();
    let fixed = Candidate { kind: CandidateKind::Static, addr: "198.51.100.1:5".parse().unwrap() };
    let again = Candidate { kind: CandidateKind::Host, addr: fixed.addr };
    status.candidates.extend([fixed, fixed, again]);
    let plan = plan(&view);
    let carried = &entry(&plan, &name(1)).unwrap().candidates;
    assert_eq!(carried.len(), MAX_CANDIDATES);
    assert!(carried.contains(&fixed) && !carried.contains(&again));
    assert_eq!(plan.counts.candidates_dropped, 25);
    let raised = condition(&plan, &name(1), ConditionType::CandidatesDropped).unwrap();
    assert!(raised.message.len() < 600, "bounded: {}", raised.message);
    assert_sound(&view);
}

#[test]
fn above_sixty_four_nodes_only_stable_candidates_and_no_rounds_are_carried() {
    let mut view = cluster_of(64);
    let volatile = Candidate { kind: CandidateKind::ServerReflexive, addr: "198.51.100.7:7".parse().unwrap() };
    let status = &mut stored(&mut view, &name(1)).status;
    status.candidates = vec![volatile, candidate("203.0.113.9:21820")];
    status.round = 3;
    let small = step(&mut view);
    assert_eq!((entry(&small, &name(1)).unwrap().candidates.len(), entry(&small, &name(1)).unwrap().round), (2, 3));
    let large = join(&mut view, 65);
    let told = entry(&large, &name(1)).unwrap();
    assert_eq!((&told.candidates[..], told.round), (&[candidate("203.0.113.9:21820")][..], 0));
    assert!(large.touched_slices().len() <= 2, "{:?}", large.touched_slices());
}

#[test]
fn no_message_outgrows_the_api_however_much_there_is_to_say() {
    let mut view = cluster_of(2);
    let long = "x".repeat(253);
    for node in &mut view.nodes {
        node.name = format!("{}{long}", node.name).chars().take(253).collect();
    }
    step(&mut view);
    let pods = view.nodes[0].pod_cidrs[0];
    view.nodes[1].pod_cidrs.extend(std::iter::repeat_n(pods, 9));
    view.nodes[1].internal_ips = vec![view.nodes[0].internal_ips[0]; 9];
    for reserved in ["10.90.0.0/24", "10.90.1.0/24", "10.96.0.0/24"] {
        view.nodes[1].pod_cidrs.push(reserved.parse().unwrap());
    }
    let plan = plan(&view);
    let conditions: Vec<_> = plan.nodes.values().flat_map(|node| &node.conditions).collect();
    assert!(conditions.iter().any(|raised| raised.message.ends_with("more")), "{conditions:#?}");
    assert!(conditions.iter().all(|raised| raised.message.len() <= 1024));
    assert!(plan.events.iter().all(|event| event.message.len() <= 1024));
    assert_sound(&view);
}

#[test]
fn a_newcomers_pod_range_takes_nothing_that_peers_act_upon() {
    for taken in ["192.168.0.0/16", "192.168.0.1/32"] {
        let mut view = cluster_of(2);
        let before = entries(&view);
        let mut newcomer = node(3, "uid-3");
        newcomer.pod_cidrs = vec![taken.parse().unwrap()];
        newcomer.created = -5;
        view.nodes.push(newcomer);
        let told = step(&mut view);
        assert_eq!(entries(&view), before, "{taken}");
        let raised = condition(&told, &name(3), ConditionType::PodCIDRConflict).unwrap();
        assert_eq!(raised.reason, Reason::HeldByOther);
        assert!(raised.message.contains(&name(1)), "{}", raised.message);
        assert_sound(&view);
        // Once nobody has the address any more, the range is given.
        for node in &mut view.nodes {
            node.internal_ips.clear();
        }
        assert_sound(&view);
        assert_eq!(plan(&view).nodes[&name(3)].spec.pod_cidrs, [taken.parse().unwrap()]);
    }
}

#[test]
fn a_newcomers_pod_range_yields_to_a_route_that_peers_act_upon() {
    let mut view = cluster_of(2);
    stored(&mut view, &name(1)).spec.routes = vec!["172.30.0.0/16".parse().unwrap()];
    step(&mut view);
    let mut newcomer = node(3, "uid-3");
    newcomer.pod_cidrs = vec!["172.30.7.0/24".parse().unwrap()];
    view.nodes.push(newcomer);
    let plan = plan(&view);
    assert_eq!(entry(&plan, &name(1)).unwrap().routes.len(), 1);
    assert!(condition(&plan, &name(3), ConditionType::PodCIDRConflict).is_some());
    assert_sound(&view);
}

#[test]
fn a_pod_range_outside_those_of_the_mesh_is_refused() {
    let mut view = cluster_of(2);
    view.mesh.pod_cidrs = vec!["10.200.0.0/16".parse().unwrap()];
    for (garbage, refused) in
        [("10.77.0.0/24", true), ("10.200.0.0/15", true), ("10.200.9.0/24", false), ("fd77::/64", false)]
    {
        let mut view = view.clone();
        let mut newcomer = node(3, "uid-3");
        newcomer.pod_cidrs = vec![garbage.parse().unwrap()];
        view.nodes.push(newcomer);
        let plan = plan(&view);
        let raised = condition(&plan, &name(3), ConditionType::PodCIDRConflict);
        assert_eq!(raised.map(|raised| raised.reason), refused.then_some(Reason::OutOfRange), "{garbage}");
        assert_eq!(plan.nodes[&name(3)].spec.pod_cidrs.is_empty(), refused);
        assert_sound(&view);
    }
}

#[test]
fn only_pod_ranges_of_admitted_nodes_filter_candidates() {
    let mut view = cluster_of(2);
    stored(&mut view, &name(1)).status.candidates = vec![candidate("203.0.113.9:21820")];
    step(&mut view);
    let mut newcomer = node(3, "uid-3");
    newcomer.pod_cidrs = vec!["203.0.113.0/24".parse().unwrap()];
    view.nodes.push(newcomer);
    let pending = step(&mut view);
    assert_eq!(entry(&pending, &name(1)).unwrap().candidates.len(), 1);
    assert_sound(&view);
    stored(&mut view, &name(3)).status = shows(key(3));
    let admitted = step(&mut view);
    assert!(entry(&admitted, &name(1)).unwrap().candidates.is_empty());
    assert_sound(&view);
}

#[test]
fn a_nodes_own_address_inside_its_own_pod_range_costs_it_neither() {
    let mut view = cluster_of(2);
    view.nodes[0].pod_cidrs = vec!["192.168.0.0/28".parse().unwrap()];
    view.nodes[1].internal_ips.clear();
    assert_sound(&view);
    assert_sound(&view.after(&plan(&view)));
    let spec = &plan(&view).nodes[&name(1)].spec;
    assert_eq!((spec.pod_cidrs.len(), spec.node_ips.len()), (1, 1));
}
