//! A Kubernetes API server, as far as an agent sees it: lists, watches and status patches of one group, in memory.

use axum::{
    Json, Router,
    body::{Body, Bytes},
    extract::{Path, RawQuery, State},
    http::StatusCode,
    response::{IntoResponse, Response},
    routing::{get, patch},
};
use futures::{StreamExt, stream};
use serde_json::{Value, json};
use std::{
    collections::BTreeMap,
    net::SocketAddr,
    sync::{Arc, Mutex},
};
use tokio::{net::TcpListener, sync::watch, task::JoinHandle};

type Key = (String, String);

#[derive(Clone)]
pub struct FakeApi {
    state: Arc<Mutex<Store>>,
    version: Arc<watch::Sender<u64>>,
    /// Streams end and requests fail while this is false.
    up: Arc<watch::Sender<bool>>,
}

#[derive(Default)]
struct Store {
    objects: BTreeMap<Key, Value>,
    events: Vec<(u64, String, &'static str, Value)>,
    patches: Vec<Value>,
    lists: BTreeMap<String, u32>,
}

impl FakeApi {
    pub async fn serve(listen: SocketAddr) -> (Self, SocketAddr, JoinHandle<()>) {
        let api = Self {
            state: Arc::default(),
            version: Arc::new(watch::Sender::new(1)),
            up: Arc::new(watch::Sender::new(true)),
        };
        let router = Router::new()
            .route("/apis/warren.dev/v1alpha1/{plural}", get(list))
            .route("/apis/warren.dev/v1alpha1/{plural}/{name}/status", patch(patch_status))
            .with_state(api.clone());
        let listener = TcpListener::bind(listen).await.unwrap();
        let address = listener.local_addr().unwrap();
        let task = tokio::spawn(async move { axum::serve(listener, router).await.unwrap() });
        (api, address, task)
    }

    /// Creates or replaces an object, keeping its identity.
    pub fn put(&self, plural: &str, mut object: Value) {
        let mut state = self.state.lock().unwrap();
        let version = self.next_version();
        let name = object["metadata"]["name"].as_str().unwrap().to_owned();
        let key = (plural.to_owned(), name.clone());
        let old = state.objects.get(&key).cloned();
        let kind = if old.is_some() { "MODIFIED" } else { "ADDED" };
        let uid = old.as_ref().map_or_else(
            || format!("uid-{plural}-{name}-{version}"),
            |o| o["metadata"]["uid"].as_str().unwrap().into(),
        );
        let generation = old.as_ref().map_or(0, |o| o["metadata"]["generation"].as_i64().unwrap());
        let changed = old.as_ref().is_none_or(|o| o["spec"] != object["spec"]);
        object["apiVersion"] = json!("warren.dev/v1alpha1");
        object["kind"] = json!(kind_of(plural));
        object["metadata"]["uid"] = json!(uid);
        object["metadata"]["generation"] = json!(generation + i64::from(changed));
        object["metadata"]["resourceVersion"] = json!(version.to_string());
        state.objects.insert(key, object.clone());
        state.events.push((version, plural.into(), kind, object));
        drop(state);
        self.version.send_replace(version);
    }

    pub fn delete(&self, plural: &str, name: &str) {
        let mut state = self.state.lock().unwrap();
        let version = self.next_version();
        if let Some(mut object) = state.objects.remove(&(plural.into(), name.into())) {
            object["metadata"]["resourceVersion"] = json!(version.to_string());
            state.events.push((version, plural.into(), "DELETED", object));
        }
        drop(state);
        self.version.send_replace(version);
    }

    pub fn get(&self, plural: &str, name: &str) -> Option<Value> {
        self.state.lock().unwrap().objects.get(&(plural.into(), name.into())).cloned()
    }

    /// Every status that was patched, in order.
    pub fn patches(&self) -> Vec<Value> {
        self.state.lock().unwrap().patches.clone()
    }

    /// How often a kind was listed.
    pub fn lists(&self, plural: &str) -> u32 {
        self.state.lock().unwrap().lists.get(plural).copied().unwrap_or_default()
    }

    /// Waits until a look at the objects finds something; every change wakes it.
    pub async fn wait_for<T>(&self, mut look: impl FnMut(&Self) -> Option<T>) -> T {
        let mut version = self.version.subscribe();
        loop {
            version.borrow_and_update();
            if let Some(found) = look(self) {
                return found;
            }
            version.changed().await.unwrap();
        }
    }

    pub fn set_up(&self, up: bool) {
        self.up.send_replace(up);
    }

    pub fn subscribe(&self) -> watch::Receiver<u64> {
        self.version.subscribe()
    }

    fn next_version(&self) -> u64 {
        *self.version.borrow() + 1
    }
}

fn kind_of(plural: &str) -> &'static str {
    match plural {
        "meshes" => "Mesh",
        "meshnodes" => "MeshNode",
        "meshpeerslices" => "MeshPeerSlice",
        "meshrelays" => "MeshRelay",
        other => panic!("no such kind: {other}"),
    }
}

async fn list(State(api): State<FakeApi>, Path(plural): Path<String>, RawQuery(query): RawQuery) -> Response {
    if !*api.up.borrow() {
        return StatusCode::SERVICE_UNAVAILABLE.into_response();
    }
    let query = query.unwrap_or_default();
    let get = |name: &str| query.split('&').find_map(|p| p.strip_prefix(name)).map(str::to_owned);
    let only = get("fieldSelector=")
        .map(|s| s.replace("%3D", "="))
        .and_then(|s| s.strip_prefix("metadata.name=").map(Into::into));
    if query.contains("watch=true") {
        let from = get("resourceVersion=").and_then(|v| v.parse().ok()).unwrap_or(0);
        return watch_stream(api, plural, only, from);
    }
    let mut state = api.state.lock().unwrap();
    *state.lists.entry(plural.clone()).or_default() += 1;
    let matches = |k: &&Key| k.0 == plural && only.as_ref().is_none_or(|name: &String| *name == k.1);
    let items: Vec<Value> = state.objects.iter().filter(|(k, _)| matches(k)).map(|(_, v)| v.clone()).collect();
    Json(json!({
        "apiVersion": "warren.dev/v1alpha1",
        "kind": format!("{}List", kind_of(&plural)),
        "metadata": {"resourceVersion": api.version.borrow().to_string()},
        "items": items,
    }))
    .into_response()
}

fn watch_stream(api: FakeApi, plural: String, only: Option<String>, from: u64) -> Response {
    let version = api.version.subscribe();
    let up = api.up.subscribe();
    let events = stream::unfold((from, version, up), move |(mut seen, mut version, mut up)| {
        let (api, plural, only) = (api.clone(), plural.clone(), only.clone());
        async move {
            loop {
                if !*up.borrow_and_update() {
                    return None;
                }
                let current = *version.borrow_and_update();
                let lines: String = {
                    let state = api.state.lock().unwrap();
                    let wanted = |e: &&(u64, String, &'static str, Value)| {
                        e.0 > seen
                            && e.1 == plural
                            && only.as_ref().is_none_or(|n| e.3["metadata"]["name"].as_str() == Some(n))
                    };
                    let line =
                        |e: &(u64, String, &'static str, Value)| format!("{}\n", json!({"type": e.2, "object": e.3}));
                    state.events.iter().filter(wanted).map(line).collect()
                };
                seen = current;
                if !lines.is_empty() {
                    return Some((Ok::<_, std::convert::Infallible>(Bytes::from(lines)), (seen, version, up)));
                }
                tokio::select! {
                    _ = version.changed() => {}
                    _ = up.changed() => {}
                }
            }
        }
    });
    Response::new(Body::from_stream(events.boxed()))
}

async fn patch_status(
    State(api): State<FakeApi>,
    Path((plural, name)): Path<(String, String)>,
    RawQuery(query): RawQuery,
    body: Bytes,
) -> Response {
    if !*api.up.borrow() {
        return StatusCode::SERVICE_UNAVAILABLE.into_response();
    }
    assert!(query.is_some_and(|q| q.contains("fieldManager=warren-agent") && q.contains("force=true")));
    let patch: Value = serde_json::from_slice(&body).unwrap();
    let Some(mut object) = api.get(&plural, &name) else {
        let status = json!({"kind": "Status", "apiVersion": "v1", "status": "Failure", "reason": "NotFound", "code": 404,
            "message": "not found", "metadata": {}});
        return (StatusCode::NOT_FOUND, Json(status)).into_response();
    };
    object["status"] = patch["status"].clone();
    api.state.lock().unwrap().patches.push(patch["status"].clone());
    api.put(&plural, object);
    Json(api.get(&plural, &name)).into_response()
}
