//! Wires everything up and turns the loop.

use crate::{
    args::{LogFormat, RunArgs},
    client,
    coalesce::Coalescer,
    defaults,
    events::Recorder,
    index::Effect,
    lease::driver::Election,
    metrics::Metrics,
    protection,
    reconcile::{Reconciler, apply::Applier},
    server::{self, Health},
    watch,
};
use anyhow::{Context, Result};
use futures::StreamExt;
use std::{
    io::IsTerminal,
    path::Path,
    sync::Arc,
    time::{Duration, Instant},
};
use tokio::{
    signal::unix::{SignalKind, signal},
    sync::oneshot,
};
use tracing_subscriber::EnvFilter;

/// The loop turns at least this often, so that a stuck one is told from a quiet one.
const TURN: Duration = Duration::from_secs(10);
/// Changes that are taken in before due work is done: a flood of watch events may not hold up a removal.
const DRAIN: usize = 256;

/// Runs the operator until it is told to stop.
pub async fn run(args: RunArgs, health_socket: &Path) -> Result<()> {
    let RunArgs { kubeconfig, namespace, identity, metrics_listen, mesh_defaults, relay_placement, log_format, log } =
        args;
    start_log(log_format, &log)?;
    let defaults = defaults::parse(&mesh_defaults)?;
    let documents = protection::accepted(&namespace).context("read the admission policies that are built in")?;
    let mut terminated = signal(SignalKind::terminate()).context("listen for SIGTERM")?;
    let mut interrupted = signal(SignalKind::interrupt()).context("listen for SIGINT")?;

    let metrics = Arc::new(Metrics::new().context("register metrics")?);
    let health = Arc::new(Health::default());
    server::start(health_socket, metrics_listen, health.clone(), metrics.clone()).await;
    let client = client::connect(kubeconfig.as_deref()).await?;
    let identity = unique(&identity)?;
    tracing::info!(version = env!("CARGO_PKG_VERSION"), identity, namespace, "starting");

    let (election, fence) = Election::new(client.clone(), &namespace, identity.clone(), metrics.clone());
    let (stop, stopped) = oneshot::channel::<()>();
    let election = tokio::spawn(election.run(async move { drop(stopped.await) }));
    let applier = Applier::new(client.clone(), fence.clone(), metrics.clone());
    let recorder = Recorder::new(client.clone(), identity, metrics.clone());
    let changes = watch::changes(&client, documents.clone(), &metrics);
    let reconciler = Reconciler::new(documents, defaults, relay_placement, applier, recorder, metrics);
    let work = turn(reconciler, changes, fence, &health);
    tokio::select! {
        () = work => {}
        _ = terminated.recv() => tracing::info!("told to stop"),
        _ = interrupted.recv() => tracing::info!("interrupted"),
    }
    // A dropped receiver means the election has ended by itself, which is as good.
    let _ = stop.send(());
    election.await.context("give the lease back")
}

async fn turn(
    mut reconciler: Reconciler,
    mut changes: futures::stream::BoxStream<'static, crate::index::Change>,
    mut fence: crate::lease::driver::Fence,
    health: &Health,
) {
    let mut coalescer = Coalescer::new(Instant::now());
    let mut ready = false;
    loop {
        health.turned();
        if !ready && reconciler.cluster.synced() {
            ready = true;
            health.set_ready();
            tracing::info!(nodes = reconciler.cluster.nodes.len(), "every kind has been listed");
        }
        let now = Instant::now();
        coalescer.set_nodes(reconciler.cluster.mesh_nodes.len());
        if let Some(lane) = coalescer.take(now) {
            if let Some(wake) = reconciler.pass(lane).await {
                coalescer.wake(wake);
            }
            continue;
        }
        let due = coalescer.due().map_or(now + TURN, |due| due.min(now + TURN));
        tokio::select! {
            Some(change) = changes.next() => {
                note(&mut coalescer, reconciler.absorb(change));
                for _ in 1..DRAIN {
                    let Some(Some(change)) = futures::FutureExt::now_or_never(changes.next()) else { break };
                    note(&mut coalescer, reconciler.absorb(change));
                }
            }
            // It also changes with every renewal, which is no news. A term that ran out and was renewed is: no pass wrote meanwhile.
            true = fence.changed() => if fence.holds() != reconciler.leading() { coalescer.wake(now) },
            () = tokio::time::sleep_until(due.into()) => {}
        }
    }
}

fn note(coalescer: &mut Coalescer, effect: Effect) {
    let now = Instant::now();
    match effect {
        Effect::Nothing => {}
        Effect::Changed => coalescer.changed(now),
        Effect::Removed => coalescer.removed(now),
    }
}

// A container that restarts inside its Pod keeps the Pod's name, and must not take its predecessor's lease for its own.
fn unique(identity: &str) -> Result<String> {
    let number = getrandom::u32().context("draw an identity")?;
    Ok(format!("{identity}_{number:08x}"))
}

fn start_log(format: LogFormat, directives: &str) -> Result<()> {
    let filter = EnvFilter::try_new(directives).with_context(|| {
        format!("expected --log to be filter directives like `info,operator=debug`, found {directives:?}")
    })?;
    let log = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    let log = log.with_ansi(std::io::stderr().is_terminal());
    match format {
        LogFormat::Text => log.init(),
        LogFormat::Json => log.json().init(),
    }
    Ok(())
}
