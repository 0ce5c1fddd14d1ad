use super::*;
use crate::net::{Mark, Masquerade, PeerRoute};

pub fn plan() -> NetPlan {
    NetPlan {
        device: "warren0".into(),
        mtu: 1420,
        addresses: vec![ip("100.64.0.1")],
        routes: Vec::new(),
        claims: vec![net("100.64.0.0/16")],
        own_pod_cidrs: vec![net("10.244.1.0/24")],
        own_node_cidrs: Vec::new(),
        service_cidrs: Vec::new(),
        mark: Mark::default(),
        listen_port: 21820,
        relay_ports: Vec::new(),
        relay_tcp_ports: Vec::new(),
        relay_redirect: None,
        api_servers: Vec::new(),
        serves_api: None,
        masquerade: Masquerade::default(),
        cni: true,
    }
}

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn net(text: &str) -> IpNet {
    text.parse().unwrap()
}

fn peer(prefix: &str, kind: RouteKind) -> PeerRoute {
    PeerRoute { prefix: net(prefix), kind, src: None, mtu: None }
}

fn targets(desired: &Desired, table: u32) -> Vec<String> {
    let name = |t: &Target| match t {
        Target::Device { .. } => "device",
        Target::Unreachable => "unreachable",
        Target::Throw => "throw",
    };
    desired.routes.iter().filter(|r| r.table == table).map(|r| format!("{} {}", r.prefix, name(&r.target))).collect()
}

#[test]
fn node_addresses_are_apart_and_never_unreachable() {
    let mut plan = plan();
    plan.routes = vec![peer("100.64.0.2/32", RouteKind::Mesh), peer("192.0.2.7/32", RouteKind::Node)];
    let desired = compile(&plan, &Underlay::default());
    assert_eq!(targets(&desired, TABLE_NODES), ["192.0.2.7/32 device"]);
    assert_eq!(
        targets(&desired, TABLE_MESH),
        ["10.244.1.0/24 unreachable", "100.64.0.0/16 unreachable", "100.64.0.2/32 device"]
    );
}

#[test]
fn own_pods_are_unreachable_even_where_the_local_subnet_contains_them() {
    let underlay = Underlay { connected: vec![net("10.0.0.0/8")], ..Underlay::default() };
    let desired = compile(&plan(), &underlay);
    assert!(targets(&desired, TABLE_MESH).contains(&"10.244.1.0/24 unreachable".to_owned()));
}

#[test]
fn what_lies_within_a_local_subnet_is_refused_and_a_local_address_within_a_claim_is_thrown() {
    let mut plan = plan();
    plan.claims.push(net("192.168.0.0/16"));
    plan.routes = vec![peer("192.168.1.10/32", RouteKind::Node), peer("192.168.9.0/24", RouteKind::Pod)];
    let underlay = Underlay {
        connected: vec![net("192.168.1.0/24")],
        gateways: vec![ip("192.168.1.1")],
        resolvers: vec![ip("192.168.9.53")],
        ..Underlay::default()
    };
    let desired = compile(&plan, &underlay);
    assert_eq!(desired.overlaps.len(), 1, "{:?}", desired.overlaps);
    let text = "192.168.1.10/32 is not routed into the mesh: it lies in 192.168.1.0/24, to which this node is directly connected";
    assert_eq!(desired.overlaps[0].to_string(), text);
    let mesh = targets(&desired, TABLE_MESH);
    for expected in ["192.168.1.0/24 throw", "192.168.1.1/32 throw", "192.168.9.53/32 throw", "192.168.9.0/24 device"] {
        assert!(mesh.contains(&expected.to_owned()), "{expected}: {mesh:?}");
    }
    assert_eq!(targets(&desired, TABLE_NODES), [""; 0]);
}

#[test]
fn bridges_of_this_nodes_own_pods_are_not_protected() {
    let underlay = Underlay { connected: vec![net("10.244.1.0/24")], ..Underlay::default() };
    assert!(!targets(&compile(&plan(), &underlay), TABLE_MESH).iter().any(|t| t.ends_with("throw")));
}

#[test]
fn rules_exist_only_for_families_that_are_used() {
    let mut plan = plan();
    assert!(compile(&plan, &Underlay::default()).rules.iter().all(|r| !r.v6));
    plan.claims.push(net("fd64::/64"));
    let rules = compile(&plan, &Underlay::default()).rules;
    assert!(rules.iter().any(|r| r.v6 && r.offset == offset::MESH));
    assert!(!rules.iter().any(|r| r.v6 && r.offset == offset::OWN_PODS), "no podCIDR of that family");
}

#[test]
fn exemptions_come_after_the_mesh_and_before_the_nodes() {
    let mut plan = plan();
    plan.api_servers = vec!["203.0.113.1:6443".parse().unwrap()];
    plan.serves_api = Some(6443);
    let rules = compile(&plan, &Underlay::default()).rules;
    let order: Vec<u32> = rules.iter().map(|r| r.offset).collect();
    assert_eq!(order, [0, 1, 2, 3, 4, 5, 6]);
    for rule in &rules {
        let exempts = matches!(rule.action, Action::Goto { .. });
        assert_eq!(exempts, (2..=4).contains(&rule.offset), "{rule:?}");
    }
}

#[test]
fn a_source_that_this_node_does_not_have_is_not_used() {
    let mut plan = plan();
    plan.routes = vec![PeerRoute { src: Some(ip("100.64.9.9")), ..peer("100.64.0.2/32", RouteKind::Mesh) }];
    let routes = compile(&plan, &Underlay::default()).routes;
    let route = routes.iter().find(|r| r.prefix == net("100.64.0.2/32")).unwrap();
    assert_eq!(route.target, Target::Device { src: Some(ip("100.64.0.1")), mtu: None });
}

#[test]
fn nobody_else_gets_this_nodes_own_addresses_nor_the_internet() {
    let mut plan = plan();
    plan.own_node_cidrs = vec![net("192.0.2.1/32")];
    plan.routes = vec![
        peer("10.244.1.128/25", RouteKind::Pod),
        peer("100.64.0.1/32", RouteKind::Mesh),
        peer("192.0.2.1/32", RouteKind::Node),
        peer("0.0.0.0/0", RouteKind::Node),
        peer("10.0.0.0/8", RouteKind::Pod),
    ];
    plan.claims.extend([net("10.244.1.0/24"), net("128.0.0.0/1")]);
    let desired = compile(&plan, &Underlay::default());
    let why: Vec<_> = desired.overlaps.iter().map(|o| (o.prefix.to_string(), o.why)).collect();
    let expected = [
        ("0.0.0.0/0", Protected::Internet),
        ("10.244.1.128/25", Protected::Own),
        ("100.64.0.1/32", Protected::Own),
        ("128.0.0.0/1", Protected::Internet),
        ("192.0.2.1/32", Protected::Own),
    ];
    assert_eq!(why, expected.map(|(net, why)| (net.to_owned(), why)));
    assert_eq!(targets(&desired, TABLE_NODES), [""; 0]);
    assert!(targets(&desired, TABLE_MESH).contains(&"10.0.0.0/8 device".to_owned()));
}

#[test]
fn addresses_that_are_nobodys_are_not_routed() {
    let mut plan = plan();
    let nobodys =
        ["127.0.0.2/32", "169.254.169.254/32", "224.0.0.0/8", "255.255.255.255/32", "fe80::/64", "::ffff:10.0.0.1/128"];
    plan.routes = nobodys.map(|net| peer(net, RouteKind::Node)).to_vec();
    let desired = compile(&plan, &Underlay::default());
    assert_eq!(desired.overlaps.len(), nobodys.len(), "{:?}", desired.overlaps);
    assert!(desired.overlaps.iter().all(|o| o.why == Protected::Special));
    assert_eq!(targets(&desired, TABLE_NODES), [""; 0]);
}

#[test]
fn a_relays_ports_are_exempt_by_their_own_protocol_and_each_once() {
    let mut plan = plan();
    plan.relay_ports = vec![PortRange::one(3478), PortRange { first: 51900, last: 51963 }, PortRange::one(3478)];
    plan.relay_tcp_ports = vec![PortRange::one(8443)];
    let rules = compile(&plan, &Underlay::default()).rules;
    let exempt: Vec<_> = rules.iter().filter(|r| r.offset == offset::LOCAL_PORTS).map(|r| &r.select).collect();
    let of = |ip_proto, first, last| Select::LocalPort { ip_proto, ports: PortRange { first, last } };
    let expected = [of(UDP, 3478, 3478), of(UDP, 21820, 21820), of(UDP, 51900, 51963), of(TCP, 8443, 8443)];
    assert_eq!(exempt, expected.iter().collect::<Vec<_>>());
}
