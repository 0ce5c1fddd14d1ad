//! Whatever is said in whatever order: what must always hold.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use proptest::prelude::*;
use relay::server::control::{Input, SessionId};
use relay::server::plane;
use wire::PublicKey;
use wire::control::{ToNode, ToRelay, VERSION};

use crate::world::{Heard, World, home, identity, key, member};

const NODES: u8 = 3;

/// What a node knows from what it was told, and what is true.
#[derive(Default)]
struct Model {
    /// Open channels and whose identity each has proven.
    open: BTreeMap<SessionId, u8>,
    /// The session that each node was welcomed with.
    here: BTreeMap<u8, SessionId>,
    meets: BTreeSet<(u8, u8)>,
    members: BTreeSet<u8>,
    /// What each node was told last about another.
    told: BTreeMap<(u8, u8), bool>,
}

impl Model {
    fn met(&self, one: u8, other: u8) -> bool {
        let here = self.here.contains_key(&one) && self.here.contains_key(&other);
        here && self.meets.contains(&(one, other)) && self.meets.contains(&(other, one))
    }

    fn leave(&mut self, session: SessionId) {
        self.open.remove(&session);
        let gone: Vec<u8> = self.here.iter().filter(|(_, id)| **id == session).map(|(node, _)| *node).collect();
        for node in gone {
            self.here.remove(&node);
            self.meets.retain(|(one, _)| *one != node);
            self.told.retain(|(one, _), _| *one != node);
        }
    }

    fn hear(&mut self, world: &mut World, said_signal: Option<(u8, u8)>) {
        for (session, heard) in std::mem::take(&mut world.heard) {
            for heard in heard {
                assert!(self.open.contains_key(&session), "nothing is said to a channel that is closed");
                let node = self.here.iter().find(|(_, id)| **id == session).map(|(node, _)| *node);
                match heard {
                    Heard::Closed => self.leave(session),
                    Heard::Said(ToNode::Welcome { .. }) => {}
                    Heard::Said(ToNode::Denied(_)) => {}
                    Heard::Said(ToNode::Present { node: other, met }) => {
                        let node = node.expect("only members hear of others");
                        assert!(self.meets.contains(&(node, number(other))), "only of those they asked about");
                        self.told.insert((node, number(other)), met);
                    }
                    Heard::Said(ToNode::Signal { from, .. }) => {
                        assert_eq!(said_signal, node.map(|node| (number(from), node)));
                        assert!(self.met(number(from), node.unwrap()), "signals pass only between those who have met");
                    }
                    Heard::Said(other) => panic!("nobody asked for {other:?}"),
                }
            }
        }
        for ((one, other), told) in &self.told {
            assert_eq!(*told, self.met(*one, *other), "{one} knows whether it has met {other}");
        }
        for pair in &self.meets {
            assert!(!self.here.contains_key(&pair.0) || self.told.contains_key(pair), "every wish is answered");
        }
        assert_eq!(world.sessions.stats().sessions, self.here.len());
        assert!(self.here.keys().all(|node| self.members.contains(node)), "nobody is here who is no member");
    }
}

fn number(key: PublicKey) -> u8 {
    key.as_bytes()[0]
}

#[derive(Debug, Clone)]
enum Order {
    Open(u8),
    /// Open, and say a true Hello.
    Come(u8),
    Hello {
        session: usize,
        claimed: u8,
    },
    Meet {
        session: usize,
        partner: u8,
    },
    Part {
        session: usize,
        partner: u8,
    },
    Signal {
        session: usize,
        to: u8,
    },
    Gone(usize),
    Nonsense(usize),
    Member(u8, bool),
    List(u8),
    Pass(u16),
}

fn order() -> impl Strategy<Value = Order> {
    let (node, session) = (1..=NODES, 0..4usize);
    let both = (session.clone(), node.clone());
    prop_oneof![
        1 => node.clone().prop_map(Order::Open),
        6 => node.clone().prop_map(Order::Come),
        2 => both.clone().prop_map(|(session, claimed)| Order::Hello { session, claimed }),
        12 => both.clone().prop_map(|(session, partner)| Order::Meet { session, partner }),
        2 => both.clone().prop_map(|(session, partner)| Order::Part { session, partner }),
        4 => both.prop_map(|(session, to)| Order::Signal { session, to }),
        1 => session.clone().prop_map(Order::Gone),
        1 => session.prop_map(Order::Nonsense),
        1 => (node, any::<bool>()).prop_map(|(node, stays)| Order::Member(node, stays)),
        1 => any::<u8>().prop_map(Order::List),
        1 => any::<u16>().prop_map(Order::Pass),
    ]
}

fn hello(world: &mut World, model: &mut Model, session: SessionId, claimed: u8) {
    let is_true = model.open[&session] == claimed && model.members.contains(&claimed);
    let is_first = !model.here.values().any(|here| *here == session);
    let replaced = model.here.get(&claimed).copied().filter(|_| is_true && is_first);
    world.say_from(session, ToRelay::Hello { version: VERSION, node: key(claimed) }, home(claimed));
    if let Some(replaced) = replaced {
        let ended = world.heard.remove(&replaced).unwrap();
        assert!(matches!(ended[..], [Heard::Said(ToNode::Denied(_)), Heard::Closed]));
        model.leave(replaced);
    }
    if is_true && is_first {
        model.here.insert(claimed, session);
    }
}

fn follow(world: &mut World, model: &mut Model, order: Order) -> Option<(u8, u8)> {
    let pick = |model: &Model, at: usize| model.open.keys().nth(at % model.open.len().max(1)).copied();
    let node_of =
        |model: &Model, id: SessionId| model.here.iter().find(|(_, here)| **here == id).map(|(node, _)| *node);
    match order {
        Order::Open(node) => {
            let session = world.open(identity(node));
            model.open.insert(session, node);
        }
        Order::Hello { session, claimed } => hello(world, model, pick(model, session)?, claimed),
        Order::Come(node) => {
            let session = world.open(identity(node));
            model.open.insert(session, node);
            hello(world, model, session, node);
        }
        Order::Meet { session, partner } => {
            let session = pick(model, session)?;
            if let Some(node) = node_of(model, session).filter(|node| *node != partner) {
                model.meets.insert((node, partner));
            }
            world.say(session, ToRelay::Meet(key(partner)));
        }
        Order::Part { session, partner } => {
            let session = pick(model, session)?;
            if let Some(node) = node_of(model, session) {
                model.meets.remove(&(node, partner));
                model.told.remove(&(node, partner));
            }
            world.say(session, ToRelay::Part(key(partner)));
        }
        Order::Signal { session, to } => {
            let session = pick(model, session)?;
            let node = node_of(model, session);
            world.say(session, ToRelay::Signal { to: key(to), bytes: vec![1] });
            return node.map(|node| (node, to));
        }
        Order::Gone(session) => {
            let session = pick(model, session)?;
            model.leave(session);
            world.input(Input::Gone(session));
        }
        Order::Nonsense(session) => world.input(Input::Nonsense(pick(model, session)?)),
        Order::Member(node, stays) => {
            let _ = if stays { model.members.insert(node) } else { model.members.remove(&node) };
            world.input(Input::Member { name: format!("node-{node}"), member: stays.then(|| member(node)) });
        }
        Order::List(bits) => {
            model.members = (1..=NODES).filter(|node| bits >> node & 1 == 1).collect();
            let members = model.members.iter().map(|node| (format!("node-{node}"), member(*node)));
            world.input(Input::Members(members.collect()));
        }
        Order::Pass(millis) => world.pass(Duration::from_millis(u64::from(millis))),
    }
    None
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, ..ProptestConfig::default() })]

    #[test]
    fn everybody_knows_the_truth_about_those_it_asked_about_and_nothing_of_others(
        orders in proptest::collection::vec(order(), 1..60),
    ) {
        let mut world = World::of(NODES);
        let mut model = Model { members: (1..=NODES).collect(), ..Model::default() };
        let mut admitted: BTreeSet<_> = (1..=NODES).collect();
        for order in orders {
            let said_signal = follow(&mut world, &mut model, order);
            model.hear(&mut world, said_signal);
            for input in world.plane.drain(..) {
                match input {
                    plane::Input::Admit(node) => drop(admitted.insert(node.0[0])),
                    plane::Input::Remove(node) => drop(admitted.remove(&node.0[0])),
                    plane::Input::Members(all) => admitted = all.iter().map(|node| node.0[0]).collect(),
                    other => panic!("nobody asked for {other:?}"),
                }
            }
            prop_assert_eq!(&admitted, &model.members, "the data plane admits the members");
        }
    }
}
