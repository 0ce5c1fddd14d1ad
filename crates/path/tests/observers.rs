//! What STUN servers say, and what their silence means.
#![allow(clippy::unwrap_used)]

mod support;

use std::net::SocketAddr;
use std::time::Duration;

use path::{CandidateKind, Event, Input, NatClass};
use support::{Bench, addr};
use wire::stun;

const OBSERVERS: [&str; 2] = ["192.0.2.1:3478", "192.0.2.2:3478"];
const MAPPED: &str = "203.0.113.200:40000";
const MOVED: &str = "203.0.113.200:50000";

/// Runs for a while; those of the observers that are alive answer each request with this mapping. Returns the mapped
/// addresses of each publication.
fn run(bench: &mut Bench, alive: &[&str], mapped: &str, time: Duration) -> Vec<Vec<SocketAddr>> {
    let end = bench.now + time;
    let mut published = Vec::new();
    loop {
        for sent in bench.transmits() {
            let asked = alive.iter().find(|observer| addr(observer) == sent.remote);
            if let (Some(observer), Ok(request)) = (asked, stun::decode(&sent.payload)) {
                let answer = stun::encode_success(request.tx, addr(mapped));
                bench.receive(observer, answer);
            }
        }
        for event in bench.events() {
            if let Event::LocalCandidates(candidates, _) = event {
                let reflexive = candidates.iter().filter(|known| known.kind == CandidateKind::ServerReflexive);
                published.push(reflexive.map(|known| known.addr).collect());
            }
        }
        let due = bench.engine.poll_timeout().map_or(end, |(due, _)| due);
        if due >= end {
            bench.now = end;
            return published;
        }
        bench.now = bench.now.max(due);
        bench.engine.handle_timeout(bench.now);
    }
}

fn servers(observers: &[&str]) -> Input {
    Input::StunServers(observers.iter().map(|text| addr(text)).collect())
}

fn behind_nat() -> Bench {
    let mut bench = Bench::new(true);
    bench.input(Input::HostCandidates(vec!["192.168.1.10/24".parse().unwrap()]));
    bench.input(servers(&OBSERVERS));
    let published = run(&mut bench, &OBSERVERS, MAPPED, Duration::from_secs(3));
    assert_eq!(published.last().unwrap(), &[addr(MAPPED)]);
    assert_eq!(bench.engine.snapshot().nat.v4, NatClass::EndpointIndependent);
    bench
}

#[test]
fn observers_that_fall_silent_withdraw_nothing() {
    let mut bench = behind_nat();
    assert_eq!(run(&mut bench, &[], MAPPED, Duration::from_secs(7200)), Vec::<Vec<SocketAddr>>::new());
    assert_eq!(bench.engine.snapshot().nat.v4, NatClass::EndpointIndependent);
}

#[test]
fn observers_that_leave_the_directory_withdraw_nothing() {
    let mut bench = behind_nat();
    bench.input(servers(&[]));
    assert_eq!(run(&mut bench, &[], MAPPED, Duration::from_secs(7200)), Vec::<Vec<SocketAddr>>::new());
    // Another one that has not answered yet replaces nothing either, and one that has does.
    bench.input(servers(&["192.0.2.9:3478"]));
    assert_eq!(run(&mut bench, &[], MAPPED, Duration::from_secs(600)), Vec::<Vec<SocketAddr>>::new());
    let published = run(&mut bench, &["192.0.2.9:3478"], MOVED, Duration::from_secs(600));
    assert_eq!(published.last().unwrap(), &[addr(MOVED)]);
}

#[test]
fn an_answer_that_contradicts_replaces_what_silent_observers_saw() {
    let mut bench = behind_nat();
    let published = run(&mut bench, &OBSERVERS[..1], MOVED, Duration::from_secs(400));
    assert_eq!(published.last().unwrap(), &[addr(MOVED)]);
}

#[test]
fn another_network_starts_from_nothing() {
    let mut bench = behind_nat();
    bench.input(Input::NetworkChanged);
    let published = run(&mut bench, &[], MAPPED, Duration::from_secs(30));
    assert_eq!(published.last().unwrap(), &Vec::<SocketAddr>::new());
}

#[test]
fn an_answer_with_something_that_must_be_understood_and_is_not_is_not_believed() {
    let mut bench = Bench::new(true);
    bench.input(Input::HostCandidates(vec!["192.168.1.10/24".parse().unwrap()]));
    bench.input(servers(&OBSERVERS[..1]));
    let request = bench.transmits().into_iter().find(|sent| sent.remote == addr(OBSERVERS[0])).unwrap();
    let tx = stun::decode(&request.payload).unwrap().tx;
    let mut answer = stun::encode_success(tx, addr(MAPPED));
    // RFC 8489, section 6.3.3: an unknown type below 0x8000, without a value.
    answer.extend([0x7f, 0x01, 0, 0]);
    let length = u16::try_from(answer.len() - stun::HEADER_LEN).unwrap();
    answer[2..4].copy_from_slice(&length.to_be_bytes());
    assert_eq!(stun::decode(&answer).unwrap().unknown_required, Some(0x7f01));
    bench.receive(OBSERVERS[0], answer);
    let published = run(&mut bench, &[], MAPPED, Duration::from_secs(10));
    assert!(published.iter().all(Vec::is_empty), "{published:?}");
}
