//! What one peer costs that comes, changes or goes among many: counted in calls, not in time.

use super::*;
use node_agent::net::RouteKind;

/// Entries of the peers with these numbers.
fn entries(numbers: std::ops::Range<u8>) -> Vec<Value> {
    numbers.map(|n| peer(&format!("p{n:03}"), n).1).collect()
}

fn prefixes(routes: &[node_agent::net::PeerRoute]) -> Vec<String> {
    routes.iter().map(|route| format!("{} {:?}", route.prefix, route.kind)).collect()
}

#[tokio::test]
async fn one_peer_costs_one_device_call_and_one_message_for_each_of_its_routes() {
    let (api, address, dir) = cluster().await;
    operator::create_mesh(&api, json!({"podCIDRs": ["10.244.0.0/16"]}));
    operator::create_node(&api, "a", 1);
    put_slice(&api, "peers-0", &entries(2..60));
    put_slice(&api, "peers-1", &entries(60..120));
    let lab = Lab::start(&dir.0, &api, address, Machine::new()).await;
    let routes = |n: usize| move |plans: &Vec<NetPlan>| plans.last().is_some_and(|p| p.routes.len() == n);
    let plan = lab.machine.plan_where(routes(2 * 118)).await;
    assert!(
        plan.claims.iter().all(|claim| claim.to_string() == "10.118.0.0/16" || claim.to_string() == "10.244.0.0/16")
    );
    lab.machine.rerouted.lock().unwrap().clear();
    let device = lab.machine.device();
    device.take_applied();

    put_slice(&api, "peers-1", &entries(60..121));
    lab.machine.plan_where(routes(2 * 119)).await;
    // The other calls set the endpoints of peers that are probed.
    let configured = |applied: Vec<wgdev::Delta>| {
        let upserts = applied.iter().flat_map(|delta| &delta.upsert);
        let configured = upserts.filter(|update| update.allowed_ips.is_some()).count();
        (configured, applied.iter().map(|delta| delta.remove.len()).sum::<usize>())
    };
    assert_eq!(configured(device.take_applied()), (1, 0));
    let joined = std::mem::take(&mut *lab.machine.rerouted.lock().unwrap());
    assert_eq!(joined.len(), 1);
    assert_eq!(prefixes(&joined[0].add), ["10.118.0.120/32 Mesh", "10.244.120.0/24 Pod"]);
    assert_eq!(joined[0].remove, []);

    // Another pod range: one route comes and one goes, and the peer is configured once.
    let mut moved = entries(60..121);
    moved[60]["podCIDRs"] = json!(["10.244.200.0/24"]);
    moved[60]["generation"] = json!(2);
    put_slice(&api, "peers-1", &moved);
    lab.machine
        .plan_where(|p| p.last().is_some_and(|p| p.routes.iter().any(|r| r.prefix.to_string() == "10.244.200.0/24")))
        .await;
    assert_eq!(configured(device.take_applied()), (1, 0));
    let changed = std::mem::take(&mut *lab.machine.rerouted.lock().unwrap());
    assert_eq!(changed.len(), 1);
    assert_eq!(prefixes(&changed[0].add), ["10.244.200.0/24 Pod"]);
    assert_eq!(prefixes(&changed[0].remove), ["10.244.120.0/24 Pod"]);

    // One that goes.
    put_slice(&api, "peers-1", &moved[..60]);
    lab.machine.plan_where(routes(2 * 118)).await;
    assert_eq!(configured(device.take_applied()), (0, 1));
    assert_eq!(lab.machine.rerouted.lock().unwrap().len(), 1);
    assert!(changed[0].add.iter().all(|route| route.kind == RouteKind::Pod));

    // Somebody meddled: now all of them are looked at, and all are in the plan.
    lab.change.send(Changed::ALL).await.unwrap();
    let plans = lab.machine.plans.borrow().len();
    let whole = lab.machine.plan_where(|all| all.len() > plans).await;
    assert_eq!(whole.routes.len(), 2 * 118);
    assert_eq!(lab.machine.rerouted.lock().unwrap().len(), 1);
    lab.stop().await;
}

#[tokio::test]
async fn pods_that_no_range_of_the_mesh_covers_are_claimed_alone_too() {
    let (api, address, dir) = cluster().await;
    operator::create_node(&api, "a", 1);
    put_slice(&api, "peers-0", &entries(2..60));
    let lab = Lab::start(&dir.0, &api, address, Machine::new()).await;
    let routes = |n: usize| move |plans: &Vec<NetPlan>| plans.last().is_some_and(|p| p.routes.len() == n);
    lab.machine.plan_where(routes(2 * 58)).await;
    lab.machine.rerouted.lock().unwrap().clear();
    let plans = lab.machine.plans.borrow().len();

    put_slice(&api, "peers-0", &entries(2..61));
    let plan = lab.machine.plan_where(routes(2 * 59)).await;
    let net: IpNet = "10.244.60.0/24".parse().unwrap();
    assert!(plan.claims.contains(&net));
    put_slice(&api, "peers-0", &entries(2..60));
    let plan = lab.machine.plan_where(routes(2 * 58)).await;
    assert!(!plan.claims.contains(&net));
    let changed = lab.machine.rerouted.lock().unwrap().clone();
    let claims: Vec<_> = changed.iter().map(|change| (&change.claim[..], &change.unclaim[..])).collect();
    assert_eq!(claims, [(&[net][..], &[][..]), (&[][..], &[net][..])]);
    assert_eq!(lab.machine.plans.borrow().len(), plans + 2, "nothing was programmed as a whole");
    lab.stop().await;
}
