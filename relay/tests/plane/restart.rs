//! A relay that is killed and started again: agents ask again, bind again, and the pair talks on, whatever was lost on the way.

use std::collections::BTreeSet;
use std::time::Duration;

use proptest::prelude::*;
use relay::server::plane::{Config, Event, Input, News, Plane};

use crate::support::{Leg, World, home, node};

/// An agent asks, or binds, again after so long without success.
const RETRY: Duration = Duration::from_millis(200);

/// One millisecond of virtual time.
const TICK: Duration = Duration::from_millis(1);

enum Message {
    Request(u8),
    Event(u8, Event),
    ToRelay(u8, [u8; 80]),
    ToAgent(u8, Vec<u8>),
}

struct Agent {
    number: u8,
    partner: u8,
    leg: Option<Leg>,
    hint: Option<u16>,
    retry_in: Duration,
}

/// What the network does to a message: its delay in milliseconds, twice if it is doubled, not at all if it is lost.
type Fate<'a> = dyn FnMut() -> Vec<u64> + 'a;

struct Run<'a> {
    world: World,
    agents: [Agent; 2],
    flying: Vec<(u64, Message)>,
    fate: Box<Fate<'a>>,
}

impl<'a> Run<'a> {
    /// A pair that talked over port 5 until the relay was replaced by a process that knows nothing but the members.
    fn after_restart(fate: impl FnMut() -> Vec<u64> + 'a) -> Self {
        let mut world = World::of(2, Config::default());
        world.plane = Plane::new(Config::default(), [99; 32], world.now);
        (1..=2).for_each(|number| world.input(Input::Admit(node(number))));
        let agent = |number, partner| Agent {
            number,
            partner,
            leg: None,
            hint: Some(Config::default().first_port + 5),
            // The second notices a little later.
            retry_in: TICK * (1 + 20 * u32::from(number)),
        };
        Self { world, agents: [agent(1, 2), agent(2, 1)], flying: Vec::new(), fate: Box::new(fate) }
    }

    fn send(&mut self, mut message: impl FnMut() -> Message) {
        for delay in (self.fate)() {
            self.flying.push((delay, message()));
        }
    }

    /// Until both are bound and neither doubts it, for so many milliseconds at most.
    fn converges_within(&mut self, milliseconds: u64) -> bool {
        (0..milliseconds).any(|_| {
            self.tick();
            let is_bound = |agent: &Agent| agent.leg.as_ref().is_some_and(|leg| leg.observed.is_some());
            self.agents.iter().all(is_bound) && self.world.plane.stats().bound_legs == 2
        })
    }

    fn tick(&mut self) {
        self.world.pass(TICK);
        for index in 0..2 {
            let agent = &mut self.agents[index];
            agent.retry_in = agent.retry_in.saturating_sub(TICK);
            if !agent.retry_in.is_zero() {
                continue;
            }
            agent.retry_in = RETRY;
            let number = agent.number;
            match &mut agent.leg {
                None => self.send(|| Message::Request(number)),
                Some(leg) if leg.observed.is_none() => {
                    let bind = leg.bind();
                    self.send(|| Message::ToRelay(number, bind));
                }
                Some(_) => {}
            }
        }
        let (due, later) = std::mem::take(&mut self.flying).into_iter().partition(|&(delay, _)| delay == 0);
        self.flying = later;
        self.flying.iter_mut().for_each(|(delay, _)| *delay -= 1);
        let due: Vec<_> = due;
        due.into_iter().for_each(|(_, message)| self.deliver(message));
    }

    fn deliver(&mut self, message: Message) {
        match message {
            Message::Request(number) => {
                let agent = &self.agents[usize::from(number) - 1];
                let (by, partner) = (node(number), node(agent.partner));
                self.world.input(Input::Allocate { by, partner, hint: agent.hint });
            }
            Message::Event(number, event) => {
                let agent = &mut self.agents[usize::from(number) - 1];
                match &event.news {
                    News::Allocated { allocation, .. } => {
                        if agent.leg.as_ref().is_none_or(|leg| leg.allocation != *allocation) {
                            agent.leg = Leg::from_event(node(number), &event);
                            agent.retry_in = TICK;
                        }
                    }
                    News::Released(_) => agent.leg = None,
                    News::Unbound => agent.leg.iter_mut().for_each(|leg| leg.observed = None),
                    News::Refused(_) | News::Bound { .. } | News::Ready => {}
                }
            }
            Message::ToRelay(number, datagram) => {
                let port = self.agents[usize::from(number) - 1].leg.as_ref().map_or(0, |leg| leg.port);
                for packet in self.world.arrive(port, home(number), &datagram) {
                    self.send(|| Message::ToAgent(number, packet.payload.clone()));
                }
            }
            Message::ToAgent(number, datagram) => {
                let leg = self.agents[usize::from(number) - 1].leg.as_mut();
                if let Some(answer) = leg.and_then(|leg| leg.hear(&datagram)) {
                    self.send(|| Message::ToRelay(number, answer));
                }
            }
        }
        for event in self.world.events() {
            let number = event.to.0[0];
            self.send(|| Message::Event(number, event.clone()));
        }
    }

    fn talks(&mut self) -> bool {
        let port = self.agents[0].leg.as_ref().unwrap().port;
        self.world.carries(port, home(1), home(2)) && self.world.carries(port, home(2), home(1))
    }
}

/// Every way to lose some of the first twelve messages, of which a pair without losses needs fourteen.
#[test]
fn whichever_messages_are_lost_the_pair_talks_again() {
    for lost in 0u32..1 << 12 {
        let mut sent = 0;
        let mut run = Run::after_restart(move || {
            sent += 1;
            if sent <= 12 && lost & 1 << (sent - 1) != 0 { vec![] } else { vec![5] }
        });
        assert!(run.converges_within(10_000), "lost: {lost:012b}");
        assert!(run.talks(), "lost: {lost:012b}");
        let ports: BTreeSet<u16> = run.agents.iter().map(|agent| agent.leg.as_ref().unwrap().port).collect();
        assert_eq!(ports, BTreeSet::from([5]), "on the port it had; lost: {lost:012b}");
    }
}

/// WireGuard is pointed at a port: whoever keeps it keeps the session without a word.
#[test]
fn a_hundred_pairs_get_the_ports_that_they_had_in_whatever_order_they_ask() {
    const NODES: u8 = 15;
    let pairs: Vec<(u8, u8)> = (1..=NODES).flat_map(|one| (1..one).map(move |other| (one, other))).collect();
    assert_eq!(pairs.len(), 105);
    let mut world = World::of(NODES, Config::default());
    let before: Vec<u16> = pairs.iter().map(|(one, other)| world.connect(*one, *other)[0].port).collect();
    for step in [1, 2, 4, 8, 11, 13, 16, 19, 22, 23, 26, 29] {
        world.plane = Plane::new(Config::default(), [step; 32], world.now);
        (1..=NODES).for_each(|number| world.input(Input::Admit(node(number))));
        for turn in 0..pairs.len() {
            // Every pair once: the step and 105 have no divisor in common.
            let index = turn * usize::from(step) % pairs.len();
            let (one, other) = pairs[index];
            let hint = Some(Config::default().first_port + before[index]);
            world.input(Input::Allocate { by: node(one), partner: node(other), hint });
            let events = world.events();
            assert_eq!(Leg::of(one, &events).port, before[index], "{one} with {other}, step {step}");
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(256) })]

    /// Lost, doubled, late and overtaking: as long as the network recovers, so does the pair.
    #[test]
    fn whatever_the_network_does_the_pair_talks_again(
        fates in prop::collection::vec(prop::collection::vec(0u64..300, 0..3), 0..60),
    ) {
        let mut fates = fates.into_iter();
        let mut run = Run::after_restart(move || fates.next().unwrap_or_else(|| vec![20]));
        prop_assert!(run.converges_within(30_000));
        // What still flies arrives, and changes nothing.
        (0..1000).for_each(|_| run.tick());
        prop_assert!(run.converges_within(10_000));
        prop_assert!(run.talks());
    }
}
