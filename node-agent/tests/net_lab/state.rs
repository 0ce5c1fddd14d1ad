//! What is written, and what happens when others write too.

use std::net::Ipv4Addr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use node_agent::net::{self, ChangeKind, Changed, OwnChanges, PeerRoute, Problem, Rerouting, RouteKind};

use crate::lab::{ARRIVES, Lab, Picture, assert_same};
use crate::plans::{carrying, plan};

#[test]
fn a_second_apply_changes_nothing() {
    let Some(lab) = Lab::new() else { return };
    let first = lab.apply("a", &carrying("a"));
    assert!(first.changes.len() > 20, "{:#?}", first.changes);
    assert_eq!(first.problems, []);
    assert_eq!(first.standing().map(|s| s.mtu()), Some(1420));
    let picture = lab.picture("a");
    let second = lab.apply("a", &carrying("a"));
    assert_eq!(second.changes, []);
    assert_same(&picture, &lab.picture("a"), "a second apply");
}

#[test]
fn what_others_changed_is_put_back_and_what_is_theirs_is_left() {
    let Some(lab) = Lab::new() else { return };
    lab.apply("a", &carrying("a"));
    let picture = lab.picture("a");
    type Vandal = fn(&Lab);
    let vandals: [(&str, Vandal); 12] = [
        ("ruleset flushed", |l| drop(l.nft("a", "flush ruleset"))),
        ("table emptied", |l| drop(l.nft("a", "flush table inet warren"))),
        ("rule put into our chain", |l| drop(l.nft("a", "insert rule inet warren forward drop"))),
        ("elements taken", |l| drop(l.nft("a", "flush set inet warren mesh4"))),
        ("element added", |l| drop(l.nft("a", "add element inet warren pods4 { 192.0.2.0/24 }"))),
        ("routes flushed", |l| drop(l.ip("a", "route flush table 21820"))),
        ("IPv6 routes flushed", |l| drop(l.ip("a", "-6 route flush table 21820"))),
        ("route changed", |l| drop(l.ip("a", "route replace unreachable 10.2.0.2 table 21821 metric 100 proto 218"))),
        ("rules deleted", |l| drop(l.ip("a", "rule del priority 11"))),
        ("landing deleted", |l| drop(l.ip("a", "-6 rule del priority 16"))),
        ("device down", |l| drop(l.ip("a", "link set warren0 down"))),
        ("address and MTU", |l| {
            l.ip("a", "addr del 100.64.0.1/32 dev warren0");
            l.ip("a", "addr add 100.64.0.77/32 dev warren0");
            l.ip("a", "link set warren0 mtu 1300");
            l.set("a", "net.ipv4.conf.warren0.rp_filter", "1");
        }),
    ];
    for (what, vandal) in vandals {
        vandal(&lab);
        assert_ne!(picture, lab.picture("a"), "{what}: nothing was broken");
        let repaired = lab.apply("a", &carrying("a"));
        assert_ne!(repaired.changes, [], "{what}");
        assert_same(&picture, &lab.picture("a"), what);
        assert_eq!(lab.apply("a", &carrying("a")).changes, [], "{what}");
    }
}

#[test]
fn a_smaller_plan_removes_what_it_no_longer_holds() {
    let Some(lab) = Lab::new() else { return };
    lab.apply("a", &plan("a"));
    let before = lab.picture("a");
    lab.apply("a", &carrying("a"));
    assert_ne!(before, lab.picture("a"));
    lab.apply("a", &plan("a"));
    assert_same(&before, &lab.picture("a"), "back to the smaller plan");
}

#[test]
fn cleanup_leaves_the_namespace_as_it_was() {
    let Some(lab) = Lab::new() else { return };
    lab.ip("a", "link set warren0 up mtu 1420");
    lab.nft("a", "add table inet others\nadd chain inet others forward { type filter hook forward priority 0; }");
    lab.ip("a", "rule add priority 12 from 192.0.2.1 lookup 21820");
    lab.ip("a", "route add 192.0.2.0/24 via 10.1.0.1 table 21820");
    lab.ip("a", "link add other type bridge");
    lab.ip("a", "addr add 198.51.100.1/24 dev other");
    lab.ip("a", "link set other up addrgenmode none");
    for device in ["eth0", "other"] {
        lab.set("a", &format!("net.ipv4.conf.{device}.rp_filter"), "1");
    }
    let before = lab.picture("a");
    let report = lab.apply("a", &carrying("a"));
    assert!(matches!(&report.problems[..], [Problem::RouteConflict { .. }]), "{:?}", report.problems);
    assert_eq!(strict(&lab), ["2", "2"]);
    lab.set("a", "net.ipv4.conf.other.rp_filter", "0");
    let programmed = lab.picture("a");
    let would = clean(&lab, true);
    assert_same(&programmed, &lab.picture("a"), "a dry run");
    assert_eq!(strict(&lab), ["2", "0"], "a dry run");
    assert_eq!(would, clean(&lab, false));
    assert_same(&before, &lab.picture("a"), "cleanup");
    assert_eq!(strict(&lab), ["1", "0"], "what an admin changed since is the admin's");
    assert_eq!(clean(&lab, false), Vec::<String>::new());
}

fn clean(lab: &Lab, dry: bool) -> Vec<String> {
    let originals = lab.originals("a");
    lab.agent("a", move || async move { net::cleanup("warren0", &originals, dry).await.expect("cleanup") })
}

/// The reverse-path filters of both underlay interfaces.
fn strict(lab: &Lab) -> Vec<String> {
    let of = |name: &str| lab.exec("a", &["sysctl", "-n", &format!("net.ipv4.conf.{name}.rp_filter")]).expect("sysctl");
    ["eth0", "other"].map(|name| of(name).trim().to_owned()).to_vec()
}

#[test]
fn a_device_made_anew_gets_everything_again() {
    let Some(lab) = Lab::new() else { return };
    lab.apply("a", &carrying("a"));
    let picture = lab.picture("a");
    lab.ip("a", "link del warren0");
    let originals = lab.originals("a");
    let refused = lab
        .agent("a", || async move { net::apply(&carrying("a"), &originals).await.expect_err("no device").to_string() });
    assert_eq!(refused, "expected the interface warren0, found none of that name: create the WireGuard device first");
    assert_eq!(lab.way("a", "10.244.2.5"), "No route to host", "nothing leaks while the device is gone");
    lab.ip("a", "link add warren0 type veth peer name other");
    lab.ip("a", "link set other up");
    lab.ip("a", "link set warren0 addrgenmode none");
    lab.apply("a", &carrying("a"));
    lab.ip("a", "link set other down");
    let renamed = |p: Picture| p.without("\"other\"");
    assert_same(&picture, &renamed(lab.picture("a")), "the device made anew");
}

#[test]
fn a_tun_whose_owner_is_away_keeps_everything() {
    let Some(lab) = Lab::new() else { return };
    lab.ip("a", "link del warren0");
    lab.ip("a", "tuntap add dev warren0 mode tun");
    let report = lab.apply("a", &carrying("a"));
    assert_eq!(report.problems, []);
    assert!(report.standing().is_some());
    assert_eq!(lab.apply("a", &carrying("a")).changes, []);
    for to in ["10.244.2.5", "fd00:244:2::5", "10.2.0.2"] {
        assert_eq!(lab.way("a", to), "warren0", "{to}");
    }
    assert!(!lab.ip("a", "-6 addr show dev warren0").contains("tentative"));
}

#[test]
fn a_renamed_underlay_interface_is_followed() {
    let Some(lab) = Lab::new() else { return };
    lab.apply("a", &plan("a"));
    lab.ip("a", "link set eth0 down");
    lab.ip("a", "link set eth0 name ens3");
    lab.ip("a", "link set ens3 up");
    lab.ip("a", "route add default via 10.1.0.1");
    assert_eq!(lab.apply("a", &plan("a")).underlay.devices[0].name, "ens3");
    let ruleset = lab.nft("a", "list table inet warren");
    assert!(ruleset.contains("iifname \"ens3\" jump from_underlay") && !ruleset.contains("eth0"), "{ruleset}");
}

#[test]
fn rules_of_others_that_come_first_are_reported() {
    let Some(lab) = Lab::new() else { return };
    for harmless in [
        "priority 9 fwmark 0x200/0xf00 lookup 2004",
        "priority 5 from 192.0.2.1 lookup 7",
        "priority 32000 lookup 51820",
    ] {
        lab.ip("a", &format!("rule add {harmless}"));
    }
    assert_eq!(lab.apply("a", &plan("a")).problems, []);
    lab.ip("a", "rule add priority 5 not fwmark 0xca6c lookup 51820");
    let problems = lab.apply("a", &plan("a")).problems;
    let [Problem::RouteConflict { found, remedy }] = &problems[..] else { panic!("{problems:?}") };
    assert_eq!(found, "IPv4 rule 5: lookup 51820");
    assert!(remedy.contains("a priority above 16"), "{remedy}");
}

#[test]
fn our_rules_follow_the_local_table_when_somebody_moves_it() {
    let Some(lab) = Lab::new() else { return };
    lab.ip("a", "rule add priority 100 lookup local");
    lab.ip("a", "rule del priority 0 lookup local");
    lab.apply("a", &plan("a"));
    let rules = lab.ip("a", "rule");
    assert!(rules.contains("111:\tnot from all fwmark 0x10/0x10 lookup 21820"), "{rules}");
    lab.ip("a", "rule add priority 0 lookup local");
    lab.ip("a", "rule del priority 100 lookup local");
    lab.apply("a", &plan("a"));
    let rules = lab.ip("a", "rule");
    assert!(rules.contains("11:\tnot from all fwmark 0x10/0x10 lookup 21820") && !rules.contains("111:"), "{rules}");
}

#[test]
fn thousands_of_prefixes_fit_and_shrink() {
    let Some(lab) = Lab::new() else { return };
    let mut big = plan("a");
    // Every other /24, so that none can be merged.
    big.claims.extend((0..4000u32).map(|i| {
        let net = std::net::Ipv4Addr::from(0x0a80_0000 + i * 512);
        ipnet::IpNet::new(net.into(), 24).expect("a prefix")
    }));
    lab.apply("a", &big);
    assert_eq!(lab.apply("a", &big).changes, []);
    lab.apply("a", &plan("a"));
    assert_eq!(lab.apply("a", &plan("a")).changes, []);
}

#[test]
fn a_forward_drop_of_others_is_reported_with_the_remedy() {
    let Some(lab) = Lab::new() else { return };
    lab.nft(
        "a",
        "add table ip filter\nadd chain ip filter FORWARD { type filter hook forward priority 0; policy drop; }",
    );
    let report = lab.apply("a", &plan("a"));
    let [Problem::ForwardBlocked { table, chain, remedy }] = &report.problems[..] else {
        panic!("{:?}", report.problems)
    };
    assert_eq!((table.as_str(), chain.as_str()), ("ip filter", "FORWARD"));
    assert!(remedy.contains("iptables -I FORWARD -i warren0 -j ACCEPT"), "{remedy}");
    lab.nft("a", "insert rule ip filter FORWARD iifname warren0 counter accept\ninsert rule ip filter FORWARD oifname warren0 accept");
    assert_eq!(lab.apply("a", &plan("a")).problems, []);
    lab.nft("a", "flush chain ip filter FORWARD\nadd rule ip filter FORWARD ip saddr 10.244.0.0/16 accept");
    assert_eq!(lab.apply("a", &plan("a")).problems, [], "flannel's way");
    lab.nft("a", "add table inet firewalld\nadd chain inet firewalld f { type filter hook forward priority 10; }");
    lab.nft("a", "add rule inet firewalld f reject with icmpx admin-prohibited");
    assert!(matches!(&lab.apply("a", &plan("a")).problems[..], [Problem::ForwardBlocked { .. }]));
}

#[test]
fn a_forward_drop_by_iptables_is_understood() {
    let Some(lab) = Lab::new() else { return };
    let iptables = |args: &str| {
        let args: Vec<&str> = ["iptables-nft"].into_iter().chain(args.split(' ')).collect();
        lab.exec("a", &args).expect("iptables-nft, which kube-proxy and the CNI plugins need too");
    };
    iptables("-P FORWARD DROP");
    iptables("-A FORWARD -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT");
    iptables("-A FORWARD -i docker0 -j ACCEPT");
    let blocked = lab.apply("a", &plan("a")).problems;
    assert!(matches!(&blocked[..], [Problem::ForwardBlocked { .. }]), "{blocked:?}");
    for remedy in [
        "FORWARD -s 10.244.0.0/16 -m comment --comment flanneld -j ACCEPT",
        "FORWARD -i warren0 -j ACCEPT",
        "FORWARD -j ACCEPT",
    ] {
        iptables(&format!("-A {remedy}"));
        assert_eq!(lab.apply("a", &plan("a")).problems, [], "{remedy}");
        iptables(&format!("-D {remedy}"));
    }
    iptables("-P FORWARD ACCEPT");
    iptables("-A FORWARD -j REJECT");
    let blocked = lab.apply("a", &plan("a")).problems;
    assert!(matches!(&blocked[..], [Problem::ForwardBlocked { .. }]), "{blocked:?}");
}

#[test]
fn others_that_write_all_the_time_do_not_keep_us_from_writing() {
    let Some(lab) = Lab::new() else { return };
    lab.nft("a", "add table inet kube-proxy\nadd chain inet kube-proxy services");
    let stop = Arc::new(AtomicBool::new(false));
    let ns = lab.ns("a");
    let busy = std::thread::spawn({
        let stop = stop.clone();
        move || {
            while !stop.load(Ordering::Relaxed) {
                let args = ["netns", "exec", &ns, "nft", "add", "rule", "inet", "kube-proxy", "services", "counter"];
                std::process::Command::new("ip").args(args).status().expect("nft");
            }
        }
    });
    for _ in 0..5 {
        lab.apply("a", &carrying("a"));
        lab.nft("a", "delete table inet warren");
        lab.ip("a", "route flush table 21820");
    }
    let last = lab.apply("a", &carrying("a"));
    stop.store(true, Ordering::Relaxed);
    busy.join().expect("the other writer");
    assert!(last.standing().is_some());
    assert_eq!(lab.apply("a", &carrying("a")).changes, []);
}

#[test]
fn an_agent_that_watches_puts_back_what_others_remove() {
    let Some(lab) = Lab::new() else { return };
    lab.apply("a", &carrying("a"));
    let picture = lab.picture("a");
    let (applied, is_applied) = std::sync::mpsc::channel();
    let (watching, is_watching) = std::sync::mpsc::channel();
    let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
    let originals = lab.originals("a");
    let agent = lab.spawn("a", move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("runtime");
        runtime.block_on(async {
            let mut watch = net::watch(&net::OwnChanges::default()).await.expect("watch");
            watching.send(()).expect("the test waits");
            let work = async {
                while watch.changed().await.is_some() {
                    let report = net::apply(&carrying("a"), &originals).await.expect("apply");
                    applied.send(report.changes.len()).expect("the test listens");
                }
            };
            tokio::select! { () = work => {}, _ = stopped => {} }
        });
    });
    is_watching.recv_timeout(ARRIVES).expect("watching");
    let vandals: [&dyn Fn(); 4] = [
        &|| drop(lab.nft("a", "flush ruleset")),
        &|| drop(lab.ip("a", "route flush table 21820")),
        &|| drop(lab.ip("a", "rule del priority 15")),
        &|| drop(lab.ip("a", "addr flush dev warren0")),
    ];
    for vandal in vandals {
        vandal();
        // Our own writes are changes too: the first answer that changed nothing ends the round.
        let mut repaired = 0;
        loop {
            match is_applied.recv_timeout(ARRIVES).expect("the agent reacts") {
                0 if repaired > 0 => break,
                changes => repaired += changes,
            }
        }
        assert_same(&picture, &lab.picture("a"), "after the agent's repair");
    }
    stop.send(()).expect("the agent runs");
    agent.join().expect("the agent");
}

#[test]
fn routes_that_are_changed_alone_stand_as_if_everything_had_been_applied() {
    let Some(lab) = Lab::new() else { return };
    let mut plan = carrying("a");
    let ground = lab.apply("a", &plan).ground.expect("everything stands");
    let pods =
        PeerRoute { prefix: "10.244.77.0/24".parse().expect("a prefix"), kind: RouteKind::Pod, src: None, mtu: None };
    let remove = vec![plan.routes.swap_remove(0)];
    let change = Rerouting { add: vec![pods.clone()], remove, ..Rerouting::default() };
    plan.routes.push(pods.clone());
    let (frame, made) = (plan.clone(), change.clone());
    let run = async move || {
        let own = OwnChanges::default();
        let mut watch = net::watch(&own).await.expect("watch");
        let done = net::reroute(&frame, &ground, &made, &own).await.expect("netlink");
        // Somebody else's change, to have something that is told.
        let rule = std::process::Command::new("ip").args(["rule", "del", "priority", "11"]).status();
        assert!(rule.expect("ip").success());
        let told = watch.changed().await.expect("open");
        // What is not there can't be removed: then everything has to be looked at.
        let again = net::reroute(&frame, &ground, &made, &own).await.expect("netlink");
        (done, told, again)
    };
    let agent = lab.spawn("a", move || {
        tokio::runtime::Builder::new_current_thread().enable_all().build().expect("runtime").block_on(run())
    });
    let (done, told, again) = agent.join().expect("the agent");
    assert!(done && !again);
    assert!(told.rules && !told.routes, "our own routes are no news: {told:?}");
    let repaired = lab.apply("a", &plan).changes;
    assert!(repaired.iter().all(|change| change.kind == ChangeKind::Rule), "{repaired:?}");

    // What hides something of the node's own is for the whole plan to refuse.
    let own = PeerRoute { prefix: "10.1.0.0/24".parse().expect("a prefix"), ..pods };
    let ground = lab.apply("a", &plan).ground.expect("everything stands");
    let change = Rerouting { add: vec![own], ..Rerouting::default() };
    let reroute = move || async move { net::reroute(&plan, &ground, &change, &OwnChanges::default()).await };
    assert!(!lab.agent("a", reroute).expect("netlink"));
}

#[test]
fn claims_that_are_changed_alone_stand_as_if_everything_had_been_applied() {
    let Some(lab) = Lab::new() else { return };
    let plan = carrying("a");
    let ground = lab.apply("a", &plan).ground.expect("everything stands");
    let net = |text: &str| text.parse::<ipnet::IpNet>().expect("a prefix");
    // The first touches what is claimed already, so a range grows; the second stands alone; the third leaves a gap.
    let claim = vec![net("10.244.4.0/24"), net("10.244.77.0/24")];
    let unclaim = vec![net("fd00:244:3::/64")];
    let mut after = plan.clone();
    after.claims.extend(&claim);
    after.claims.retain(|claim| !unclaim.contains(claim));
    let change = Rerouting { claim, unclaim, ..Rerouting::default() };
    let back = Rerouting { claim: change.unclaim.clone(), unclaim: change.claim.clone(), ..Rerouting::default() };
    let before = lab.picture("a");
    let run = |plan: net::NetPlan, change: Rerouting| {
        let ground = ground.clone();
        lab.agent("a", move || async move {
            let own = OwnChanges::default();
            let mut watch = net::watch(&own).await.expect("watch");
            let done = net::reroute(&plan, &ground, &change, &own).await.expect("netlink");
            // Somebody else's change, to have something that is told.
            let rule = std::process::Command::new("ip").args(["rule", "del", "priority", "11"]).status();
            assert!(rule.expect("ip").success());
            (done, watch.changed().await.expect("open"))
        })
    };
    for (plan, change) in [(&after, change), (&plan, back)] {
        let (done, told) = run(plan.clone(), change);
        assert!(done);
        assert!(told.rules && !told.routes && !told.firewall, "our own changes are no news: {told:?}");
        let repaired = lab.apply("a", plan).changes;
        assert!(repaired.iter().all(|change| change.kind == ChangeKind::Rule), "{repaired:?}");
    }
    assert_same(&before, &lab.picture("a"), "there and back");

    // What a local subnet lies in, what is this node's own, and the last claim of a family are for the whole plan.
    for claim in ["10.1.0.0/16", "10.244.1.0/24", "192.0.0.0/7"] {
        let change = Rerouting { claim: vec![net(claim)], ..Rerouting::default() };
        let (plan, ground) = (plan.clone(), ground.clone());
        let reroute = move || async move { net::reroute(&plan, &ground, &change, &OwnChanges::default()).await };
        assert!(!lab.agent("a", reroute).expect("netlink"), "{claim}");
    }
    assert_same(&before, &lab.picture("a"), "what is refused changes nothing");
}

#[test]
fn lost_events_are_told_as_such() {
    let Some(lab) = Lab::new() else { return };
    let (said, says) = std::sync::mpsc::channel();
    let (flooded, is_flooded) = std::sync::mpsc::channel::<()>();
    let watching = lab.spawn("a", move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("runtime");
        runtime.block_on(async {
            let mut watch = net::watch(&net::OwnChanges::default()).await.expect("watch");
            said.send(Changed::default()).expect("the test listens");
            // Nothing is read while the flood runs, so the socket's buffer overflows.
            is_flooded.recv().expect("the flood");
            said.send(watch.changed().await.expect("open")).expect("the test listens");
        });
    });
    says.recv_timeout(ARRIVES).expect("watching");
    let routes: String = (0..20_000u32)
        .map(|i| format!("route add unreachable {} table 99\n", Ipv4Addr::from(0x6440_0000 + i)))
        .collect();
    let file = std::env::temp_dir().join(lab.ns("flood"));
    std::fs::write(&file, routes).expect("a file");
    lab.ip("a", &format!("-batch {}", file.display()));
    std::fs::remove_file(file).expect("removed");
    flooded.send(()).expect("the watch waits");
    assert_eq!(says.recv_timeout(ARRIVES).expect("told"), Changed::ALL);
    watching.join().expect("the watch");
}

#[test]
fn global_sysctls_are_reported_with_the_command() {
    let Some(lab) = Lab::new() else { return };
    lab.set("a", "net.ipv4.ip_forward", "0");
    lab.set("a", "net.ipv6.conf.all.forwarding", "0");
    lab.set("a", "net.ipv4.conf.eth0.rp_filter", "1");
    let report = lab.apply("a", &plan("a"));
    let text: Vec<String> = report.problems.iter().map(ToString::to_string).collect();
    assert_eq!(text.len(), 2, "{text:?}");
    assert!(text[0].ends_with("found 0: run sysctl -w net.ipv4.ip_forward=1"), "{text:?}");
    assert!(text[1].ends_with("run sysctl -w net.ipv6.conf.all.forwarding=1"), "{text:?}");
    let conf = |name| lab.exec("a", &["sysctl", "-n", &format!("net.ipv4.conf.{name}")]).expect("sysctl");
    assert_eq!((conf("eth0.rp_filter"), conf("warren0.rp_filter")), ("2\n".into(), "2\n".into()));
    assert_eq!((conf("eth0.forwarding"), conf("warren0.forwarding")), ("1\n".into(), "1\n".into()));
}

#[test]
fn a_host_without_ipv6_gets_the_rest_and_is_told() {
    let Some(lab) = Lab::new() else { return };
    lab.set("a", "net.ipv6.conf.warren0.disable_ipv6", "1");
    let report = lab.apply("a", &plan("a"));
    assert!(report.standing().is_some());
    let [Problem::Ipv6Off { remedy, .. }] = &report.problems[..] else { panic!("{:?}", report.problems) };
    assert!(remedy.contains("net.ipv6.conf.warren0.disable_ipv6=0"), "{remedy}");
    assert_eq!(lab.way("a", "10.244.2.5"), "warren0");
    assert_eq!(lab.way("a", "fd00:244:2::5"), "No route to host");
    assert_eq!(lab.apply("a", &plan("a")).changes, []);
    lab.set("a", "net.ipv6.conf.warren0.disable_ipv6", "0");
    lab.apply("a", &plan("a"));
    assert_eq!(lab.way("a", "fd00:244:2::5"), "warren0");
}

#[test]
fn the_underlay_is_what_other_nodes_can_use() {
    let Some(lab) = Lab::new() else { return };
    lab.ip("a", "link add docker0 type bridge");
    lab.ip("a", "addr add 172.17.0.1/16 dev docker0");
    lab.ip("a", "link set docker0 up");
    lab.ip("a", "link add vethx type veth peer name vethy");
    lab.ip("a", "addr add 192.0.2.7/24 dev vethx");
    lab.ip("a", "link set vethx up");
    lab.ip("a", "addr add 2001:db8:1::dead/64 dev eth0 nodad preferred_lft 0");
    lab.ip("a", "addr add 169.254.7.7/16 dev eth0");
    lab.ip("a", "route add 198.51.100.0/24 via 10.1.0.1 mtu 1380");
    lab.apply("a", &plan("a"));
    let underlay = lab.agent("a", || async { net::underlay("warren0").await.expect("underlay") });
    let text = |all: &[std::net::IpAddr]| all.iter().map(ToString::to_string).collect::<Vec<_>>();
    assert_eq!(text(&underlay.candidates), ["10.1.0.2", "2001:db8:1::2"]);
    assert_eq!(text(&underlay.gateways), ["10.1.0.1", "2001:db8:1::1"]);
    assert_eq!(underlay.devices.iter().map(|d| d.name.as_str()).collect::<Vec<_>>(), ["eth0"]);
    let connected: Vec<String> = underlay.connected.iter().map(ToString::to_string).collect();
    assert_eq!(connected, ["10.1.0.0/24", "172.17.0.0/16", "192.0.2.0/24", "2001:db8:1::/64"]);
    assert_eq!((underlay.mtu, underlay.device_mtu()), (Some(1380), 1296));
}

#[test]
fn changes_are_told_once_a_burst_is_over_and_only_when_they_concern_us() {
    let Some(lab) = Lab::new() else { return };
    lab.apply("a", &plan("a"));
    let (said, says) = std::sync::mpsc::channel();
    let (do_next, next) = std::sync::mpsc::channel::<()>();
    let watching = lab.spawn("a", move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("runtime");
        runtime.block_on(async {
            let mut watch = net::watch(&net::OwnChanges::default()).await.expect("watch");
            said.send(Changed::default()).expect("the test listens");
            while next.recv().is_ok() {
                said.send(watch.changed().await.expect("open")).expect("the test listens");
            }
        });
    });
    says.recv_timeout(ARRIVES).expect("watching");
    // Everything told up to the report that was waited for: the kernel may add news of its own about a young link.
    let until = |is_it: fn(&Changed) -> bool, what: &dyn Fn()| {
        what();
        let mut told = Vec::new();
        while !told.last().is_some_and(is_it) {
            do_next.send(()).expect("the watch runs");
            told.push(says.recv_timeout(ARRIVES).expect("told"));
        }
        told
    };
    until(|c| c.rules, &|| drop(lab.ip("a", "rule del priority 11")));
    let told = until(|c| c.routes, &|| {
        lab.nft("a", "add table inet kube-proxy\nadd chain inet kube-proxy services");
        lab.ip("a", "route del unreachable 10.244.3.0/24 table 21820");
    });
    assert!(told.iter().all(|c| !c.firewall), "somebody else's table: {told:?}");
    until(|c| c.firewall, &|| drop(lab.nft("a", "flush ruleset")));
    until(|c| c.links, &|| drop(lab.ip("a", "addr add 10.1.0.9/24 dev eth0")));
    drop(do_next);
    watching.join().expect("the watch");
}
