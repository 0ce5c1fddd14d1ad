//! What STUN servers say, and what their silence means.
#![allow(clippy::unwrap_used)]

mod support;

use std::net::SocketAddr;
use std::time::Duration;

use path::{CandidateKind, Event, Input};
use support::{Bench, addr};
use wire::stun;

const OBSERVERS: [&str; 2] = ["192.0.2.1:3478", "192.0.2.2:3478"];
const MAPPED: &str = "203.0.113.200:40000";

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
