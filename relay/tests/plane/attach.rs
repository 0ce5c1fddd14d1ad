//! Legs that are channels, and pairs of both sorts.

use std::time::Duration;

use proptest::prelude::*;
use relay::server::plane::limits::{CONTROL_BURST, REBIND_DEADLINE};
use relay::server::plane::{ChannelId, Config, End, Event, IDLE_DEADLINE, Input, News, Outcome, Rate};

use crate::support::{Leg, World, home, node, wireguard};

/// A pair of nodes 1 and 2 without a bound leg.
fn pair(world: &mut World) -> [Leg; 2] {
    let events = world.allocate(1, 2);
    [1, 2].map(|number| Leg::of(number, &events))
}

fn ready(events: &[Event]) -> Vec<u8> {
    events.iter().filter(|event| matches!(event.news, News::Ready)).map(|event| event.to.0[0]).collect()
}

/// Node 1 on channel 10, node 2 at home.
fn mixed() -> (World, [Leg; 2]) {
    let mut world = World::of(4, Config::default());
    let mut legs = pair(&mut world);
    assert!(ready(&world.attach(1, 2, 10)).is_empty(), "one leg is none");
    world.bind(&mut legs[1], home(2));
    assert_eq!(ready(&world.events()), [1, 2]);
    (world, legs)
}

/// Both on channels, 10 and 20.
fn both() -> (World, [Leg; 2]) {
    let mut world = World::of(4, Config::default());
    let legs = pair(&mut world);
    world.attach(1, 2, 10);
    assert_eq!(ready(&world.attach(2, 1, 20)), [1, 2]);
    (world, legs)
}

/// Whether data passes from a channel, and to where.
fn passes(world: &mut World, channel: u64, leg: &Leg) -> Option<End> {
    world.carry(channel, leg.allocation, &wireguard(4, 1432)).map(|onward| onward.to)
}

fn is_home(end: Option<End>, number: u8) -> bool {
    matches!(end, Some(End::Address(to)) if to.remote == home(number))
}

#[test]
fn a_channel_and_an_address_are_bridged_both_ways() {
    let (mut world, [leg, _]) = mixed();
    let onward = world.carry(10, leg.allocation, &wireguard(1, 148)).expect("it passes");
    assert!(is_home(Some(onward.to), 2));
    assert_eq!(onward.port, leg.port, "from the pair's port, where the partner's NAT expects it");
    let data = wireguard(4, 128);
    assert!(world.arrive_merged(leg.port, home(2), &data.repeat(3), 128).is_empty(), "nothing by UDP");
    let expected = (ChannelId(10), leg.allocation, data);
    assert_eq!(world.take_by_channel(), [expected.clone(), expected.clone(), expected]);
    let stats = world.plane.stats();
    assert_eq!((stats.bound_legs, stats.attached_legs), (2, 1));
    assert_eq!((world.count(Outcome::Forwarded), stats.forwarded_bytes), (4, 148 + 3 * 128));
}

#[test]
fn two_channels_are_bridged() {
    let (mut world, [one, other]) = both();
    assert_eq!(passes(&mut world, 10, &one), Some(End::Channel(ChannelId(20))));
    assert_eq!(passes(&mut world, 20, &other), Some(End::Channel(ChannelId(10))));
}

#[test]
fn the_leg_is_where_it_was_bound_last() {
    let (mut world, [mut leg, other]) = mixed();
    for _ in 0..3 {
        world.pass(Duration::from_secs(30));
        world.bind(&mut leg, home(1));
        assert_eq!(ready(&world.events()), [2], "the partner may have given up on where the leg was");
        assert!(world.carries(other.port, home(2), home(1)) && world.carries(other.port, home(1), home(2)));
        assert_eq!(passes(&mut world, 10, &leg), None, "the channel is no leg any more");
        assert_eq!(world.plane.stats().attached_legs, 0);

        assert_eq!(
            ready(&world.attach(1, 2, 10)),
            [1, 2],
            "who attaches hears that it may send, and the partner as before"
        );
        assert_eq!(ready(&world.attach(1, 2, 10)), [1], "nothing is new to the partner");
        assert!(is_home(passes(&mut world, 10, &leg), 2));
        assert!(!world.carries(other.port, home(1), home(2)), "the address is no leg any more");
        world.arrive(other.port, home(2), &wireguard(4, 32));
        assert_eq!(world.take_by_channel().len(), 1);
    }
    assert_eq!(world.count(Outcome::NotAttached), 3);
}

#[test]
fn an_answer_from_before_does_not_take_the_leg_back() {
    let (mut world, [mut leg, _]) = mixed();
    world.pass(Duration::from_secs(1));
    let token = world.challenge(&mut leg, home(1));
    world.attach(1, 2, 10);
    assert!(world.arrive(leg.port, home(1), &leg.answer(token)).is_empty());
    assert_eq!(world.count(Outcome::Replayed), 1);
    assert!(is_home(passes(&mut world, 10, &leg), 2));
    world.bind(&mut leg, home(1));
}

#[test]
fn a_new_channel_takes_the_leg_over_from_the_one_before() {
    let (mut world, [leg, _]) = mixed();
    assert_eq!(ready(&world.attach(1, 2, 11)), [1, 2]);
    assert_eq!(passes(&mut world, 10, &leg), None);
    assert!(is_home(passes(&mut world, 11, &leg), 2));
    world.input(Input::Detach { by: node(1), channel: ChannelId(10) });
    assert!(is_home(passes(&mut world, 11, &leg), 2), "what ends late takes nothing with it");
}

#[test]
fn a_channel_that_ends_takes_its_legs_and_the_pair_waits_for_another() {
    let (mut world, [leg, other]) = mixed();
    world.input(Input::Detach { by: node(1), channel: ChannelId(10) });
    assert!(world.events().is_empty(), "who could be told is gone");
    assert_eq!(passes(&mut world, 10, &leg), None);
    world.arrive(other.port, home(2), &wireguard(4, 32));
    assert!(world.take_by_channel().is_empty());
    assert_eq!(world.count(Outcome::HalfBound), 1);
    world.pass(REBIND_DEADLINE - Duration::from_secs(1));
    assert_eq!(ready(&world.attach(1, 2, 11)), [1, 2], "the partner hears that it may send again");
    world.input(Input::Detach { by: node(1), channel: ChannelId(11) });
    world.pass(REBIND_DEADLINE);
    assert_eq!(world.plane.stats().allocations, 0);
}

#[test]
fn a_pair_that_was_never_ready_gains_no_time_by_coming_and_going() {
    let mut world = World::of(2, Config::default());
    pair(&mut world);
    for channel in 0..40 {
        world.attach(1, 2, channel);
        world.input(Input::Detach { by: node(1), channel: ChannelId(channel) });
        world.pass(Duration::from_secs(1));
    }
    assert_eq!(world.plane.stats().allocations, 0);
}

#[test]
fn who_held_the_channels_starts_anew_and_only_their_legs_go() {
    let (mut world, [leg, _]) = mixed();
    let [kept, _] = world.connect(3, 4);
    world.input(Input::DetachAll);
    assert_eq!(passes(&mut world, 10, &leg), None);
    assert!(world.carries(kept.port, home(3), home(4)));
    let stats = world.plane.stats();
    assert_eq!((stats.bound_legs, stats.attached_legs), (3, 0));
}

#[test]
fn a_released_pair_and_a_removed_node_have_no_channel_left() {
    for input in [Input::Release { by: node(2), partner: node(1) }, Input::Remove(node(1))] {
        let (mut world, legs) = both();
        world.input(input);
        assert_eq!([passes(&mut world, 10, &legs[0]), passes(&mut world, 20, &legs[1])], [None, None]);
        let stats = world.plane.stats();
        assert_eq!((stats.allocations, stats.bound_legs, stats.attached_legs), (0, 0, 0));
        assert_eq!(world.count(Outcome::UnknownAllocation), 2);
    }
}

#[test]
fn nobody_sends_on_a_leg_that_is_not_its_own_channel() {
    let (mut world, [leg, _]) = mixed();
    let events = world.allocate(3, 4);
    let foreign = Leg::of(3, &events);
    world.attach(3, 4, 30);
    assert_eq!(passes(&mut world, 30, &leg), None, "a member's channel, and another pair");
    assert_eq!(passes(&mut world, 10, &foreign), None);
    assert_eq!(passes(&mut world, 20, &leg), None, "a channel that is no leg");
    assert_eq!(world.count(Outcome::NotAttached), 3);
    assert_eq!(passes(&mut world, 30, &foreign), None, "its own, and the partner has none");
    assert_eq!(world.count(Outcome::HalfBound), 1);
}

#[test]
fn nobody_attaches_to_a_pair_that_is_not_there_or_not_its_own() {
    let (mut world, [leg, _]) = mixed();
    for (by, partner) in [(3, 1), (3, 2), (1, 3), (1, 1), (9, 1), (1, 9)] {
        assert!(world.attach(by, partner, 30).is_empty());
    }
    assert_eq!(world.count(Outcome::UnknownAllocation), 6);
    assert!(is_home(passes(&mut world, 10, &leg), 2));
}

#[test]
fn only_wireguard_messages_pass() {
    let (mut world, [leg, _]) = mixed();
    for packet in [&b""[..], b"hello", &wireguard(5, 148), &wireguard(1, 147), &wireguard(4, 31), &wireguard(4, 9001)] {
        assert_eq!(world.carry(10, leg.allocation, packet), None);
    }
    assert_eq!(world.count(Outcome::Unfit), 6);
    let mut bind = leg.clone();
    assert_eq!(world.carry(10, leg.allocation, &bind.bind()), None, "a relay message has no address here");
}

#[test]
fn a_leg_attaches_as_often_as_it_binds() {
    let (mut world, _) = mixed();
    for _ in 0..100 {
        world.attach(1, 2, 10);
    }
    assert_eq!(world.count(Outcome::Attached), u64::from(CONTROL_BURST));
}

#[test]
fn an_open_channel_is_a_sign_of_life_and_a_silent_address_is_not() {
    let (mut world, _) = both();
    for _ in 0..10 {
        world.pass(IDLE_DEADLINE);
    }
    assert_eq!(world.plane.stats().allocations, 1, "nobody said anything, and both are there");
    let (mut world, [leg, _]) = mixed();
    world.pass(IDLE_DEADLINE / 2);
    passes(&mut world, 10, &leg);
    world.pass(IDLE_DEADLINE / 2);
    let told = world.events();
    assert!(told.iter().all(|event| matches!(event.news, News::Released(_))) && told.len() == 2, "{told:?}");
}

#[test]
fn what_a_channel_sends_counts_against_the_rates_of_node_and_pair() {
    let rate = Rate::bytes_per_second(1_000_000);
    for config in [Config { node_rate: rate, ..Config::default() }, Config { pair_rate: rate, ..Config::default() }] {
        let mut world = World::of(2, config);
        let [leg, _] = pair(&mut world);
        world.attach(1, 2, 10);
        world.attach(2, 1, 20);
        let passed = (0..1000).filter(|_| passes(&mut world, 10, &leg).is_some()).count();
        assert!((80..=100).contains(&passed), "a burst of 128 KiB: {passed}");
        assert_eq!(world.count(Outcome::OverRate), 1000 - passed as u64);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(128) })]

    /// In whatever order legs are bound, attached and lost: a packet goes where the other leg was bound last, or nowhere.
    #[test]
    fn packets_follow_the_last_of_bind_and_attach(orders in prop::collection::vec((0u8..2, 0u8..3), 1..40)) {
        let mut world = World::of(2, Config::default());
        let mut legs = pair(&mut world);
        let mut at: [Option<End>; 2] = [None, None];
        for (who, order) in orders {
            let (side, by, partner) = (usize::from(who), who + 1, 2 - who);
            world.pass(Duration::from_secs(1));
            match order {
                0 => {
                    world.bind(&mut legs[side], home(by));
                    let to = relay::server::plane::Destination { remote: home(by), local: None };
                    at[side] = Some(End::Address(to));
                }
                1 => {
                    world.attach(by, partner, by.into());
                    at[side] = Some(End::Channel(ChannelId(by.into())));
                }
                _ => {
                    world.input(Input::Detach { by: node(by), channel: ChannelId(by.into()) });
                    at[side] = at[side].filter(|end| matches!(end, End::Address(_)));
                }
            }
            world.events();
            for from in 0..2usize {
                let (number, to) = (from as u8 + 1, at[1 - from]);
                let by_channel = passes(&mut world, number.into(), &legs[from]);
                let expected = to.filter(|_| matches!(at[from], Some(End::Channel(_))));
                prop_assert_eq!(by_channel, expected);
                world.take_by_channel();
                let by_udp = world.arrive(legs[from].port, home(number), &wireguard(4, 32)).len();
                let out = by_udp + world.take_by_channel().len();
                let expected = to.is_some() && matches!(at[from], Some(End::Address(_)));
                prop_assert_eq!(out, usize::from(expected));
            }
            let stats = world.plane.stats();
            prop_assert_eq!(stats.bound_legs, at.iter().flatten().count());
        }
    }
}
