//! An API that answers badly: too busy, behind, without its kinds, or of another version.

use super::*;
use axum::http::StatusCode;

/// Seconds that the API can't answer; `make faults` says 600.
fn outage() -> Duration {
    let seconds = std::env::var("FAULT_SECONDS").ok().map_or(5, |text| text.parse().unwrap());
    Duration::from_secs(seconds)
}

/// An agent with four peers in two slices, on everybody's list.
async fn settled(dir: &TempDir, api: &FakeApi, address: SocketAddr) -> Lab {
    operator::create_node(api, "a", 1);
    put_slice(api, "peers-0", &[peer("b", 2).1, peer("c", 3).1]);
    put_slice(api, "peers-1", &[peer("d", 4).1, peer("e", 5).1]);
    let lab = Lab::start(&dir.0, api, address, Machine::new()).await;
    lab.node_where(|n| n["status"]["candidates"].as_array().is_some_and(|c| !c.is_empty())).await;
    operator::admit(api, "a");
    operator::publish(api, "peers-a", &["a"], 1);
    lab.node_where(ready).await;
    lab.machine.plan_where(|p| p.last().is_some_and(|p| p.routes.len() == 8)).await;
    lab.machine.device().take_applied();
    lab
}

impl Lab {
    /// Whether the device was told to remove a peer since it was last asked.
    fn removals(&self) -> Vec<PublicKey> {
        self.machine.device().take_applied().into_iter().flat_map(|delta| delta.remove).collect()
    }

    async fn until_reachable(&self, reachable: bool) {
        self.status_with(&format!("\"apiReachable\":{reachable}")).await;
    }
}

#[tokio::test]
async fn an_api_that_is_too_busy_is_asked_in_turn_and_ever_more_rarely() {
    tokio::join!(too_busy(StatusCode::TOO_MANY_REQUESTS), too_busy(StatusCode::INTERNAL_SERVER_ERROR));
}

async fn too_busy(refusal: StatusCode) {
    let (api, address, dir) = cluster().await;
    let lab = settled(&dir, &api, address).await;
    let before = api.requests();
    api.refuse(Some(refusal));
    lab.until_reachable(false).await;
    // Something to write makes one more who wants to ask.
    *lab.machine.survey.lock().unwrap() = survey("192.0.2.77");
    lab.change.send(Changed { links: true, ..Changed::default() }).await.unwrap();
    tokio::time::sleep(outage()).await;
    let asked = api.requests() - before;
    eprintln!("{refusal}: {asked} requests in {:?}", outage());
    // Four streams that end at once, seven turns below ten seconds, then one in ten seconds: a slow machine asks less.
    let most = 4 + 7 + outage().as_secs() / 10;
    assert!(u64::from(asked) <= most, "{asked} requests in {:?}, expected {most} at most", outage());
    assert_eq!(lab.removals(), []);
    api.refuse(None);
    lab.node_where(|n| n["status"]["candidates"][0]["address"] == "192.0.2.77:21821").await;
    lab.stop().await;
}

#[tokio::test]
async fn writes_that_fail_leave_the_watches_alone_and_are_not_repeated_at_once() {
    let (api, address, dir) = cluster().await;
    let lab = settled(&dir, &api, address).await;
    api.refuse_writes(Some(StatusCode::INTERNAL_SERVER_ERROR));
    let before = api.requests();
    *lab.machine.broken.lock().unwrap() = Some("something to report".into());
    lab.change.send(Changed::ALL).await.unwrap();
    lab.status_with("refused by a test").await;
    tokio::time::sleep(Duration::from_secs(2)).await;
    let asked = api.requests() - before;
    assert!(asked <= 4, "{asked} requests, expected the write and its first repetitions");
    // What the API tells is heard all the same.
    put_slice(&api, "peers-2", &[peer("f", 6).1]);
    lab.machine.plan_where(|p| p.last().is_some_and(|p| p.routes.len() == 10)).await;
    api.refuse_writes(None);
    lab.node_where(|n| operator::condition(n, "RoutesProgrammed").is_some_and(|c| c.0 == "False")).await;
    lab.stop().await;
}

#[tokio::test]
async fn a_history_that_is_gone_is_listed_once_and_takes_nobody_away() {
    let (api, address, dir) = cluster().await;
    let lab = settled(&dir, &api, address).await;
    const KINDS: [&str; 4] = ["meshes", "meshnodes", "meshpeerslices", "meshrelays"];
    let lists = || KINDS.map(|kind| api.lists(kind));
    for (as_event, number) in [(false, 6), (true, 7)] {
        let before = lists();
        api.compact(as_event);
        let listed = async {
            while lists().iter().zip(before).any(|(now, before)| *now == before) {
                tokio::task::yield_now().await;
            }
        };
        tokio::time::timeout(DEADLINE, listed).await.unwrap();
        // Something new is heard by the new watches: no further list was needed.
        put_slice(&api, &format!("peers-{number}"), &[peer(&format!("n{number}"), number).1]);
        let routes = 2 * usize::from(number - 1);
        lab.machine.plan_where(|p| p.last().is_some_and(|p| p.routes.len() == routes)).await;
        assert_eq!(lists(), before.map(|count| count + 1), "410 as an event: {as_event}");
        assert_eq!(lab.removals(), []);
        assert!(!lab.ask(Question::Status).await.body.contains("MassRemovalGuard"));
    }
    lab.stop().await;
}

#[tokio::test]
async fn a_list_that_shows_half_of_the_nodes_takes_nobody_away() {
    let (api, address, dir) = cluster().await;
    let lab = settled(&dir, &api, address).await;
    api.hide("meshpeerslices", &["peers-1"]);
    api.compact(false);
    lab.status_with("MassRemovalGuard").await;
    lab.node_where(|n| operator::condition(n, "MassRemovalGuard").is_some()).await;
    assert_eq!(lab.removals(), []);
    // A server that has caught up ends it.
    api.hide("meshpeerslices", &[]);
    api.compact(false);
    lab.node_where(|n| operator::condition(n, "MassRemovalGuard").is_none()).await;
    assert_eq!(lab.removals(), []);
    assert_eq!(lab.machine.device().peers().await.unwrap().len(), 4);
    lab.stop().await;
}

#[tokio::test]
async fn deleted_definitions_take_nothing_away_and_come_back() {
    let (api, address, dir) = cluster().await;
    let lab = settled(&dir, &api, address).await;
    let objects = [("meshes", "default"), ("meshnodes", "a")].map(|(kind, name)| (kind, api.get(kind, name).unwrap()));
    for (kind, name) in [
        ("meshpeerslices", "peers-0"),
        ("meshpeerslices", "peers-1"),
        ("meshpeerslices", "peers-a"),
        ("meshnodes", "a"),
        ("meshes", "default"),
    ] {
        api.delete(kind, name);
    }
    lab.status_with("MassRemovalGuard").await;
    api.refuse(Some(StatusCode::NOT_FOUND));
    lab.change.send(Changed::ALL).await.unwrap();
    assert_eq!(lab.ask(Question::Ready).await.status, 200);
    assert_eq!(lab.machine.plans.borrow().last().unwrap().routes.len(), 8);

    // An agent that starts meanwhile does so from its disk.
    assert_eq!(lab.removals(), []);
    lab.stop().await;
    let lab = Lab::start(&dir.0, &api, address, Machine::new()).await;
    lab.machine.plan_where(|p| p.last().is_some_and(|p| p.routes.len() == 8)).await;
    lab.machine.device().take_applied();

    // Made again: other identities, nobody listed yet.
    api.refuse(None);
    for (kind, mut object) in objects {
        object["status"] = Value::Null;
        object["metadata"] = json!({"name": object["metadata"]["name"]});
        api.put(kind, object);
    }
    lab.node_where(|n| n["status"]["publicKey"].is_string()).await;
    put_slice(&api, "peers-0", &[peer("b", 2).1, peer("c", 3).1, peer("d", 4).1, peer("e", 5).1]);
    operator::publish(&api, "peers-a", &["a"], 1);
    lab.node_where(|n| ready(n) && operator::condition(n, "MassRemovalGuard").is_none()).await;
    assert_eq!(lab.machine.device().peers().await.unwrap().len(), 4);
    lab.stop().await;
}

#[tokio::test]
async fn fields_of_a_newer_version_are_no_obstacle() {
    let (api, address, dir) = cluster().await;
    let lab = settled(&dir, &api, address).await;
    let newer = |object: &mut Value| object["spec"]["fieldOfTomorrow"] = json!({"deep": [1, "two"]});
    let mut node = api.get("meshnodes", "a").unwrap();
    newer(&mut node);
    api.put("meshnodes", node);
    let mut mesh = api.get("meshes", "default").unwrap();
    newer(&mut mesh);
    mesh["spec"]["mtu"] = json!(1400);
    api.put("meshes", mesh);
    let mut entry = peer("f", 6).1;
    entry["fieldOfTomorrow"] = json!(true);
    put_slice(&api, "peers-2", &[entry]);
    let sees_all = |p: &Vec<NetPlan>| p.last().is_some_and(|p| p.routes.len() == 10 && p.mtu == 1400);
    lab.machine.plan_where(sees_all).await;
    assert_eq!(lab.removals(), []);
    lab.stop().await;
    // Also from the disk of a node that went back a version.
    api.set_up(false);
    let lab = Lab::start(&dir.0, &api, address, Machine::new()).await;
    lab.machine.plan_where(sees_all).await;
    lab.stop().await;
}

#[tokio::test]
async fn a_copy_of_another_node_speaks_to_nobody() {
    let (api, address, dir) = cluster().await;
    operator::create_node(&api, "a", 1);
    let lab = Lab::start(&dir.0, &api, address, Machine::new()).await;
    let node = lab.node_where(|n| n["status"]["publicKey"].is_string()).await;
    let mut original = peer("original", 2).1;
    original["publicKey"] = node["status"]["publicKey"].clone();
    put_slice(&api, "peers-0", &[original, peer("c", 3).1]);
    lab.status_with("KeyOfAnother").await;
    assert_eq!(lab.machine.device().peers().await.unwrap(), []);
    // A key of its own makes it a node like any other.
    fs::remove_file(dir.0.join("private.key")).unwrap();
    lab.machine.plan_where(|p| p.last().is_some_and(|p| p.routes.len() == 4)).await;
    assert_eq!(lab.machine.device().peers().await.unwrap().len(), 2);
    lab.stop().await;
}
