//! Nobody hears from a partner it does not want.

use relay::server::plane::{BIND_DEADLINE, Config, Event, Input, News, Outcome, RefusedReason, ReleasedReason};
use wire::relay::Body;

use crate::support::{Leg, World, home, node, wireguard};

#[test]
fn a_partner_that_does_not_want_the_pair_hears_nothing() {
    let mut world = World::of(2, Config::default());
    let mut leg = Leg::of(1, &world.allocate(1, 2));
    world.bind(&mut leg, home(1));
    for kind in 1..=4 {
        let length = [148, 92, 64, 1000][kind - 1];
        assert!(world.arrive(leg.port, home(1), &wireguard(kind as u8, length)).is_empty());
    }
    assert_eq!((world.count(Outcome::Kept), world.count(Outcome::HalfBound)), (1, 3));
    world.pass(BIND_DEADLINE);
    assert_eq!(world.plane.stats().allocations, 0, "and the offer ends");
}

#[test]
fn a_node_cannot_bind_its_partners_leg() {
    let mut world = World::of(2, Config::default());
    let events = world.allocate(1, 2);
    let [one, two] = [1, 2].map(|number| Leg::of(number, &events));
    assert_ne!(one.key.expose_bytes(), two.key.expose_bytes());
    let mut stolen = Leg { side: two.side, ..one };
    assert!(world.arrive(stolen.port, home(1), &stolen.bind()).is_empty());
    assert!(world.arrive(stolen.port, home(1), &stolen.seal(&Body::Answer(wire::relay::Token([0; 16])))).is_empty());
    assert_eq!(world.count(Outcome::Forged), 2);
}

#[test]
fn a_key_of_another_pair_opens_nothing() {
    let mut world = World::of(3, Config::default());
    let events = world.allocate(1, 2);
    let target = Leg::of(1, &events);
    let attacker = Leg::of(3, &world.allocate(3, 1));
    let mut forged = Leg { key: attacker.key, ..target };
    assert!(world.arrive(forged.port, home(3), &forged.bind()).is_empty());
    assert_eq!(world.count(Outcome::Forged), 1);
}

#[test]
fn a_key_is_for_one_port() {
    let mut world = World::of(2, Config::default());
    let mut leg = Leg::of(1, &world.allocate(1, 2));
    assert!(world.arrive(leg.port + 1, home(1), &leg.bind()).is_empty());
    assert_eq!(world.count(Outcome::UnknownAllocation), 1);
}

/// A node may let a leg go without a word, or start anew and know nothing of it, while it stands bound at the relay.
#[test]
fn a_node_hears_of_its_bound_leg_whenever_the_partner_asks_for_the_pair() {
    let mut world = World::of(2, Config::default());
    let [_, other] = world.connect(1, 2);
    let told = world.allocate(1, 2);
    assert!(told.iter().any(|event| event.to == node(2) && matches!(event.news, News::Allocated { .. })));
    let mut again = Leg::of(2, &told);
    assert_eq!((again.allocation, again.port), (other.allocation, other.port), "the same one");
    world.bind(&mut again, home(2));
    assert!(world.carries(again.port, home(1), home(2)), "it may be bound again");
}

fn refused(events: &[Event]) -> Option<RefusedReason> {
    events.iter().find_map(|event| if let News::Refused(reason) = event.news { Some(reason) } else { None })
}

/// Nodes 1 to 4 fill the four ports of node 9 with offers that it never asked for.
#[test]
fn offers_nobody_asked_for_never_keep_a_node_from_its_own_pairs() {
    let mut world = World::of(10, Config { ports: 4, ..Config::default() });
    for stranger in 1..=4 {
        assert_eq!(refused(&world.allocate(stranger, 9)), None);
    }
    assert_eq!(refused(&world.allocate(5, 9)), Some(RefusedReason::PortsExhausted), "others' wish is not its own");
    let events = world.allocate(9, 10);
    assert_eq!(refused(&events), None);
    let unwanted = |event: &&Event| matches!(event.news, News::Released(ReleasedReason::Unwanted));
    let told: Vec<_> = events.iter().filter(unwanted).map(|event| event.to).collect();
    assert_eq!(told, [node(1), node(9)], "the oldest offer went");
    let (mut one, mut other) = (Leg::of(9, &events), Leg::of(10, &events));
    world.bind(&mut one, home(9));
    world.bind(&mut other, home(10));
    assert!(world.carries(one.port, home(9), home(10)));
}

#[test]
fn what_a_node_has_asked_for_or_bound_stays() {
    let mut world = World::of(10, Config { ports: 2, ..Config::default() });
    world.allocate(9, 1);
    world.connect(2, 9);
    assert_eq!(refused(&world.allocate(9, 3)), Some(RefusedReason::PortsExhausted));
    assert_eq!(world.plane.stats().allocations, 2);
}

#[test]
fn one_member_cannot_take_more_than_its_own_ports() {
    let mut world = World::of(200, Config::default());
    let answers: Vec<_> = (2..=100).map(|partner| refused(&world.allocate(1, partner))).collect();
    assert_eq!(answers.iter().filter(|answer| answer.is_none()).count(), 64);
    assert_eq!(answers.last(), Some(&Some(RefusedReason::PortsExhausted)));
    // Everybody else has lost one port at most.
    let [one, _] = world.connect(2, 3);
    assert!(world.carries(one.port, home(2), home(3)));
    world.pass(BIND_DEADLINE);
    assert_eq!(world.plane.stats().allocations, 1, "and gets it back soon");
}

#[test]
fn nodes_that_are_not_admitted_get_nothing() {
    let mut world = World::of(2, Config::default());
    for (by, partner) in [(1, 3), (3, 1), (3, 4), (1, 1)] {
        assert_eq!(refused(&world.allocate(by, partner)), Some(RefusedReason::NotAdmitted), "{by} with {partner}");
    }
    assert_eq!(world.plane.stats().allocations, 0);
}

#[test]
fn a_node_that_asks_too_often_is_slowed_down() {
    let mut world = World::of(3, Config::default());
    let answers: Vec<_> = (0..1000).map(|_| refused(&world.allocate(1, 2))).collect();
    assert_eq!(answers.iter().filter(|answer| answer.is_none()).count(), 128);
    assert_eq!(answers.last(), Some(&Some(RefusedReason::TooMany)));
    assert_eq!(refused(&world.allocate(3, 2)), None, "others are not");
}

#[test]
fn the_table_of_allocations_has_an_end() {
    let mut world = World::of(6, Config { max_allocations: 2, ..Config::default() });
    world.allocate(1, 2);
    world.allocate(3, 4);
    assert_eq!(refused(&world.allocate(5, 6)), Some(RefusedReason::Full));
    world.input(Input::Release { by: node(1), partner: node(2) });
    world.events();
    assert_eq!(refused(&world.allocate(5, 6)), None);
}
