//! Two real agents: from nothing to a connection through WireGuard, and again after a restart, without the API, and with a new
//! key.

#![allow(clippy::unwrap_used, reason = "a test may fail by panicking")]

mod support;

use std::{fs, time::Instant};
use support::pair::{AGENT, DEADLINE, Lab};

#[test]
fn two_nodes_meet_and_meet_again_whatever_is_restarted() {
    let Some(mut lab) = Lab::new() else { return };
    lab.start("a");
    lab.start("b");
    let first = lab.reach("a", "10.118.0.2");
    lab.reach("b", "10.118.0.1");
    lab.wait_direct("a");
    lab.wait_direct("b");
    assert!(lab.ask("a", &["probe", "ready"]).is_ok());
    assert!(lab.ask("b", &["paths", "a"]).unwrap().contains("selected"));

    // The interface outlives the agent, and so does its key.
    let index = lab.spaces.ip("a", "-o link show warren0").unwrap();
    let key = lab.api.get("meshnodes", "a").unwrap()["status"]["publicKey"].clone();
    lab.stop("a");
    assert!(lab.spaces.ip("a", "-o link show warren0").is_ok());
    lab.start("a");
    let restarted = lab.reach("a", "10.118.0.2");
    assert_eq!(index.split(':').next(), lab.spaces.ip("a", "-o link show warren0").unwrap().split(':').next());
    assert_eq!(lab.api.get("meshnodes", "a").unwrap()["status"]["publicKey"], key);

    // Both agents restarted while the API is away.
    lab.api.set_up(false);
    for node in ["a", "b"] {
        lab.stop(node);
        lab.start(node);
    }
    let without_api = lab.reach("a", "10.118.0.2");
    lab.api.set_up(true);

    // A deleted key file is a new key, which comes back by itself.
    lab.stop("b");
    fs::remove_file(lab.dir.join("b-state/private.key")).unwrap();
    let old = lab.api.get("meshnodes", "b").unwrap()["spec"]["admission"]["publicKey"].clone();
    lab.start("b");
    // The kernel's WireGuard answers with the old key until then.
    let admitted = || lab.api.get("meshnodes", "b").unwrap()["spec"]["admission"]["publicKey"].clone();
    let began = Instant::now();
    while admitted() == old {
        assert!(began.elapsed() < DEADLINE, "no new key\n{}", lab.logs());
    }
    let new_key = lab.reach("a", "10.118.0.2");
    eprintln!("first {first:?}, agent restarted {restarted:?}, both without API {without_api:?}, new key {new_key:?}");

    // Taking everything away leaves nothing.
    lab.stop("b");
    let state = lab.dir.join("b-state").display().to_string();
    let removed = lab.spaces.exec("b", AGENT, &["cleanup", "--state-dir", &state]).unwrap();
    assert!(removed.contains("interface warren0"), "{removed}");
    assert!(lab.spaces.ip("b", "link show warren0").is_err());
    assert!(!lab.spaces.ip("b", "rule show").unwrap().contains("21820"));
}
