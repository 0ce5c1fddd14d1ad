//! As much of a Kubernetes API as one MeshRelay needs: list, watch, and server-side apply of its status; and one MeshNode to look at.

#![allow(dead_code)]

use std::convert::Infallible;
use std::sync::{Arc, Mutex};

use axum::body::Body;
use axum::extract::{Path, State};
use axum::http::{HeaderMap, StatusCode, Uri};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, patch};
use axum::{Json, Router};
use futures::stream;
use serde_json::{Value, json};
use tokio::sync::{mpsc, watch};

/// One write that the API saw.
#[derive(Debug)]
pub struct Write {
    /// Name of the object in the path.
    pub name: String,
    /// The query: field manager and force.
    pub query: String,
    /// Type of the patch.
    pub content_type: String,
    /// The patch.
    pub body: Value,
    /// What it was answered.
    pub answer: StatusCode,
}

/// The API, served on loopback until the runtime ends.
pub struct FakeApi {
    /// Writes in the order they came.
    pub writes: mpsc::UnboundedReceiver<Write>,
    /// One item for every list or watch that was turned away.
    pub turned_away: mpsc::UnboundedReceiver<()>,
    state: Arc<Shared>,
    address: std::net::SocketAddr,
}

struct Shared {
    /// The one object with its resourceVersion, told to all watches.
    object: watch::Sender<(u64, Option<Value>)>,
    /// The one MeshNode, likewise.
    node: watch::Sender<(u64, Option<Value>)>,
    writes: mpsc::UnboundedSender<Write>,
    /// Answers to the next writes; success when empty.
    refusals: Mutex<Vec<StatusCode>>,
    away: Mutex<bool>,
    turned_away: mpsc::UnboundedSender<()>,
}

impl FakeApi {
    /// Starts without an object.
    pub async fn start() -> Self {
        let (writes_in, writes) = mpsc::unbounded_channel();
        let (turned_away_in, turned_away) = mpsc::unbounded_channel();
        let state = Arc::new(Shared {
            object: watch::Sender::new((1, None)),
            node: watch::Sender::new((1, None)),
            writes: writes_in,
            refusals: Mutex::default(),
            away: Mutex::new(false),
            turned_away: turned_away_in,
        });
        let path = "/apis/warren.dev/v1alpha1/meshrelays";
        let router = Router::new()
            .route(path, get(list_or_watch))
            .route("/apis/warren.dev/v1alpha1/meshnodes", get(list_or_watch_nodes))
            .route(&format!("{path}/{{name}}/status"), patch(apply_status))
            .with_state(Arc::clone(&state));
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        tokio::spawn(axum::serve(listener, router).into_future());
        Self { writes, turned_away, state, address }
    }

    /// A client of this API.
    pub fn client(&self) -> kube::Client {
        let uri: Uri = format!("http://{}", self.address).parse().unwrap();
        kube::Client::try_from(kube::Config::new(uri)).unwrap()
    }

    /// Where it is served.
    pub fn address(&self) -> std::net::SocketAddr {
        self.address
    }

    /// Replaces the MeshNode.
    pub fn set_node(&self, object: Option<Value>) {
        self.state.node.send_modify(|(version, current)| {
            *version += 1;
            *current = object;
        });
    }

    /// Replaces the object, as another writer would.
    pub fn set(&self, object: Option<Value>) {
        self.state.object.send_modify(|(version, current)| {
            *version += 1;
            *current = object;
        });
    }

    /// Changes the object, as another writer would.
    pub fn change(&self, change: impl FnOnce(&mut Value)) {
        let mut object = self.state.object.borrow().1.clone().expect("an object to change");
        change(&mut object);
        self.set(Some(object));
    }

    /// The next writes are answered like this.
    pub fn refuse_writes(&self, answers: &[StatusCode]) {
        *self.state.refusals.lock().unwrap() = answers.to_vec();
    }

    /// Whether lists fail.
    pub fn set_away(&self, away: bool) {
        *self.state.away.lock().unwrap() = away;
    }
}

/// A MeshRelay as the operator makes it.
pub fn mesh_relay(name: &str, node_name: &str) -> Value {
    json!({
        "apiVersion": "warren.dev/v1alpha1",
        "kind": "MeshRelay",
        "metadata": { "name": name, "uid": "u", "generation": 1 },
        "spec": { "nodeName": node_name },
    })
}

/// A MeshNode that the operator has admitted.
pub fn mesh_node(name: &str, key: &str, identity_key: &str) -> Value {
    json!({
        "apiVersion": "warren.dev/v1alpha1",
        "kind": "MeshNode",
        "metadata": { "name": name, "uid": "n", "generation": 1 },
        "spec": { "nodeUID": "n", "admission": { "state": "Accepted", "publicKey": key } },
        "status": { "identityKey": identity_key },
    })
}

async fn list_or_watch(State(state): State<Arc<Shared>>, uri: Uri) -> Response {
    serve(&state, &state.object, "MeshRelayList", &uri)
}

async fn list_or_watch_nodes(State(state): State<Arc<Shared>>, uri: Uri) -> Response {
    serve(&state, &state.node, "MeshNodeList", &uri)
}

fn serve(state: &Shared, object: &watch::Sender<(u64, Option<Value>)>, kind: &str, uri: &Uri) -> Response {
    if *state.away.lock().unwrap() {
        let _ = state.turned_away.send(());
        return failure(StatusCode::SERVICE_UNAVAILABLE);
    }
    let changes = object.subscribe();
    if uri.query().is_some_and(|query| query.contains("watch=true")) {
        return Body::from_stream(events(changes)).into_response();
    }
    let (version, object) = changes.borrow().clone();
    let items: Vec<Value> = object.map(|object| with_version(object, version)).into_iter().collect();
    Json(json!({
        "apiVersion": "warren.dev/v1alpha1",
        "kind": kind,
        "metadata": { "resourceVersion": version.to_string() },
        "items": items,
    }))
    .into_response()
}

/// Everything from now on, the present first: a watch may repeat what the list said.
fn events(
    mut changes: watch::Receiver<(u64, Option<Value>)>,
) -> impl stream::Stream<Item = Result<String, Infallible>> {
    changes.mark_changed();
    stream::unfold((changes, None), |(mut changes, last): (_, Option<Value>)| async move {
        changes.changed().await.ok()?;
        let (version, object) = changes.borrow_and_update().clone();
        let line = match (&object, last) {
            (Some(object), _) => json!({ "type": "MODIFIED", "object": with_version(object.clone(), version) }),
            (None, Some(last)) => json!({ "type": "DELETED", "object": with_version(last, version) }),
            (None, None) => Value::Null,
        };
        let text = if line.is_null() { String::new() } else { format!("{line}\n") };
        Some((Ok(text), (changes, object)))
    })
}

async fn apply_status(
    State(state): State<Arc<Shared>>,
    Path(name): Path<String>,
    uri: Uri,
    headers: HeaderMap,
    body: String,
) -> Response {
    let body: Value = serde_json::from_str(&body).unwrap();
    let refusal = {
        let mut refusals = state.refusals.lock().unwrap();
        if refusals.is_empty() { None } else { Some(refusals.remove(0)) }
    };
    let (_, object) = state.object.borrow().clone();
    let answer = refusal.unwrap_or(if object.is_some() { StatusCode::OK } else { StatusCode::NOT_FOUND });
    let mut response = failure(answer);
    if let (StatusCode::OK, Some(mut object)) = (answer, object) {
        object["status"] = body["status"].clone();
        state.object.send_modify(|(version, current)| {
            *version += 1;
            response = Json(with_version(object.clone(), *version)).into_response();
            *current = Some(object);
        });
    }
    let content_type = headers["content-type"].to_str().unwrap().to_owned();
    let query = uri.query().unwrap_or_default().to_owned();
    let _ = state.writes.send(Write { name, query, content_type, body, answer });
    response
}

fn with_version(mut object: Value, version: u64) -> Value {
    object["metadata"]["resourceVersion"] = version.to_string().into();
    object
}

fn failure(code: StatusCode) -> Response {
    let body = json!({
        "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
        "message": "refused by the test", "reason": "Test", "code": code.as_u16(),
    });
    (code, Json(body)).into_response()
}
