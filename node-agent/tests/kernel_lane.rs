//! Two real agents on the kernel's WireGuard: what happens to an agent happens to no packet. Where the kernel has none,
//! `e2e/kernel/agent.sh` runs this in a machine that has.

#![allow(clippy::unwrap_used, reason = "a test may fail by panicking")]

mod support;

use nlink::{Connection, Wireguard, netlink::genl::wireguard::AllowedIp};
use serde_json::{Value, json};
use std::{
    collections::{BTreeMap, BTreeSet},
    net::UdpSocket,
    process::{Command, Stdio},
    thread,
    time::{Duration, Instant},
};
use support::{
    netns::enter,
    pair::{AGENT, DEADLINE, Lab},
};

const B: &str = "10.118.0.2";

/// The lab with both agents connected, or the reason why not.
fn lab() -> Option<Lab> {
    lab_where(|_| ())
}

/// The same, with something in place while the agents start for the first time.
fn lab_where<T>(in_place: impl FnOnce(&Lab) -> T) -> Option<Lab> {
    let lane = std::env::var("WARREN_KERNEL_LANE").is_ok_and(|v| v == "1");
    if let Err(error) = wgdev::kernel::available() {
        assert!(!lane, "WARREN_KERNEL_LANE=1, and: {error}");
        eprintln!("skipped: {error}; e2e/kernel/agent.sh has a kernel with WireGuard");
        return None;
    }
    let mut lab = Lab::new()?;
    let _in_place = in_place(&lab);
    for node in ["a", "b"] {
        lab.start(node);
    }
    lab.reach("a", B);
    for node in ["a", "b"] {
        lab.wait_direct(node);
        assert_eq!(lab.status(node)["backend"], "kernel", "what `Auto` means here");
    }
    Some(lab)
}

/// What must be the same after whatever happened.
fn identity(lab: &Lab, node: &str) -> (String, Value, Value) {
    let link = lab.spaces.ip(node, "-o link show warren0").unwrap();
    let status = lab.status(node);
    (link.split(':').next().unwrap().into(), status["listenPort"].clone(), status["publicKey"].clone())
}

fn handshake_age(lab: &Lab, node: &str) -> u64 {
    lab.paths(node)["peers"][0]["lastHandshakeSeconds"].as_u64().unwrap()
}

/// Sends ten pings a second from `a` to `b` for so long while something is done. How many were sent and how many answered.
fn pinged(lab: &mut Lab, time: Duration, during: impl FnOnce(&mut Lab)) -> (u64, u64) {
    let count = (time.as_millis() / 100).to_string();
    let mut command = Command::new("ip");
    command.args(["netns", "exec", &lab.spaces.full("a"), "ping", "-n", "-q", "-i", "0.1", "-W", "5", "-c", &count, B]);
    let ping = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    thread::sleep(Duration::from_secs(1));
    during(lab);
    let output = ping.wait_with_output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let number = |before: &str| {
        let (start, _) =
            text.split_once(before).unwrap_or_else(|| panic!("{text}{}", String::from_utf8_lossy(&output.stderr)));
        start.split([' ', '\n']).next_back().unwrap().parse::<u64>().unwrap()
    };
    (number(" packets transmitted"), number(" received"))
}

#[test]
fn an_agent_that_is_killed_or_away_costs_no_packet() {
    let Some(mut lab) = lab() else { return };
    let before = ["a", "b"].map(|node| identity(&lab, node));
    type Happening = fn(&mut Lab);
    let restarts: [(&str, Happening); 4] = [
        ("a killed and restarted", |lab| {
            lab.stop("a");
            lab.start("a");
            lab.wait_direct("a");
        }),
        ("b killed and restarted", |lab| {
            lab.stop("b");
            lab.start("b");
            lab.wait_direct("b");
        }),
        ("a away for 10 s", |lab| {
            lab.stop("a");
            thread::sleep(Duration::from_secs(10));
            lab.start("a");
            lab.wait_direct("a");
        }),
        ("both killed and restarted without the API", |lab| {
            lab.api.set_up(false);
            for node in ["a", "b"] {
                lab.stop(node);
            }
            for node in ["a", "b"] {
                lab.start(node);
            }
            for node in ["a", "b"] {
                lab.wait_direct(node);
            }
            lab.api.set_up(true);
        }),
    ];
    for (what, happens) in restarts {
        let age = handshake_age(&lab, "a");
        let (sent, received) = pinged(&mut lab, Duration::from_secs(20), happens);
        eprintln!("{what}: {sent} pings, {} lost", sent - received);
        assert_eq!(sent, received, "{what}\n{}", lab.logs());
        assert_eq!(["a", "b"].map(|node| identity(&lab, node)), before, "{what}");
        // WireGuard makes a new session every 120 s by itself.
        if age < 90 {
            assert!(handshake_age(&lab, "a") > age, "{what}: the session is the one of before");
        }
    }
}

/// The assigned port is another program's at the first start, and free at the next.
#[test]
fn a_port_that_was_fallen_back_to_is_kept_over_a_restart() {
    let taken = |lab: &Lab| {
        let space = lab.spaces.full("a");
        let bind = move || {
            enter(&space).unwrap();
            UdpSocket::bind("0.0.0.0:21821").unwrap()
        };
        thread::spawn(bind).join().unwrap()
    };
    let Some(mut lab) = lab_where(taken) else { return };
    assert_eq!(lab.status("a")["listenPort"], 21822);
    let before = identity(&lab, "a");
    let (sent, received) = pinged(&mut lab, Duration::from_secs(10), |lab| {
        lab.stop("a");
        lab.start("a");
        lab.wait_direct("a");
    });
    assert_eq!(sent, received, "{}", lab.logs());
    assert_eq!(identity(&lab, "a"), before);
}

#[test]
fn a_node_moves_between_backends_with_key_port_and_addresses() {
    let Some(lab) = lab() else { return };
    let same = |lab: &Lab| {
        let (_, port, key) = identity(lab, "a");
        (port, key, lab.status("a")["meshIps"].clone())
    };
    let before = same(&lab);
    let kind = |lab: &Lab| lab.spaces.ip("a", "-d link show warren0").unwrap_or_default();
    for (wanted, backend, shown) in [("Userspace", "userspace", "tun type tun"), ("Kernel", "kernel", "wireguard")] {
        let mut mesh = lab.api.get("meshes", "default").unwrap();
        mesh["spec"] = json!({"backend": wanted});
        lab.api.put("meshes", mesh);
        let began = Instant::now();
        while lab.ask("a", &["status", "--json"]).is_ok_and(|s| !s.contains(&format!("\"backend\":\"{backend}\""))) {
            assert!(began.elapsed() < DEADLINE, "{}", lab.logs());
        }
        let reached = lab.reach("a", B);
        eprintln!("moved to {wanted}, {reached:?} until the peer is reached");
        assert!(kind(&lab).contains(shown), "{}", kind(&lab));
        assert_eq!(same(&lab), before);
        lab.wait_direct("a");
        lab.wait_direct("b");
    }
    // One node differs from the rest.
    let mut node = lab.api.get("meshnodes", "a").unwrap();
    node["spec"]["backend"] = json!("Userspace");
    lab.api.put("meshnodes", node);
    let began = Instant::now();
    while !kind(&lab).contains("tun type tun") {
        assert!(began.elapsed() < DEADLINE, "{}", lab.logs());
    }
    lab.reach("a", B);
    assert_eq!(lab.status("b")["backend"], "kernel");
}

/// Does something to the device of a node as another program does: with nlink's own driver and none of our code.
fn as_another_program<T: Send + 'static>(
    lab: &Lab,
    node: &str,
    work: impl AsyncFnOnce(Connection<Wireguard>) -> nlink::Result<T> + Send + 'static,
) -> T {
    let space = lab.spaces.full(node);
    let run = move || {
        enter(&space).unwrap();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async { work(Connection::new_async().await?).await })
    };
    thread::spawn(run).join().unwrap().unwrap()
}

/// The peers of a node's device, and what each may send from.
fn peers(lab: &Lab, node: &str) -> BTreeMap<[u8; 32], BTreeSet<String>> {
    let device = as_another_program(lab, node, async |wg| wg.get_device_by_name("warren0").await);
    let mut peers = BTreeMap::<_, BTreeSet<String>>::new();
    for peer in device.peers {
        let nets = peer.allowed_ips.iter().map(|net| format!("{}/{}", net.addr, net.cidr));
        peers.entry(peer.public_key).or_default().extend(nets);
    }
    peers
}

#[test]
fn what_another_program_does_to_peers_is_undone_while_the_agent_runs() {
    let Some(lab) = lab() else { return };
    let planned = peers(&lab, "a");
    let (b, stranger) = (*planned.keys().next().unwrap(), [7; 32]);
    assert_eq!(planned.len(), 1);
    let undone = |what: &str| {
        let began = Instant::now();
        assert_ne!(peers(&lab, "a"), planned, "{what}: nothing was changed");
        while peers(&lab, "a") != planned {
            assert!(began.elapsed() < DEADLINE, "{what}\n{}", lab.logs());
            thread::sleep(Duration::from_millis(50));
        }
        let undone = began.elapsed();
        let reached = lab.reach("a", B);
        eprintln!("{what}: undone after {undone:?}, {reached:?} more until the peer is reached");
    };
    as_another_program(&lab, "a", async move |wg| wg.del_peer_by_name("warren0", b).await);
    undone("a peer was removed");
    let net = |text: &str| AllowedIp { addr: text.parse().unwrap(), cidr: 24 };
    let nets = [net("10.99.0.0")];
    as_another_program(&lab, "a", async move |wg| {
        wg.set_peer_by_name("warren0", b, |peer| peer.replace_allowed_ips().allowed_ips(nets)).await
    });
    undone("a peer's allowed IPs were replaced");
    let nets = [net("10.244.2.0")];
    as_another_program(&lab, "a", async move |wg| {
        wg.set_peer_by_name("warren0", stranger, |peer| peer.allowed_ips(nets)).await
    });
    undone("a stranger took a prefix");
}

#[test]
fn a_deleted_interface_is_made_again_and_a_foreign_one_left_alone() {
    let Some(mut lab) = lab() else { return };
    let before = identity(&lab, "a");
    lab.spaces.ip("a", "link del warren0").unwrap();
    let reached = lab.reach("a", B);
    eprintln!("interface deleted, {reached:?} until the peer is reached again");
    lab.wait_direct("a");
    let after = identity(&lab, "a");
    assert_eq!((&after.1, &after.2), (&before.1, &before.2));

    for node in ["a", "b"] {
        lab.stop(node);
        let state = lab.dir.join(format!("{node}-state")).display().to_string();
        let cleanup = ["cleanup", "--state-dir", &state];
        if node == "b" {
            // Somebody else's by now.
            lab.spaces.ip(node, "link set warren0 group 0").unwrap();
        }
        let removed = lab.spaces.exec(node, AGENT, &cleanup).unwrap();
        assert_eq!(removed.contains("removed interface warren0"), node == "a", "{removed}");
        assert_eq!(lab.spaces.ip(node, "link show warren0").is_err(), node == "a");
    }
}
