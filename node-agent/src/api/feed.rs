//! List, then watch, and again: what the API says, object by object, without ever giving up.

use super::{Connection, lenient};
use crate::random;
use crds::{Mesh, MeshNode, MeshPeerSlice, MeshRelay, names};
use futures::{StreamExt, TryStreamExt};
use kube::{
    Api, Resource, ResourceExt,
    api::{ApiResource, DynamicObject, ListParams, WatchEvent, WatchParams},
};
use serde::de::DeserializeOwned;
use std::{pin::pin, sync::Arc, time::Duration};
use tokio::{
    sync::{Notify, mpsc, watch},
    time::{Instant, sleep, timeout},
};

/// A list must be answered within this; a cluster of 2,000 nodes sends some MB.
const LIST_TIMEOUT: Duration = Duration::from_secs(30);
/// A watch is asked to end after this and up to so many seconds more: a fixed time would bring all agents back at once.
const WATCH_SECONDS: std::ops::Range<u32> = 240..294;
/// API servers send a bookmark about once a minute; a stream that is silent for longer than this is probably dead.
const WATCH_SILENCE: Duration = Duration::from_secs(100);
/// First pause after a refusal; also the least time between two sessions.
const BACKOFF_FIRST: Duration = Duration::from_millis(250);
/// Longest pause: what is refused (a role that is missing) stays so until somebody acts.
const BACKOFF_LAST: Duration = Duration::from_secs(20);
/// A session that lived this long was a good one, so the next failure starts with the first pause.
const HEALTHY_AFTER: Duration = Duration::from_secs(30);

/// All objects of a kind.
#[derive(Clone, Debug)]
pub struct Listing<K> {
    /// Those that can be read.
    pub objects: Vec<K>,
    /// The names of those that are there and can't be read: what was known of them stands.
    pub unreadable: Vec<String>,
}

impl<K> From<Vec<K>> for Listing<K> {
    fn from(objects: Vec<K>) -> Self {
        Self { objects, unreadable: Vec::new() }
    }
}

/// News about the objects of one kind.
#[derive(Clone, Debug)]
pub enum Fed<K> {
    /// All there are, freshly read.
    Listed(Listing<K>),
    /// One is new or changed.
    Applied(K),
    /// One is gone: its name.
    Deleted(String),
}

/// News from the API.
#[derive(Clone, Debug)]
pub enum Told {
    /// About `Mesh/default`.
    Mesh(Fed<Mesh>),
    /// About our own `MeshNode`.
    Node(Fed<MeshNode>),
    /// About slices.
    Slices(Fed<MeshPeerSlice>),
    /// About relays.
    Relays(Fed<MeshRelay>),
}

impl Told {
    /// Whether it is all there is of a kind.
    pub fn is_list(&self) -> bool {
        matches!(
            self,
            Self::Mesh(Fed::Listed(_))
                | Self::Node(Fed::Listed(_))
                | Self::Slices(Fed::Listed(_))
                | Self::Relays(Fed::Listed(_))
        )
    }
}

/// The sender side: four feeds into one bounded channel.
pub struct Feeds {
    connection: Connection,
    out: mpsc::Sender<Told>,
    relist_slices: Arc<Notify>,
}

impl Feeds {
    /// Feeds that report to `out`.
    pub fn new(connection: Connection, out: mpsc::Sender<Told>) -> Self {
        Self { connection, out, relist_slices: Arc::default() }
    }

    /// Starts watching. The handle makes the slices be listed afresh.
    pub fn spawn(self, node_name: &str) -> Arc<Notify> {
        let Self { connection, out, relist_slices } = self;
        let never = Arc::new(Notify::new());
        let start = |only: Option<String>, relist: &Arc<Notify>| Feed {
            connection: connection.clone(),
            only,
            relist: relist.clone(),
            version: None,
        };
        tokio::spawn(start(Some(names::MESH.into()), &never).run(sink(&out, Told::Mesh)));
        tokio::spawn(start(Some(node_name.into()), &never).run(sink(&out, Told::Node)));
        tokio::spawn(start(None, &relist_slices).run(sink(&out, Told::Slices)));
        tokio::spawn(start(None, &never).run(sink(&out, Told::Relays)));
        relist_slices
    }
}

struct Sink<K> {
    out: mpsc::Sender<Told>,
    wrap: fn(Fed<K>) -> Told,
}

fn sink<K>(out: &mpsc::Sender<Told>, wrap: fn(Fed<K>) -> Told) -> Sink<K> {
    Sink { out: out.clone(), wrap }
}

impl<K> Sink<K> {
    async fn send(&self, fed: Fed<K>) -> Result<(), End> {
        self.out.send((self.wrap)(fed)).await.map_err(|_| End::Stopped)
    }
}

/// One kind, one loop.
struct Feed {
    connection: Connection,
    only: Option<String>,
    relist: Arc<Notify>,
    version: Option<String>,
}

/// Why a session ended.
#[derive(Debug)]
enum End {
    /// The stream ended as it should: go on from where it was.
    Over,
    /// Begin with a list: it was asked for, or the version is too old.
    Relist,
    /// The address did not answer.
    Failed(String),
    /// The API server answered that it can't, at present.
    Unable(String),
    /// The API server answered that it won't: nothing is wrong with the connection.
    Refused(String),
    /// Nobody listens any more.
    Stopped,
}

impl Feed {
    async fn run<K>(mut self, sink: Sink<K>)
    where
        K: Resource<DynamicType = ()> + DeserializeOwned,
    {
        let mut resets = self.connection.resets();
        let mut pause = BACKOFF_FIRST;
        loop {
            let began = Instant::now();
            let end = self.session(&sink, &mut resets).await;
            if began.elapsed() > HEALTHY_AFTER {
                pause = BACKOFF_FIRST;
            }
            match end {
                End::Stopped => return,
                // A server that ends every watch at once must not be asked in a tight loop.
                End::Over | End::Relist if began.elapsed() > BACKOFF_FIRST => continue,
                End::Over | End::Relist => sleep(BACKOFF_FIRST).await,
                // The pause is that of the connection.
                End::Failed(why) | End::Unable(why) => {
                    tracing::debug!(kind = %K::kind(&()), why, "the API did not answer");
                }
                End::Refused(why) => {
                    tracing::debug!(kind = %K::kind(&()), why, "the API refused");
                    sleep(pause.mul_f64(0.5 + random::unit() / 2.0)).await;
                    pause = (pause * 2).min(BACKOFF_LAST);
                }
            }
        }
    }

    async fn session<K>(&mut self, sink: &Sink<K>, resets: &mut watch::Receiver<u64>) -> End
    where
        K: Resource<DynamicType = ()> + DeserializeOwned,
    {
        self.connection.turn().await;
        resets.mark_unchanged();
        let (number, client) = match self.connection.client() {
            Ok(made) => made,
            // Credentials that make no client: nothing that another address would help.
            Err(e) => return End::Refused(e.to_string()),
        };
        let api = Api::<DynamicObject>::all_with(client, &ApiResource::erase::<K>(&()));
        let result = async {
            let version = match self.version.take() {
                Some(version) => version,
                None => self.list(&api, number, sink).await?,
            };
            self.watch(&api, number, version, sink, resets).await
        };
        match result.await {
            Ok(end) => end,
            Err(End::Failed(why)) => {
                self.connection.failed(number);
                End::Failed(why)
            }
            Err(End::Unable(why)) => {
                self.connection.unable(number);
                End::Unable(why)
            }
            Err(end) => end,
        }
    }

    async fn list<K>(&self, api: &Api<DynamicObject>, number: usize, sink: &Sink<K>) -> Result<String, End>
    where
        K: Resource<DynamicType = ()> + DeserializeOwned,
    {
        let params = ListParams { field_selector: self.field_selector(), ..ListParams::default() };
        let listed = timeout(LIST_TIMEOUT, api.list(&params)).await;
        let listed = listed.map_err(|_| End::Failed("no answer to a list".into()))?.map_err(failed)?;
        self.connection.worked(number);
        let version = listed.metadata.resource_version.clone().unwrap_or_default();
        let mut listing = Listing::from(Vec::new());
        for object in listed.items {
            match parse::<K>(object) {
                Ok(object) => listing.objects.push(object),
                Err(name) => listing.unreadable.push(name),
            }
        }
        sink.send(Fed::Listed(listing)).await?;
        Ok(version)
    }

    async fn watch<K>(
        &mut self,
        api: &Api<DynamicObject>,
        number: usize,
        version: String,
        sink: &Sink<K>,
        resets: &mut watch::Receiver<u64>,
    ) -> Result<End, End>
    where
        K: Resource<DynamicType = ()> + DeserializeOwned,
    {
        let mut params = WatchParams::default().timeout(watch_seconds(random::unit()));
        params.field_selector = self.field_selector();
        let opened = timeout(LIST_TIMEOUT, api.watch(&params, &version)).await;
        self.version = Some(version);
        let stream = match opened.map_err(|_| End::Failed("no answer to a watch".into()))? {
            Err(e) if is_expired(&e) => {
                self.version = None;
                return Ok(End::Relist);
            }
            other => other.map_err(failed)?,
        };
        self.connection.worked(number);
        let mut stream = pin!(stream.into_stream());
        loop {
            let event = tokio::select! {
                event = timeout(WATCH_SILENCE, stream.next()) => event,
                () = self.relist.notified() => { self.version = None; return Ok(End::Relist) }
                _ = resets.changed() => return Ok(End::Over),
            };
            match event {
                // Dead, or a server without bookmarks: asking again on another connection tells which.
                Err(_) => return Ok(End::Over),
                Ok(None) => return Ok(End::Over),
                Ok(Some(Err(kube::Error::SerdeError(e)))) => {
                    tracing::warn!(kind = %K::kind(&()), error = %e, "skipped an event that can't be read");
                }
                Ok(Some(Err(e))) => return Err(failed(e)),
                Ok(Some(Ok(event))) => self.event(event, sink).await?,
            }
        }
    }

    async fn event<K>(&mut self, event: WatchEvent<DynamicObject>, sink: &Sink<K>) -> Result<(), End>
    where
        K: Resource<DynamicType = ()> + DeserializeOwned,
    {
        match event {
            WatchEvent::Added(object) | WatchEvent::Modified(object) => {
                self.version = object.resource_version().or(self.version.take());
                match parse::<K>(object) {
                    Ok(object) => sink.send(Fed::Applied(object)).await,
                    // What was known of it stands.
                    Err(_) => Ok(()),
                }
            }
            WatchEvent::Deleted(object) => {
                self.version = object.resource_version().or(self.version.take());
                sink.send(Fed::Deleted(object.name_any())).await
            }
            WatchEvent::Bookmark(bookmark) => {
                self.version = Some(bookmark.metadata.resource_version);
                Ok(())
            }
            WatchEvent::Error(status) if status.code == 410 => {
                self.version = None;
                Err(End::Relist)
            }
            WatchEvent::Error(status) => Err(End::Unable(status.message)),
        }
    }

    fn field_selector(&self) -> Option<String> {
        self.only.as_ref().map(|name| format!("metadata.name={name}"))
    }
}

/// The object, or its name if it can't be read.
fn parse<K>(mut object: DynamicObject) -> Result<K, String>
where
    K: Resource<DynamicType = ()> + DeserializeOwned,
{
    let (kind, name) = (K::kind(&()), object.name_any());
    object.metadata.managed_fields = None;
    let error = match object.clone().try_parse() {
        Ok(parsed) => return Ok(parsed),
        Err(e) => e,
    };
    lenient::soften(&kind, &mut object.data);
    match object.try_parse() {
        Ok(parsed) => {
            tracing::warn!(%kind, name, %error, "parts of an object can't be read; they stay as they were");
            Ok(parsed)
        }
        Err(_) => {
            tracing::warn!(%kind, name, %error, "an object can't be read; what was known of it stands");
            Err(name)
        }
    }
}

fn failed(error: kube::Error) -> End {
    match error {
        kube::Error::Api(status) if (400..500).contains(&status.code) && status.code != 429 => {
            End::Refused(status.message)
        }
        kube::Error::Api(status) => End::Unable(status.message),
        other => End::Failed(other.to_string()),
    }
}

fn is_expired(error: &kube::Error) -> bool {
    matches!(error, kube::Error::Api(status) if status.code == 410)
}

fn watch_seconds(random: f64) -> u32 {
    let span = f64::from(WATCH_SECONDS.end - WATCH_SECONDS.start);
    // Truncation is wanted: `random` is below 1, so the end of the range is never reached.
    WATCH_SECONDS.start + (random * span) as u32
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn watches_end_at_different_times_within_what_servers_allow() {
        assert_eq!(watch_seconds(0.0), 240);
        assert_eq!(watch_seconds(0.999_999), 293);
    }

    #[test]
    fn an_object_of_another_shape_is_named_alone() {
        let good = serde_json::json!({"apiVersion": "warren.dev/v1alpha1", "kind": "MeshRelay", "metadata": {"name": "a"}, "spec": {}});
        let bad = serde_json::json!({"apiVersion": "warren.dev/v1alpha1", "kind": "MeshRelay", "metadata": {"name": "b"}, "spec": 7});
        let parsed = [good, bad].map(|v| parse::<MeshRelay>(serde_json::from_value(v).unwrap()));
        assert!(parsed[0].is_ok());
        assert_eq!(parsed[1].as_ref().unwrap_err(), "b");
    }
}
