//! A loop that is late: what arrived in time is taken in before anything that is due by now.

use super::*;
use node_agent::{
    agent::{
        identity::{Identity, Opening},
        intent::{DeviceIntent, Intent, Leftovers},
        plane::{Plane, Planned},
    },
    paths::PathTable,
};
use path::CandidateKind;
use std::time::Instant;
use topology::node::{NodePlanner, PlanChange};
use wire::stun;

const STUN: &str = "198.51.100.1:3478";
const MAPPED: &str = "203.0.113.5:4711";

fn intent(relay: Relay) -> Intent {
    let device = DeviceIntent { listen_port: 21820, fwmark: 1, mesh_id: "mesh".into(), backend: Backend::Userspace };
    Intent {
        device,
        last_port: 21820,
        mtu: 1420,
        claims: Vec::new(),
        forbidden: path::Forbidden::default(),
        hosts: vec!["192.0.2.10/24".parse().unwrap()],
        stun_servers: vec![STUN.parse().unwrap()],
        relays: vec![relay],
        knows_relays: true,
        idle: None,
        cni: None,
        leftovers: Leftovers::Remove,
    }
}

/// A data plane that has asked its STUN server and is about to open a channel to its relay.
async fn asked(machine: &Arc<Machine>, now: Instant) -> (TempDir, Plane) {
    let dir = TempDir::new();
    let cache = Cache::open(&dir.0.join("cache")).unwrap();
    let Opening::Open(identity) = Identity::open(KeyFile::new(&dir.0), cache, true).unwrap() else { panic!("no key") };
    let intent = intent(relays::one());
    let host: Arc<dyn Host> = machine.clone();
    let mut plane = Plane::open(&host, "warren0", &identity, &intent, false, now).await.unwrap();
    let planned = Planned { planner: &NodePlanner::default(), change: &PlanChange::default() };
    plane.apply(&intent, planned, now).await.unwrap();
    plane.turn(&mut PathTable::default(), now).await.unwrap();
    (dir, plane)
}

#[tokio::test]
async fn an_answer_that_waits_is_taken_in_before_the_question_counts_as_unanswered() {
    let (machine, _change) = Machine::new();
    let now = Instant::now();
    let (_dir, mut plane) = asked(&machine, now).await;
    let device = machine.device();
    let server: SocketAddr = STUN.parse().unwrap();
    for request in device.take_sent().into_iter().filter(|sent| sent.remote == server) {
        let tx = stun::decode(&request.payload).unwrap().tx;
        let payload = stun::encode_success(tx, MAPPED.parse().unwrap()).to_vec();
        assert!(device.deliver(Datagram { remote: server, local: request.local, payload }));
    }
    plane.turn(&mut PathTable::default(), now + Duration::from_secs(30)).await.unwrap();
    let (candidates, _) = plane.local().unwrap();
    let reflexive = candidates.iter().find(|c| c.kind == CandidateKind::ServerReflexive);
    assert_eq!(reflexive.unwrap().addr, MAPPED.parse().unwrap());
}

#[tokio::test]
async fn what_a_relay_has_said_is_taken_in_by_whoever_only_does_what_is_due() {
    let (machine, _change) = Machine::new();
    let (dial, mut dialled) = mpsc::unbounded_channel();
    *machine.relays.lock().unwrap() = Some(dial);
    let (_dir, mut plane) = asked(&machine, Instant::now()).await;
    let mut relay = relays::next(&mut dialled).await;
    let said = async {
        while !plane.turn(&mut PathTable::default(), Instant::now()).await.unwrap().channels {
            tokio::task::yield_now().await;
        }
        relay.hears().await
    };
    let said = tokio::time::timeout(DEADLINE, said).await.unwrap();
    assert!(matches!(said, Some(wire::control::ToRelay::Hello { .. })), "{said:?}");
}
