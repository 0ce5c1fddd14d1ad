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
    collections::{BTreeMap, BTreeSet},
    net::SocketAddr,
    sync::{Arc, Mutex},
};
use tokio::{net::TcpListener, sync::watch, task::JoinHandle};

type Key = (String, String);

#[derive(Clone)]
pub struct FakeApi {
    state: Arc<Mutex<Store>>,
    version: Arc<watch::Sender<u64>>,
    /// What every request is answered with instead, and what ends every stream.
    refusal: Arc<watch::Sender<Option<StatusCode>>>,
}

#[derive(Default)]
struct Store {
    objects: BTreeMap<Key, Value>,
    events: Vec<(u64, String, &'static str, Value)>,
    patches: Vec<Value>,
    lists: BTreeMap<String, u32>,
    /// Requests of any sort.
    requests: u32,
    /// How often it was asked for its version.
    versions: u32,
    /// What every write is answered with instead.
    write_refusal: Option<StatusCode>,
    /// Objects that lists leave out, as a server does that has not caught up.
    hidden: BTreeSet<Key>,
    /// Watches from before this version are too old.
    oldest: u64,
    /// Whether that is told by an event of the stream instead of the answer's status.
    gone_as_event: bool,
}

impl FakeApi {
    pub async fn serve(listen: SocketAddr) -> (Self, SocketAddr, JoinHandle<()>) {
        let api = Self {
            state: Arc::default(),
            version: Arc::new(watch::Sender::new(1)),
            refusal: Arc::new(watch::Sender::new(None)),
        };
        let router = Router::new()
            .route("/apis/warren.dev/v1alpha1/{plural}", get(list))
            .route("/apis/warren.dev/v1alpha1/{plural}/{name}/status", patch(patch_status))
            .route("/version", get(version))
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
        self.refuse((!up).then_some(StatusCode::SERVICE_UNAVAILABLE));
    }

    /// Answers every request with this, and ends every stream.
    pub fn refuse(&self, with: Option<StatusCode>) {
        self.refusal.send_replace(with);
    }

    /// Answers writes with this.
    pub fn refuse_writes(&self, with: Option<StatusCode>) {
        self.state.lock().unwrap().write_refusal = with;
    }

    /// How many requests there were.
    pub fn requests(&self) -> u32 {
        self.state.lock().unwrap().requests
    }

    /// How often it was asked for its version.
    pub fn versions(&self) -> u32 {
        self.state.lock().unwrap().versions
    }

    /// Leaves these out of lists; the watch says nothing.
    pub fn hide(&self, plural: &str, names: &[&str]) {
        self.state.lock().unwrap().hidden = names.iter().map(|name| (plural.into(), (*name).into())).collect();
    }

    /// Forgets the past and cuts every stream: whoever comes back must list.
    pub fn compact(&self, gone_as_event: bool) {
        let mut state = self.state.lock().unwrap();
        let version = self.next_version();
        (state.oldest, state.gone_as_event) = (version, gone_as_event);
        drop(state);
        self.version.send_replace(version);
        self.refusal.send_replace(None);
    }

    /// Counts a request; the answer if it is refused.
    fn refuses(&self) -> Option<Response> {
        self.state.lock().unwrap().requests += 1;
        self.refusal.borrow().map(answer)
    }

    pub fn subscribe(&self) -> watch::Receiver<u64> {
        self.version.subscribe()
    }

    fn next_version(&self) -> u64 {
        *self.version.borrow() + 1
    }
}

/// An answer as the API server words it.
fn answer(code: StatusCode) -> Response {
    (code, Json(status(code))).into_response()
}

fn status(code: StatusCode) -> Value {
    let reason = code.canonical_reason().unwrap_or_default().replace(' ', "");
    json!({"kind": "Status", "apiVersion": "v1", "status": "Failure", "reason": reason, "code": code.as_u16(),
        "message": "refused by a test", "metadata": {}})
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

async fn version(State(api): State<FakeApi>) -> Response {
    api.state.lock().unwrap().versions += 1;
    answer(StatusCode::FORBIDDEN)
}

async fn list(State(api): State<FakeApi>, Path(plural): Path<String>, RawQuery(query): RawQuery) -> Response {
    if let Some(refusal) = api.refuses() {
        return refusal;
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
    let items = state.objects.iter().filter(|(k, _)| matches(k) && !state.hidden.contains(*k));
    let items: Vec<Value> = items.map(|(_, v)| v.clone()).collect();
    Json(json!({
        "apiVersion": "warren.dev/v1alpha1",
        "kind": format!("{}List", kind_of(&plural)),
        "metadata": {"resourceVersion": api.version.borrow().to_string()},
        "items": items,
    }))
    .into_response()
}

fn watch_stream(api: FakeApi, plural: String, only: Option<String>, from: u64) -> Response {
    {
        let state = api.state.lock().unwrap();
        if from < state.oldest {
            return match state.gone_as_event {
                false => answer(StatusCode::GONE),
                true => Body::from(format!("{}\n", json!({"type": "ERROR", "object": status(StatusCode::GONE)})))
                    .into_response(),
            };
        }
    }
    let version = api.version.subscribe();
    // Whatever is said of refusals ends a stream.
    let mut refusal = api.refusal.subscribe();
    refusal.mark_unchanged();
    let events = stream::unfold((from, version, refusal), move |(mut seen, mut version, mut refusal)| {
        let (api, plural, only) = (api.clone(), plural.clone(), only.clone());
        async move {
            loop {
                if refusal.has_changed().unwrap_or(true) {
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
                    return Some((Ok::<_, std::convert::Infallible>(Bytes::from(lines)), (seen, version, refusal)));
                }
                tokio::select! {
                    _ = version.changed() => {}
                    _ = refusal.changed() => return None,
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
    if let Some(refusal) = api.refuses() {
        return refusal;
    }
    if let Some(code) = api.state.lock().unwrap().write_refusal {
        return answer(code);
    }
    assert!(query.is_some_and(|q| q.contains("fieldManager=warren-agent") && q.contains("force=true")));
    let patch: Value = serde_json::from_slice(&body).unwrap();
    let Some(mut object) = api.get(&plural, &name) else {
        return answer(StatusCode::NOT_FOUND);
    };
    object["status"] = patch["status"].clone();
    api.state.lock().unwrap().patches.push(patch["status"].clone());
    api.put(&plural, object);
    Json(api.get(&plural, &name)).into_response()
}
