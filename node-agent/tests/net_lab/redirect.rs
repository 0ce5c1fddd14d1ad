//! The TCP port that leads to a relay: real sockets behind real rules.

use std::io::ErrorKind;
use std::net::TcpListener;

use node_agent::net::{NetPlan, Redirect};

use crate::lab::Lab;
use crate::plans::plan;

const OWN: [&str; 2] = ["10.1.0.2:443", "[2001:db8:1::2]:443"];

/// Node `a` has a relay that listens on 8443.
fn relaying() -> NetPlan {
    NetPlan { relay_redirect: Some(Redirect { from: 443, to: 8443 }), ..plan("a") }
}

fn refused(lab: &Lab, to: &str) {
    let error = lab.connect("b", to).expect_err("nobody listens there");
    assert_eq!(error.kind(), ErrorKind::ConnectionRefused, "{to}: {error}");
}

#[test]
fn the_port_leads_to_the_relay_by_both_families_and_no_longer_than_it_is_planned() {
    let Some(lab) = Lab::new() else { return };
    lab.apply("b", &plan("b"));
    lab.apply("a", &plan("a"));
    let without = lab.picture("a");
    OWN.iter().for_each(|to| refused(&lab, to));
    lab.apply("a", &relaying());
    assert_eq!(lab.apply("a", &relaying()).changes, [], "a second apply");
    for (to, seen) in OWN.iter().zip(["10.2.0.2", "2001:db8:2::2"]) {
        let relay = lab.serve("a", "[::]:8443");
        let from = lab.connect("b", to).unwrap_or_else(|error| panic!("{to}: {error}"));
        assert_eq!(from.ip().to_canonical().to_string(), seen, "the relay sees who asks");
        relay.join().expect("the relay");
    }
    lab.apply("a", &plan("a"));
    crate::lab::assert_same(&without, &lab.picture("a"), "the relay has left");
    OWN.iter().for_each(|to| refused(&lab, to));
}

#[test]
fn what_passes_through_and_what_is_not_this_nodes_own_address_goes_on() {
    let Some(lab) = Lab::new() else { return };
    lab.apply("b", &plan("b"));
    lab.apply("a", &relaying());
    // A pod of this node, and a load balancer's address that only looks like the node's.
    lab.ip("a", "link add dummy0 type bridge");
    lab.ip("a", "addr add 198.51.100.1/32 dev dummy0");
    lab.ip("a", "link set dummy0 up");
    lab.ip("r", "route add 198.51.100.1 via 10.1.0.2");
    lab.apply("a", &relaying());
    let _relay = lab.spawn("a", || TcpListener::bind("[::]:8443").expect("bind")).join().expect("the relay");
    refused(&lab, "198.51.100.1:443");
    let pod = lab.serve("pb", "10.244.2.5:443");
    let seen = lab.connect("pa", "10.244.2.5:443").expect("the pod answers");
    assert_eq!(seen.ip().to_string(), "10.244.1.5");
    pod.join().expect("the pod");
}

#[test]
fn an_ingress_behind_somebody_elses_rule_keeps_the_port() {
    let Some(lab) = Lab::new() else { return };
    lab.apply("b", &plan("b"));
    lab.nft(
        "a",
        "add table ip others
        add chain ip others pre { type nat hook prerouting priority dstnat; }
        add rule ip others pre ip daddr 10.1.0.2 tcp dport 443 dnat to 10.244.1.5:8080",
    );
    lab.apply("a", &relaying());
    let _relay = lab.spawn("a", || TcpListener::bind("[::]:8443").expect("bind")).join().expect("the relay");
    let ingress = lab.serve("pa", "10.244.1.5:8080");
    let seen = lab.connect("b", "10.1.0.2:443").expect("the ingress answers");
    assert_eq!(seen.ip().to_string(), "10.2.0.2");
    ingress.join().expect("the ingress");
}

#[test]
fn the_redirect_is_put_back_with_the_rest_and_goes_with_cleanup() {
    let Some(lab) = Lab::new() else { return };
    lab.apply("a", &relaying());
    let picture = lab.picture("a");
    for vandal in ["flush chain inet warren dstnat", "flush set inet warren relay4", "delete table inet warren"] {
        lab.nft("a", vandal);
        assert_ne!(picture, lab.picture("a"), "{vandal}: nothing was broken");
        lab.apply("a", &relaying());
        crate::lab::assert_same(&picture, &lab.picture("a"), vandal);
    }
    let originals = lab.originals("a");
    lab.agent(
        "a",
        move || async move { node_agent::net::cleanup("warren0", &originals, false).await.expect("cleanup") },
    );
    assert_eq!(lab.nft("a", "list ruleset").trim(), "");
}
