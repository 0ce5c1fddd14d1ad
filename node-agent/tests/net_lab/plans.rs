//! The plans of the two nodes.

use node_agent::net::{Mark, Masquerade, NetPlan, PeerRoute, RouteKind};

/// Node `a` or `b`, its peer programmed, node addresses not carried.
pub fn plan(node: &str) -> NetPlan {
    let (own, peer) = if node == "a" { (1, 2) } else { (2, 1) };
    let parse = |text: String| text.parse().expect("a prefix");
    let route = |kind, text: String| PeerRoute { prefix: parse(text), kind, src: None, mtu: None };
    NetPlan {
        device: "warren0".into(),
        mtu: 1420,
        addresses: vec![
            format!("100.64.0.{own}").parse().expect("an address"),
            format!("fd64::{own}").parse().expect("an address"),
        ],
        routes: vec![
            route(RouteKind::Mesh, format!("100.64.0.{peer}/32")),
            route(RouteKind::Mesh, format!("fd64::{peer}/128")),
            route(RouteKind::Pod, format!("10.244.{peer}.0/24")),
            route(RouteKind::Pod, format!("fd00:244:{peer}::/64")),
        ],
        claims: [
            "100.64.0.0/16".to_owned(),
            "fd64::/64".to_owned(),
            format!("10.244.{peer}.0/24"),
            format!("fd00:244:{peer}::/64"),
            "10.244.3.0/24".to_owned(),
            "fd00:244:3::/64".to_owned(),
        ]
        .map(parse)
        .to_vec(),
        own_pod_cidrs: vec![parse(format!("10.244.{own}.0/24")), parse(format!("fd00:244:{own}::/64"))],
        own_node_cidrs: Vec::new(),
        service_cidrs: vec![parse("10.96.0.0/16".into())],
        mark: Mark::default(),
        listen_port: 21820,
        relay_ports: Vec::new(),
        relay_tcp_ports: Vec::new(),
        relay_redirect: None,
        api_servers: vec!["10.9.9.9:6443".parse().expect("an address")],
        serves_api: None,
        masquerade: Masquerade { enabled: true, exclude: Vec::new() },
        cni: true,
    }
}

/// The same, and the peer's underlay addresses are carried.
pub fn carrying(node: &str) -> NetPlan {
    let peer = if node == "a" { 2 } else { 1 };
    let mut plan = plan(node);
    for prefix in [format!("10.{peer}.0.2/32"), format!("2001:db8:{peer}::2/128")] {
        let prefix = prefix.parse().expect("a prefix");
        plan.routes.push(PeerRoute { prefix, kind: RouteKind::Node, src: None, mtu: None });
    }
    plan
}
