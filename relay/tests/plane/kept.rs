//! An initiation waits for the partner's leg, and nothing else does.

use relay::server::plane::{BIND_DEADLINE, ChannelId, Config, End, Input, Kept, Outcome, Rate};
use wire::relay::INITIATION_LEN;

use crate::support::{Leg, World, home, node, wireguard};

/// A pair of which node 1 has bound its leg and node 2 has not.
fn half() -> (World, [Leg; 2]) {
    let mut world = World::of(2, Config::default());
    let events = world.allocate(1, 2);
    let mut legs = [1, 2].map(|number| Leg::of(number, &events));
    world.bind(&mut legs[0], home(1));
    (world, legs)
}

/// One that can be told from others.
fn initiation(number: u8) -> Vec<u8> {
    let mut message = wireguard(1, INITIATION_LEN);
    message[INITIATION_LEN - 1] = number;
    message
}

fn kept(world: &mut World) -> Vec<Kept> {
    std::iter::from_fn(|| world.plane.poll_kept()).collect()
}

/// Where to, and which.
fn told(kept: &[Kept]) -> Vec<(u8, u8)> {
    let home_of = |end| (1..=4).find(|number| matches!(end, End::Address(to) if to.remote == home(*number)));
    kept.iter().map(|kept| (home_of(kept.to).expect("a node's home"), kept.message[INITIATION_LEN - 1])).collect()
}

#[test]
fn the_last_initiation_is_sent_on_when_the_partner_has_bound_its_leg() {
    let (mut world, [one, mut two]) = half();
    for number in [7, 8] {
        assert!(world.arrive(one.port, home(1), &initiation(number)).is_empty());
    }
    assert_eq!(kept(&mut world), [], "the partner has not consented");
    world.bind(&mut two, home(2));
    let kept = kept(&mut world);
    assert_eq!(told(&kept), [(2, 8)]);
    assert_eq!((kept[0].port, kept[0].allocation), (one.port, one.allocation));
    assert_eq!([Outcome::Kept, Outcome::HalfBound, Outcome::Forwarded].map(|outcome| world.count(outcome)), [2, 0, 1]);
    assert_eq!(world.plane.stats().forwarded_bytes, INITIATION_LEN as u64);
}

#[test]
fn it_is_sent_on_once() {
    let (mut world, [one, mut two]) = half();
    world.arrive(one.port, home(1), &initiation(1));
    world.bind(&mut two, home(2));
    assert_eq!(kept(&mut world).len(), 1);
    world.bind(&mut two, home(3));
    assert_eq!(kept(&mut world), []);
}

#[test]
fn a_merged_batch_is_looked_at_one_by_one() {
    let (mut world, [one, mut two]) = half();
    let data = [initiation(1), wireguard(4, INITIATION_LEN), initiation(2), wireguard(4, 64)].concat();
    assert!(world.arrive_merged(one.port, home(1), &data, INITIATION_LEN).is_empty());
    assert_eq!((world.count(Outcome::Kept), world.count(Outcome::HalfBound)), (2, 2));
    world.bind(&mut two, home(2));
    assert_eq!(told(&kept(&mut world)), [(2, 2)]);
}

#[test]
fn nothing_else_is_kept_and_nothing_of_a_source_that_is_no_leg() {
    let (mut world, [one, mut two]) = half();
    for (kind, length) in [(2, 92), (3, 64), (4, INITIATION_LEN)] {
        world.arrive(one.port, home(1), &wireguard(kind, length));
    }
    world.arrive(one.port, home(3), &initiation(1));
    assert_eq!((world.count(Outcome::HalfBound), world.count(Outcome::UnknownSource)), (3, 1));
    world.bind(&mut two, home(2));
    assert_eq!(kept(&mut world), []);
}

#[test]
fn it_goes_with_the_pair() {
    for ends in [true, false] {
        let (mut world, [one, _]) = half();
        world.arrive(one.port, home(1), &initiation(1));
        if ends {
            world.input(Input::Release { by: node(2), partner: node(1) });
        } else {
            world.pass(BIND_DEADLINE);
        }
        world.connect(1, 2);
        assert_eq!(kept(&mut world), []);
    }
}

#[test]
fn a_node_that_has_used_up_its_rate_has_none_left_for_it() {
    let mut world = World::of(3, Config { node_rate: Rate::bytes_per_second(1), ..Config::default() });
    let [to_three, _] = world.connect(1, 3);
    for length in [1400, 100] {
        world.arrive_merged(to_three.port, home(1), &wireguard(4, length).repeat(100), length);
    }
    let over = world.count(Outcome::OverRate);
    assert!(over > 0, "or the rate is not used up");
    let events = world.allocate(1, 2);
    let [mut one, mut two] = [1, 2].map(|number| Leg::of(number, &events));
    world.bind(&mut one, home(1));
    world.arrive(one.port, home(1), &initiation(1));
    world.bind(&mut two, home(2));
    assert_eq!(kept(&mut world), []);
    assert_eq!((world.count(Outcome::Kept), world.count(Outcome::OverRate)), (1, over + 1));
}

#[test]
fn it_finds_a_partner_that_attaches_its_channel_and_comes_by_one() {
    let (mut world, [one, _]) = half();
    world.arrive(one.port, home(1), &initiation(1));
    world.attach(2, 1, 20);
    let to_channel = kept(&mut world);
    assert_eq!(to_channel.iter().map(|kept| kept.to).collect::<Vec<_>>(), [End::Channel(ChannelId(20))]);

    let mut world = World::of(2, Config::default());
    let mut two = Leg::of(2, &world.allocate(1, 2));
    world.attach(1, 2, 10);
    assert_eq!(world.carry(10, two.allocation, &initiation(3)), None);
    world.bind(&mut two, home(2));
    assert_eq!(told(&kept(&mut world)), [(2, 3)]);
}
