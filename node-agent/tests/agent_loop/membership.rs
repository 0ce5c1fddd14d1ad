//! What an agent is told and what it tells: joining, peers that come and go, restarts from disk.

use super::*;

#[tokio::test]
async fn a_new_node_publishes_key_proof_and_candidates_and_becomes_ready_alone() {
    let (api, address, dir) = cluster().await;
    let operators = PrivateKey::from_bytes([3; 32]);
    let mut mesh = api.get("meshes", "default").unwrap();
    mesh["status"] = json!({"proofKey": operators.public_key().to_string(), "challenge": "c1"});
    api.put("meshes", mesh);
    let lab = Lab::start(&dir.0, &api, address, Machine::new()).await;
    assert_eq!(lab.ask(Question::Ready).await.status, 503);
    operator::create_node(&api, "a", 1);

    let node = lab.node_where(|n| n["status"]["publicKey"].is_string()).await;
    let key: PublicKey = node["status"]["publicKey"].as_str().unwrap().parse().unwrap();
    let proof = node["status"]["keyProof"].as_str().unwrap().parse().unwrap();
    let shared = operators.diffie_hellman(&key).unwrap();
    assert!(wire::proof::verify_key_proof(&shared, b"c1", "node-a", &key, &proof));

    let node =
        lab.node_where(|n| n["status"]["candidates"] == json!([{"address": "192.0.2.10:21821", "kind": "Host"}])).await;
    assert_eq!(node["status"]["listenPort"], 21821);
    assert_eq!(node["status"]["round"], 1);
    assert!(operator::admit(&api, "a"));
    let node =
        lab.node_where(|n| operator::condition(n, "Ready").is_some_and(|(_, why)| why == "NotInDirectory")).await;
    assert!(!ready(&node), "no peer knows it yet");
    operator::publish(&api, "peers-a", &["a"], 1);
    lab.node_where(ready).await;
    assert_eq!(lab.ask(Question::Ready).await.status, 200);
    let plan = lab.machine.plan_where(|p| !p.is_empty()).await;
    assert_eq!(plan.addresses, ["10.118.0.1".parse::<IpAddr>().unwrap()]);
    assert_eq!((plan.mtu, plan.listen_port), (1420, 21821));
    lab.stop().await;
}

#[tokio::test]
async fn a_node_that_is_not_admitted_has_a_connection_ready_when_its_candidates_are_known() {
    let (api, address, dir) = cluster().await;
    operator::create_mesh(&api, json!({"stun": {"servers": ["198.51.100.1:3478"]}}));
    operator::create_node(&api, "a", 1);
    let lab = Lab::start(&dir.0, &api, address, Machine::new()).await;
    lab.node_where(|n| n["status"]["publicKey"].is_string()).await;
    assert_eq!(api.versions(), 1);
    assert!(operator::admit(&api, "a"));
    operator::publish(&api, "peers-a", &["a"], 1);
    lab.node_where(ready).await;
    lab.stop().await;
    let lab = Lab::start(&dir.0, &api, address, Machine::new()).await;
    lab.machine.plan_where(|p| !p.is_empty()).await;
    lab.ask(Question::Status).await;
    assert_eq!(api.versions(), 1, "one that is admitted has nothing to write");
    lab.stop().await;
}

#[tokio::test]
async fn a_settled_node_writes_nothing() {
    let (api, address, dir) = cluster().await;
    operator::create_node(&api, "a", 1);
    let lab = Lab::start(&dir.0, &api, address, Machine::new()).await;
    lab.node_where(|n| n["status"]["candidates"].as_array().is_some_and(|c| !c.is_empty())).await;
    operator::admit(&api, "a");
    operator::publish(&api, "peers-a", &["a"], 1);
    lab.node_where(ready).await;
    let written = api.patches().len();
    assert!(written <= 3, "{written} writes for one start");
    // Whatever does not change the node: the same objects once more, and the same machine.
    for _ in 0..5 {
        api.put("meshes", api.get("meshes", "default").unwrap());
        api.put("meshnodes", api.get("meshnodes", "a").unwrap());
        lab.change.send(Changed::ALL).await.unwrap();
        lab.ask(Question::Status).await;
    }
    assert_eq!(api.patches().len(), written);
    lab.stop().await;
}

#[tokio::test]
async fn peers_are_configured_from_slices_and_removed_by_tombstones_only() {
    let (api, address, dir) = cluster().await;
    operator::create_node(&api, "a", 1);
    let (b, entry_b) = peer("b", 2);
    let (c, entry_c) = peer("c", 3);
    let (d, entry_d) = peer("d", 4);
    put_slice(&api, "peers-0", &[entry_b.clone(), entry_c.clone(), entry_d.clone()]);
    let lab = Lab::start(&dir.0, &api, address, Machine::new()).await;
    let net = |text: &str| text.parse::<IpNet>().unwrap();
    let plan = lab.machine.plan_where(|p| p.last().is_some_and(|p| p.routes.len() == 6)).await;
    assert!(plan.claims.contains(&net("10.118.0.0/16")));
    let device = lab.machine.device();
    let keys = |peers: Vec<wgdev::PeerStatus>| peers.into_iter().map(|p| p.public_key).collect::<Vec<_>>();
    let mut all = [b, c, d];
    all.sort();
    assert_eq!(keys(device.peers().await.unwrap()), all);
    let of_b = device.peers().await.unwrap().into_iter().find(|p| p.public_key == b).unwrap();
    assert_eq!(of_b.allowed_ips, [net("10.118.0.2/32"), net("10.244.2.0/24")]);

    // A list that has become empty, by whatever accident.
    put_slice(&api, "peers-0", &[]);
    let status = loop {
        let status = lab.ask(Question::Status).await;
        if status.body.contains("MassRemovalGuard") {
            break status;
        }
        tokio::task::yield_now().await;
    };
    assert!(status.body.contains("Holding"));
    assert_eq!(keys(device.peers().await.unwrap()), all);

    // What the operator says it removed goes at once.
    put_slice(&api, "peers-0", &[entry_c, entry_d]);
    let tombstone = json!({"name": "b", "uid": "node-b", "publicKey": b.to_string(), "generation": 1});
    api.put(
        "meshpeerslices",
        json!({"metadata": {"name": "removed"}, "spec": {"count": 1, "tombstones": [tombstone]}}),
    );
    lab.machine.plan_where(|p| p.last().is_some_and(|p| p.routes.len() == 4)).await;
    assert!(!keys(device.peers().await.unwrap()).contains(&b));
    lab.stop().await;
}

#[tokio::test]
async fn what_cannot_be_read_stays_as_it_was() {
    let (api, address, dir) = cluster().await;
    operator::create_node(&api, "a", 1);
    let entries = [("b", 2), ("c", 3), ("d", 4)].map(|(name, number)| peer(name, number).1);
    put_slice(&api, "peers-0", &entries);
    let lab = Lab::start(&dir.0, &api, address, Machine::new()).await;
    let routes = |n: usize| move |plans: &Vec<NetPlan>| plans.last().is_some_and(|p| p.routes.len() == n);
    lab.machine.plan_where(routes(6)).await;

    // Told anew: a kind of candidate that this version doesn't know, a key and a prefix that are none, and a new peer.
    let [mut b, mut c, mut d] = entries;
    b["candidates"][0]["kind"] = json!("Teleported");
    b["candidates"].as_array_mut().unwrap().push(json!({"address": "198.51.100.99:1", "kind": "Host"}));
    c["publicKey"] = json!("no key");
    d["podCIDRs"] = json!(["10.244.4.0/24", "no prefix"]);
    for bad in [&mut b, &mut c, &mut d] {
        bad["generation"] = json!(2);
    }
    put_slice(&api, "peers-0", &[b, c, d, peer("e", 5).1]);
    lab.machine.plan_where(routes(8)).await;
    assert!(!lab.ask(Question::Status).await.body.contains("MassRemovalGuard"));

    // The same from a list, and then with a slice of which nothing can be read.
    lab.stop().await;
    put_slice(&api, "peers-1", &[peer("f", 6).1]);
    for (garbage, more) in [(false, 0), (true, 2)] {
        if garbage {
            api.put("meshpeerslices", json!({"metadata": {"name": "peers-0"}, "spec": 7}));
            put_slice(&api, "peers-2", &[peer("g", 7).1]);
        }
        let lab = Lab::start(&dir.0, &api, address, Machine::new()).await;
        lab.machine.plan_where(routes(10 + more)).await;
        assert!(!lab.ask(Question::Status).await.body.contains("MassRemovalGuard"));
        lab.stop().await;
    }
}

#[tokio::test]
async fn after_a_restart_everything_stands_before_the_api_answers() {
    let (api, address, dir) = cluster().await;
    operator::create_node(&api, "a", 1);
    let (b, entry_b) = peer("b", 2);
    put_slice(&api, "peers-0", &[entry_b]);
    let lab = Lab::start(&dir.0, &api, address, Machine::new()).await;
    lab.node_where(|n| n["status"]["publicKey"].is_string()).await;
    operator::admit(&api, "a");
    operator::publish(&api, "peers-a", &["a"], 1);
    lab.node_where(ready).await;
    lab.machine.plan_where(|p| p.last().is_some_and(|p| p.routes.len() == 2)).await;
    let round = api.get("meshnodes", "a").unwrap()["status"]["round"].as_u64().unwrap();
    lab.stop().await;

    api.set_up(false);
    let lab = Lab::start(&dir.0, &api, address, Machine::new()).await;
    lab.machine.plan_where(|p| p.last().is_some_and(|p| p.routes.len() == 2)).await;
    assert_eq!(lab.machine.device().peers().await.unwrap()[0].public_key, b);
    assert_eq!(lab.ask(Question::Ready).await.status, 200, "a programmed node is ready while the API is away");
    api.set_up(true);
    lab.node_where(|n| n["status"]["round"].as_u64() == Some(round + 1)).await;
    lab.stop().await;
}

#[tokio::test]
async fn a_taken_port_gives_way_to_the_next_which_is_published() {
    let (api, address, dir) = cluster().await;
    operator::create_node(&api, "a", 1);
    let lab = Lab::start(&dir.0, &api, address, Machine::with(vec![21821, 21822])).await;
    let node = lab.node_where(|n| n["status"]["listenPort"].is_number()).await;
    assert_eq!(node["status"]["listenPort"], 21823);
    assert_eq!(lab.machine.plan_where(|p| !p.is_empty()).await.listen_port, 21823);
    lab.stop().await;
}

#[tokio::test]
async fn a_change_of_address_is_a_new_round_with_the_new_candidate() {
    let (api, address, dir) = cluster().await;
    operator::create_node(&api, "a", 1);
    let lab = Lab::start(&dir.0, &api, address, Machine::new()).await;
    let before = lab.node_where(|n| n["status"]["candidates"].as_array().is_some_and(|c| !c.is_empty())).await;
    *lab.machine.survey.lock().unwrap() = survey("192.0.2.77");
    lab.change.send(Changed { links: true, ..Changed::default() }).await.unwrap();
    let after = lab.node_where(|n| n["status"]["candidates"][0]["address"] == "192.0.2.77:21821").await;
    assert!(after["status"]["round"].as_u64() > before["status"]["round"].as_u64());
    lab.stop().await;
}

#[tokio::test]
async fn only_a_node_whose_pods_are_ours_takes_anything_of_their_ranges() {
    let pods: IpNet = "10.244.0.0/16".parse().unwrap();
    for (mode, own, theirs) in
        [(CniMode::None, false, false), (CniMode::External, false, true), (CniMode::Managed, true, true)]
    {
        let (api, address, dir) = cluster().await;
        operator::create_mesh(&api, json!({"podCIDRs": [pods]}));
        operator::create_node(&api, "a", 1);
        put_slice(&api, "peers-0", &[peer("b", 2).1]);
        let lab = Lab::start_with(&dir.0, &api, address, Machine::new(), mode).await;
        let plan = lab.machine.plan_where(|plans| plans.last().is_some_and(|p| !p.routes.is_empty())).await;
        let routed = |net: &str| plan.routes.iter().any(|route| route.prefix == net.parse().unwrap());
        assert!(routed("10.118.0.2/32"), "{mode:?}: {:?}", plan.routes);
        assert_eq!(routed("10.244.2.0/24"), theirs, "{mode:?}: {:?}", plan.routes);
        assert_eq!(plan.claims.iter().any(|claim| pods.contains(claim)), theirs, "{mode:?}: {:?}", plan.claims);
        assert!(plan.claims.contains(&"10.118.0.0/16".parse().unwrap()), "{mode:?}: {:?}", plan.claims);
        assert_eq!(!plan.own_pod_cidrs.is_empty(), own, "{mode:?}");
        assert_eq!((plan.masquerade.enabled, plan.cni), (own, own), "{mode:?}");
        lab.stop().await;
    }
}
