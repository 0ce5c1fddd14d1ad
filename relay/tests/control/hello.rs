//! Who gets in.

use std::time::Duration;

use relay::server::control::{HELLO_TIMEOUT, Input, MAX_NEWCOMERS, Member, SessionId};
use wire::control::{DeniedReason, ToNode, ToRelay, VERSION};

use crate::world::{Heard, World, denied, identity, key, presence};

fn hello(number: u8) -> ToRelay {
    ToRelay::Hello { version: VERSION, node: key(number) }
}

#[test]
fn a_key_that_is_nobodys_gets_in_under_no_name() {
    let mut world = World::of(3);
    for claimed in [1, 2, 9] {
        let session = world.open([0x55; 32]);
        world.say(session, hello(claimed));
        assert_eq!(denied(&world.hear(session)), Some(DeniedReason::NotAdmitted));
    }
    assert!(world.plane.is_empty(), "and the data plane hears nothing of it");
}

#[test]
fn a_member_cannot_come_in_under_another_members_name() {
    let mut world = World::of(2);
    let victim = world.come(1);
    let session = world.open(identity(2));
    world.say(session, hello(1));
    assert_eq!(denied(&world.hear(session)), Some(DeniedReason::NotAdmitted));
    assert!(world.hear(victim).is_empty(), "whose session goes on");
}

/// A node may write any identity key into its own status, also one that it has copied.
#[test]
fn a_copied_identity_key_harms_nobody() {
    let mut world = World::of(2);
    let thief = Member { node: key(2), identity: Some(identity(1)) };
    world.input(Input::Member { name: "node-2".into(), member: Some(thief) });
    let victim = world.come(1);
    let session = world.open(identity(2));
    for claimed in [1, 2] {
        let again = world.open(identity(2));
        world.say(again, hello(claimed));
        assert_eq!(denied(&world.hear(again)), Some(DeniedReason::NotAdmitted));
    }
    assert!(world.hear(victim).is_empty() && world.hear(session).is_empty());
}

#[test]
fn a_member_without_a_published_identity_waits() {
    let mut world = World::of(1);
    world.input(Input::Member { name: "node-1".into(), member: Some(Member { node: key(1), identity: None }) });
    let session = world.open(identity(1));
    world.say(session, hello(1));
    assert_eq!(denied(&world.hear(session)), Some(DeniedReason::NotAdmitted));
}

#[test]
fn another_version_is_told_so() {
    let mut world = World::of(1);
    let session = world.open(identity(1));
    world.say(session, ToRelay::Hello { version: VERSION + 1, node: key(1) });
    assert_eq!(denied(&world.hear(session)), Some(DeniedReason::Version));
}

#[test]
fn whatever_is_said_before_hello_ends_the_channel() {
    let said = [
        ToRelay::Meet(key(2)),
        ToRelay::Allocate { partner: key(2), hint: None },
        ToRelay::Release(key(2)),
        ToRelay::Signal { to: key(2), bytes: vec![1] },
        ToRelay::Ping,
    ];
    for message in said {
        let mut world = World::of(2);
        let session = world.open(identity(1));
        world.say(session, message);
        assert_eq!(denied(&world.hear(session)), Some(DeniedReason::Protocol));
        world.say(session, hello(1));
        assert!(world.hear(session).is_empty(), "and nothing counts that is said after");
        assert!(world.plane.is_empty());
    }
}

#[test]
fn hello_is_said_once() {
    let mut world = World::of(2);
    let session = world.come(1);
    world.say(session, hello(2));
    assert_eq!(denied(&world.hear(session)), Some(DeniedReason::Protocol));
}

#[test]
fn nonsense_ends_a_session_and_its_partners_hear_of_it() {
    let mut world = World::of(2);
    let [one, other] = world.meet(1, 2);
    world.input(Input::Nonsense(one));
    assert_eq!(denied(&world.hear(one)), Some(DeniedReason::Protocol));
    assert_eq!(presence(&world.hear(other)), [(key(1), false)]);
}

#[test]
fn who_says_nothing_is_closed() {
    let mut world = World::of(1);
    let session = world.open(identity(1));
    world.pass(HELLO_TIMEOUT - Duration::from_millis(1));
    assert!(world.hear(session).is_empty());
    world.pass(Duration::from_millis(1));
    assert!(matches!(world.hear(session)[..], [Heard::Closed]));
    assert_eq!(world.sessions.poll_timeout(), None);
}

#[test]
fn a_new_channel_replaces_the_one_before() {
    let mut world = World::of(2);
    let [before, partner] = world.meet(1, 2);
    let now = world.come(1);
    assert_eq!(denied(&world.hear(before)), Some(DeniedReason::Replaced));
    assert_eq!(presence(&world.hear(partner)), [(key(1), false)], "the new one has not said whom it wants to meet");
    world.say(now, ToRelay::Meet(key(2)));
    assert_eq!(presence(&world.hear(partner)), [(key(1), true)]);
    // What the shell notices of the old one later changes nothing.
    world.input(Input::Gone(before));
    assert!(world.hear(partner).is_empty());
    world.say(before, ToRelay::Part(key(2)));
    assert!(world.hear(partner).is_empty());
}

#[test]
fn newcomers_fill_no_more_than_their_places() {
    let mut world = World::of(1);
    let all: Vec<SessionId> = (0..MAX_NEWCOMERS).map(|_| world.open([0x55; 32])).collect();
    let late = world.open(identity(1));
    assert_eq!(denied(&world.hear(late)), Some(DeniedReason::Full));
    world.input(Input::Gone(all[0]));
    world.come(1);
}

#[test]
fn whoever_comes_while_the_relay_ends_is_told() {
    let mut world = World::of(2);
    let before = world.come(1);
    world.input(Input::Drain { seconds: 5 });
    assert!(matches!(world.hear(before)[..], [Heard::Said(ToNode::Drain { seconds: 5 })]));
    let session = world.open(identity(2));
    world.say(session, hello(2));
    let heard = world.hear(session);
    assert!(matches!(heard[..], [Heard::Said(ToNode::Welcome { .. }), Heard::Said(ToNode::Drain { seconds: 5 })]));
}
