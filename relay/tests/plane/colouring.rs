//! Ports as edge colours.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::time::Duration;

use proptest::prelude::*;
use relay::server::plane::{Config, Event, Input, MAX_PORTS, News, NodeId};

use crate::support::{Leg, World, node};

/// Pairs of some of 24 nodes, each once.
fn any_graph() -> impl Strategy<Value = Vec<(u8, u8)>> {
    let edge = (1u8..25, 1u8..25).prop_filter("two nodes", |(one, other)| one != other);
    prop::collection::vec(edge, 1..200).prop_map(|edges| {
        let mut seen = BTreeSet::new();
        edges.into_iter().filter(|&(one, other)| seen.insert((one.min(other), one.max(other)))).collect()
    })
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(256) })]

    /// No colouring has fewer ports than the largest degree; ours has less than twice as many, whatever the order.
    #[test]
    fn less_than_twice_the_fewest_ports_are_used(edges in any_graph()) {
        let mut world = World::of(24, Config { ports: MAX_PORTS, ..Config::default() });
        let mut degree = BTreeMap::new();
        let mut used = BTreeSet::new();
        let mut at_node = BTreeSet::new();
        for (one, other) in edges {
            // Both pay with one request a pair; a burst is enough for all of them.
            let port = Leg::of(one, &world.allocate(one, other)).port;
            world.pass(Duration::from_millis(100));
            for end in [one, other] {
                *degree.entry(end).or_insert(0usize) += 1;
                prop_assert!(at_node.insert((end, port)), "node {end} has two pairs on port {port}");
            }
            used.insert(port);
        }
        let largest = degree.values().max().unwrap();
        prop_assert!(used.len() < 2 * largest, "{} ports for degree {largest}", used.len());
        prop_assert!(usize::from(*used.last().unwrap()) < 2 * largest - 1 + usize::from(*largest == 1));
    }
}

#[derive(Debug, Clone)]
enum Step {
    Allocate(u8, u8),
    Release(u8, u8),
    Remove(u8),
    Admit(u8),
    /// The node binds the leg of one of its pairs from one of few addresses, so that they collide.
    Bind(u8, prop::sample::Index, u8),
    Wait(u64),
}

fn any_step() -> impl Strategy<Value = Step> {
    let number = || 1u8..9;
    prop_oneof![
        4 => (number(), number()).prop_map(|(by, partner)| Step::Allocate(by, partner)),
        1 => (number(), number()).prop_map(|(by, partner)| Step::Release(by, partner)),
        1 => number().prop_map(Step::Remove),
        2 => number().prop_map(Step::Admit),
        8 => (number(), any::<prop::sample::Index>(), 0u8..6).prop_map(|(by, which, from)| Step::Bind(by, which, from)),
        1 => (0u64..60).prop_map(Step::Wait),
    ]
}

/// What the control channel has heard: the legs there are and where they are bound.
#[derive(Default)]
struct Heard {
    legs: BTreeMap<(NodeId, NodeId), Leg>,
}

impl Heard {
    fn hear(&mut self, event: &Event) {
        let key = (event.to, event.partner);
        match &event.news {
            News::Allocated { .. } => {
                let mut leg = Leg::from_event(event.to, event).unwrap();
                if let Some(known) = self.legs.get(&key).filter(|known| known.allocation == leg.allocation) {
                    leg.observed = known.observed;
                }
                self.legs.insert(key, leg);
            }
            News::Bound { observed } => self.legs.get_mut(&key).unwrap().observed = Some(*observed),
            News::Unbound => self.legs.get_mut(&key).unwrap().observed = None,
            News::Released(_) => {
                self.legs.remove(&key);
            }
            News::Refused(_) | News::Ready => {}
        }
    }

    fn check(&self) -> Result<(), TestCaseError> {
        let (mut ports, mut sources) = (BTreeSet::new(), BTreeSet::new());
        for ((owner, partner), leg) in &self.legs {
            prop_assert!(ports.insert((*owner, leg.port)), "{owner:?} has two pairs on port {}", leg.port);
            let other = self.legs.get(&(*partner, *owner)).unwrap();
            prop_assert!((leg.allocation, leg.port) == (other.allocation, other.port) && leg.side != other.side);
            if let Some(source) = leg.observed {
                prop_assert!(sources.insert((leg.port, source)), "two legs have {source} on port {}", leg.port);
            }
        }
        Ok(())
    }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(256) })]

    #[test]
    fn no_two_legs_ever_share_port_and_source(steps in prop::collection::vec(any_step(), 1..200)) {
        let mut world = World::of(8, Config { ports: 5, ..Config::default() });
        let mut heard = Heard::default();
        for step in steps {
            match step {
                Step::Allocate(by, partner) => {
                    world.input(Input::Allocate { by: node(by), partner: node(partner), hint: None });
                }
                Step::Release(by, partner) => world.input(Input::Release { by: node(by), partner: node(partner) }),
                Step::Remove(number) => world.input(Input::Remove(node(number))),
                Step::Admit(number) => world.input(Input::Admit(node(number))),
                Step::Bind(by, which, from) => {
                    let mut legs: Vec<_> = heard.legs.iter_mut().filter(|((owner, _), _)| *owner == node(by)).collect();
                    if !legs.is_empty() {
                        let at = which.index(legs.len());
                        let leg = &mut *legs[at].1;
                        let source = SocketAddr::from(([192, 0, 2, 1], u16::from(from) + 1000));
                        let challenge = world.arrive(leg.port, source, &leg.bind());
                        let answer = challenge.first().map(|_| leg.answer(leg.token(&challenge)));
                        let _ = answer.map(|answer| world.arrive(leg.port, source, &answer));
                    }
                }
                Step::Wait(seconds) => world.pass(Duration::from_secs(seconds)),
            }
            for event in world.events() {
                heard.hear(&event);
            }
            heard.check()?;
            let stats = world.plane.stats();
            let bound = heard.legs.values().filter(|leg| leg.observed.is_some()).count();
            prop_assert_eq!((stats.allocations, stats.bound_legs), (heard.legs.len() / 2, bound));
        }
    }
}
