//! What the API says, and what becomes of who is gone.

use std::collections::{BTreeMap, BTreeSet};

use relay::server::control::{Input, Member};
use relay::server::plane;
use wire::control::{DeniedReason, ToRelay, VERSION};

use crate::world::{World, denied, identity, key, member, node_id, presence};

fn set(world: &mut World, name: &str, member: Option<Member>) {
    world.input(Input::Member { name: name.into(), member });
}

#[test]
fn a_removed_node_loses_its_session_and_its_legs_at_once() {
    let mut world = World::of(2);
    let [one, other] = world.meet(1, 2);
    set(&mut world, "node-1", None);
    assert_eq!(world.plane, [plane::Input::Remove(node_id(1))]);
    assert_eq!(denied(&world.hear(one)), Some(DeniedReason::NotAdmitted));
    assert_eq!(presence(&world.hear(other)), [(key(1), false)]);
    let again = world.open(identity(1));
    world.say(again, ToRelay::Hello { version: VERSION, node: key(1) });
    assert_eq!(denied(&world.hear(again)), Some(DeniedReason::NotAdmitted));
}

#[test]
fn a_list_without_a_node_removes_it_and_leaves_others_alone() {
    let mut world = World::of(2);
    let [one, other] = world.meet(1, 2);
    world.input(Input::Members(BTreeMap::from([("node-2".into(), member(2))])));
    assert_eq!(world.plane, [plane::Input::Members(BTreeSet::from([node_id(2)]))]);
    assert_eq!(denied(&world.hear(one)), Some(DeniedReason::NotAdmitted));
    assert_eq!(denied(&world.hear(other)), None);
}

#[test]
fn a_new_key_is_a_new_node() {
    let mut world = World::of(1);
    let one = world.come(1);
    set(&mut world, "node-1", Some(Member { node: key(5), identity: Some(identity(1)) }));
    assert_eq!(world.plane, [plane::Input::Remove(node_id(1)), plane::Input::Admit(node_id(5))]);
    assert_eq!(denied(&world.hear(one)), Some(DeniedReason::NotAdmitted));
}

#[test]
fn a_new_identity_ends_the_session_and_not_the_legs() {
    let mut world = World::of(1);
    let one = world.come(1);
    set(&mut world, "node-1", Some(Member { node: key(1), identity: Some(identity(7)) }));
    assert!(world.plane.is_empty());
    assert_eq!(denied(&world.hear(one)), Some(DeniedReason::NotAdmitted));
}

#[test]
fn what_says_the_same_changes_nothing() {
    let mut world = World::of(1);
    let one = world.come(1);
    set(&mut world, "node-1", Some(member(1)));
    assert!(world.plane.is_empty() && world.hear(one).is_empty());
}

#[test]
fn a_key_that_two_objects_have_goes_with_the_last() {
    let mut world = World::of(1);
    set(&mut world, "twin", Some(member(1)));
    let one = world.come(1);
    set(&mut world, "node-1", None);
    assert!(world.plane.is_empty() && world.hear(one).is_empty());
    set(&mut world, "twin", None);
    assert_eq!(world.plane, [plane::Input::Remove(node_id(1))]);
    assert_eq!(denied(&world.hear(one)), Some(DeniedReason::NotAdmitted));
}

#[test]
fn without_a_list_nobody_is_a_member() {
    let mut world = World::empty();
    let session = world.open(identity(1));
    world.say(session, ToRelay::Hello { version: VERSION, node: key(1) });
    assert_eq!(denied(&world.hear(session)), Some(DeniedReason::NotAdmitted));
}
