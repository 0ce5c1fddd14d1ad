//! What goes wrong on a node: ports, devices, echo sockets, the host network, files and keys that go.

use super::*;

#[tokio::test]
async fn what_nothing_can_be_done_about_does_not_spin() {
    /// Long enough for thousands of turns of a loop that spins.
    const WHILE: Duration = Duration::from_millis(800);
    let (api, address, dir) = cluster().await;
    let lab = Lab::start(&dir.0, &api, address, Machine::new()).await;
    for state in ["no MeshNode", "no device", "neither any more"] {
        match state {
            "no device" => {
                lab.machine.no_device.store(true, Ordering::Relaxed);
                operator::create_node(&api, "a", 1);
                lab.status_with("DeviceFailed").await;
            }
            "neither any more" => {
                // The next attempt to open the device falls into a time without anything to open it for.
                let mut node = api.get("meshnodes", "a").unwrap();
                node["spec"]["meshIPs"] = json!([]);
                api.put("meshnodes", node);
                lab.status_with("\"meshIps\":[]").await;
            }
            _ => {}
        }
        let before = lab.reconciles().await;
        lab.change.send(Changed::ALL).await.unwrap();
        tokio::time::sleep(WHILE).await;
        let turns = lab.reconciles().await - before;
        assert!(turns <= 6, "{state}: {turns} turns");
    }
    // And what happened meanwhile is made up for.
    lab.machine.no_device.store(false, Ordering::Relaxed);
    operator::create_node(&api, "a", 1);
    lab.machine.plan_where(|p| !p.is_empty()).await;
    lab.stop().await;
}

#[tokio::test]
async fn a_wider_range_of_ports_keeps_the_device() {
    let (api, address, dir) = cluster().await;
    operator::create_node(&api, "a", 1);
    let lab = Lab::start(&dir.0, &api, address, Machine::new()).await;
    lab.machine.plan_where(|p| !p.is_empty()).await;
    let mut mesh = api.get("meshes", "default").unwrap();
    mesh["spec"] = json!({"listenPorts": {"first": 21820, "last": 29999}, "mtu": 1400});
    api.put("meshes", mesh);
    lab.machine.plan_where(|p| p.last().is_some_and(|p| p.mtu == 1400)).await;
    assert_eq!(lab.machine.devices.lock().unwrap().len(), 1);
    lab.stop().await;
}

#[tokio::test]
async fn a_device_that_is_opened_again_withdraws_nothing_that_was_published() {
    let (api, address, dir) = cluster().await;
    operator::create_node(&api, "a", 1);
    put_slice(&api, "peers-0", &[peer("b", 2).1]);
    let lab = Lab::start(&dir.0, &api, address, Machine::new()).await;
    lab.node_where(|n| n["status"]["candidates"].as_array().is_some_and(|c| !c.is_empty())).await;
    operator::admit(&api, "a");
    lab.node_where(|n| operator::condition(n, "Ready").is_some_and(|c| c.1 == "NotInDirectory")).await;
    let before = api.patches().len();

    // Another mark needs another device; then the device is lost, and for longer than the wait for candidates.
    let mut mesh = api.get("meshes", "default").unwrap();
    mesh["spec"] = json!({"fwmark": {"value": 32, "mask": 32}});
    api.put("meshes", mesh);
    lab.machine.plan_where(|p| p.last().is_some_and(|p| p.mark.value == 32)).await;
    lab.machine.no_device.store(true, Ordering::Relaxed);
    lab.machine.device().set_broken(true);
    lab.node_where(|n| operator::condition(n, "Ready").is_some_and(|c| c.1 == "DeviceFailed")).await;
    lab.machine.no_device.store(false, Ordering::Relaxed);
    lab.node_where(|n| operator::condition(n, "Ready").is_some_and(|c| c.1 == "NotInDirectory")).await;
    for status in &api.patches()[before..] {
        assert_eq!(status["candidates"], json!([{"address": "192.0.2.10:21821", "kind": "Host"}]), "{status:#}");
        assert_eq!(status["listenPort"], 21821, "{status:#}");
    }
    lab.stop().await;

    // A restart with the old cache and a network that shows nothing yet.
    let machine = Machine::new();
    *machine.0.survey.lock().unwrap() = Survey::default();
    let lab = Lab::start(&dir.0, &api, address, machine).await;
    let round = api.get("meshnodes", "a").unwrap()["status"]["round"].as_u64();
    let node = lab.node_where(|n| n["status"]["round"].as_u64() > round).await;
    assert_eq!(node["status"]["candidates"][0]["address"], "192.0.2.10:21821");
    lab.stop().await;
}

#[tokio::test]
async fn a_peer_that_the_device_refuses_costs_nobody_the_device() {
    let (api, address, dir) = cluster().await;
    operator::create_node(&api, "a", 1);
    put_slice(&api, "peers-0", &[peer("b", 2).1]);
    let machine = Machine::new();
    machine.0.picky.store(true, Ordering::Relaxed);
    let lab = Lab::start(&dir.0, &api, address, machine).await;
    let node = lab.node_where(|n| n["status"]["publicKey"].is_string()).await;
    let own: PublicKey = node["status"]["publicKey"].as_str().unwrap().parse().unwrap();
    let mesh = api.get("meshes", "default").unwrap()["metadata"]["uid"].as_str().unwrap().to_owned();
    let keys = PairKeys::derive(&PrivateKey::from_bytes([2; 32]), &own, &mesh, None).unwrap();

    // The peer answers a probe and, if it is the one who does that, nominates: the engine sets an endpoint.
    let remote = "198.51.100.2:21820".parse().unwrap();
    let device = lab.machine.device();
    let deliver =
        |tx, said: &Probe| device.deliver(Datagram { remote, local: None, payload: probe::seal(&keys, tx, said) });
    let answered = async {
        while !device.take_applied().iter().flat_map(|delta| &delta.upsert).any(|update| update.endpoint.is_some()) {
            for sent in device.take_sent() {
                if let Ok((tx, Probe::Ping)) = probe::open(&keys, &sent.payload) {
                    deliver(tx, &Probe::Pong { observed: "192.0.2.10:21821".parse().unwrap() });
                    deliver(wire::stun::TransactionId([7; 12]), &Probe::Nominate { epoch: 1 });
                }
            }
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(DEADLINE, answered).await.unwrap();
    assert!(lab.ask(Question::Status).await.body.contains("\"device\":\"warren0\""));
    assert_eq!(lab.machine.devices.lock().unwrap().len(), 1);
    lab.stop().await;
}

#[tokio::test]
async fn echo_sockets_that_fail_are_tried_again_and_named() {
    let (api, address, dir) = cluster().await;
    operator::create_node(&api, "a", 1);
    let machine = Machine::new();
    machine.0.echo_failures.store(2, Ordering::Relaxed);
    let lab = Lab::start(&dir.0, &api, address, machine).await;
    lab.status_with("open the echo sockets").await;
    lab.machine.plan_where(|p| !p.is_empty()).await;
    assert_eq!(lab.machine.devices.lock().unwrap().len(), 3);
    lab.stop().await;
}

#[tokio::test]
async fn an_agent_that_waits_for_its_key_is_alive_and_not_ready() {
    let (api, address, dir) = cluster().await;
    fs::write(dir.0.join("private.key"), "half a k").unwrap();
    api.set_up(false);
    let lab = Lab::start(&dir.0, &api, address, Machine::new()).await;
    let ask = |question| tokio::time::timeout(DEADLINE, lab.ask(question));
    assert_eq!(ask(Question::Live).await.unwrap().status, 200);
    let ready = ask(Question::Ready).await.unwrap();
    assert_eq!(ready.status, 503);
    assert!(ready.body.contains("KeyMissing"), "{}", ready.body);
    api.set_up(true);
    operator::create_node(&api, "a", 1);
    lab.node_where(|n| n["status"]["publicKey"].is_string()).await;
    lab.stop().await;
}

#[tokio::test]
async fn a_host_network_that_refuses_is_a_condition_and_not_ready() {
    let (api, address, dir) = cluster().await;
    operator::create_node(&api, "a", 1);
    let machine = Machine::new();
    *machine.0.broken.lock().unwrap() = Some("no CAP_NET_ADMIN".into());
    let lab = Lab::start_with(&dir.0, &api, address, machine, CniMode::Managed).await;
    let node = lab.node_where(|n| operator::condition(n, "RoutesProgrammed").is_some_and(|c| c.0 == "False")).await;
    assert_eq!(operator::condition(&node, "Ready").unwrap().1, "RoutesFailed");
    assert_eq!(operator::condition(&node, "CNIReady").unwrap().1, "Waiting");
    assert_eq!(lab.ask(Question::Ready).await.status, 503);
    lab.stop().await;
}

#[tokio::test]
async fn somebody_who_undoes_our_work_again_and_again_is_a_condition() {
    let (api, address, dir) = cluster().await;
    operator::create_node(&api, "a", 1);
    let lab = Lab::start(&dir.0, &api, address, Machine::new()).await;
    lab.machine.plan_where(|p| !p.is_empty()).await;
    for n in 2..=6 {
        assert!(!lab.ask(Question::Status).await.body.contains("RulesContended"));
        lab.change.send(Changed { rules: true, ..Changed::default() }).await.unwrap();
        lab.machine.plan_where(|plans| plans.len() >= n).await;
    }
    lab.status_with("RulesContended").await;
    lab.node_where(|n| operator::condition(n, "RulesContended").is_some()).await;
    assert!(lab.ask(Question::Metrics).await.body.contains("warren_rules_contended 1"));
    lab.stop().await;
}

#[tokio::test]
async fn a_cni_file_that_somebody_deletes_is_put_back() {
    let (api, address, dir) = cluster().await;
    operator::create_node(&api, "a", 1);
    let lab = Lab::start_with(&dir.0, &api, address, Machine::new(), CniMode::Managed).await;
    lab.status_with("\"Published\"").await;
    let before = lab.machine.plans.borrow().len();
    lab.machine.cni_gone.store(true, Ordering::Relaxed);
    lab.machine.plan_where(|plans| plans.len() > before).await;
    assert!(!lab.machine.cni_gone.load(Ordering::Relaxed));
    lab.stop().await;
}

#[tokio::test]
async fn remembered_pod_ranges_are_marked_as_such_until_the_api_names_them() {
    let (api, address, dir) = cluster().await;
    operator::create_node(&api, "a", 1);
    let lab = Lab::start_with(&dir.0, &api, address, Machine::new(), CniMode::Managed).await;
    lab.node_where(|n| n["status"]["publicKey"].is_string()).await;
    operator::admit(&api, "a");
    operator::publish(&api, "peers-a", &["a"], 1);
    lab.node_where(ready).await;
    lab.stop().await;

    api.set_up(false);
    let lab = Lab::start_with(&dir.0, &api, address, Machine::new(), CniMode::Managed).await;
    lab.machine.plan_where(|plans| !plans.is_empty()).await;
    let mut cni = lab.machine.cni.subscribe();
    assert!(!cni.borrow().as_ref().unwrap().confirmed);
    // The same object as before: nothing is news but that it is there.
    api.set_up(true);
    let confirmed = cni.wait_for(|cni| cni.as_ref().is_some_and(|cni| cni.confirmed));
    tokio::time::timeout(DEADLINE, confirmed).await.unwrap().unwrap();
    lab.stop().await;
}

#[tokio::test]
async fn a_node_deleted_and_made_again_under_its_name_gets_its_status_back() {
    let (api, address, dir) = cluster().await;
    operator::create_node(&api, "a", 1);
    let lab = Lab::start(&dir.0, &api, address, Machine::new()).await;
    let first = lab.node_where(|n| n["status"]["publicKey"].is_string()).await;
    api.delete("meshnodes", "a");
    operator::create_node(&api, "a", 9);
    let again = lab.node_where(|n| n["status"]["publicKey"].is_string()).await;
    assert_ne!(first["metadata"]["uid"], again["metadata"]["uid"]);
    assert_eq!(
        lab.machine
            .plan_where(|p| p.last().is_some_and(|p| p.addresses == ["10.118.0.9".parse::<IpAddr>().unwrap()]))
            .await
            .listen_port,
        21829
    );
    lab.stop().await;
}

#[tokio::test]
async fn a_key_file_deleted_while_running_is_a_new_key_on_the_same_device() {
    let (api, address, dir) = cluster().await;
    operator::create_node(&api, "a", 1);
    put_slice(&api, "peers-0", &[peer("b", 2).1]);
    let lab = Lab::start(&dir.0, &api, address, Machine::new()).await;
    let first = lab.node_where(|n| n["status"]["publicKey"].is_string()).await["status"]["publicKey"].clone();
    lab.machine.plan_where(|p| p.last().is_some_and(|p| p.routes.len() == 2)).await;
    fs::remove_file(dir.0.join("private.key")).unwrap();
    lab.node_where(|n| n["status"]["publicKey"] != first).await;
    assert_eq!(lab.machine.devices.lock().unwrap().len(), 2);
    let peers = lab.machine.device().peers().await.unwrap();
    assert_eq!(peers.len(), 1, "the peers are those of before, though nothing was told again");
    lab.stop().await;
}

#[tokio::test]
async fn metrics_and_paths_name_the_peers() {
    let (api, address, dir) = cluster().await;
    operator::create_node(&api, "a", 1);
    put_slice(&api, "peers-0", &[peer("b", 2).1]);
    let lab = Lab::start(&dir.0, &api, address, Machine::new()).await;
    lab.machine.plan_where(|p| p.last().is_some_and(|p| p.routes.len() == 2)).await;
    let paths: Value = serde_json::from_str(&lab.ask(Question::Paths(None)).await.body).unwrap();
    assert_eq!(paths["peers"][0]["name"], "b");
    assert_ne!(paths["peers"][0]["state"], "direct");
    assert_ne!(paths["peers"][0]["reason"], "");
    assert_eq!(lab.ask(Question::Paths(Some("nobody".into()))).await.status, 404);
    let datagram = Datagram { remote: "192.0.2.1:1".parse().unwrap(), local: None, payload: vec![0] };
    while lab.machine.device().deliver(datagram.clone()) {}
    let metrics = lab.ask(Question::Metrics).await.body;
    for line in [
        "warren_peers{state=\"direct\"} 0",
        "warren_peer_path{path=",
        "# TYPE warren_route_repairs_total counter",
        "warren_device_dropped_total{reason=\"queue_full\"} 1",
        "warren_rules_contended 0",
    ] {
        assert!(metrics.contains(line), "{line} is missing in {metrics}");
    }
    lab.stop().await;
}
