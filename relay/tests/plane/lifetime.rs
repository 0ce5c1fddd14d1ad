//! How allocations end.

use std::time::Duration;

use relay::server::plane::{BIND_DEADLINE, Config, IDLE_DEADLINE, Input, News, Outcome, ReleasedReason};

use crate::support::{Leg, World, home, node};

fn released(world: &mut World) -> Vec<(u8, ReleasedReason)> {
    let events = world.events();
    let of = |event: &relay::server::plane::Event| match event.news {
        News::Released(reason) => Some((event.to.0[0], reason)),
        _ => None,
    };
    events.iter().filter_map(of).collect()
}

#[test]
fn a_released_pair_is_gone_at_once_and_whole() {
    for by in [1, 2] {
        let mut world = World::of(2, Config::default());
        let [mut leg, _] = world.connect(1, 2);
        let released_by = if by == 1 { (1, 2) } else { (2, 1) };
        world.input(Input::Release { by: node(released_by.0), partner: node(released_by.1) });
        assert_eq!(released(&mut world), [(1, ReleasedReason::Asked), (2, ReleasedReason::Asked)]);
        assert!(!world.carries(leg.port, home(1), home(2)) && !world.carries(leg.port, home(2), home(1)));
        assert!(world.arrive(leg.port, home(1), &leg.bind()).is_empty(), "its key is worth nothing");
        assert_eq!(world.count(Outcome::UnknownAllocation), 1);
        let stats = world.plane.stats();
        assert_eq!((stats.allocations, stats.bound_legs), (0, 0));
        assert_eq!(world.plane.poll_timeout(), None, "and nothing is left to wait for");
        let again = Leg::of(1, &world.allocate(1, 2));
        assert_eq!(again.port, leg.port, "its port is free again");
        assert_ne!(again.allocation, leg.allocation);
    }
}

#[test]
fn strangers_to_a_pair_cannot_release_it() {
    let mut world = World::of(3, Config::default());
    let [leg, _] = world.connect(1, 2);
    for (by, partner) in [(3, 1), (3, 2), (1, 3), (3, 4)] {
        world.input(Input::Release { by: node(by), partner: node(partner) });
    }
    assert!(world.carries(leg.port, home(1), home(2)));
}

#[test]
fn a_removed_node_loses_everything_and_others_nothing() {
    let mut world = World::of(4, Config::default());
    let [gone, _] = world.connect(1, 2);
    world.connect(1, 3);
    let [kept, _] = world.connect(2, 3);
    world.input(Input::Remove(node(1)));
    let mut told = released(&mut world);
    told.sort_by_key(|&(to, _)| to);
    assert_eq!(told, [1, 1, 2, 3].map(|to| (to, ReleasedReason::Removed)));
    assert!(!world.carries(gone.port, home(1), home(2)));
    assert!(!world.carries(gone.port, home(2), home(1)));
    assert!(world.carries(kept.port, home(2), home(3)));
    world.input(Input::Admit(node(4)));
    assert!(matches!(world.allocate(1, 2)[0].news, News::Refused(_)));
}

#[test]
fn what_is_not_bound_in_time_goes() {
    let mut world = World::of(2, Config::default());
    world.allocate(1, 2);
    world.pass(BIND_DEADLINE - Duration::from_millis(1));
    assert_eq!(world.plane.stats().allocations, 1);
    world.pass(Duration::from_millis(1));
    assert_eq!(released(&mut world), [(1, ReleasedReason::NotBound), (2, ReleasedReason::NotBound)]);
}

#[test]
fn a_pair_stays_while_both_legs_live_and_ends_when_one_is_silent() {
    let mut world = World::of(2, Config::default());
    let [leg, _] = world.connect(1, 2);
    let step = Duration::from_secs(100);
    for _ in 0..50 {
        world.pass(step);
        assert!(world.carries(leg.port, home(1), home(2)) && world.carries(leg.port, home(2), home(1)));
    }
    // Node 2 says nothing any more: what is sent to it may reach somebody else by now.
    let start = world.now;
    while world.plane.stats().allocations > 0 {
        world.pass(step);
        world.carries(leg.port, home(1), home(2));
        assert!(world.now - start <= IDLE_DEADLINE);
    }
    assert_eq!(released(&mut world), [(1, ReleasedReason::Idle), (2, ReleasedReason::Idle)]);
}

#[test]
fn binding_again_is_a_sign_of_life() {
    let mut world = World::of(2, Config::default());
    let [mut one, mut two] = world.connect(1, 2);
    for _ in 0..30 {
        world.pass(Duration::from_secs(60));
        world.bind(&mut one, home(1));
        world.bind(&mut two, home(2));
    }
    assert!(world.carries(one.port, home(1), home(2)));
    assert!(world.events().is_empty(), "and no news");
}

#[test]
fn asking_again_tells_the_same_again() {
    let mut world = World::of(2, Config::default());
    let [mut leg, _] = world.connect(1, 2);
    leg.bind();
    world.arrive(leg.port, home(1), &leg.bind());
    let events = world.allocate(1, 2);
    let mut again = Leg::of(1, &events);
    assert_eq!((again.allocation, again.port), (leg.allocation, leg.port));
    assert_eq!(again.counter, leg.counter, "an agent that starts anew goes on from there");
    world.bind(&mut again, home(1));
}

#[test]
fn a_hint_is_followed_when_it_can_be() {
    let mut world = World::of(4, Config::default());
    let mut ask = |by, partner, hint| {
        world.input(Input::Allocate { by: node(by), partner: node(partner), hint: Some(hint) });
        Leg::of(by, &world.events()).port
    };
    assert_eq!(ask(1, 2, 51917), 17);
    assert_eq!(ask(1, 3, 51917), 0, "taken at node 1");
    assert_eq!(ask(3, 4, 51917), 17);
    assert_eq!(ask(2, 4, 51964), 0, "not one of the relay's");
    assert_eq!(ask(2, 3, 80), 1, "neither");
}

fn ready(world: &mut World) -> Vec<u8> {
    let events = world.events();
    events.iter().filter(|event| matches!(event.news, News::Ready)).map(|event| event.to.0[0]).collect()
}

#[test]
fn both_hear_once_that_the_pair_is_ready_and_who_asks_again_hears_again() {
    let mut world = World::of(2, Config::default());
    let events = world.allocate(1, 2);
    let [mut one, mut other] = [1, 2].map(|number| Leg::of(number, &events));
    world.bind(&mut one, home(1));
    assert!(ready(&mut world).is_empty(), "one leg is none");
    world.bind(&mut other, home(2));
    assert_eq!(ready(&mut world), [1, 2]);
    world.bind(&mut one, home(1));
    assert!(ready(&mut world).is_empty(), "a refresh is no news");
    world.input(Input::Allocate { by: node(2), partner: node(1), hint: None });
    assert_eq!(ready(&mut world), [2]);
    // Another leg takes the source, and the pair is ready again once it has a new one.
    let mut world = World::of(4, Config::default());
    world.connect(1, 2);
    let events = world.allocate(3, 4);
    let [mut thief, mut fourth] = [3, 4].map(|number| Leg::of(number, &events));
    world.bind(&mut fourth, home(4));
    world.bind(&mut thief, home(1));
    assert_eq!(ready(&mut world), [3, 4]);
    let told = world.allocate(1, 2);
    assert!(!told.iter().any(|event| matches!(event.news, News::Ready)), "a leg is missing: {told:?}");
    let mut again = Leg::of(1, &told);
    world.bind(&mut again, home(9));
    assert_eq!(ready(&mut world), [1, 2]);
}

#[test]
fn a_list_of_members_removes_who_is_not_on_it_and_leaves_the_legs_of_others() {
    let mut world = World::of(3, Config::default());
    let [gone, _] = world.connect(1, 2);
    let [kept, _] = world.connect(2, 3);
    world.input(Input::Members([2, 3, 4].map(node).into()));
    assert!(!world.carries(gone.port, home(1), home(2)));
    assert!(world.carries(kept.port, home(2), home(3)));
    let refused =
        |events: &[relay::server::plane::Event]| events.iter().any(|event| matches!(event.news, News::Refused(_)));
    world.events();
    assert!(refused(&world.allocate(1, 2)) && !refused(&world.allocate(4, 2)));
}
