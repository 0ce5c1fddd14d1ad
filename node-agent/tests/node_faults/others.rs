//! What other programs do to the node's network.

use super::*;

/// Flushes that make a fight of it, and one more.
const FLUSHES: u32 = 6;

/// Seconds between two flushes; `make faults` says 10.
fn pause() -> Duration {
    let seconds = std::env::var("FAULT_PAUSE").ok().map_or(1, |text| text.parse().unwrap());
    Duration::from_secs(seconds)
}

#[test]
fn a_ruleset_that_is_flushed_again_and_again_is_put_back_and_told() {
    let Some(lab) = connected() else { return };
    let traffic = Traffic::start(&lab);
    let table = |lab: &Lab| lab.spaces.exec("a", "nft", &["-s", "list", "table", "inet", "warren"]).ok();
    let before = table(&lab);
    let mut gaps = Vec::new();
    for _ in 0..FLUSHES {
        thread::sleep(pause());
        lab.sh("a", "nft flush ruleset");
        gaps.push(lab.until("the packet filter", |lab| (table(lab) == before).then_some(())).1);
    }
    let told = lab.until_condition("a", "RulesContended", Some("RepairedAgainAndAgain"));
    eprintln!("flushed {FLUSHES} times, one in {:?}: put back after {gaps:?}; told {told:?} after the last", pause());
    eprintln!("longest time without an answer: {:?}", traffic.stop());
}

#[test]
fn routes_and_rules_that_others_remove_are_put_back() {
    let Some(lab) = connected() else { return };
    let traffic = Traffic::start(&lab);
    let script = "ip rule; ip route show table 21820; ip route show table 21821; ip -6 route show table 21820; true";
    let before = lab.sh("a", script);
    for vandal in ["ip rule del priority 11", "ip route flush table 21820", "ip link set warren0 down"] {
        lab.sh("a", vandal);
        let (_, gap) = lab.until(vandal, |lab| (lab.sh("a", script) == before).then_some(()));
        eprintln!("{vandal}: put back after {gap:?}");
    }
    eprintln!("longest time without an answer: {:?}", traffic.stop());
}

#[test]
fn another_vpn_that_takes_everything_is_a_conflict_and_no_loop() {
    let Some(lab) = connected() else { return };
    let sent =
        |lab: &Lab| lab.sh("a", "cat /sys/class/net/warren0/statistics/tx_packets").trim().parse::<u64>().unwrap();
    let before = sent(&lab);
    // As wg-quick does, and before our rules.
    lab.sh(
        "a",
        "ip link add vpn0 type veth peer name vpn1 && ip link set vpn0 up && ip link set vpn1 up && ip route add default dev vpn0 table 51820 && \
         ip rule add priority 5 not fwmark 0xca6c lookup 51820",
    );
    let conflict = |lab: &Lab| {
        let conditions = lab.says("a", "conditions")?.to_string();
        (conditions.contains("\"Conflict\"") && conditions.contains("lookup 51820")).then_some(())
    };
    let (_, told) = lab.until("the conflict", conflict);
    // Long enough for a packet that loops to go round thousands of times.
    thread::sleep(Duration::from_secs(1));
    let looped = sent(&lab) - before;
    assert!(looped < 1000, "{looped} packets went into the tunnel while it had no way out");
    lab.sh("a", "ip rule del priority 5");
    let reached = lab.reach("a", B);
    lab.until("the end of the conflict", |lab| conflict(lab).is_none().then_some(()));
    eprintln!("another VPN: told after {told:?}, {looped} packets into the tunnel; reached {reached:?} after it left");

    // The same as a default route: outer packets follow it, those of the mesh stay in the mesh.
    lab.sh("a", "ip route add 0.0.0.0/1 dev vpn0 && ip route add 128.0.0.0/1 dev vpn0");
    lab.reach("a", B);
    let way = |to: &str| lab.sh("a", &format!("ip route get {to}"));
    assert!(way(B).contains("dev warren0") && way("198.51.100.1 mark 0x10").contains("dev vpn0"));
}

/// The candidates that were published since the first `from` writes, repetitions left out.
fn publications(lab: &Lab, from: usize) -> Vec<Value> {
    let mut all: Vec<Value> =
        lab.api.patches()[from.saturating_sub(1)..].iter().map(|s| s["candidates"].clone()).collect();
    all.dedup();
    all.split_off(1)
}

#[test]
fn an_underlay_that_changes_is_published_once() {
    let Some(lab) = connected() else { return };
    let traffic = Traffic::start(&lab);
    let writes = |lab: &Lab| lab.api.patches().len();

    let from = writes(&lab);
    lab.sh("a", "ip addr add 10.77.0.21/24 dev eth0");
    let shows = |address: &'static str| {
        move |lab: &Lab| {
            let node = lab.api.get("meshnodes", "a")?;
            node["status"]["candidates"].to_string().contains(address).then_some(())
        }
    };
    let (_, took) = lab.until("the new address", shows("10.77.0.21:"));
    assert_eq!(publications(&lab, from).len(), 1, "{:#?}", publications(&lab, from));
    eprintln!("address added: published after {took:?}");

    // Renamed, and the same network again under the new name: nothing that peers need to know.
    let from = writes(&lab);
    lab.sh("a", "ip link set eth0 down && ip link set eth0 name ens3 && ip link set ens3 up && ip route add default via 10.77.0.1");
    let follows = |lab: &Lab| {
        let ruleset = lab.sh("a", "nft list table inet warren");
        (ruleset.contains("\"ens3\"") && !ruleset.contains("\"eth0\"")).then_some(())
    };
    let (_, took) = lab.until("the packet filter to follow", follows);
    let reached = lab.reach("a", B);
    eprintln!(
        "interface renamed: followed after {took:?}, reached {reached:?} later; {} published",
        publications(&lab, from).len()
    );

    // Another way out.
    lab.sh("a", "ip route replace default via 10.77.0.12");
    let reached = lab.reach("a", B);
    eprintln!("default route changed: reached after {reached:?}; {} published", publications(&lab, from).len());
    eprintln!("longest time without an answer: {:?}", traffic.stop());
}
