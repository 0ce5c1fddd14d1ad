//! What happens to agent, disk, port and device.

use super::*;
use std::net::UdpSocket;

/// Kills of an agent that starts, so many milliseconds apart: from before its first instruction until after its last step.
const KILLS: u64 = 25;
const STEP: u64 = 20;

/// What is programmed on a node, whether anybody is at its device or not.
fn programmed(lab: &Lab, node: &str) -> String {
    let script = "ip -o address show dev warren0 | awk '{print $3, $4}'; ip rule; ip -6 rule; \
                  for t in 21820 21821; do ip route show table $t; ip -6 route show table $t; done; \
                  nft -s list table inet warren; cat /sys/class/net/warren0/mtu";
    lab.sh(node, script).replace(" linkdown", "")
}

#[test]
fn killed_at_any_moment_of_its_start_an_agent_leaves_what_the_next_one_completes() {
    let Some(mut lab) = connected() else { return };
    let index = lab.sh("a", "cat /sys/class/net/warren0/ifindex");
    let chains = |lab: &Lab| lab.sh("a", "nft list table inet warren | grep chain");
    let whole = chains(&lab);
    lab.stop("a");
    let before = programmed(&lab, "a");

    // Nothing new to apply: a crash loop touches nothing.
    for n in 0..KILLS {
        lab.start("a");
        thread::sleep(Duration::from_millis(n * STEP));
        lab.stop("a");
        assert_eq!(before, programmed(&lab, "a"), "killed after {} ms", n * STEP);
    }
    // Something new each time: the packet filter is never half of one, and what was begun is completed.
    for n in 0..KILLS {
        let mut mesh = lab.api.get("meshes", "default").unwrap();
        mesh["spec"]["mtu"] = (if n % 2 == 0 { 1300 } else { 1420 }).into();
        mesh["spec"]["podCIDRs"] = serde_json::json!([format!("10.{}.0.0/16", 100 + n % 2)]);
        lab.api.put("meshes", mesh);
        lab.start("a");
        thread::sleep(Duration::from_millis(n * STEP));
        lab.stop("a");
        assert_eq!(whole, chains(&lab), "killed after {} ms", n * STEP);
    }
    let mut mesh = lab.api.get("meshes", "default").unwrap();
    mesh["spec"] = serde_json::json!({});
    lab.api.put("meshes", mesh);
    lab.start("a");
    let began = Instant::now();
    while programmed(&lab, "a") != before && began.elapsed() < DEADLINE {
        thread::sleep(Duration::from_millis(10));
    }
    let took = began.elapsed();
    assert_eq!(before, programmed(&lab, "a"), "the next start did not complete it");
    let reached = lab.reach("a", B);
    eprintln!("killed {} times; as it was after {took:?}, {reached:?} later in the mesh", 2 * KILLS);
    assert_eq!(index, lab.sh("a", "cat /sys/class/net/warren0/ifindex"));
}

#[test]
fn a_deleted_device_is_made_again_with_key_and_port() {
    let Some(lab) = connected() else { return };
    let identity = |lab: &Lab| (lab.says("a", "publicKey"), lab.says("a", "listenPort"));
    let before = identity(&lab);
    let traffic = Traffic::start(&lab);
    for n in 1..=3 {
        lab.sh("a", "ip link del warren0");
        let (_, made) = lab.until("the device", |lab| lab.spaces.ip("a", "link show warren0").ok());
        let reached = lab.reach("a", B);
        eprintln!("device deleted, time {n}: made after {made:?}, reached {reached:?} later");
        lab.wait_direct("a");
    }
    eprintln!("longest time without an answer: {:?}", traffic.stop());
    assert_eq!(before, identity(&lab));
}

#[test]
fn a_port_that_is_taken_gives_way_to_the_next_which_peers_learn() {
    let Some(mut lab) = connected() else { return };
    lab.stop("a");
    let space = lab.spaces.full("a");
    let taken = thread::spawn(move || {
        enter(&space).unwrap();
        UdpSocket::bind("0.0.0.0:21821").unwrap()
    });
    let socket = taken.join().unwrap();
    lab.start("a");
    let reached = lab.reach("a", B);
    let published = |lab: &Lab| {
        let node = lab.api.get("meshnodes", "a")?;
        let candidates = node["status"]["candidates"].to_string();
        (node["status"]["listenPort"] == 21822 && candidates.contains(":21822\"")).then_some(())
    };
    let (_, took) = lab.until("the port to be published", published);
    eprintln!("port taken: reached after {reached:?}, published {took:?} later");
    drop(socket);
    // The assigned one is free again: the next start has it.
    lab.stop("a");
    lab.start("a");
    lab.reach("b", A);
    assert_eq!(lab.says("a", "listenPort"), Some(21821.into()));
}

#[test]
fn without_wireguard_in_the_kernel_auto_goes_on_and_a_demand_is_a_condition() {
    let Some(lab) = connected() else { return };
    if lab.spaces.ip("a", "link add probe type wireguard").is_ok() {
        eprintln!("skipped: this kernel has WireGuard");
        return;
    }
    assert_eq!(lab.says("a", "backend"), Some("userspace".into()), "Auto");
    let demand = |lab: &Lab, backend: Value| {
        let mut node = lab.api.get("meshnodes", "a").unwrap();
        node["spec"]["backend"] = backend;
        lab.api.put("meshnodes", node);
    };
    demand(&lab, "Kernel".into());
    lab.until_condition("a", "NoKernelWireGuard", Some("ModuleMissing"));
    demand(&lab, Value::Null);
    let reached = lab.reach("a", B);
    lab.until_condition("a", "NoKernelWireGuard", None);
    eprintln!("demand withdrawn: reached after {reached:?}");
}

#[test]
fn a_disk_that_is_full_or_read_only_is_a_condition_and_nothing_else() {
    let Some(mut lab) = connected() else { return };
    lab.stop("a");
    // What was there moves to a small disk of this agent's own; its mounts are its own.
    let disk = "cp -a $STATE $STATE.old && mount -t tmpfs -o size=64k disk $STATE && cp -a $STATE.old/. $STATE";
    lab.start_after("a", disk);
    lab.reach("a", B);
    let state = lab.dir.join("a-state").display().to_string();
    let on_disk = |lab: &Lab, script: &str| {
        let pid = lab.pid("a").to_string();
        let script = format!("STATE={state}; {script}");
        lab.spaces.exec("a", "nsenter", &["-t", &pid, "-m", "sh", "-c", &script])
    };
    let traffic = Traffic::start(&lab);
    for (n, what, breaks, heals) in [
        (1, "full", "! dd if=/dev/zero of=$STATE/fill bs=1k status=none", "rm $STATE/fill"),
        (
            2,
            "read-only",
            "mount --bind $STATE/cache $STATE/cache && mount -o remount,bind,ro $STATE/cache",
            "umount $STATE/cache",
        ),
    ] {
        on_disk(&lab, breaks).unwrap();
        let mut mesh = lab.api.get("meshes", "default").unwrap();
        mesh["spec"]["podCIDRs"] = serde_json::json!([format!("10.{}.0.0/16", 100 + n)]);
        lab.api.put("meshes", mesh);
        let told = lab.until_condition("a", "StateNotPersisted", Some("WriteFailed"));
        on_disk(&lab, heals).unwrap();
        let ended = lab.until_condition("a", "StateNotPersisted", None);
        eprintln!("{what}: told after {told:?}, over {ended:?} after it had room");
        assert!(
            on_disk(&lab, &format!("grep 10.{}.0.0 $STATE/cache/mesh", 100 + n)).is_ok(),
            "{what}: what was refused"
        );
    }
    eprintln!("longest time without an answer: {:?}", traffic.stop());
}
