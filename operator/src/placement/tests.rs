//! Small tables, and a mesh at random whose relays are truly reached or not.

use super::*;
use proptest::prelude::*;

mod random;

const START: i64 = 1_800_000_000;

fn at(minutes: i64) -> Timestamp {
    Timestamp::from_second(START + 60 * minutes).unwrap()
}

/// A public node, a member for an hour.
fn node(name: &str) -> Node {
    Node {
        name: name.into(),
        domain: name.into(),
        site: name.into(),
        control_plane: false,
        admitted: true,
        alive: true,
        since: at(-60),
        standing: Standing::Public,
        wish: Wish::Auto,
        label: Label::None,
        mark: None,
        reaches: BTreeMap::new(),
    }
}

fn hidden(name: &str) -> Node {
    Node { standing: Standing::Hidden, ..node(name) }
}

fn placed(name: &str, minute: i64) -> Node {
    Node { label: Label::Ours(at(minute)), mark: Some(Mark::Placed(at(minute))), ..node(name) }
}

fn reaching(mut node: Node, relays: &[(&str, bool)]) -> Node {
    node.reaches = relays.iter().map(|(name, udp)| ((*name).to_owned(), *udp)).collect();
    node
}

fn relays(names: &[&str]) -> Vec<Relay> {
    names.iter().map(|name| Relay { name: (*name).into(), node: Some((*name).into()), ..Relay::default() }).collect()
}

/// `+name` for a label, `-name` for one that goes.
fn changes(nodes: &[Node], names: &[&str], minute: i64) -> Vec<String> {
    said(&plan(nodes, &relays(names), at(minute)))
}

fn said(plan: &Plan) -> Vec<String> {
    plan.changes.iter().map(|change| format!("{}{}", if change.place { '+' } else { '-' }, change.node)).collect()
}

fn nothing() -> Vec<String> {
    Vec::new()
}

#[test]
fn the_first_relay_comes_at_once_and_the_next_ones_with_pauses_into_other_zones() {
    let zone = |name: &str, zone: &str| Node { domain: zone.into(), ..node(name) };
    let mut nodes = vec![zone("a", "1"), zone("b", "1"), zone("c", "2"), zone("d", "3"), hidden("home")];
    let mut order = Vec::new();
    for minute in 0..30 {
        // A member at every place reaches whatever is up.
        let up: Vec<String> =
            nodes.iter().filter(|node| node.label != Label::None).map(|node| node.name.clone()).collect();
        for node in &mut nodes {
            node.reaches = up.iter().filter(|name| **name != node.name).map(|name| (name.clone(), true)).collect();
        }
        let up: Vec<&str> = up.iter().map(String::as_str).collect();
        for change in plan(&nodes, &relays(&up), at(minute)).changes {
            let node = nodes.iter_mut().find(|node| node.name == change.node).unwrap();
            (node.label, node.mark) = (Label::Ours(at(minute)), change.mark(at(minute)));
            order.push((minute, change.place, change.node));
        }
    }
    let order: Vec<_> = order.iter().map(|(minute, place, name)| (*minute, *place, name.as_str())).collect();
    assert_eq!(order, [(0, true, "a"), (3, true, "c"), (6, true, "d")]);
}

#[test]
fn it_says_when_to_look_again() {
    let waiting = plan(&[placed("a", 0), node("b")], &relays(&["a"]), at(1));
    assert_eq!((said(&waiting), waiting.look_again), (nothing(), Some(at(3))), "for the next change");
    let three = [placed("a", 0), placed("b", 0), placed("c", 0), node("d")];
    assert_eq!(plan(&three, &relays(&["a", "b", "c"]), at(4)).look_again, Some(at(5)), "for what shall be proven");
    let young = Node { control_plane: true, since: at(0), ..node("cp") };
    assert_eq!(plan(&[young], &[], at(0)).look_again, Some(at(1)), "for the control plane");
    let barred = Node { mark: Some(Mark::Unreachable(at(0))), ..node("a") };
    assert_eq!(plan(&[barred], &[], at(10)).look_again, Some(at(24 * 60)), "for the next attempt");
}

#[test]
fn a_time_that_is_yet_to_come_holds_nothing_up() {
    let written = Node { mark: Some(Mark::Moved(at(1000))), ..hidden("a") };
    assert_eq!(changes(&[written, node("b")], &[], 0), ["+b"]);
}

#[test]
fn what_an_admin_says_of_a_node_is_done_at_once_and_before_all_else() {
    let wish = |wish, node: Node| Node { wish, ..node };
    assert_eq!(changes(&[wish(Wish::Always, hidden("home")), placed("a", 0)], &[], 0), ["+home"]);
    assert_eq!(changes(&[wish(Wish::Never, placed("a", 0)), node("b")], &["a"], 0), ["-a"]);
    assert_eq!(changes(&[wish(Wish::Never, node("a"))], &[], 0), nothing());
    let always = wish(Wish::Always, placed("a", 0));
    let nodes = [
        always,
        reaching(placed("b", 0), &[]),
        reaching(hidden("h"), &[("b", true)]),
        reaching(hidden("i"), &[("b", true)]),
    ];
    assert_eq!(changes(&nodes, &["a", "b"], 60), nothing(), "nobody reaches it, and it stays");
}

#[test]
fn what_an_admin_labelled_is_left_alone_and_nothing_is_added() {
    let by_others = Node { label: Label::Others, ..hidden("a") };
    assert_eq!(changes(&[by_others.clone(), node("b")], &["a"], 60), nothing());
    let never = Node { wish: Wish::Never, ..by_others };
    assert_eq!(changes(&[never, node("b")], &["a"], 60), nothing());
    let refused = Node { label: Label::Refused, ..node("a") };
    assert_eq!(changes(&[refused, node("b")], &[], 60), ["+b"], "a label that says no is about that node");
}

#[test]
fn the_control_plane_has_a_relay_only_while_nobody_else_can() {
    let cp = |node: Node| Node { control_plane: true, ..node };
    assert_eq!(changes(&[cp(node("a")), node("b")], &[], 0), ["+b"]);
    assert_eq!(changes(&[cp(node("a")), hidden("home")], &[], 0), ["+a"], "one server and homes");
    assert_eq!(changes(&[cp(Node { since: at(0), ..node("a") })], &[], 0), nothing(), "others may be about to join");
    let workers = [placed("a", 0), placed("b", 0), cp(node("c")), hidden("h"), hidden("i")];
    assert_eq!(changes(&workers, &["a", "b"], 4), nothing(), "the workers have their time");
    assert_eq!(changes(&workers, &["a", "b"], 5), ["+c"], "nobody reaches either of them");
    let homes = |relays: &[(&str, bool)]| [reaching(hidden("h"), relays), reaching(hidden("i"), relays)];
    let both = [cp(placed("a", 0)), placed("b", 10)];
    let with = |relays| [&both[..], &homes(relays)].concat();
    assert_eq!(changes(&with(&[("a", true)]), &["a", "b"], 13), nothing(), "the other one is not proven");
    assert_eq!(changes(&with(&[("a", true), ("b", true)]), &["a", "b"], 13), ["-a"]);
}

#[test]
fn a_relay_that_nobody_reaches_makes_room_for_the_next_and_is_remembered() {
    let homes = || [hidden("h"), hidden("i")];
    let with = |nodes: &[Node]| [nodes, &homes()].concat();
    assert_eq!(changes(&with(&[placed("a", 0)]), &["a"], 60), nothing(), "there is nothing better");
    let three = [placed("a", 0), placed("b", 0), placed("c", 0), node("d")];
    assert_eq!(changes(&with(&three), &["a", "b", "c"], 4), nothing(), "not yet");
    assert_eq!(changes(&with(&three), &["a", "b", "c"], 5), ["-a"]);
    let failed = Node { mark: Some(Mark::Unreachable(at(5))), ..node("a") };
    assert_eq!(changes(&with(&[failed.clone(), placed("b", 0), node("d")]), &["b"], 9), ["+d"], "the next one");
    assert_eq!(changes(&with(std::slice::from_ref(&failed)), &[], 60), nothing());
    assert_eq!(changes(&with(&[failed]), &[], 5 + 24 * 60), ["+a"], "a day later");
}

#[test]
fn a_relay_that_was_proven_and_is_not_any_more_has_the_same_time() {
    let mut lost = relays(&["a", "b"]);
    lost[0].unproven_since = Some(at(100));
    let nodes =
        [placed("a", 0), placed("b", 0), reaching(hidden("h"), &[("b", true)]), reaching(hidden("i"), &[("b", true)])];
    assert_eq!(said(&plan(&nodes, &lost, at(104))), nothing());
    assert_eq!(said(&plan(&nodes, &lost, at(105))), ["-a"]);
}

#[test]
fn a_label_of_long_ago_is_judged_from_when_its_relay_came() {
    let nodes = [placed("a", -500), hidden("h"), hidden("i"), node("b"), placed("c", -500), placed("d", -500)];
    let mut there = relays(&["a", "c", "d"]);
    there.iter_mut().for_each(|relay| relay.since = at(0));
    assert_eq!(said(&plan(&nodes, &there, at(4))), nothing());
    assert_eq!(said(&plan(&nodes, &there, at(5))), ["-a"]);
    assert_eq!(said(&plan(&nodes, &[], at(5))), nothing(), "it is being made");
}

#[test]
fn the_last_relay_that_is_reached_stays() {
    let nodes = [placed("a", 0), reaching(hidden("h"), &[("a", true)]), hidden("i"), node("b")];
    assert_eq!(changes(&nodes, &["a"], 60), ["+b"], "one witness of two: another one beside it");
    let reached = reaching(hidden("h"), &[("a", true)]);
    let three = [placed("a", 0), placed("b", 10), placed("c", 20), reached, hidden("i"), node("d")];
    assert_eq!(changes(&three, &["a", "b", "c"], 60), ["-b"], "only one that nobody reaches");
}

#[test]
fn witnesses_are_sites_away_from_the_relay() {
    let of = |nodes: &[Node]| reach(nodes, &relays(&["r"])[0]);
    let by_udp = |node: Node| reaching(node, &[("r", true)]);
    let at_site = |name: &str, site: &str| by_udp(Node { site: site.into(), ..hidden(name) });
    let found = of(&[node("r"), at_site("a", "1"), at_site("b", "1"), hidden("c")]);
    assert_eq!((found.udp, found.needed, found.proven()), (1, 2, Some(false)), "two of one site are one");
    assert_eq!(of(&[node("r"), at_site("a", "1"), at_site("b", "2")]).proven(), Some(true));
    assert_eq!(of(&[node("r"), at_site("a", "r"), at_site("b", "1")]).udp, 1, "its own site does not count");
    assert_eq!(of(&[node("r"), at_site("a", "r")]).proven(), Some(true), "but where there is no other");
    assert_eq!(of(&[node("r"), at_site("a", "1")]).proven(), Some(true), "all there are");
    assert_eq!(of(&[node("r")]).proven(), None, "nobody to tell");
    let dead = Node { alive: false, ..at_site("a", "1") };
    let removed = Node { admitted: false, ..at_site("b", "2") };
    assert_eq!(of(&[node("r"), dead, removed, hidden("c")]).udp, 0, "the dead and the removed say nothing");
}

#[test]
fn who_has_no_udp_at_all_does_not_speak_of_it() {
    let of = |nodes: &[Node]| reach(nodes, &relays(&["r"])[0]);
    let by_tls = |name: &str| reaching(hidden(name), &[("r", false)]);
    let mixed = of(&[node("r"), by_tls("a"), by_tls("b"), reaching(hidden("c"), &[("r", true)])]);
    assert_eq!((mixed.udp, mixed.tcp, mixed.needed, mixed.proven()), (1, 2, 1, Some(true)));
    let only = of(&[node("r"), by_tls("a"), by_tls("b")]);
    assert_eq!((only.by_tcp, only.proven()), (true, Some(true)), "then TLS is what counts");
    let elsewhere = reaching(hidden("d"), &[("other", true), ("r", false)]);
    assert_eq!(of(&[node("r"), by_tls("a"), elsewhere]).proven(), Some(false), "it has UDP, and not to this one");
}

#[test]
fn who_is_no_member_or_not_alive_gets_none_and_a_member_that_left_loses_it() {
    let out = |node: Node| Node { admitted: false, ..node };
    assert_eq!(changes(&[out(node("a")), Node { alive: false, ..node("b") }], &[], 0), nothing());
    assert_eq!(changes(&[out(placed("a", 0))], &["a"], 60), ["-a"]);
}

#[test]
fn a_likely_node_is_tried_only_where_there_is_no_public_one() {
    let likely = |name: &str| Node { standing: Standing::Perhaps, ..node(name) };
    assert_eq!(changes(&[likely("a"), node("b")], &[], 0), ["+b"]);
    assert_eq!(changes(&[likely("a"), hidden("b")], &[], 0), ["+a"]);
    let homes = [("h"), ("i")].map(|name| reaching(hidden(name), &[("b", true)]));
    let nodes = [&[likely("a"), placed("b", 0)][..], &homes].concat();
    assert_eq!(changes(&nodes, &["b"], 60), nothing());
}
