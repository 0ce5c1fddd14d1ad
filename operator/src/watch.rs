//! The watches: one stream for each kind, merged into one.

use crate::{
    backoff::WatchBackoff,
    index::{Change, Kind, Meta, Stored, Unreadable, Update, Watched},
    metrics::Metrics,
    protection::Documents,
};
use crds::{Mesh, MeshNode, MeshPeerSlice, MeshRelay};
use futures::{
    StreamExt,
    stream::{self, BoxStream},
};
use k8s_openapi::api::{
    admissionregistration::v1::{ValidatingAdmissionPolicy, ValidatingAdmissionPolicyBinding},
    core::v1::Node,
};
use kube::{
    Api, Client, ResourceExt,
    api::DynamicObject,
    core::ApiResource,
    runtime::{
        WatchStreamExt,
        watcher::{self, Event},
    },
};
use std::sync::Arc;

/// The shortest and longest life of one watch request, in seconds: a fixed one would synchronise the restarts of every
/// watcher, and the API server accepts less than 295.
const WATCH_SECONDS: std::ops::Range<u32> = 240..294;
/// Objects a page of the first list: what has to be decoded at once stays below a few hundred kilobytes.
const PAGE_SIZE: u32 = 100;

/// Every change of everything, for ever.
pub fn changes(client: &Client, documents: Vec<Documents>, metrics: &Arc<Metrics>) -> BoxStream<'static, Change> {
    let ours = move |change: &Change| concerns(&documents, change);
    let streams = vec![
        watch::<Node>(client, metrics),
        watch::<Mesh>(client, metrics),
        watch::<MeshNode>(client, metrics),
        watch::<MeshPeerSlice>(client, metrics),
        watch::<MeshRelay>(client, metrics),
        watch::<ValidatingAdmissionPolicy>(client, metrics),
        watch::<ValidatingAdmissionPolicyBinding>(client, metrics),
    ];
    stream::select_all(streams).filter(move |change| std::future::ready(ours(change))).boxed()
}

// Other people's policies are not kept.
fn concerns(documents: &[Documents], change: &Change) -> bool {
    let named = |name: &str| documents.iter().any(|set| set.names(name));
    match change {
        Change::Policy(Update::Listed(object) | Update::Applied(object)) => named(&object.meta.name),
        Change::Binding(Update::Listed(object) | Update::Applied(object)) => named(&object.meta.name),
        Change::Policy(Update::Unreadable(meta)) | Change::Binding(Update::Unreadable(meta)) => named(&meta.name),
        _ => true,
    }
}

fn watch<K: Watched>(client: &Client, metrics: &Arc<Metrics>) -> BoxStream<'static, Change> {
    let api: Api<DynamicObject> = Api::all_with(client.clone(), &ApiResource::erase::<K>(&()));
    let config = watcher::Config { page_size: Some(PAGE_SIZE), ..watcher::Config::default().timeout(lifetime()) };
    let metrics = metrics.clone();
    let mut failing = false;
    let stream = kube::runtime::watcher(api, config).backoff(WatchBackoff::default());
    stream
        .filter_map(move |result| {
            metrics.watch_events.with_label_values(&[K::KIND.as_str()]).inc();
            if let Err(error) = &result {
                metrics.watch_errors.with_label_values(&[K::KIND.as_str()]).inc();
                report(K::KIND, error, &mut failing);
            } else {
                failing = false;
            }
            std::future::ready(result.ok().map(|event| K::change(update::<K>(event, &metrics))))
        })
        .boxed()
}

fn lifetime() -> u32 {
    WATCH_SECONDS.start + getrandom::u32().unwrap_or(0) % (WATCH_SECONDS.end - WATCH_SECONDS.start)
}

fn update<K: Watched>(event: Event<DynamicObject>, metrics: &Metrics) -> Update<K::Value> {
    match event {
        Event::Init => Update::ListBegins,
        Event::InitDone => Update::ListEnds,
        Event::InitApply(object) => read::<K>(object, metrics).map_or_else(Update::Unreadable, Update::Listed),
        Event::Apply(object) => read::<K>(object, metrics).map_or_else(Update::Unreadable, Update::Applied),
        Event::Delete(object) => Update::Deleted(object.name_any(), object.uid().unwrap_or_default()),
    }
}

fn read<K: Watched>(object: DynamicObject, metrics: &Metrics) -> Result<Stored<K::Value>, Meta> {
    Stored::read::<K>(object).map_err(|Unreadable { meta, error }| {
        let (kind, name) = (K::KIND.as_str(), &meta.name);
        metrics.unreadable_objects.with_label_values(&[kind]).inc();
        tracing::warn!(kind, name, error, "cannot read an object; its last readable version counts, if there was one");
        meta
    })
}

fn report(kind: Kind, error: &watcher::Error, failing: &mut bool) {
    let first = !std::mem::replace(failing, true);
    let missing = matches!(error, watcher::Error::InitialListFailed(kube::Error::Api(status)) if status.code == 404);
    let kind = kind.as_str();
    match (first, missing) {
        (true, true) => tracing::info!(kind, "waiting for the API server to know this kind; it comes with the chart"),
        (true, false) => tracing::warn!(kind, %error, "the watch broke; it is started again"),
        (false, _) => tracing::debug!(kind, %error, "the watch is still broken"),
    }
}
