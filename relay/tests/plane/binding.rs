//! BIND, CHALLENGE, ANSWER, BOUND.

use std::time::Duration;

use relay::server::plane::{Config, News, Outcome};
use wire::relay::{Body, MESSAGE_LEN, Token};

use crate::support::{Leg, World, address, home};

fn pair() -> (World, [Leg; 2]) {
    let mut world = World::of(2, Config::default());
    let events = world.allocate(1, 2);
    let legs = [1, 2].map(|number| Leg::of(number, &events));
    (world, legs)
}

#[test]
fn a_pair_that_has_bound_both_legs_talks() {
    let mut world = World::of(2, Config::default());
    let [one, _] = world.connect(1, 2);
    assert!(world.carries(one.port, home(1), home(2)));
    assert!(world.carries(one.port, home(2), home(1)));
    assert_eq!(world.count(Outcome::Forwarded), 2);
}

#[test]
fn a_bind_is_challenged_once_however_often_it_is_repeated() {
    let (mut world, [mut leg, _]) = pair();
    let bind = leg.bind();
    assert_eq!(world.arrive(leg.port, home(1), &bind).len(), 1);
    for from in [home(1), home(3), address("[2001:db8::1]:9")] {
        assert!(world.arrive(leg.port, from, &bind).is_empty());
    }
    assert_eq!(world.count(Outcome::Replayed), 3);
}

#[test]
fn an_earlier_counter_than_the_last_is_not_heard() {
    let (mut world, [mut leg, _]) = pair();
    let (first, second) = (leg.bind(), leg.bind());
    assert_eq!(world.arrive(leg.port, home(1), &second).len(), 1);
    assert!(world.arrive(leg.port, home(1), &first).is_empty());
}

#[test]
fn a_repeated_answer_does_not_move_the_leg_back() {
    let (mut world, [mut leg, mut other]) = pair();
    let challenge = world.arrive(leg.port, home(1), &leg.bind());
    let answer = leg.answer(leg.token(&challenge));
    assert_eq!(world.arrive(leg.port, home(1), &answer).len(), 1);
    world.bind(&mut leg, home(3));
    world.bind(&mut other, home(2));
    assert!(world.arrive(leg.port, home(1), &answer).is_empty());
    assert!(world.carries(leg.port, home(3), home(2)) && !world.carries(leg.port, home(1), home(2)));
}

#[test]
fn an_answer_from_elsewhere_than_its_bind_binds_nothing() {
    let (mut world, [mut leg, _]) = pair();
    let challenge = world.arrive(leg.port, home(1), &leg.bind());
    let answer = leg.answer(leg.token(&challenge));
    for elsewhere in ["198.51.100.1:21821", "198.51.100.2:21820", "[2001:db8::1]:21820"] {
        assert!(world.arrive(leg.port, address(elsewhere), &answer).is_empty(), "{elsewhere}");
    }
    assert_eq!((world.count(Outcome::BadToken), world.plane.stats().bound_legs), (3, 0));
    assert_eq!(world.arrive(leg.port, home(1), &answer).len(), 1);
}

#[test]
fn a_token_is_good_for_one_bind_of_one_leg() {
    let (mut world, [mut one, mut two]) = pair();
    let first = world.challenge(&mut one, home(1));
    let second = world.challenge(&mut one, home(1));
    let of_two = world.challenge(&mut two, home(1));
    assert!(first != second && first != of_two && second != of_two);
    for wrong in [first, of_two, Token([0; 16])] {
        assert!(world.arrive(one.port, home(1), &one.answer(wrong)).is_empty());
    }
    assert_eq!(world.count(Outcome::BadToken), 3);
    assert_eq!(world.arrive(one.port, home(1), &one.answer(second)).len(), 1);
}

#[test]
fn a_token_of_an_earlier_life_of_the_relay_is_none() {
    let (mut world, [mut leg, _]) = pair();
    let token = world.challenge(&mut leg, home(1));
    let mut again = World::of(2, Config::default());
    again.plane = relay::server::plane::Plane::new(Config::default(), [8; 32], again.now);
    for number in [1, 2] {
        again.input(relay::server::plane::Input::Admit(crate::support::node(number)));
    }
    let events = again.allocate(1, 2);
    let mut leg = Leg::of(1, &events);
    again.arrive(leg.port, home(1), &leg.bind());
    assert!(again.arrive(leg.port, home(1), &leg.answer(token)).is_empty());
    assert_eq!(again.count(Outcome::BadToken), 1);
}

#[test]
fn a_token_ages() {
    for (age, is_taken) in [(0, true), (119, true), (241, false), (3600, false)] {
        let mut world = World::of(2, Config::default());
        let [mut leg, _] = world.connect(1, 2);
        let token = world.challenge(&mut leg, home(1));
        // Data keeps the allocation there.
        for _ in 0..age {
            world.pass(Duration::from_secs(1));
            world.carries(leg.port, home(1), home(2));
            world.carries(leg.port, home(2), home(1));
        }
        assert_eq!(world.arrive(leg.port, home(1), &leg.answer(token)).len(), usize::from(is_taken), "{age} s");
    }
}

#[test]
fn a_leg_that_moves_is_followed() {
    let mut world = World::of(2, Config::default());
    let [mut leg, _] = world.connect(1, 2);
    let new = address("[2001:db8::77]:4000");
    world.bind(&mut leg, new);
    assert!(world.carries(leg.port, home(2), new) && world.carries(leg.port, new, home(2)));
    assert!(!world.carries(leg.port, home(1), home(2)), "the old address is nobody's");
    assert_eq!(world.plane.stats().bound_legs, 2);
}

#[test]
fn a_leg_whose_source_is_anothers_now_is_unbound_and_told() {
    let mut world = World::of(4, Config::default());
    let [stale, _] = world.connect(1, 2);
    let events = world.allocate(3, 4);
    let mut legs = [3, 4].map(|number| Leg::of(number, &events));
    assert_eq!(legs[0].port, stale.port, "pairs of other nodes share the port");
    // The NAT in front of nodes 1 and 3 has given node 1's mapping to node 3.
    world.bind(&mut legs[0], home(1));
    world.bind(&mut legs[1], home(4));
    let events = world.events();
    let unbound: Vec<_> = events.iter().filter(|event| matches!(event.news, News::Unbound)).collect();
    assert_eq!(unbound.len(), 1);
    assert_eq!((unbound[0].to, unbound[0].partner), (crate::support::node(1), crate::support::node(2)));
    assert!(world.carries(stale.port, home(1), home(4)));
    assert!(!world.carries(stale.port, home(2), home(1)), "nothing of the old pair goes to the new owner");
}

#[test]
fn sources_that_no_leg_may_have_are_not_answered() {
    let own = "203.0.113.7".parse().unwrap();
    let denied = vec!["192.0.2.0/24".parse().unwrap(), "2001:db8:bad::/48".parse().unwrap()];
    let mut world = World::of(2, Config { own: vec![own], denied, ..Config::default() });
    let mut leg = Leg::of(1, &world.allocate(1, 2));
    let sources = [
        "127.0.0.1:21820",
        "127.9.9.9:21820",
        "[::1]:21820",
        "[::ffff:127.0.0.1]:21820",
        "169.254.169.254:80",
        "[fe80::1]:21820",
        "[::ffff:169.254.1.1]:21820",
        "224.0.0.1:21820",
        "[ff02::1]:21820",
        "255.255.255.255:21820",
        "240.0.0.1:21820",
        "0.0.0.0:21820",
        "0.1.2.3:21820",
        "[::]:21820",
        "[::ffff:0.0.0.0]:21820",
        "198.51.100.1:0",
        "203.0.113.7:21820",
        "[::ffff:203.0.113.7]:51900",
        "192.0.2.77:21820",
        "[2001:db8:bad::1]:21820",
    ];
    for source in sources {
        assert!(world.arrive(leg.port, address(source), &leg.bind()).is_empty(), "{source}");
    }
    assert_eq!(world.count(Outcome::BadSource), sources.len() as u64);
    world.bind(&mut leg, home(1));
}

#[test]
fn a_dual_stack_socket_makes_no_difference() {
    let (mut world, [mut leg, mut other]) = pair();
    let mapped = address("[::ffff:198.51.100.1]:21820");
    let challenge = world.arrive(leg.port, mapped, &leg.bind());
    let answer = leg.hear(&challenge[0].payload).unwrap();
    let bound = world.arrive(leg.port, mapped, &answer);
    leg.hear(&bound[0].payload);
    assert_eq!(leg.observed, Some(home(1)));
    world.bind(&mut other, home(2));
    assert!(world.carries(leg.port, home(1), home(2)));
}

#[test]
fn replies_are_never_larger_than_what_they_answer_and_rare() {
    let (mut world, [mut leg, _]) = pair();
    let mut replies = 0;
    for _ in 0..1000 {
        let packets = world.arrive(leg.port, home(1), &leg.bind());
        assert!(packets.iter().all(|packet| packet.payload.len() == MESSAGE_LEN));
        replies += packets.len();
    }
    assert_eq!(replies, 16, "a burst");
    world.pass(Duration::from_secs(1));
    let later = (0..100).filter(|_| !world.arrive(leg.port, home(1), &leg.bind()).is_empty()).count();
    assert_eq!(later, 5, "a second's worth");
}

#[test]
fn what_a_relay_says_is_not_taken_from_a_node() {
    let (mut world, [leg, _]) = pair();
    for body in [Body::Challenge(Token([1; 16])), Body::Bound { observed: home(9) }] {
        assert!(world.arrive(leg.port, home(1), &leg.seal(&body)).is_empty());
    }
    assert_eq!(world.count(Outcome::Unfit), 2);
}
