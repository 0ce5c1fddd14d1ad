//! Legs: asked for here, made by the data plane, told to whom they concern.

use relay::server::control::{Input, Refusal, SessionId};
use relay::server::plane::{self, News, RefusedReason, ReleasedReason};
use wire::control::{self, ToNode, ToRelay};
use wire::relay::{AllocationId, LegKey, Side};

use crate::world::{Heard, World, denied, identity, key, node_id};

fn allocated() -> News {
    News::Allocated {
        allocation: AllocationId(5),
        side: Side::High,
        port: 51903,
        key: LegKey::from_bytes([8; 32]),
        counter: 4,
    }
}

#[test]
fn wishes_reach_the_data_plane_in_the_name_of_who_has_them() {
    let mut world = World::of(2);
    let [one, other] = world.meet(1, 2);
    world.say(one, ToRelay::Allocate { partner: key(2), hint: Some(51901) });
    world.say(other, ToRelay::Release(key(1)));
    let expected = [
        plane::Input::Allocate { by: node_id(1), partner: node_id(2), hint: Some(51901) },
        plane::Input::Release { by: node_id(2), partner: node_id(1) },
    ];
    assert_eq!(world.plane, expected);
}

#[test]
fn both_hear_of_their_leg_and_when_it_is_ready() {
    let mut world = World::of(2);
    let sessions = world.meet(1, 2);
    for ((to, partner), session) in [(1, 2), (2, 1)].into_iter().zip(sessions) {
        world.news(to, partner, allocated());
        world.news(to, partner, News::Bound { observed: "192.0.2.1:1".parse().unwrap() });
        world.news(to, partner, News::Ready);
        world.news(to, partner, News::Unbound);
        world.news(to, partner, News::Released(ReleasedReason::Idle));
        let heard = world.hear(session);
        let [Heard::Said(leg), Heard::Said(ready), Heard::Said(unbound), Heard::Said(released)] = &heard[..] else {
            panic!("four messages, BOUND goes its own way: {heard:?}")
        };
        assert!(matches!(leg, ToNode::Allocated { partner: with, leg } if *with == key(partner)
            && leg.allocation == AllocationId(5) && leg.side == Side::High && leg.port == 51903 && leg.counter == 4
            && leg.key.expose_bytes() == &[8; 32]));
        assert!(matches!(ready, ToNode::Ready(with) if *with == key(partner)));
        assert!(matches!(unbound, ToNode::Unbound(with) if *with == key(partner)));
        let reason = control::ReleasedReason::Idle;
        assert!(
            matches!(released, ToNode::Released { partner: with, reason: found } if *with == key(partner) && *found == reason)
        );
    }
}

/// Otherwise any member could keep any other awake.
#[test]
fn offers_of_nodes_that_nobody_asked_about_wake_nobody() {
    let mut world = World::of(2);
    let [one, other] = [world.come(1), world.come(2)];
    world.say(one, ToRelay::Allocate { partner: key(2), hint: None });
    world.news(1, 2, allocated());
    world.news(2, 1, allocated());
    assert_eq!(world.hear(one).len(), 1, "who asks is answered");
    assert!(world.hear(other).is_empty());
    assert_eq!(world.sessions.stats().refusals(Refusal::Offer), 1);
    // A wish of its own changes that.
    world.say(other, ToRelay::Allocate { partner: key(1), hint: None });
    world.news(2, 1, allocated());
    assert_eq!(world.hear(other).len(), 1);
}

#[test]
fn a_refusal_is_told_with_its_reason_and_ends_the_wish() {
    let mut world = World::of(2);
    let one = world.come(1);
    world.say(one, ToRelay::Allocate { partner: key(9), hint: None });
    world.news(1, 9, News::Refused(RefusedReason::NotAdmitted));
    let heard = world.hear(one);
    let reason = control::RefusedReason::NotAdmitted;
    assert!(
        matches!(heard[..], [Heard::Said(ToNode::Refused { partner, reason: found })] if partner == key(9) && found == reason)
    );
    world.news(1, 9, allocated());
    assert!(world.hear(one).is_empty());
}

#[test]
fn news_for_who_is_not_here_is_dropped() {
    let mut world = World::of(2);
    let [one, other] = world.meet(1, 2);
    world.input(Input::Gone(one));
    world.hear(other);
    world.news(1, 2, allocated());
    assert!(world.heard.is_empty(), "{:?}", world.heard);
}

#[test]
fn legs_outlive_the_session() {
    let mut world = World::of(2);
    let [one, _] = world.meet(1, 2);
    world.say(one, ToRelay::Allocate { partner: key(2), hint: None });
    world.plane.clear();
    world.input(Input::Gone(one));
    assert!(world.plane.is_empty(), "{:?}", world.plane);
}

fn attach(by: u8, partner: u8, session: SessionId) -> plane::Input {
    plane::Input::Attach { by: node_id(by), partner: node_id(partner), channel: session.into() }
}

fn detach(by: u8, session: SessionId) -> plane::Input {
    plane::Input::Detach { by: node_id(by), channel: session.into() }
}

#[test]
fn a_channel_that_is_a_leg_is_none_any_more_when_it_ends_however_it_does() {
    let ends: [fn(&mut World, SessionId); 4] = [
        |world, session| world.input(Input::Gone(session)),
        |world, session| world.input(Input::Nonsense(session)),
        |world, _| {
            world.come(1);
        },
        |world, _| world.input(Input::Member { name: "node-1".into(), member: None }),
    ];
    for end in ends {
        let mut world = World::of(2);
        let [one, other] = world.meet(1, 2);
        world.plane.clear();
        world.say(one, ToRelay::Attach { partner: key(2) });
        world.say(one, ToRelay::Attach { partner: key(2) });
        assert_eq!(std::mem::take(&mut world.plane), [attach(1, 2, one), attach(1, 2, one)]);
        end(&mut world, one);
        let detached = world.plane.iter().filter(|input| **input == detach(1, one)).count();
        assert_eq!(detached, 1, "{:?}", world.plane);
        world.plane.clear();
        world.input(Input::Gone(other));
        assert!(world.plane.is_empty(), "who has never attached has nothing to lose");
    }
}

#[test]
fn who_has_not_said_hello_attaches_nothing() {
    let mut world = World::of(2);
    let session = world.open(identity(1));
    world.say(session, ToRelay::Attach { partner: key(2) });
    assert!(denied(&world.hear(session)).is_some() && world.plane.is_empty());
}
