//! The port by which others reach a relay on this node.

use super::*;
use node_agent::net::Redirect;

const LED: Option<Redirect> = Some(Redirect { from: 443, to: 8443 });

fn put_relay(api: &FakeApi) {
    let key = PublicKey::from_bytes([7; 32]).to_string();
    let status =
        json!({"stun": [], "identityKey": key, "addresses": ["192.0.2.10"], "tlsPort": 8443, "conditions": []});
    api.put("meshrelays", json!({"metadata": {"name": "a"}, "spec": {"nodeName": "a"}, "status": status}));
}

fn led(node: &Value) -> Option<u64> {
    node["status"]["relayTLSPort"].as_u64()
}

fn is_taken(node: &Value) -> bool {
    operator::condition(node, "TLSPortTaken").is_some_and(|(status, _)| status == "True")
}

#[tokio::test]
async fn the_port_leads_to_a_relay_while_it_is_here_and_nobody_else_has_the_port() {
    let (api, address, dir) = cluster().await;
    operator::create_node(&api, "a", 1);
    let lab = Lab::start(&dir.0, &api, address, Machine::new()).await;
    let without = lab.machine.plan_where(|plans| !plans.is_empty()).await;
    assert_eq!(without.relay_redirect, None, "no relay is here");
    let last = |wanted: Option<Redirect>| {
        move |plans: &Vec<NetPlan>| plans.last().is_some_and(|plan| plan.relay_redirect == wanted)
    };

    put_relay(&api);
    lab.machine.plan_where(last(LED)).await;
    let node = lab.node_where(|node| led(node) == Some(443)).await;
    assert!(!is_taken(&node), "{node}");

    // Nobody announces a listener: it is looked for.
    lab.machine.listened.lock().unwrap().push(443);
    lab.machine.plan_where(last(None)).await;
    lab.node_where(|node| is_taken(node) && led(node).is_none()).await;

    lab.machine.listened.lock().unwrap().clear();
    lab.machine.plan_where(last(LED)).await;
    lab.node_where(|node| led(node) == Some(443) && !is_taken(node)).await;

    api.delete("meshrelays", "a");
    lab.machine.plan_where(last(None)).await;
    let node = lab.node_where(|node| led(node).is_none()).await;
    assert!(!is_taken(&node), "{node}");
    lab.stop().await;
}

#[tokio::test]
async fn the_status_says_which_relays_elsewhere_have_a_channel_while_they_have() {
    let (api, address, dir) = cluster().await;
    operator::create_node(&api, "a", 1);
    put_relay(&api);
    let key = PublicKey::from_bytes([8; 32]).to_string();
    let status = json!({"stun": [], "identityKey": key, "addresses": ["198.51.100.7"], "conditions": []});
    api.put("meshrelays", json!({"metadata": {"name": "r"}, "spec": {"nodeName": "r"}, "status": status}));
    let (machine, change) = Machine::new();
    let (dial, mut dialled) = mpsc::unbounded_channel();
    *machine.relays.lock().unwrap() = Some(dial);
    let lab = Lab::start(&dir.0, &api, address, (machine, change)).await;
    let reached = |node: &Value| node["status"]["relays"].clone();
    lab.node_where(|node| reached(node) == json!([{"name": "r", "transport": "Quic"}])).await;

    // Both relays go, and nobody answers any more.
    *lab.machine.relays.lock().unwrap() = None;
    while dialled.recv().await.is_some() {}
    lab.node_where(|node| reached(node).is_null()).await;
    lab.stop().await;
}
