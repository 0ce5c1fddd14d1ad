//! Stray packets go to who asks, seldom, and to nobody else.

use std::net::SocketAddr;
use std::time::Duration;

use relay::server::control::{Input, Refusal, STRAY_PERIOD};
use wire::control::{ToNode, ToRelay};
use wire::stun::TransactionId;

use crate::world::{Heard, World, home};

fn stray(to: &str) -> ToRelay {
    ToRelay::Stray { to: to.parse().unwrap(), tx: TransactionId([3; 12]) }
}

#[test]
fn a_stray_packet_goes_to_a_port_of_who_asks_and_to_no_other_host() {
    let mut world = World::of(1);
    let one = world.come(1);
    let elsewhere = ["198.51.100.2:1", "203.0.113.1:51820", "[2001:db8::1]:51820", "127.0.0.1:1", "0.0.0.0:1"];
    for to in elsewhere {
        world.say_from(one, stray(to), home(1));
    }
    world.say_from(one, stray("198.51.100.1:0"), home(1));
    assert!(world.strays.is_empty(), "{:?}", world.strays);
    assert_eq!(world.sessions.stats().refusals(Refusal::StrayAddress), 6);
    world.say_from(one, stray("198.51.100.1:51820"), home(1));
    assert_eq!(world.strays, [(one, "198.51.100.1:51820".parse().unwrap())]);
    // Mapped or not, it is the same address.
    world.pass(STRAY_PERIOD);
    world.say_from(one, stray("[::ffff:198.51.100.1]:51820"), "[::ffff:198.51.100.1]:9".parse().unwrap());
    assert_eq!(world.strays.len(), 2);
}

#[test]
fn none_goes_to_an_address_that_no_leg_may_have() {
    let mut world = World::of(1);
    let one = world.come(1);
    for own in ["127.0.0.1:9", "169.254.1.1:9", "224.0.0.1:9", "[::1]:9", "[fe80::1]:9"] {
        let remote: SocketAddr = own.parse().unwrap();
        world.say_from(one, ToRelay::Stray { to: remote, tx: TransactionId([3; 12]) }, remote);
    }
    world.input(Input::Own(vec![home(1).ip()]));
    world.say_from(one, stray("198.51.100.1:51820"), home(1));
    assert!(world.strays.is_empty(), "{:?}", world.strays);
    assert_eq!(world.sessions.stats().refusals(Refusal::StrayAddress), 6);
}

#[test]
fn there_are_never_two_within_their_period() {
    let mut world = World::of(1);
    let one = world.come(1);
    // None is saved up, however long nobody asks.
    world.pass(Duration::from_secs(3600));
    for step in 0..100 {
        world.say_from(one, stray("198.51.100.1:51820"), home(1));
        assert_eq!(world.strays.len(), 1 + step / 10);
        world.pass(STRAY_PERIOD / 10);
    }
    assert!(world.sessions.stats().refusals(Refusal::StrayRate) > 80);
}

#[test]
fn what_is_asked_for_at_once_leaves_one_after_the_other() {
    let mut world = World::of(1);
    let one = world.come(1);
    for _ in 0..10 {
        world.say_from(one, stray("198.51.100.1:51820"), home(1));
    }
    let mut left = Vec::new();
    while let Some((at, _)) = world.sessions.poll_timeout() {
        world.pass(at - world.now);
        left.push(world.strays.len());
    }
    assert_eq!(left, [2, 3, 4, 5], "one at once, and those that wait");
    assert_eq!(world.sessions.stats().refusals(Refusal::StrayRate), 5);
}

#[test]
fn none_goes_to_who_has_left() {
    let mut world = World::of(1);
    let one = world.come(1);
    for _ in 0..2 {
        world.say_from(one, stray("198.51.100.1:51820"), home(1));
    }
    world.input(Input::Gone(one));
    assert_eq!(world.sessions.poll_timeout(), None);
    world.pass(STRAY_PERIOD);
    assert_eq!(world.strays.len(), 1);
}

#[test]
fn who_asked_hears_where_it_left_from() {
    let mut world = World::of(1);
    let one = world.come(1);
    let (tx, from) = (TransactionId([3; 12]), "203.0.113.9:40000".parse().unwrap());
    world.input(Input::StraySent { session: one, tx, from });
    let heard = world.hear(one);
    assert!(
        matches!(heard[..], [Heard::Said(ToNode::StraySent { tx: said, from: left })] if said == tx && left == from)
    );
}
