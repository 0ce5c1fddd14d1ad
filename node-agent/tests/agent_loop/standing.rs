//! A device that went on without its agent.

use super::*;
use std::collections::BTreeMap;

/// A device that outlives agents, with a peer `b` on it as the first agent left it, and what the second is started with.
async fn left_behind(
    allowed_ips: &[&str],
    more: &[PublicKey],
) -> (FakeApi, SocketAddr, TempDir, Arc<Machine>, PublicKey) {
    let (api, address, dir) = cluster().await;
    operator::create_node(&api, "a", 1);
    let (b, entry) = peer("b", 2);
    let (machine, change) = Machine::new();
    machine.has_kernel.store(true, Ordering::Relaxed);
    machine.keeps.store(true, Ordering::Relaxed);
    let lab = Lab::start(&dir.0, &api, address, (machine.clone(), change)).await;
    lab.node_where(|n| n["status"]["backend"] == "Kernel").await;
    lab.stop().await;
    put_slice(&api, "peers-0", &[entry]);
    let nets = allowed_ips.iter().map(|net| net.parse().unwrap()).collect();
    let known = PeerUpdate {
        endpoint: Some("198.51.100.2:21820".parse().unwrap()),
        allowed_ips: Some(nets),
        keepalive: Some(Some(Duration::from_secs(25))),
        ..PeerUpdate::new(b)
    };
    let upsert = [known].into_iter().chain(more.iter().map(|key| PeerUpdate::new(*key))).collect();
    let device = machine.device();
    device.apply(&Delta { upsert, remove: Vec::new() }).await.unwrap();
    device.complete_handshake(&b);
    device.take_applied();
    (api, address, dir, machine, b)
}

/// A second agent on the same machine.
async fn restart(dir: &TempDir, api: &FakeApi, address: SocketAddr, machine: &Arc<Machine>) -> Lab {
    let (change, changed) = mpsc::channel(4);
    *machine.changed.lock().await = changed;
    Lab::start(&dir.0, api, address, (machine.clone(), change)).await
}

#[tokio::test]
async fn a_restart_beside_a_device_that_went_on_changes_nothing_on_it() {
    let (api, address, dir, machine, b) = left_behind(&["10.118.0.2/32", "10.244.2.0/24"], &[]).await;
    let device = machine.device();
    let before = device.peers().await.unwrap();
    let lab = restart(&dir, &api, address, &machine).await;
    lab.machine.plan_where(|p| p.last().is_some_and(|p| p.routes.len() == 2)).await;
    // The echo is not answered here, so the adopted session comes to an end as a path; its endpoint stays all the same.
    tokio::time::sleep(Duration::from_secs(4)).await;
    assert_eq!(device.take_applied(), []);
    assert_eq!(device.take_handshakes(), []);
    let after = device.peers().await.unwrap();
    assert_eq!((after[0].public_key, after[0].endpoint), (b, before[0].endpoint));
    lab.stop().await;
}

#[tokio::test]
async fn only_what_differs_from_the_plan_is_changed_on_a_device_that_went_on() {
    let stale = peer("stale", 9).0;
    let (api, address, dir, machine, b) = left_behind(&["10.118.0.2/32", "10.99.0.0/24"], &[stale]).await;
    let device = machine.device();
    let lab = restart(&dir, &api, address, &machine).await;
    let settled = async {
        loop {
            let peers = device.peers().await.unwrap();
            if peers.len() == 1 && peers[0].allowed_ips.len() == 2 {
                break;
            }
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(DEADLINE, settled).await.unwrap();
    lab.machine.plan_where(|p| p.last().is_some_and(|p| p.routes.len() == 2)).await;
    let allowed_ips = Some(["10.118.0.2/32", "10.244.2.0/24"].map(|net| net.parse().unwrap()).to_vec());
    let mut applied = device.take_applied();
    applied.retain(|delta| !delta.upsert.is_empty() || !delta.remove.is_empty());
    let (upserts, removes): (Vec<_>, Vec<_>) =
        (applied.iter().flat_map(|d| &d.upsert).collect(), applied.iter().flat_map(|d| &d.remove).collect());
    assert_eq!(upserts, [&PeerUpdate { allowed_ips, ..PeerUpdate::new(b) }]);
    assert_eq!(removes, [&stale]);
    lab.stop().await;
}

#[tokio::test]
async fn peers_that_only_the_device_remembers_stay_until_the_directory_was_read() {
    let (lost, revoked) = (peer("lost", 9).0, peer("revoked", 8).0);
    let (api, address, dir, machine, b) = left_behind(&["10.118.0.2/32"], &[lost, revoked]).await;
    // The cache has the settings and a tombstone, and no peers.
    let tombstone =
        json!({"name": "revoked", "uid": "node-revoked", "publicKey": revoked.to_string(), "generation": 1});
    let removed = json!({"metadata": {"name": "removed"}, "spec": {"count": 1, "tombstones": [tombstone]}});
    put_slice(&api, "peers-0", &[]);
    api.put("meshpeerslices", removed);
    let lab = restart(&dir, &api, address, &machine).await;
    let device = machine.device();
    let keys = async || {
        let mut keys: Vec<_> = device.peers().await.unwrap().into_iter().map(|p| p.public_key).collect();
        keys.sort();
        keys
    };
    let expect = async |mut wanted: Vec<PublicKey>| {
        wanted.sort();
        let seen = async {
            while keys().await != wanted {
                tokio::task::yield_now().await;
            }
        };
        tokio::time::timeout(DEADLINE, seen).await.unwrap_or_else(|_| panic!("peers differ from {wanted:?}"));
    };
    expect(vec![b, lost]).await;
    lab.change.send(Changed::ALL).await.unwrap();
    lab.ask(Question::Status).await;
    expect(vec![b, lost]).await;
    // A directory with anybody in it is one.
    put_slice(&api, "peers-0", &[peer("b", 2).1]);
    expect(vec![b]).await;
    lab.stop().await;
}

#[tokio::test]
async fn routes_to_peers_that_only_the_device_remembers_stay_until_the_directory_was_read() {
    let (api, address, dir, machine, b) = left_behind(&["10.118.0.2/32", "10.244.2.0/24"], &[]).await;
    let before = machine.plans.borrow().len();
    // The disk has the settings, and no peers.
    api.set_up(false);
    let lab = restart(&dir, &api, address, &machine).await;
    lab.status_with(r#""backend":"kernel""#).await;
    api.set_up(true);
    lab.machine.plan_where(|p| p[before..].last().is_some_and(|p| p.routes.len() == 2)).await;
    let routes: Vec<usize> = machine.plans.borrow()[before..].iter().map(|plan| plan.routes.len()).collect();
    assert!(routes.iter().all(|routes| *routes == 2), "the routes of the agent before were taken away: {routes:?}");
    assert_eq!(machine.device().peers().await.unwrap()[0].public_key, b);
    lab.stop().await;
}

#[tokio::test]
async fn a_kernel_that_is_demanded_and_missing_is_a_condition_and_no_other_device_is_used() {
    let (api, address, dir) = cluster().await;
    operator::create_node(&api, "a", 1);
    let mut node = api.get("meshnodes", "a").unwrap();
    node["spec"]["backend"] = json!("Kernel");
    api.put("meshnodes", node.clone());
    let lab = Lab::start(&dir.0, &api, address, Machine::new()).await;
    let told = lab.node_where(|n| operator::condition(n, "NoKernelWireGuard").is_some()).await;
    assert_eq!(operator::condition(&told, "Ready").unwrap(), ("False".into(), "NoKernelWireGuard".into()));
    let all = told["status"]["conditions"].as_array().unwrap();
    let message = all.iter().find(|c| c["type"] == "NoKernelWireGuard").unwrap()["message"].as_str().unwrap();
    assert!(message.contains("modprobe wireguard"), "{message}");
    assert_eq!(told["status"]["backend"], Value::Null);
    assert!(lab.machine.devices.lock().unwrap().is_empty());
    // The same demand of the whole mesh, and this node excepted.
    let mut mesh = api.get("meshes", "default").unwrap();
    mesh["spec"] = json!({"backend": "Kernel"});
    api.put("meshes", mesh);
    node["spec"]["backend"] = json!("Userspace");
    api.put("meshnodes", node);
    let told = lab.node_where(|n| n["status"]["backend"] == "Userspace").await;
    assert_eq!(operator::condition(&told, "NoKernelWireGuard"), None);
    assert!(lab.ask(Question::Metrics).await.body.contains("backend=\"userspace\""));
    lab.stop().await;
}

#[tokio::test]
async fn a_device_changes_only_when_another_backend_is_wanted_than_it_is() {
    let (api, address, dir) = cluster().await;
    operator::create_node(&api, "a", 1);
    let machine = Machine::new();
    machine.0.has_kernel.store(true, Ordering::Relaxed);
    let lab = Lab::start(&dir.0, &api, address, machine).await;
    lab.node_where(|n| n["status"]["backend"] == "Kernel").await;
    for (wanted, backend, devices) in [("Kernel", "Kernel", 1), ("Userspace", "Userspace", 2), ("Auto", "Kernel", 3)] {
        let mut mesh = api.get("meshes", "default").unwrap();
        mesh["spec"] = json!({"backend": wanted, "mtu": 1300 + devices});
        api.put("meshes", mesh);
        lab.machine.plan_where(|p| p.last().is_some_and(|p| usize::from(p.mtu) == 1300 + devices)).await;
        let node = lab.node_where(|n| n["status"]["backend"] == backend).await;
        assert_eq!(node["status"]["listenPort"], 21821);
        assert_eq!(lab.machine.devices.lock().unwrap().len(), devices, "{wanted}");
    }
    lab.stop().await;
}

#[tokio::test]
async fn a_lost_device_is_opened_again_at_once() {
    let (api, address, dir) = cluster().await;
    operator::create_node(&api, "a", 1);
    put_slice(&api, "peers-0", &[peer("b", 2).1]);
    let lab = Lab::start(&dir.0, &api, address, Machine::new()).await;
    lab.machine.plan_where(|p| p.last().is_some_and(|p| p.routes.len() == 2)).await;
    let device = lab.machine.device();
    let began = std::time::Instant::now();
    device.set_broken(true);
    let replaced = async {
        while lab.machine.devices.lock().unwrap().len() < 2 {
            lab.ask(Question::Paths(None)).await;
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(DEADLINE, replaced).await.unwrap();
    // The counters are read every second, and nothing else is tried on a device in memory; then there is no pause.
    assert!(began.elapsed() < Duration::from_millis(1400), "{:?}", began.elapsed());
    lab.stop().await;
}

#[tokio::test]
async fn a_peer_without_an_endpoint_stays_a_peer_of_the_kernels() {
    for has_kernel in [true, false] {
        let (api, address, dir) = cluster().await;
        operator::create_node(&api, "a", 1);
        let (b, entry) = peer("b", 2);
        put_slice(&api, "peers-0", &[entry]);
        let machine = Machine::new();
        machine.0.has_kernel.store(has_kernel, Ordering::Relaxed);
        let lab = Lab::start(&dir.0, &api, address, machine).await;
        lab.machine.plan_where(|p| p.last().is_some_and(|p| p.routes.len() == 2)).await;
        let device = lab.machine.device();
        let whole = device.peers().await.unwrap()[0].allowed_ips.clone();
        device.take_applied();
        // WireGuard followed a packet into the mesh itself, which must not stay so.
        device.roam(&b, "10.244.2.7:21820".parse().unwrap());
        let applied = async {
            loop {
                let mut applied = device.take_applied();
                if let Some(delta) = applied.pop() {
                    break delta;
                }
                lab.ask(Question::Paths(None)).await;
            }
        };
        let delta = tokio::time::timeout(DEADLINE, applied).await.unwrap();
        let nowhere = "127.0.0.1:9".parse().unwrap();
        let now = device.peers().await.unwrap().remove(0);
        assert_eq!(now.allowed_ips, whole);
        if has_kernel {
            let parked = PeerUpdate { endpoint: Some(nowhere), keepalive: Some(None), ..PeerUpdate::new(b) };
            assert_eq!(delta, Delta { upsert: vec![parked], remove: Vec::new() });
            let paths: Value = serde_json::from_str(&lab.ask(Question::Paths(None)).await.body).unwrap();
            assert_eq!(paths["peers"][0]["endpoint"], Value::Null, "that is no endpoint to show");
            // And the engine takes it for none: nothing is put back again, however long it stays.
            tokio::time::sleep(Duration::from_secs(6)).await;
            assert_eq!(device.take_applied(), []);
        } else {
            assert_eq!((delta.remove, now.endpoint), (vec![b], None));
        }
        lab.stop().await;
    }
}

#[tokio::test]
async fn a_port_that_was_fallen_back_to_stays_until_another_is_assigned() {
    let (api, address, dir) = cluster().await;
    operator::create_node(&api, "a", 1);
    let (machine, change) = Machine::with(vec![21821]);
    machine.has_kernel.store(true, Ordering::Relaxed);
    machine.keeps.store(true, Ordering::Relaxed);
    let lab = Lab::start(&dir.0, &api, address, (machine.clone(), change)).await;
    lab.node_where(|n| n["status"]["listenPort"] == 21822).await;
    lab.stop().await;
    // Whoever had the assigned port has left it, and peers and NATs know the other.
    machine.taken_ports.lock().unwrap().clear();
    let plans = machine.plans.borrow().len();
    let lab = restart(&dir, &api, address, &machine).await;
    let plan = lab.machine.plan_where(|p| p.len() > plans).await;
    assert_eq!(plan.listen_port, 21822);
    // Another assignment is obeyed, although the old port is one that it could fall back to.
    let mut node = api.get("meshnodes", "a").unwrap();
    node["spec"]["listenPort"] = json!(21820);
    api.put("meshnodes", node);
    lab.node_where(|n| n["status"]["listenPort"] == 21820).await;
    lab.stop().await;
}

#[tokio::test]
async fn a_peer_that_others_removed_comes_back_where_it_was() {
    let (api, address, dir, machine, b) = left_behind(&["10.118.0.2/32", "10.244.2.0/24"], &[]).await;
    let device = machine.device();
    let before = device.peers().await.unwrap();
    let lab = restart(&dir, &api, address, &machine).await;
    lab.machine.plan_where(|p| p.last().is_some_and(|p| p.routes.len() == 2)).await;
    device.apply(&Delta { upsert: Vec::new(), remove: vec![b] }).await.unwrap();
    let back = async {
        while device.peers().await.unwrap().is_empty() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(DEADLINE, back).await.unwrap();
    let after = device.peers().await.unwrap().remove(0);
    assert_eq!((after.endpoint, after.keepalive), (before[0].endpoint, before[0].keepalive));
    assert_eq!(after.allowed_ips, before[0].allowed_ips);
    lab.stop().await;
}

/// While nobody looked, each of many peers got the pods of the next: more than one call to the device takes, so that those
/// who exchange prefixes are told in different ones.
#[tokio::test]
async fn prefixes_that_changed_hands_among_many_peers_are_never_nobodys() {
    let (api, address, dir, machine, b) = left_behind(&["10.118.0.2/32", "10.244.2.0/24"], &[]).await;
    let numbers: Vec<u8> = (2..200).collect();
    let put = |shift: usize| {
        let moved = |(place, n): (usize, &u8)| {
            let mut entry = if *n == 2 { peer("b", 2).1 } else { peer(&format!("p{n:03}"), *n).1 };
            entry["podCIDRs"] = json!([format!("10.244.{}.0/24", numbers[(place + shift) % numbers.len()])]);
            entry["generation"] = json!(shift + 2);
            entry
        };
        let entries: Vec<Value> = numbers.iter().enumerate().map(moved).collect();
        for (number, entries) in entries.chunks(64).enumerate() {
            put_slice(&api, &format!("peers-{number}"), entries);
        }
    };
    let device = machine.device();
    let nets = async |device: &Fake| {
        let peers = device.peers().await.unwrap();
        let of = |p: PeerStatus| p.allowed_ips.into_iter().map(move |net| (net, p.public_key));
        peers.into_iter().flat_map(of).collect::<BTreeMap<IpNet, PublicKey>>()
    };
    let settled = async |owner: PublicKey, net: &str| {
        let net: IpNet = net.parse().unwrap();
        let settled = async {
            while nets(&device).await.get(&net) != Some(&owner) {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        tokio::time::timeout(DEADLINE, settled).await.unwrap();
    };
    put(0);
    let lab = restart(&dir, &api, address, &machine).await;
    let last = peer("last", 199).0;
    settled(last, "10.244.199.0/24").await;
    lab.stop().await;
    let before = nets(&device).await;
    assert_eq!(before.len(), 2 * numbers.len());
    let copy = Fake::of(
        wgdev::Backend::Kernel,
        DeviceConfig {
            name: "warren0".into(),
            private_key: PrivateKey::from_bytes([250; 32]),
            listen_port: 21820,
            fwmark: 0,
            mtu: 1420,
        },
    );
    let all = device.peers().await.unwrap().into_iter();
    let upsert =
        all.map(|p| PeerUpdate { allowed_ips: Some(p.allowed_ips), ..PeerUpdate::new(p.public_key) }).collect();
    copy.apply(&Delta { upsert, remove: Vec::new() }).await.unwrap();
    device.take_applied();

    put(1);
    let lab = restart(&dir, &api, address, &machine).await;
    for (owner, net) in [(b, "10.244.3.0/24"), (last, "10.244.2.0/24")] {
        settled(owner, net).await;
    }
    lab.stop().await;
    let (after, applied) = (nets(&device).await, device.take_applied());
    let configures = |delta: &&Delta| delta.upsert.iter().any(|update| update.allowed_ips.is_some());
    assert!(applied.iter().filter(configures).count() > 3, "more than one call");
    for delta in &applied {
        copy.apply(delta).await.unwrap();
        let now = nets(&copy).await;
        for (net, was) in &before {
            assert!([Some(was), after.get(net)].contains(&now.get(net)), "{net} is {:?}'s", now.get(net));
        }
    }
    assert_eq!(nets(&copy).await, after);
}
