//! Whatever happened, the next turn of a driver ends in the state that it planned: on the fake, on userspace and on the
//! kernel's device alike, step by step.

#![allow(clippy::unwrap_used)]

#[macro_use]
mod lab;

use std::{collections::BTreeMap, net::SocketAddr, sync::Arc, time::Duration};

use ipnet::IpNet;
use lab::{
    DEVICE, Namespace, Open, block_on, config, eventually,
    other::{self, Setting},
    private_key,
};
use proptest::{prelude::*, test_runner::TestRunner};
use topology::node::{PeerChange, PeerPlan, PeerPlans, PlanChange};
use wgdev::{Backend, Delta, Device, DeviceError, Fake, PeerStatus, PeerUpdate};
use wire::key::PublicKey;

on_both_devices!(any_history_ends_in_the_plan);

/// Histories that are tried; a step is a few messages and, every other time, a device that is opened anew.
const HISTORIES: u32 = 60;

/// What the peers shall be.
type Plan = BTreeMap<PublicKey, PeerUpdate>;

#[derive(Clone, Debug)]
enum Step {
    /// A driver looks, and does what differs.
    Turn(Plan),
    /// It ends after so many changes of a turn, and another begins.
    Crash(Plan, usize),
    /// Another program changes or adds a peer.
    SetPeer(PeerUpdate),
    /// Another program removes a peer.
    RemovePeer(PublicKey),
    /// Another program takes the device.
    SetDevice(Setting),
    /// Another program deletes the interface.
    Delete,
}

fn keys() -> Vec<PublicKey> {
    (2..=6).map(|seed| private_key(seed).public_key()).collect()
}

fn key() -> impl Strategy<Value = PublicKey> {
    prop::sample::select(keys())
}

const NETS: [&str; 8] = [
    "10.0.0.0/8",
    "10.1.0.0/16",
    "10.1.2.0/24",
    "10.1.2.3/32",
    "10.1.2.4/32",
    "fd00::/64",
    "fd00::1/128",
    "fd00::2/128",
];

fn endpoint() -> impl Strategy<Value = SocketAddr> {
    prop::sample::select(["127.0.0.1:9", "127.0.0.2:9", "[::1]:9"].map(|e| e.parse().unwrap()).to_vec())
}

fn keepalive() -> impl Strategy<Value = Option<Duration>> {
    prop::option::of((1000..60_000u64).prop_map(Duration::from_secs))
}

/// Every network has an owner or none, and whoever has none is no peer.
fn plan() -> impl Strategy<Value = Plan> {
    let owners = prop::collection::vec(prop::option::of(key()), NETS.len());
    let settings = prop::collection::vec((endpoint(), keepalive()), keys().len());
    (owners, settings).prop_map(|(owners, settings)| {
        let settings: BTreeMap<_, _> = keys().into_iter().zip(settings).collect();
        let mut nets = BTreeMap::<_, Vec<IpNet>>::new();
        for (owner, net) in owners.into_iter().zip(NETS) {
            if let Some(owner) = owner {
                nets.entry(owner).or_default().push(net.parse().unwrap());
            }
        }
        let update = |(public_key, mut nets): (PublicKey, Vec<IpNet>)| {
            nets.sort_unstable();
            let (endpoint, keepalive) = settings[&public_key];
            let update = PeerUpdate {
                public_key,
                endpoint: Some(endpoint),
                allowed_ips: Some(nets),
                keepalive: Some(keepalive),
            };
            (public_key, update)
        };
        nets.into_iter().map(update).collect()
    })
}

fn set_peer() -> impl Strategy<Value = PeerUpdate> {
    let nets = prop::sample::subsequence(NETS.map(|net| net.parse().unwrap()).to_vec(), 0..4);
    (key(), prop::option::of(endpoint()), prop::option::of(nets), prop::option::of(keepalive())).prop_map(
        |(public_key, endpoint, allowed_ips, keepalive)| PeerUpdate { public_key, endpoint, allowed_ips, keepalive },
    )
}

fn step() -> impl Strategy<Value = Step> {
    // A key of a peer, of nobody's, and ours: that changes nothing.
    let key_seeds = prop::sample::select(vec![1, 2, 3, 9]);
    let setting = prop_oneof![
        key_seeds.prop_map(Setting::Key),
        Just(Setting::Port(7777)),
        prop::sample::select(vec![0, lab::MARK]).prop_map(Setting::Mark),
    ];
    prop_oneof![
        4 => plan().prop_map(Step::Turn),
        4 => (plan(), 0..4usize).prop_map(|(plan, after)| Step::Crash(plan, after)),
        3 => set_peer().prop_map(Step::SetPeer),
        2 => key().prop_map(Step::RemovePeer),
        1 => setting.prop_map(Step::SetDevice),
        1 => Just(Step::Delete),
    ]
}

/// From what was found to the plan, in the order of the agent, few at once. Each is one message to the kernel.
fn changes(found: &[PeerStatus], plan: &Plan) -> Vec<Delta> {
    let peer = |allowed_ips: &[IpNet]| Arc::new(PeerPlan { allowed_ips: allowed_ips.to_vec(), ..PeerPlan::default() });
    let before: PeerPlans = found.iter().map(|status| (status.public_key, peer(&status.allowed_ips))).collect();
    let after: PeerPlans =
        plan.iter().map(|(key, update)| (*key, peer(update.allowed_ips.as_deref().unwrap_or_default()))).collect();
    let order = PlanChange::between(&before, &after).order();
    let mut rest = plan.clone();
    let mut upsert: Vec<PeerUpdate> = Vec::new();
    for PeerChange { key, allowed_ips, lent: _ } in order.upsert {
        upsert.extend(rest.remove(&key).map(|update| PeerUpdate { allowed_ips: Some(allowed_ips), ..update }));
    }
    upsert.extend(rest.into_values());
    let removal = |remove| Delta { upsert: vec![], remove };
    let upserts = upsert.chunks(2).map(|upsert| Delta { upsert: upsert.to_vec(), remove: vec![] });
    let deltas = [removal(order.remove)].into_iter().chain(upserts).chain([removal(order.remove_last)]);
    deltas.filter(|delta| *delta != Delta::default()).collect()
}

fn owners(peers: &[PeerStatus]) -> BTreeMap<IpNet, PublicKey> {
    peers.iter().flat_map(|peer| peer.allowed_ips.iter().map(|net| (*net, peer.public_key))).collect()
}

/// A real device, and the model of it.
struct World<'a, D> {
    namespace: &'a Namespace,
    device: Option<D>,
    fake: Fake,
}

impl<D: Open> World<'_, D> {
    fn open(&mut self) {
        self.device = Some(lab::open(self.namespace, config(1)).unwrap());
    }

    fn device(&self) -> &D {
        self.device.as_ref().unwrap()
    }

    /// Only the kernel's outlives its process, and only the kernel's can be changed by others.
    fn is_shared(&self) -> bool {
        self.device().backend() == Backend::Kernel
    }

    fn apply(&self, delta: &Delta) {
        block_on(self.device().apply(delta)).unwrap();
        block_on(self.fake.apply(delta)).unwrap();
    }

    fn forget(&mut self) {
        self.fake = Fake::of(self.fake.backend(), config(1));
    }

    /// The state, which is the same on both.
    fn state(&self) -> Result<Vec<PeerStatus>, TestCaseError> {
        let only = |status: PeerStatus| PeerStatus { rx_bytes: 0, tx_bytes: 0, last_handshake: None, ..status };
        let of = |device: &dyn Device| block_on(device.peers()).unwrap().into_iter().map(only).collect::<Vec<_>>();
        let (real, model) = (of(self.device()), of(&self.fake));
        prop_assert_eq!(&real, &model);
        Ok(real)
    }

    /// Does the first few changes of a turn. In between, every peer has what it shall have and nothing but what it had, and a
    /// prefix that somebody has before and after has somebody.
    fn turn(&mut self, plan: &Plan, limit: usize) -> Result<(), TestCaseError> {
        let before = self.state()?;
        let had = owners(&before);
        let shall: BTreeMap<IpNet, PublicKey> =
            plan.iter().flat_map(|(key, update)| update.allowed_ips.iter().flatten().map(|net| (*net, *key))).collect();
        for delta in changes(&before, plan).iter().take(limit) {
            self.apply(delta);
            let has = owners(&self.state()?);
            for net in had.keys().chain(shall.keys()) {
                let [was, is, will] = [&had, &has, &shall].map(|owners| owners.get(net));
                prop_assert!(is == was || is == will, "{} is {:?}'s, between {:?} and {:?}", net, is, was, will);
            }
        }
        Ok(())
    }

    fn step(&mut self, step: &Step) -> Result<(), TestCaseError> {
        match step {
            Step::Turn(plan) => {
                self.turn(plan, usize::MAX)?;
                self.check(plan)?;
            }
            Step::Crash(plan, after) => {
                self.turn(plan, *after)?;
                if !self.is_shared() {
                    self.forget();
                }
                self.device = None;
                self.open();
            }
            Step::SetPeer(update) if self.is_shared() => {
                other::set_peer(self.namespace, update.clone());
                let delta = Delta { upsert: vec![update.clone()], remove: vec![] };
                block_on(self.fake.apply(&delta)).unwrap();
            }
            Step::RemovePeer(key) if self.is_shared() => {
                other::remove_peer(self.namespace, *key);
                block_on(self.fake.apply(&Delta { upsert: vec![], remove: vec![*key] })).unwrap();
            }
            Step::SetDevice(setting) if self.is_shared() => {
                other::set_device(self.namespace, *setting);
                let changes = match setting {
                    Setting::Key(seed) => {
                        // The kernel has no peer of its own key.
                        let own = private_key(*seed).public_key();
                        block_on(self.fake.apply(&Delta { upsert: vec![], remove: vec![own] })).unwrap();
                        *seed != 1
                    }
                    Setting::Port(port) => *port != lab::PORT,
                    Setting::Mark(mark) => *mark != lab::MARK,
                };
                let stopped = matches!(block_on(self.device().peers()), Err(DeviceError::Stopped));
                prop_assert_eq!(stopped, changes);
                if stopped {
                    self.open();
                }
            }
            Step::Delete => {
                self.namespace.ip(&format!("link del {DEVICE}"));
                let stopped = || matches!(block_on(self.device().peers()), Err(DeviceError::Stopped));
                eventually("the device stops", stopped);
                self.forget();
                self.device = None;
                self.open();
            }
            Step::SetPeer(_) | Step::RemovePeer(_) | Step::SetDevice(_) => {}
        }
        self.state().map(|_| ())
    }

    fn check(&self, plan: &Plan) -> Result<(), TestCaseError> {
        let status = |peer: PeerStatus| PeerUpdate {
            public_key: peer.public_key,
            endpoint: peer.endpoint,
            allowed_ips: Some(peer.allowed_ips),
            keepalive: Some(peer.keepalive),
        };
        let state: Vec<_> = self.state()?.into_iter().map(status).collect();
        prop_assert_eq!(state, plan.values().cloned().collect::<Vec<_>>());
        Ok(())
    }
}

fn any_history_ends_in_the_plan<D: Open>() {
    let namespace = Namespace::new("wd-history");
    let mut runner = TestRunner::new(ProptestConfig::with_cases(HISTORIES));
    let histories = (prop::collection::vec(step(), 1..10), plan());
    let result = runner.run(&histories, |(steps, last)| {
        let device = lab::open::<D>(&namespace, config(1)).unwrap();
        let fake = Fake::of(device.backend(), config(1));
        let mut world = World { namespace: &namespace, device: Some(device), fake };
        // What the history before has left is as good as nothing.
        let left = block_on(world.device().peers()).unwrap();
        let clear = Delta { upsert: vec![], remove: left.iter().map(|peer| peer.public_key).collect() };
        world.apply(&clear);
        for step in &steps {
            world.step(step)?;
        }
        world.step(&Step::Turn(last))
    });
    result.unwrap();
}
