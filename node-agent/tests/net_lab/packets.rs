//! Which way packets take. "Leaks" are counted in the router, where everything of the underlay passes; the last packet of
//! each test is one that the router does count, so that a count of zero means "not sent", not "not yet".

use std::io::ErrorKind;

use node_agent::net::{NetPlan, PeerRoute, PortRange, Protected, RouteKind};

use crate::lab::{Lab, counter};
use crate::plans::{carrying, plan};

/// A lab with both nodes set up, and a sniffer for anything of mesh or pods on the underlay.
fn lab(a: &NetPlan, b: &NetPlan) -> Option<Lab> {
    let lab = Lab::new()?;
    lab.apply("a", a);
    lab.apply("b", b);
    lab.sniff("inner4", "ip daddr { 10.244.0.0/16, 100.64.0.0/16 }");
    lab.sniff("inner6", "ip6 daddr { fd00:244::/32, fd64::/64 }");
    lab.sniff("plain", "udp dport 9");
    Some(lab)
}

/// Fails if anything of mesh or pods was seen on the underlay up to now.
fn assert_no_leak(lab: &Lab) {
    let before = lab.sniffed("plain");
    for (node, to) in [("a", "10.1.0.1:9"), ("b", "10.2.0.1:9")] {
        lab.ask(node, "0.0.0.0:0", to).expect_err("the router answers nothing but an error");
    }
    assert_eq!(lab.sniffed("plain"), before + 2, "the sniffer sees what leaves");
    assert_eq!((lab.sniffed("inner4"), lab.sniffed("inner6")), (0, 0), "seen in clear");
}

fn ip(seen: std::io::Result<std::net::SocketAddr>) -> String {
    seen.expect("an answer").ip().to_string()
}

#[test]
fn pods_reach_pods_by_the_mesh_with_their_own_addresses() {
    let Some(lab) = lab(&plan("a"), &plan("b")) else { return };
    let service = lab.echo("pb", "[::]:7000", 3);
    assert_eq!(ip(lab.ask("pa", "0.0.0.0:0", "10.244.2.5:7000")), "10.244.1.5");
    assert_eq!(ip(lab.ask("pa", "[::]:0", "[fd00:244:2::5]:7000")), "fd00:244:1::5");
    assert_eq!(ip(lab.ask("a", "0.0.0.0:0", "10.244.2.5:7000")), "100.64.0.1");
    service.join().expect("the service");
    assert_no_leak(&lab);
}

#[test]
fn a_dead_pod_does_not_leak_neither_here_nor_from_afar() {
    let Some(lab) = lab(&plan("a"), &plan("b")) else { return };
    for (from, to) in
        [("a", "10.244.1.99:7"), ("pa", "10.244.1.99:7"), ("pb", "10.244.1.99:7"), ("pa", "[fd00:244:1::99]:7")]
    {
        let any = if to.starts_with('[') { "[::]:0" } else { "0.0.0.0:0" };
        let refused = lab.ask(from, any, to).expect_err("nobody there");
        assert!(
            matches!(refused.kind(), ErrorKind::HostUnreachable | ErrorKind::NetworkUnreachable),
            "{from}: {refused}"
        );
    }
    assert_eq!(lab.way("a", "10.244.1.5"), "vethpod", "the living pod is still found");
    assert_no_leak(&lab);
}

#[test]
fn an_absent_peers_pod_is_unreachable_instead_of_leaking() {
    let Some(lab) = lab(&plan("a"), &plan("b")) else { return };
    for (from, any, to) in
        [("a", "0.0.0.0:0", "10.244.3.7:7"), ("pa", "0.0.0.0:0", "10.244.3.7:7"), ("pa", "[::]:0", "[fd00:244:3::7]:7")]
    {
        let refused = lab.ask(from, any, to).expect_err("no peer");
        assert!(
            matches!(refused.kind(), ErrorKind::HostUnreachable | ErrorKind::NetworkUnreachable),
            "{from}: {refused}"
        );
    }
    assert_no_leak(&lab);
}

#[test]
fn while_our_rules_are_missing_the_firewall_keeps_mesh_packets_in() {
    let Some(lab) = lab(&plan("a"), &plan("b")) else { return };
    for priority in 10..=16 {
        lab.exec("a", &["ip", "rule", "del", "priority", &priority.to_string()]).ok();
    }
    assert_eq!(lab.way("a", "10.244.3.7"), "eth0", "the rules are gone");
    let refused = lab.ask("a", "0.0.0.0:0", "10.244.3.7:7").expect_err("dropped");
    assert_eq!(refused.kind(), ErrorKind::PermissionDenied);
    assert_no_leak(&lab);
    assert_eq!(counter(&lab.nft("a", "list chain inet warren to_underlay")), 1);
}

#[test]
fn a_service_reached_from_the_host_gets_a_source_that_the_mesh_knows() {
    let Some(lab) = lab(&plan("a"), &plan("b")) else { return };
    lab.nft(
        "a",
        "add table ip proxy
        add chain ip proxy out { type nat hook output priority -100; }
        add rule ip proxy out ip daddr 10.96.0.10 udp dport 53 dnat to 10.244.2.5:7000",
    );
    let service = lab.echo("pb", "10.244.2.5:7000", 1);
    assert_eq!(ip(lab.ask("a", "0.0.0.0:0", "10.96.0.10:53")), "100.64.0.1");
    service.join().expect("the service");
    assert_no_leak(&lab);
}

#[test]
fn what_stands_for_a_relays_channel_stays_on_loopback_marked_or_not() {
    let Some(lab) = lab(&carrying("a"), &plan("b")) else { return };
    for lookup in ["127.77.3.4", "127.77.3.4 mark 0x10", "127.0.0.1 from 127.77.3.4"] {
        assert_eq!(lab.way("a", lookup), "lo", "{lookup}");
    }
    let carrier = lab.echo("a", "127.77.3.4:7000", 1);
    assert_eq!(ip(lab.ask("a", "0.0.0.0:0", "127.77.3.4:7000")), "127.0.0.1");
    carrier.join().expect("the carrier");
    assert_no_leak(&lab);
}

#[test]
fn what_asks_by_the_underlay_is_answered_by_the_underlay() {
    // `a` routes the address of `b` into the mesh; `b` knows nothing of that and asks by the underlay.
    let Some(lab) = lab(&carrying("a"), &plan("b")) else { return };
    assert_eq!(lab.way("a", "10.2.0.2"), "warren0");
    lab.sniff("answers", "ip saddr 10.1.0.2 udp sport 7100");
    let service = lab.echo("a", "10.1.0.2:7100", 1);
    assert_eq!(ip(lab.ask("b", "0.0.0.0:0", "10.1.0.2:7100")), "10.2.0.2");
    service.join().expect("the service");
    assert_eq!(lab.sniffed("answers"), 1);

    lab.sniff("answers_tcp", "ip saddr 10.1.0.2 tcp sport 7100");
    let service = lab.serve("a", "10.1.0.2:7100");
    assert_eq!(ip(lab.connect("b", "10.1.0.2:7100")), "10.2.0.2");
    service.join().expect("the service");
    assert!(lab.sniffed("answers_tcp") >= 3, "{}", lab.sniffed("answers_tcp"));

    lab.sniff("answers6", "ip6 saddr 2001:db8:1::2 tcp sport 7100");
    let service = lab.serve("a", "[2001:db8:1::2]:7100");
    assert_eq!(ip(lab.connect("b", "[2001:db8:1::2]:7100")), "2001:db8:2::2");
    service.join().expect("the service");
    assert!(lab.sniffed("answers6") >= 3, "{}", lab.sniffed("answers6"));
    assert_no_leak(&lab);
}

#[test]
fn a_pod_behind_a_host_port_answers_by_the_underlay_too() {
    let Some(lab) = lab(&carrying("a"), &plan("b")) else { return };
    lab.nft(
        "a",
        "add table ip portmap
        add chain ip portmap pre { type nat hook prerouting priority -100; }
        add rule ip portmap pre iifname eth0 tcp dport 80 dnat to 10.244.1.5:8080",
    );
    lab.sniff("answers", "ip saddr 10.1.0.2 tcp sport 80");
    let service = lab.serve("pa", "10.244.1.5:8080");
    assert_eq!(ip(lab.connect("b", "10.1.0.2:80")), "10.2.0.2");
    service.join().expect("the service");
    assert!(lab.sniffed("answers") >= 3);
    assert_no_leak(&lab);
}

#[test]
fn a_node_port_that_leads_to_a_pod_elsewhere_answers_by_the_underlay_too() {
    let Some(lab) = lab(&carrying("a"), &plan("b")) else { return };
    lab.nft(
        "a",
        "add table ip proxy
        add chain ip proxy pre { type nat hook prerouting priority -100; }
        add rule ip proxy pre iifname eth0 tcp dport 30080 dnat to 10.244.2.5:8080",
    );
    lab.sniff("answers", "ip saddr 10.1.0.2 tcp sport 30080");
    let service = lab.serve("pb", "10.244.2.5:8080");
    // Source repair makes the node's own mesh address of it, so the pod answers by this node.
    assert_eq!(ip(lab.connect("b", "10.1.0.2:30080")), "100.64.0.1");
    service.join().expect("the service");
    assert!(lab.sniffed("answers") >= 3);
    assert_no_leak(&lab);
}

#[test]
fn the_api_port_is_answered_by_the_underlay_without_our_firewall() {
    let mut a = carrying("a");
    a.serves_api = Some(6443);
    let Some(lab) = lab(&a, &plan("b")) else { return };
    lab.nft("a", "flush ruleset");
    lab.sniff("api", "ip saddr 10.1.0.2 tcp sport 6443");
    let service = lab.serve("a", "10.1.0.2:6443");
    assert_eq!(ip(lab.connect("b", "10.1.0.2:6443")), "10.2.0.2");
    service.join().expect("the service");
    assert!(lab.sniffed("api") >= 3);
}

#[test]
fn a_pod_that_reaches_the_api_by_the_mesh_is_answered_by_the_mesh() {
    let mut a = plan("a");
    a.serves_api = Some(6443);
    a.own_node_cidrs = vec!["10.1.0.2/32".parse().expect("a prefix")];
    let Some(lab) = lab(&a, &carrying("b")) else { return };
    let service = lab.serve("a", "10.1.0.2:6443");
    assert_eq!(ip(lab.connect("pb", "10.1.0.2:6443")), "10.244.2.5");
    service.join().expect("the service");
    assert_no_leak(&lab);
}

#[test]
fn a_forged_mesh_source_on_the_underlay_gets_no_answer_in_clear() {
    let Some(lab) = lab(&carrying("a"), &plan("b")) else { return };
    // One of a range without a peer, one of a programmed peer's pods.
    for forged in ["10.244.3.9", "10.244.2.9"] {
        lab.ip("r", &format!("addr add {forged}/32 dev lo"));
    }
    let service = lab.echo("a", "10.1.0.2:7000", 3);
    for forged in ["10.244.3.9:7", "10.244.2.9:7"] {
        lab.send("r", forged, "10.1.0.2:7000");
    }
    assert_eq!(ip(lab.ask("b", "0.0.0.0:0", "10.1.0.2:7000")), "10.2.0.2");
    assert_eq!(service.join().expect("the service").len(), 3, "the forged packets did arrive");
    assert_no_leak(&lab);
    assert_eq!(counter(&lab.nft("a", "list chain inet warren to_underlay")), 0, "not even tried");
}

#[test]
fn outer_packets_and_the_control_path_never_enter_the_tunnel() {
    let mut a = carrying("a");
    a.relay_ports = vec![PortRange { first: 3478, last: 3480 }, PortRange { first: 51899, last: 51963 }];
    a.relay_tcp_ports = vec![PortRange::one(8443)];
    a.api_servers = vec!["10.64.5.5:6443".parse().expect("an address")];
    a.claims.push("10.64.0.0/16".parse().expect("a prefix"));
    let Some(lab) = lab(&a, &plan("b")) else { return };
    assert_eq!(lab.way("a", "10.2.0.2"), "warren0");
    for exempt in [
        "mark 0x10",
        "mark 0x4010",
        "ipproto udp sport 21820",
        "ipproto udp sport 3479",
        "ipproto udp sport 51899",
        "ipproto udp sport 51963",
        "ipproto tcp sport 8443",
    ] {
        assert_eq!(lab.way("a", &format!("10.2.0.2 {exempt}")), "eth0", "{exempt}");
        assert_eq!(lab.way("a", &format!("2001:db8:2::2 {exempt}")), "eth0", "{exempt}");
    }
    for other in [
        "mark 0x4000",
        "ipproto udp sport 3481",
        "ipproto udp sport 51964",
        "ipproto udp sport 8443",
        "ipproto tcp sport 21820",
        "ipproto tcp sport 51900",
    ] {
        assert_eq!(lab.way("a", &format!("10.2.0.2 {other}")), "warren0", "{other}");
    }
    // A pod's port is not the host's, and a mesh address is never exempt.
    assert_eq!(lab.way("a", "10.2.0.2 from 10.244.1.5 iif vethpod ipproto udp sport 21820"), "warren0");
    assert_eq!(lab.way("a", "10.244.2.5 ipproto udp sport 21820"), "warren0");
    assert_eq!(lab.way("a", "10.64.5.5"), "eth0");
    assert_eq!(lab.way("a", "10.64.5.6"), "No route to host");
}

#[test]
fn what_is_local_is_never_routed_into_the_mesh() {
    let Some(lab) = Lab::new() else { return };
    let mut plan = plan("a");
    let prefixes = ["10.1.0.0/24", "10.1.0.77/32", "10.1.0.1/32", "10.9.9.9/32", "2001:db8:1::/64"];
    plan.routes.extend(prefixes.map(|p| {
        let prefix = p.parse().expect("a prefix");
        PeerRoute { prefix, kind: RouteKind::Node, src: None, mtu: None }
    }));
    plan.claims.extend(["10.1.0.128/25", "10.0.0.0/12"].map(|p| p.parse::<ipnet::IpNet>().expect("a prefix")));
    let report = lab.apply("a", &plan);
    let refused: Vec<String> = report.overlaps.iter().map(|o| format!("{} {:?}", o.prefix, o.why)).collect();
    let expected = [
        "10.1.0.0/24 Connected",
        "10.1.0.1/32 Connected",
        "10.1.0.77/32 Connected",
        "10.1.0.128/25 Connected",
        "10.9.9.9/32 ApiServer",
        "2001:db8:1::/64 Connected",
    ];
    assert_eq!(refused, expected);
    assert_eq!(report.overlaps[4].why, Protected::ApiServer);
    for (to, way) in
        [("10.1.0.77", "eth0"), ("10.9.9.9", "eth0"), ("10.2.0.9", "No route to host"), ("2001:db8:1::7", "eth0")]
    {
        assert_eq!(lab.way("a", to), way, "{to}");
    }
}

#[test]
fn a_carried_node_address_goes_by_the_mesh_only_while_its_peer_is_programmed() {
    let mut b = plan("b");
    b.own_node_cidrs = vec!["10.2.0.2/32".parse().expect("a prefix")];
    let Some(lab) = lab(&carrying("a"), &b) else { return };
    let service = lab.echo("b", "10.2.0.2:7000", 2);
    lab.sniff("clear", "ip daddr 10.2.0.2 udp dport 7000");
    assert_eq!(ip(lab.ask("a", "0.0.0.0:0", "10.2.0.2:7000")), "100.64.0.1");
    assert_eq!(lab.sniffed("clear"), 0);
    lab.apply("a", &plan("a"));
    assert_eq!(ip(lab.ask("a", "0.0.0.0:0", "10.2.0.2:7000")), "10.1.0.2");
    assert_eq!(lab.sniffed("clear"), 1);
    service.join().expect("the service");
}

#[test]
fn strict_reverse_path_filtering_does_not_drop_the_outer_packets_of_a_carried_node() {
    let Some(lab) = Lab::new() else { return };
    lab.set("a", "net.ipv4.conf.eth0.rp_filter", "1");
    lab.apply("a", &carrying("a"));
    let service = lab.echo("a", "10.1.0.2:21820", 1);
    assert_eq!(ip(lab.ask("b", "0.0.0.0:21820", "10.1.0.2:21820")), "10.2.0.2");
    service.join().expect("the service");
}

#[test]
fn pods_that_leave_the_mesh_are_masqueraded_unless_excluded() {
    let Some(lab) = lab(&plan("a"), &plan("b")) else { return };
    lab.ip("r", "route add 10.244.1.0/24 via 10.1.0.2");
    let service = lab.echo("r", "[::]:7000", 3);
    assert_eq!(ip(lab.ask("pa", "0.0.0.0:0", "10.1.0.1:7000")), "10.1.0.2");
    assert_eq!(ip(lab.ask("pa", "[::]:0", "[2001:db8:1::1]:7000")), "2001:db8:1::2");
    let mut excluding = plan("a");
    excluding.masquerade.exclude = vec!["10.1.0.0/24".parse().expect("a prefix")];
    lab.apply("a", &excluding);
    assert_eq!(ip(lab.ask("pa", "0.0.0.0:0", "10.1.0.1:7000")), "10.244.1.5");
    service.join().expect("the service");
}

#[test]
fn segments_fit_the_narrower_of_device_and_path() {
    let mut a = plan("a");
    for route in &mut a.routes {
        route.mtu = Some(1300);
    }
    let Some(lab) = lab(&a, &plan("b")) else { return };
    lab.nft(
        "pb",
        "add table inet mss
        add chain inet mss in { type filter hook input priority 0; }
        add chain inet mss out { type filter hook output priority 0; }
        add rule inet mss in tcp flags syn / syn,ack tcp option maxseg size 1260 counter accept",
    );
    lab.nft(
        "pa",
        "add table inet mss
        add chain inet mss in { type filter hook input priority 0; }
        add rule inet mss in tcp flags & (syn | ack) == syn | ack tcp option maxseg size 1260 counter accept",
    );
    let service = lab.serve("pb", "10.244.2.5:7000");
    assert_eq!(ip(lab.connect("pa", "10.244.2.5:7000")), "10.244.1.5");
    service.join().expect("the service");
    assert_eq!(counter(&lab.nft("pb", "list chain inet mss in")), 1, "the SYN that left");
    assert_eq!(counter(&lab.nft("pa", "list chain inet mss in")), 1, "the SYN-ACK that came");
}
