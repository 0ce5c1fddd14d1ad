//! What the relay writes to the Kubernetes API, and when it doesn't.

#![allow(clippy::unwrap_used)]

mod api;

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use api::{FakeApi, Write, mesh_relay};
use axum::http::StatusCode;
use relay::monitor::Metrics;
use relay::publish::{self, Identity};
use tokio::sync::watch;

/// A publisher at work, whose host's addresses the test decides.
struct Publisher {
    api: FakeApi,
    addresses: Arc<Mutex<Vec<SocketAddr>>>,
    /// Grows whenever the relay looks at the addresses, which it does after each event.
    looks: watch::Receiver<u64>,
}

impl Publisher {
    async fn start(prepare: impl FnOnce(&FakeApi)) -> Self {
        let api = FakeApi::start().await;
        prepare(&api);
        let addresses = Arc::new(Mutex::new(vec!["203.0.113.7:3478".parse().unwrap()]));
        let of_host = Arc::clone(&addresses);
        let identity = Identity { name: "relay-a".into(), node_name: Some("node-a".into()) };
        let metrics = Arc::new(Metrics::new().unwrap());
        let (looking, looks) = watch::channel(0);
        let look = move || {
            looking.send_modify(|looks| *looks += 1);
            of_host.lock().unwrap().clone()
        };
        tokio::spawn(publish::run(api.client(), identity, look, None, metrics));
        Self { api, addresses, looks }
    }

    fn move_to(&self, address: &str) {
        *self.addresses.lock().unwrap() = vec![address.parse().unwrap()];
        // Any event makes the relay look; without one it does so every ten seconds.
        self.touch();
    }

    fn touch(&self) {
        self.api.change(|object| object["metadata"]["labels"]["touched"] = "again".into());
    }

    /// Changes the object and waits until the relay has dealt with the change, or with an earlier one and this is next.
    async fn provoke(&mut self, change: impl FnOnce(&mut serde_json::Value)) {
        self.looks.mark_unchanged();
        self.api.change(change);
        self.looks.changed().await.unwrap();
    }

    async fn next_write(&mut self) -> Write {
        self.api.writes.recv().await.unwrap()
    }
}

fn stun(write: &Write) -> &str {
    write.body["status"]["stun"][0].as_str().unwrap_or_else(|| panic!("{write:?}"))
}

#[tokio::test]
async fn it_applies_its_own_status_once_per_change() {
    let mut relay = Publisher::start(|api| api.set(Some(mesh_relay("relay-a", "node-a")))).await;
    let first = relay.next_write().await;
    assert_eq!((first.name.as_str(), stun(&first)), ("relay-a", "203.0.113.7:3478"));
    assert_eq!(first.content_type, "application/apply-patch+yaml");
    assert!(first.query.contains("fieldManager=warren-relay") && first.query.contains("force=true"), "{}", first.query);
    let mut keys: Vec<_> = first.body.as_object().unwrap().keys().collect();
    keys.sort();
    assert_eq!(keys, ["apiVersion", "kind", "metadata", "status"]);
    assert_eq!(first.body["metadata"], serde_json::json!({ "name": "relay-a" }));

    // Somebody else changes a label: the next write is the one for the next address.
    relay.touch();
    relay.move_to("203.0.113.8:3478");
    assert_eq!(stun(&relay.next_write().await), "203.0.113.8:3478");
    relay.touch();
    relay.move_to("203.0.113.9:3478");
    assert_eq!(stun(&relay.next_write().await), "203.0.113.9:3478");
}

#[tokio::test]
async fn behind_nat_it_publishes_what_its_object_gives_before_what_it_finds() {
    let mut object = mesh_relay("relay-a", "node-a");
    object["spec"]["addresses"] = serde_json::json!(["198.51.100.7:3478"]);
    let mut relay = Publisher::start(|api| api.set(Some(object))).await;
    let first = relay.next_write().await;
    assert_eq!(first.body["status"]["stun"], serde_json::json!(["198.51.100.7:3478", "203.0.113.7:3478"]));

    relay.api.change(|object| object["spec"]["addresses"] = serde_json::json!([]));
    assert_eq!(relay.next_write().await.body["status"]["stun"], serde_json::json!(["203.0.113.7:3478"]));
}

#[tokio::test]
async fn it_waits_for_the_api_and_for_the_object() {
    let mut relay = Publisher::start(|api| api.set_away(true)).await;
    relay.api.turned_away.recv().await.unwrap();
    relay.api.set_away(false);
    relay.api.set(Some(mesh_relay("relay-a", "node-a")));
    assert_eq!(relay.next_write().await.answer, StatusCode::OK);

    relay.api.set(None);
    relay.api.set(Some(mesh_relay("relay-a", "node-a")));
    assert_eq!(relay.next_write().await.answer, StatusCode::OK, "a new object has no status");
}

#[tokio::test]
async fn it_tries_again_when_a_write_is_refused() {
    let mut relay = Publisher::start(|api| {
        api.refuse_writes(&[StatusCode::FORBIDDEN]);
        api.set(Some(mesh_relay("relay-a", "node-a")));
    })
    .await;
    assert_eq!(relay.next_write().await.answer, StatusCode::FORBIDDEN);
    assert_eq!(relay.next_write().await.answer, StatusCode::OK);
}

#[tokio::test]
async fn it_leaves_the_object_of_another_node_alone() {
    let mut relay = Publisher::start(|api| api.set(Some(mesh_relay("relay-a", "node-b")))).await;
    for round in 0..3 {
        relay.provoke(|object| object["metadata"]["labels"]["round"] = round.to_string().into()).await;
    }
    relay.api.change(|object| {
        object["metadata"]["generation"] = 2.into();
        object["spec"]["nodeName"] = "node-a".into();
    });
    let write = relay.next_write().await;
    assert_eq!(write.body["status"]["observedGeneration"], 2, "the first write is for the object that is ours");
}

#[tokio::test]
async fn it_does_not_quarrel() {
    let mut relay = Publisher::start(|api| api.set(Some(mesh_relay("relay-a", "node-a")))).await;
    let vandalise = |api: &FakeApi| api.change(|object| object["status"]["stun"] = serde_json::json!(["192.0.2.66:1"]));
    for _ in 0..3 {
        assert_eq!(stun(&relay.next_write().await), "203.0.113.7:3478");
        vandalise(&relay.api);
    }
    // The burst is used up; the next write comes with the next token and no sooner, however often the object changes.
    for round in 0..5 {
        relay.provoke(|object| object["status"]["stun"] = serde_json::json!([format!("192.0.2.{round}:1")])).await;
    }
    assert!(relay.api.writes.try_recv().is_err());
}
