//! Who hears of whom, and from whom.

use std::time::Duration;

use relay::server::control::limits::{SIGNAL_BURST, SIGNAL_PERIOD};
use relay::server::control::{Input, Refusal};
use wire::control::{MAX_SIGNAL_LEN, ToNode, ToRelay};

use crate::world::{Heard, World, key, presence};

fn signal(to: u8) -> ToRelay {
    ToRelay::Signal { to: key(to), bytes: vec![9; 100] }
}

fn signals(heard: &[Heard]) -> usize {
    heard.iter().filter(|heard| matches!(heard, Heard::Said(ToNode::Signal { .. }))).count()
}

#[test]
fn two_nodes_meet_when_both_have_asked_and_not_before() {
    let mut world = World::of(2);
    let [one, other] = [world.come(1), world.come(2)];
    world.say(one, ToRelay::Meet(key(2)));
    assert_eq!(presence(&world.hear(one)), [(key(2), false)]);
    assert!(world.hear(other).is_empty(), "it has not asked");
    world.say(other, ToRelay::Meet(key(1)));
    assert_eq!(presence(&world.hear(one)), [(key(2), true)]);
    assert_eq!(presence(&world.hear(other)), [(key(1), true)]);
    world.say(one, ToRelay::Meet(key(2)));
    assert_eq!(presence(&world.hear(one)), [(key(2), true)], "asked again, answered again");
    assert!(world.hear(other).is_empty());
}

#[test]
fn a_wish_waits_for_who_is_not_here_yet() {
    let mut world = World::of(2);
    let one = world.come(1);
    world.say(one, ToRelay::Meet(key(2)));
    assert_eq!(presence(&world.hear(one)), [(key(2), false)]);
    let other = world.come(2);
    assert!(world.hear(one).is_empty(), "being here is not wanting to meet");
    world.say(other, ToRelay::Meet(key(1)));
    assert_eq!(presence(&world.hear(one)), [(key(2), true)]);
}

#[test]
fn parting_and_leaving_are_told_to_who_stays() {
    for leaves in [false, true] {
        let mut world = World::of(3);
        let [one, other] = world.meet(1, 2);
        let third = world.come(3);
        world.say(third, ToRelay::Meet(key(1)));
        world.hear(third);
        if leaves {
            world.input(Input::Gone(one));
        } else {
            world.say(one, ToRelay::Part(key(2)));
        }
        assert_eq!(presence(&world.hear(other)), [(key(1), false)]);
        world.say(other, signal(1));
        assert_eq!((world.hear(one).len(), world.sessions.stats().refusals(Refusal::NotMet)), (0, 1));
    }
}

#[test]
fn parting_twice_or_from_a_stranger_says_nothing() {
    let mut world = World::of(3);
    let [one, other] = world.meet(1, 2);
    world.say(one, ToRelay::Part(key(3)));
    world.say(one, ToRelay::Part(key(2)));
    world.hear(other);
    world.say(one, ToRelay::Part(key(2)));
    assert!(world.hear(other).is_empty() && world.hear(one).is_empty());
}

#[test]
fn signals_pass_between_those_who_have_met_and_nobody_else() {
    let mut world = World::of(4);
    let [one, other] = world.meet(1, 2);
    let [third, fourth] = [world.come(3), world.come(4)];
    world.say(one, signal(2));
    let heard = world.hear(other);
    let is_from_one =
        matches!(&heard[..], [Heard::Said(ToNode::Signal { from, bytes })] if *from == key(1) && bytes.len() == 100);
    assert!(is_from_one, "{heard:?}");
    // One-sided wishes, strangers, nobodies, and the node itself.
    world.say(third, ToRelay::Meet(key(1)));
    world.say(fourth, ToRelay::Meet(key(4)));
    world.hear(third);
    for (from, to) in [(third, 1), (one, 3), (third, 4), (one, 9), (fourth, 4)] {
        world.say(from, signal(to));
    }
    for session in [one, other, third, fourth] {
        assert_eq!(signals(&world.hear(session)), 0);
    }
    assert_eq!(world.sessions.stats().refusals(Refusal::NotMet), 5);
}

#[test]
fn one_node_sends_signals_at_its_own_rate_and_at_nobody_elses() {
    let mut world = World::of(3);
    let [one, other] = world.meet(1, 2);
    let third = world.come(3);
    world.say(third, ToRelay::Meet(key(2)));
    world.say(other, ToRelay::Meet(key(3)));
    world.hear(other);
    for _ in 0..SIGNAL_BURST * 2 {
        world.say(one, signal(2));
    }
    assert_eq!(signals(&world.hear(other)), SIGNAL_BURST as usize);
    world.say(third, signal(2));
    assert_eq!(signals(&world.hear(other)), 1, "another node's budget is its own");
    world.pass(SIGNAL_PERIOD * 3 + Duration::from_millis(1));
    for _ in 0..10 {
        world.say(one, signal(2));
    }
    assert_eq!(signals(&world.hear(other)), 3);
}

#[test]
fn a_signal_that_is_too_long_goes_nowhere() {
    let mut world = World::of(2);
    let [one, other] = world.meet(1, 2);
    world.say(one, ToRelay::Signal { to: key(2), bytes: vec![0; MAX_SIGNAL_LEN + 1] });
    assert!(world.hear(other).is_empty());
}

#[test]
fn nobody_meets_itself() {
    let mut world = World::of(1);
    let one = world.come(1);
    world.say(one, ToRelay::Meet(key(1)));
    assert!(world.hear(one).is_empty());
    assert_eq!(world.sessions.stats().refusals(Refusal::Meet), 1);
}
